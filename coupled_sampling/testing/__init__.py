"""Tools to prove that a decoder is lossless: exact laws by enumeration, and models small enough for it."""

from coupled_sampling.testing.exact import EnumeratingNoise, autoregressive_law, exact_law, total_variation
from coupled_sampling.testing.worlds import TableProvider, random_table

__all__ = [
    "EnumeratingNoise",
    "TableProvider",
    "autoregressive_law",
    "exact_law",
    "random_table",
    "total_variation",
]

"""Tools to prove that a decoder is lossless, this library's or yours.

- exact: `assert_lossless_exactly` compares the exact law of whole outputs with the chain rule's, in floats or in fractions;
  `exact_law` and `exact_law_from_uniforms` give the law itself;
- models small enough for it: `TableProvider`, `RationalProvider`, `random_table`, `rational_table`.
"""

from coupled_sampling.testing.enumeration import Choice, ExactLaw, PathEstimate
from coupled_sampling.testing.exact import (
    EnumeratingNoise,
    autoregressive_law,
    exact_law,
    expected_paths,
    joint_law,
    total_variation,
)
from coupled_sampling.testing.proof import assert_lossless_exactly, shipped_decoder
from coupled_sampling.testing.rational import RationalArray, RationalProvider, rational_table
from coupled_sampling.testing.uniforms import EnumeratingGenerator, UnknownUniform, exact_law_from_uniforms
from coupled_sampling.testing.worlds import TableProvider, random_table

__all__ = [
    "Choice",
    "EnumeratingGenerator",
    "EnumeratingNoise",
    "ExactLaw",
    "PathEstimate",
    "RationalArray",
    "RationalProvider",
    "TableProvider",
    "UnknownUniform",
    "assert_lossless_exactly",
    "autoregressive_law",
    "exact_law",
    "exact_law_from_uniforms",
    "expected_paths",
    "joint_law",
    "random_table",
    "rational_table",
    "shipped_decoder",
    "total_variation",
]

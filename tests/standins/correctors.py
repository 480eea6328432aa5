"""Correctors of tests: tables drawn at random, large enough that laws and tokens change by them."""

import numpy as np

from coupled_sampling.corrections import LowRank


def random_table(vocab_size, lags=(1, 3), *, seed=0, rank=5, scale=1.0):
    """A `LowRank` for ``lags``; the shift of a law is of the size of ``scale``."""
    random, count = np.random.default_rng(seed), len(lags)
    return LowRank(
        tuple(lags),
        random.standard_normal(vocab_size),
        random.standard_normal((vocab_size, rank)) * scale / rank**0.5,
        random.standard_normal((count, vocab_size + 1, rank)),
        random.uniform(0.5, 1.2, 2**count),
        random.uniform(-0.3, 0.6, 2**count),
    )


def no_change(vocab_size, lags=(1, 3)):
    """A `LowRank` that predicts that every law stays what it was."""
    count = len(lags)
    nothing = np.zeros((count, vocab_size + 1, 1))
    return LowRank(
        tuple(lags), np.ones(vocab_size), np.ones((vocab_size, 1)), nothing, np.ones(2**count), np.zeros(2**count)
    )

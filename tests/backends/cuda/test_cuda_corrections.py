"""Corrected laws in the CUDA kernels, emulated on the CPU: the tokens of HostStep with the same LowRank. Nothing ran on a GPU."""

import numpy as np
import pytest

from coupled_sampling import Sampling
from coupled_sampling.corrections import LowRank
from standins.cuda_emulation.comparison import Float32Table, NormalWorld, compare_on
from standins.cuda_emulation.emulation import PLAIN, EmulationLauncher

RECYCLING = ["sjd", "scd-maximal", "scd-gumbel", "scd-match"]


def eighths(random, *shape):
    """Numbers whose products and sums are exact in float32, in whatever order they are added up."""
    return random.integers(-6, 7, shape) / 8


def table_for(vocab_size, lags=(1,), rank=3, seed=0):
    random, count = np.random.default_rng(seed), len(lags)
    neighbours = eighths(random, count, vocab_size + 1, rank)
    scales = random.integers(3, 7, 2**count) / 4, random.integers(-2, 3, 2**count) / 4
    return LowRank(lags, eighths(random, vocab_size), eighths(random, vocab_size, rank), neighbours, *scales)


@pytest.mark.parametrize("method", RECYCLING)
def test_tokens_and_counts_are_those_of_host_step(method):
    with EmulationLauncher() as launcher:
        for lags, size, window in (((1,), 5, 2), ((1, 4), 5, 7), ((1, 4), 300, 16), ((2, 1, 3), 300, 33)):
            settings = {"corrections": table_for(size, lags), "window": window, "drafting": "random"}
            both = compare_on(launcher, lambda size=size: Float32Table(size, 3), method, **settings)
            assert both.differences == [], (lags, size)

"""A table model, and a decoder run to its end: what tests of requests begin with."""

import numpy as np

from coupled_sampling.testing import TableProvider, random_table

V = 5
TABLE = random_table(0, V)


def model(rows=1, vocab_size=V, **settings):
    return TableProvider(random_table(0, vocab_size), vocab_size, rows, **settings)


def run(decoder):
    """All commits by handle; 1,000 steps at most."""
    commits = {}
    for _ in range(1000):
        if not (decoder.active or decoder.waiting):
            return commits
        for commit in decoder.step():
            commits.setdefault(commit.handle, []).append(commit)
    raise AssertionError("it never ends")


def tokens_of(commits):
    return np.concatenate([commit.tokens for commit in commits])

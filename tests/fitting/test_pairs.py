"""Pairs of laws are what a corrector is asked and what came: each law with the neighbours that it was computed under."""

import numpy as np
import pytest

from coupled_sampling import GuidedProvider, generate
from coupled_sampling.fitting import Pairs, Recording
from coupled_sampling.fitting.pairs import log_laws, thinned
from coupled_sampling.testing import TableProvider, random_table

VOCAB, LAGS = 5, (1, 3)


class Third:
    """Logits of the tokens one and three before, so that both neighbours count; in an array that is used again."""

    vocab_size, batch_size, max_length = VOCAB, 1, 64

    def __init__(self):
        self.table = np.log(np.random.default_rng(3).dirichlet(np.ones(VOCAB), size=(VOCAB + 1, VOCAB + 1)))
        self.held = np.zeros(64, np.int64)
        self.out = np.zeros((1, 64, VOCAB))

    def of(self, near, far):
        return self.table[near, far]

    def forward(self, tokens, start):
        begin, width = int(start[0]), tokens.shape[1]
        self.held[begin : begin + width] = tokens[0]
        for j in range(width):
            position = begin + j + 1
            near, far = (int(self.held[position - lag]) if position >= lag else VOCAB for lag in LAGS)
            self.out[0, j] = self.of(near, far)
        return self.out[:, :width]


def recorded(method="scd-maximal", **settings):
    model = Recording(Third(), LAGS, 0, VOCAB)
    made = generate(model, [[0]], length=60, method=method, window=8, drafting="random", **settings)
    return model, np.concatenate([[0], made.tokens[0]])


@pytest.mark.parametrize("method", ["scd-maximal", "sjd", "scd-match"])
def test_each_law_stands_beside_the_neighbours_it_was_computed_with(method):
    model, tokens = recorded(method)
    pairs = model.pairs(tokens, np.random.default_rng(0))
    assert len(pairs.before) > 20
    assert (pairs.old != pairs.new).any(axis=1).all()
    inner = Third()
    for neighbours, laws in ((pairs.old, pairs.before), (pairs.new, pairs.after)):
        expected = [inner.of(*(VOCAB if token < 0 else token for token in own)) for own in neighbours.tolist()]
        np.testing.assert_allclose(laws.astype(float), np.array(expected), atol=5e-3)


def test_pairs_on_the_committed_path_are_all_kept_and_of_the_others_some(monkeypatch):
    model, tokens = recorded()

    def count(share):
        monkeypatch.setattr("coupled_sampling.fitting.pairs._KEPT_ASIDE", share)
        return len(model.pairs(tokens, np.random.default_rng(0)).before)

    none, some, all_of_them = count(0.0), count(0.3), count(1.0)
    assert 0 < none < some < all_of_them
    on_path = [one for one in model._candidates if (one.context == tokens[: len(one.context)]).all()]
    assert none == len(on_path)


def test_the_laws_of_committed_positions_are_those_under_committed_tokens():
    model, tokens = recorded()
    neighbours, laws = model.committed(tokens, prompt_length=1)
    assert len(laws) == len(tokens) - 1
    inner = Third()
    expected = [inner.of(*(VOCAB if token < 0 else token for token in own)) for own in neighbours.tolist()]
    np.testing.assert_allclose(laws, np.array(expected), atol=1e-5)
    assert neighbours[4].tolist() == [tokens[4], tokens[2]]


def test_one_sequence_leaves_nothing_for_the_next():
    model, _ = recorded()
    made = generate(model, [[1]], length=1, method="scd-maximal", window=2)
    tokens = np.concatenate([[1], made.tokens[0]])
    assert len(model.pairs(tokens, np.random.default_rng(0)).before) == 0


def test_tokens_that_cannot_be_generated_are_left_out():
    model = Recording(TableProvider(random_table(0, 6), 6), (1,), 2, 3)
    made = generate(model, [[0]], length=40, method="scd-match", window=6)
    pairs = model.pairs(np.concatenate([[0], made.tokens[0]]), np.random.default_rng(0))
    assert pairs.before.shape[1] == 3


def test_a_guided_model_is_told_its_requests():
    inner = GuidedProvider(TableProvider(random_table(0, 4), 4, batch_size=2), 2.0, [1])
    model = Recording(inner, (1,), 0, 4)
    plain = generate(
        GuidedProvider(TableProvider(random_table(0, 4), 4, batch_size=2), 2.0, [1]),
        [[0]],
        length=12,
        method="scd-match",
    )
    made = generate(model, [[0]], length=12, method="scd-match")
    np.testing.assert_array_equal(made.tokens[0], plain.tokens[0])


def test_what_does_not_fit_into_memory_is_thinned_at_random():
    law = np.zeros((100, 10), np.float16)
    pairs = Pairs(np.arange(100)[:, None], np.arange(100)[:, None] + 1, law, law, np.arange(100))
    some = thinned(pairs, 30 * 2 * 10 * 2, np.random.default_rng(0))
    assert len(some.before) == 30
    assert (some.new - some.old == 1).all()
    assert (np.diff(some.old[:, 0]) > 0).all()
    assert thinned(pairs, 10**6, np.random.default_rng(0)) is pairs


def test_of_too_many_pairs_early_and_late_ones_have_the_same_chance():
    model = Recording(Third(), LAGS, 0, VOCAB, committed=False, most_bytes=20 * 4 * VOCAB)
    made = generate(model, [[0]], length=60, method="scd-maximal", window=8, drafting="random")
    positions = [len(one.context) for one in model._candidates]
    assert 5 <= len(positions) <= 20
    assert min(positions) < 25 < 35 < max(positions)
    assert len(model.committed(np.concatenate([[0], made.tokens[0]]), 1)[0]) == 0


def test_log_laws_are_finite_and_sum_to_one():
    laws = log_laws(np.array([[1000.0, 999.0, -np.inf]]))
    assert np.isfinite(laws).all()
    np.testing.assert_allclose(np.exp(laws).sum(), 1, rtol=1e-5)

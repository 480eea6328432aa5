"""One step of a window with branches: what it decides is what a walk down the tree decides, one slot after another."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coupled_sampling import HostStep, Sampling, Window
from coupled_sampling.contracts import RowInfo
from coupled_sampling.noise import race_weights
from coupled_sampling.testing import TableProvider
from standins.tree_worlds import V, law_of_three, windows


class Walk:
    """What a row of a window decides, one slot after another, by the table and the noise alone."""

    def __init__(self, window, row, law):
        self.window, self.row, self.law = window, row, law
        self.info, self.first = window.rows[row], int(window.known[row]) - 1
        self.count = int(window.end[row] + window.branches[row])

    def own(self, slot):
        """The token that ``slot`` decides and its race's products; -1 where its state is dead."""
        context, at = [], slot
        while at >= 0:
            context.insert(0, int(self.window.tokens[self.row, at]))
            at = int(self.window.parents[self.row, at])
        context = [*self.window.contexts[self.row][: self.window.start[self.row]].tolist(), *context]
        law = self.law(tuple(context))
        products = law * race_weights(self.info.seed, self.info.sequence, len(context), V)
        return (int(np.argmax(products)) if law.sum() > 0 else -1), products

    def children(self, slots):
        return [slot for slot in range(self.first + 1, self.count) if int(self.window.parents[self.row, slot]) in slots]

    def committed(self):
        """The tokens, and the slot whose own is the last of them."""
        at, tokens = {self.first}, []
        while at:
            (token,) = {self.own(slot)[0] for slot in at}  # of branches that are twice the same, too
            tokens.append(token)
            end = min(at)
            at = {slot for slot in self.children(at) if self.window.tokens[self.row, slot] == token}
        return tokens, end

    def redrafts(self, count, end):
        """Of the slots that follow ``end``, by the first child of each, then of the path; and how many come from a dead one on."""
        followed = []
        while children := self.children({end}):
            end = children[0]
            followed.append(end)
        slots = followed + list(range(self.first + count + len(followed), int(self.window.end[self.row])))
        room = max(0, int(self.window.end[self.row]) - self.first - count)  # as many positions as the path has
        own = [self.own(slot) for slot in slots[:room]]
        alive = next((i for i, (token, _) in enumerate(own) if token < 0), len(own))
        return own[:alive], len(own) - alive


@pytest.mark.parametrize("dead", [0.0, 0.3])
@settings(derandomize=True, deadline=None, max_examples=40)
@given(window=windows([None, RowInfo(3, 0, Sampling()), RowInfo(3, 2**60, Sampling())]), seed=st.integers(0, 99))
def test_a_step_decides_what_a_walk_decides(dead, window, seed):
    law = law_of_three(seed, dead=dead)
    model = TableProvider(law, V, len(window.start), 40)
    model._held[:, :8] = np.arange(8) % V  # what is below ``start``
    outcome = HostStep(model, "scd-match").step(window._replace(candidates=3))
    for b in range(len(window.start)):
        if not window.draws[b]:
            assert outcome.committed[b] == 0
            continue
        walk, first = Walk(window, b, law), int(window.known[b]) - 1
        expected, end = walk.committed()
        decided = outcome.tokens[b, first:].tolist()
        assert decided[: outcome.committed[b]] == expected
        assert (expected[-1] < 0) == (b in outcome.failures)
        redrafts, closed = walk.redrafts(len(expected), end)
        assert (
            decided[len(expected) : len(expected) + len(redrafts) + closed]
            == [token for token, _ in redrafts] + [-1] * closed
        )
        assert (b in outcome.candidates) == bool(redrafts)
        for i, (token, products) in enumerate(redrafts):
            best = np.argsort(-products)[:3]
            assert outcome.candidates[b].tokens[i, 0] == token
            possible = products[best] > 0
            assert outcome.candidates[b].tokens[i][possible].tolist() == best[possible].tolist()
            with np.errstate(divide="ignore"):
                np.testing.assert_allclose(outcome.candidates[b].scores[i], np.log(products[best]), rtol=1e-9)


def test_rows_that_decide_nothing_may_begin_before_all_that_decide():
    """Padding has no depth, however many known tokens the other rows begin with."""
    law, infos = law_of_three(0), [None, RowInfo(3, 0, Sampling())]
    parents = np.array([[-1] * 4, [-1, 0, 1, 2]])
    zero, known = np.zeros(2, np.int64), np.array([0, 4])
    window = Window(
        np.zeros((2, 4), np.int64),
        zero,
        known,
        zero,
        zero,
        known > 0,
        zero,
        infos,
        [zero, np.zeros(4, int)],
        [None] * 2,
    )
    outcome = HostStep(TableProvider(law, V, 2, 40), "scd-match").step(window._replace(branches=zero, parents=parents))
    assert outcome.committed.tolist() == [0, 1]
    assert outcome.tokens[1, 3] == np.argmax(law((0, 0, 0, 0)) * race_weights(3, 0, 4, V))

"""What processors are shown of a window that is a tree: of each slot the tokens on its own path."""

import numpy as np
from hypothesis import given, settings

from coupled_sampling import Sampling, Window
from coupled_sampling.contracts import RowInfo
from coupled_sampling.tree_contexts import tree_contexts
from standins.tree_worlds import windows

LOOKS = Sampling(processors=(lambda logits, tokens, positions: logits,))


def context(window, row, slot):
    """The tokens from position 0 to ``slot``, by going up."""
    own = []
    while slot >= 0:
        own.append(int(window.tokens[row, slot]))
        slot = int(window.parents[row, slot])
    return [*window.contexts[row][: window.start[row]].tolist(), *own[::-1]]


@settings(derandomize=True, deadline=None, max_examples=50)
@given(windows([None, RowInfo(0, 0, LOOKS), RowInfo(0, 0, Sampling())]))
def test_every_slot_that_decides_is_shown_its_own_path(window):
    if not window.draws.any():
        return
    tree = window.tree_decisions()
    for b, (info, shown) in enumerate(zip(window.rows, tree_contexts(window, tree), strict=True)):
        if info is None or not info.sampling.processors:
            assert shown is window.contexts[b]
            continue
        decides = np.flatnonzero(tree.slots.sites.valid[b]).tolist()
        assert [column for run, _ in shown for column in run] == decides  # each once, from the left to the right
        for run, tokens in shown:
            for column in run:
                position = int(tree.slots.sites.position[b, column])
                assert tokens[:position].tolist() == context(window, b, tree.slots.first + column)
            assert len(tokens) == tree.slots.sites.position[b, run[-1]]


def test_slots_that_follow_one_another_are_one_run():
    one = np.array([1])
    window = Window(
        np.array([[5, 3, 3, 4, 7, 8]]), 2 * one, one, 2 * one, 0 * one, one == 1, one, [RowInfo(0, 0, LOOKS)],
        [np.array([0, 0, 5, 3, 3])], [None], branches=3 * one, parents=np.array([[-1, 0, 1, 0, 3, 0]]),
    )  # fmt: skip
    (shown,) = tree_contexts(window, window.tree_decisions())
    assert [(list(run), tokens.tolist()) for run, tokens in shown] == [
        ([0, 1, 2], [0, 0, 5, 3, 3]),
        ([3, 4], [0, 0, 5, 4, 7]),
        ([5], [0, 0, 5, 8]),
    ]

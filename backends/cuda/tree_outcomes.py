"""What came of a window with branches, and of candidates, from what the kernels send down."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.backends.cuda.plans import Decided
from coupled_sampling.contracts import Candidates, Integers, Outcome, Window
from coupled_sampling.target import unusable_law
from coupled_sampling.trees import Tree

__all__ = ["candidates_of", "close_tree"]


def close_tree(window: Window, tree: Tree, tokens: Integers, committed: Integers, highest: NDArray[Any]) -> Outcome:
    """The outcome of a window that is a ``tree``, as `coupled_sampling.target.close_rows` makes that of others.

    The kernels end drafts where no law can be made. What is left to say is why a row has failed: which slot it ended at.

    Examples
    --------
    After a known token two guesses side by side, 0 and 1. The second stands, and behind it nothing is possible:

    >>> import numpy as np
    >>> from coupled_sampling import Sampling, Window
    >>> from coupled_sampling.contracts import RowInfo
    >>> from coupled_sampling.trees import Tree
    >>> one, parents = np.array([1]), np.array([[-1, 0, 0]])
    >>> window = Window(
    ...     np.array([[5, 0, 1]]), 9 * one, one, one, 0 * one, one == 1, one, [RowInfo(0, 0, Sampling())], [one], [None],
    ...     branches=one, parents=parents,
    ... )
    >>> highest = np.array([[0.5, 0.5, -np.inf]])
    >>> outcome = close_tree(window, Tree.of(parents), np.array([[1, -1, 0]]), np.array([2]), highest)
    >>> str(outcome.failures[0])[:45]
    'logits of row 0 for position 11 hold nothing '
    """
    last = window.known - 1 + np.where(window.draws, committed - 1, 0)
    ends = np.take_along_axis(tokens, last[:, None], axis=1)[:, 0]
    failures: dict[int, Exception] = {}
    for b in np.flatnonzero(window.draws & (ends < 0)).tolist():
        first, depth = int(window.known[b]) - 1, int(last[b])
        for slot in np.flatnonzero(~np.isfinite(highest[b]) & (tree.depth[b] == depth)).tolist():
            # Of slots at that depth the row ended at the one whose path is what was committed.
            if window.tokens[b, tree.path(b, slot)[first + 1 :]].tolist() == tokens[b, first:depth].tolist():
                failures[b] = unusable_law(b, int(window.start[b]) + depth + 1, float(highest[b, slot]))
                break
    return Outcome(tokens, committed, failures)


def candidates_of(window: Window, outcome: Outcome, decided: Decided) -> dict[int, Candidates]:
    """What else the redrafts of each row might have been; rows without redrafts are left out."""
    slot, end = np.arange(window.tokens.shape[1]), window.end
    first = window.known - 1 + outcome.committed
    redrafts = window.draws[:, None] & (slot >= first[:, None]) & (slot < end[:, None]) & (outcome.tokens >= 0)
    found = {}
    for b in np.flatnonzero(redrafts.any(axis=1)).tolist():
        own = np.flatnonzero(redrafts[b])
        found[b] = Candidates.led(outcome.tokens[b, own], decided.candidates[b, own], decided.scores[b, own])
    return found

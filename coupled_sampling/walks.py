"""How far a step came: the drafts that stood, and how many of them a narrower window would have held.

A window's drafts have numbers, as in `coupled_sampling.branching.Branches`: those of its path from 0 on, and behind them its
branches, likeliest first. A narrower window of the same row has a shorter path and fewer branches: the first ones. So what was
walked in a wide window says by itself how far a narrower one would have come. It ends

- at the end of its path. What is left of the run of drafts that stood takes it further steps;
- or at a branch that it has no slot for. There it draws the token itself, and goes on from a new start.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from coupled_sampling.sampling import Integers
from coupled_sampling.slots import Outcome, Window

__all__ = ["Walk"]


class Walk(NamedTuple):
    """What one row walked in one step.

    Examples
    --------
    After one known token stood two drafts of the path, and behind them a branch, the third one of its window. A window of four
    slots, one of them for a branch, would have held the first two drafts, and committed these and one token more. Without
    branches, a window of two slots would have held one of the two; the second and the token behind take it another step.

    >>> import numpy as np
    >>> from coupled_sampling.walks import Walk
    >>> walk = Walk(drafts=np.array([0, 1, 8]), path=6, known=1)
    >>> walk.tokens
    4
    >>> [numbers.tolist() for numbers in walk.within(widths=np.array([4, 2]), branches=np.array([1, 0]))]
    [[3, 4], [1, 2]]
    """

    drafts: Integers
    """(n,) the drafts that stood, one after another: 0 to ``path - 1`` are the path's, and those behind them branches."""
    path: int
    """Drafts of the path."""
    known: int
    """Slots of known tokens before the drafts, in a window of any width."""

    @property
    def tokens(self) -> int:
        """What was committed: the drafts that stood, and one token more."""
        return len(self.drafts) + 1

    def within(self, widths: Integers, branches: Integers) -> tuple[Integers, Integers]:
        """What R other windows would have come to, none of them wider than this one.

        Parameters
        ----------
        widths, branches
            (R,) slots of each, and how many of them are for branches.

        Returns
        -------
        tuple
            Tokens (R,), and the steps (R,) that they would have taken.
        """
        steps = np.ones(len(widths), np.int64)
        if not len(self.drafts):
            return steps.copy(), steps
        on_path = self.drafts < self.path
        room = (widths - branches - self.known)[:, None]
        lacks = np.where(on_path, self.drafts >= room, self.drafts - self.path >= branches[:, None])
        lacking, first = lacks.any(axis=1), lacks.argmax(axis=1)
        tokens = 1 + np.where(lacking, first, len(self.drafts))
        goes_on = lacking & on_path[first]
        steps += np.where(goes_on, -((tokens - self.tokens) // (widths - branches)), 0)  # minus a floor: rounded up
        return np.where(goes_on, self.tokens, tokens), steps


def walk_of(window: Window, outcome: Outcome, row: int, known: int) -> Walk:
    """What ``row``, which drew, walked in ``window``; ``known`` tokens of it had not been forwarded before.

    Examples
    --------
    A known token 5, a draft 3 of the path, which is refused, and the branch 4 beside it, which stands:

    >>> import numpy as np
    >>> from coupled_sampling import Outcome, Sampling, Window
    >>> from coupled_sampling.contracts import RowInfo
    >>> from coupled_sampling.walks import walk_of
    >>> one = np.array([1])
    >>> window = Window(
    ...     np.array([[5, 3, 4]]), 9 * one, one, one, 0 * one, one == 1, one, [RowInfo(0, 0, Sampling())], [one], [None],
    ...     branches=one, parents=np.array([[-1, 0, 0]]),
    ... )
    >>> walk_of(window, Outcome(np.array([[4, 7, 0]]), 2 * one), row=0, known=1)
    Walk(drafts=array([1]), path=1, known=1)
    """
    first, path = int(window.known[row]), int(window.recycled[row] + window.fresh[row])
    decided = outcome.tokens[row, first - 1 : first - 1 + int(outcome.committed[row])].tolist()
    if window.parents is None or window.branches is None:
        return Walk(np.arange(len(decided) - 1), path, known)
    end = first + path + int(window.branches[row])
    parents, tokens = window.parents[row, first:end].tolist(), window.tokens[row, first:end].tolist()
    depth = {
        first - 1: 0
    }  # of the slots that stand: what a slot's own draft was tested against is decided[its depth - 1]
    for slot, (parent, token) in enumerate(zip(parents, tokens, strict=True), start=first):
        before = depth.get(parent)
        if before is not None and before < len(decided) - 1 and token == decided[before]:
            depth[slot] = before + 1
    slot = max(depth, key=lambda slot: depth[slot])
    walked = []
    while slot >= first:
        walked.append(slot - first)
        slot = parents[slot - first]
    return Walk(np.array(walked[::-1], np.int64), path, known)

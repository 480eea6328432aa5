"""What a window's rule is told of the steps that were done, and when.

How long a step took may depend on its drafts: a rule that knew it at once could choose a width by drafts that are still to be
tested. So it is told when every row has committed all that the step decided, or is gone. Where tokens do not depend on drafts,
with the acceptance "match", it is told at once; and of what was walked, if it chooses branches.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from coupled_sampling.rows import Row
from coupled_sampling.slots import Outcome, Window
from coupled_sampling.walks import Walk, walk_of
from coupled_sampling.windows import TreeWindowRule, WindowRule

__all__ = ["StepRecords"]


class _Step(NamedTuple):
    """A step that the rule has not been told of."""

    rows: int
    width: int
    tokens: Sequence[int]
    seconds: float
    ends: Sequence[tuple[Row, int]]
    """Each row, and the end of the positions that the step decided or drafted in it."""


class StepRecords:
    """Steps of which something is open, and the ``rule`` that waits for them.

    Parameters
    ----------
    rule
        What is told.
    at_once
        Whether it may know of a step whose drafts are open.
    trees
        The rule, if it chooses branches: then it is told what was walked. Only where it is told at once.
    """

    def __init__(self, rule: WindowRule, *, at_once: bool = False, trees: TreeWindowRule | None = None) -> None:
        self._rule, self._trees = rule, trees
        self._at_once = at_once
        self._open: deque[_Step] = deque()

    def walks(self, window: Window, outcome: Outcome, stepped: Sequence[Row | None]) -> list[Walk]:
        """What the rows ``stepped`` walked, to which ``outcome`` has not been applied; nothing where nobody asks."""
        if self._trees is None:
            return []
        return [
            walk_of(window, outcome, b, row.committed - row.cached)
            for b, row in enumerate(stepped)
            if row is not None and window.draws[b]
        ]

    def add(
        self,
        chosen: tuple[int, int],
        window: Window,
        outcome: Outcome,
        seconds: float,
        stepped: Sequence[Row | None],
        walks: Sequence[Walk] = (),
    ) -> None:
        """The rows ``stepped`` were decided in ``seconds``; only full windows say what that width is worth.

        ``chosen`` are the width, and how many slots of it were for branches; ``walks`` is what `walks` said. A window whose path is
        whole is full, too: where nothing else can be, as for a greedy sequence, there are no branches to fill the rest.
        """
        width, branches = chosen
        active = [(b, row) for b, row in enumerate(stepped) if row is not None]
        path = max((walk.known + walk.path for walk in walks), default=0)
        is_full = window.tokens.shape[1] == width or (self._trees is not None and path >= width - branches)
        if not is_full or not all(window.draws[b] for b, _ in active):
            return
        if self._trees is not None:
            self._trees.record_walks(len(stepped), width, branches, walks, seconds)
            return
        slots = (window.start + window.known + window.recycled + window.fresh).tolist()
        ends = [(row, slots[b] + 1) for b, row in active]  # the last slot drafts the position after it
        self._open.append(_Step(len(stepped), width, outcome.committed[window.draws].tolist(), seconds, ends))

    def tell(self, rows: Sequence[Row | None]) -> None:
        """Tell the rule of all steps of which nothing is open any more, where ``rows`` are still under way."""
        while self._open and (
            self._at_once or all(row.committed >= end or row not in rows for row, end in self._open[0].ends)
        ):
            closed = self._open.popleft()
            self._rule.record(closed.rows, closed.width, closed.tokens, closed.seconds)

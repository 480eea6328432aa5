"""What a window's rule is told of the steps that were done, and when.

How long a step took may depend on its drafts: a rule that knew it at once could choose a width by drafts that are still to be
tested. So it is told when every row has committed all that the step decided, or is gone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from coupled_sampling.rows import Row
from coupled_sampling.slots import Outcome, Window
from coupled_sampling.windows import WindowRule

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
    """Steps of which something is open, and the ``rule`` that waits for them."""

    def __init__(self, rule: WindowRule) -> None:
        self._rule = rule
        self._open: deque[_Step] = deque()

    def add(self, width: int, window: Window, outcome: Outcome, seconds: float, stepped: Sequence[Row | None]) -> None:
        """The rows ``stepped`` were decided in ``seconds``; only full windows of ``width`` say what that width is worth."""
        active = [(b, row) for b, row in enumerate(stepped) if row is not None]
        if window.tokens.shape[1] == width and all(window.draws[b] for b, _ in active):
            slots = (window.start + window.known + window.recycled + window.fresh).tolist()
            ends = [(row, slots[b] + 1) for b, row in active]  # the last slot drafts the position after it
            self._open.append(_Step(len(stepped), width, outcome.committed[window.draws].tolist(), seconds, ends))

    def tell(self, rows: Sequence[Row | None]) -> None:
        """Tell the rule of all steps of which nothing is open any more, where ``rows`` are still under way."""
        while self._open and all(row.committed >= end or row not in rows for row, end in self._open[0].ends):
            closed = self._open.popleft()
            self._rule.record(closed.rows, closed.width, closed.tokens, closed.seconds)

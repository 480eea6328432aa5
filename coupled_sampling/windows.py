"""How wide a window is: fixed, or found while decoding.

A wider window commits more tokens per step and makes steps dearer; where the optimum lies depends on model, machine, batch
and prompt. `WindowSearch` climbs to it: it measures the width it is at and two others on a ladder of widths, in turns of a few
steps, moves to one that commits more tokens per second beyond doubt, looks nearer by when neither does, and rests when
not even its next neighbours do. A step's cost is the median of its times, so that a hiccup does not decide.

Why it cannot bias what is generated: a width may be chosen from anything that is decided before the step, as long as nothing in
it depends on drafts that are still to be tested. Then the law of a draft that is left outside a narrower window is no other than
it was, and so is what becomes of its position. Counts of committed tokens are functions of decisions to the left of all that is
open. Times are not: a pass may take longer for one draft than for another. So the loop tells a rule of a step only when everything
that the step decided or drafted has been committed, a few steps later. (That widths chosen by drafts, or by times told at once,
do bias is a test.) With methods whose tokens depend on how drafts came about, the tokens at one seed then depend on the machine's
speed and on the rest of the batch; their law does not.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Protocol, runtime_checkable

import numpy as np

from coupled_sampling.bounds import check_positive
from coupled_sampling.errors import InvalidArgument

__all__ = ["LADDER", "FixedWindow", "WindowRule", "WindowSearch", "find_window_rule"]

LADDER = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
"""Widths that `WindowSearch` tries."""

_TURN = 6
"""Steps measured in a row at one width."""
_SKIPPED = 2
"""Steps after a change of width that are not measured: a window just widened has more fresh drafts than usual."""
_ENOUGH = 32
"""Steps per width after which the better average decides, doubt or not."""
_STRIDE = 2
"""Rungs of the ladder to the first neighbours; then 1."""
_REST = 1024
"""Steps until neighbours are tried again: models, prompts and other load change."""
_DOUBT = 2.0
"""Standard errors by which a width must be better."""


@runtime_checkable
class WindowRule(Protocol):
    """Chooses the width of each step's window from the counts and times of the steps before."""

    @property
    def largest(self) -> int:
        """No width is more than this."""
        ...

    def width(self, rows: int) -> int:
        """Slots for the next step, which forwards ``rows`` rows: an integer from 1 to ``largest``."""
        ...

    def record(self, rows: int, width: int, tokens: int, seconds: float) -> None:
        """A step of ``rows`` rows that filled ``width`` slots committed ``tokens`` in all and took ``seconds``.

        Told when nothing that the step decided or drafted is open any more.
        """
        ...


class FixedWindow:
    """Always the same width."""

    def __init__(self, width: int) -> None:
        self.largest = width

    def width(self, rows: int) -> int:
        """See `WindowRule`."""
        return self.largest

    def record(self, rows: int, width: int, tokens: int, seconds: float) -> None:
        """Nothing to learn."""


class WindowSearch:
    """Finds the width that commits most tokens per second, for each number of rows in flight by itself.

    Parameters
    ----------
    largest
        Most slots the model takes.
    start
        Width to begin at.
    """

    def __init__(self, largest: int, start: int = 16) -> None:
        check_positive("largest", largest)
        check_positive("start", start)
        self.widths = [width for width in LADDER if width <= largest]
        self.largest = self.widths[-1]
        self._start = sum(width <= start for width in self.widths) - 1
        self._climbs: dict[int, _Climb] = {}

    def width(self, rows: int) -> int:
        """See `WindowRule`."""
        return self.widths[self._climb(rows).trying]

    def record(self, rows: int, width: int, tokens: int, seconds: float) -> None:
        """See `WindowRule`."""
        climb = self._climb(rows)
        if width == self.widths[climb.trying]:
            climb.record(tokens, seconds)

    def settled(self, rows: int = 1) -> int | None:
        """The width it rests at for ``rows`` sequences; None while it searches."""
        climb = self._climb(rows)
        return self.widths[climb.best] if climb.resting else None

    def _climb(self, rows: int) -> _Climb:
        if rows not in self._climbs:
            self._climbs[rows] = _Climb(len(self.widths), self._start)
        return self._climbs[rows]


class _Measured:
    """The steps at one width, the last hundreds of them."""

    def __init__(self) -> None:
        self.tokens: deque[int] = deque(maxlen=8 * _ENOUGH)
        self.seconds: deque[float] = deque(maxlen=8 * _ENOUGH)

    def speed(self) -> tuple[float, float]:
        """Logarithm of the tokens per second, and its standard error."""
        tokens, seconds = np.array(self.tokens, float), np.array(self.seconds)
        count, cost = len(tokens), float(np.median(seconds))
        mean = max(float(tokens.mean()), 1e-9)
        spread = 1.48 * float(np.median(abs(seconds - cost)))
        doubt = math.hypot(float(tokens.std()) / mean, 1.25 * spread / cost) / math.sqrt(count)
        return math.log(mean / cost), doubt


class _Climb:
    """The search for one number of rows; widths are indices into the ladder."""

    def __init__(self, count: int, start: int) -> None:
        self.best = self.trying = start
        self.resting = 0
        self._count = count
        self._measured = [_Measured() for _ in range(count)]
        self._worse: set[int] = set()
        self._step = 0
        self._stride = _STRIDE

    def record(self, tokens: int, seconds: float) -> None:
        self._step += 1
        if self.resting:
            self.resting -= 1
            if not self.resting:
                self._measured = [_Measured() for _ in range(self._count)]
                self._worse, self._step, self._stride = set(), _SKIPPED, 1
            return
        if self._step > _SKIPPED:
            self._measured[self.trying].tokens.append(tokens)
            self._measured[self.trying].seconds.append(seconds)
        if self._step == _SKIPPED + _TURN:
            self._compare()
            self._next_turn()

    def _rivals(self) -> list[int]:
        """What is left to compare with; strides get shorter when nothing is."""
        while True:
            near = (max(self.best - self._stride, 0), min(self.best + self._stride, self._count - 1))
            left = [i for i in near if i != self.best and i not in self._worse]
            if left or self._stride == 1:
                return left
            self._stride //= 2

    def _compare(self) -> None:
        """Judge the neighbours that have been measured."""
        own = self._measured[self.best]
        for i in self._rivals():
            rival = self._measured[i]
            if not rival.tokens or not own.tokens:
                continue
            (mine, my_doubt), (theirs, their_doubt) = own.speed(), rival.speed()
            clear = abs(theirs - mine) > _DOUBT * math.hypot(my_doubt, their_doubt)
            if not clear and min(len(own.tokens), len(rival.tokens)) < _ENOUGH:
                continue
            if theirs > mine:
                self._worse.add(self.best)
                self.best = i
                return
            self._worse.add(i)

    def _next_turn(self) -> None:
        """Measure next whichever of the width and its rivals has been measured least; rest when no rival is left."""
        rivals = self._rivals()
        chosen = min((self.best, *rivals), key=lambda i: len(self._measured[i].tokens)) if rivals else self.best
        self.resting = 0 if rivals else _REST
        self._step = 0 if chosen != self.trying else _SKIPPED
        self.trying = chosen


def find_window_rule(window: int | str | WindowRule, most: int) -> WindowRule:
    """The rule that ``window`` means: a number of slots, "auto", or a rule.

    Raises
    ------
    InvalidArgument
        It is none of them, or wider than the model takes.
    """
    if isinstance(window, str) and window == "auto":
        return WindowSearch(most)
    if isinstance(window, WindowRule):
        rule = window
    elif isinstance(window, bool) or not isinstance(window, (int, np.integer)) or window < 1:
        raise InvalidArgument(f"window is {window!r}, expected an integer >= 1, or 'auto'")
    else:
        rule = FixedWindow(int(window))
    if rule.largest > most:
        raise InvalidArgument(f"window is {rule.largest}, the model takes at most {most} slots at once; ask for fewer")
    return rule

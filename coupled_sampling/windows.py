"""How wide a window is: fixed, or found while decoding.

A wider window commits more tokens per step and makes steps dearer; where the optimum lies depends on model, machine, batch
and prompt. `WindowSearch` climbs to it on a ladder of widths: it compares the width it is at with two others, moves to one
that commits more tokens per second, looks nearer by when neither does, and rests when not even its next neighbours do.

What steps cost shows after a few of them (the median: a hiccup does not decide). What they commit does not: runs of accepted
drafts come in bursts, and whether a picture's sky or its detail fell to a width says nothing about the width. So two widths are
compared by the *same* counts, those of the wider one: a run of c tokens takes windows of width w about ceil(c / w) steps. That
flatters the narrower one, whose drafts have had fewer rounds to settle, by 1 to 10 % from rung to rung on the embedded model, so
that the search may rest one or two rungs too low. The search included, it reached 0.95 to 0.99 of the best fixed width's speed
(``benchmarks/results/step-graph.txt``).

Why it cannot bias what is generated: a width may be chosen from anything that is decided before the step, as long as nothing in
it depends on drafts that are still to be tested. Then the law of a draft that is left outside a narrower window is no other than
it was, and so is what becomes of its position. Counts of committed tokens are functions of decisions to the left of all that is
open. Times are not: a pass may take longer for one draft than for another. So the loop tells a rule of a step only when everything
that the step decided or drafted has been committed, a few steps later. (That widths chosen by drafts, or by times told at once,
do bias is a test.) With methods whose tokens depend on how drafts came about, the tokens at one seed then depend on the machine's
speed and on the rest of the batch; their law does not.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from coupled_sampling.arguments import check_count
from coupled_sampling.errors import InvalidArgument

__all__ = ["FixedWindow", "WindowRule", "WindowSearch"]

LADDER = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
"""Widths that `WindowSearch` tries."""

_USUAL = 32
"""Slots where nobody says how many."""
_SKIPPED = 2
"""Steps after a change of width that are not measured: a window just widened has more fresh drafts than usual."""
_ENOUGH = 48
"""Steps of the wider width before two are compared."""
_TIMES = 16
"""Steps that tell what a step of a width costs."""
_FLATTERY = 1.01
"""What a narrower width must be better by for each rung, since the comparison flatters it."""
_KEPT = 512
"""Latest steps of a width that count."""
_STRIDE = 2
"""Rungs of the ladder to the first neighbours; then 1."""
_REST = 1024
"""Steps until neighbours are tried again: models, prompts and other load change."""


@runtime_checkable
class WindowRule(Protocol):
    """Chooses the width of each step's window from the counts and times of the steps before.

    Examples
    --------
    A rule that widens the window where few rows share a pass:

    >>> from coupled_sampling import WindowRule, generate
    >>> from coupled_sampling.testing import TableProvider, random_table
    >>> class ByRows:
    ...     largest = 16
    ...     def width(self, rows):
    ...         return max(1, 16 // rows)
    ...     def record(self, rows, width, tokens, seconds):
    ...         pass
    >>> isinstance(ByRows(), WindowRule)
    True
    >>> len(generate(TableProvider(random_table(0, 4), 4), [[0]], length=9, window=ByRows()).tokens[0])
    9
    """

    @property
    def largest(self) -> int:
        """No width is more than this."""
        ...

    def width(self, rows: int) -> int:
        """Slots for the next step, which forwards ``rows`` rows: an integer from 1 to ``largest``."""
        ...

    def record(self, rows: int, width: int, tokens: Sequence[int], seconds: float) -> None:
        """A step of ``rows`` rows that filled ``width`` slots took ``seconds``; each sequence in it committed ``tokens[k]``.

        Told when nothing that the step decided or drafted is open any more.
        """
        ...


class FixedWindow:
    """Always the same width.

    Examples
    --------
    >>> from coupled_sampling.windows import FixedWindow
    >>> FixedWindow(16).width(rows=4)
    16
    """

    def __init__(self, width: int) -> None:
        self.largest = width

    def width(self, rows: int) -> int:
        """See `WindowRule`."""
        return self.largest

    def record(self, rows: int, width: int, tokens: Sequence[int], seconds: float) -> None:
        """Nothing to learn."""


class WindowSearch:
    """Finds the width that commits most tokens per second, for each number of rows in flight by itself.

    Parameters
    ----------
    largest
        Most slots the model takes.
    start
        Width to begin at.

    Examples
    --------
    A model whose steps take the same time whatever the width, and commit half of their slots. Wider is better, and it is found:

    >>> from coupled_sampling import WindowSearch
    >>> search = WindowSearch(largest=32, start=4)
    >>> while search.settled() is None:
    ...     width = search.width(rows=1)
    ...     search.record(rows=1, width=width, tokens=[max(1, width // 2)], seconds=0.01)
    >>> search.settled()
    32
    """

    def __init__(self, largest: int, start: int = 16) -> None:
        check_count("largest", largest)
        check_count("start", start)
        self.widths = [width for width in LADDER if width <= largest]
        self.largest = self.widths[-1]
        self._start = sum(width <= start for width in self.widths) - 1
        self._climbs: dict[int, _Climb] = {}

    def width(self, rows: int) -> int:
        """See `WindowRule`."""
        return self.widths[self._climb(rows).trying]

    def record(self, rows: int, width: int, tokens: Sequence[int], seconds: float) -> None:
        """See `WindowRule`."""
        climb = self._climb(rows)
        if width == self.widths[climb.trying]:  # steps are told late: this one may be of a width given up since
            climb.record(tokens, seconds)

    def settled(self, rows: int = 1) -> int | None:
        """The width it rests at for ``rows`` sequences; None while it searches."""
        climb = self._climb(rows)
        return self.widths[climb.best] if climb.resting else None

    def _climb(self, rows: int) -> _Climb:
        if rows not in self._climbs:
            self._climbs[rows] = _Climb(self.widths, self._start)
        return self._climbs[rows]


class _Measured:
    """What is known of one width: the latest counts of committed tokens, one for each row and step, and times of steps."""

    def __init__(self) -> None:
        self.counts: deque[int] = deque(maxlen=_KEPT)
        self.seconds: deque[float] = deque(maxlen=_KEPT)

    def tokens_per_step(self, width: int) -> float:
        """Tokens per step that windows of ``width``, no wider than those measured, would have committed.

        A run of c tokens that one window accepted at once takes them ceil(c / width) steps.
        """
        counts = np.array(self.counts)
        return float(counts.sum() / np.ceil(counts / width).sum())


class _Climb:
    """The search for one number of rows; widths are named by their index in the ladder."""

    def __init__(self, widths: Sequence[int], start: int) -> None:
        self.best = self.trying = start
        self.resting = 0
        self._widths = widths
        self._measured = [_Measured() for _ in widths]
        self._worse: set[int] = set()
        self._stride = _STRIDE
        self._step = 0

    def record(self, tokens: Sequence[int], seconds: float) -> None:
        self._step += 1
        if self._step <= _SKIPPED:
            return
        self._measured[self.trying].counts.extend(tokens)
        self._measured[self.trying].seconds.append(seconds)
        if self.resting:
            self.resting -= 1
            if self.resting:
                return
            self._worse.clear()  # what steps cost may have changed meanwhile; what they commit is kept
            for measured in self._measured:
                measured.seconds.clear()
        self._choose()

    def _choose(self) -> None:
        """Judge whatever can be judged, then measure what is missing, or rest."""
        while True:
            rivals = [
                i
                for i in (self.best - self._stride, self.best + self._stride)
                if 0 <= i < len(self._widths) and i not in self._worse
            ]
            if not rivals and self._stride == 1:
                self.resting = _REST
                self._try(self.best)
                return
            if not rivals:
                self._stride //= 2
                continue
            missing = self._missing(rivals[0])
            if missing is not None:
                self._try(missing)
                return
            better, worse = rivals[0], self.best
            if self._speed_up(rivals[0]) < 1:
                better, worse = worse, better
            self._worse.add(worse)  # never asked again before the next rest, so the search ends
            self.best = better

    def _missing(self, rival: int) -> int | None:
        """Which width must be measured before the best so far and ``rival`` can be compared."""
        wide = max(self.best, rival)
        if len(self._measured[wide].seconds) < _ENOUGH:
            return wide
        return min(self.best, rival) if len(self._measured[min(self.best, rival)].seconds) < _TIMES else None

    def _speed_up(self, rival: int) -> float:
        """Tokens per second of ``rival`` over those of the best, both by the counts of the wider one, less the flattery."""
        counts = self._measured[max(self.best, rival)]
        own, other = (
            counts.tokens_per_step(self._widths[i]) / float(np.median(self._measured[i].seconds))
            for i in (self.best, rival)
        )
        return other / own * _FLATTERY ** (rival - self.best)

    def _try(self, chosen: int) -> None:
        if chosen != self.trying:
            self.trying, self._step = chosen, 0


def find_window_rule(window: int | str | WindowRule | None, most: int) -> WindowRule:
    """The rule that ``window`` means: a number of slots, "auto", a rule, or None for 32 slots or as many as there can be.

    Raises
    ------
    InvalidArgument
        It is none of them, or wider than the model takes.

    Examples
    --------
    >>> from coupled_sampling.windows import find_window_rule
    >>> find_window_rule(8, most=64).width(rows=1)
    8
    >>> type(find_window_rule("auto", most=64)).__name__
    'WindowSearch'
    """
    if window is None:
        return FixedWindow(min(_USUAL, most))
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

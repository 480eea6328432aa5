"""The search for the window that commits most tokens per second, while decoding.

`WindowSearch` climbs a ladder of widths, of which the wider ones keep some of their slots for branches where the step takes them.
It compares the rung it is at with two others, moves to one that commits more tokens per second, looks nearer by when neither
does, and rests when not even its next neighbours do.

What steps cost shows after a few of them (the median: a hiccup does not decide). What they commit does not: runs of accepted
drafts come in bursts, and whether a picture's sky or its detail fell to a width says nothing about the width. So two rungs are
compared by the *same* steps, those of the wider one: what was walked in it says how far the narrower one would have come
(`coupled_sampling.walks`).

What that leaves out: the drafts of the narrower window would have had fewer rounds to settle, which flatters it; and where it
lacks a branch, its next step begins where much is known, which flatters the wider one. By counts on `fashion` with fitted
corrections (40 pictures by each rung, against what the next wider one says of it), from rung to rung: the narrower one is flattered
by up to 6 % below 32 slots (by up to 17 % two rungs apart, as the search begins), and above 32 slots the wider one by 2 to 5 %.
Where steps cost little the search may so rest a rung too high, where they cost much one or two too low, between windows that
differ by about as much. Without branches, the search included, it reached 0.95 to 0.99 of the best fixed width's speed
(``benchmarks/results/step-graph.txt``).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from coupled_sampling.arguments import check_count
from coupled_sampling.errors import InvalidArgument
from coupled_sampling.sampling import Integers
from coupled_sampling.walks import Walk

__all__ = ["LADDER", "TREES", "Rung", "WindowSearch", "with_branches"]


class Rung(NamedTuple):
    """A window to try.

    Examples
    --------
    >>> from coupled_sampling.window_search import Rung
    >>> Rung(64, 24).path
    40
    """

    width: int
    branches: int
    """How many of the slots are for branches."""

    @property
    def path(self) -> int:
        """Slots for known tokens and the path."""
        return self.width - self.branches


LADDER = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
"""Widths that `WindowSearch` tries where windows have no branches."""

_KEPT_FOR_BRANCHES = {24: 2, 32: 4, 48: 14, 64: 24, 96: 44, 128: 70, 192: 130, 256: 192}
TREES = tuple(Rung(width, 0) for width in LADDER if width < 24) + tuple(
    Rung(width, branches) for width, branches in _KEPT_FOR_BRANCHES.items()
)
"""Windows that it tries where they have."""

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


def with_branches(branches: int) -> tuple[Rung, ...]:
    """A ladder whose windows keep ``branches`` slots for branches where they are at least twice as wide.

    Examples
    --------
    >>> from coupled_sampling.window_search import with_branches
    >>> [tuple(rung) for rung in with_branches(24)][-7:]
    [(32, 0), (48, 24), (64, 24), (96, 24), (128, 24), (192, 24), (256, 24)]
    """
    return tuple(Rung(width, branches if width >= 2 * branches else 0) for width, _ in TREES)


class WindowSearch:
    """Finds the window that commits most tokens per second, for each number of rows in flight by itself.

    Parameters
    ----------
    largest
        Most slots the model takes.
    start
        Width to begin at.
    ladder
        Windows to try, from narrow to wide: (width, branches) each. None is a ladder of widths without branches.

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

    def __init__(self, largest: int, start: int = 16, ladder: Sequence[tuple[int, int]] | None = None) -> None:
        check_count("largest", largest)
        check_count("start", start)
        rungs = [Rung(width, 0) for width in LADDER] if ladder is None else [Rung(*rung) for rung in ladder]
        self.rungs = [rung for rung in rungs if rung.width <= largest]
        if not self.rungs or any(rung.branches < 0 or rung.path < 1 for rung in rungs) or rungs != sorted(set(rungs)):
            raise InvalidArgument(
                f"ladder is {ladder!r}, expected windows (width, branches) from narrow to wide, the first no wider than {largest}, "
                "with fewer branches than slots"
            )
        self.largest = self.rungs[-1].width
        self._start = max(0, sum(rung.width <= start for rung in self.rungs) - 1)
        self._climbs: dict[int, _Climb] = {}

    @property
    def widths(self) -> list[int]:
        """The widths that it tries."""
        return [rung.width for rung in self.rungs]

    def width(self, rows: int) -> int:
        """See `coupled_sampling.WindowRule`."""
        return self._trying(rows).width

    def branches(self, rows: int) -> int:
        """See `coupled_sampling.windows.TreeWindowRule`."""
        return self._trying(rows).branches

    def record(self, rows: int, width: int, tokens: Sequence[int], seconds: float) -> None:
        """See `coupled_sampling.WindowRule`."""
        walks = [Walk(np.arange(count - 1), count, 1) for count in tokens]  # all along the path
        self.record_walks(rows, width, self._trying(rows).branches, walks, seconds)

    def record_walks(self, rows: int, width: int, branches: int, walks: Sequence[Walk], seconds: float) -> None:
        """See `coupled_sampling.windows.TreeWindowRule`."""
        if (width, branches) == self._trying(rows):  # steps may be told late: this one may be of a width given up since
            self._climb(rows).record(walks, seconds)

    def settled(self, rows: int = 1) -> int | None:
        """The width it rests at for ``rows`` sequences, with `branches`; None while it searches."""
        climb = self._climb(rows)
        return self.rungs[climb.best].width if climb.resting else None

    def _trying(self, rows: int) -> Rung:
        return self.rungs[self._climb(rows).trying]

    def _climb(self, rows: int) -> _Climb:
        if rows not in self._climbs:
            self._climbs[rows] = _Climb(self.rungs, self._start)
        return self._climbs[rows]


class _Measured:
    """What is known of one rung: what it and narrower ones hold of the latest walks in it, and times of steps."""

    def __init__(self, rungs: Sequence[Rung]) -> None:
        self.seconds: deque[float] = deque(maxlen=_KEPT)
        self._came: deque[tuple[Integers, Integers]] = deque(maxlen=_KEPT)
        self._widths, self._branches = np.array(rungs, np.int64).T

    def add(self, walk: Walk) -> None:
        self._came.append(walk.within(self._widths, self._branches))

    def tokens_per_step(self, rung: int) -> float:
        """Tokens per step that windows of ``rung``, no wider than those measured, would have committed."""
        tokens, steps = np.sum(self._came, axis=0)[:, rung]
        return float(tokens / steps)


class _Climb:
    """The search for one number of rows; windows are named by their index in the ladder."""

    def __init__(self, rungs: Sequence[Rung], start: int) -> None:
        self.best = self.trying = start
        self.resting = 0
        self._rungs = rungs
        self._measured = [_Measured(rungs[: i + 1]) for i in range(len(rungs))]
        self._worse: set[int] = set()
        self._stride = _STRIDE
        self._step = 0

    def record(self, walks: Sequence[Walk], seconds: float) -> None:
        self._step += 1
        if self._step <= _SKIPPED:
            return
        for walk in walks:
            self._measured[self.trying].add(walk)
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
                if 0 <= i < len(self._rungs) and i not in self._worse
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
            counts.tokens_per_step(i) / float(np.median(self._measured[i].seconds)) for i in (self.best, rival)
        )
        return other / own * _FLATTERY ** (rival - self.best)

    def _try(self, chosen: int) -> None:
        if chosen != self.trying:
            self.trying, self._step = chosen, 0

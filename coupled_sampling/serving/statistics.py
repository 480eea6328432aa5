"""What an engine has done, in numbers that vLLM's metrics have, too: `Statistics`.

A *draft* is a pass of one sequence that had guesses to check, as in vLLM's ``spec_decode_num_drafts``. Its *accepted* tokens are
those of its commit but the last, which the model would have drawn without any guess. (A commit that a stop cuts short may end with
an accepted one, which is not counted.)
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace

from coupled_sampling.decoding import Commit

__all__ = ["Counts", "Statistics"]

_POSITIONS = 512
"""Accepted tokens are counted by position up to this one."""

_WEIGHT = 0.1
"""Of the latest request in the running mean of how long one takes."""


@dataclass(frozen=True)
class Statistics:
    """Sums since the engine began, but for the first three.

    Attributes
    ----------
    running, waiting
        Sequences that have a row, and that wait for one.
    rows
        Sequences decoded together, at most.
    steps, step_seconds
        Calls of `Decoder.step`, and the time they took.
    passes
        Passes of sequences that committed something: a step of four sequences is four.
    tokens
        Committed tokens.
    drafts
        Those of them that had slots for guesses; none of ``ar``.
    drafted
        Slots for guesses in those passes; near the end of a sequence not all of them are filled.
    accepted
        How many commits had at least k + 1 accepted drafts, for k = 0, 1, ...; their sum is the number of accepted tokens.
    finished
        Sequences that ended, by reason: "length", "stop", "error", "removed".

    Examples
    --------
    >>> import asyncio, contextlib
    >>> from coupled_sampling import Decoder, Request
    >>> from coupled_sampling.serving import Engine
    >>> from coupled_sampling.testing import TableProvider, random_table
    >>> async def draw(engine):
    ...     async with await engine.submit(Request([0], length=12, seed=1)) as stream:
    ...         return [commit async for commit in stream]
    >>> decoder = Decoder(TableProvider(random_table(0, 4), 4), method="scd-match", window=4)
    >>> with Engine(lambda: contextlib.nullcontext(decoder)) as engine:
    ...     commits = asyncio.run(draw(engine))
    >>> done = engine.statistics
    >>> done.tokens, done.passes == len(commits), done.finished
    (12, True, {'length': 1})
    >>> sum(done.accepted) == done.tokens - done.passes
    True
    """

    running: int
    waiting: int
    rows: int
    steps: int
    step_seconds: float
    passes: int
    tokens: int
    drafts: int
    drafted: int
    accepted: tuple[int, ...]
    finished: dict[str, int]

    @property
    def tokens_per_pass(self) -> float:
        """Committed tokens over passes of sequences."""
        return self.tokens / self.passes if self.passes else 0.0

    def added_to(self, other: Statistics | None) -> Statistics:
        """The sums of both, as of two engines that do the same."""
        if other is None:
            return self
        most = max(len(self.accepted), len(other.accepted))
        mine, its = (list(s.accepted) + [0] * (most - len(s.accepted)) for s in (self, other))
        sums = {
            name: getattr(self, name) + getattr(other, name)
            for name in ("running", "waiting", "rows", "steps", "step_seconds", "passes", "tokens", "drafts", "drafted")
        }
        finished = dict(Counter(self.finished) + Counter(other.finished))
        return Statistics(accepted=tuple(a + b for a, b in zip(mine, its, strict=True)), finished=finished, **sums)

    def ended(self) -> Statistics:
        """Those of an engine that is closed: nothing runs in it, and it has no rows."""
        return replace(self, running=0, waiting=0, rows=0)


class Counts:
    """The sums while they grow: written by the engine, read from anywhere."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._steps = self._passes = self._tokens = self._drafts = self._drafted = 0
        self._step_seconds = 0.0
        self._committed: Counter[int] = Counter()
        """How many commits had that many tokens."""
        self._finished: Counter[str] = Counter()
        self._request_seconds = 1.0

    def stepped(self, commits: Iterable[Commit], seconds: float, guesses: int) -> None:
        """A step took ``seconds`` and gave ``commits``; each of its rows had up to that many ``guesses``."""
        with self._lock:
            self._steps += 1
            self._step_seconds += seconds
            for commit in commits:
                self._committed[len(commit.tokens)] += 1
                self._tokens += len(commit.tokens)
                self._passes += 1
                self._drafts += guesses > 0
                self._drafted += guesses
                if commit.finished:
                    self._finished[str(commit.reason)] += 1
                    self._request_seconds += _WEIGHT * (commit.trace.seconds - self._request_seconds)

    def removed(self) -> None:
        """A sequence was given up."""
        with self._lock:
            self._finished["removed"] += 1

    def seconds_until_room(self, waiting: int, rows: int) -> float:
        """A guess, from how long requests took lately."""
        with self._lock:
            return max(1.0, self._request_seconds * (1 + waiting) / max(1, rows))

    def statistics(self, running: int, waiting: int, rows: int) -> Statistics:
        """The sums so far."""
        with self._lock:
            most = min(_POSITIONS, max(self._committed, default=0))
            counted = [sum(n for size, n in self._committed.items() if size > k) for k in range(1, most)]
            return Statistics(
                running,
                waiting,
                rows,
                self._steps,
                self._step_seconds,
                self._passes,
                self._tokens,
                self._drafts,
                self._drafted,
                tuple(counted),
                dict(self._finished),
            )

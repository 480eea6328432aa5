"""How a row comes to hold its prompt: read in chunks, copied from a row that has read it, or still there from an earlier request.

A prompt that does not fit into one window is read up to its last token in calls of its own, as wide as the model likes, before its
row takes part in windows. Where the model can tell rows apart such a call concerns the rows that read, and while others decode it
is for one row at a time: they wait for one chunk and no more. Where it cannot, the others' tokens go in again where they are.

Samples of one prompt share it: one of them reads, and the others get a copy of its row's state. What a row holds from its last
request can serve the next one with the same beginning, if that is wanted.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from coupled_sampling.arrays import read_only
from coupled_sampling.contracts import CoupledStep, Forks, Integers, PromptReader
from coupled_sampling.rows import Row, common_length, last_of

__all__ = ["PromptReading"]

_NOTHING = np.zeros(0, np.int64)


class PromptReading:
    """Reads prompts with ``step``, in chunks of at most ``chunk``; ``reuse`` says whether prefixes serve other requests."""

    def __init__(self, step: CoupledStep, chunk: int | None, reuse: bool) -> None:
        self._step = step
        self._reader = step if isinstance(step, PromptReader) else None
        self._forks = step if isinstance(step, Forks) and step.forks else None
        self._chunk = chunk or (step.max_window if self._reader is None else self._reader.prompt_chunk)
        self._reuses = reuse and self._reader is not None and self._reader.keeps_prefixes
        self._held: list[Integers] = [_NOTHING] * step.batch_size

    @property
    def apart(self) -> bool:
        """Whether prompts are read in calls of their own, and not in windows."""
        return self._reader is not None

    def holds(self, b: int, row: Row | None) -> Integers:
        """Tokens from position 0 on whose state row ``b`` has."""
        return self._held[b] if row is None else row.tokens[: row.cached]

    def lose(self) -> None:
        """Somebody else had the model."""
        self._held = [_NOTHING] * len(self._held)

    def place(self, row: Row, rows: Sequence[Row | None]) -> int:
        """The free row to put ``row`` into: the one that holds most of its beginning, else the lowest."""
        free = [b for b, other in enumerate(rows) if other is None]
        return max(free, key=lambda b: (common_length(self._held[b], row.tokens[: row.given - 1]), -b))

    def enter(self, b: int, row: Row, rows: Sequence[Row | None]) -> None:
        """``row`` has begun in row ``b``: take over the state that is there already."""
        held, self._held[b] = self._held[b], _NOTHING
        if not self._reuses or row.leader is not None:
            return
        wanted = row.tokens[: row.given - 1]  # the last known token is forwarded in any case, for its logits
        own, source, most = common_length(held, wanted), None, 0
        for other, at in enumerate(rows) if self._forks is not None else ():
            length = common_length(self._held[other] if at is None else at.tokens[: at.cached], wanted)
            if other != b and length > max(own, most):
                source, most = other, length
        if source is not None and self._forks is not None:
            self._forks.fork(source, [b], most)
        row.cached = max(own, most)

    def leave(self, b: int, row: Row) -> None:
        """``row`` leaves row ``b``, and its state stays until it is written over."""
        self._held[b] = row.tokens[: row.cached].copy() if self._reuses else _NOTHING

    def share(self, rows: Sequence[Row | None]) -> None:
        """Give every sample that waits for another's prompt its state, if that has been read."""
        waiting: dict[Row, list[tuple[int, Row]]] = {}
        for b, row in enumerate(rows):
            if row is not None and row.leader is not None:
                if self._forks is None or row.given == 1:
                    row.leader = None
                else:
                    waiting.setdefault(row.leader, []).append((b, row))
        for leader, followers in waiting.items():
            at = next((b for b, row in enumerate(rows) if row is leader), None)
            length = leader.given - 1
            if at is None:  # it is gone, so another one reads
                first = followers[0][1]
                for _, row in followers:
                    row.leader = None if row is first else first
            elif leader.cached >= length and self._forks is not None:
                self._forks.fork(at, [b for b, _ in followers], length)
                for _, row in followers:
                    row.leader, row.cached = None, length

    def read(self, rows: Sequence[Row | None], window: int) -> None:
        """Read a chunk of each prompt that does not fit a ``window``; of one only if others decode and rows can be told apart."""
        if self._reader is None:
            return
        waits = [(b, row) for b, row in enumerate(rows) if row is not None and row.leader is None]
        reading = {b: row for b, row in waits if row.unread(window)}
        if not reading:
            return
        if self._reader.touches_all:
            calls = [range(max(reading) + 1)]
        elif len(reading) < len(waits):
            first = min(reading, key=lambda b: reading[b].handle)
            calls = [range(first, first + 1)]
        else:
            widest = min(self._chunk, max(row.unread(window) for row in reading.values()))
            most = max(1, self._chunk // widest)  # a call has the logits of one chunk, however many rows read
            calls = [run[i : i + most] for run in _runs(sorted(reading)) for i in range(0, len(run), most)]
        for call in calls:
            self._read(self._reader, rows, {b: row for b, row in reading.items() if b in call}, call, window)

    def _read(
        self, reader: PromptReader, rows: Sequence[Row | None], reading: dict[int, Row], call: range, window: int
    ) -> None:
        width = min(self._chunk, max(row.unread(window) for row in reading.values()))
        tokens, start = np.zeros((len(call), width), np.int64), np.zeros(len(call), np.int64)
        ends = {}
        for i, b in enumerate(call):
            row = rows[b]
            known = self.holds(b, row)
            if row is not None and b in reading:
                ends[b] = min(row.cached + width, row.given - 1)
                known = row.tokens[: ends[b]]
            start[i], again = last_of(known, width)
            tokens[i, : len(again)] = again
        reader.read(read_only(tokens), read_only(start), call)
        for b, row in reading.items():
            row.read(ends[b])


def _runs(numbers: Sequence[int]) -> list[range]:
    """Increasing ``numbers`` as ranges of consecutive ones."""
    runs: list[range] = []
    for number in numbers:
        if runs and runs[-1].stop == number:
            runs[-1] = range(runs[-1].start, number + 1)
        else:
            runs.append(range(number, number + 1))
    return runs

"""What a step graph keeps between two calls: the memory it reads and writes, and which laws and noise lie in it."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.backends.ort.binding import HostBinding, Kept
from coupled_sampling.contracts import Window
from coupled_sampling.errors import InvalidArgument

__all__ = ["AlternatingLaws", "Buffer", "HeldLaws", "HeldNoise", "NoiseRing"]


class Buffer:
    """Memory on the host that grows; tensors of any shape are its beginning."""

    def __init__(self, dtype: Any) -> None:
        self.memory: NDArray[Any] = np.zeros(0, dtype)

    def shaped(self, *shape: int) -> NDArray[Any]:
        """The beginning of the memory as a tensor of ``shape``."""
        size = math.prod(shape)
        if size > self.memory.size:
            self.memory = np.zeros(size, self.memory.dtype)
        return self.memory[:size].reshape(shape)


class HeldLaws(NamedTuple):
    """The laws of one row in a buffer: their round, the start of that window, and the positions first to end - 1."""

    round: int
    start: int
    first: int
    end: int


class AlternatingLaws:
    """Draft laws in two buffers: one is read, the other written, and they change places with each outcome that was used.

    Which one is read follows from the rounds that a window asks for. So a step that is done again reads the laws it read
    before, and writes over those it wrote before.
    """

    def __init__(self, binding: HostBinding, batch_size: int, vocab_size: int) -> None:
        self._binding, self._batch_size, self._vocab_size = binding, batch_size, vocab_size
        self.buffers = [self._room(1), self._room(1)]
        self.shapes = [(1, 1), (1, 1)]
        """Rows and slots of what each buffer holds."""
        self.held: tuple[dict[int, HeldLaws], dict[int, HeldLaws]] = ({}, {})

    def _room(self, width: int) -> Kept:
        """For all rows, however many there are at first: laws are read after more rows have come."""
        return self._binding.keep(np.zeros(self._batch_size * width * self._vocab_size, np.float32))

    def bind(self, source: int, rows: int, width: int) -> None:
        """Bind the buffer ``source`` for ``rows`` rows to be read, and the other one for ``width`` slots to be written."""
        target = 1 - source
        if self.buffers[target].size < self._batch_size * width * self._vocab_size:
            # It is to be written over: nobody wants what is in it.
            self.held[target].clear()
            self.buffers[target] = self._room(width)
        self._binding.bind_kept("draft_laws", self.buffers[source], (rows, self.shapes[source][1], self._vocab_size))
        self._binding.bind_kept("laws", self.buffers[target], (rows, width, self._vocab_size))

    def forget(self, row: int) -> None:
        """Drop the laws of ``row``."""
        for held in self.held:
            held.pop(row, None)

    def source(self, window: Window) -> int:
        """Index of the buffer with the laws of all recycled drafts of ``window``.

        Raises
        ------
        InvalidArgument
            A row's recycled drafts are not those of the outcome of the round before.
        """
        found: dict[int, list[int]] = {}
        for b in np.flatnonzero(window.draws & (window.recycled > 0)).tolist():
            first = int(window.start[b] + window.known[b])
            end, round_ = first + int(window.recycled[b]), int(window.round[b]) - 1
            found[b] = [i for i in (0, 1) if self._fits(i, b, round_, first, end)]
            if not found[b]:
                raise InvalidArgument(
                    f"window.recycled of row {b} is {end - first} drafts from position {first} on, but this step does not "
                    f"hold their laws of round {round_}; recycled drafts must be those of the outcome of the round before"
                )
        for i in (0, 1):
            if all(i in choices for choices in found.values()):
                return i
        # The loop was interrupted after it took the outcome of some rows and before that of others.
        self._gather({b: choices[0] for b, choices in found.items()})
        return 0

    def _fits(self, i: int, row: int, round_: int, first: int, end: int) -> bool:
        held = self.held[i].get(row)
        return held is not None and held.round == round_ and held.first <= first and end <= held.end

    def _gather(self, owners: dict[int, int]) -> None:
        """Put the laws of every row, which lie in the buffer it names, together in the first one."""
        width = max(slots for _, slots in self.shapes)
        together = np.zeros((self._batch_size, width, self._vocab_size), np.float32)
        flat, held = [self._binding.fetch(buffer) for buffer in self.buffers], {}
        for b, i in owners.items():
            slots = self.shapes[i][1]
            size = slots * self._vocab_size
            together[b, :slots] = flat[i][b * size : (b + 1) * size].reshape(slots, self._vocab_size)
            held[b] = self.held[i][b]
        self.buffers[0], self.shapes[0] = self._binding.keep(together), (self._batch_size, width)
        self.held[0].clear()
        self.held[0].update(held)


class HeldNoise(NamedTuple):
    """Whose race noise a row of the ring holds, (seed, sequence), and of which positions, first to end - 1."""

    owner: tuple[int, int]
    first: int
    end: int


class NoiseRing:
    """Race noise of the positions under way: position i of a row lies in column i modulo the ring's size."""

    def __init__(self, binding: HostBinding, batch_size: int, vocab_size: int) -> None:
        self._binding, self._batch_size, self._vocab_size = binding, batch_size, vocab_size
        self.held: dict[int, HeldNoise] = {}
        self._make(1)

    def _make(self, columns: int) -> None:
        self.held.clear()
        self.columns = columns
        self.memory = self._binding.keep(np.zeros((self._batch_size, columns, self._vocab_size), np.float32))

    def bind(self, rows: int) -> None:
        """Bind the ring of the first ``rows`` rows, to be written in place."""
        for name in ("past_noise", "present_noise"):
            self._binding.bind_kept(name, self.memory, (rows, self.columns, self._vocab_size))

    def missing(self, window: Window) -> tuple[list[tuple[int, int]], dict[int, HeldNoise]]:
        """The positions (first, end) of each row whose noise has to enter, and what rows hold once it has.

        The ring has two windows and two columns: rows with fewer new positions than others write padding behind theirs.
        """
        columns = 2 * window.tokens.shape[1] + 2
        if self.columns < columns:
            self._make(columns)
        missing: list[tuple[int, int]] = []
        entered: dict[int, HeldNoise] = {}
        for b, info in enumerate(window.rows):
            owner, first, end = self.held.get(b, HeldNoise((-1, -1), 0, 0))
            if info is None or not window.draws[b]:
                missing.append((end, end))
                continue
            wanted = int(window.start[b] + window.known[b])
            beyond = wanted + int(window.recycled[b] + window.fresh[b]) + 1
            if owner != (info.seed, info.sequence) or not first <= wanted <= end:
                first = end = wanted
            missing.append((end, max(end, beyond)))
            entered[b] = HeldNoise((info.seed, info.sequence), max(first, wanted), max(end, beyond))
        return missing, entered

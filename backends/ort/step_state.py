"""What a step graph keeps between two calls: the memory it reads and writes, and which laws and noise lie in it."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.backends.ort.binding import HostBinding, Kept
from coupled_sampling.backends.ort.step_trees import decided_ends
from coupled_sampling.contracts import Window
from coupled_sampling.law_book import Held, LawBook

__all__ = ["AlternatingLaws", "Buffer", "HeldNoise", "NoiseRing"]


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


class AlternatingLaws:
    """Draft laws of all rows in two buffers, of which a step reads one and writes the other.

    A graph reads one buffer for all rows. So the rows, each of which has a `LawBook` that says what the buffers hold of it,
    must agree on one; where they do not, their laws are put together first.
    """

    def __init__(self, binding: HostBinding, batch_size: int, vocab_size: int) -> None:
        self._binding, self._batch_size, self._vocab_size = binding, batch_size, vocab_size
        self.buffers = [self._room(1), self._room(1)]
        self.widths = [1, 1]
        """Slots of each row in either buffer."""
        self.books = [LawBook()] * batch_size
        self._unread: Kept | None = None

    def _room(self, width: int) -> Kept:
        """For all rows, however many there are at first: laws are read after more rows have come."""
        return self._binding.keep(np.zeros(self._batch_size * width * self._vocab_size, np.float32))

    def forget(self, row: int) -> None:
        """Drop the laws of ``row``."""
        self.books[row] = LawBook()

    def source(self, window: Window) -> int:
        """The buffer to read: it has the laws of all recycled drafts of ``window``.

        Raises
        ------
        InvalidArgument
            A row's recycled drafts are not those of the outcome of the round before.
        """
        owners: dict[int, int] = {}
        for b in np.flatnonzero(window.draws).tolist():
            first, _ = window.decided_positions(b)
            recycled, before, book = int(window.recycled[b]), int(window.round[b]) - 1, self.books[b]
            # Laws that no draft needs now must survive too: the step may be done again with a wider window.
            if recycled or book.find(before, first, first) is not None:
                owners[b] = book.source(b, before, first, first + recycled)
        if len(set(owners.values())) <= 1:
            return next(iter(owners.values()), 0)
        # The loop was interrupted after it took the outcome of some rows and before that of others.
        self._gather(owners)
        return 0

    def starts(self, source: int, rows: range) -> list[int]:
        """Where the laws of each of ``rows`` begin in the buffer ``source``."""
        return [self.books[row].start(source) for row in rows]

    def bind(self, source: int | None, rows: range, width: int) -> None:
        """Bind the buffer ``source`` for ``rows`` to be read, and the other one for ``width`` slots of theirs to be written.

        What the other one held is gone from here on, whether the graph then runs or not. With None any is read, and what is written
        goes to memory that nobody reads: there are no drafts.
        """
        if source is None:
            self._bind_unread(rows, width)
            return
        target = 1 - source
        self.books = [book.written(target, None) for book in self.books]
        if self.buffers[target].size < self._batch_size * width * self._vocab_size:
            self.buffers[target] = self._room(width)
        for name, buffer, slots in (("draft_laws", source, self.widths[source]), ("laws", target, width)):
            shape = (len(rows), slots, self._vocab_size)
            self._binding.bind_kept(name, self.buffers[buffer], shape, rows.start)

    def _bind_unread(self, rows: range, width: int) -> None:
        size = len(rows) * width * self._vocab_size
        if self._unread is None or self._unread.size < size:
            self._unread = self._binding.keep(np.zeros(size, np.float32))
        shape = (len(rows), self.widths[0], self._vocab_size)
        self._binding.bind_kept("draft_laws", self.buffers[0], shape, rows.start)
        self._binding.bind_kept("laws", self._unread, (len(rows), width, self._vocab_size))

    def written(self, target: int, window: Window) -> None:
        """The graph has run: the buffer ``target`` holds the laws of what ``window`` decides."""
        self.widths[target] = window.tokens.shape[1]
        for b in np.flatnonzero(window.draws).tolist():
            held = Held(int(window.round[b]), int(window.start[b]), *window.decided_positions(b))
            self.books[b] = self.books[b].written(target, held)

    def _gather(self, owners: dict[int, int]) -> None:
        """Put the laws of every row, which lie in the buffer it names, together in the first one."""
        width = max(self.widths)
        together = np.zeros((self._batch_size, width, self._vocab_size), np.float32)
        flat = [self._binding.fetch(buffer) for buffer in self.buffers]
        for b, i in owners.items():
            slots = self.widths[i]
            size = slots * self._vocab_size
            together[b, :slots] = flat[i][b * size : (b + 1) * size].reshape(slots, self._vocab_size)
        self.buffers[0], self.widths[0] = self._binding.keep(together), width
        for b, book in enumerate(self.books):
            self.books[b] = book.written(0, book[owners[b]] if b in owners else None)


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
        memory = self._binding.keep(np.zeros((self._batch_size, columns, self._vocab_size), np.float32))
        # Where there is no room for it the ring is as it was, and the step can be tried again.
        self.memory, self.columns = memory, columns
        self.held.clear()

    def bind(self, rows: range) -> None:
        """Bind the ring of ``rows``, to be written in place."""
        for name in ("past_noise", "present_noise"):
            self._binding.bind_kept(name, self.memory, (len(rows), self.columns, self._vocab_size), rows.start)

    def padding(self, rows: range) -> list[tuple[int, int]]:
        """Positions (first, end) of ``rows`` for a call that decides nothing: none, behind what is held."""
        ends = [self.held[row].end if row in self.held else 0 for row in rows]
        return [(end, end) for end in ends]

    def missing(self, window: Window) -> tuple[list[tuple[int, int]], dict[int, HeldNoise]]:
        """The positions (first, end) of each row whose noise has to enter, and what rows hold once it has.

        The ring has two windows and two columns: rows with fewer new positions than others write padding behind theirs.
        """
        columns = 2 * window.tokens.shape[1] + 2
        if self.columns < columns:
            self._make(columns)
        missing: list[tuple[int, int]] = []
        entered: dict[int, HeldNoise] = {}
        ends = decided_ends(window)
        for b, info in enumerate(window.rows):
            owner, first, end = self.held.get(b, HeldNoise((-1, -1), 0, 0))
            if info is None or not window.draws[b]:
                missing.append((end, end))
                continue
            (wanted, _), beyond = window.decided_positions(b), ends[b]
            if owner != (info.seed, info.sequence) or not first <= wanted <= end:
                first = end = wanted
            missing.append((end, max(end, beyond)))
            entered[b] = HeldNoise((info.seed, info.sequence), max(first, wanted), max(end, beyond))
        return missing, entered

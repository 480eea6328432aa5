"""What a step graph keeps between two calls on the host's side: memory that is bound, and which laws lie in it."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.contracts import Window
from coupled_sampling.errors import InvalidArgument

__all__ = ["TYPES", "AlternatingLaws", "Buffer", "HeldLaws", "HeldNoise", "NoiseRing"]


TYPES = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(bool)": np.bool_,
}
"""numpy's types by ONNX Runtime's names."""


class Buffer:
    """Memory that grows; tensors of any shape are its beginning."""

    def __init__(self, dtype: Any) -> None:
        self.memory: NDArray[Any] = np.zeros(0, dtype)

    def shaped(self, *shape: int) -> NDArray[Any]:
        """The beginning of the memory as a tensor of ``shape``; what is in it stays there when it has to grow."""
        size = math.prod(shape)
        if size > self.memory.size:
            # Laws are read after more rows have come: without them drafts would have probability 0 and all be accepted.
            grown = np.zeros(size, self.memory.dtype)
            grown[: self.memory.size] = self.memory
            self.memory = grown
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

    def __init__(self, vocab_size: int) -> None:
        self.buffers = (Buffer(np.float32), Buffer(np.float32))
        self.shapes = [(1, 1), (1, 1)]
        """Rows and slots of what each buffer holds."""
        self.held: tuple[dict[int, HeldLaws], dict[int, HeldLaws]] = ({}, {})
        self._vocab_size = vocab_size

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
        rows, width = (max(sizes) for sizes in zip(*self.shapes, strict=True))
        together = np.zeros((rows, width, self._vocab_size), np.float32)
        held = {}
        for b, i in owners.items():
            laws = self.buffers[i].shaped(*self.shapes[i], self._vocab_size)[b]
            together[b, : len(laws)] = laws
            held[b] = self.held[i][b]
        self.buffers[0].memory, self.shapes[0] = together.reshape(-1), (rows, width)
        self.held[0].clear()
        self.held[0].update(held)


class HeldNoise(NamedTuple):
    """Whose race noise a row of the ring holds, (seed, sequence), and of which positions, first to end - 1."""

    owner: tuple[int, int]
    first: int
    end: int


class NoiseRing:
    """Race noise of the positions under way: position i of a row lies in column i modulo the ring's size."""

    def __init__(self, batch_size: int, vocab_size: int) -> None:
        self.memory: NDArray[np.float32] = np.zeros((batch_size, 1, vocab_size), np.float32)
        self.held: dict[int, HeldNoise] = {}

    def missing(self, window: Window) -> tuple[list[tuple[int, int]], dict[int, HeldNoise]]:
        """The positions (first, end) of each row whose noise has to enter, and what rows hold once it has.

        The ring has two windows and two columns: rows with fewer new positions than others write padding behind theirs.
        """
        columns = 2 * window.tokens.shape[1] + 2
        if self.memory.shape[1] < columns:
            self.memory = np.zeros((len(self.memory), columns, self.memory.shape[2]), np.float32)
            self.held.clear()
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

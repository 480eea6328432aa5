"""The pairs of several samples as a fit takes them: any of them, a few at a time, without a copy of all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.fitting.pairs import Pairs, log_laws

__all__ = ["Batch", "PairData"]

_BLOCK = 2**20
"""Numbers of laws that are looked at together; memory does not grow with the vocabulary."""


class Batch(NamedTuple):
    """Pairs as the fit wants them: neighbours as indices in [0, M], ``which`` of them changed as bits, laws in float32."""

    old: NDArray[np.int64]
    new: NDArray[np.int64]
    which: NDArray[np.int64]
    before: NDArray[np.float32]
    after: NDArray[np.float32]


class PairData:
    """The pairs of several samples over M tokens, at the temperature that they are compared at. Laws are not copied together."""

    def __init__(self, parts: Sequence[Pairs], first: int, temperature: float) -> None:
        self.size = size = parts[0].before.shape[1]
        self._parts, self._temperature = parts, temperature
        self._begins = np.cumsum([0, *(len(part.before) for part in parts)])

        def inner(tokens: NDArray[np.int64]) -> NDArray[np.int64]:
            within = (tokens >= first) & (tokens < first + size)
            return np.where(within, tokens - first, size)

        old, new = (np.concatenate(tokens) for tokens in zip(*((part.old, part.new) for part in parts), strict=True))
        self._old, self._new = inner(old), inner(new)
        self._which = ((old != new) << np.arange(old.shape[1])).sum(axis=1)

    def __len__(self) -> int:
        return len(self._which)

    def take(self, index: NDArray[np.int64], *, backwards: bool = False) -> Batch:
        """Those of ``index``; ``backwards`` makes the first law of the second."""
        before, after = (np.empty((len(index), self.size), np.float32) for _ in range(2))
        of = np.searchsorted(self._begins, index, side="right") - 1  # a sample without pairs begins where the next does
        for part in np.unique(of):
            here = np.flatnonzero(of == part)
            inside = index[here] - self._begins[part]
            before[here], after[here] = self._parts[part].before[inside], self._parts[part].after[inside]
        old, new = self._old[index], self._new[index]
        if backwards:
            old, new, before, after = new, old, after, before
        laws = np.exp(log_laws(after / self._temperature))
        return Batch(old, new, self._which[index], before, laws)

    def blocks(self, index: NDArray[np.int64] | None = None) -> Iterator[Batch]:
        """All pairs, or those of ``index``, a few at a time."""
        chosen = np.arange(len(self)) if index is None else index
        size = max(1, _BLOCK // self.size)
        return (self.take(chosen[at : at + size]) for at in range(0, len(chosen), size))

"""What the providers of graphs with growing caches hold: a cache for every row, and arrays for what goes into a call and comes out.

Column t of a row's cache is position t, so that the last write wins by itself. Caches take memory as positions are used, since a
configuration may speak of a million, and grow by doubling.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.backends.foreign.graph import Cache
from coupled_sampling.errors import ProviderError

__all__ = ["Buffers", "GrownCaches", "bind"]

LEAST_COLUMNS = 256
"""Columns of the first caches."""


class GrownCaches:
    """Keys and values of all layers, each (rows, heads, columns, size); iterating gives them."""

    def __init__(self, caches: Sequence[Cache], rows: int, dtype: np.dtype[Any], max_length: int) -> None:
        self._rows, self._max_length = rows, max_length
        self._held = [np.zeros((rows, cache.heads, 0, cache.size), dtype) for cache in caches]

    def __iter__(self) -> Iterator[NDArray[Any]]:
        return iter(self._held)

    def reserve(self, needed: int) -> None:
        """Have ``needed`` columns at least.

        Raises
        ------
        ProviderError
            There is no memory for them. What was held is held still.
        """
        have = min(columns.shape[2] for columns in self._held)
        if have >= needed:
            return
        columns = min(max(needed, 2 * have, LEAST_COLUMNS), self._max_length)
        try:
            # A failure among them leaves some that are longer, which does no harm.
            for i, old in enumerate(self._held):
                grown = np.zeros((*old.shape[:2], columns, old.shape[3]), old.dtype)
                grown[:, :, : old.shape[2]] = old
                self._held[i] = grown
        except MemoryError as error:
            raise ProviderError(
                f"no memory for caches of {columns} columns in {self._rows} rows; decode fewer or shorter sequences together"
            ) from error

    def copy(self, source: int, targets: Sequence[int], length: int) -> None:
        """Give rows the first ``length`` columns of another one, as far as there are any."""
        for target in targets:
            for columns in self._held:
                columns[target, :, :length] = columns[source, :, :length]

    def clear(self) -> None:
        """Give the memory back."""
        self._held.clear()


class Buffers:
    """Arrays by name that are used again by the next call, and grow by doubling."""

    def __init__(self) -> None:
        self._held: dict[str, NDArray[Any]] = {}

    def take(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """An array of ``shape``; what is in it is anything."""
        size = int(np.prod(shape))
        if name not in self._held or self._held[name].size < size:
            self._held[name] = np.empty(max(2 * size, 1), dtype)
        return self._held[name][:size].reshape(shape)

    def clear(self) -> None:
        """Give the memory back."""
        self._held.clear()


def bind(bind_one: Any, name: str, buffer: NDArray[Any]) -> NDArray[Any]:
    """Bind ``buffer``, which must live until the call is over, and give it back.

    Parameters
    ----------
    bind_one
        ``bind_input`` or ``bind_output`` of ONNX Runtime's binding.
    name
        The input's or output's.
    buffer
        Contiguous, on the CPU.
    """
    bind_one(name, "cpu", 0, buffer.dtype.type, buffer.shape, buffer.ctypes.data)
    return buffer

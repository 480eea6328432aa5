"""The caches of all rows of a model, of which a call binds those of its own rows. Past and present are one memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from coupled_sampling.backends.ort.binding import HostBinding

__all__ = ["CacheTensor", "RowCaches"]


class CacheTensor(NamedTuple):
    """One cache of a graph: the output that it is written as, and the shape and type of a row of it."""

    present: str
    shape: tuple[int, ...]
    dtype: Any


class RowCaches:
    """Memory for ``rows`` rows of the caches ``tensors``, by the names of their inputs."""

    def __init__(self, binding: HostBinding, tensors: Mapping[str, CacheTensor], rows: int) -> None:
        self._binding, self._tensors = binding, tensors
        self.kept = {past: binding.keep(np.zeros((rows, *x.shape), x.dtype)) for past, x in tensors.items()}

    def choose(self, rows: range) -> bool:
        """Have the next calls run on ``rows``; returns whether nothing else is bound for these yet. See `HostBinding.choose`."""
        is_new = self._binding.choose(rows)
        if is_new:
            for past, tensor in self._tensors.items():
                for name in (past, tensor.present):
                    self._binding.bind_kept(name, self.kept[past], (len(rows), *tensor.shape), rows.start)
        return is_new

    def fork(self, source: int, targets: Sequence[int], length: int) -> None:
        """Copy the columns below ``length`` of the row ``source`` to the rows ``targets``."""
        for cache in self.kept.values():
            self._binding.copy_row(cache, source, targets, length)

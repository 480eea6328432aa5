"""Where the tensors of a graph lie, and how they are bound: all that differs between a model on the CPU and one on a GPU.

Four kinds. *Kept* tensors (caches, draft laws, the noise ring) stay where the graph runs and are bound by address, as an input,
an output, or both. *Inputs* and *outputs* are numpy arrays on the host: a binding sees to it that the graph reads what is in
them when it runs, and that they hold what it wrote when it has run. *Reserved* tensors are inputs and outputs whose memory is
the binding's own, for the largest there can be: what is fed is copied there, and what was made is read from there, wherever
that is. `OrtProvider` uses these, so that one class serves windows on the CPU, on a GPU, and captured as CUDA graphs.

A call may concern some rows only. Then kept tensors are bound from the first of these on: rows are the outermost axis, so that they
lie in one piece. To bind a model's caches takes a tenth of a short pass, so what is bound for a range of rows stays bound, for the
ranges used lately.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.contracts import Array
from coupled_sampling.errors import ProviderError

__all__ = ["CACHE_TYPES", "TYPES", "HostBinding", "Kept"]


TYPES = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(bool)": np.bool_,
    "tensor(bfloat16)": np.uint16,
}
"""numpy's types by ONNX Runtime's names. numpy has no bfloat16: caches of it are kept as numbers of as many bits, which is all that
zeroing and copying them needs."""

CACHE_TYPES = {"float32": "tensor(float)", "float16": "tensor(float16)", "bfloat16": "tensor(bfloat16)"}
"""ONNX Runtime's names of the types that caches may have, by those in manifests."""

_TOLD = {"tensor(bfloat16)": 16}
"""What bindings are told that memory of a type holds, where that is not its numpy type: ONNX's number of the type."""

_HOST = ("cpu", 0)

_RANGES = 32
"""Ranges of rows whose bindings are kept."""


class Kept(NamedTuple):
    """Memory that stays where the graph runs; tensors are its beginning, or begin at one of their rows."""

    memory: Any
    """What owns it."""
    address: int
    dtype: Any
    size: int
    """Elements."""


class HostBinding:
    """Bindings of a graph that runs on the CPU: everything by address, and only what has moved is bound again.

    Attributes
    ----------
    device
        Number of the GPU that tensors are kept on; None is the CPU.
    cuda_graphs
        Whether runs are launched as CUDA graphs.
    copies_rows
        Whether `copy_row` can be done.
    """

    device: int | None = None
    cuda_graphs: bool = False
    copies_rows: bool = True

    def __init__(self, session: Any) -> None:
        self._session = session
        self._inputs = frozenset(value.name for value in session.get_inputs())
        values = (*session.get_inputs(), *session.get_outputs())
        self._told = {value.name: _TOLD[value.type] for value in values if value.type in _TOLD}
        self._chosen: dict[tuple[int, int], tuple[Any, dict[str, tuple[tuple[int, ...], int]]]] = {}
        """What is bound for which rows, those used last at the end."""
        self._reserved: dict[str, NDArray[Any]] = {}
        self._parts: dict[tuple[str, tuple[int, ...]], tuple[NDArray[Any], int]] = {}
        self._binding: Any = session.io_binding()
        self._bound: dict[str, tuple[tuple[int, ...], int]] = {}

    def choose(self, rows: range) -> bool:
        """Bind for calls of the consecutive ``rows`` from now on; returns whether nothing is bound for these yet."""
        key = rows.start, rows.stop
        found = self._chosen.pop(key, None)
        is_new = found is None
        if found is None:
            if len(self._chosen) >= _RANGES:
                del self._chosen[next(iter(self._chosen))]
            found = self._session.io_binding(), {}
        self._chosen[key] = found
        self._binding, self._bound = found
        return is_new

    @property
    def _place(self) -> tuple[str, int]:
        return _HOST if self.device is None else ("cuda", self.device)

    def keep(self, values: NDArray[Any]) -> Kept:
        """Memory with ``values`` in it."""
        return Kept(values, values.ctypes.data, values.dtype.type, values.size)

    def fetch(self, kept: Kept) -> NDArray[Any]:
        """What is in ``kept``, flat, on the host."""
        values: NDArray[Any] = kept.memory.reshape(-1)
        return values

    def copy_row(self, kept: Kept, source: int, targets: Sequence[int], columns: int) -> None:
        """Copy the first ``columns`` columns (axis -2) of the row ``source`` of ``kept`` to the rows ``targets``."""
        values = kept.memory
        for target in targets:
            values[target, ..., :columns, :] = values[source, ..., :columns, :]

    def bind_kept(self, name: str, kept: Kept, shape: tuple[int, ...], row: int = 0) -> None:
        """Bind ``kept``, from its row ``row`` on, as the input or output ``name``."""
        first = row * math.prod(shape[1:])
        if first + math.prod(shape) > kept.size:  # ONNX Runtime would read and write beyond it
            raise ProviderError(
                f"{name} of shape {shape} from row {row} on does not fit in {kept.size} elements; this is a bug, report it"
            )
        self._bind(name, self._place, kept.dtype, shape, kept.address + first * np.dtype(kept.dtype).itemsize)

    def bind_input(self, name: str, values: NDArray[Any]) -> None:
        """Bind ``values``, which the caller does not change before the graph has run."""
        self._bind(name, _HOST, values.dtype.type, values.shape, values.ctypes.data)

    def bind_output(self, name: str, values: NDArray[Any]) -> None:
        """Have the output ``name`` written to ``values``."""
        self._bind(name, _HOST, values.dtype.type, values.shape, values.ctypes.data)

    def reserve(self, name: str, dtype: Any, size: int) -> None:
        """Make memory for the input or output ``name``, of ``size`` elements at first; that of outputs grows with what is made."""
        self._reserved[name] = np.zeros(size, dtype)

    def feed(self, name: str, values: NDArray[Any]) -> None:
        """Copy ``values`` to the reserved memory of the input ``name`` and bind it; they may be changed at once."""
        part, address = self._part(name, values.shape)
        part[...] = values
        self._bind(name, _HOST, part.dtype.type, part.shape, address)

    def expect(self, name: str, shape: tuple[int, ...]) -> None:
        """Have the output ``name``, of ``shape``, written to its reserved memory."""
        part, address = self._part(name, shape)
        self._bind(name, _HOST, part.dtype.type, shape, address)

    def made(self, name: str, shape: tuple[int, ...]) -> Array:
        """What the graph wrote to the reserved memory of ``name``; the next run writes over it."""
        return self._part(name, shape)[0]

    def run(self) -> None:
        """Run the graph on what is bound, and wait for it."""
        self._session.run_with_iobinding(self._binding)

    def _part(self, name: str, shape: tuple[int, ...]) -> tuple[NDArray[Any], int]:
        """The beginning of reserved memory as a tensor of ``shape``, and its address: looked up, for windows have few shapes."""
        found = self._parts.get((name, shape))
        if found is None:
            size = math.prod(shape)
            if size > self._reserved[name].size:
                self._reserved[name] = np.zeros(size, self._reserved[name].dtype)
                self._parts = {key: part for key, part in self._parts.items() if key[0] != name}
            part = self._reserved[name][:size].reshape(shape)
            found = self._parts[name, shape] = part, part.ctypes.data
        return found

    def _bind(self, name: str, place: tuple[str, int], dtype: Any, shape: tuple[int, ...], address: int) -> None:
        """Bind memory unless it is bound already."""
        key = (shape, address)
        if self._bound.get(name) != key:
            bind = self._binding.bind_input if name in self._inputs else self._binding.bind_output
            bind(name, *place, self._told.get(name, dtype), shape, address)
            self._bound[name] = key

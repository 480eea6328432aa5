"""Where the tensors of a step graph lie, and how they are bound: all that differs between a step on the CPU and one on a GPU.

Three kinds. *Kept* tensors (caches, draft laws, the noise ring) stay where the graph runs and are bound by address, as an input, an
output, or both. *Inputs* and *outputs* are numpy arrays on the host: a binding sees to it that the graph reads what is in
them when it runs, and that they hold what it wrote when it has run.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.errors import ProviderError

__all__ = ["TYPES", "HostBinding", "Kept"]


TYPES = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(bool)": np.bool_,
}
"""numpy's types by ONNX Runtime's names."""


class Kept(NamedTuple):
    """Memory that stays where the graph runs; tensors are its beginning."""

    memory: Any
    """What owns it."""
    address: int
    dtype: Any
    size: int
    """Elements."""


class HostBinding:
    """Bindings of a graph that runs on the CPU: everything by address, and only what has moved is bound again."""

    _place: tuple[str, int] = ("cpu", 0)

    def __init__(self, session: Any) -> None:
        self._session = session
        self._binding = session.io_binding()
        self._inputs = frozenset(value.name for value in session.get_inputs())
        self._bound: dict[str, tuple[tuple[int, ...], int]] = {}

    def keep(self, values: NDArray[Any]) -> Kept:
        """Memory with ``values`` in it."""
        return Kept(values, values.ctypes.data, values.dtype.type, values.size)

    def fetch(self, kept: Kept) -> NDArray[Any]:
        """What is in ``kept``, flat, on the host."""
        values: NDArray[Any] = kept.memory.reshape(-1)
        return values

    def bind_kept(self, name: str, kept: Kept, shape: tuple[int, ...]) -> None:
        """Bind the beginning of ``kept`` as the input or output ``name``."""
        if math.prod(shape) > kept.size:  # ONNX Runtime would read and write beyond it
            raise ProviderError(
                f"{name} of shape {shape} does not fit in {kept.size} elements; this is a bug, report it"
            )
        self._bind(name, self._place, kept.dtype, shape, kept.address)

    def bind_input(self, name: str, values: NDArray[Any]) -> None:
        """Bind ``values``, which the caller does not change before the graph has run."""
        self._bind(name, ("cpu", 0), values.dtype.type, values.shape, values.ctypes.data)

    def bind_output(self, name: str, values: NDArray[Any]) -> None:
        """Have the output ``name`` written to ``values``."""
        self._bind(name, ("cpu", 0), values.dtype.type, values.shape, values.ctypes.data)

    def run(self) -> None:
        """Run the graph on what is bound, and wait for it."""
        self._session.run_with_iobinding(self._binding)

    def _bind(self, name: str, place: tuple[str, int], dtype: Any, shape: tuple[int, ...], address: int) -> None:
        """Bind memory unless it is bound already."""
        key = (shape, address)
        if self._bound.get(name) != key:
            bind = self._binding.bind_input if name in self._inputs else self._binding.bind_output
            bind(name, *place, dtype, shape, address)
            self._bound[name] = key

"""Bindings of graphs that a plugin runs: with caches in the memory of its device, or on the host.

**On the device** (`PluginBinding`). Memory of WebGPU is known by handles. A handle is no address to count from, so that a tensor is
a whole buffer or its beginning: calls begin with the first row, and so there is one row only. Small inputs are copied when they are
bound; outputs are copied to the host by ONNX Runtime.

**On the host** (`HostMemoryBinding`), with more rows, and for plugins without such memory. ONNX Runtime then copies inputs to the
plugin when they are bound, even to a plugin that runs on the CPU: what was bound once and changed since is not seen.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.backends.ort.binding import HostBinding, Kept
from coupled_sampling.backends.ort.plugin_session import PluginSession
from coupled_sampling.errors import ProviderError

__all__ = ["HostMemoryBinding", "PluginBinding"]

_HOST = ("cpu", 0)


_Bound = tuple[Any, tuple[int, ...], int]
"""Type, shape and address of an input."""


class HostMemoryBinding(HostBinding):
    """Bindings of a graph whose plugin has memory of its own, into which ONNX Runtime copies what is on the host.

    It does so when an input is bound, so all of them are bound anew before a run. A cache can be written where it was read from,
    since what is read is the copy.
    """

    def __init__(self, session: Any) -> None:
        super().__init__(session)
        self._ranges: dict[tuple[int, int], dict[str, _Bound]] = {}
        self._of_rows: dict[str, _Bound] = {}

    def choose(self, rows: range) -> bool:
        is_new = super().choose(rows)
        key = rows.start, rows.stop
        self._of_rows = {} if is_new else self._ranges[key]
        self._ranges = {known: bound for known, bound in self._ranges.items() if known in self._chosen}
        self._ranges[key] = self._of_rows
        return is_new

    def run(self) -> None:
        """Run the graph on what its inputs hold now."""
        for name, bound in self._of_rows.items():
            self._binding.bind_input(name, *_HOST, *bound)
        with _explained():
            super().run()

    def _bind(self, name: str, place: tuple[str, int], dtype: Any, shape: tuple[int, ...], address: int) -> None:
        if name in self._inputs:
            self._of_rows[name] = self._told.get(name, dtype), shape, address
        else:
            super()._bind(name, place, dtype, shape, address)


class PluginBinding(HostBinding):
    """Bindings of a graph that runs on a plugin's device, in its memory.

    Parameters
    ----------
    opened
        The session, of a plugin that has memory.
    """

    copies_rows = False  # ONNX Runtime copies whole values only

    def __init__(self, opened: PluginSession) -> None:
        super().__init__(opened.session)
        self._onnxruntime = opened.onnxruntime
        self._memory = opened.plugin.memory

    @property
    def _place(self) -> tuple[str, int]:
        return self._memory, 0  # a plugin has one memory, whichever of its devices was chosen

    def keep(self, values: NDArray[Any]) -> Kept:
        memory = self._onnxruntime.OrtValue.ortvalue_from_numpy(values, *self._place)
        return Kept(memory, memory.data_ptr(), values.dtype.type, values.size)

    def fetch(self, kept: Kept) -> NDArray[Any]:
        values: NDArray[Any] = kept.memory.numpy().reshape(-1)
        return values

    def bind_kept(self, name: str, kept: Kept, shape: tuple[int, ...], row: int = 0) -> None:
        if row:
            raise ProviderError(f"{name} from row {row} on cannot be bound in device memory; this is a bug, report it")
        super().bind_kept(name, kept, shape)

    def bind_input(self, name: str, values: NDArray[Any]) -> None:
        self._binding.bind_cpu_input(name, np.ascontiguousarray(values))

    def feed(self, name: str, values: NDArray[Any]) -> None:
        part, _ = self._part(name, values.shape)
        part[...] = values
        self.bind_input(name, part)

    def run(self) -> None:
        with _explained():
            super().run()


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """What a device lacks that shows in the first run only, said with what to do."""
    try:
        yield
    except Exception as error:  # ONNX Runtime's share no base class but Exception
        if "requires f16" not in str(error):
            raise
        raise ProviderError(
            "the bundle has numbers in float16, for which this device has no shaders (shader-f16); export it with "
            "--dtype float32, or use backend 'cpu'"
        ) from error

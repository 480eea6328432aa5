"""Bindings of graphs on a GPU: `DeviceBinding`, and `GraphBinding`, whose runs are launched as CUDA graphs.

**Written, never run on a GPU.** The tests run them on a stand-in for the package ``onnxruntime`` that computes on the CPU and keeps
the rules of bindings and of captured graphs: device memory has addresses of its own, an input from the host is copied when it is
bound and not again, and a replay sees the addresses and shapes of its capture. ``onnxruntime-gpu`` 1.28.0 and 1.31.1 open the
shipped model, take the bindings, capture and replay, with CUDA's libraries replaced by ones that do nothing
(``tests/backends/ort/test_cuda_placement.py``); what their kernels compute was never seen.

Kept tensors lie in device memory; caches are bound as past *and* present. Small inputs are bound anew in every call, since ONNX
Runtime copies them when they are bound. Outputs are copied to the host by ONNX Runtime, or stay on the GPU (``on_device``). A
run ends when its work is done.

**CUDA graphs.** ONNX Runtime captures a run under the number that the run option ``gpu_graph_id`` gives, and from then on
replays it: kernels are launched with the addresses, shapes and host values of the capture, and bindings are not looked at.
What that demands, from its sources (``InferenceSession::Initialize`` and ``RunImpl``, ``CUDAExecutionProvider``, ``cuda_graph.cc``)
and from its log:

- every node is on CUDA, or on the CPU with no copies between (``MemcpyTransformer``); arithmetic on shapes may stay on the CPU,
  where a replay does not run it, so each number must belong to one shape. Here it belongs to (rows, slots, columns) and the first
  of the rows, whose caches are at addresses of their own;
- inputs and outputs are device memory that stays where it is, but for ``kv_length``, which is read on the host and so becomes
  part of the capture: calls attend to the whole cache, or to the smallest of some lengths (``column_buckets``);
- the first run of a number runs twice plainly, so that memory is there, and a third time to capture, all within one call. A window
  written again is the same window, since caches are written in place, so this is harmless. As a shape may never come again, its
  first call runs under the number -1, which captures nothing;
- kernels do not wait for the GPU: TensorScatter and Attention have not since pull request 27484 of microsoft/onnxruntime;
- captured graphs belong to the thread that made them: call a provider from one thread.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.backends.cuda.pointers import DevicePointer
from coupled_sampling.backends.ort.binding import HostBinding, Kept
from coupled_sampling.backends.ort.cuda_session import CudaSession
from coupled_sampling.contracts import Array

__all__ = ["DeviceBinding", "GraphBinding"]

_NO_CAPTURE = -1
_ON_THE_HOST = "kv_length"
"""The input that CUDA's kernels read on the host."""


class DeviceBinding(HostBinding):
    """Bindings of a graph that runs on a GPU.

    Parameters
    ----------
    opened
        The session.
    on_device
        Whether reserved outputs stay on the GPU: `made` then gives a `DevicePointer`.

    Attributes
    ----------
    on_cpu
        Operators that ONNX Runtime placed on the CPU, and how many nodes of each.
    """

    copies_rows = False  # ONNX Runtime copies whole values only

    def __init__(self, opened: CudaSession, *, on_device: bool = False) -> None:
        super().__init__(opened.session)
        self.device: int | None = opened.device
        self.on_cpu = opened.on_cpu
        self._onnxruntime = opened.onnxruntime
        self._on_device = on_device
        self._there: dict[str, Kept] = {}
        """Reserved memory on the GPU."""

    def keep(self, values: NDArray[Any]) -> Kept:
        memory = self._onnxruntime.OrtValue.ortvalue_from_numpy(values, *self._place)
        return Kept(memory, memory.data_ptr(), values.dtype.type, values.size)

    def fetch(self, kept: Kept) -> NDArray[Any]:
        values: NDArray[Any] = kept.memory.numpy().reshape(-1)
        return values

    def bind_input(self, name: str, values: NDArray[Any]) -> None:
        # Copied now, or where the graph reads it on the host (kv_length, candidates) taken as it is.
        self._binding.bind_cpu_input(name, values)

    def feed(self, name: str, values: NDArray[Any]) -> None:
        self.bind_input(name, self._filled(name, values))

    def reserve(self, name: str, dtype: Any, size: int) -> None:
        if self._on_device and name not in self._inputs:
            self._there[name] = self.keep(np.zeros(size, dtype))
        else:
            super().reserve(name, dtype, size)

    def expect(self, name: str, shape: tuple[int, ...]) -> None:
        if name in self._there:
            self.bind_kept(name, self._roomy(name, shape), shape)
        else:
            super().expect(name, shape)

    def made(self, name: str, shape: tuple[int, ...]) -> Array:
        if not self._on_device:
            return super().made(name, shape)
        kept = self._there[name]
        return DevicePointer(kept.address, shape, np.dtype(kept.dtype).name, None, kept.memory)

    def _roomy(self, name: str, shape: tuple[int, ...]) -> Kept:
        """Reserved memory of ``name`` on the GPU that holds ``shape``; whoever still has what was there before keeps that."""
        kept = self._there[name]
        if math.prod(shape) > kept.size:
            kept = self._there[name] = self.keep(np.zeros(math.prod(shape), kept.dtype))
        return kept

    def _filled(self, name: str, values: NDArray[Any]) -> NDArray[Any]:
        part, _ = self._part(name, values.shape)
        part[...] = values
        return part


class _Prepared(NamedTuple):
    """What is bound for one shape of (rows, slots, columns) from one row on, and what its runs are told."""

    binding: Any
    wanted: dict[str, tuple[Kept, tuple[int, ...], int]]
    """The memory that is bound: a captured graph uses it for as long as it lives."""
    columns: NDArray[np.int64] | None
    options: Any


class GraphBinding(DeviceBinding):
    """Bindings of a window graph whose second run of a shape is captured as a CUDA graph, which later ones launch.

    Everything but ``kv_length`` is bound to device memory that stays, once for each shape: what is fed is copied there.

    Parameters
    ----------
    opened, on_device
        As for `DeviceBinding`; the session was opened for capturing.
    """

    cuda_graphs = True
    _rows = range(0)

    def __init__(self, opened: CudaSession, *, on_device: bool = False) -> None:
        super().__init__(opened, on_device=on_device)
        self._wanted: dict[str, tuple[Kept, tuple[int, ...], int]] = {}
        """What the next run has to find bound, by name, and from which row on."""
        self._columns: NDArray[np.int64] | None = None
        self._prepared: dict[tuple[int, ...], _Prepared] = {}
        self._met: set[tuple[int, ...]] = set()
        self._last: Any = None

    @property
    def captured(self) -> list[tuple[int, ...]]:
        """Shapes (rows, slots, columns) that have a CUDA graph, with the first row for those that do not begin with row 0."""
        return [shape if shape[-1] else shape[:-1] for shape in self._prepared]

    def choose(self, rows: range) -> bool:
        is_new, self._rows = rows != self._rows, rows
        return is_new

    def reserve(self, name: str, dtype: Any, size: int) -> None:
        self._there[name] = self.keep(np.zeros(size, dtype))
        if name in self._inputs:
            self._reserved[name] = np.zeros(size, dtype)

    def feed(self, name: str, values: NDArray[Any]) -> None:
        filled = self._filled(name, values)
        if name == _ON_THE_HOST:
            self._columns = filled
            return
        # All of it: ONNX Runtime updates a value only with as many elements as it has.
        self._there[name].memory.update_inplace(self._reserved[name])
        self.bind_kept(name, self._there[name], values.shape)

    def expect(self, name: str, shape: tuple[int, ...]) -> None:
        self.bind_kept(name, self._roomy(name, shape), shape)

    def bind_kept(self, name: str, kept: Kept, shape: tuple[int, ...], row: int = 0) -> None:
        self._wanted[name] = kept, shape, row

    def made(self, name: str, shape: tuple[int, ...]) -> Array:
        if self._on_device:
            kept = self._last.wanted[name][
                0
            ]  # where the graph that ran was captured, which may be memory of its own by now
            return DevicePointer(kept.address, shape, np.dtype(kept.dtype).name, None, kept.memory)
        # The first that is bound. Asked for after all are: ONNX Runtime 1.28 gives references that the next one bound breaks.
        return self._last.binding.get_outputs()[0].numpy()

    def run(self) -> None:
        """Run the graph, the second time for a shape as a capture, later as its replay."""
        columns = 0 if self._columns is None else int(self._columns[0])
        shape = (*self._wanted["input_ids"][1], columns, self._rows.start)
        prepared, is_new = self._prepared.get(shape), shape not in self._met
        if prepared is None:
            prepared = self._bound_anew(_NO_CAPTURE if is_new else len(self._prepared) + 1)
        self._session.run_with_iobinding(prepared.binding, prepared.options)
        self._met.add(shape)
        if not is_new:
            self._prepared[shape] = prepared
        self._last = prepared

    def _bound_anew(self, number: int) -> _Prepared:
        """Everything that is wanted, bound, and options of runs with this number."""
        binding = self._session.io_binding()
        for name in sorted(self._wanted, key=lambda name: name not in self._there):  # what is read back comes first
            kept, shape, row = self._wanted[name]
            bind = binding.bind_input if name in self._inputs else binding.bind_output
            first = row * math.prod(shape[1:]) * np.dtype(kept.dtype).itemsize
            bind(name, *self._place, self._told.get(name, kept.dtype), shape, kept.address + first)
        columns = None if self._columns is None else self._columns.copy()
        if columns is not None:
            binding.bind_cpu_input(_ON_THE_HOST, columns)
        options = self._onnxruntime.RunOptions()
        options.add_run_config_entry("gpu_graph_id", str(number))
        return _Prepared(binding, dict(self._wanted), columns, options)

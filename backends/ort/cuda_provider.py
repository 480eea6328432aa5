"""`OrtCudaProvider`: a bundle's window graph as a logits provider, run by ONNX Runtime's CUDA execution provider, or by its
TensorRT execution provider over that (`coupled_sampling.backends.ort.tensorrt`).

**Written, never run on a GPU.** The tests run it on a stand-in for the package ``onnxruntime`` that computes on the CPU and keeps
the rules of bindings and of captured graphs: device memory has addresses of its own, an input from the host is copied when it is
bound and not again, and a replay sees the addresses and shapes of its capture. ``onnxruntime-gpu`` 1.28.0 and 1.31.1 open the
shipped model, take the bindings, capture and replay, with CUDA's libraries replaced by ones that do nothing
(``tests/backends/ort/test_cuda_placement.py``); what their kernels compute was never seen.

Caches live in device memory bound as past *and* present. Tokens, starts and ``kv_length`` are bound anew in every call; logits are
copied to the host by ONNX Runtime, or with ``on_device`` stay on the GPU for `KernelStep`. A run ends when its work is done. TF32,
on by default there, is off: it rounds products to 10 bits of mantissa. `coupled_sampling.backends.ort.gpu_session` sees to it that
nothing runs on the CPU in silence.

**CUDA graphs** (``cuda_graphs``). ONNX Runtime captures a run under the number that the run option ``gpu_graph_id`` gives, and from
then on replays it: kernels are launched with the addresses, shapes and host values of the capture, and bindings are not looked at.
What that demands, from its sources (``InferenceSession::Initialize`` and ``RunImpl``, ``CUDAExecutionProvider``, ``cuda_graph.cc``)
and from its log:

- every node is on CUDA, or on the CPU with no copies between (``MemcpyTransformer``); arithmetic on shapes may stay on the CPU,
  where a replay does not run it, so each number must belong to one shape. Here it belongs to (rows, slots, columns);
- inputs and outputs are device memory that stays where it is, but for ``kv_length``, which is read on the host and so becomes
  part of the capture: calls attend to the whole cache, or to the smallest of ``column_buckets``;
- the first run of a number runs twice plainly, so that memory is there, and a third time to capture, all within one call. A window
  written again is the same window, since caches are written in place, so this is harmless. As a shape may never come again, its
  first call runs under the number -1, which captures nothing;
- kernels do not wait for the GPU: TensorScatter and Attention have not since pull request 27484 of microsoft/onnxruntime;
- captured graphs belong to the thread that made them: call a provider from one thread.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.backends.cuda.pointers import DevicePointer
from coupled_sampling.backends.ort.gpu_session import (
    CPU_NODES,
    CUDA,
    SHAPE_OPERATORS,
    TENSORRT,
    check_gpu_arguments,
    nodes_on_cpu,
    open_gpu_session,
    placement,
    refuse_nodes_on_the_cpu,
    require_gpu,
)
from coupled_sampling.backends.ort.provider import OrtProvider, check_dtype
from coupled_sampling.backends.ort.tensorrt import TensorrtOptions, engines_folder, refuse_idle_tensorrt
from coupled_sampling.backends.window_tensors import cache_shape
from coupled_sampling.bounds import check_positive
from coupled_sampling.bundles.manifest import WindowGraph
from coupled_sampling.bundles.opening import Bundle, open_bundle
from coupled_sampling.errors import InvalidArgument

__all__ = ["CPU_NODES", "SHAPE_OPERATORS", "OrtCudaProvider"]

_NO_CAPTURE = -1


class _Prepared(NamedTuple):
    """What is bound for one shape of (rows, slots, columns), and what its runs are told."""

    binding: Any
    columns: NDArray[np.int64]
    options: Any


class OrtCudaProvider(OrtProvider):
    """An `OrtProvider` on a GPU. Make one with `open_on_gpu`.

    Attributes
    ----------
    on_device
        Whether `forward` returns a `coupled_sampling.backends.cuda.pointers.DevicePointer` instead of a numpy array.
    placement
        Operators by execution provider, and how many nodes of each.
    on_cpu
        Those that ONNX Runtime placed on the CPU.
    cuda_graphs, column_buckets
        As given to `open_on_gpu`; the largest bucket is the length of the caches.
    """

    def __init__(
        self,
        bundle: Bundle,
        session: Any,
        batch_size: int,
        *,
        onnxruntime: Any,
        device: int = 0,
        on_device: bool = False,
        cuda_graphs: bool = False,
        column_buckets: Sequence[int] = (),
    ) -> None:
        self._onnxruntime = onnxruntime
        self.device = device
        self.on_device = on_device
        self.cuda_graphs = cuda_graphs
        self.column_buckets = tuple(column_buckets)
        self.placement: dict[str, Counter[str]] = {}
        super().__init__(bundle, session, batch_size)
        self._prepared: dict[tuple[int, int, int], _Prepared] = {}
        self._met: set[tuple[int, int, int]] = set()
        if cuda_graphs:
            self._tokens_on_device = self._on_device(self._tokens)
            self._start_on_device = self._on_device(self._start)

    @classmethod
    def open_on_gpu(
        cls,
        bundle: Bundle | str | Path,
        batch_size: int = 1,
        *,
        device: int = 0,
        on_device: bool = False,
        cpu_nodes: str = "shapes",
        threads: int | None = None,
        cuda_graphs: bool = False,
        column_buckets: Sequence[int] = (),
        tensorrt: TensorrtOptions | None = None,
    ) -> Self:
        """A provider for a bundle.

        Parameters
        ----------
        bundle
            A `Bundle`, or what `coupled_sampling.open_bundle` takes.
        batch_size
            Rows to hold state for.
        device
            Number of the GPU, from 0.
        on_device
            Whether logits stay on the GPU, for steps that run there.
        cpu_nodes
            Which nodes may run on the CPU: "none", "shapes" for arithmetic on shapes only, or "any", which copies tensors back
            and forth. `on_cpu` says which do.
        threads
            Threads within an operator, for nodes on the CPU.
        cuda_graphs
            Whether a window's second call of a shape is captured as a CUDA graph and later ones launch that; see this module. The
            provider must then be called from one thread. Needs a placement without copies between CPU and GPU.
        column_buckets
            With ``cuda_graphs`` or ``tensorrt``: values of ``kv_length``; a call attends to the smallest that holds its windows, or
            to the whole cache. More of them read less of a long cache and cost a graph each.
        tensorrt
            Let ONNX Runtime's TensorRT execution provider take what it can; the rest stays on CUDA. Not with ``cuda_graphs``.

        Raises
        ------
        BundleError
            The bundle cannot be opened, its graph is not what its manifest promises, or its caches are not float32.
        InvalidArgument
            An argument is none of the values it can have.
        MissingDependency
            ``onnxruntime`` is missing, too old, or built without CUDA, or without TensorRT where that is asked for.
        OutputError
            The folder of TensorRT's engines cannot be written.
        ProviderError
            ONNX Runtime cannot use the GPU or TensorRT, would run nodes on the CPU that ``cpu_nodes`` forbids, or cannot capture.
        """
        check_positive("batch_size", batch_size)
        check_gpu_arguments(device, cpu_nodes, threads)
        if not isinstance(cuda_graphs, bool):
            raise InvalidArgument(f"cuda_graphs is {cuda_graphs!r}, expected True or False")
        if cuda_graphs and tensorrt is not None:
            raise InvalidArgument(
                "cuda_graphs is True and tensorrt is given: ONNX Runtime captures only graphs that TensorRT takes whole, which "
                "these are not; leave one of them out, or use TrtProvider, which captures"
            )
        opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
        graph = opened.manifest.window_graph
        buckets = _fitted(column_buckets, graph, allowed=cuda_graphs or tensorrt is not None)
        check_dtype(opened, CUDA if tensorrt is None else TENSORRT)
        onnxruntime, session = _open(
            opened, device, cuda_graphs=cuda_graphs, tensorrt=tensorrt, threads=threads, cpu_nodes=cpu_nodes
        )
        provider = cls(
            opened,
            session,
            batch_size,
            onnxruntime=onnxruntime,
            device=device,
            on_device=on_device,
            cuda_graphs=cuda_graphs,
            column_buckets=buckets,
        )
        provider.placement = placement(session)
        if tensorrt is not None:
            provider._build_engines(tensorrt)
        return provider

    @property
    def on_cpu(self) -> Counter[str]:
        """Operators that ONNX Runtime placed on the CPU, and how many nodes of each."""
        return nodes_on_cpu(self.placement)

    @property
    def captured(self) -> list[tuple[int, int, int]]:
        """Shapes (rows, slots, columns) that have a CUDA graph."""
        return list(self._prepared)

    def _columns_for(self, needed: int) -> int:
        if not self.column_buckets:
            return super()._columns_for(needed)
        return next(bucket for bucket in self.column_buckets if bucket >= needed)

    def _run(self, rows: int, width: int) -> None:
        if not self.cuda_graphs:
            return super()._run(rows, width)
        shape = (rows, width, int(self._kv_length[0]))
        self._tokens_on_device.update_inplace(self._tokens)
        self._start_on_device.update_inplace(self._start)
        prepared = self._prepared.get(shape)
        is_new = shape not in self._met
        if prepared is None:
            prepared = self._bound(shape, _NO_CAPTURE if is_new else len(self._prepared) + 1)
        self._session.run_with_iobinding(prepared.binding, prepared.options)
        self._met.add(shape)
        if not is_new:
            self._prepared[shape] = prepared
        self._last = prepared.binding
        return None

    def _bound(self, shape: tuple[int, int, int], number: int) -> _Prepared:
        """Everything bound to device memory that stays, and options of runs with this number."""
        rows, width, columns = shape
        binding, where = self._session.io_binding(), ("cuda", self.device)
        logits = (rows, width, self.vocab_size)
        binding.bind_output("logits", *where, np.float32, logits, self._logits.data_ptr())
        self._bind_caches(binding, rows)
        binding.bind_input("input_ids", *where, np.int64, (rows, width), self._tokens_on_device.data_ptr())
        binding.bind_input("start", *where, np.int64, (rows,), self._start_on_device.data_ptr())
        length = np.array([columns], np.int64)
        if self.bundle.manifest.window_graph.has_kv_length:
            binding.bind_cpu_input("kv_length", length)
        options = self._onnxruntime.RunOptions()
        options.add_run_config_entry("gpu_graph_id", str(number))
        return _Prepared(binding, length, options)

    def _build_engines(self, options: TensorrtOptions) -> None:
        """Have TensorRT's engines built, or loaded, for all windows from the largest and last to the smallest and first.

        ONNX Runtime tunes an engine for the shapes it has seen, and builds it again when one lies outside.
        """
        self.max_window = min(self.max_window, options.max_window or self.max_window)
        for rows, width, start in ((self.batch_size, self.max_window, self.max_length - self.max_window), (1, 1, 0)):
            self.forward(np.zeros((rows, width), np.int64), np.full(rows, start))

    def _on_device(self, values: NDArray[Any]) -> Any:
        return self._onnxruntime.OrtValue.ortvalue_from_numpy(values, "cuda", self.device)

    def _zeros(self, shape: tuple[int, ...]) -> Any:
        return self._on_device(np.zeros(shape, np.float32))

    def _logits_memory(self, size: int) -> Any:
        return self._zeros((size,)) if self.on_device or self.cuda_graphs else super()._logits_memory(size)

    def _result(self, rows: int, width: int) -> Any:
        if self.on_device:
            shape = (rows, width, self.vocab_size)
            return DevicePointer(self._logits.data_ptr(), shape, "float32", None, self._logits)
        if not self.cuda_graphs:
            return super()._result(rows, width)
        # The first that is bound. Asked for after all are: ONNX Runtime 1.28 gives references that the next one bound breaks.
        return self._last.get_outputs()[0].numpy()

    def _binding(self, rows: int, width: int) -> Any:
        """What stays is bound once for a shape; what the host sends is copied when it is bound, so it is bound in every call."""
        if (rows, width) not in self._bindings:
            self._bindings[rows, width] = self._bind_what_stays(rows, width)
        binding = self._bindings[rows, width]
        binding.bind_cpu_input("input_ids", self._tokens[: rows * width].reshape(rows, width))
        binding.bind_cpu_input("start", self._start[:rows])
        if self.bundle.manifest.window_graph.has_kv_length:
            binding.bind_cpu_input("kv_length", self._kv_length)
        return binding

    def _bind_what_stays(self, rows: int, width: int) -> Any:
        binding = self._session.io_binding()
        self._bind_caches(binding, rows)
        shape = (rows, width, self.vocab_size)
        if self.on_device:
            binding.bind_output("logits", "cuda", self.device, np.float32, shape, self._logits.data_ptr())
        else:
            binding.bind_output("logits", "cpu", 0, np.float32, shape, self._logits.ctypes.data)
        return binding

    def _bind_caches(self, binding: Any, rows: int) -> None:
        where, shape = ("cuda", self.device, np.float32), cache_shape(self.bundle.manifest.window_graph, rows)
        for past, (present, cache) in self._caches.items():
            binding.bind_input(past, *where, shape, cache.data_ptr())
            binding.bind_output(present, *where, shape, cache.data_ptr())


def _open(
    bundle: Bundle,
    device: int,
    *,
    cuda_graphs: bool,
    tensorrt: TensorrtOptions | None,
    threads: int | None,
    cpu_nodes: str,
) -> tuple[Any, Any]:
    """The module ``onnxruntime``, and a session whose nodes are where they may be."""
    graph = bundle.window_graph
    onnxruntime = require_gpu(CUDA if tensorrt is None else TENSORRT)
    version = str(onnxruntime.__version__)
    providers = [(CUDA, {"device_id": str(device), "use_tf32": "0"})]
    if cuda_graphs:
        providers[0][1]["enable_cuda_graph"] = "1"
    with contextlib.ExitStack() as stack:
        if tensorrt is not None:
            folder = tensorrt.folder(bundle, device, version)
            stack.enter_context(engines_folder(folder))
            providers.insert(0, (TENSORRT, tensorrt.settings(device, folder)))
        session = open_gpu_session(onnxruntime, graph, providers, threads=threads, cpu_nodes=cpu_nodes)
        placed = placement(session)
        refuse_nodes_on_the_cpu(nodes_on_cpu(placed), graph, cpu_nodes, version)
        if tensorrt is not None:
            refuse_idle_tensorrt(placed, graph)
    return onnxruntime, session


def _fitted(buckets: Sequence[int], graph: WindowGraph, *, allowed: bool) -> tuple[int, ...]:
    """Column buckets in order, up to the length of the caches; none where each call has as many columns as it needs."""
    wrong = any(isinstance(b, bool) or not isinstance(b, int) or not 1 <= b <= graph.cache_length for b in buckets)
    if wrong:
        raise InvalidArgument(
            f"column_buckets is {tuple(buckets)}, expected integers from 1 to {graph.cache_length}, the columns of the caches"
        )
    if buckets and not (allowed and graph.has_kv_length):
        need = "cuda_graphs or tensorrt" if graph.has_kv_length else "a graph with an input kv_length"
        raise InvalidArgument(f"column_buckets is {tuple(buckets)}, but they need {need}; expected ()")
    return tuple(sorted({*buckets, graph.cache_length})) if allowed else ()

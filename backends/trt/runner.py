"""`Runner`: an engine's memory, execution contexts and CUDA graphs. What goes in and comes out is for those who use it.

One run copies its inputs to the GPU, executes the engine, and copies its outputs back: one stream, and from the second run of a
shape on one CUDA graph, captured once and launched again. Caches live on the GPU, bound as past and present at one address.

Windows are padded on the right to the next window bucket, with the tokens that were last forwarded there: a window that says again
what its row holds, as an idle row's, changes nothing. Else padding writes over columns behind the window, harmless as long as the
next one starts at or below its end, as a decoding loop's does; a call that would read such a column is refused. A window whose
padding does not fit into the caches runs at its own width, without a graph. Rows are never padded.

The rules that this file keeps are checked by tests against a runtime that enforces them and computes the same graph; whether a
GPU agrees is for the tests marked ``gpu``.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.backends.cuda.device import Device, DeviceBuffer, PinnedArray
from coupled_sampling.backends.cuda.driver import CAPTURE_CODES, CudaError
from coupled_sampling.backends.cuda.streams import CapturedGraph, Stream
from coupled_sampling.backends.place import Place
from coupled_sampling.backends.trt.build import check_memory, load_or_build
from coupled_sampling.backends.trt.engine import Context, Engine
from coupled_sampling.backends.trt.flavour import find_flavour
from coupled_sampling.backends.trt.messages import EngineError
from coupled_sampling.backends.trt.options import BuildOptions, bucket_of
from coupled_sampling.backends.trt.progress import Progress
from coupled_sampling.backends.trt.store import EngineStore, Fingerprint
from coupled_sampling.backends.window_tensors import CACHE, WindowTensor, cache_names
from coupled_sampling.bundles.opening import Bundle
from coupled_sampling.contracts import Integers, Runs
from coupled_sampling.errors import InvalidArgument, ProviderError
from coupled_sampling.running import Closing

__all__ = ["Fit", "OnEngine", "Runner", "Shape"]

_TYPES = {"int64": "INT64", "float32": "FLOAT", "float16": "HALF", "bfloat16": "BF16", "bool": "BOOL"}
_BYTES = {"int64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "bool": 1}
_COLUMNS = "kv_length"


class Shape(NamedTuple):
    """Shape of the windows a context is for: rows, slots, and cache columns attended to."""

    rows: int
    width: int
    columns: int


class Fit(NamedTuple):
    """Where a window fits in the engine: its shape with padding, whether that is a bucket's, and where it lies without padding."""

    shape: Shape
    is_bucket: bool
    start: Integers
    width: int


class Prepared:
    """A context for one shape, what TensorRT reads on the host, and, once captured, its graph."""

    def __init__(self, context: Context, columns: PinnedArray) -> None:
        self.context = context
        self.columns = columns
        self.graph: CapturedGraph | None = None
        self.cannot_be_captured = False


class Runner:
    """An engine of a bundle, ready to run. Make one with `open`.

    Parameters
    ----------
    bundle, engine, options, fingerprint
        What is run; ``options`` are fitted to the graph.
    tensors
        All inputs and outputs of the engine.
    crossing
        Names of those that are copied from or to the host in every run, besides ``kv_length``.
    cuda_graphs
        Whether runs of a shape seen before are launched as CUDA graphs.

    Attributes
    ----------
    memories
        Device memory of every tensor but ``kv_length``, for the largest buckets.
    host
        Page-locked memory of the tensors that cross.
    stream
        Where all work is queued.
    built_because
        Why the engine was built when this was opened; "" if it was there.
    """

    def __init__(
        self,
        bundle: Bundle,
        engine: Engine,
        options: BuildOptions,
        fingerprint: Fingerprint,
        tensors: Mapping[str, WindowTensor],
        crossing: Collection[str],
        *,
        cuda_graphs: bool = True,
    ) -> None:
        self.bundle, self.engine, self.options, self.fingerprint = bundle, engine, options, fingerprint
        self.device, self.cuda_graphs = engine.device, cuda_graphs
        self.max_length = bundle.manifest.window_graph.max_length
        self.built_because = ""
        self._tensors = dict(tensors)
        engine.check_tensors(self._expected())
        self.stream = Stream(self.device)
        self.host = {
            name: self.device.pinned((self._count(tensor),), tensor.dtype)
            for name, tensor in self._tensors.items()
            if name in crossing
        }
        self.memories: dict[str, DeviceBuffer] = {}
        for name, tensor in self._tensors.items():
            if name != _COLUMNS and tensor.dtype != CACHE:
                self.memories[name] = self.device.allocate(self._count(tensor) * _BYTES[tensor.dtype])
        for past, present in cache_names(bundle.manifest.window_graph):
            cache = self.device.allocate(self._count(self._tensors[past]) * _BYTES[options.precision])
            self.memories[past] = self.memories[present] = cache
            self.stream.clear(cache)
        self.stream.synchronize()
        self._prepared: dict[Shape, Prepared] = {}
        self._overwritten = np.zeros((options.batch_size, 2), np.int64)
        """By row, the positions [first, end) that padding wrote over."""
        self._written = np.zeros((options.batch_size, bundle.manifest.window_graph.cache_length), np.int64)
        """By row, the token that was last forwarded at each position."""
        self._repeats = np.zeros(options.batch_size, np.bool_)  # by row, whether the window says again what was there
        self._has_padded = False
        self._runtime_cache: tuple[EngineStore, Path] | None = None

    @classmethod
    def open(
        cls,
        bundle: Bundle,
        tensors: Mapping[str, WindowTensor],
        crossing: Collection[str],
        place: Place,
        options: BuildOptions,
        progress: Progress | None = None,
        graph: str | None = None,
    ) -> Self:
        """A runner; builds the engine if there is none that fits, which takes from seconds to minutes.

        Parameters
        ----------
        bundle, tensors, crossing
            As for the class.
        place
            Which TensorRT, on which GPU, with engines in which folder, and whether with CUDA graphs.
        options
            What the engine is built for.
        progress
            Told how far a build is; `coupled_sampling.backends.trt.progress_bar` shows it.
        graph
            File of the bundle that is built; None is its window graph.

        Raises
        ------
        BundleError, InvalidArgument, OutputError
            The bundle, an option or the folder cannot be used.
        CudaError
            There is no such GPU, or no memory.
        EngineError
            TensorRT failed: its own message, the node, and the option to try.
        MissingDependency
            ``tensorrt`` or ``tensorrt-rtx``, ``cuda-python`` or ``onnx`` is missing, or the NVIDIA driver is missing or too old.
        ProviderError
            The GPU has too little memory; says how much is needed.
        """
        flavour = find_flavour(place.backend)
        fitted = options.fitted(bundle.manifest.window_graph)
        gpu = Device(place.device or 0)
        store = EngineStore(bundle, place.engines, graph)
        plan, fingerprint, reason = load_or_build(bundle, flavour, gpu, fitted, store, progress)
        check_memory(bundle, fitted, gpu, is_step=graph is not None)
        kernels = store.cache(fingerprint, "runtime-cache")
        engine = Engine(plan, flavour, gpu, store.read_cache(kernels))
        captures = place.cuda_graphs is not False
        runner = cls(bundle, engine, fitted, fingerprint, tensors, crossing, cuda_graphs=captures)
        runner.built_because = reason
        runner._runtime_cache = (store, kernels)
        return runner

    @property
    def captured(self) -> list[Shape]:
        """Shapes that have a CUDA graph."""
        return [shape for shape, prepared in self._prepared.items() if prepared.graph is not None]

    def begin(self, start: Integers, width: int, bucket: int) -> Fit:
        """Where a window of ``width`` slots, padded to ``bucket`` if that fits, runs; the host's memory may be written afterwards.

        Raises
        ------
        InvalidArgument
            A row begins behind columns that padding wrote over.
        """
        if self._has_padded:
            self._check_overwritten(start)
        self.device.use()
        self.stream.synchronize()  # what was queued may still be reading the host's memory
        last = int(start.max())
        fits = last + bucket <= self.bundle.manifest.window_graph.cache_length
        slots = bucket if fits else width
        columns = bucket_of(self.options.column_buckets, last + slots)
        return Fit(Shape(len(start), slots, columns), fits, start, width)

    def value(self, name: str, fit: Fit) -> NDArray[Any]:
        """The host's memory of a tensor, as it crosses with a window at ``fit``."""
        shape = self._tensors[name].shape(fit.shape.rows, fit.shape.width)
        return self.host[name].values[: math.prod(shape)].reshape(shape)

    def fill(self, fit: Fit, tokens: Integers) -> None:
        """Write ``input_ids``, padded with what was last forwarded there, and ``start``."""
        rows, width, _ = fit.shape
        at = np.arange(rows)[:, None], fit.start[:, None] + np.arange(width)
        window = self.value("input_ids", fit)
        window[...] = self._written[at]
        self._repeats = (window[:, : fit.width] == tokens).all(axis=1)
        window[:, : fit.width] = tokens
        self._written[at] = window
        self.value("start", fit)[...] = fit.start

    def prepare(self, fit: Fit) -> Prepared:
        """The context for a window at ``fit``, made and bound the first time."""
        if fit.shape in self._prepared:
            return self._prepared[fit.shape]
        graph, shape = self.bundle.manifest.window_graph, fit.shape
        columns = self.device.pinned((1,), np.int64)
        columns.values[0] = shape.columns
        if graph.has_kv_length and not self.engine.in_host_memory(_COLUMNS):
            raise ProviderError("the engine reads kv_length on the GPU, expected on the host; please report it")
        shapes = {
            name: tensor.shape(shape.rows, shape.width)
            for name, tensor in self._tensors.items()
            if tensor.is_input and name != _COLUMNS
        }
        context = self.engine.context(self.options.profile_of(shape.rows, shape.width), self.stream)
        context.bind({**self.memories, _COLUMNS: columns}, shapes)
        return self._prepared.setdefault(shape, Prepared(context, columns))

    def run(self, fit: Fit, before: Callable[[], None] = lambda: None) -> None:
        """Queue a run on what lies in the host's memory; outputs that cross are there once the stream is synchronised.

        ``before`` queues what else the engine needs, on the same stream. It is captured with the rest and not called again for
        windows of the same shape: what differs between them must lie in memory.
        """
        prepared = self.prepare(fit)
        if self._has_padded or fit.shape.width > fit.width:
            self._note_padding(fit.start, fit.width, fit.shape.width)
        if prepared.graph is not None:
            self.stream.launch(prepared.graph)
        else:
            self._first_time(prepared, fit, before)

    def _first_time(self, prepared: Prepared, fit: Fit, before: Callable[[], None]) -> None:
        """Run without a graph, as TensorRT wants before a capture, then capture for the next time."""
        self._queue(prepared, fit.shape, before)
        if not (fit.is_bucket and self.cuda_graphs) or prepared.cannot_be_captured:
            return
        self.stream.synchronize()
        refusal = "" if prepared.context.is_capturable() else "TensorRT cannot capture them"
        if not refusal:
            try:
                with self.stream.capture() as graph:
                    self._queue(prepared, fit.shape, before)
            except EngineError as error:  # `tensorrt` cannot be asked beforehand; it refuses in a capture
                refusal = str(error)
            except CudaError as error:  # or queues what a capture may not hold
                if error.code not in CAPTURE_CODES:
                    raise
                refusal = str(error)
        if refusal:
            prepared.cannot_be_captured = True
            warnings.warn(
                f"windows of {fit.shape.rows} rows and {fit.shape.width} slots run without a CUDA graph: {refusal}",
                stacklevel=5,
            )
            return
        graph.memories += [self.engine.scratch, *self.memories.values(), prepared.columns]
        prepared.graph = graph

    def _queue(self, prepared: Prepared, shape: Shape, before: Callable[[], None]) -> None:
        sizes = {
            name: math.prod(self._tensors[name].shape(shape.rows, shape.width)) * _BYTES[self._tensors[name].dtype]
            for name in self.host
        }
        for name, size in sizes.items():
            if self._tensors[name].is_input:
                self.stream.upload(self.memories[name], self.host[name], size)
        before()
        prepared.context.enqueue()
        for name, size in sizes.items():
            if not self._tensors[name].is_input:
                self.stream.download(self.host[name], self.memories[name], size)

    def _count(self, tensor: WindowTensor) -> int:
        """Numbers in a tensor of the largest buckets."""
        return math.prod(tensor.shape(self.options.batch_size, self.options.max_window))

    def _expected(self) -> dict[str, tuple[bool, str, tuple[int, ...]]]:
        """What the engine's tensors must be: by name, whether an input, type, shape."""
        types = {**_TYPES, CACHE: _TYPES[self.options.precision]}
        return {
            name: (tensor.is_input, types[tensor.dtype], tensor.shape(-1, -1)) for name, tensor in self._tensors.items()
        }

    def _check_overwritten(self, start: Integers) -> None:
        first, end = self._overwritten[: len(start)].T
        lost = (first < end) & (start > first)
        if lost.any():
            row = int(lost.argmax())
            raise InvalidArgument(
                f"row {row} starts at {start[row]}, but positions from {first[row]} on were written over by the padding of an "
                f"earlier window; start at {first[row]} or below, or use window_buckets that need no padding"
            )

    def _note_padding(self, start: Integers, width: int, slots: int) -> None:
        self._has_padded = True
        first, end = self._overwritten[: len(start)].T
        old_first, old_end = np.where(first < end, (first, end), 0)
        after = start + width
        left = np.where(old_end > after, (np.maximum(old_first, after), old_end), 0)
        new = after, np.minimum(np.maximum(old_end, start + slots), self.max_length)
        first[:], end[:] = np.where(self._repeats | (slots == width), left, new)

    def close(self) -> None:
        """Give all GPU memory back; keeps compiled kernels for the next start. Twice does no harm."""
        if self.engine.scratch.is_freed:
            return
        if self._runtime_cache is not None:
            store, path = self._runtime_cache
            kernels = self.engine.runtime_cache()
            if kernels and kernels != store.read_cache(path):
                store.write_cache(path, kernels)
            self._runtime_cache = None
        self.stream.synchronize()
        prepared = list(self._prepared.values())
        self._prepared.clear()
        for one in prepared:
            if one.graph is not None:
                one.graph.free()
        memories = [*self.memories.values(), *self.host.values(), *(one.columns for one in prepared)]
        prepared.clear()
        self.engine.free()
        for memory in memories:
            memory.free()
        self.stream.free()


class OnEngine(Closing):
    """What a provider and a step over an engine have in common: what they tell of their `Runner`."""

    def __init__(self, runner: Runner, step: str) -> None:
        self.bundle, self.options, self.fingerprint = runner.bundle, runner.options, runner.fingerprint
        self.flavour, self.device, self.engine = runner.engine.flavour, runner.device, runner.engine
        self.stream = runner.stream
        self.vocab_size = runner.bundle.manifest.vocab_size
        self.batch_size, self.max_window = runner.options.batch_size, runner.options.max_window
        self.max_length = runner.max_length
        self.built_because = runner.built_because
        self.runs = Runs(f"{self.flavour.name} {self.flavour.version}", self.device.index, runner.cuda_graphs, step)
        self._runner = runner

    @property
    def captured(self) -> list[Shape]:
        """Shapes that have a CUDA graph."""
        return self._runner.captured

    def prepare(self, rows: int | None = None) -> None:
        """Run every window bucket once for ``rows`` rows (None: all) and capture its graph, before requests arrive.

        Writes into the caches: call it before any sequence is begun.
        """
        for width in self.options.window_buckets:
            self._run_blank(self.batch_size if rows is None else rows, width)

    def _run_blank(self, rows: int, width: int) -> None:
        """Run a window of that shape of which nothing is wanted."""
        raise NotImplementedError

    def close(self) -> None:
        """Give all GPU memory back; what was closed cannot be used afterwards. Keeps compiled kernels for the next start.

        Twice does no harm.
        """
        self._runner.close()

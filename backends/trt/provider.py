"""`TrtProvider`: a bundle's window graph as a logits provider, run by TensorRT on a GPU.

One call copies tokens and starts to the GPU, runs the engine, and copies the logits back: one stream, and from the second call of
a shape on one CUDA graph, captured once and launched again. Caches live on the GPU, bound as past and present at one address.

Windows are padded on the right to the next window bucket. Padding writes columns behind the window, which is harmless as long as
the next window starts at or below this one's end, as a decoding loop does; a call that would read such a column is refused. A
window whose padding would not fit into the caches runs at its own width, without a graph. Rows are never padded.

The rules that this file keeps are checked by tests against a runtime that enforces them and computes the same graph; whether a
GPU agrees is for the tests marked ``gpu``.
"""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np

from coupled_sampling.backends.cuda.device import Device, DeviceBuffer, PinnedArray
from coupled_sampling.backends.cuda.streams import CapturedGraph, DeviceArray, Stream
from coupled_sampling.backends.trt.build import check_memory, load_or_build
from coupled_sampling.backends.trt.engine import Context, Engine
from coupled_sampling.backends.trt.flavour import Flavour, find_flavour
from coupled_sampling.backends.trt.messages import EngineError
from coupled_sampling.backends.trt.options import BuildOptions, bucket_of
from coupled_sampling.backends.trt.progress import Progress
from coupled_sampling.backends.trt.store import EngineStore, Fingerprint
from coupled_sampling.backends.window_tensors import CACHE, cache_names, cache_shape, window_tensors
from coupled_sampling.bounds import check_positive, check_window
from coupled_sampling.bundle import Bundle, open_bundle
from coupled_sampling.contracts import Array, Integers
from coupled_sampling.errors import InvalidArgument, ProviderError

__all__ = ["TrtProvider"]

_TYPES = {"float32": ("FLOAT", 4), "float16": ("HALF", 2), "bfloat16": ("BF16", 2)}


class Shape(NamedTuple):
    """Shape of the windows a context is for: rows, slots, and cache columns attended to."""

    rows: int
    width: int
    columns: int


class Prepared:
    """A context for one shape, what TensorRT reads on the host, and, once captured, its graph."""

    def __init__(self, context: Context, columns: PinnedArray) -> None:
        self.context = context
        self.columns = columns
        self.graph: CapturedGraph | None = None
        self.cannot_be_captured = False


class TrtProvider:
    """A `coupled_sampling.contracts.LogitsProvider` over a bundle. Make one with `open`.

    Attributes
    ----------
    vocab_size, batch_size, max_length, max_window
        As in the contract; ``batch_size`` and ``max_window`` are the largest buckets.
    bundle, flavour, device, stream, options
        What runs where. Work is on ``stream``.
    execution_provider
        The flavour's name and version.
    fingerprint
        Of the engine in use.
    built_because
        Why the engine was built when this provider was opened; "" if it was there.

    Notes
    -----
    An interrupted or failed call leaves nothing to repair but what its window covers, padding included, which the next call writes
    again. One provider must not be called from two threads at once.
    """

    def __init__(
        self,
        bundle: Bundle,
        engine: Engine,
        options: BuildOptions,
        fingerprint: Fingerprint,
        *,
        on_device: bool = False,
    ) -> None:
        graph = bundle.manifest.window_graph
        self.bundle, self.options, self.fingerprint = bundle, options, fingerprint
        self.flavour, self.device, self.engine = engine.flavour, engine.device, engine
        self.vocab_size = bundle.manifest.vocab_size
        self.batch_size, self.max_window = options.batch_size, options.max_window
        self.max_length = graph.max_length
        self.built_because = ""
        self.on_device = on_device
        self.execution_provider = f"{self.flavour.name} {self.flavour.version}"
        engine.check_tensors(_expected(bundle, options))
        self.stream = Stream(self.device)
        rows, width, vocab = self.batch_size, self.max_window, self.vocab_size
        self._tokens_host = self.device.pinned((rows * width,), np.int64)
        self._start_host = self.device.pinned((rows,), np.int64)
        self._logits_host = None if on_device else self.device.pinned((rows * width * vocab,), np.float32)
        allocate = self.device.allocate
        self._tokens, self._start = allocate(8 * rows * width), allocate(8 * rows)
        self._logits = allocate(4 * rows * width * vocab)
        size = math.prod(cache_shape(graph, rows)) * _TYPES[options.precision][1]
        self._tensors = window_tensors(bundle.manifest)
        self._caches: dict[str, DeviceBuffer] = {}
        for past, _ in cache_names(graph):
            self._caches[past] = allocate(size)
            self.stream.clear(self._caches[past])
        self.stream.synchronize()
        self._prepared: dict[Shape, Prepared] = {}
        self._overwritten = np.zeros((rows, 2), np.int64)
        """By row, the positions [first, end) that padding wrote over."""
        self._runtime_cache: tuple[EngineStore, Path] | None = None

    @classmethod
    def open(
        cls,
        bundle: Bundle | str | Path,
        batch_size: int | None = None,
        *,
        flavour: str | Flavour | None = None,
        device: int | Device = 0,
        options: BuildOptions | None = None,
        engines: Path | str | None = None,
        progress: Progress | None = None,
        on_device: bool = False,
    ) -> Self:
        """A provider for a bundle; builds the engine if there is none that fits, which takes from seconds to minutes.

        Parameters
        ----------
        bundle
            A `Bundle`, or what `coupled_sampling.open_bundle` takes.
        batch_size
            Rows to hold state for; None is what ``options`` says, or 1.
        flavour
            "tensorrt", "tensorrt-rtx", or None for what is installed.
        device
            Number of the GPU, or an opened one.
        options
            What the engine is built for; None is the default, for ``batch_size`` rows in the bundle's own precision.
        engines
            Folder of engines; None is ``<bundle>.engines``, beside the bundle.
        progress
            Told how far a build is; `coupled_sampling.backends.trt.progress_bar` shows it.
        on_device
            Whether `forward` leaves the logits on the GPU, as a `DeviceArray`, for steps that run there.

        Raises
        ------
        BundleError, InvalidArgument, OutputError
            The bundle, an option or the folder cannot be used.
        CudaError
            There is no driver, no such GPU, or no memory.
        EngineError
            TensorRT failed: its own message, the node, and the option to try.
        MissingDependency
            ``tensorrt`` or ``tensorrt-rtx``, ``cuda-python`` or ``onnx`` is missing.
        ProviderError
            The GPU has too little memory; says how much is needed.
        """
        opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
        chosen = flavour if isinstance(flavour, Flavour) else find_flavour(flavour)
        graph = opened.manifest.window_graph
        if batch_size is not None:
            check_positive("batch_size", batch_size)
        if options is None:
            options = BuildOptions(row_buckets=(batch_size or 1,), precision=graph.dtype)
        if batch_size not in (None, options.batch_size):
            raise InvalidArgument(
                f"batch_size is {batch_size}, but options.row_buckets is {options.row_buckets}, expected the same largest number; "
                "give only one of them"
            )
        fitted = options.fitted(graph)
        gpu = device if isinstance(device, Device) else Device(device)
        store = EngineStore(opened, engines)
        plan, fingerprint, reason = load_or_build(opened, chosen, gpu, fitted, store, progress)
        check_memory(opened, fitted, gpu)
        kernels = store.cache(fingerprint, "runtime-cache")
        provider = cls(
            opened, Engine(plan, chosen, gpu, store.read_cache(kernels)), fitted, fingerprint, on_device=on_device
        )
        provider.built_because = reason
        provider._runtime_cache = (store, kernels)
        return provider

    @property
    def captured(self) -> list[Shape]:
        """Shapes that have a CUDA graph."""
        return [shape for shape, prepared in self._prepared.items() if prepared.graph is not None]

    def prepare(self, rows: int | None = None) -> None:
        """Run every window bucket once for ``rows`` rows (None: all) and capture its graph, before requests arrive.

        Writes into the caches: call it before any sequence is begun.
        """
        count = self.batch_size if rows is None else rows
        for width in self.options.window_buckets:
            self.forward(np.zeros((count, width), np.int64), np.zeros(count, np.int64))

    def forward(self, tokens: Integers, start: Integers) -> Array:
        """Score a window. See `coupled_sampling.contracts.LogitsProvider.forward`.

        Parameters
        ----------
        tokens
            int64 (B, W), B <= ``batch_size``, W <= ``max_window``, all in [0, V).
        start
            int64 (B,), ``start[b] + W <= max_length``.

        Returns
        -------
        Array
            float32 logits (B, W, V), -inf for tokens that are never generated: a numpy array, or with ``on_device`` a `DeviceArray`
            whose content is still being made on ``stream``. The next call writes over them.

        Raises
        ------
        InvalidArgument
            An argument is out of bounds; nothing was run and no state has changed.
        ProviderError
            TensorRT or CUDA failed.
        """
        check_window(self, tokens, start)
        rows, width = tokens.shape
        self._check_overwritten(start)
        self.device.use()
        self.stream.synchronize()  # a call whose logits stayed on the device may still be reading its tokens
        graph = self.bundle.manifest.window_graph
        # Padded logits would not lie together on the device, so there each width has a graph of its own.
        padded = width if self.on_device else bucket_of(self.options.window_buckets, width)
        fits = int(start.max()) + padded <= graph.cache_length
        slots = padded if fits else width
        columns = bucket_of(self.options.column_buckets, int(start.max()) + slots)
        window = self._tokens_host.values[: rows * slots].reshape(rows, slots)
        window[:, :width], window[:, width:] = tokens, tokens[:, -1:]
        self._start_host.values[:rows] = start
        prepared = self._context(Shape(rows, slots, columns))
        self._note_padding(start, width, slots)
        if prepared.graph is not None:
            self.stream.launch(prepared.graph)
        else:
            self._first_time(prepared, Shape(rows, slots, columns), is_bucket=fits)
        shape = (rows, slots, self.vocab_size)
        if self._logits_host is None:
            return DeviceArray(self._logits.address, shape, np.float32, self.stream)
        self.stream.synchronize()
        logits = self._logits_host.values[: int(np.prod(shape))].reshape(shape)
        return logits[:, :width]

    def _first_time(self, prepared: Prepared, shape: Shape, *, is_bucket: bool) -> None:
        """Run without a graph, as TensorRT wants before a capture, then capture for the next time."""
        self._queue(prepared, shape)
        if not is_bucket or prepared.cannot_be_captured:
            return
        self.stream.synchronize()
        refusal = "" if prepared.context.is_capturable() else "TensorRT cannot capture them"
        if not refusal:
            try:
                with self.stream.capture() as graph:
                    self._queue(prepared, shape)
            except (
                EngineError
            ) as error:  # tensorrt cannot be asked beforehand: it refuses work while a stream is captured
                refusal = str(error)
        if refusal:
            prepared.cannot_be_captured = True
            warnings.warn(
                f"windows of {shape.rows} rows and {shape.width} slots run without a CUDA graph: {refusal}",
                stacklevel=4,
            )
            return
        graph.memories += [self.engine.scratch, self._logits, *self._caches.values(), prepared.columns]
        prepared.graph = graph

    def _queue(self, prepared: Prepared, shape: Shape) -> None:
        slots = shape.rows * shape.width
        self.stream.upload(self._tokens, self._tokens_host, 8 * slots)
        self.stream.upload(self._start, self._start_host, 8 * shape.rows)
        prepared.context.enqueue()
        if self._logits_host is not None:
            self.stream.download(self._logits_host, self._logits, 4 * slots * self.vocab_size)

    def _context(self, shape: Shape) -> Prepared:
        """The context for ``shape``, made and bound the first time."""
        if shape in self._prepared:
            return self._prepared[shape]
        graph = self.bundle.manifest.window_graph
        columns = self.device.pinned((1,), np.int64)
        columns.values[0] = shape.columns
        memories: dict[str, DeviceBuffer | PinnedArray] = {
            "input_ids": self._tokens,
            "start": self._start,
            "logits": self._logits,
            "kv_length": columns,
        }
        for past, present in cache_names(graph):
            memories[past] = memories[present] = self._caches[past]
        if graph.has_kv_length and not self.engine.in_host_memory("kv_length"):
            raise ProviderError("the engine reads kv_length on the GPU, expected on the host; please report it")
        shapes = {
            name: tensor.shape(shape.rows, shape.width)
            for name, tensor in self._tensors.items()
            if tensor.is_input and name != "kv_length"
        }
        context = self.engine.context(self.options.profile_of(shape.rows, shape.width), self.stream)
        context.bind(memories, shapes)
        return self._prepared.setdefault(shape, Prepared(context, columns))

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
        first, end = self._overwritten[: len(start)].T
        old_first, old_end = np.where(first < end, (first, end), 0)
        after = start + width
        if slots > width:
            first[:], end[:] = after, np.minimum(np.maximum(old_end, start + slots), self.max_length)
        else:
            first[:], end[:] = np.where(old_end > after, (np.maximum(old_first, after), old_end), 0)

    def close(self) -> None:
        """Give all GPU memory back; the provider cannot be used afterwards. Keeps compiled kernels for the next start.

        Twice does no harm.
        """
        if self._tokens.is_freed:
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
        memories = [
            self._tokens,
            self._start,
            self._logits,
            self._tokens_host,
            self._start_host,
            *self._caches.values(),
        ]
        memories += [one.columns for one in prepared]
        memories += [] if self._logits_host is None else [self._logits_host]
        prepared.clear()
        self.engine.free()
        for memory in memories:
            memory.free()
        self.stream.free()


def _expected(bundle: Bundle, options: BuildOptions) -> dict[str, tuple[bool, str, tuple[int, ...]]]:
    """What the engine's tensors must be: by name, whether an input, type, shape."""
    types = {"int64": "INT64", "float32": "FLOAT", CACHE: _TYPES[options.precision][0]}
    return {
        name: (tensor.is_input, types[tensor.dtype], tensor.shape(-1, -1))
        for name, tensor in window_tensors(bundle.manifest).items()
    }

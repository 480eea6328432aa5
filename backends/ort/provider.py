"""`OrtProvider`: a bundle's window graph as a logits provider, run by ONNX Runtime on the CPU, or with
``device="cuda"`` on a GPU, see `coupled_sampling.backends.ort.cuda_provider`.

Caches live in numpy arrays that are bound as past *and* present, so that the graph writes a window into them in place
and nothing is copied from step to step. Windows run at their exact width: padding them to a few fixed widths costs the
padding's compute, and a width never seen before costs about as much as any other (measured: 2.1 ms exact against 2.5 ms
padded to 32, for widths of 20 to 32). The number of cache columns to attend to is rounded up to multiples of
`KV_STEP`, which reads a little more than needed but keeps shapes few.

The arguments of every call are checked here, before the graph sees them: runtimes differ in what they do about a write
beyond the cache, and some do it silently.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.backends.ort.session import open_session
from coupled_sampling.backends.window_tensors import CACHE, cache_names, cache_shape, window_tensors
from coupled_sampling.bounds import check_positive, check_window
from coupled_sampling.bundles.opening import Bundle, open_bundle
from coupled_sampling.contracts import Array, Integers
from coupled_sampling.errors import BundleError, InvalidArgument, ProviderError

__all__ = ["KV_STEP", "OrtProvider", "check_dtype"]

KV_STEP = 32
"""``kv_length`` is rounded up to a multiple of it."""


class OrtProvider:
    """A `coupled_sampling.contracts.LogitsProvider` over a bundle. Make one with `open`.

    Attributes
    ----------
    vocab_size, batch_size, max_length, max_window
        As in the contract.
    bundle
        The bundle it runs.
    execution_provider
        What ONNX Runtime runs the graph on.

    Notes
    -----
    An interrupted or failed call leaves nothing to repair: it may have written state for its own window only, which the
    next call writes again. Two providers share nothing. One provider must not be called from two threads at once.
    """

    def __init__(self, bundle: Bundle, session: Any, batch_size: int) -> None:
        graph = bundle.manifest.window_graph
        _check_graph(bundle, session)
        self.bundle = bundle
        self.vocab_size = bundle.manifest.vocab_size
        self.batch_size = batch_size
        self.max_length = graph.max_length
        self.max_window = graph.max_window
        self.execution_provider: str = session.get_providers()[0]
        self._session = session
        self._columns = graph.cache_length
        self._tensors = window_tensors(bundle.manifest)
        shape = cache_shape(graph, batch_size)
        self._caches = {past: (present, self._zeros(shape)) for past, present in cache_names(graph)}
        self._tokens = np.zeros(batch_size * self.max_window, np.int64)
        self._start = np.zeros(batch_size, np.int64)
        self._kv_length = np.zeros(1, np.int64)
        self._logits = self._logits_memory(batch_size * self.max_window * self.vocab_size)
        self._bindings: dict[tuple[int, int], Any] = {}

    @classmethod
    def open(
        cls, bundle: Bundle | str | Path, batch_size: int = 1, threads: int | None = None, device: str = "cpu"
    ) -> OrtProvider:
        """A provider for a bundle.

        Parameters
        ----------
        bundle
            A `Bundle`, or what `coupled_sampling.open_bundle` takes.
        batch_size
            Rows to hold state for.
        threads
            Threads within an operator; None lets ONNX Runtime choose.
        device
            "cpu", or "cuda" for the first GPU: what `coupled_sampling.backends.ort.cuda_provider.OrtCudaProvider.open`
            does, which has more settings. "cuda" was never run on a GPU.

        Raises
        ------
        BundleError
            The bundle cannot be opened, or its graph is not what its manifest promises.
        InvalidArgument
            ``batch_size`` or ``threads`` is no positive integer, or there is no such ``device``.
        MissingDependency
            ``onnxruntime`` is missing or too old.
        """
        if device == "cuda":
            from coupled_sampling.backends.ort.cuda_provider import OrtCudaProvider

            return OrtCudaProvider.open_on_gpu(bundle, batch_size, threads=threads)
        if device != "cpu":
            raise InvalidArgument(f"device is {device!r}, expected 'cpu' or 'cuda'")
        check_positive("batch_size", batch_size)
        opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
        return cls(opened, open_session(opened.window_graph, threads), batch_size)

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
            float32 logits (B, W, V), -inf for tokens that are never generated. The next call writes over them.

        Raises
        ------
        InvalidArgument
            An argument is out of bounds; nothing was run and no state has changed.
        ProviderError
            ONNX Runtime failed.
        """
        check_window(self, tokens, start)
        rows, width = tokens.shape
        self._tokens[: rows * width] = tokens.reshape(-1)
        self._start[:rows] = start
        needed = int(start.max()) + width
        self._kv_length[0] = self._columns_for(needed)
        try:
            self._run(rows, width)
        except Exception as error:
            # Its exceptions share no base class but Exception.
            raise ProviderError(f"ONNX Runtime failed on a window of {rows} rows and {width} slots: {error}") from error
        return self._result(rows, width)

    def _columns_for(self, needed: int) -> int:
        """How many cache columns to attend to, where ``needed`` are written."""
        return min(-(-needed // KV_STEP) * KV_STEP, self._columns)

    def _run(self, rows: int, width: int) -> None:
        """Run the graph on what the buffers hold."""
        self._session.run_with_iobinding(self._binding(rows, width))

    def _zeros(self, shape: tuple[int, ...]) -> Any:
        """Memory that the graph reads and writes in place."""
        return np.zeros(shape, np.float32)

    def _logits_memory(self, size: int) -> Any:
        """Memory for ``size`` logits."""
        return np.zeros(size, np.float32)

    def _result(self, rows: int, width: int) -> Any:
        """The logits of the last call."""
        return self._logits[: rows * width * self.vocab_size].reshape(rows, width, self.vocab_size)

    def _binding(self, rows: int, width: int) -> Any:
        """Buffers bound for a window of this shape; the first ``rows`` rows of a buffer are where they always are."""
        if (rows, width) not in self._bindings:
            buffers: dict[str, NDArray[Any]] = {
                "input_ids": self._tokens,
                "start": self._start,
                "kv_length": self._kv_length,
                "logits": self._logits,
            }
            for past, (present, cache) in self._caches.items():
                buffers[past] = buffers[present] = cache
            binding = self._session.io_binding()
            for name, tensor in self._tensors.items():
                bind = binding.bind_input if tensor.is_input else binding.bind_output
                buffer = buffers[name]
                bind(name, "cpu", 0, buffer.dtype.type, tensor.shape(rows, width), buffer.ctypes.data)
            self._bindings[rows, width] = binding
        return self._bindings[rows, width]


def check_dtype(bundle: Bundle, execution_provider: str) -> None:
    """Refuse a bundle whose caches are not of the one type that ONNX Runtime's buffers are made of here: `BundleError`."""
    dtype = bundle.manifest.window_graph.dtype
    if dtype != "float32":
        raise BundleError(
            f"window_graph.dtype is {dtype!r}, expected 'float32' on {execution_provider}; export the bundle again, or use TensorRT"
        )


def _check_graph(bundle: Bundle, session: Any) -> None:
    """Refuse a graph whose inputs and outputs are not what the manifest promises."""
    check_dtype(bundle, session.get_providers()[0])
    types = {"int64": "tensor(int64)", "float32": "tensor(float)", CACHE: "tensor(float)"}
    expected = {
        name: (types[tensor.dtype], tuple(size if isinstance(size, int) else None for size in tensor.axes))
        for name, tensor in window_tensors(bundle.manifest).items()
    }
    found = {
        value.name: (value.type, tuple(size if isinstance(size, int) else None for size in value.shape))
        for value in (*session.get_inputs(), *session.get_outputs())
    }
    for name in sorted(set(expected) | set(found)):
        if expected.get(name) != found.get(name):
            raise BundleError(
                f"{bundle.window_graph}: input or output {name!r} is {found.get(name, 'missing')}, the manifest "
                f"promises {expected.get(name, 'none of that name')}; export the bundle again"
            )

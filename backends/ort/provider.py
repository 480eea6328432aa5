"""`OrtProvider`: a bundle's window graph as a logits provider, run by ONNX Runtime.

Where it runs is its binding's affair (`coupled_sampling.backends.ort.binding` on the CPU,
`coupled_sampling.backends.ort.device_binding` on a GPU). Caches are bound as past *and* present, so that the graph writes a
window into them in place and nothing is copied from step to step. Windows run at their exact width: padding them to a few fixed
widths costs the padding's compute, and a width never seen before costs about as much as any other (measured: 2.1 ms exact against
2.5 ms padded to 32, for widths of 20 to 32). The number of cache columns to attend to is rounded up to multiples of `KV_STEP`,
which reads a little more than needed but keeps shapes few.

The arguments of every call are checked here, before the graph sees them: runtimes differ in what they do about a write
beyond the cache, and some do it silently.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from coupled_sampling.backends.ort.binding import HostBinding
from coupled_sampling.backends.ort.session import open_session
from coupled_sampling.backends.window_tensors import CACHE, cache_names, cache_shape, window_tensors
from coupled_sampling.bounds import check_positive, check_window
from coupled_sampling.bundles.opening import Bundle, open_bundle
from coupled_sampling.contracts import Array, Integers, Runs
from coupled_sampling.errors import BundleError, ProviderError
from coupled_sampling.running import Closing

__all__ = ["KV_STEP", "OrtProvider", "check_dtype"]

KV_STEP = 32
"""``kv_length`` is rounded up to a multiple of it."""


class OrtProvider(Closing):
    """A `coupled_sampling.contracts.LogitsProvider` over a bundle.

    `coupled_sampling.backends.open_model` makes one, wherever it is to run; `open` makes one on the CPU.

    Parameters
    ----------
    bundle
        The bundle whose window graph runs.
    session
        An ``onnxruntime.InferenceSession`` of it.
    batch_size
        Rows to hold state for.
    binding
        Where its tensors lie; None is the CPU.
    column_buckets
        Values of ``kv_length``, in order, the last one the length of the caches: a call attends to the smallest that holds its
        windows. () rounds up to multiples of `KV_STEP`.

    Attributes
    ----------
    vocab_size, batch_size, max_length, max_window
        As in the contract.
    bundle, binding, column_buckets
        As given.
    runs
        What runs it.

    Raises
    ------
    BundleError
        The graph is not what the manifest promises, or its caches are not float32.

    Notes
    -----
    An interrupted or failed call leaves nothing to repair: it may have written state for its own window only, which the
    next call writes again. Two providers share nothing. One provider must not be called from two threads at once.

    Examples
    --------
    >>> import numpy as np
    >>> from coupled_sampling.backends import OrtProvider
    >>> with OrtProvider.open("fashion", batch_size=2) as model:
    ...     model.forward(np.array([[258], [259]]), start=np.array([0, 0])).shape  # two rows of one token each
    (2, 1, 267)
    """

    def __init__(
        self,
        bundle: Bundle,
        session: Any,
        batch_size: int,
        binding: HostBinding | None = None,
        column_buckets: Sequence[int] = (),
    ) -> None:
        graph = bundle.manifest.window_graph
        _check_graph(bundle, session)
        self.bundle = bundle
        self.vocab_size = bundle.manifest.vocab_size
        self.batch_size = batch_size
        self.max_length = graph.max_length
        self.max_window = graph.max_window
        self.binding = HostBinding(session) if binding is None else binding
        self.column_buckets = tuple(column_buckets)
        self.runs = Runs(session.get_providers()[0], self.binding.device, self.binding.cuda_graphs)
        self._graph = graph
        shape = cache_shape(graph, batch_size)
        self._caches = {
            past: (present, self.binding.keep(np.zeros(shape, np.float32))) for past, present in cache_names(graph)
        }
        self._rows_bound = 0
        self._columns = np.zeros(1, np.int64)
        slots = batch_size * self.max_window
        self.binding.reserve("input_ids", np.int64, slots)
        self.binding.reserve("start", np.int64, batch_size)
        self.binding.reserve("logits", np.float32, slots * self.vocab_size)
        if graph.has_kv_length:
            self.binding.reserve("kv_length", np.int64, 1)
        self._is_closed = False

    @classmethod
    def open(cls, bundle: Bundle | str | Path, batch_size: int = 1, threads: int | None = None) -> OrtProvider:
        """A provider on the CPU.

        Parameters
        ----------
        bundle
            A `Bundle`, or what `coupled_sampling.open_bundle` takes.
        batch_size
            Rows to hold state for.
        threads
            Threads within an operator; None lets ONNX Runtime choose.

        Raises
        ------
        BundleError
            The bundle cannot be opened, or its graph is not what its manifest promises.
        InvalidArgument
            ``batch_size`` or ``threads`` is no positive integer.
        MissingDependency
            ``onnxruntime`` is missing or too old.
        """
        check_positive("batch_size", batch_size)
        opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
        return cls(opened, open_session(opened.window_graph, threads), batch_size)

    def forward(self, tokens: Integers, start: Integers) -> Array:
        """Score a window. See `coupled_sampling.contracts.LogitsProvider.forward`, whose bounds are checked.

        Returns
        -------
        Array
            float32 logits (B, W, V), -inf for tokens that are never generated: a numpy array, or of a provider that was opened to
            leave them on the GPU a `coupled_sampling.backends.cuda.pointers.DevicePointer`. The next call writes over them.

        Raises
        ------
        InvalidArgument
            An argument is out of bounds; nothing was run and no state has changed.
        ProviderError
            ONNX Runtime failed, or the provider was closed.
        """
        if self._is_closed:
            raise ProviderError("the provider was closed and cannot run any more; open the model again")
        check_window(self, tokens, start)
        rows, width = tokens.shape
        binding, logits = self.binding, (rows, width, self.vocab_size)
        self._columns[0] = self._columns_for(int(start.max()) + width)
        try:
            binding.feed("input_ids", tokens)
            binding.feed("start", start)
            if self._graph.has_kv_length:
                binding.feed("kv_length", self._columns)
            if rows != self._rows_bound:
                self._bind_caches(rows)
            binding.expect("logits", logits)
            binding.run()
        except Exception as error:
            # Its exceptions share no base class but Exception.
            raise ProviderError(f"ONNX Runtime failed on a window of {rows} rows and {width} slots: {error}") from error
        return binding.made("logits", logits)

    def close(self) -> None:
        """Give back all memory, on the GPU too; the provider cannot be used afterwards. Twice does no harm."""
        self._is_closed = True
        self._caches.clear()
        vars(self).pop("binding", None)

    def _columns_for(self, needed: int) -> int:
        """How many cache columns to attend to, where ``needed`` are written."""
        if self.column_buckets:
            return next(bucket for bucket in self.column_buckets if bucket >= needed)
        return min(-(-needed // KV_STEP) * KV_STEP, self._graph.cache_length)

    def _bind_caches(self, rows: int) -> None:
        """The first ``rows`` rows of a cache are where they always are."""
        shape = cache_shape(self._graph, rows)
        for past, (present, cache) in self._caches.items():
            self.binding.bind_kept(past, cache, shape)
            self.binding.bind_kept(present, cache, shape)
        self._rows_bound = rows


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

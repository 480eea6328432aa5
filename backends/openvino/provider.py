"""`OpenVinoProvider`: a bundle's window graph as a logits provider, run by OpenVINO on the CPU.

Each row has blocks of its own, one after the other, that hold as many positions as the caches of the graph; what is done with them
is in `coupled_sampling.backends.openvino.paging`. A call names the blocks of its rows, so any range of rows can be run, a window
that starts lower writes over what was there, and to fork a row is to copy its first blocks.

The arguments of every call are checked here: what is written beyond a row's blocks would be another row's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.arguments import check_count, in_one_line
from coupled_sampling.backends.openvino.paging import BLOCK, paged_model
from coupled_sampling.backends.openvino.reading import read_window_graph
from coupled_sampling.backends.openvino.runtime import DEVICE, Runtime, find_runtime, settings
from coupled_sampling.backends.ort.session import check_threads
from coupled_sampling.backends.window_tensors import cache_names
from coupled_sampling.bounds import check_fork, check_rows, check_window
from coupled_sampling.bundles.opening import Bundle, open_bundle
from coupled_sampling.contracts import Array, Integers, Runs
from coupled_sampling.errors import BundleError, ProviderError
from coupled_sampling.running import Closing

__all__ = ["OpenVinoProvider", "refused_type"]

_LISTS = ("subsequence_begins", "block_indices_begins", "block_indices")
"""Where rows begin among the slots, where their blocks begin, and which blocks those are."""
_FED = ("input_ids", "start", "max_context_len", "logits", *_LISTS)


class _Fed(NamedTuple):
    """What the graph reads and writes in windows of one shape."""

    tokens: NDArray[np.int64]
    start: NDArray[np.int64]
    held: NDArray[np.int32]
    """Most positions that a row holds after the window: a single number."""
    logits: NDArray[np.float32]
    lists: tuple[NDArray[np.int32], ...]
    """Of `_LISTS`."""


class OpenVinoProvider(Closing):
    """A `coupled_sampling.contracts.LogitsProvider` over a bundle.

    `coupled_sampling.backends.open_model` makes one with ``Place("openvino")``, and so does `open`.

    Parameters
    ----------
    bundle
        The bundle whose window graph runs.
    runtime
        OpenVINO, as `coupled_sampling.backends.openvino.runtime.find_runtime` gives it.
    batch_size
        Rows to hold state for.
    threads
        Threads within an operator; None lets OpenVINO choose.

    Attributes
    ----------
    vocab_size, batch_size, max_length, max_window
        As in the contract.
    prompt_chunk
        How wide it likes to read prompts: what the bundle says.
    bundle
        As given.
    runs
        What runs it.

    Raises
    ------
    BundleError
        OpenVINO cannot run the graph, it is not what the manifest promises, or its caches are not float32.
    MissingDependency
        OpenVINO's attention over blocks takes other inputs than it did.

    Notes
    -----
    An interrupted or failed call leaves nothing to repair: it may have written state for its own window only, which the
    next call writes again. Two providers share nothing. One provider must not be called from two threads at once.

    Examples
    --------
    >>> import numpy as np
    >>> from coupled_sampling.backends.openvino import OpenVinoProvider

    Not run here, since it needs OpenVINO:

    >>> with OpenVinoProvider.open("fashion", batch_size=2) as model:  # doctest: +SKIP
    ...     model.forward(np.array([[258], [259]]), start=np.array([0, 0])).shape  # two rows of one token each
    (2, 1, 267)
    """

    def __init__(self, bundle: Bundle, runtime: Runtime, batch_size: int, threads: int | None = None) -> None:
        graph = bundle.manifest.window_graph
        if (refusal := refused_type(bundle)) is not None:
            raise BundleError(refusal)
        self.bundle = bundle
        self.vocab_size = bundle.manifest.vocab_size
        self.batch_size = batch_size
        self.max_length = graph.max_length
        self.max_window = graph.max_window
        self.prompt_chunk = bundle.manifest.prompt_chunk
        self.runs = Runs(f"OpenVINO {runtime.version.split('-')[0]}")
        self._tensor: Any = runtime.package.Tensor
        self._request: Any = _request(runtime, bundle, threads)
        self._blocks = -(-graph.cache_length // BLOCK)
        """Of a row."""
        shape = batch_size * self._blocks, graph.kv_heads, BLOCK, graph.head_size
        self._caches = {past: np.zeros(shape, np.float32) for past, _ in cache_names(graph)}
        for past, cache in self._caches.items():
            self._bind(past, cache)
        self._logits = np.zeros(batch_size * self.vocab_size, np.float32)
        self._chosen: tuple[range, int] | None = None

    @classmethod
    def open(cls, bundle: Bundle | str | Path, batch_size: int = 1, threads: int | None = None) -> OpenVinoProvider:
        """A provider.

        Parameters
        ----------
        bundle
            A `Bundle`, or what `coupled_sampling.open_bundle` takes.
        batch_size
            Rows to hold state for.
        threads
            Threads within an operator; None lets OpenVINO choose.

        Raises
        ------
        BundleError
            The bundle cannot be opened, or its graph cannot be run.
        InvalidArgument
            ``batch_size`` or ``threads`` is no positive integer.
        MissingDependency
            ``openvino`` is missing or too old.
        """
        check_count("batch_size", batch_size)
        check_threads(threads)
        opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
        return cls(opened, find_runtime(), batch_size, threads)

    def forward(self, tokens: Integers, start: Integers) -> Array:
        """Score a window. See `coupled_sampling.contracts.LogitsProvider.forward`, whose bounds are checked.

        Returns
        -------
        Array
            float32 logits (B, W, V), -inf for tokens that are never generated. The next call writes over them.

        Raises
        ------
        InvalidArgument
            An argument is out of bounds; nothing was run and no state has changed.
        ProviderError
            OpenVINO failed, or the provider was closed.
        """
        return self._forward(tokens, start, None)

    def forward_rows(self, tokens: Integers, start: Integers, rows: range) -> Array:
        """Score a window of some rows. See `coupled_sampling.contracts.RowRanges.forward_rows`; raises what `forward` does.

        Returns
        -------
        Array
            As from `forward`: float32 logits (n, W, V).

        Examples
        --------
        Not run here, since it needs OpenVINO:

        >>> import numpy as np
        >>> from coupled_sampling.backends.openvino import OpenVinoProvider
        >>> with OpenVinoProvider.open("fashion", batch_size=8) as model:  # doctest: +SKIP
        ...     model.forward_rows(np.array([[258, 7]]), np.array([0]), range(7, 8)).shape  # the last row alone
        (1, 2, 267)
        """
        return self._forward(tokens, start, rows)

    @property
    def forks(self) -> bool:
        """See `coupled_sampling.contracts.Forks`."""
        return not self._is_closed

    def fork(self, source: int, targets: Sequence[int], length: int) -> None:
        """Copy the state of a row. See `coupled_sampling.contracts.Forks.fork`.

        Raises
        ------
        InvalidArgument
            A row or the length is out of bounds.
        ProviderError
            The provider was closed.
        """
        self._refuse_if_closed()
        check_fork(self, source, targets, length)
        # Whole blocks: what of the last one lies beyond the length is written before it is read.
        count = -(-length // BLOCK)
        for cache in self._caches.values():
            by_row = cache.reshape(self.batch_size, self._blocks, *cache.shape[1:])
            for target in targets:
                by_row[target, :count] = by_row[source, :count]

    def close(self) -> None:
        """Give back all memory; the provider cannot be used afterwards. Twice does no harm."""
        self._is_closed = True
        # The request first: it points into the caches.
        for name in ("_request", "_caches", "_logits", "_fed"):
            vars(self).pop(name, None)

    def _forward(self, tokens: Integers, start: Integers, rows: range | None) -> Array:
        """Run the graph on ``rows``; None are the first."""
        self._refuse_if_closed()
        check_window(self, tokens, start)
        count, width = tokens.shape
        if rows is None:
            rows = range(count)
        else:
            check_rows(self, tokens, rows)
        try:
            if (rows, width) != self._chosen:
                self._choose(rows, width)
            self._fed.tokens[...] = tokens
            self._fed.start[...] = start
            self._fed.held[...] = start.max() + width
            self._request.infer()
        except Exception as error:
            # Its exceptions share no base class but Exception.
            self._chosen = None
            raise ProviderError(
                f"OpenVINO failed on a window of {count} rows and {width} slots: {in_one_line(error)}"
            ) from error
        return self._fed.logits

    def _choose(self, rows: range, width: int) -> None:
        """Have the next calls run windows of ``width`` slots on ``rows``: what differs between them is then only written anew."""
        self._chosen = None
        count, blocks = len(rows), self._blocks
        ends = np.arange(count + 1, dtype=np.int32)
        fed = _Fed(
            np.zeros((count, width), np.int64),
            np.zeros(count, np.int64),
            np.zeros((), np.int32),
            self._room((count, width, self.vocab_size)),
            (ends * width, ends * blocks, np.arange(rows.start * blocks, rows.stop * blocks, dtype=np.int32)),
        )
        arrays: tuple[NDArray[Any], ...] = (fed.tokens, fed.start, fed.held, fed.logits, *fed.lists)
        for name, values in zip(_FED, arrays, strict=True):
            self._bind(name, values)
        self._fed, self._chosen = fed, (rows, width)

    def _room(self, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Memory for logits of ``shape``, which grows with what is asked for."""
        size = math.prod(shape)
        if size > self._logits.size:
            self._logits = np.zeros(size, np.float32)
        return self._logits[:size].reshape(shape)

    def _bind(self, name: str, values: NDArray[Any]) -> None:
        """Have the graph read and write ``values`` where they lie. Nothing but the caller keeps them, until others are bound."""
        self._request.set_tensor(name, self._tensor(values, shared_memory=True))


def refused_type(bundle: Bundle) -> str | None:
    """Why the caches of a bundle cannot be held, which are float32 here; None if they can."""
    dtype = bundle.manifest.window_graph.dtype
    if dtype == "float32":
        return None
    return (
        f"window_graph.dtype is {dtype!r}, expected 'float32' on OpenVINO; export the bundle with --compute float32, or use "
        "backend 'cuda' or TensorRT"
    )


def _request(runtime: Runtime, bundle: Bundle, threads: int | None) -> Any:
    """What runs the window graph of ``bundle``."""
    path, graph = bundle.window_graph, bundle.manifest.window_graph
    model = paged_model(runtime, path, graph, read_window_graph(runtime, bundle))
    try:
        return runtime.package.Core().compile_model(model, DEVICE, settings(threads)).create_infer_request()
    except Exception as error:
        raise BundleError(
            f"OpenVINO {runtime.version} cannot run {path}: {in_one_line(error)}; use the back end cpu"
        ) from error

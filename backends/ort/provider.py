"""`OrtProvider`: a bundle's window graph, or another writing of it, as a logits provider, run by ONNX Runtime.

Where it runs is its binding's affair (`coupled_sampling.backends.ort.binding` on the CPU,
`coupled_sampling.backends.ort.device_binding` on a GPU). Caches are bound as past *and* present, so that the graph writes a
window into them in place and nothing is copied from step to step. Windows run at their exact width: padding them to a few fixed
widths costs the padding's compute, and a width never seen before costs about as much as any other (measured: 2.1 ms exact against
2.5 ms padded to 32, for widths of 20 to 32). The number of cache columns to attend to is rounded up to multiples of `KV_STEP`,
which reads a little more than needed but keeps shapes few.

Rows can be chosen (`coupled_sampling.contracts.RowRanges`): a call binds the part of the caches that is theirs, and attends to as
many columns as they need.

The tree graph takes one input more, the parent of every slot, and has caches of more columns than the model has positions: slots
side by side need a column each. A window without branches is a chain of parents to it. The graph without masks takes one input
less, ``kv_length``.

A bundle with a condition graph takes vectors with a request (`coupled_sampling.backends.ort.condition`): the provider is then told
each row's request before its first window (`coupled_sampling.contracts.RequestObserver`), and refuses one without.

The arguments of every call are checked here, before the graph sees them: runtimes differ in what they do about a write
beyond the cache, and some do it silently.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from coupled_sampling.arguments import check_count, check_flag, in_one_line
from coupled_sampling.backends.ort.binding import CACHE_TYPES, TYPES, HostBinding
from coupled_sampling.backends.ort.condition import RowConditions
from coupled_sampling.backends.ort.row_caches import CacheTensor, RowCaches
from coupled_sampling.backends.ort.session import open_session
from coupled_sampling.backends.window_tensors import (
    CACHE,
    cache_names,
    cache_shape,
    causal_window_graph,
    tree_window_graph,
    window_tensors,
)
from coupled_sampling.bounds import check_fork, check_rows, check_tree_window, check_window
from coupled_sampling.bundles.manifest import WindowGraph
from coupled_sampling.bundles.opening import Bundle, open_bundle
from coupled_sampling.contracts import Array, Integers, Runs
from coupled_sampling.errors import BundleError, ProviderError
from coupled_sampling.refusals import missing_offers
from coupled_sampling.requests import Request
from coupled_sampling.running import Closing
from coupled_sampling.trees import chain

__all__ = ["KV_STEP", "OrtProvider", "check_dtype", "graph_path"]

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
        An ``onnxruntime.InferenceSession`` of it, or of the graph for trees or without masks.
    batch_size
        Rows to hold state for.
    binding
        Where its tensors lie; None is the CPU.
    column_buckets
        Values of ``kv_length``, in order, the last one the length of the caches: a call attends to the smallest that holds its
        windows. () rounds up to multiples of `KV_STEP`.
    trees
        Whether ``session`` is of the tree graph: the provider then offers `coupled_sampling.contracts.Trees`.
    causal
        Whether it is of the graph without masks.

    Attributes
    ----------
    vocab_size, batch_size, max_length, max_window
        As in the contract.
    prompt_chunk
        How wide it likes to read prompts: what the bundle says.
    forks
        Whether `fork` can be done: where caches lie on the host.
    bundle, binding, column_buckets
        As given.
    runs
        What runs it.

    Raises
    ------
    BundleError
        The graph is not what the manifest promises, or its caches are of no type that is known here.

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

    Two guesses for what follows a token, side by side:

    >>> from coupled_sampling.contracts import Trees
    >>> with OrtProvider.open("fashion", trees=True) as model:
    ...     isinstance(model, Trees), model.forward_tree(
    ...         np.array([[258, 7, 9]]), np.array([0]), parents=np.array([[-1, 0, 0]]), rows=range(1)
    ...     ).shape
    (True, (1, 3, 267))
    """

    def __new__(cls, bundle: Bundle, *arguments: object, trees: bool = False, **settings: object) -> Self:
        # What can be done is asked by Protocols, so that a class that cannot must not have the method.
        if cls is not OrtProvider:
            return super().__new__(cls)
        kinds = {(True, False): _OrtTrees, (False, True): _OrtConditioned, (True, True): _OrtConditionedTrees}
        return super().__new__(kinds.get((trees, bundle.manifest.condition_graph is not None), cls))  # type: ignore[return-value]

    def __init__(
        self,
        bundle: Bundle,
        session: Any,
        batch_size: int,
        binding: HostBinding | None = None,
        column_buckets: Sequence[int] = (),
        *,
        trees: bool = False,
        causal: bool = False,
    ) -> None:
        graph = _promised(bundle, trees=trees, causal=causal)
        binding = HostBinding(session) if binding is None else binding
        self._conditions = (
            None if bundle.manifest.condition_graph is None else RowConditions(bundle, session, binding, batch_size)
        )
        told = {} if self._conditions is None else self._conditions.inputs
        _check_graph(bundle, session, told, trees=trees, causal=causal)
        if self._conditions is not None:
            self._conditions.reserve()
        self.bundle = bundle
        self.vocab_size = bundle.manifest.vocab_size
        self.batch_size = batch_size
        self.max_length = graph.max_length
        self.max_window = graph.max_window
        self.prompt_chunk = bundle.manifest.prompt_chunk
        self.binding = binding
        self.column_buckets = tuple(column_buckets)
        self.runs = Runs(session.get_providers()[0], self.binding.device, self.binding.cuda_graphs)
        self._graph, self._trees = graph, trees
        row = cache_shape(graph, 1)[1:]
        dtype = TYPES[CACHE_TYPES[graph.dtype]]
        tensors = {past: CacheTensor(present, row, dtype) for past, present in cache_names(graph)}
        self._caches = RowCaches(self.binding, tensors, batch_size)
        self._columns = np.zeros(1, np.int64)
        most = graph.cache_length if trees else self.max_window
        for name in ("input_ids", "parents") if trees else ("input_ids",):
            self.binding.reserve(name, np.int64, batch_size * most)
        self.binding.reserve("start", np.int64, batch_size)
        # Of one slot a row. As many as there can be would be gigabytes, and who needs them is not known before.
        self.binding.reserve("logits", np.float32, batch_size * self.vocab_size)
        if graph.has_kv_length:
            self.binding.reserve("kv_length", np.int64, 1)

    @classmethod
    def open(
        cls, bundle: Bundle | str | Path, batch_size: int = 1, threads: int | None = None, *, trees: bool = False
    ) -> OrtProvider:
        """A provider on the CPU.

        Parameters
        ----------
        bundle
            A `Bundle`, or what `coupled_sampling.open_bundle` takes.
        batch_size
            Rows to hold state for.
        threads
            Threads within an operator; None lets ONNX Runtime choose.
        trees
            Whether to open the tree graph, so that windows may be trees.

        Raises
        ------
        BundleError
            The bundle cannot be opened, its graph is not what its manifest promises, or it has no tree graph.
        InvalidArgument
            ``batch_size`` or ``threads`` is no positive integer.
        MissingDependency
            ``onnxruntime`` is missing or too old.
        """
        check_count("batch_size", batch_size)
        check_flag("trees", trees)
        opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
        return cls(opened, open_session(graph_path(opened, trees=trees), threads), batch_size, trees=trees)

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
        self._refuse_if_closed()
        check_window(self, tokens, start)
        return self._forward(tokens, start, range(len(start)))

    def forward_rows(self, tokens: Integers, start: Integers, rows: range) -> Array:
        """Score a window of some rows. See `coupled_sampling.contracts.RowRanges.forward_rows`; raises what `forward` does.

        Returns
        -------
        Array
            As from `forward`: float32 logits (n, W, V).

        Examples
        --------
        >>> import numpy as np
        >>> from coupled_sampling.backends import OrtProvider
        >>> with OrtProvider.open("fashion", batch_size=8) as model:  # the last row alone
        ...     model.forward_rows(np.array([[258, 7]]), np.array([0]), range(7, 8)).shape
        (1, 2, 267)
        """
        self._refuse_if_closed()
        check_window(self, tokens, start)
        check_rows(self, tokens, rows)
        return self._forward(tokens, start, rows)

    @property
    def forks(self) -> bool:
        """See `coupled_sampling.contracts.Forks`."""
        return not self._is_closed and self.binding.copies_rows

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
        self._caches.fork(source, targets, length)
        if self._conditions is not None:
            self._conditions.fork(source, targets)

    def _forward(self, tokens: Integers, start: Integers, rows: range, parents: Integers | None = None) -> Array:
        """Run the graph on ``rows``; without ``parents`` each slot follows the one before it."""
        count, width = tokens.shape
        binding, logits = self.binding, (count, width, self.vocab_size)
        self._columns[0] = self._columns_for(int(start.max()) + width)
        self._caches.choose(rows)
        idle = [] if self._conditions is None else self._conditions.bind(rows)
        try:
            binding.feed("input_ids", tokens)
            binding.feed("start", start)
            if self._trees:
                binding.feed("parents", chain(count, width) if parents is None else parents)
            if self._graph.has_kv_length:
                binding.feed("kv_length", self._columns)
            binding.expect("logits", logits)
            binding.run()
        except Exception as error:
            # Its exceptions share no base class but Exception.
            raise ProviderError(
                f"ONNX Runtime failed on a window of {count} rows and {width} slots: {in_one_line(error)}"
            ) from error
        found = binding.made("logits", logits)
        if idle:
            found[idle] = np.nan
        return found

    def close(self) -> None:
        """Give back all memory, on the GPU too; the provider cannot be used afterwards. Twice does no harm."""
        self._is_closed = True
        for name in ("_caches", "_conditions", "binding"):
            vars(self).pop(name, None)

    def _columns_for(self, needed: int) -> int:
        """How many cache columns to attend to, where ``needed`` are written."""
        if self.column_buckets:
            return next(bucket for bucket in self.column_buckets if bucket >= needed)
        return min(-(-needed // KV_STEP) * KV_STEP, self._graph.cache_length)


class _OrtTrees(OrtProvider):
    """A provider over a tree graph."""

    @property
    def max_columns(self) -> int:
        """See `coupled_sampling.contracts.Trees`."""
        return self._graph.cache_length

    def forward_tree(self, tokens: Integers, start: Integers, parents: Integers, rows: range) -> Array:
        """Score windows that are trees. See `coupled_sampling.contracts.Trees.forward_tree`; raises what `forward` does."""
        self._refuse_if_closed()
        check_tree_window(self, tokens, start, parents)
        check_rows(self, tokens, rows)
        return self._forward(tokens, start, rows, parents)


class _OrtConditioned(OrtProvider):
    """A provider over a graph that takes a condition."""

    _conditions: RowConditions

    def takes(self, request: Request) -> str | None:
        """Why ``request`` cannot be decoded. See `coupled_sampling.contracts.Selective.takes`."""
        return missing_offers(self, request) or self._conditions.problem(request)

    def begin(self, row: int, request: Request) -> None:
        """Row ``row`` starts ``request``: read its condition. See `coupled_sampling.contracts.RequestObserver.begin`.

        Raises
        ------
        InvalidArgument
            ``row`` is none, or the request has no condition, or one that cannot be read.
        ProviderError
            ONNX Runtime failed on it, or the provider was closed.
        """
        self._refuse_if_closed()
        self._conditions.begin(row, request)


class _OrtConditionedTrees(_OrtConditioned, _OrtTrees):
    """Both."""


def graph_path(bundle: Bundle, *, trees: bool = False, causal: bool = False) -> Path:
    """The graph to open, with ``trees`` the one whose windows may be trees, with ``causal`` the one without masks.

    Raises
    ------
    BundleError
        The bundle has none.
    """
    return bundle.folder / _promised(bundle, trees=trees, causal=causal).file


def _promised(bundle: Bundle, *, trees: bool, causal: bool) -> WindowGraph:
    """What the manifest says of the graph."""
    if trees:
        return tree_window_graph(bundle.manifest)
    return causal_window_graph(bundle.manifest) if causal else bundle.manifest.window_graph


def check_dtype(bundle: Bundle, execution_provider: str) -> None:
    """Refuse a bundle whose caches are of no type that is known here: `BundleError`."""
    dtype = bundle.manifest.window_graph.dtype
    if dtype not in CACHE_TYPES:
        expected = ", ".join(map(repr, CACHE_TYPES))
        raise BundleError(
            f"window_graph.dtype is {dtype!r}, expected one of {expected} on {execution_provider}; export the bundle again"
        )


def _check_graph(
    bundle: Bundle, session: Any, told: Mapping[str, tuple[str, tuple[int | None, ...]]], *, trees: bool, causal: bool
) -> None:
    """Refuse a graph whose inputs and outputs are not what the manifest promises, and ``told``, what the condition graph makes."""
    check_dtype(bundle, session.get_providers()[0])
    caches = CACHE_TYPES[bundle.manifest.window_graph.dtype]
    types = {"int64": "tensor(int64)", "float32": "tensor(float)", CACHE: caches}
    expected = {
        name: (types[tensor.dtype], tuple(size if isinstance(size, int) else None for size in tensor.axes))
        for name, tensor in window_tensors(bundle.manifest, trees=trees, causal=causal).items()
    }
    expected |= told
    found = {
        value.name: (value.type, tuple(size if isinstance(size, int) else None for size in value.shape))
        for value in (*session.get_inputs(), *session.get_outputs())
    }
    for name in sorted(set(expected) | set(found)):
        if expected.get(name) != found.get(name):
            raise BundleError(
                f"{graph_path(bundle, trees=trees, causal=causal)}: input or output {name!r} is {found.get(name, 'missing')}, "
                f"the manifest promises {expected.get(name, 'none of that name')}; export the bundle again"
            )

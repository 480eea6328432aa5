"""`ConcatenatedProvider`: a decoder exported by somebody else, with caches that grow, as a logits provider on the CPU.

The graphs that Optimum, transformers.js and ONNX Runtime GenAI write take ``past`` caches of T columns and give ``present``
caches of T + W. Rolling back is handing them fewer columns. Here every row keeps one cache in which column t is position t, so
that the last write wins by itself: a window's past is the columns below its start, and its own columns are put back.

Three ways to run several rows, chosen by trying them on the graph when it is opened (`decoder_checks`):

- **in place**: graphs with GroupQueryAttention write into the cache they read, so it is bound as past and present and nothing is
  copied. ONNX Runtime takes one row at a time then, if a window has several slots and a past;
- **padded**: all rows in one call, pasts aligned at the right and masked at the left. This is the padding that exporters make
  their masks for: distances between columns stay distances between positions, also under a sliding window;
- **one by one**: each row alone, without padding. Always right; also what the other two are compared with.

A graph with ``position_ids`` and a mask of 4 axes, which says of each slot what it sees, can forward windows that are trees. Of
their columns those of the leading slots that follow one another are kept, and the others cut.

What it does not promise: that the graph computes the model, and anything about lengths at which a model changes how it
encodes positions. Nothing is checked beyond the first few positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.arguments import check_count, check_flag, in_one_line
from coupled_sampling.backends.foreign.checks import (
    UNCHANGED,
    check_decoder,
    check_opening,
    check_padding,
    check_trees,
    probe_graph,
)
from coupled_sampling.backends.foreign.configuration import Configuration
from coupled_sampling.backends.foreign.graph import DecoderGraph, columns_of
from coupled_sampling.backends.foreign.grown_caches import Buffers, GrownCaches, bind
from coupled_sampling.backends.foreign.opening import DecoderFile
from coupled_sampling.backends.foreign.rewriting import Changes
from coupled_sampling.bounds import check_fork, check_rows, check_tree_window, check_window
from coupled_sampling.contracts import Integers, Runs
from coupled_sampling.errors import BundleError, ProviderError
from coupled_sampling.fields import check_path
from coupled_sampling.running import Closing
from coupled_sampling.trees import Tree

__all__ = ["ConcatenatedProvider"]


class ConcatenatedProvider(Closing):
    """A `coupled_sampling.contracts.LogitsProvider` over a downloaded decoder graph. Make one with `open`.

    Attributes
    ----------
    vocab_size, batch_size, max_length
        As in the contract.
    graph
        What was read from the file.
    batching
        ``"in place"``, ``"padded"`` or ``"one by one"``: how several rows are run.
    why_not_padded
        What the graph did with padded rows, if it was tried and refused; empty otherwise.
    runs
        What runs it.

    Notes
    -----
    An interrupted or failed call leaves nothing to repair: it may have written state for its own window only. One provider
    must not be called from two threads at once. Caches take memory as positions are used, about three times a cache for
    graphs that copy.

    Examples
    --------
    A bundle's graph is none of these, and is refused:

    >>> from coupled_sampling import open_bundle
    >>> from coupled_sampling.backends import ConcatenatedProvider
    >>> ConcatenatedProvider.open(open_bundle("fashion").window_graph, max_length=64)
    Traceback (most recent call last):
    coupled_sampling.errors.BundleError: ...

    A decoder that was downloaded (not run here, since it has to be downloaded first):

    >>> model = ConcatenatedProvider.open("SmolLM2/onnx/model.onnx", batch_size=2)  # doctest: +SKIP
    >>> model.batching  # doctest: +SKIP
    'padded'
    """

    def __new__(cls, *arguments: object, trees: bool = False, **settings: object) -> Self:
        # Whether windows may be trees is asked by a Protocol, so that a class that cannot must not have the method.
        return super().__new__(_ConcatenatedTrees if trees and cls is ConcatenatedProvider else cls)  # type: ignore[return-value]

    def __init__(
        self,
        graph: DecoderGraph,
        session: Any,
        batch_size: int,
        max_length: int,
        tolerance: float | None = None,
        changes: Changes = UNCHANGED,
        *,
        trees: bool = False,
    ) -> None:
        if trees:
            graph.refuse_trees()
        self.graph = graph
        self.batch_size = batch_size
        self.max_length = max_length
        self.batching = "one by one"
        self.why_not_padded = ""
        self.runs = Runs(session.get_providers()[0], changes=str(changes))
        self._session = session
        self.vocab_size, in_place = probe_graph(graph, session)
        # A graph that writes into the cache it reads writes columns of slots side by side, too.
        columns = columns_of(max_length) if trees else max_length
        self._caches = GrownCaches(graph.caches, batch_size, graph.cache_type, columns)
        self._buffers = Buffers()
        check_decoder(self, tolerance, changes)
        if in_place:
            self.batching = "in place"
            check_decoder(self, tolerance, changes)
        elif batch_size > 1 and "attention_mask" in graph.control:
            self.why_not_padded = check_padding(self, tolerance)
            self.batching = "one by one" if self.why_not_padded else "padded"
        if isinstance(self, _ConcatenatedTrees):
            check_trees(self, tolerance)

    @classmethod
    def open(
        cls,
        path: str | Path,
        batch_size: int = 1,
        max_length: int | None = None,
        threads: int | None = None,
        tolerance: float | None = None,
        *,
        widen: bool = False,
        trees: bool = False,
    ) -> ConcatenatedProvider:
        """A provider for an ONNX file, after checking on random tokens that it keeps the contract.

        Parameters
        ----------
        path
            The file, for instance ``onnx/model.onnx``; its external data must lie beside it.
        batch_size
            Rows to hold state for.
        max_length
            Positions to hold per row; default: what ``config.json`` or ``genai_config.json`` beside the graph says.
        threads
            Threads within an operator; None lets ONNX Runtime choose.
        tolerance
            Largest difference of logits, as a fraction of their standard deviation, between two ways to score the same tokens;
            at most 0.2. Default 1e-3, or 3e-2 with float16. Raising it accepts graphs that are only nearly causal, whose
            results are then only nearly lossless.
        widen
            Whether products whose activations are quantised per call, which no window can be lossless with, take floats instead.
            The weights stay what they are; the file is not changed. Needs the extra ``[export]``.
        trees
            Whether windows may be trees (`coupled_sampling.contracts.Trees`), for which the graph needs ``position_ids`` and an
            ``attention_mask`` of 4 axes.

        Raises
        ------
        BundleError
            The file is missing or no ONNX, its external data is missing, or its inputs and outputs are not such a decoder's, or not
            what trees need.
        InvalidArgument
            Another argument cannot work.
        ProviderError
            The graph does not keep the contract: the message says which part.
        MissingDependency
            ``onnxruntime`` is missing or too old; or ``onnx`` is missing, and the graph has to be rewritten.
        """
        check_count("batch_size", batch_size)
        check_opening(max_length, tolerance, widen)
        check_flag("trees", trees)
        file = check_path("path", path)
        if not file.is_file():
            raise BundleError(f"{file} is no file; give the path of an ONNX file, for instance folder/onnx/model.onnx")
        length = Configuration.beside(file).max_length(file, max_length)
        opened = DecoderFile(file, widen=widen, threads=threads).open(threads)
        return cls(opened.graph, opened.session, batch_size, length, tolerance, opened.changes, trees=trees)

    def forward(self, tokens: Integers, start: Integers) -> NDArray[np.float32]:
        """Score a window. See `coupled_sampling.contracts.LogitsProvider.forward`, whose bounds are checked.

        Returns
        -------
        ndarray
            float32 logits (B, W, V); the next call overwrites them.

        Raises
        ------
        InvalidArgument
            An argument is out of bounds; nothing was run and no state has changed.
        ProviderError
            ONNX Runtime failed, or the provider was closed.
        """
        self._refuse_if_closed()
        check_window(self, tokens, start)
        return self._forward(tokens, start, range(len(tokens)))

    def forward_rows(self, tokens: Integers, start: Integers, rows: range) -> NDArray[np.float32]:
        """Score a window of some rows. See `coupled_sampling.contracts.RowRanges.forward_rows`; raises what `forward` does."""
        self._refuse_if_closed()
        check_window(self, tokens, start)
        check_rows(self, tokens, rows)
        return self._forward(tokens, start, rows)

    def _forward(self, tokens: Integers, start: Integers, rows: range, tree: Tree | None = None) -> NDArray[np.float32]:
        self._caches.reserve(int(start.max()) + tokens.shape[1])
        logits = self._buffers.take("logits", (*tokens.shape, self.vocab_size), self.graph.logits_type)
        if self.batching == "padded":
            self._run(tokens, start, slice(rows.start, rows.stop), logits, tree)
        else:
            for i, row in enumerate(rows):
                one = slice(i, i + 1)
                own = None if tree is None else Tree(tree.parents[one], tree.depth[one], tree.sees[one])
                self._run(tokens[one], start[one], slice(row, row + 1), logits[one], own)
        return logits.astype(np.float32, copy=False)

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
        self._caches.copy(source, targets, length)

    def close(self) -> None:
        """Give back all memory; the provider cannot be used afterwards. Twice does no harm."""
        self._is_closed = True
        self._caches.clear()
        self._buffers.clear()
        self._session = None

    def _run(
        self, tokens: Integers, start: Integers, rows: slice, logits: NDArray[Any], tree: Tree | None = None
    ) -> None:
        """Forward the window of ``rows``, a range, in one call, and write its columns into their caches."""
        count, width = tokens.shape
        past = int(start.max())
        binding = self._session.io_binding()
        held = [bind(binding.bind_input, *feed) for feed in self._control(tokens, start, tree).items()]
        held.append(bind(binding.bind_output, "logits", logits))
        presents = []
        for cache, columns in zip(self.graph.caches, self._caches, strict=True):
            if self.batching == "in place":
                held.append(bind(binding.bind_input, cache.past, columns[rows]))
                held.append(bind(binding.bind_output, cache.present, columns[rows]))
                continue
            taken = self._buffers.take(cache.past, (count, cache.heads, past, cache.size), columns.dtype)
            for row, length in enumerate(start.tolist()):
                taken[row, :, : past - length] = 0
                taken[row, :, past - length :] = columns[rows.start + row, :, :length]
            grown = self._buffers.take(cache.present, (count, cache.heads, past + width, cache.size), columns.dtype)
            held.append(bind(binding.bind_input, cache.past, taken))
            presents.append(bind(binding.bind_output, cache.present, grown))
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:
            # Its exceptions share no base class but Exception.
            raise ProviderError(
                f"ONNX Runtime failed on a window of {count} rows and {width} slots: {in_one_line(error)}"
            ) from error
        kept = [width] * count if tree is None else tree.leading().tolist()
        for columns, grown in zip(self._caches, presents, strict=False):
            for row, length in enumerate(start.tolist()):
                columns[rows.start + row, :, length : length + kept[row]] = grown[row, :, past : past + kept[row]]

    def _control(self, tokens: Integers, start: Integers, tree: Tree | None) -> dict[str, NDArray[Any]]:
        """All inputs but the caches. Padding is at the left of a row's past."""
        width, past = tokens.shape[1], int(start.max())
        valid = np.arange(past + width) >= (past - start)[:, None]
        values: dict[str, NDArray[Any]] = {
            "input_ids": tokens,
            "attention_mask": self.graph.mask(valid, width, None if tree is None else tree.sees),
            "position_ids": start[:, None] + (np.arange(width) if tree is None else tree.depth),
            "use_cache_branch": np.array([past > 0]),
            "num_logits_to_keep": np.array(0),
        }
        return {name: np.ascontiguousarray(values[name], dtype) for name, dtype in self.graph.control.items()}


class _ConcatenatedTrees(ConcatenatedProvider):
    """A provider over a graph that is told what each slot of a window sees."""

    @property
    def max_columns(self) -> int:
        """See `coupled_sampling.contracts.Trees`."""
        return columns_of(self.max_length)

    def forward_tree(self, tokens: Integers, start: Integers, parents: Integers, rows: range) -> NDArray[np.float32]:
        """Score windows that are trees. See `coupled_sampling.contracts.Trees.forward_tree`; raises what `forward` does."""
        self._refuse_if_closed()
        check_tree_window(self, tokens, start, parents)
        check_rows(self, tokens, rows)
        return self._forward(tokens, start, rows, Tree.of(parents))

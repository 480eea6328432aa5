"""`EncoderDecoderProvider`: the decoder of a speech or translation model, as a logits provider on the CPU.

Such a model reads its input (sound, a text to translate) with an encoder, once. Its decoder is an ordinary autoregressive one that
besides looks at the encoder's output. Here that output comes with the request, as `coupled_sampling.Request.condition`:

    states = encoder.encode(features)                      # (S, D)
    Request([START], length=200, condition=states)

When a row begins a request, the decoder's keys and values of the encoder's output are computed, once. They depend on the request
alone. Windows, refused drafts and rollbacks write the decoder's own caches and nothing else. A row that begins another request
gets other ones, and rows with the same condition share them.

Every row is run by itself. These graphs have no mask for the decoder's own past, so rows of different lengths cannot be padded.
A row whose request could not begin is not run where others are, and has logits that are NaN: one request never stops another.

What it does not promise: that the graph computes the model, and anything about lengths at which a model changes how it encodes
positions. Nothing is checked beyond the first few positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.arguments import check_count, in_one_line
from coupled_sampling.backends.foreign.checks import UNCHANGED, check_opening
from coupled_sampling.backends.foreign.conditions import Reading, problem_of_condition
from coupled_sampling.backends.foreign.configuration import Configuration
from coupled_sampling.backends.foreign.encoder_decoder_checks import check_encoder_decoder
from coupled_sampling.backends.foreign.encoder_decoder_graph import EncoderDecoderGraph, find_graphs, read_graphs
from coupled_sampling.backends.foreign.grown_caches import Buffers, GrownCaches, bind
from coupled_sampling.backends.foreign.opening import open_foreign_session
from coupled_sampling.backends.foreign.rewriting import Changes
from coupled_sampling.bounds import check_fork, check_rows, check_window
from coupled_sampling.contracts import Integers, Runs
from coupled_sampling.errors import InvalidArgument, ProviderError
from coupled_sampling.fields import check_path
from coupled_sampling.refusals import missing_offers
from coupled_sampling.requests import Request
from coupled_sampling.running import Closing

__all__ = ["EncoderDecoderProvider"]


class EncoderDecoderProvider(Closing):
    """A `coupled_sampling.contracts.LogitsProvider` over the decoder of an encoder-decoder model. Make one with `open`.

    Attributes
    ----------
    vocab_size, batch_size, max_length
        As in the contract.
    graph
        What was read from the files.
    mask_stride
        How many entries of ``encoder_attention_mask`` stand for one of the encoder's states, as was found at opening.
    breaks
        Tokens behind which windows are cut in two, since the graph does not count them: M2M100's that fill up.
    runs
        What runs it.

    Notes
    -----
    A request's ``condition`` is its encoder's output: floating (S, D), for one input alone, without padding and without an axis
    for a batch. `coupled_sampling.backends.Encoder` computes it where the encoder's graph lies beside. Without a condition a
    request is refused before anything runs.

    An interrupted or failed call leaves nothing to repair: it may have written state for its own window only. One provider
    must not be called from two threads at once.

    Examples
    --------
    A bundle's graph is none of these, and is refused:

    >>> from coupled_sampling import open_bundle
    >>> from coupled_sampling.backends import EncoderDecoderProvider
    >>> EncoderDecoderProvider.open(open_bundle("fashion").window_graph, max_length=64)
    Traceback (most recent call last):
    coupled_sampling.errors.BundleError: ...

    Two utterances over one row, by a model that was exported before (not run here, since it has to be exported first):

    >>> from coupled_sampling.backends import Encoder  # doctest: +SKIP
    >>> encoder = Encoder.open("whisper-tiny/onnx/encoder_model.onnx")  # doctest: +SKIP
    >>> model = EncoderDecoderProvider.open("whisper-tiny", batch_size=1)  # doctest: +SKIP
    >>> decoder = Decoder(model, method="scd-match", window=8)  # doctest: +SKIP
    >>> for features in (first, second):  # doctest: +SKIP
    ...     decoder.add(Request([50258], length=200, stop=[50257], condition=encoder.encode(features)))
    """

    def __init__(
        self,
        graph: EncoderDecoderGraph,
        sessions: tuple[Any, Any],
        batch_size: int,
        max_length: int,
        tolerance: float | None = None,
        changes: Changes = UNCHANGED,
    ) -> None:
        self.graph = graph
        self.batch_size = batch_size
        self.max_length = max_length
        self._first, self._next = sessions
        self.runs = Runs(self._next.get_providers()[0], changes=str(changes))
        self._read: list[Reading | None] = [None] * batch_size
        self._failed: set[int] = set()
        """Rows whose last request could not begin."""
        self._caches = GrownCaches(graph.caches, batch_size, graph.cache_type, max_length)
        self._buffers = Buffers()
        self.mask_stride, self.vocab_size = 1, 1
        self.breaks: tuple[int, ...] = ()
        check_encoder_decoder(self, tolerance, changes)
        self._read = [None] * batch_size

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
    ) -> EncoderDecoderProvider:
        """A provider for an exported decoder, after checking on random tokens that it keeps the contract.

        Parameters
        ----------
        path
            The folder of an export by Optimum or transformers.js, or the decoder in it: ``decoder_model_merged.onnx``, or either
            of ``decoder_model.onnx`` and ``decoder_with_past_model.onnx``, which must lie side by side, as must external data.
        batch_size
            Rows to hold state for: requests that are decoded at the same time.
        max_length
            Positions to hold per row; default: what ``config.json`` beside the graph or one folder up says.
        threads
            Threads within an operator; None lets ONNX Runtime choose.
        tolerance
            Largest difference of logits, as a fraction of their standard deviation, between two ways to score the same tokens;
            at most 0.2. Default 1e-3, or 3e-2 with float16. Raising it accepts graphs that are only nearly causal, whose
            results are then only nearly lossless.
        widen
            Whether products whose activations are quantised per call, which no window can be lossless with, take floats instead.
            The weights stay what they are; the files are not changed. Needs the extra ``[export]``.

        Raises
        ------
        BundleError
            A file is missing or no ONNX, its external data is missing, or its inputs and outputs are not such a decoder's.
        InvalidArgument
            Another argument cannot work.
        ProviderError
            The graph does not keep the contract: the message says which part.
        MissingDependency
            ``onnxruntime`` is missing or too old; or ``onnx`` is missing, and the graph has to be rewritten.
        """
        check_count("batch_size", batch_size)
        check_opening(max_length, tolerance, widen)
        files = find_graphs(check_path("path", path))
        length = Configuration.beside(files.next).max_length(files.next, max_length)
        following, changes = open_foreign_session(files.next, threads, widening=widen)
        first = following
        if files.first != files.next:
            first, _ = open_foreign_session(files.first, threads, widening=widen)
        return cls(read_graphs(files, first, following), (first, following), batch_size, length, tolerance, changes)

    def takes(self, request: Request) -> str | None:
        """Why ``request`` cannot be decoded. See `coupled_sampling.contracts.Selective.takes`."""
        return missing_offers(self, request) or problem_of_condition(request.condition, self.graph.states)

    def begin(self, row: int, request: Request) -> None:
        """Row ``row`` starts ``request``: read its encoder's output. See `coupled_sampling.contracts.RequestObserver.begin`.

        Raises
        ------
        InvalidArgument
            ``row`` is none, or the request has no condition, or one that cannot be read.
        ProviderError
            ONNX Runtime failed on it, or the provider was closed.
        """
        self._refuse_if_closed()
        if isinstance(row, bool) or not isinstance(row, int | np.integer) or not 0 <= row < self.batch_size:
            raise InvalidArgument(f"row is {row!r}, expected a row from 0 to {self.batch_size - 1}")
        self._read[row] = None  # whatever happens next, the last request's is not used again
        self._failed.add(int(row))
        problem = problem_of_condition(request.condition, self.graph.states)
        if problem is not None:
            raise InvalidArgument(f"request {problem}")
        with np.errstate(over="ignore"):
            states = np.array(request.condition, self.states_type)[None]
        if not np.isfinite(states).all():
            raise InvalidArgument(
                f"request has a condition with numbers that {self.states_type} cannot hold; encode it in that type"
            )
        self._read[row] = self._shared(states) or self._reading(states)
        self._failed.discard(int(row))

    @property
    def states_type(self) -> np.dtype[Any]:
        """The type in which the graph takes an encoder's output."""
        return self.graph.first_control["encoder_hidden_states"]

    def _shared(self, states: NDArray[Any]) -> Reading | None:
        """What another row has read of the same ``states``, such as a sample of the same request."""
        for read in self._read:
            if read is not None and read.states.shape == states.shape and np.array_equal(read.states, states):
                return read
        return None

    def _reading(self, states: NDArray[Any]) -> Reading:
        """Keys and values of ``states`` (1, S, D), all of which are looked at."""
        mask = np.ones((1, states.shape[1] * self.mask_stride), np.int64)
        _, *caches = self.read_first(states, mask)
        return Reading(states, mask, tuple(caches))

    def read_first(self, states: NDArray[Any], mask: NDArray[np.int64]) -> list[NDArray[Any]]:
        """Logits (1, 2, V) of two tokens and the encoder's caches, by the graph that reads ``states`` (1, S, D).

        Raises
        ------
        ProviderError
            ONNX Runtime failed.
        """
        tokens = np.zeros((1, 2), np.int64)
        feeds = self._control(self.graph.first_control, tokens, 0, Reading(states, mask, ()), goes_on=False)
        for cache in self.graph.first_caches:
            feeds[cache.past] = np.zeros((1, cache.heads, 0, cache.size), self.graph.cache_type)
        try:
            found: list[NDArray[Any]] = self._first.run(
                ["logits", *(cache.present for cache in self.graph.encoder_caches)], feeds
            )
        except Exception as error:
            # Its exceptions share no base class but Exception.
            raise ProviderError(
                f"ONNX Runtime failed on an encoder's output of {states.shape[1]} states: {in_one_line(error)}"
            ) from error
        return found

    def forward(self, tokens: Integers, start: Integers) -> NDArray[np.float32]:
        """Score a window. See `coupled_sampling.contracts.LogitsProvider.forward`, whose bounds are checked.

        Returns
        -------
        ndarray
            float32 logits (B, W, V); the next call overwrites them.

        Raises
        ------
        InvalidArgument
            An argument is out of bounds, or a row has begun no request; nothing was run and no state has changed.
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

    def _forward(self, tokens: Integers, start: Integers, rows: range) -> NDArray[np.float32]:
        read = [self._read[row] for row in rows]
        idle = self._failed if any(reading is not None for reading in read) else ()
        missing = [row for row, reading in zip(rows, read, strict=True) if reading is None and row not in idle]
        if missing:
            raise InvalidArgument(
                f"row {missing[0]} has begun no request, expected begin(row, request) before its first window: its "
                "condition is the encoder's output"
            )
        self._caches.reserve(int(start.max()) + tokens.shape[1])
        logits = self._buffers.take("logits", (*tokens.shape, self.vocab_size), self.graph.logits_type)
        for i, (row, reading) in enumerate(zip(rows, read, strict=True)):
            if reading is None:
                logits[i] = np.nan
                continue
            first, width = int(start[i]), tokens.shape[1]
            ends = [j + 1 for j, token in enumerate(tokens[i].tolist()) if token in self.breaks and j + 1 < width]
            for begin, end in pairwise([0, *ends, width]):
                part = slice(begin, end)
                self._run(tokens[i : i + 1, part], first + begin, row, reading, logits[i : i + 1, part])
        return logits.astype(np.float32, copy=False)

    @property
    def forks(self) -> bool:
        """See `coupled_sampling.contracts.Forks`."""
        return not self._is_closed

    def fork(self, source: int, targets: Sequence[int], length: int) -> None:
        """Copy the state of a row, its encoder's output included. See `coupled_sampling.contracts.Forks.fork`.

        Raises
        ------
        InvalidArgument
            A row or the length is out of bounds.
        ProviderError
            The provider was closed.
        """
        self._refuse_if_closed()
        check_fork(self, source, targets, length)
        for target in targets:
            self._read[target] = self._read[source]
            self._failed.discard(target)
        self._caches.copy(source, targets, length)

    def close(self) -> None:
        """Give back all memory; the provider cannot be used afterwards. Twice does no harm."""
        self._is_closed = True
        self._read = [None] * self.batch_size
        self._caches.clear()
        self._buffers.clear()
        self._first = self._next = None

    def _run(self, tokens: Integers, past: int, row: int, read: Reading, logits: NDArray[Any]) -> None:
        """Forward the window (1, W) of ``row`` and write its columns into the row's caches."""
        width = tokens.shape[1]
        binding = self._next.io_binding()
        feeds = self._control(self.graph.control, tokens, past, read, goes_on=True)
        feeds |= {cache.past: held for cache, held in zip(self.graph.encoder_caches, read.caches, strict=True)}
        held = [bind(binding.bind_input, *feed) for feed in feeds.items()]
        held.append(bind(binding.bind_output, "logits", logits))
        presents = []
        for cache, columns in zip(self.graph.caches, self._caches, strict=True):
            taken = self._buffers.take(cache.past, (1, cache.heads, past, cache.size), columns.dtype)
            taken[0] = columns[row, :, :past]
            held.append(bind(binding.bind_input, cache.past, taken))
            grown = self._buffers.take(cache.present, (1, cache.heads, past + width, cache.size), columns.dtype)
            presents.append(bind(binding.bind_output, cache.present, grown))
        try:
            self._next.run_with_iobinding(binding)
        except Exception as error:
            # Its exceptions share no base class but Exception.
            raise ProviderError(f"ONNX Runtime failed on a window of {width} slots: {in_one_line(error)}") from error
        for columns, grown in zip(self._caches, presents, strict=True):
            columns[row, :, past : past + width] = grown[0, :, past:]

    def _control(
        self, wanted: Any, tokens: Integers, past: int, read: Reading, goes_on: bool
    ) -> dict[str, NDArray[Any]]:
        """All inputs but the caches that a graph wants; ``goes_on`` chooses a merged one's branch."""
        width = tokens.shape[1]
        values: dict[str, NDArray[Any]] = {
            "input_ids": tokens,
            "encoder_hidden_states": read.states,
            "encoder_attention_mask": read.mask,
            "decoder_attention_mask": np.ones((1, past + width)),
            "cache_position": past + np.arange(width),
            "position_ids": past + np.arange(width)[None],
            "use_cache_branch": np.array([goes_on]),
        }
        return {name: np.ascontiguousarray(values[name], dtype) for name, dtype in wanted.items()}

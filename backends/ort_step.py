"""`OrtStep`: a step graph as a coupled step, run by ONNX Runtime on the CPU.

One call per step: tokens and counts out, O(B * W) numbers, and in besides them only the race noise of newly entered
positions (V float32 each; about as many per step as tokens are committed). Caches and the noise ring are bound in place.
Draft laws alternate between two buffers, so that a step whose outcome was lost on the way to the loop (Ctrl-C) finds
the laws of the round before untouched and can be done again. After the widest window has been seen nothing large is
allocated any more.

Draws come from the frozen layout of `coupled_sampling.noise`, so that tokens are those of `HostStep` at the same seed, save
where two floats tie.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.backends.ort import KV_STEP
from coupled_sampling.backends.ort_step_checks import check_against_bundle, step_graph_facts
from coupled_sampling.backends.ort_step_state import (
    TYPES,
    AlternatingLaws,
    Buffer,
    HeldLaws,
    HeldNoise,
    NoiseRing,
)
from coupled_sampling.backends.session import open_session
from coupled_sampling.bounds import check_positive, check_window
from coupled_sampling.bundle import Bundle, open_bundle
from coupled_sampling.contracts import Integers, Outcome, Window
from coupled_sampling.errors import BundleError, InvalidArgument, ProviderError
from coupled_sampling.guidance import GuidedRows, PairedWindow
from coupled_sampling.methods import Method, find_method
from coupled_sampling.noise import CounterNoise, race_weights, uniforms
from coupled_sampling.target import refuse_unusable

__all__ = ["OrtStep"]


class OrtStep:
    """A `coupled_sampling.contracts.CoupledStep` over a step graph. Make one with `open` or `open_graph`.

    Attributes
    ----------
    method, vocab_size, batch_size, max_length, max_window
        As in the contract.
    noise
        The noise it draws from, as far as the loop and drafting rules are concerned.

    Notes
    -----
    Laws carried by fresh drafts (draft models) and logits processors are refused: they would have to enter the graph.
    """

    def __init__(
        self,
        session: Any,
        batch_size: int = 1,
        max_window: int | None = None,
        *,
        guidance: float | None = None,
        unconditional: Sequence[int] | Callable[[Integers], Sequence[int]] | None = None,
    ) -> None:
        check_positive("batch_size", batch_size)
        facts = step_graph_facts(session)
        self.method = facts.method
        self.vocab_size = facts.vocab_size
        self.batch_size = batch_size
        self.max_length = facts.max_length
        self.noise = CounterNoise()
        self._guided = None
        if facts.guided != (guidance is not None and unconditional is not None):
            raise InvalidArgument(
                f"guidance is {guidance} and unconditional {unconditional}, the step graph is "
                f"{'guided and needs both' if facts.guided else 'not guided and takes neither'}"
            )
        if guidance is not None and unconditional is not None:
            if not np.isfinite(guidance):
                raise InvalidArgument(f"guidance is {guidance}, expected a finite number")
            self._guided = GuidedRows(unconditional, batch_size, self.vocab_size, self.max_length)
            self._guidance, self.max_length = guidance, self._guided.max_length
        self.max_window = min(max_window or self.max_length, self.max_length)
        self._warped = facts.warped
        self._session = session
        self._inputs = {value.name: value for value in session.get_inputs()}
        self._outputs = {value.name: value for value in session.get_outputs()}
        self._model_rows = 1 if self._guided is None else 2
        self._caches = {
            name: np.zeros((self._model_rows * batch_size, *value.shape[1:]), TYPES[value.type])
            for name, value in self._inputs.items()
            if name.startswith("past_key_values.")
        }
        self._buffers = {
            value.name: Buffer(TYPES[value.type])
            for value in (*self._inputs.values(), *self._outputs.values())
            if value.name not in self._caches
        }
        self._laws = AlternatingLaws(self.vocab_size)
        self._source = 0
        self._ring = NoiseRing(batch_size, self.vocab_size)
        self._candidates = 1024
        self._binding = session.io_binding()
        self._bound: dict[str, tuple[tuple[int, ...], int]] = {}
        self._rows_bound = 0

    @classmethod
    def open(
        cls,
        bundle: Bundle | str | Path,
        method: str | Method,
        batch_size: int = 1,
        threads: int | None = None,
        *,
        warped: bool = False,
        guidance: float = 1.0,
    ) -> OrtStep:
        """A step for a bundle that has step graphs.

        Parameters
        ----------
        bundle
            A `Bundle`, or what `coupled_sampling.open_bundle` takes.
        method
            Decoding method.
        batch_size
            Rows to hold state for; guidance holds two of the model's for each.
        threads
            Threads within an operator; None lets ONNX Runtime choose.
        warped
            Whether rows may have top-k, top-p and min-p. It costs a sort of the largest logits in every step.
        guidance
            Guidance scale, with the bundle's unconditional prompt; 1 is none.

        Raises
        ------
        BundleError
            The bundle cannot be opened or has no such graph, or the graph is not what the manifest promises.
        InvalidArgument
            ``batch_size`` or ``threads`` is no positive integer, or there is no such method.
        MissingDependency
            ``onnxruntime`` is missing or too old.
        """
        check_positive("batch_size", batch_size)
        opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
        chosen, manifest = find_method(method), opened.manifest
        guided = guidance != 1
        graph = opened.step_graph(chosen.name, warped=warped, guided=guided)
        if graph is None:
            kinds = [f"{g.method}{' warped' * g.warped}{' guided' * g.guided}" for g in manifest.step_graphs]
            raise BundleError(
                f"the bundle {manifest.name} has no step graph for {chosen.name}{' warped' * warped}{' guided' * guided}, it "
                f"has {', '.join(kinds) or 'none'}; add it with `coupled-sampling step-graphs` or use HostStep"
            )
        session = open_session(graph, threads)
        record = next(g for g in manifest.step_graphs if g.file == graph.name)
        check_against_bundle(session, step_graph_facts(session, str(graph)), opened, record, str(graph))
        return cls(
            session,
            batch_size,
            manifest.window_graph.max_window,
            guidance=guidance if guided else None,
            unconditional=manifest.unconditional_prompt if guided else None,
        )

    @classmethod
    def open_graph(
        cls,
        graph: str | Path,
        batch_size: int = 1,
        threads: int | None = None,
        max_window: int | None = None,
        *,
        guidance: float | None = None,
        unconditional: Sequence[int] | Callable[[Integers], Sequence[int]] | None = None,
    ) -> OrtStep:
        """A step for a step graph's file.

        Parameters
        ----------
        graph
            Path of a file that `coupled_sampling.export.step_graph` made.
        batch_size, threads
            As in `open`.
        max_window
            Most slots of a window; None allows all of the model's positions.
        guidance, unconditional
            For a guided graph, both: the scale, and the unconditional prompt or a function from a row's prompt to it.

        Raises
        ------
        BundleError
            The file cannot be loaded or is no step graph.
        InvalidArgument
            ``batch_size`` or ``threads`` is no positive integer, or guidance does not go with the graph.
        MissingDependency
            ``onnxruntime`` is missing or too old.
        """
        check_positive("batch_size", batch_size)
        session = open_session(Path(graph), threads)
        return cls(session, batch_size, max_window, guidance=guidance, unconditional=unconditional)

    def begin(self, row: int, prompt: Integers) -> None:
        """Forget what ``row`` held; with guidance, its unconditional prompt is chosen here."""
        self._laws.forget(row)
        if self._guided is not None:
            self._guided.begin(row, prompt)
        self._ring.held.pop(row, None)

    def step(self, window: Window) -> Outcome:
        """Forward ``window`` and decide it. See `coupled_sampling.contracts.CoupledStep.step`.

        Raises
        ------
        InvalidArgument
            The window is out of bounds or asks for what the graph cannot do; nothing was run.
        InvalidLogits
            A wanted logit is NaN or +inf, or all of a slot's are -inf.
        ProviderError
            ONNX Runtime failed.
        """
        self._check(window)
        rows, width = window.tokens.shape
        # Refuses what does not fit, before anything is written.
        paired = None if self._guided is None else self._guided.paired(window.tokens, window.start)
        if self._is_rejection:
            self._feed_laws(window)
        self._feed(window)
        entered = self._feed_noise(window) if "noise" in self._inputs else {}
        if self._guided is not None and paired is not None:
            self._feed_pairs(self._guided, paired, window.draws)
        valid = self._valid(window)
        while True:
            self._run(rows, width)
            if not self._warped or not (self._out("nucleus_short", rows, width) & valid).any():
                break
            self._candidates = min(4 * self._candidates, self.vocab_size)
            self._feed_candidates(window)
        positions = window.start[:, None] + np.arange(width) + 1
        refuse_unusable(self._out("highest_logits", rows, width), positions, valid)
        self._ring.held.update(entered)
        if self._is_rejection:
            for b in range(rows):
                begun = int(window.start[b])
                first, end = begun + int(window.known[b]), begun + int(self._end(window)[b]) + 1
                self._laws.held[1 - self._source][b] = HeldLaws(int(window.round[b]), begun, first, end)
            self._laws.shapes[1 - self._source] = (rows, width)
        return Outcome(self._out("tokens", rows, width).copy(), self._out("committed", rows).copy())

    @property
    def _is_rejection(self) -> bool:
        return self.method.acceptance == "rejection"

    @staticmethod
    def _end(window: Window) -> Integers:
        """(B,) slots that are not padding."""
        return window.known + window.recycled + window.fresh

    def _valid(self, window: Window) -> NDArray[np.bool_]:
        slot = np.arange(window.tokens.shape[1])
        begun = window.draws[:, None] & (slot >= window.known[:, None] - 1)
        return begun & (slot < self._end(window)[:, None])

    def _out(self, name: str, *shape: int) -> NDArray[Any]:
        return self._buffers[name].shaped(*shape)

    def _put(self, name: str, values: Any, *shape: int) -> None:
        """Copy ``values`` into the memory bound as the input ``name``."""
        buffer = self._buffers[name].shaped(*shape)
        buffer[...] = values
        self._bind(name, buffer)

    def _bind(self, name: str, buffer: NDArray[Any]) -> None:
        """Bind ``buffer`` unless it is bound already."""
        key = (buffer.shape, buffer.ctypes.data)
        if self._bound.get(name) != key:
            bind = self._binding.bind_input if name in self._inputs else self._binding.bind_output
            bind(name, "cpu", 0, buffer.dtype.type, buffer.shape, buffer.ctypes.data)
            self._bound[name] = key

    def _feed_tokens(self, tokens: Integers, start: Integers) -> None:
        """What the window graph inside reads: of a guided graph, two rows for each."""
        self._put("input_ids", tokens, *tokens.shape)
        self._put("start", start, len(start))
        if "kv_length" in self._inputs:
            columns = next(iter(self._caches.values())).shape[2]
            needed = int(start.max()) + tokens.shape[1]
            self._put("kv_length", min(-(-needed // KV_STEP) * KV_STEP, columns), 1)

    def _feed_pairs(self, guided: GuidedRows, paired: PairedWindow, draws: NDArray[np.bool_]) -> None:
        """Forward what unconditional prompts have before the rows' own, then feed the window of both rows.

        Everything else is fed already: it does no harm, since a call that draws nothing writes only what the next one does.
        """
        rows, width = len(draws), paired.tokens.shape[1]
        self._put("guidance", self._guidance, rows)
        self._put("guidance_lag", paired.lag, rows)
        for tokens, start in guided.openings(paired):
            self._put("draws", False, rows)
            self._feed_tokens(tokens, start)
            self._run(rows, width)
        self._put("draws", draws, rows)
        self._feed_tokens(paired.tokens, paired.start)

    def _feed(self, window: Window) -> None:
        rows, _ = window.tokens.shape
        if self._guided is None:
            self._feed_tokens(window.tokens, window.start)
        for name in ("known", "recycled", "fresh", "draws"):
            self._put(name, getattr(window, name), rows)
        if rows != self._rows_bound:
            for name, cache in self._caches.items():
                self._bind(name, cache[: self._model_rows * rows])
                self._bind(name.replace("past_key_values", "present"), cache[: self._model_rows * rows])
            self._rows_bound = rows
        self._put("temperature", [1.0 if info is None else info.sampling.temperature for info in window.rows], rows)
        if self._warped:
            settings = [None if info is None else info.sampling for info in window.rows]
            top_k = [0 if s is None or s.top_k is None or s.top_k >= self.vocab_size else s.top_k for s in settings]
            self._put("top_k", top_k, rows)
            self._put("top_p", [1.0 if s is None else s.top_p for s in settings], rows)
            self._put("min_p", [0.0 if s is None else s.min_p for s in settings], rows)
            self._feed_candidates(window)

    def _feed_candidates(self, window: Window) -> None:
        """As many candidates as the widest top-k; more where top-p alone decides."""
        count = 1
        for info in window.rows:
            if info is not None:
                top_k = info.sampling.top_k
                limited = top_k is not None and top_k < self.vocab_size
                count = max(count, top_k if limited and top_k else self._candidates if info.sampling.top_p < 1 else 1)
        self._put("candidates", min(count, self.vocab_size), 1)

    def _feed_laws(self, window: Window) -> None:
        """Uniforms, the laws of the round before, and room for this round's."""
        rows, width = window.tokens.shape
        drawn = self._buffers["uniforms"].shaped(rows, width, 3)
        for b, info in enumerate(window.rows):
            if info is not None and window.draws[b]:
                first = int(window.start[b]) + 1
                drawn[b] = uniforms(info.seed, info.sequence, int(window.round[b]), first, width)[:, :3]
        self._bind("uniforms", drawn)
        self._source = source = self._laws.source(window)
        held = self._laws.held[source]
        begun = [held[b].start if b in held else 0 for b in range(rows)]
        self._put("draft_laws_start", begun, rows)
        before, after = self._laws.buffers[source], self._laws.buffers[1 - source]
        self._bind("draft_laws", before.shaped(rows, self._laws.shapes[source][1], self.vocab_size))
        self._bind("laws", after.shaped(rows, width, self.vocab_size))

    def _feed_noise(self, window: Window) -> dict[int, HeldNoise]:
        """The race noise of newly entered positions; returns what the rows hold once the graph has run."""
        rows = len(window.tokens)
        if self.method.acceptance == "none":
            noise = self._buffers["noise"].shaped(rows, 1, self.vocab_size)
            for b, info in enumerate(window.rows):
                if info is not None and window.draws[b]:
                    position = int(window.start[b] + window.known[b])
                    noise[b, 0] = race_weights(info.seed, info.sequence, position, self.vocab_size)
            self._bind("noise", noise)
            return {}
        missing, entered = self._ring.missing(window)
        most = max(1, *(end - first for first, end in missing))
        noise = self._buffers["noise"].shaped(rows, most, self.vocab_size)
        for b, info in enumerate(window.rows):
            for i, position in enumerate(range(*missing[b])):
                if info is not None:
                    noise[b, i] = race_weights(info.seed, info.sequence, position, self.vocab_size)
        self._bind("noise", noise)
        self._put("noise_start", [first for first, _ in missing], rows)
        self._bind("past_noise", self._ring.memory[:rows])
        self._bind("present_noise", self._ring.memory[:rows])
        return entered

    def _run(self, rows: int, width: int) -> None:
        for name, shape in (("tokens", (rows, width)), ("committed", (rows,)), ("highest_logits", (rows, width))):
            self._bind(name, self._out(name, *shape))
        if self._warped:
            self._bind("nucleus_short", self._out("nucleus_short", rows, width))
        try:
            self._session.run_with_iobinding(self._binding)
        except Exception as error:
            # Its exceptions share no base class but Exception.
            raise ProviderError(f"ONNX Runtime failed on a window of {rows} rows and {width} slots: {error}") from error

    def _check(self, window: Window) -> None:
        check_window(self, window.tokens, window.start)
        if self._is_rejection and any(laws is not None for laws in window.fresh_laws):
            raise InvalidArgument(
                "window.fresh_laws carry laws, a step graph takes point masses; use HostStep for them"
            )
        for b, info in enumerate(window.rows):
            if info is None:
                continue
            sampling = info.sampling
            if sampling.processors or (sampling.warps and not self._warped):
                raise InvalidArgument(
                    f"row {b} asks for {sampling}, which this step graph does not have; processors need HostStep, top-k, top-p "
                    "and min-p a step graph written with warped=True"
                )

"""`OrtStep`: a step graph as a coupled step, run by ONNX Runtime.

One call per step: tokens and counts out, O(B * W) numbers, and in besides them only the race noise of newly entered
positions (V float32 each; about as many per step as tokens are committed). Caches and the noise ring are bound in place.
Draft laws alternate between two buffers, see `coupled_sampling.law_book`, so that a step whose outcome was lost on the way
to the loop (Ctrl-C) can be done again. After the widest window has been seen nothing large is allocated any more.

Idle rows are not run: a step is a call for each run of rows in use, which binds their part of what is kept. Prompts are read in
calls of their own, which decide nothing. The graph makes laws for all slots of a chunk all the same, so a call has few rows.

Where it runs is its binding's affair (`coupled_sampling.backends.ort.binding`). **On a GPU, where this was never run**, caches,
draft laws and the noise ring lie in device memory. What crosses in a call: at most 61 bytes for each of the B * W slots, 98 for
each row and 16 besides (tokens, starts, counts, settings, uniforms; back come tokens, counts and largest logits), and the race
noise of newly entered positions, 4 V bytes each, to the GPU. All rows send as many positions as the one with the most of them, at
least one; what is not new is padding. Besides, zeros cross when a window is wider than all before it, and laws after an
interruption in the middle of the loop's own bookkeeping. A window that would be written past a cache's end is refused beforehand:
on CUDA TensorScatter moves it to the last columns without an error.

Draws come from the frozen layout of `coupled_sampling.noise`, so that tokens are those of `HostStep` at the same seed, save
where two floats tie.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.arguments import check_count, in_one_line
from coupled_sampling.backends.ort.binding import TYPES, HostBinding
from coupled_sampling.backends.ort.row_caches import CacheTensor, RowCaches
from coupled_sampling.backends.ort.step_checks import check_corrections, check_guidance, refusals_of, step_graph_facts
from coupled_sampling.backends.ort.step_corrections import CorrectionTables
from coupled_sampling.backends.ort.step_inputs import known_tokens
from coupled_sampling.backends.ort.step_state import AlternatingLaws, HeldNoise, NoiseRing
from coupled_sampling.backends.ort.step_tensors import StepTensors
from coupled_sampling.backends.ort.step_trees import asking_slots, outcome_of_tree, refused_branches
from coupled_sampling.bounds import check_fork, check_rows, check_tree_window, check_window
from coupled_sampling.bundles.records import default_chunk
from coupled_sampling.contracts import Integers, Outcome, Runs, Window
from coupled_sampling.corrections import LowRank
from coupled_sampling.errors import InvalidArgument, ProviderError
from coupled_sampling.guided_rows import GuidedRows, PairedWindow, Scale
from coupled_sampling.noise import CounterNoise
from coupled_sampling.requests import Request
from coupled_sampling.running import Closing
from coupled_sampling.target import close_rows

__all__ = ["OrtStep"]


class OrtStep(Closing):
    """A `coupled_sampling.contracts.CoupledStep` over a step graph.

    `coupled_sampling.backends.open_model` makes one of a bundle's graph; this one takes a graph that lies anywhere.

    Parameters
    ----------
    session
        An ``onnxruntime.InferenceSession`` of a graph that `coupled_sampling.export.step_graph` made.
    batch_size
        Rows to hold state for; guidance holds two of the model's for each.
    max_window
        Most slots of a window; None allows all of the model's positions.
    guidance, unconditional
        For a guided graph, both: the scale, which may change with the position where each slot of the graph has its own, and the
        unconditional prompt or a function from a row's prompt to it.
    binding
        Where its tensors lie; None is the CPU.
    prompt_chunk
        Most tokens of a prompt to read in one call; None is 256, or fewer by ``max_window`` or for a large vocabulary.
    corrections
        For a corrected graph: what predicts laws under changed neighbours.

    Attributes
    ----------
    method, vocab_size, batch_size, max_length, max_window, prompt_chunk
        As in the contract.
    noise
        The noise it draws from, as far as the loop and drafting rules are concerned.
    binding, runs
        Where its tensors lie, and what runs it.
    corrections
        What predicts laws under changed neighbours; None if nothing does.

    Raises
    ------
    BundleError
        The session's graph is no step graph.
    InvalidArgument
        ``batch_size`` is no positive integer, or guidance or corrections do not go with the graph.

    Notes
    -----
    Laws carried by fresh drafts (draft models) and logits processors are refused: they would have to enter the graph.

    Examples
    --------
    >>> import onnxruntime
    >>> from coupled_sampling import generate, open_bundle
    >>> from coupled_sampling.backends import OrtStep
    >>> graph = open_bundle("fashion").step_graph("scd-match")
    >>> session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    >>> with OrtStep(session) as step:
    ...     print(step.runs, len(generate(step, [[258]], length=8, window=4).tokens[0]))
    on CPUExecutionProvider, step: graph 8
    """

    def __init__(
        self,
        session: Any,
        batch_size: int = 1,
        max_window: int | None = None,
        *,
        guidance: Scale | None = None,
        unconditional: Sequence[int] | Callable[[Integers], Sequence[int]] | None = None,
        binding: HostBinding | None = None,
        prompt_chunk: int | None = None,
        corrections: LowRank | None = None,
    ) -> None:
        check_count("batch_size", batch_size)
        if prompt_chunk is not None:
            check_count("prompt_chunk", prompt_chunk)
        facts = step_graph_facts(session)
        self.method, self._is_rejection = facts.method, facts.method.acceptance == "rejection"
        self.vocab_size = facts.vocab_size
        self.batch_size = batch_size
        self.max_length = facts.max_length
        self.noise = CounterNoise()
        self._guided = None
        check_guidance(facts, guidance, unconditional)
        check_corrections(facts, corrections)
        self.corrections = corrections
        if guidance is not None and unconditional is not None:
            self._guided = GuidedRows(unconditional, batch_size, self.vocab_size, self.max_length, guidance)
            self.max_length = self._guided.max_length
        self.max_window = min(max_window or self.max_length, self.max_length)
        self.prompt_chunk = min(prompt_chunk or default_chunk(self.vocab_size, self.max_window), self.max_window)
        self._warped, self._slot_scales = facts.warped, facts.slot_scales
        self._refusals = refusals_of(facts)
        self._model_rows = 1 if self._guided is None else 2
        self.binding = HostBinding(session) if binding is None else binding
        self.runs = Runs(session.get_providers()[0], self.binding.device, step="graph").corrected_by(corrections)
        past = [value for value in session.get_inputs() if value.name.startswith("past_key_values.")]
        tensors = {
            x.name: CacheTensor(x.name.replace("past_key_values", "present"), tuple(x.shape[1:]), TYPES[x.type])
            for x in past
        }
        self.max_columns = next(iter(tensors.values())).shape[1]
        self._tree = facts.tree
        self.refuses_branches = refused_branches(facts.method, facts.tree)
        self._caches = RowCaches(self.binding, tensors, self._model_rows * batch_size)
        self._tensors = StepTensors(session, facts, self.binding, self.max_columns)
        self._laws = AlternatingLaws(self.binding, batch_size, self.vocab_size)
        self._ring = NoiseRing(self.binding, batch_size, self.vocab_size)
        self._tables = None if corrections is None else CorrectionTables(self.binding, corrections, self.vocab_size)

    def close(self) -> None:
        """Give back all memory, on the GPU too; the step cannot be used afterwards. Twice does no harm."""
        self._is_closed = True
        for name in ("binding", "_caches", "_tensors", "_laws", "_ring", "_tables"):
            vars(self).pop(name, None)

    def takes(self, request: Request) -> str | None:
        """What the graph cannot do. See `coupled_sampling.contracts.CoupledStep.takes`."""
        reason = self._refusals.takes(request)
        if reason is None and self._guided is not None:
            return self._guided.takes(request, constant_for=None if self._slot_scales else "this step graph")
        return reason

    @property
    def refuses_laws(self) -> str | None:
        """Why drafts that carry laws cannot be tested. See `coupled_sampling.contracts.PointMassesOnly`."""
        return self._refusals.refuses_laws

    def begin(self, row: int, request: Request) -> None:
        """Forget what ``row`` held; with guidance, its unconditional prompt is chosen here."""
        self._refuse_if_closed()
        self._laws.forget(row)
        if self._guided is not None:
            self._guided.begin(row, request)
        self._ring.held.pop(row, None)

    def step(self, window: Window) -> Outcome:
        """Forward ``window`` and decide it. See `coupled_sampling.contracts.CoupledStep.step`.

        Raises
        ------
        InvalidArgument
            The window is out of bounds or asks for what the graph cannot do; nothing was run.
        ProviderError
            ONNX Runtime failed, or the step was closed.
        """
        self._refuse_if_closed()
        self._check(window)
        rows, width = window.tokens.shape
        parts = [window.part(rows) for rows in window.busy_parts()]
        if not parts:
            return Outcome(np.zeros((rows, width), np.int64), np.zeros(rows, np.int64))
        pairs = [self._paired(part) for part in parts]  # refuses what does not fit, before anything is written
        source = self._laws.source(window) if self._is_rejection else 0
        positions, entered = self._noise_positions(window)
        made: dict[str, NDArray[Any]] = {}
        for part, paired in zip(parts, pairs, strict=True):
            at = slice(part.first_row, part.first_row + len(part.start))
            for name, values in self._step(part, source, positions[at], paired).items():
                made.setdefault(name, np.zeros((rows, *values.shape[1:]), values.dtype))[at] = values
        self._ring.held.update(entered)
        if self._is_rejection:
            self._laws.written(1 - source, window)
        if self._tree:
            return outcome_of_tree(window, made)
        return close_rows(window, made["tokens"], made["committed"], made["highest_logits"])

    def _check(self, window: Window) -> None:
        """Refuse what is out of bounds, or cannot be done."""
        if window.parents is None:
            check_window(self, window.tokens, window.start)
        elif self.refuses_branches is not None:
            raise InvalidArgument(f"window has branches, but {self.refuses_branches}")
        else:
            check_tree_window(self, window.tokens, window.start, window.parents)
        self._refusals.check(window)

    def _paired(self, window: Window) -> PairedWindow | None:
        """With guidance the window of both rows of each."""
        return None if self._guided is None else self._guided.paired(window.tokens, window.start, window.first_row)

    @property
    def touches_all(self) -> bool:
        """Calls are for some rows."""
        return False

    @property
    def keeps_prefixes(self) -> bool:
        """Not with guidance: an unconditional row goes with the whole prompt."""
        return self._guided is None

    def read(self, tokens: Integers, start: Integers, rows: range) -> None:
        """Forward known tokens. See `coupled_sampling.contracts.PromptReader.read`.

        Raises
        ------
        InvalidArgument
            An argument is out of bounds; nothing was run.
        ProviderError
            ONNX Runtime failed, or the step was closed.
        """
        self._refuse_if_closed()
        check_window(self, tokens, start)
        check_rows(self, tokens, rows)
        window, positions = known_tokens(tokens, start, rows.start), self._ring.padding(rows)
        count = max(1, self.prompt_chunk // tokens.shape[1])
        for first in range(0, len(rows), count):
            at = slice(first, first + count)
            part = window.part(range(len(rows))[at])
            self._step(part, None, positions[at], self._paired(part))

    @property
    def forks(self) -> bool:
        """Where caches lie on the host."""
        return not self._is_closed and self.binding.copies_rows

    def fork(self, source: int, targets: Sequence[int], length: int) -> None:
        """Copy the state of a row. See `coupled_sampling.contracts.Forks.fork`.

        Raises
        ------
        InvalidArgument
            A row or the length is out of bounds.
        ProviderError
            The step was closed.
        """
        self._refuse_if_closed()
        check_fork(self, source, targets, length)
        if self._guided is None:
            self._caches.fork(source, targets, length)
            return
        for of_model in self._guided.fork(source, targets, length):
            self._caches.fork(*of_model)

    def _feed_pairs(self, guided: GuidedRows, paired: PairedWindow, draws: NDArray[np.bool_]) -> None:
        """Forward what unconditional prompts have before the rows' own, then feed the window of both rows.

        Everything else is fed already: it does no harm, since a call that draws nothing writes only what the next one does.
        """
        rows, width = len(draws), paired.tokens.shape[1]
        put, put_tokens = self._tensors.put, self._tensors.put_tokens
        if self._slot_scales:
            put("guidance", paired.scale, rows, width)
        else:
            put("guidance", paired.scale[:, 0], rows)  # the same for all slots, see `takes`
        put("guidance_lag", paired.lag, rows)
        for tokens, start in guided.openings(paired):
            put("draws", False, rows)
            put_tokens(tokens, start)
            self._run(rows, width)
        put("draws", draws, rows)
        put_tokens(paired.tokens, paired.start)

    def _step(
        self, window: Window, source: int | None, positions: list[tuple[int, int]], paired: PairedWindow | None
    ) -> dict[str, NDArray[Any]]:
        """What the graph says of the window of some rows, of which ``positions`` and ``paired`` are, by outputs.

        Draft laws are read from the buffer ``source``; None says that no law is read or kept.
        """
        rows, width = window.tokens.shape
        part = range(window.first_row, window.first_row + rows)
        self._choose(part)
        self._tensors.put_counts(window)
        if self._guided is None:
            self._tensors.put_tokens(window.tokens, window.start, window.parents)
        if self._is_rejection:
            self._feed_laws(window, part, source)
        if "noise" in self._tensors.inputs:
            self._feed_noise(window, part, positions)
        if self._guided is not None and paired is not None:
            self._feed_pairs(self._guided, paired, window.draws)
        while True:
            self._run(rows, width)
            if not self._warped or not (self._tensors.out("nucleus_short", rows, width) & asking_slots(window)).any():
                return self._tensors.made(rows, width)
            self._tensors.put_more_candidates(window)

    def _choose(self, rows: range) -> None:
        """Have the next calls run on ``rows``, which with guidance are two of the model's each."""
        pairs = self._model_rows
        is_new = self._caches.choose(range(pairs * rows.start, pairs * rows.stop))
        if is_new and self._tables is not None:
            self._tables.bind()

    def _feed_laws(self, window: Window, part: range, source: int | None) -> None:
        """Uniforms, the laws of the round before, and room for this round's."""
        self._tensors.put_uniforms(window)
        self._tensors.put("draft_laws_start", self._laws.starts(source or 0, part), len(part))
        self._laws.bind(source, part, window.tokens.shape[1])

    def _noise_positions(self, window: Window) -> tuple[list[tuple[int, int]], dict[int, HeldNoise]]:
        """The positions (first, end) of each row whose race noise enters, and what the ring holds of the rows once it has."""
        if self.method.acceptance == "none":
            decided = [window.decided_positions(b) for b in range(len(window.draws))]
            return [(first, end if window.draws[b] else first) for b, (first, end) in enumerate(decided)], {}
        if "noise" not in self._tensors.inputs:
            return [(0, 0)] * len(window.draws), {}
        return self._ring.missing(window)

    def _feed_noise(self, window: Window, part: range, positions: list[tuple[int, int]]) -> None:
        self._tensors.put_noise(window, positions)
        if self.method.acceptance != "none":
            self._tensors.put("noise_start", [first for first, _ in positions], len(positions))
            self._ring.bind(part)

    def _run(self, rows: int, width: int) -> None:
        self._tensors.expect(rows, width)
        try:
            self.binding.run()
        except Exception as error:
            # Its exceptions share no base class but Exception.
            raise ProviderError(
                f"ONNX Runtime failed on a window of {rows} rows and {width} slots: {in_one_line(error)}"
            ) from error

"""`KernelStep`: a coupled step whose decisions are made by CUDA kernels, over any model whose logits lie on a GPU.

Per step one small upload (the window and its rows' settings), four launches, one more each for corrections and for candidates, and
one small download (tokens, counts, each slot's largest logit, and candidates where they are wanted); with a `PinnedLauncher` all of
it is one CUDA graph from the second step of a shape on. What a shape needs is kept in `coupled_sampling.backends.cuda.plans`.
Logits, laws and noise stay on the device; noise is made there, from the frozen layout of `coupled_sampling.noise`. Tokens are those
of `HostStep`, save where two floats tie.

Each row has two memories for draft laws, of which one is read and the other written, see `coupled_sampling.law_book`; so a
step whose outcome was lost on the way to the loop (Ctrl-C) can be done again.

Compiled and emulated; never run on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from coupled_sampling.backends.cuda.correction_tables import low_rank
from coupled_sampling.backends.cuda.kernels import ROW, Launcher
from coupled_sampling.backends.cuda.plans import GrowingMemory, Plans, Shape
from coupled_sampling.backends.cuda.pointers import LOGITS_TYPES, DevicePointer, device_pointer
from coupled_sampling.backends.cuda.tree_outcomes import candidates_of, close_tree
from coupled_sampling.bounds import TreeProvider, check_tree_window, check_window
from coupled_sampling.contracts import (
    Array,
    Closeable,
    Forks,
    Integers,
    LogitsProvider,
    Outcome,
    ReadsPrompts,
    RequestObserver,
    RowInfo,
    RowRanges,
    Runs,
    Trees,
    Window,
    max_window,
    what_runs,
)
from coupled_sampling.corrections import Corrector
from coupled_sampling.errors import InvalidArgument, ProviderError
from coupled_sampling.guided_rows import GuidedRows
from coupled_sampling.law_book import Held, LawBook
from coupled_sampling.methods import Method, find_method
from coupled_sampling.noise import CounterNoise
from coupled_sampling.refusals import Refusals, refusal_of
from coupled_sampling.requests import Request
from coupled_sampling.running import Closing
from coupled_sampling.target import close_rows
from coupled_sampling.trees import Tree

__all__ = ["KernelStep"]

_PROMPT_CHUNK = 256
"""Chunk of a provider that does not say, as in `coupled_sampling.host_step.HostStep`."""


class _RowLaws:
    """One row's two memories of laws, and the book of what they hold."""

    def __init__(self, launcher: Launcher) -> None:
        self.memories = (GrowingMemory(launcher), GrowingMemory(launcher))
        self.book = LawBook()


class _Writing(NamedTuple):
    """What a row's memory will hold once the step is done."""

    row: _RowLaws
    memory: int
    held: Held


class KernelStep(Closing):
    """A `coupled_sampling.contracts.CoupledStep` whose decisions are made by the kernels.

    Parameters
    ----------
    provider
        A `LogitsProvider` whose ``forward`` returns logits on the device: contiguous (B, W, V), float32, float16 or bfloat16,
        with ``__dlpack__`` or ``__cuda_array_interface__``, or a `coupled_sampling.backends.cuda.pointers.DevicePointer`.
        With guidance it has two rows for each of the step's.
    method
        A name from `coupled_sampling.methods.METHODS`, or a `Method`.
    launcher
        Device memory and launches. The logits must be ready in its stream, or say in which stream they are made.
    guidance, unconditional
        Classifier-free guidance, both or neither: the scale, and the unconditional prompt or a function from a row's prompt
        to it. See `coupled_sampling.guidance`.
    corrections
        A `coupled_sampling.corrections.LowRank`, which predicts the laws of redrafts whose neighbours changed. Its tables go to the
        device once. Methods that do not recycle have no use for it.

    Attributes
    ----------
    method, vocab_size, batch_size, max_length, max_window
        As in the contract.
    corrections
        As it was given.
    noise
        The noise it draws from, as far as the loop and drafting rules are concerned.

    Raises
    ------
    InvalidArgument
        Guidance is given by half or not finite, or the provider has an odd number of rows for it. Corrections are no `LowRank`, or
        made for another vocabulary.

    Notes
    -----
    Laws carried by fresh drafts (draft models) and logits processors are refused: use `HostStep` for them.

    Windows with branches are decided where the provider offers `coupled_sampling.contracts.Trees`, without guidance.

    Examples
    --------
    >>> from coupled_sampling import generate
    >>> from coupled_sampling.backends import Place, open_model
    >>> from coupled_sampling.backends.cuda import Device, KernelStep, PinnedLauncher, Stream

    Not run here, since it needs a GPU. Over a model of one's own that leaves its logits there, and over a bundle:

    >>> with KernelStep(provider, "scd-gumbel", PinnedLauncher(Stream(Device()))) as step:  # doctest: +SKIP
    ...     generation = generate(step, [prompt], length=1024, window=64)
    >>> with open_model("fashion", Place("cuda"), method="scd-gumbel") as step:  # doctest: +SKIP
    ...     pictures = generate(step, [[258]], length=196, window=16)
    """

    def __init__(
        self,
        provider: LogitsProvider,
        method: str | Method,
        launcher: Launcher,
        *,
        guidance: float | None = None,
        unconditional: Sequence[int] | Callable[[Integers], Sequence[int]] | None = None,
        corrections: Corrector | None = None,
    ) -> None:
        self.provider = provider
        self._trees: TreeProvider | None = provider if isinstance(provider, Trees) else None
        self.method = find_method(method)
        self.noise = CounterNoise()
        self.vocab_size = int(provider.vocab_size)
        self.batch_size = int(provider.batch_size)
        self.max_length = int(provider.max_length)
        self._guided: GuidedRows | None = None
        if (guidance is None) != (unconditional is None):
            raise InvalidArgument(f"guidance is {guidance} and unconditional {unconditional}, expected both or neither")
        if guidance is not None and unconditional is not None:
            if self.batch_size % 2 or not np.isfinite(guidance):
                raise InvalidArgument(
                    f"guidance is {guidance} and provider.batch_size {self.batch_size}, expected a finite scale and an even number "
                    "of rows: guidance runs two for each one"
                )
            self.batch_size //= 2
            self._guided = GuidedRows(unconditional, self.batch_size, self.vocab_size, self.max_length, guidance)
            self.max_length = self._guided.max_length
        self.max_window = min(max_window(provider), self.max_length)
        self._refusals = Refusals(
            "the kernels",
            laws="use HostStep for them" if self._is_rejection else None,
            processors="change the logits on the device before they are returned, or use HostStep",
            logprobs="use HostStep",
            guidance=None if self._guided else "use HostStep over a GuidedProvider, or give guidance and unconditional",
        )
        self._launcher = launcher
        self._laws = [_RowLaws(launcher) for _ in range(self.batch_size)]
        self.corrections = corrections
        tables = None if corrections is None else low_rank(corrections, self.vocab_size)
        self._plans = Plans(launcher, self.method, tables if self.method.recycles else None)
        self._table = np.zeros(self.batch_size, ROW)
        self._columns = {name: self._table[name] for name in ROW.fields or ()}
        self._infos: list[RowInfo | None] = [None] * self.batch_size

    def takes(self, request: Request) -> str | None:
        """What the kernels or the provider cannot do. See `coupled_sampling.contracts.CoupledStep.takes`."""
        reason = self._refusals.takes(replace(request, condition=None))
        if self._guided is None:
            return reason or refusal_of(self.provider, request)
        return reason or self._guided.takes(request, self.provider, constant_for="a step of the kernels")

    @property
    def refuses_laws(self) -> str | None:
        """Why drafts that carry laws cannot be tested. See `coupled_sampling.contracts.PointMassesOnly`."""
        return self._refusals.refuses_laws

    def begin(self, row: int, request: Request) -> None:
        """Forget what ``row`` held; tell the provider, if it wants to know, which ``request`` comes."""
        self._laws[row].book = LawBook()
        told = (request,) if self._guided is None else self._guided.begin(row, request)
        if isinstance(self.provider, RequestObserver):
            for inner_row, own in enumerate(told, len(told) * row):
                self.provider.begin(inner_row, own)

    @property
    def runs(self) -> Runs:
        """What runs the provider; steps are decided by the kernels."""
        used = self.corrections if self.method.recycles else None
        return replace(what_runs(self.provider), step="kernels").corrected_by(used)

    def release(self) -> None:
        """Give the step's own device memory back; provider and launcher stay. The step must not be used afterwards."""
        self._plans.release()
        for memory in (memory for laws in self._laws for memory in laws.memories):
            memory.release()

    def close(self) -> None:
        """Give all device memory back, and close launcher and provider, if they can be closed. Twice does no harm."""
        self.release()
        for one in (self._launcher, self.provider):
            if isinstance(one, Closeable):
                one.close()

    @property
    def prompt_chunk(self) -> int:
        """See `coupled_sampling.contracts.ReadsPrompts`."""
        wanted = self.provider.prompt_chunk if isinstance(self.provider, ReadsPrompts) else _PROMPT_CHUNK
        return max(1, min(int(wanted), self.max_window))

    @property
    def refuses_branches(self) -> str | None:
        """See `coupled_sampling.contracts.TreeSteps`."""
        if self.method.acceptance != "match":
            return (
                f'{self.method.name} does not accept drafts by "match", which branches are for; use scd-match or '
                "speculative-match"
            )
        if self._guided is not None:
            return "the kernels have no branches with guidance; leave one of them out, or use HostStep over a GuidedProvider"
        if self._trees is None:
            return (
                f"{type(self.provider).__name__} cannot forward windows that are trees; use a model that offers Trees"
            )
        return None

    @property
    def max_columns(self) -> int:
        """See `coupled_sampling.contracts.Trees`."""
        return self.max_length if self._trees is None else self._trees.max_columns

    @property
    def touches_all(self) -> bool:
        """With guidance, too: it forwards what unconditional prompts have before the rows' own in calls over all rows."""
        return self._guided is not None or not isinstance(self.provider, RowRanges)

    @property
    def keeps_prefixes(self) -> bool:
        """Not with guidance, nor where the provider is told requests: they may be all that differs."""
        return self._guided is None and not isinstance(self.provider, RequestObserver)

    def read(self, tokens: Integers, start: Integers, rows: range) -> None:
        """Forward known tokens; the logits stay where they are. See `coupled_sampling.contracts.PromptReader.read`."""
        check_window(self, tokens, start)
        if self._guided is None and isinstance(self.provider, RowRanges):
            self.provider.forward_rows(tokens, start, rows)
        else:
            self._run_model(tokens, start)

    @property
    def forks(self) -> bool:
        """Whether the provider can, and there is no unconditional row beside. See `coupled_sampling.contracts.Forks`."""
        return self._guided is None and isinstance(self.provider, Forks) and self.provider.forks

    def fork(self, source: int, targets: Sequence[int], length: int) -> None:
        """See `coupled_sampling.contracts.Forks.fork`."""
        assert isinstance(self.provider, Forks), "who forks asks first whether it can be done"
        self.provider.fork(source, targets, length)

    def step(self, window: Window) -> Outcome:
        """Forward ``window`` and decide it. See `coupled_sampling.contracts.CoupledStep.step`.

        Raises
        ------
        InvalidArgument
            The window is out of bounds or asks for what kernels do not do; nothing was run.
        ProviderError
            The provider's logits have a wrong shape or type, or do not lie on the device.
        """
        tree = self._checked_tree(window)
        self._refusals.check(window)
        rows, width = window.tokens.shape
        writing = self._fill_table(window)
        logits = self._forward(window)
        if not window.draws.any():
            return Outcome(np.zeros((rows, width), np.int64), np.zeros(rows, np.int64))
        shape = Shape(rows, width, self.vocab_size, tree is not None, min(window.candidates, self.vocab_size))
        decided = self._plans.plan(shape, logits).run(self._table[:rows], window.tokens, tree)
        for laws, memory, held in writing:
            laws.book = laws.book.written(memory, held)
        tokens, committed = decided.tokens.copy(), decided.committed.copy()
        if tree is None:
            outcome = close_rows(window, tokens, committed, decided.highest)
        else:
            outcome = close_tree(window, tree, tokens, committed, decided.highest)
        return outcome._replace(candidates=candidates_of(window, outcome, decided)) if shape.candidates else outcome

    @property
    def _is_rejection(self) -> bool:
        return self.method.acceptance == "rejection"

    def _checked_tree(self, window: Window) -> Tree | None:
        """The tree that ``window`` is, if it has branches."""
        if window.parents is None:
            check_window(self, window.tokens, window.start)
            return None
        refused = self.refuses_branches
        if refused is not None or self._trees is None:
            raise InvalidArgument(f"window has parents, but {refused}")
        check_tree_window(self._trees, window.tokens, window.start, window.parents)
        return Tree.of(window.parents)

    def _fill_table(self, window: Window) -> list[_Writing]:
        """Say in the table what the rows are to do; returns which laws they will have written."""
        columns, rows = self._columns, len(window.start)
        for name in ("start", "known", "recycled", "fresh", "draws", "round"):
            columns[name][:rows] = getattr(window, name)
        columns["branches"][:rows] = 0 if window.branches is None else window.branches
        writing = []
        for b, info in enumerate(window.rows):
            if info is None or not window.draws[b]:
                columns["draws"][b] = columns["laws"][b] = columns["draft_laws"][b] = 0
                continue
            if info is not self._infos[b]:
                self._fill_settings(b, info)
            if self._is_rejection:
                writing.append(self._place_laws(b, window))
        return writing

    def _fill_settings(self, b: int, info: RowInfo) -> None:
        sampling, row = info.sampling, self._table[b]
        row["seed"], row["sequence"] = info.seed, info.sequence
        row["temperature"], row["top_k"] = sampling.temperature, min(sampling.top_k or 0, self.vocab_size)
        row["top_p"], row["min_p"] = sampling.top_p, sampling.min_p
        self._infos[b] = info

    def _place_laws(self, b: int, window: Window) -> _Writing:
        """Which memory row ``b`` reads and which one it writes."""
        laws, columns = self._laws[b], self._columns
        start, recycled, round_ = (int(field[b]) for field in (window.start, window.recycled, window.round))
        first, end = window.decided_positions(b)
        target = laws.book.target(round_)
        columns["draft_laws"][b] = columns["draft_laws_ahead"][b] = 0
        if recycled:
            source = laws.book.source(b, round_ - 1, first, first + recycled)
            columns["draft_laws"][b] = laws.memories[source].pointer
            columns["draft_laws_ahead"][b] = start - laws.book.start(source)
        laws.book = laws.book.written(target, None)  # a step that fails from here on may have written over it
        size = 4 * window.tokens.shape[1] * self.vocab_size
        columns["laws"][b] = laws.memories[target].at_least(size)
        return _Writing(laws, target, Held(round_, start, first, end))

    def _run_model(self, tokens: Integers, start: Integers) -> Array:
        """What the provider returns; with guidance of both rows of each, and their lag in the table."""
        if self._guided is not None:
            paired = self._guided.paired(tokens, start)
            for opening, begins in self._guided.openings(paired):
                self.provider.forward(opening, begins)
            self._columns["guidance_lag"][: len(start)] = paired.lag
            self._columns["guidance"][: len(start)] = paired.scale[:, 0]  # the same for all slots, see `takes`
            tokens, start = paired.tokens, paired.start
        return self.provider.forward(tokens, start)

    def _forward(self, window: Window) -> DevicePointer:
        """Logits on the device; with guidance of both rows of each."""
        if window.parents is None:
            found = self._run_model(window.tokens, window.start)
        else:
            assert self._trees is not None, "windows with branches have been checked"
            rows = range(window.first_row, window.first_row + len(window.start))
            found = self._trees.forward_tree(window.tokens, window.start, window.parents, rows)
        try:
            logits = device_pointer(found, self._launcher.stream)
        except InvalidArgument as error:
            raise ProviderError(f"forward returned logits that the kernels cannot read: {error}") from error
        count, width = window.tokens.shape
        expected = (count if self._guided is None else 2 * count, width, self.vocab_size)
        if logits.shape != expected or logits.dtype not in LOGITS_TYPES:
            raise ProviderError(
                f"forward returned {logits.dtype} of shape {logits.shape}, expected logits of shape {expected}: (rows, window, "
                f"vocabulary), of type {', '.join(LOGITS_TYPES)}"
            )
        if logits.stream is not None:
            self._launcher.wait(logits.stream)
        return logits

"""The decoding loop: rows, windows, commit, stop. One loop for all methods and all models.

A row holds a sequence: its committed tokens, then drafts; and how many of its positions the model has cached. A step

1. takes the tokens after the cached prefix, known ones first, then recycled drafts, then fresh drafts, up to the
   window;
2. has a `CoupledStep` forward and decide them;
3. commits what was decided, keeps the redrafts, and moves the cached prefix to the last committed token that was
   forwarded.

Rows are independent in everything. A row that has fewer tokens left than the widest row forwards a few of its cached
tokens again (a window may start lower at any time), so that nothing is ever padded past the end of the model's
memory.

Nothing here knows mathematics or draws randomness: laws belong to the step, fresh drafts to the drafting rule.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from coupled_sampling.contracts import (
    Array,
    CoupledStep,
    Integers,
    LogitsProvider,
    Outcome,
    PromptObserver,
    RowInfo,
    Window,
)
from coupled_sampling.drafting import DraftContext, Drafting, find_drafting
from coupled_sampling.errors import InvalidArgument
from coupled_sampling.host_step import HostStep
from coupled_sampling.methods import Method
from coupled_sampling.noise import CounterNoise, Noise
from coupled_sampling.requests import Commit, Request, checked_prompt
from coupled_sampling.trace import Trace
from coupled_sampling.windows import WindowRule, find_window_rule

__all__ = ["Commit", "Decoder", "Request"]


_IDLE = (0, 0, 0, 0, 0, False)
"""`_Row.slots` of a row without a sequence."""
_NOTHING = np.zeros(0, np.int64)


@dataclass(eq=False)
class _Row:
    """A sequence and the batch row it occupies."""

    handle: int
    request: Request
    tokens: Integers
    """(prompt + length,) committed tokens, then ``drafted`` drafts, then nothing yet."""
    prompt_length: int
    committed: int
    info: RowInfo
    stop: frozenset[int] = frozenset()
    cached: int = 0
    drafted: int = 0
    round: int = 0
    trace: Trace = field(default_factory=Trace)
    began: float = 0.0

    def reach(self, window: int, drafts: bool) -> int:
        """End of the positions worth forwarding now: the last position's own logits are never needed."""
        known = min(self.committed, self.cached + window)
        return min(self.cached + window, len(self.tokens) - 1) if drafts else known

    def slots(self, end: int, width: int) -> tuple[int, int, int, int, int, bool]:
        """Of a window ``width`` wide up to position ``end``: start, known, recycled, fresh, round, whether it draws."""
        start = max(0, end - width)  # below ``cached`` where little is left: tokens go in again, nothing is padded
        known = min(end, self.committed)
        drafted = min(end, self.committed + self.drafted)
        return start, known - start, drafted - known, end - drafted, self.round, known == self.committed

    def finished(self) -> bool:
        """Whether everything asked for is committed."""
        return self.committed == len(self.tokens)


class _Step(NamedTuple):
    """A step that its window's rule has not been told of."""

    rows: int
    width: int
    tokens: Sequence[int]
    seconds: float
    ends: Sequence[tuple[_Row, int]]
    """Each row, and the end of the positions that the step decided or drafted in it."""


class Decoder:
    """Continuous batching: requests come and go while it steps.

    Parameters
    ----------
    model
        A `LogitsProvider`, or a `CoupledStep` (then ``method`` and ``noise`` are its own).
    method
        Name from `coupled_sampling.methods.METHODS`.
    window
        Most slots forwarded per row and step, >= 1; prompts longer than it are forwarded in chunks of it. The method
        ``ar`` uses it for prompts only. "auto" finds the width that commits most tokens per second, see
        `coupled_sampling.windows`; then tokens at a seed depend on the machine's speed and the batch, but for ``ar`` and methods
        whose tokens are ``ar``'s, and their law does not.
    drafting
        Rule for fresh drafts, see `coupled_sampling.drafting`.
    noise
        Where draws come from; default `CounterNoise`.

    Examples
    --------
    >>> from coupled_sampling import Decoder, Request
    >>> from coupled_sampling.testing import TableProvider, random_table
    >>> decoder = Decoder(TableProvider(random_table(0, 4), 4), method="scd-gumbel", window=4)
    >>> handles = [decoder.add(Request([0], length=9)), decoder.add(Request([1], length=3, seed=1))]
    >>> finished = []
    >>> while decoder.active or decoder.waiting:
    ...     finished += [commit.handle for commit in decoder.step() if commit.finished]
    >>> handles, finished  # one row: the second request waits for the first
    ([0, 1], [0, 1])
    """

    def __init__(
        self,
        model: LogitsProvider | CoupledStep,
        *,
        method: str | Method = "scd-gumbel",
        window: int | str | WindowRule = 32,
        drafting: str | Drafting = "random",
        noise: Noise | None = None,
    ) -> None:
        own = getattr(model, "noise", None)
        self._noise: Noise = noise or own or CounterNoise()
        self._step = _as_step(model, method, self._noise)
        if own is not None and noise is not None and own is not noise:
            raise InvalidArgument("noise was given beside a step that has a noise of its own; leave one of them out")
        self._windows = find_window_rule(window, self._step.max_window)
        self._drafting = find_drafting(drafting)
        self._rows: list[_Row | None] = [None] * self._step.batch_size
        self._waiting: deque[_Row] = deque()
        self._open_steps: deque[_Step] = deque()
        self._next_handle = 0

    @property
    def method(self) -> Method:
        """The decoding method."""
        return self._step.method

    @property
    def window(self) -> int:
        """Most slots of the next step."""
        width = self._windows.width(self._span())
        if (
            isinstance(width, bool)
            or not isinstance(width, (int, np.integer))
            or not 1 <= width <= self._windows.largest
        ):
            raise InvalidArgument(
                f"{type(self._windows).__name__}.width returned {width!r}, expected an integer from 1 to its largest, "
                f"{self._windows.largest}"
            )
        return int(width)

    def _span(self) -> int:
        """Rows up to the last one in use: as many as a step forwards."""
        return 1 + max((b for b, row in enumerate(self._rows) if row is not None), default=-1)

    @property
    def active(self) -> int:
        """Sequences that occupy a row."""
        return sum(row is not None for row in self._rows)

    @property
    def waiting(self) -> int:
        """Sequences that wait for a row."""
        return len(self._waiting)

    def add(self, request: Request) -> int:
        """Queue ``request``; it starts at the next step for which a row is free.

        Returns
        -------
        int
            A handle: it names the sequence in commits and in `remove`.

        Raises
        ------
        InvalidArgument
            The prompt is empty, has tokens outside the vocabulary, or does not fit the model with what is to come.
        """
        prompt = checked_prompt(request, self._step.vocab_size)
        last_input = len(prompt) + request.length - 1
        limits = {"model": self._step.max_length, "draft model": getattr(self._drafting, "max_length", last_input)}
        for name, limit in limits.items():
            if last_input > limit:
                raise InvalidArgument(
                    f"a prompt of {len(prompt)} tokens and length {request.length} need {last_input} cached positions, the "
                    f"{name} holds {limit}; shorten the prompt or ask for at most {limit + 1 - len(prompt)} tokens"
                )
        tokens = np.zeros(len(prompt) + request.length, np.int64)
        tokens[: len(prompt)] = prompt
        info = RowInfo(int(request.seed), int(request.sequence), request.sampling)
        handle, self._next_handle = self._next_handle, self._next_handle + 1
        stop = frozenset(np.asarray(request.stop, np.int64).tolist())
        self._waiting.append(_Row(handle, request, tokens, len(prompt), len(prompt), info, stop))
        return handle

    def remove(self, handle: int) -> Integers:
        """Drop a sequence that is waiting or under way; returns its generated tokens so far.

        Raises
        ------
        InvalidArgument
            No such sequence is waiting or under way.
        """
        for queued in self._waiting:
            if queued.handle == handle:
                self._waiting.remove(queued)
                return queued.tokens[:0].copy()
        for b, row in enumerate(self._rows):
            if row is not None and row.handle == handle:
                self._release(b)
                return row.tokens[row.prompt_length : row.committed].copy()
        raise InvalidArgument(f"handle {handle} is neither waiting nor under way; it may have finished")

    def trace(self, handle: int) -> Trace:
        """The trace so far of a sequence that is under way.

        Raises
        ------
        InvalidArgument
            It is not.
        """
        for row in self._rows:
            if row is not None and row.handle == handle:
                return row.trace
        raise InvalidArgument(f"handle {handle} is not under way")

    def step(self) -> list[Commit]:
        """One forward pass over all active rows; empty when there is nothing to do.

        A finished sequence frees its row before this returns. If the model raises, no row has changed, so the step
        can be tried again.
        """
        self._admit()
        if not self.active:
            return []
        began = time.perf_counter()
        width = self.window
        window = self._window(width)
        stepped = self._rows[: self._span()]
        outcome = self._step.step(window)
        done = []
        for b, row in enumerate(self._rows):
            if row is None:
                continue
            commit = _apply(row, b, window, outcome, self.method.recycles)
            row.began = row.began or began  # of the sequence's first step
            row.trace.seconds = time.perf_counter() - row.began
            if commit is not None:
                done.append(commit)
                if commit.finished:
                    self._release(b)
        self._remember(width, window, outcome, time.perf_counter() - began, stepped)
        return done

    def _remember(
        self, width: int, window: Window, outcome: Outcome, seconds: float, stepped: Sequence[_Row | None]
    ) -> None:
        """Tell the window's rule of steps of which nothing is open any more.

        How long a step took may depend on its drafts: a rule that knew it at once could choose a width by drafts that are still to
        be tested. It is told when every row has committed all that the step decided, or is gone.
        """
        active = [(b, row) for b, row in enumerate(stepped) if row is not None]
        if window.tokens.shape[1] == width and all(window.draws[b] for b, _ in active):
            slots = (window.start + window.known + window.recycled + window.fresh).tolist()
            ends = [(row, slots[b] + 1) for b, row in active]  # the last slot drafts the position after it
            self._open_steps.append(_Step(len(stepped), width, outcome.committed[window.draws].tolist(), seconds, ends))
        while self._open_steps and all(
            row.committed >= end or row not in self._rows for row, end in self._open_steps[0].ends
        ):
            closed = self._open_steps.popleft()
            self._windows.record(closed.rows, closed.width, closed.tokens, closed.seconds)

    def _admit(self) -> None:
        """Give free rows to waiting sequences, lowest row first."""
        for b, row in enumerate(self._rows):
            if row is None and self._waiting:
                new = self._waiting[0]
                self._step.begin(b, new.tokens[: new.prompt_length])
                if isinstance(self._drafting, PromptObserver):
                    self._drafting.begin(b, new.tokens[: new.prompt_length])
                self._rows[b] = self._waiting.popleft()  # not before both took it: if one raises, it waits on

    def _release(self, b: int) -> None:
        row, self._rows[b] = self._rows[b], None
        if row is not None:
            self._noise.forget(row.info.seed, row.info.sequence)

    def _window(self, most: int) -> Window:
        """The next window of every row up to the last active one."""
        rows = self._rows[: self._span()]
        drafts = self.method.drafts
        ends = [0 if row is None else row.reach(most, drafts) for row in rows]
        width = max(end - row.cached for row, end in zip(rows, ends, strict=True) if row is not None)
        slots = [_IDLE if row is None else row.slots(end, width) for row, end in zip(rows, ends, strict=True)]
        # In Python's numbers up to here: arrays of a few rows are slower, and this is what a step costs beside its model.
        start, known, recycled, fresh, round_, draws = np.array(slots, np.int64).T.copy()
        laws = self._propose(rows, fresh)
        tokens, contexts = np.zeros((len(rows), width), np.int64), []
        for b, row in enumerate(rows):
            contexts.append(_NOTHING if row is None else row.tokens[: ends[b]])
            first = slots[b][0]
            tokens[b, : ends[b] - first] = contexts[b][first:]
        return Window(
            tokens=tokens,
            start=start,
            known=known,
            recycled=recycled,
            fresh=fresh,
            draws=draws == 1,
            round=round_,
            rows=[None if row is None else row.info for row in rows],
            contexts=contexts,
            fresh_laws=laws,
        )

    def _propose(self, rows: Sequence[_Row | None], fresh: Integers) -> list[Array | None]:
        """Write ``fresh[b]`` fresh drafts behind row b's recycled ones; returns the laws they carry."""
        laws: list[Array | None] = [None] * len(rows)
        asking = [(b, row) for b, row in enumerate(rows) if row is not None and fresh[b]]
        if not asking:
            return laws
        contexts = [
            DraftContext(
                b, row.tokens[: row.committed + row.drafted], row.prompt_length, int(fresh[b]), row.info, row.round
            )
            for b, row in asking
        ]
        shared = self.method.acceptance == "match"
        proposals = self._drafting.propose(contexts, self._noise, vocab_size=self._step.vocab_size, shared=shared)
        for (b, row), context, proposal in zip(asking, contexts, proposals, strict=True):
            first = len(context.tokens)
            row.tokens[first : first + context.wanted] = proposal.tokens
            laws[b] = proposal.law
        return laws


def _as_step(model: LogitsProvider | CoupledStep, method: str | Method, noise: Noise) -> CoupledStep:
    """``model`` if it is a coupled step, else a `HostStep` over it."""
    if hasattr(model, "step") and hasattr(model, "method"):
        return model  # type: ignore[return-value]
    if not isinstance(model, LogitsProvider):
        raise InvalidArgument(
            f"model is a {type(model).__name__}, expected a LogitsProvider: an object with vocab_size, batch_size, max_length and "
            "forward(tokens, start)"
        )
    return HostStep(model, method, noise)


def _apply(row: _Row, b: int, window: Window, outcome: Outcome, recycles: bool) -> Commit | None:
    """Commit what was decided for ``row`` and keep its redrafts."""
    start, known = int(window.start[b]), int(window.known[b])
    row.round += 1
    row.cached = start + known
    if not window.draws[b]:
        row.trace.committed_per_step.append(0)
        return None
    end = start + known + int(window.recycled[b] + window.fresh[b])
    first, committed = row.committed, int(outcome.committed[b])
    # The last known token's slot decides the first open position, and the last slot the position after the window.
    row.tokens[first : end + 1] = outcome.tokens[b, known - 1 : end - start]
    row.committed += committed
    row.drafted = end + 1 - row.committed if recycles else 0
    row.cached = row.committed - 1  # the last committed token was drawn here, so it was no input yet
    stopped = _first_stop(row.tokens[first : row.committed], row.stop)
    if stopped is not None:
        row.committed = first + stopped + 1  # what was accepted behind the stop token is discarded
    row.trace.committed_per_step.append(row.committed - first)
    tokens = row.tokens[first : row.committed].copy()
    return Commit(row.handle, first, tokens, stopped is not None or row.finished(), row.trace)


def _first_stop(tokens: Integers, stop: frozenset[int]) -> int | None:
    """Where the first token of ``stop`` is, if there is one."""
    if not stop:
        return None
    return next((i for i, token in enumerate(tokens.tolist()) if token in stop), None)

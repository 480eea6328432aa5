"""A sequence in a batch row: its tokens, how far they are committed and cached, and when it ends.

What a step decided is applied here, to one row and to nothing else: rows are independent in everything. A row ends by length, by a
stop token or rule anywhere in an accepted run (what follows is discarded), or by an error at a slot that was decided.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from coupled_sampling.arrays import namespace, read_only
from coupled_sampling.errors import CoupledSamplingError, InvalidArgument, RequestFailed
from coupled_sampling.requests import Commit, Reason, Request
from coupled_sampling.sampling import Array, Integers, RowInfo
from coupled_sampling.slots import Candidates, Outcome, Window
from coupled_sampling.target import unusable_law
from coupled_sampling.trace import Trace

__all__ = ["IDLE", "Row", "Slots", "common_length", "failed", "last_of"]


class Slots(NamedTuple):
    """What a window holds of a row."""

    start: int
    known: int
    recycled: int
    fresh: int
    round: int
    draws: bool


IDLE = Slots(0, 0, 0, 0, 0, False)
"""Of a row that has no part in a window."""


@dataclass(eq=False)
class Row:
    """A sequence and what its batch row holds of it."""

    handle: int
    request: Request
    tokens: Integers
    """(prompt + length,) committed tokens, then ``drafted`` drafts, then nothing yet."""
    info: RowInfo
    committed: int
    """The prompt included, and what was generated before an interruption."""
    stop: frozenset[int] = frozenset()
    stop_sequences: Sequence[Integers] = ()
    leader: Row | None = None
    """The row of another sample of the same prompt, whose state this one waits for."""
    cached: int = 0
    drafted: int = 0
    round: int = 0
    trace: Trace = field(default_factory=Trace)
    began: float = 0.0
    laws_back: int = 0
    """How many positions back the drafting rule wants the laws of committed tokens; 0 for none."""
    laws: Array | None = None
    """(n, V) those of the last n committed tokens, n at most that; None while there are none."""
    candidates: Candidates | None = None
    """Of the positions from ``committed`` on, as far as the step before told any."""

    def __post_init__(self) -> None:
        self.given = self.committed
        """Tokens that were there before the first step."""

    @property
    def key(self) -> tuple[int, int]:
        """What its noise is drawn by."""
        return self.info.seed, self.info.sequence

    @property
    def prompt_length(self) -> int:
        """Tokens of the prompt."""
        return len(self.request.prompt)

    def unread(self, window: int) -> int:
        """Known tokens to read before the row takes part in windows of that many slots: none where all fit into the first."""
        if self.given <= window or self.committed > self.given:
            return 0
        return self.given - 1 - self.cached

    @property
    def end(self) -> int:
        """End of the positions worth forwarding at all: the last one's own logits are never needed."""
        return len(self.tokens) - 1

    def reach(self, window: int, guesses: bool, branches: int = 0) -> int:
        """End of the positions worth forwarding now, one after another.

        Without ``guesses`` no fresh drafts stand behind the tokens and drafts that are there. As many slots of the window as there
        are ``branches`` are left for these, but what is known goes first, and a draft: where none is redrawn, no branch is chosen.
        """
        if self.unread(window):
            return min(self.given - 1, self.cached + window)
        window = max(window - branches, min(window, self.committed - self.cached + 1))
        # Where a prefix was there already the first window ends where it would end without it: tokens do not depend on that.
        first = 0 if self.committed == self.given <= window else self.cached
        return min(first + window, self.end if guesses else min(self.committed + self.drafted, self.end))

    def slots(self, end: int, width: int, columns: int | None = None) -> Slots:
        """What a window ``width`` wide holds up to position ``end``; with branches, in a model of so many ``columns``."""
        # Below ``cached`` where little is left: tokens go in again. Beside branches there is room for padding, mostly.
        start = max(0, end - width) if columns is None else min(self.cached, columns - width)
        known = min(end, self.committed)
        drafted = min(end, self.committed + self.drafted)
        return Slots(start, known - start, drafted - known, end - drafted, self.round, known == self.committed)

    def read(self, end: int) -> None:
        """The known tokens below position ``end`` are cached."""
        self.cached = end
        self.trace.committed_per_step.append(0)

    def apply(self, b: int, window: Window, outcome: Outcome, recycles: bool) -> Commit | None:
        """Commit what a step decided for row ``b``, which is this one, and keep its redrafts."""
        start, known = int(window.start[b]), int(window.known[b])
        if not window.draws[b]:
            self.read(start + known)
            return None
        end = start + known + int(window.recycled[b] + window.fresh[b])
        first, count = self.committed, int(outcome.committed[b])
        # The last known token's slot decides the first open position, and the last slot the position after the window.
        decided = outcome.tokens[b, known - 1 : max(end - start, known - 1 + count)]
        error: Exception | None = None
        if decided[count - 1] < 0:
            count -= 1
            error = outcome.failures.get(b) or unusable_law(b, first + count, float("nan"))
        closed = np.flatnonzero(decided[count:] < 0)
        open_ = decided[: count + (int(closed[0]) if closed.size else len(decided) - count)]
        before = (self.tokens, self.committed, self.drafted, self.cached, self.round, self.laws, self.candidates)
        if self.request.stop_rule is not None:
            self.tokens = self.tokens.copy()
        self.tokens[first : first + len(open_)] = open_
        self.committed += count
        self.drafted = len(open_) - count if recycles else 0
        # The last committed token was drawn here, so it was no input yet. Nor is there any state for those that were drafts of
        # branches: they go in again.
        drafts = window.tokens[b, known : end - start]
        stood = min(count - 1, len(drafts))
        differs = drafts[: max(0, stood)] != open_[: max(0, stood)]
        self.cached = first + (int(differs.argmax()) if differs.any() else stood)
        self.candidates = outcome.candidates.get(b)
        self.round += 1
        if b in outcome.laws and count:
            self._keep(outcome.laws[b][:count, ...])
        try:
            # A path's drafts that stand have state now; what else was accepted, but for the last token, were drafts of branches.
            accepted = first + int(outcome.committed[b]) - 1
            return self._commit(b, first, outcome, error, accepted)
        except BaseException:  # Ctrl-C in a stop rule: the round is done again, from what was there
            self.tokens, self.committed, self.drafted, self.cached, self.round, self.laws, self.candidates = before
            raise

    def _commit(self, b: int, first: int, outcome: Outcome, error: Exception | None, accepted: int) -> Commit:
        """Commit up to where the row stops; the drafts that were accepted end at position ``accepted``."""
        reason: Reason | None = None
        try:
            keep = self._stop(first)
        except Exception as raised:  # a stranger's stop rule: anything may come
            keep, error = None, raised
        if keep is not None:
            self.committed, reason = keep, "stop"  # what was accepted behind is discarded, and what failed there
        elif error is not None:
            reason = "error"
        elif self.committed == len(self.tokens):
            reason = "length"
        count = self.committed - first
        self.trace.committed_per_step.append(count)
        self.trace.branch_tokens.extend(range(self.cached - self.given, min(accepted, self.committed) - self.given))
        self.trace.reason = reason
        logprobs, model_logprobs = (
            told[b][:count] if b in told else None for told in (outcome.logprobs, outcome.model_logprobs)
        )
        named = failed(self.handle, error) if reason == "error" and error is not None else None
        tokens = self.tokens[first : self.committed].copy()
        return Commit(
            self.handle, first, tokens, reason is not None, self.trace, reason, named, logprobs, model_logprobs
        )

    def _keep(self, laws: Array) -> None:
        """``laws`` (count, V) are those of the tokens just committed, whose number has been counted."""
        run = laws if self.laws is None else namespace(laws).concat([self.laws, laws], axis=0)
        self.laws = read_only(run[max(0, run.shape[0] - self.laws_back) :, ...])

    def _stop(self, first: int) -> int | None:
        """The committed count at which the sequence ends, among the tokens from position ``first`` on; None if it goes on."""
        ends = []
        new = self.tokens[first : self.committed]
        if self.stop:
            found = next((i for i, token in enumerate(new.tolist()) if token in self.stop), None)
            if found is not None:
                ends.append(first + found + 1)
        for stop in self.stop_sequences:
            # Generated tokens only: a run may begin before ``first``, but not in the prompt.
            begin = max(self.prompt_length, first - len(stop) + 1)
            at = _find(self.tokens[begin : self.committed], stop)
            if at is not None:
                ends.append(begin + at + len(stop))
        rule = self.request.stop_rule
        if rule is not None and len(new):
            keep = rule(read_only(self.tokens[self.prompt_length : self.committed]), len(new))
            if keep is not None:
                ends.append(self._kept(keep, first))
        return min(ends, default=None)

    def _kept(self, keep: object, first: int) -> int:
        least, most = first - self.prompt_length + 1, self.committed - self.prompt_length
        if isinstance(keep, bool) or not isinstance(keep, int | np.integer) or not least <= keep <= most:
            raise InvalidArgument(
                f"stop_rule returned {keep!r}, expected None or how many generated tokens to keep, from {least} to {most}"
            )
        return self.prompt_length + int(keep)


def last_of(tokens: Integers, width: int) -> tuple[int, Integers]:
    """Where the last ``width`` of ``tokens`` (n,) begin, and these: what may go in again without harm.

    The last ones, since a model promises nothing about what it held behind a window.
    """
    start = max(0, len(tokens) - width)
    return start, tokens[start:]


def common_length(held: Integers, wanted: Integers) -> int:
    """Length of the longest common beginning of two token sequences."""
    shorter = min(len(held), len(wanted))
    differ = np.flatnonzero(held[:shorter] != wanted[:shorter])
    return int(differ[0]) if differ.size else shorter


def failed(handle: int, error: Exception) -> Exception:
    """``error`` with the request's ``handle`` in its message: of its own type if it is one of ours, else as the cause."""
    named: Exception = RequestFailed(f"request {handle}: {type(error).__name__}: {error}")
    if isinstance(error, CoupledSamplingError):
        with suppress(TypeError):  # a stranger's subclass may be made of something else
            named = type(error)(f"request {handle}: {error}")
    named.__cause__ = error
    return named


def _find(tokens: Integers, wanted: Integers) -> int | None:
    """Where ``wanted`` (m,) first begins in ``tokens`` (n,)."""
    if len(tokens) < len(wanted):
        return None
    found = np.flatnonzero((np.lib.stride_tricks.sliding_window_view(tokens, len(wanted)) == wanted).all(axis=1))
    return int(found[0]) if found.size else None

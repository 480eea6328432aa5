"""What rows forward in one step, put together: known tokens, recycled drafts, fresh drafts, up to the window.

A row that has fewer tokens left than the widest row forwards a few of its cached tokens again (a window may start lower at any
time), so that nothing is ever padded past the end of the model's memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from coupled_sampling.arrays import read_only
from coupled_sampling.branching import BranchContext, Branches, Branching, checked_branches
from coupled_sampling.contracts import Array, Integers
from coupled_sampling.corrections import Corrector
from coupled_sampling.draft_contracts import DraftContext, Drafting, WaitsForTokens
from coupled_sampling.draws import Noise
from coupled_sampling.errors import InvalidArgument
from coupled_sampling.methods import Method
from coupled_sampling.proposals import propose
from coupled_sampling.rows import IDLE, Row, last_of
from coupled_sampling.slots import Window

__all__ = ["Assembly"]

_NOTHING = np.zeros(0, np.int64)
_NO_BRANCHES = Branches(_NOTHING, _NOTHING)


@dataclass(frozen=True)
class Assembly:
    """Makes windows for one method; fresh drafts come from ``drafting``, which draws from ``noise``."""

    method: Method
    drafting: Drafting
    noise: Noise
    vocab_size: int
    refuses_laws: str | None = None
    """Why the step cannot test drafts that carry laws."""
    branching: Branching | None = None
    """The rule for branches; None for none."""
    max_window: int = 1 << 62
    """Most slots that the step takes without branches."""
    columns: int = 0
    """See `coupled_sampling.contracts.Trees.max_columns`."""
    corrections: Corrector | None = None
    """What the step corrects laws with, for the rule to know."""

    def window(
        self, rows: Sequence[Row | None], idle: Sequence[Integers], most: int, kept: int
    ) -> tuple[Window, dict[int, Exception]]:
        """The next window of ``rows``, at most ``most`` slots wide, and what is wrong with rows that cannot take part.

        ``kept`` slots are for branches; a row may get more where its path is shorter. With none there are none, and no candidates.

        Parameters
        ----------
        rows
            B rows, None for one that has no part in it.
        idle
            B arrays: tokens from position 0 on whose state a row without part has; it forwards the last of them again.
        """
        branching = self.branching if kept else None
        # The path is no wider than the model takes at once; branches may come on top.
        widest = min(most, self.max_window)
        kept = max(0, kept - (most - widest))
        ends = [0 if row is None else row.reach(widest, self._guesses(row), kept) for row in rows]
        fresh = [
            0 if row is None else max(0, end - max(row.committed + row.drafted, row.cached))
            for row, end in zip(rows, ends, strict=True)
        ]
        laws, wrong = self._propose(rows, fresh)
        branches = {} if branching is None else self._branches(branching, rows, ends, most, wrong)
        taking = [(b, row) for b, row in enumerate(rows) if row is not None]
        width = max(ends[b] - row.cached + len(branches.get(b, _NO_BRANCHES).tokens) for b, row in taking)
        columns = self.columns if branches else None
        slots = [
            IDLE if row is None or b in wrong else row.slots(ends[b], width, columns) for b, row in enumerate(rows)
        ]
        again = [last_of(held, width) for held in idle]
        slots = [own if own.known else IDLE._replace(start=first) for own, (first, _) in zip(slots, again, strict=True)]
        # In Python's numbers up to here: arrays of a few rows are slower, and this is what a step costs beside its model.
        start, known, recycled, fresh_slots, round_, draws = np.array(slots, np.int64).T.copy()
        tokens, contexts = np.zeros((len(rows), width), np.int64), []
        for b, row in enumerate(rows):
            if row is None or b in wrong:
                contexts.append(_NOTHING)
                held = again[b][1]
                tokens[b, : len(held)] = held
            else:
                first = slots[b].start
                contexts.append(read_only(row.tokens[: ends[b]]))
                tokens[b, : ends[b] - first] = contexts[b][first:]
        window = Window(
            tokens=tokens,
            start=read_only(start),
            known=known,
            recycled=recycled,
            fresh=fresh_slots,
            draws=draws == 1,
            round=round_,
            rows=[None if row is None or b in wrong else row.info for b, row in enumerate(rows)],
            contexts=contexts,
            fresh_laws=laws,
            candidates=0 if branching is None else int(branching.candidates),
        )
        if branches:
            held_ends = [end or len(held) for end, (_, held) in zip(window.end.tolist(), again, strict=True)]
            window = _with_branches(window, held_ends, branches)
        return window._replace(tokens=read_only(window.tokens)), wrong

    def _branches(
        self, rule: Branching, rows: Sequence[Row | None], ends: Sequence[int], most: int, wrong: dict[int, Exception]
    ) -> dict[int, Branches]:
        """Branches of the rows that draw and get any, by row; faults of the rule go to ``wrong``."""
        found = {}
        for b, row in enumerate(rows):
            if row is None or b in wrong or ends[b] < row.committed or row.end <= row.committed:
                continue
            # Where a window is wider than what is left of the columns, the row starts lower; it must have room for that.
            room = min(most - (ends[b] - row.cached), self.columns - ends[b])
            if room < 1:
                continue
            tokens = read_only(row.tokens[: max(ends[b], row.committed)])
            context = BranchContext(
                tokens, row.committed, room, row.end - row.committed, row.candidates, self.corrections
            )
            try:
                own = checked_branches(rule, context, self.vocab_size)
            except Exception as error:  # a stranger's code: anything may come
                wrong[b] = error
                continue
            if len(own.tokens):
                found[b] = own
        return found

    @cached_property
    def _waiting(self) -> WaitsForTokens | None:
        """The rule, if it may have nothing to go by. Asked once: to ask a Protocol takes longer than a good part of a step."""
        return self.drafting if isinstance(self.drafting, WaitsForTokens) else None

    def _guesses(self, row: Row) -> bool:
        """Whether ``row`` gets fresh drafts."""
        if not self.method.drafts or self._waiting is None:
            return self.method.drafts
        return not self._waiting.waits(read_only(row.tokens[: row.committed + row.drafted]), row.prompt_length)

    def _propose(
        self, rows: Sequence[Row | None], fresh: Sequence[int]
    ) -> tuple[list[Array | None], dict[int, Exception]]:
        """Write ``fresh[b]`` fresh drafts behind row b's recycled ones; returns the laws they carry, and faults by row."""
        laws: list[Array | None] = [None] * len(rows)
        asking = [(b, row) for b, row in enumerate(rows) if row is not None and fresh[b]]
        if not asking:
            return laws, {}
        contexts = [
            DraftContext(
                b,
                read_only(row.tokens[: row.committed + row.drafted]),
                row.prompt_length,
                fresh[b],
                row.info,
                row.round,
                row.laws,
                row.committed,
            )
            for b, row in asking
        ]
        shared = self.method.acceptance == "match"
        proposals, wrong = propose(self.drafting, contexts, self.noise, vocab_size=self.vocab_size, shared=shared)
        faults: dict[int, Exception] = dict(wrong)
        for (b, row), context, proposal in zip(asking, contexts, proposals, strict=True):
            if self.refuses_laws is not None and proposal.law is not None:
                faults.setdefault(b, InvalidArgument(f"the drafts carry laws, but {self.refuses_laws}"))
            first = len(context.tokens)
            row.tokens[first : first + context.wanted] = proposal.tokens
            laws[b] = proposal.law
        return laws, faults


def _with_branches(window: Window, ends: Sequence[int], branches: dict[int, Branches]) -> Window:
    """``window`` with ``branches`` behind the slots ``ends`` of its rows, which are free so far."""
    rows, width = window.tokens.shape
    counts, parents = np.zeros(rows, np.int64), np.full((rows, width), -1, np.int64)
    for b, end in enumerate(ends):
        parents[b, :end] = np.arange(-1, end - 1)
        own = branches.get(b)
        if own is not None:
            counts[b] = len(own.tokens)
            place = slice(end, end + len(own.tokens))
            window.tokens[b, place] = own.tokens
            # Drafts of the path stand behind the known tokens, and branches, which count on from the drafts, right behind these.
            parents[b, place] = own.parents + int(window.known[b])
    return window._replace(branches=counts, parents=read_only(parents))

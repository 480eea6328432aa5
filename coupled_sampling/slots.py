"""One step's input and result: a window of slots, which of them decide, and what came of it.

A *window* is the consecutive positions forwarded in one step, known (committed) tokens first, then drafts; a *slot* is an index
into it. Slot j's context is the slots before it and the state below ``start``. A *site* is a place where a draw is wanted: a
position of a sequence in a round.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.sampling import Array, Integers, RowInfo
from coupled_sampling.trees import Tree

__all__ = ["Candidates", "Decisions", "Outcome", "Sites", "TreeDecisions", "Window"]

_NONE: Mapping[int, object] = MappingProxyType({})


class Sites(NamedTuple):
    """Where draws are wanted: whose noise, which position, which round. Numpy; B rows of n sites.

    In a traced function ``valid`` is an array of its library, and the rest may be None unless the noise looks at it.

    Examples
    --------
    Three positions of one sequence, in its round 2:

    >>> import numpy as np
    >>> from coupled_sampling.contracts import Sites
    >>> sites = Sites(
    ...     seed=np.array([7], np.uint64), sequence=np.array([0], np.uint64), round=np.array([2]),
    ...     position=np.array([[4, 5, 6]]), valid=np.ones((1, 3), bool),
    ... )
    >>> sites.position.shape
    (1, 3)
    """

    seed: NDArray[np.uint64]
    """(B,)."""
    sequence: NDArray[np.uint64]
    """(B,)."""
    round: Integers
    """(B,)."""
    position: Integers
    """(B, n). Valid ones are consecutive along a row; those of a tree come one after another on each path, and leave out none."""
    valid: NDArray[np.bool_]
    """(B, n) sites at which a draw may be asked for; they are next to each other in a row."""

    def at(self, rows: Integers, slots: Integers) -> Sites:
        """The K single sites ``(rows[k], slots[k])``, as K rows of one."""
        return Sites(
            seed=self.seed[rows],
            sequence=self.sequence[rows],
            round=self.round[rows],
            position=self.position[rows, slots][:, None],
            valid=np.ones((len(rows), 1), bool),
        )

    def column(self, slot: int) -> Sites:
        """Site ``slot`` of every row."""
        own = slice(slot, slot + 1)
        position = self.position[:, own] if self.position is not None else None  # while a library traces
        return self._replace(position=position, valid=self.valid[:, own])


class Decisions(NamedTuple):
    """The slots of one step that decide: column j of these arrays (B, n) is slot ``first + j`` of the window.

    Examples
    --------
    A known token, then two recycled drafts: three slots decide, and the last of them has no draft to test.

    >>> import numpy as np
    >>> from coupled_sampling import Sampling, Window
    >>> from coupled_sampling.contracts import RowInfo
    >>> one = np.array([1])
    >>> window = Window(
    ...     np.array([[5, 3, 3]]), 9 * one, one, 2 * one, 0 * one, one == 1, one, [RowInfo(0, 0, Sampling())], [one], [None]
    ... )
    >>> decisions = window.decisions()
    >>> decisions.draft, decisions.has_draft
    (array([[3, 3, 0]]), array([[ True,  True, False]]))
    """

    sites: Sites
    """What each slot decides; ``valid`` are those that decide, see `Window.decides`."""
    first: int
    """The first slot that any row decides; those before it only forward known tokens. W where nothing is decided."""
    draft: Integers
    """(B, n) the draft to test, anything where there is none."""
    has_draft: NDArray[np.bool_]
    """(B, n); a row's last deciding slot has none: its token is free."""
    usable: NDArray[np.bool_] | None = None
    """(B, n) whether a slot's logits make a law; None where all that decide do."""


class TreeDecisions(NamedTuple):
    """The slots of one step that decide in a window with branches.

    There are two views of them. `slots` has a column for every deciding slot, of the path and of the branches: column j is slot
    ``first + j``. `path` has a column for every position: column j decides position ``start + first + j + 1``, and its drafts are
    those of the slots that follow one another from the left.

    Examples
    --------
    A known token 5, a draft 3 and another guess beside it, 4:

    >>> import numpy as np
    >>> from coupled_sampling import Sampling, Window
    >>> from coupled_sampling.contracts import RowInfo
    >>> one = np.array([1])
    >>> window = Window(
    ...     np.array([[5, 3, 4]]), 9 * one, one, one, 0 * one, one == 1, one, [RowInfo(0, 0, Sampling())], [one], [None],
    ...     branches=one, parents=np.array([[-1, 0, 0]]),
    ... )
    >>> found = window.tree_decisions()
    >>> found.slots.has_draft.tolist(), found.path.has_draft.tolist()
    ([[False, True, True]], [[True, False]])
    """

    slots: Decisions
    """(B, n) of all slots; ``draft`` is each slot's *own* token, and ``has_draft`` whether that is a draft."""
    path: Decisions
    """(B, m) of the path, m no less than the positions that any branch reaches; a branch may reach further than it."""
    parents: Integers
    """(B, n) columns of the parents; of a slot whose parent decides nothing, anything."""
    depth: Integers
    """(B, n) the column in `path` of the position that each slot decides."""
    sees: NDArray[np.bool_]
    """(B, n, n) see `coupled_sampling.trees.Tree.sees`."""
    tips: Integers
    """(B, n) where one comes from each slot by going on to its first child as long as there is one."""


class Candidates(NamedTuple):
    """What else a position's redraft might have been, of n positions that follow one another.

    Examples
    --------
    Two positions, of which the first is in doubt:

    >>> import numpy as np
    >>> from coupled_sampling.contracts import Candidates
    >>> candidates = Candidates(tokens=np.array([[4, 9], [2, 7]]), scores=np.array([[1.2, 1.1], [3.0, -2.0]]))
    >>> candidates.tokens[:, 0].tolist()  # the redrafts themselves
    [4, 2]
    """

    tokens: Integers
    """(n, K) the best tokens of the position's race, best first: the first is the redraft itself."""
    scores: NDArray[np.floating]
    """(n, K) what they came to: the logarithm of their probability plus their noise; -inf for a token that cannot be."""

    @classmethod
    def led(cls, redrafts: Integers, tokens: Integers, scores: NDArray[np.floating]) -> Candidates:
        """``tokens`` (n, K) with each position's redraft (n,) in front: it may be another one of equal score, or rank lower."""
        tokens = tokens.copy()
        for i in np.flatnonzero(tokens[:, 0] != redrafts).tolist():
            place = int((tokens[i] == redrafts[i]).argmax()) if redrafts[i] in tokens[i] else tokens.shape[1] - 1
            tokens[i, 1 : place + 1] = tokens[i, :place]
            tokens[i, 0] = redrafts[i]
        return cls(tokens, scores)


class Window(NamedTuple):
    """One step's input. All arrays are numpy, B rows; W is the widest row's number of slots.

    A row's slots are, from the left: ``known`` committed tokens, ``recycled`` drafts (this step's own redrafts of the
    round before, so it has their laws), ``fresh`` drafts (first guesses), then padding. An idle row has none of them.

    Behind these may stand ``branches``: drafts that follow other slots than the one before them, see ``parents``.

    A slot's logits are for the position after its own. So what decides is the slot of the last known token, which decides
    about the first draft, and each slot of a draft; nothing decides in a row that does not draw.

    Examples
    --------
    What a step is given when a row has one known token, two recycled drafts and one fresh draft:

    >>> import numpy as np
    >>> from coupled_sampling import Sampling, Window
    >>> from coupled_sampling.contracts import RowInfo
    >>> one = lambda value: np.array([value])
    >>> window = Window(
    ...     tokens=np.array([[5, 1, 1, 4]]), start=one(9), known=one(1), recycled=one(2), fresh=one(1),
    ...     draws=one(True), round=one(3),
    ...     rows=[RowInfo(0, 0, Sampling())], contexts=[np.array([0, 2, 2, 3, 1, 0, 1, 2, 4, 5, 1, 1, 4])], fresh_laws=[None],
    ... )
    >>> int((window.known + window.recycled + window.fresh)[0]) == window.tokens.shape[1]
    True
    """

    tokens: Integers
    """(B, W)."""
    start: Integers
    """(B,) position of slot 0."""
    known: Integers
    """(B,)."""
    recycled: Integers
    """(B,)."""
    fresh: Integers
    """(B,)."""
    draws: NDArray[np.bool_]
    """(B,) whether the row commits anything: false while its prompt goes on beyond the window, and for idle rows."""
    round: Integers
    """(B,) the sequence's own step counter."""
    rows: Sequence[RowInfo | None]
    """B entries, None for an idle row."""
    contexts: Sequence[Integers]
    """B arrays: the row's tokens from position 0 to the end of its window, for processors. Read-only, as are ``tokens``."""
    fresh_laws: Sequence[Array | None]
    """B entries: laws (fresh, V) that the fresh drafts were drawn from, or None for point masses."""
    first_row: int = 0
    """The batch row of row 0."""
    candidates: int = 0
    """How many candidates of each redraft are wanted, see `Outcome.candidates`."""
    branches: Integers | None = None
    """(B,) slots of branches, behind the fresh drafts; None where no row has any."""
    parents: Integers | None = None
    """(B, W) each slot's parent, see `coupled_sampling.trees`; None where each follows the one before it. The parent of padding is
    -1."""

    @property
    def end(self) -> Integers:
        """(B,) slots that are neither branches nor padding."""
        return self.known + self.recycled + self.fresh

    @property
    def positions(self) -> Integers:
        """(B, W) the position that the logits of each slot are for; of windows without branches."""
        return self.start[:, None] + np.arange(1, self.tokens.shape[1] + 1)

    def part(self, rows: range) -> Window:
        """The window of consecutive ``rows`` alone."""

        def own(field: Any) -> Any:
            return field if field is None or isinstance(field, int) else field[rows.start : rows.stop]

        return Window(*map(own, self))._replace(first_row=self.first_row + rows.start)

    def busy_parts(self) -> list[range]:
        """The rows to run together where rows can be chosen: those in use, and a single idle one between two of them.

        A weight is read once for all rows of a call, so that a call costs about as much as one row more in it.
        """
        parts: list[range] = []
        for row, info in enumerate(self.rows):
            if info is None:
                continue
            if parts and row - parts[-1].stop <= 1:
                parts[-1] = range(parts[-1].start, row + 1)
            else:
                parts.append(range(row, row + 1))
        return parts

    def decided_positions(self, row: int) -> tuple[int, int]:
        """What ``row`` decides, if it draws: the positions ``first`` to ``end - 1``, those of its drafts and one more."""
        first = int(self.start[row] + self.known[row])
        return first, first + int(self.recycled[row] + self.fresh[row]) + 1

    def decides(self) -> NDArray[np.bool_]:
        """(B, W) whether a slot decides."""
        slot = np.arange(self.tokens.shape[1])
        return self.draws[:, None] & (slot >= self.known[:, None] - 1) & (slot < self.end[:, None])

    def decisions(self) -> Decisions:
        """The slots that decide, as sites to draw at; n = 0 if no row draws.

        Examples
        --------
        Known tokens 7 and 5, then a recycled draft 3:

        >>> one = np.array([1])
        >>> row = RowInfo(seed=0, sequence=0, sampling=Sampling())
        >>> window = Window(
        ...     np.array([[7, 5, 3]]), 10 * one, 2 * one, one, 0 * one, one == 1, one, [row], [np.zeros(0, int)], [None]
        ... )
        >>> found = window.decisions()
        >>> found.first, found.sites.position.tolist(), found.draft[found.has_draft].tolist()
        (1, [[12, 13]], [3])
        """
        rows, width = self.tokens.shape
        first = self._first
        valid = self.decides()[:, first:]
        draft = np.zeros((rows, width - first), np.int64)
        draft[:, :-1] = self.tokens[:, first + 1 :]
        has_draft = np.zeros(valid.shape, np.bool_)
        has_draft[:, :-1] = valid[:, :-1] & valid[:, 1:]  # the draft of a slot stands in the next one
        sites = Sites(
            seed=np.array([0 if info is None else info.seed for info in self.rows], np.uint64),
            sequence=np.array([0 if info is None else info.sequence for info in self.rows], np.uint64),
            round=self.round,
            position=self.positions[:, first:],
            valid=valid,
        )
        return Decisions(sites, first, draft, has_draft)

    @property
    def _first(self) -> int:
        """The first slot that any row decides; W where nothing is decided."""
        return int((self.known[self.draws] - 1).min(initial=self.tokens.shape[1]))

    def tree_decisions(self) -> TreeDecisions:
        """The slots that decide, where the window has ``parents`` and ``branches``."""
        assert self.parents is not None, "asked where there are branches"
        assert self.branches is not None, "which are counted then"
        path, first, tree = self.decisions(), self._first, Tree.of(self.parents)
        slot = np.arange(first, self.tokens.shape[1])
        decides = self.draws[:, None] & (slot >= self.known[:, None] - 1)
        valid = decides & (slot < (self.end + self.branches)[:, None])
        depth = np.maximum(tree.depth[:, first:] - first, 0)  # padding, and rows that decide nothing, may begin lower
        count = 1 + int(depth[valid].max(initial=0))
        sites = path.sites._replace(position=self.start[:, None] + tree.depth[:, first:] + 1, valid=valid)
        drafts = valid & (slot >= self.known[:, None])
        slots = Decisions(sites, first, self.tokens[:, first:], drafts)
        cut = path.sites._replace(position=path.sites.position[:, :count], valid=path.sites.valid[:, :count])
        path = Decisions(cut, first, path.draft[:, :count], path.has_draft[:, :count])
        parents = np.maximum(self.parents[:, first:] - first, 0)
        tips = np.maximum(tree.tips()[:, first:] - first, 0)
        return TreeDecisions(slots, path, parents, depth, tree.sees[:, first:, first:], tips)


class Outcome(NamedTuple):
    """One step's result, in numpy. ``tokens[b, j]`` is for position ``start[b] + j + 1``.

    Examples
    --------
    A row that had one known token and three drafts. Its first draft was accepted, its second corrected; two positions were
    redrafted:

    >>> import numpy as np
    >>> from coupled_sampling import Outcome
    >>> outcome = Outcome(tokens=np.array([[1, 7, 1, 4]]), committed=np.array([2]))
    >>> outcome.tokens[0, : outcome.committed[0]]
    array([1, 7])
    """

    tokens: Integers
    """(B, W): from slot ``known - 1`` on, first the ``committed`` tokens, then redrafts (if the method recycles). Negative from the
    first slot on that has no usable law: there the row's drafts end, and where it is committed, the row has failed."""
    committed: Integers
    """(B,) new committed tokens: accepted drafts and one more; 0 where the row draws nothing."""
    failures: Mapping[int, Exception] = _NONE  # type: ignore[assignment]
    """Why a row that committed a negative token failed, by row, where the step knows."""
    logprobs: Mapping[int, NDArray[np.float64]] = _NONE  # type: ignore[assignment]
    """Log-probabilities (committed,) under the target laws of rows that asked for them."""
    model_logprobs: Mapping[int, NDArray[np.float64]] = _NONE  # type: ignore[assignment]
    """The same under the model's own laws."""
    laws: Mapping[int, Array] = _NONE
    """The target laws themselves (committed, V) of rows that asked for them, in memory that no later step writes to."""
    candidates: Mapping[int, Candidates] = _NONE  # type: ignore[assignment]
    """Candidates of each redraft, of rows that have any, where ``Window.candidates`` asks for them."""

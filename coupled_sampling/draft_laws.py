"""The laws that drafts were drawn from: kept from one round to the next, and looked up in pieces.

A row's drafts come in runs: recycled ones, whose laws the step kept from the round before, then fresh ones, which are
point masses or carry laws of their own. Most of a step needs one number per draft, or the law at the few sites that were
refused; so the runs are never put together into one array unless somebody asks (`DraftLaws.dense`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.arrays import filled, from_host, namespace, pick, point_masses, to_host
from coupled_sampling.contracts import Array, Integers
from coupled_sampling.couplings import residual
from coupled_sampling.draws import Draw
from coupled_sampling.errors import InvalidArgument
from coupled_sampling.law_book import Held, LawBook
from coupled_sampling.law_forms import LawsInPieces

__all__ = ["DraftLaws", "KeptLaws", "Run"]


class Run(NamedTuple):
    """Drafts at the consecutive slots ``first`` to ``end - 1`` of one row, and where they came from."""

    first: int
    end: int
    laws: Array | None
    """(end - first, V) the draft laws; None where every draft is a point mass."""


class DraftLaws(LawsInPieces):
    """Draft laws q of the sites (B, n) of one step; q = 0 where there is no draft, so that its residual is the target law.

    Parameters
    ----------
    draft
        int64 (B, n), numpy: the drafts.
    runs
        B sequences of runs, each from the left to the right and without overlap.
    """

    draft: Integers
    drafted: NDArray[np.bool_]

    def __init__(self, draft: Integers, runs: Sequence[Sequence[Run]]) -> None:
        self.draft = draft
        self._runs = runs
        self.drafted = np.zeros(draft.shape, bool)
        for b, run in self._each():
            self.drafted[b, run.first : run.end] = True

    def of_drafts(self, like: Array) -> Array:
        if isinstance(like, np.ndarray):
            chances = np.zeros(self.draft.shape, like.dtype)
            for b, run in self._each():
                drafts = self.draft[b, run.first : run.end]
                chances[b, run.first : run.end] = (
                    1 if run.laws is None else run.laws[np.arange(run.end - run.first), drafts]
                )
            return chances
        xp, rows = namespace(like), []
        for b, runs in enumerate(self._runs):
            pieces, at = [], 0
            for run in runs:
                drafts = from_host(self.draft[b, run.first : run.end], like)
                pieces.append(filled((run.first - at,), 0, like))
                pieces.append(filled((run.end - run.first,), 1, like) if run.laws is None else pick(run.laws, drafts))
                at = run.end
            pieces.append(filled((self.draft.shape[1] - at,), 0, like))
            rows.append(xp.concat(pieces, axis=0))
        return xp.stack(rows, axis=0)

    def corrected(self, target_law: Array, where: Array, uniform: Array | Draw, *, leading: bool) -> Array:
        if not isinstance(uniform, Draw):
            raise InvalidArgument(
                f"residual_uniform is a {type(uniform).__name__}, expected a Draw: draft laws in pieces are for the decoding loop; "
                "with uniforms pass laws as an array, such as DraftLaws.dense gives"
            )
        if not leading and not isinstance(target_law, np.ndarray):
            # Many sites of a library whose arrays cannot be indexed one by one in reasonable time.
            return uniform.categorical(residual(target_law, self.dense(target_law)), where)
        rows, at = np.nonzero(to_host(where))
        tokens = np.array(self.draft)
        if len(rows):
            weights = self.residuals(target_law, rows, at)[:, None, :]
            every = from_host(np.ones((len(rows), 1), bool), target_law)
            tokens[rows, at] = to_host(uniform.at(rows, at).categorical(weights, every))[:, 0]
        return from_host(tokens, target_law)

    def residuals(self, target: Array, rows: Integers, slots: Integers) -> Array:
        """Residual weights (K, V) at the K sites ``(rows[k], slots[k])`` of the target laws (B, n, V)."""
        if not isinstance(target, np.ndarray):
            pairs = zip(rows.tolist(), slots.tolist(), strict=True)
            one_by_one = [residual(target[b, j, ...], self._at(b, j, target)) for b, j in pairs]
            return namespace(target).stack(one_by_one, axis=0)
        # `residual`, in the memory of the one copy that has to be made anyway.
        weights = target[rows, slots]
        for own, b, j in zip(weights, rows.tolist(), slots.tolist(), strict=True):
            run = self._run_at(b, j)
            if run is None:
                continue
            if run.laws is None:
                own[self.draft[b, j]] = 0  # p <= 1: nothing is left of the drafted token
            else:
                np.maximum(np.subtract(own, run.laws[j - run.first], out=own), 0, out=own)
        empty = ~(weights.max(axis=-1) > 0)  # see `residual`
        weights[empty] = target[rows[empty], slots[empty]]
        return weights

    def column(self, site: int) -> DraftLaws:
        runs: list[list[Run]] = []
        for b in range(len(self._runs)):
            run = self._run_at(b, site)
            if run is None:
                runs.append([])
                continue
            at = site - run.first
            runs.append([Run(0, 1, None if run.laws is None else run.laws[at : at + 1, ...])])
        return DraftLaws(self.draft[:, site : site + 1], runs)

    def dense(self, like: Array) -> Array:
        """All laws (B, n, V) in one array of the library and type of ``like`` (B, n, V)."""
        xp = namespace(like)
        return xp.stack([self._dense_row(b, like) for b in range(len(self._runs))], axis=0)

    def _dense_row(self, row: int, like: Array) -> Array:
        xp, vocab_size = namespace(like), like.shape[-1]
        pieces, at = [], 0
        for run in self._runs[row]:
            pieces.append(filled((run.first - at, vocab_size), 0, like))
            drafts = from_host(self.draft[row, run.first : run.end], like)
            pieces.append(point_masses(drafts, vocab_size, like) if run.laws is None else run.laws)
            at = run.end
        blank = self.draft.shape[1] - at
        pieces.append(filled((blank, vocab_size), 0, like))
        return xp.concat(pieces, axis=0)

    def _at(self, row: int, slot: int, like: Array) -> Array:
        """The draft law (V,) of one site."""
        run = self._run_at(row, slot)
        if run is None:
            return namespace(like).zeros_like(like[row, slot, ...])
        if run.laws is None:
            return point_masses(from_host(np.asarray(self.draft[row, slot]), like), like.shape[-1], like)
        return run.laws[slot - run.first, ...]

    def _run_at(self, row: int, slot: int) -> Run | None:
        return next((run for run in self._runs[row] if run.first <= slot < run.end), None)

    def _each(self) -> Iterator[tuple[int, Run]]:
        return ((b, run) for b, runs in enumerate(self._runs) for run in runs)


class KeptLaws:
    """The memory under the books: the laws of every row's redrafted positions, for the rounds that may still be asked for."""

    def __init__(self) -> None:
        self._books: dict[int, LawBook] = {}
        self._held: dict[int, list[Array | None]] = {}
        self._memory: list[NDArray[Any]] = []

    def forget(self, row: int) -> None:
        """Drop the laws of ``row``."""
        self._books.pop(row, None)
        self._held.pop(row, None)

    def keep(self, row: int, round_: int, position: int, laws: Array) -> None:
        """From now on ``laws`` (n, V) are those of the row's n positions from ``position`` on, after ``round_``."""
        book = self._books.get(row, LawBook())
        target = book.target(round_)
        self._books[row] = book = book.written(target, Held(round_, position, position, position + laws.shape[0]))
        held = self._held.get(row, (None, None))
        self._held[row] = [laws if i == target else held[i] if book[i] is not None else None for i in (0, 1)]

    def recall(self, row: int, round_: int, position: int, count: int) -> Array:
        """Laws (count, V) of the drafts redrawn in ``round_`` at ``position`` and after.

        Raises
        ------
        InvalidArgument
            There are none: the window's recycled drafts are not those of the outcome of that round.
        """
        book = self._books.get(row, LawBook())
        source = book.source(row, round_, position, position + count)
        held, laws = book[source], self._held[row][source]
        assert held is not None, "a book names a memory that holds something"
        assert laws is not None, "what the book says is there is there"
        begin = position - held.start
        return laws[begin : begin + count, ...]

    def room(self, like: Array, rounds: Mapping[int, int]) -> NDArray[Any] | None:
        """Numpy memory in the shape of the logits ``like``, to be used for the next laws: nothing that is wanted lies in it.

        None where ``like`` is not numpy or too narrow to hold laws. Fresh memory would cost more than softmax itself.

        Parameters
        ----------
        rounds
            By row, the round that is about to be decided. What its book gives up for that round is gone from here on.
        """
        if not isinstance(like, np.ndarray) or like.dtype not in (np.float32, np.float64):
            return None
        for row, round_ in rounds.items():
            if row in self._books:
                given_up = self._books[row].target(round_)
                self._books[row], self._held[row][given_up] = self._books[row].written(given_up, None), None
        taken = {id(laws.base) for kept in self._held.values() for laws in kept if laws is not None}
        fitting = [block for block in self._memory if block.dtype == like.dtype and block.size >= like.size]
        free = next((block for block in fitting if id(block) not in taken), None)
        if free is None:
            free = np.empty(like.size, like.dtype)
            self._memory = [block for block in fitting if id(block) in taken] + [free]
        return free[: like.size].reshape(like.shape)

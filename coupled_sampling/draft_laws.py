"""The laws that drafts were drawn from: kept from one round to the next, and looked up in pieces.

A row's drafts come in runs: recycled ones, whose laws the step kept from the round before, then fresh ones, which are
point masses or carry laws of their own. Most of a step needs one number per draft, or the law at the few sites that were
refused; so the runs are never put together into one array unless somebody asks (`DraftLaws.dense`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.acceptance import residual
from coupled_sampling.arrays import array_device, from_host, namespace, pick, point_masses
from coupled_sampling.contracts import Array, Integers
from coupled_sampling.errors import InvalidArgument

__all__ = ["DraftLaws", "KeptLaws", "Run"]


class Run(NamedTuple):
    """Drafts at the consecutive slots ``first`` to ``end - 1`` of one row, and where they came from."""

    first: int
    end: int
    laws: Array | None
    """(end - first, V) the draft laws; None where every draft is a point mass."""


class DraftLaws:
    """Draft laws q of the sites (B, n) of one step; q = 0 where there is no draft, so that its residual is the target law.

    Parameters
    ----------
    draft
        int64 (B, n), numpy: the drafts.
    runs
        B sequences of runs, each from the left to the right and without overlap.
    """

    def __init__(self, draft: Integers, runs: Sequence[Sequence[Run]]) -> None:
        self._draft = draft
        self._runs = runs

    def of_drafts(self, like: Array) -> Array:
        """q(draft) (B, n) in the library and type of ``like``; 0 where there is no draft."""
        if isinstance(like, np.ndarray):
            chances = np.zeros(self._draft.shape, like.dtype)
            for b, run in self._each():
                drafts = self._draft[b, run.first : run.end]
                chances[b, run.first : run.end] = (
                    1 if run.laws is None else run.laws[np.arange(run.end - run.first), drafts]
                )
            return chances
        xp, device = namespace(like), array_device(like)
        rows = []
        for b, runs in enumerate(self._runs):
            pieces, at = [], 0
            for run in runs:
                drafts = from_host(self._draft[b, run.first : run.end], like)
                ones = xp.ones(run.end - run.first, dtype=like.dtype, device=device)
                pieces.append(xp.zeros(run.first - at, dtype=like.dtype, device=device))
                pieces.append(ones if run.laws is None else pick(run.laws, drafts))
                at = run.end
            pieces.append(xp.zeros(self._draft.shape[1] - at, dtype=like.dtype, device=device))
            rows.append(xp.concat(pieces, axis=0))
        return xp.stack(rows, axis=0)

    def residuals(self, target: Array, rows: Integers, slots: Integers) -> Array:
        """Residual weights (K, V) at the K sites ``(rows[k], slots[k])`` of the target laws (B, n, V)."""
        if not isinstance(target, np.ndarray):
            pairs = zip(rows.tolist(), slots.tolist(), strict=True)
            one_by_one = [residual(target[b, j, :], self._at(b, j, target)) for b, j in pairs]
            return namespace(target).stack(one_by_one, axis=0)
        weights = target[rows, slots]
        for own, b, j in zip(weights, rows.tolist(), slots.tolist(), strict=True):
            run = self._run_at(b, j)
            if run is None:
                continue
            if run.laws is None:
                own[self._draft[b, j]] = 0
            else:
                np.maximum(np.subtract(own, run.laws[j - run.first], out=own), 0, out=own)
        empty = ~(weights.max(axis=-1) > 0)  # see `residual`
        weights[empty] = target[rows[empty], slots[empty]]
        return weights

    def dense(self, like: Array) -> Array:
        """All laws (B, n, V) in one array of the library and type of ``like`` (B, n, V)."""
        xp = namespace(like)
        return xp.stack([self._dense_row(b, like) for b in range(len(self._runs))], axis=0)

    def _dense_row(self, row: int, like: Array) -> Array:
        xp, vocab_size = namespace(like), like.shape[-1]
        pieces, at = [], 0
        for run in self._runs[row]:
            pieces.append(xp.zeros((run.first - at, vocab_size), dtype=like.dtype, device=array_device(like)))
            drafts = from_host(self._draft[row, run.first : run.end], like)
            pieces.append(point_masses(drafts, vocab_size, like) if run.laws is None else run.laws)
            at = run.end
        blank = self._draft.shape[1] - at
        pieces.append(xp.zeros((blank, vocab_size), dtype=like.dtype, device=array_device(like)))
        return xp.concat(pieces, axis=0)

    def _at(self, row: int, slot: int, like: Array) -> Array:
        """The draft law (V,) of one site."""
        run = self._run_at(row, slot)
        if run is None:
            return namespace(like).zeros_like(like[row, slot, :])
        if run.laws is None:
            return point_masses(from_host(np.asarray(self._draft[row, slot]), like), like.shape[-1], like)
        return run.laws[slot - run.first, :]

    def _run_at(self, row: int, slot: int) -> Run | None:
        return next((run for run in self._runs[row] if run.first <= slot < run.end), None)

    def _each(self) -> list[tuple[int, Run]]:
        return [(b, run) for b, runs in enumerate(self._runs) for run in runs]


class KeptLaws:
    """The laws of every row's redrafted positions, for the two latest rounds of each.

    Two, because a step whose outcome is lost on the way to the loop (Ctrl-C) is then done again, from the older one.
    """

    def __init__(self) -> None:
        self._held: dict[int, dict[int, tuple[int, Array]]] = {}
        self._memory: list[NDArray[Any]] = []

    def forget(self, row: int) -> None:
        """Drop the laws of ``row``."""
        self._held.pop(row, None)

    def keep(self, row: int, round_: int, position: int, laws: Array) -> None:
        """From now on ``laws`` (n, V) are those of the row's n positions from ``position`` on, after ``round_``."""
        held = self._held.get(row, {})
        before = {round_ - 1: held[round_ - 1]} if round_ - 1 in held else {}
        self._held[row] = {**before, round_: (position, laws)}

    def recall(self, row: int, round_: int, position: int, count: int) -> Array:
        """Laws (count, V) of the drafts redrawn in ``round_`` at ``position`` and after.

        Raises
        ------
        InvalidArgument
            There are none: the window's recycled drafts are not those of the outcome of that round.
        """
        first, laws = self._held.get(row, {}).get(round_, (0, None))
        begin = position - first
        if laws is None or begin < 0 or begin + count > laws.shape[0]:
            raise InvalidArgument(
                f"window.recycled of row {row} is {count} drafts from position {position} on, but of round {round_} this "
                f"step holds {'no laws' if laws is None else f'laws for {first} to {first + laws.shape[0] - 1}'}; "
                "recycled drafts must be those of the outcome of the round before"
            )
        return laws[begin : begin + count, ...]

    def all(self) -> list[Array]:
        """Every array of laws held."""
        return [laws for rounds in self._held.values() for _, laws in rounds.values()]

    def room(self, like: Array) -> NDArray[Any] | None:
        """Numpy memory in the shape of the logits ``like`` that no kept law lies in, to be used for the next laws.

        None where ``like`` is not numpy or too narrow to hold laws. Fresh memory would cost more than softmax itself.
        """
        if not isinstance(like, np.ndarray) or like.dtype not in (np.float32, np.float64):
            return None
        taken = {id(laws.base) for laws in self.all()}
        fitting = [block for block in self._memory if block.dtype == like.dtype and block.size >= like.size]
        free = next((block for block in fitting if id(block) not in taken), None)
        if free is None:
            free = np.empty(like.size, like.dtype)
            self._memory = [block for block in fitting if id(block) in taken] + [free]
        return free[: like.size].reshape(like.shape)

"""The corrector of every row of a batch, and what it learns while a step decodes.

A corrector that `Learns` is told of positions when they are committed, and uses that a round later: what a round commits is put
aside with the round's number and learned when a later round begins. So a round that is done again, because its outcome was lost or
something was raised, corrects as it did the first time, and nothing is learned twice.

What a row's next round looks at is thereby decided to the left of all that is still open, and its drafts have the laws that are
recorded for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.arrays import at_least_float32, to_host
from coupled_sampling.contracts import Array, Decisions, Integers, Window
from coupled_sampling.corrections import Corrector, Learns, check_corrector, learn
from coupled_sampling.methods import Method
from coupled_sampling.step_report import Made

__all__ = ["RowCorrectors"]


class _Committed(NamedTuple):
    """What a round of a row committed."""

    round: int
    logits: NDArray[np.floating]
    """(n, V)."""
    neighbours: Integers
    """(n, K)."""


class RowCorrectors:
    """Correctors by row; rows are those of the whole batch.

    Parameters
    ----------
    corrections
        What was asked for, or None.
    method
        Where it accepts by "match", rows share the corrector, since no token depends on it. Else each sequence learns by itself.
    """

    def __init__(self, corrections: Corrector | None, method: Method) -> None:
        self.corrections = corrections if method.recycles else None
        # Asked once: to ask a Protocol takes longer than a good part of a step.
        self._learns = isinstance(self.corrections, Learns)
        self._apart = self._learns and method.acceptance != "match"
        self._own: dict[int, Corrector] = {}
        self._committed: dict[int, _Committed] = {}

    def begin(self, row: int) -> None:
        """Another sequence begins in ``row``."""
        if self._apart:
            self._committed.pop(row, None)
            self._own.pop(row, None)
        else:
            self._learn(row)

    def of(self, window: Window) -> list[Corrector | None]:
        """The correctors of the rows of ``window``, None where nothing is corrected; they learn of the rounds before it first."""
        if self.corrections is None:
            return [None] * len(window.rows)
        for b, info in enumerate(window.rows):
            row = window.first_row + b
            held = self._committed.get(row)
            if held is not None and (held.round < window.round[b] if info is not None else not self._apart):
                self._learn(row)
        return [None if info is None else self._corrector(window.first_row + b) for b, info in enumerate(window.rows)]

    def commit(self, window: Window, slots: Decisions, logits: Array, tokens: Integers, made: Sequence[Made]) -> None:
        """Put aside what was committed.

        Parameters
        ----------
        window, slots, logits
            The round, its sites by position; logits (B, n, V) of the deciding slots, which may be overwritten later.
        tokens
            (B, n) what it decided.
        made
            By row, what was committed by a law.
        """
        for b, committed in enumerate(made if self._learns else ()):
            own = committed.sites
            corrector = self._corrector(window.first_row + b) if window.draws[b] else None
            if not isinstance(corrector, Learns):
                continue
            begin, _ = window.decided_positions(b)
            context = np.concatenate([window.contexts[b][:begin], tokens[b, own]])
            neighbours = _neighbours(context, slots.sites.position[b, own], corrector.lags, logits.shape[-1])
            copied = np.array(to_host(at_least_float32(committed.of(logits, b))))
            self._committed[window.first_row + b] = _Committed(int(window.round[b]), copied, neighbours)

    def _corrector(self, row: int) -> Corrector | None:
        if not self._apart:
            return self.corrections
        if row not in self._own:
            assert isinstance(self.corrections, Learns), "apart are correctors that learn"
            begun = self.corrections.begun()
            check_corrector(begun)
            self._own[row] = begun
        return self._own[row]

    def _learn(self, row: int) -> None:
        """Learn what was put aside for ``row``."""
        corrector, held = self._corrector(row), self._committed.get(row)
        if held is not None and isinstance(corrector, Learns):
            learn(corrector, held.logits, held.neighbours)
            del self._committed[row]  # at once: an interruption finds both done or neither


def _neighbours(context: Integers, positions: Integers, lags: Sequence[int], nobody: int) -> NDArray[np.int64]:
    """(n, K) the tokens of ``context`` that stand ``lags`` before ``positions`` (n,); ``nobody`` before the first."""
    at = positions[:, None] - np.array(lags)
    return np.where(at < 0, nobody, context[np.maximum(at, 0)])

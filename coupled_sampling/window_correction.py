"""The correction of one window's redrafts: which neighbours have changed, and the laws that correctors predict for that.

It is what `coupled_sampling.HostStep` hands to `coupled_sampling.step_rule.decide`. Only sites with a changed neighbour cost
anything: one softmax each, and the corrector's own work, for all rows of a site together.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.arrays import at_least_float32, filled, from_host, namespace, to_host
from coupled_sampling.contracts import Array, Decisions, Integers, Window
from coupled_sampling.corrections import Changes, Corrector, correct
from coupled_sampling.step_rule import CorrectedSite
from coupled_sampling.target import target_laws

__all__ = ["WindowCorrection"]


class WindowCorrection:
    """A `coupled_sampling.step_rule.Correction` for one step.

    Parameters
    ----------
    correctors
        B entries: a row's corrector, or None.
    logits
        (B, n, V) of the deciding slots: the model's own, after guidance.
    window, slots
        What was forwarded, and its deciding slots.

    Examples
    --------
    A known token 5 and two drafts, 3 and 3. The first draft has become a 1, and the corrector makes token 0 likely after that:

    >>> import numpy as np
    >>> from coupled_sampling import Sampling, Window
    >>> from coupled_sampling.contracts import RowInfo
    >>> from coupled_sampling.plain_corrections import KeptAverages
    >>> one, row = np.array([1]), RowInfo(seed=0, sequence=0, sampling=Sampling())
    >>> window = Window(
    ...     np.array([[5, 3, 3]]), 0 * one, one, 2 * one, 0 * one, one == 1, one, [row], [np.array([5, 3, 3])], [None]
    ... )
    >>> kept = KeptAverages((1,), np.array([[0.0] * 6, [9.0] + [0.0] * 5]), np.array([[0, 1, 0, 0, 0, 0, 0]]))
    >>> correction = WindowCorrection([kept], np.zeros((1, 3, 6)), window, window.decisions())
    >>> found = correction.at(1, tokens=np.array([[1, 4, 4]]), later=np.array([[False, True, True]]))
    >>> found.changed.tolist(), found.law.round(2).tolist()
    ([True], [[1.0, 0.0, 0.0, 0.0, 0.0, 0.0]])
    """

    def __init__(self, correctors: Sequence[Corrector | None], logits: Array, window: Window, slots: Decisions) -> None:
        self._correctors, self._logits, self._window, self._slots = correctors, logits, window, slots
        self._lags = [() if corrector is None else tuple(corrector.lags) for corrector in correctors]
        self.softmaxes = 0
        """Laws that were predicted so far."""

    def at(self, site: int, tokens: Array, later: Array) -> CorrectedSite | None:
        """See `coupled_sampling.step_rule.Correction.at`."""
        valid, draft = self._slots.sites.valid, self._slots.draft
        now, wanted = to_host(tokens), to_host(later[:, site])
        moved = valid & (now != draft)
        rows = [
            b
            for b in np.flatnonzero(wanted).tolist()
            if any(lag <= site and moved[b, site - lag] for lag in self._lags[b])
        ]
        return self._corrected(rows, site, np.where(valid, now, draft)) if rows else None

    def _corrected(self, rows: list[int], site: int, now: Integers) -> CorrectedSite:
        """The laws of ``rows`` at ``site``."""
        logits, window = self._logits, self._window
        index = from_host(np.array(rows), logits)
        raw = at_least_float32(namespace(logits).take(logits[:, site, ...], index, axis=0))
        contexts = [self._context(b, site, now) for b in rows]
        positions = self._slots.sites.position[rows, site]
        predicted = self._predicted(rows, raw, contexts, positions)
        infos = [window.rows[b] for b in rows]
        every = np.ones((len(rows), 1), bool)
        made = target_laws(predicted[:, None, ...], infos, contexts, positions[:, None], every)
        self.softmaxes += len(rows)
        changed, usable = (np.zeros(len(window.rows), bool) for _ in range(2))
        changed[rows], usable[rows] = True, made.usable[:, 0]
        return CorrectedSite(from_host(changed, logits), self._spread(rows, made.laws), from_host(usable, logits))

    def _context(self, row: int, site: int, now: Integers) -> Integers:
        """The row's tokens from position 0 to the one before ``site``'s, as they are now."""
        first, _ = self._window.decided_positions(row)
        tokens = self._window.contexts[row][: int(self._slots.sites.position[row, site])].copy()
        own = np.flatnonzero(self._slots.sites.valid[row])[0]
        tokens[first:] = now[row, own : own + len(tokens) - first]
        return tokens

    def _predicted(self, rows: list[int], raw: Array, contexts: Sequence[Integers], positions: Integers) -> Array:
        """Logits (len(rows), V): rows with one corrector go to it together."""
        groups: dict[int, list[int]] = {}
        for i, b in enumerate(rows):
            groups.setdefault(id(self._correctors[b]), []).append(i)
        xp, made = namespace(raw), {}
        for members in groups.values():
            corrector = self._correctors[rows[members[0]]]
            assert corrector is not None, "only rows with a corrector have lags"
            lags = self._lags[rows[members[0]]]
            old = np.array(
                [[self._at(self._window.contexts[rows[i]], positions[i] - lag) for lag in lags] for i in members]
            )
            new = np.array([[self._at(contexts[i], positions[i] - lag) for lag in lags] for i in members])
            changes = Changes(*(from_host(each, raw) for each in (old, new, positions[members])))
            own = raw if len(members) == len(rows) else xp.take(raw, from_host(np.array(members), raw), axis=0)
            together = correct(corrector, own, changes)
            if len(groups) == 1:
                return together
            made.update({i: together[at, ...] for at, i in enumerate(members)})
        return xp.stack([made[i] for i in range(len(rows))], axis=0)

    def _at(self, tokens: Integers, position: int) -> int:
        """The token at ``position``, the vocabulary's size before the first."""
        return int(tokens[position]) if position >= 0 else int(self._logits.shape[-1])

    def _spread(self, rows: list[int], laws: Array) -> Array:
        """``laws`` (len(rows), 1, V) at their rows: (B, V)."""
        count, vocab_size = len(self._window.rows), laws.shape[-1]
        if isinstance(laws, np.ndarray):
            spread: NDArray[np.floating] = np.zeros((count, vocab_size), laws.dtype)
            spread[rows] = laws[:, 0]
            return spread
        blank = filled((vocab_size,), 0, laws)
        placed = {b: laws[i, 0, ...] for i, b in enumerate(rows)}
        return namespace(laws).stack([placed.get(b, blank) for b in range(count)], axis=0)

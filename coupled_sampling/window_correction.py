"""The correction of one window's redrafts: which neighbours have changed, and the laws that correctors predict for that.

It is what `coupled_sampling.HostStep` hands to `coupled_sampling.step_rule.decide`. Only sites with a changed neighbour cost
anything: one softmax each, and the corrector's own work, for all rows of a site together.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from coupled_sampling.arrays import at_least_float32, from_host, namespace, to_host
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
    """

    def __init__(self, correctors: Sequence[Corrector | None], logits: Array, window: Window, slots: Decisions) -> None:
        self._correctors, self._logits, self._window, self._slots = correctors, logits, window, slots
        self._lags = [() if corrector is None else tuple(corrector.lags) for corrector in correctors]
        self._first = slots.sites.valid.argmax(axis=1).tolist()
        self.softmaxes = 0
        """Laws that were predicted so far."""

    def at(self, site: int, tokens: Array, later: Array) -> CorrectedSite | None:
        """See `coupled_sampling.step_rule.Correction.at`."""
        now, draft = to_host(tokens), self._slots.draft
        rows = [
            b
            for b in np.flatnonzero(to_host(later[:, site])).tolist()
            if any(now[b, site - lag] != draft[b, site - lag] for lag in self._lags[b] if lag <= site - self._first[b])
        ]
        return self._corrected(rows, site, now) if rows else None

    def _corrected(self, rows: list[int], site: int, now: Integers) -> CorrectedSite:
        """The laws of ``rows`` at ``site``."""
        logits, window = self._logits, self._window
        xp, count = namespace(logits), len(window.rows)
        everyone = len(rows) == count
        raw = logits[:, site, ...]
        if not everyone:
            raw = xp.take(raw, from_host(np.array(rows), logits), axis=0)
        positions = self._slots.sites.position[rows, site]
        predicted = self._predicted(rows, at_least_float32(raw), site, now, positions)
        infos = [window.rows[b] for b in rows]
        contexts = [self._context(b, site, now) for b in rows]
        every = np.ones((len(rows), 1), bool)
        made = target_laws(predicted[:, None, ...], infos, contexts, positions[:, None], every)
        self.softmaxes += len(rows)
        laws, changed = made.laws[:, 0, ...], np.ones(count, bool)
        usable = None if made.faults is None else made.usable[:, 0]
        if not everyone:
            place = np.zeros(count, np.int64)  # rows that are not corrected get the first law of those that are
            place[rows] = np.arange(len(rows))
            laws, usable = xp.take(laws, from_host(place, logits), axis=0), None if usable is None else usable[place]
            changed = np.isin(np.arange(count), rows)
        return CorrectedSite(*(from_host(each, logits) for each in (changed, laws, usable)))

    def _context(self, row: int, site: int, now: Integers) -> Integers:
        """What processors are shown: the row's tokens from position 0 to the one before ``site``'s, as they are now."""
        known = self._window.contexts[row]
        info = self._window.rows[row]
        if info is None or not info.sampling.processors:
            return known  # nobody looks at it
        own, position = self._first[row], int(self._slots.sites.position[row, site])
        return np.concatenate([known[: position - (site - own)], now[row, own:site]])

    def _predicted(self, rows: list[int], raw: Array, site: int, now: Integers, positions: Integers) -> Array:
        """Logits (len(rows), V): rows with one corrector go to it together."""
        groups: dict[int, list[int]] = {}
        for i, b in enumerate(rows):
            groups.setdefault(id(self._correctors[b]), []).append(i)
        xp, made = namespace(raw), {}
        for members in groups.values():
            corrector = self._correctors[rows[members[0]]]
            assert corrector is not None, "only rows with a corrector have lags"
            pairs = [self._neighbours(rows[i], site, now, int(positions[i])) for i in members]
            old, new = (np.array(each) for each in zip(*pairs, strict=True))
            changes = Changes(*(from_host(each, raw) for each in (old, new, positions[members])))
            if len(groups) == 1:
                return correct(corrector, raw, changes)
            together = correct(corrector, xp.take(raw, from_host(np.array(members), raw), axis=0), changes)
            made.update({i: together[at, ...] for at, i in enumerate(members)})
        return xp.stack([made[i] for i in range(len(rows))], axis=0)

    def _neighbours(self, row: int, site: int, now: Integers, position: int) -> tuple[list[int], list[int]]:
        """The row's neighbours of ``site``: those that its law was computed with, and those of now."""
        context, nothing = self._window.contexts[row], int(self._logits.shape[-1])
        old = [int(context[position - lag]) if position >= lag else nothing for lag in self._lags[row]]
        since = site - self._first[row]
        new = [
            int(now[row, site - lag]) if lag <= since else was for lag, was in zip(self._lags[row], old, strict=True)
        ]
        return old, new

"""The correction of one window's redrafts: which neighbours have changed, and the laws that correctors predict for that.

It is what `coupled_sampling.HostStep` hands to `coupled_sampling.step_rule.decide`. Only sites with a changed neighbour cost
anything: one softmax each, and the corrector's own work, for all rows of a site together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from coupled_sampling.arrays import at_least_float32, from_host, namespace, to_host
from coupled_sampling.contracts import Array, Decisions, Integers, Window
from coupled_sampling.corrections import Changes, Corrector, correct
from coupled_sampling.step_rule import CorrectedSite
from coupled_sampling.target import target_laws

__all__ = ["Followed", "WindowCorrection"]


class Followed(NamedTuple):
    """Where the redrafts of a window that is a tree have their laws from.

    Examples
    --------
    The law of the second site was computed behind a 4, in the window's slot 2:

    >>> import numpy as np
    >>> from coupled_sampling.window_correction import Followed
    >>> Followed.of(slots=np.array([[0, 2]]), reach=np.array([1]), tokens=np.array([[5, 3, 4]])).draft.tolist()
    [[4, 0]]
    """

    slots: Integers
    """(B, m) the column of the slot that each site's law is of."""
    reach: Integers
    """(B,) the last site for which that is not the path's own."""
    draft: Integers
    """(B, m) up to there, what stood at the site of each in its path."""

    @classmethod
    def of(cls, slots: Integers, reach: Integers, tokens: Integers) -> Followed:
        """What follows from ``slots``, where ``tokens`` (B, n) are those of all columns."""
        draft = np.zeros_like(slots)
        draft[:, :-1] = np.take_along_axis(tokens, slots[:, 1:], axis=1)
        return cls(slots, reach, draft)


class WindowCorrection:
    """A `coupled_sampling.step_rule.Correction` for one step.

    Parameters
    ----------
    correctors
        B entries: a row's corrector, or None.
    logits
        (B, n, V) of the deciding slots: the model's own, after guidance.
    window, slots
        What was forwarded, and its deciding slots; of a tree those of the path.
    followed
        Of a tree, where sites have the laws of slots beside the path.

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

    def __init__(
        self,
        correctors: Sequence[Corrector | None],
        logits: Array,
        window: Window,
        slots: Decisions,
        followed: Followed | None = None,
    ) -> None:
        self._correctors, self._logits, self._window, self._slots = correctors, logits, window, slots
        self._followed = followed
        self._lags = [() if corrector is None else tuple(corrector.lags) for corrector in correctors]
        self._first = slots.sites.valid.argmax(axis=1).tolist()
        self.softmaxes = 0
        """Laws that were predicted so far."""

    def at(self, site: int, tokens: Array, later: Array) -> CorrectedSite | None:
        """See `coupled_sampling.step_rule.Correction.at`."""
        now, rows = to_host(tokens), []
        for b in np.flatnonzero(to_host(later[:, site])).tolist():
            seen = self._seen(b, site)
            if any(now[b, site - lag] != seen[site - lag] for lag in self._lags[b] if lag <= site - self._first[b]):
                rows.append(b)
        return self._corrected(rows, site, now) if rows else None

    def _seen(self, row: int, site: int) -> Integers:
        """The tokens, by site, that stood before ``site`` when its law was computed."""
        if self._followed is not None and site <= self._followed.reach[row]:
            return self._followed.draft[row]  # type: ignore[no-any-return]
        return self._slots.draft[row]  # type: ignore[no-any-return]

    def _logits_at(self, rows: Sequence[int], site: int) -> Array:
        """The logits (len(rows), V) that the laws of ``site`` were made of."""
        logits, followed = self._logits, self._followed
        xp = namespace(logits)
        if followed is not None and (followed.slots[rows, site] != site).any():
            return xp.stack([logits[b, int(followed.slots[b, site]), :] for b in rows], axis=0)
        raw = logits[:, site, ...]
        return raw if len(rows) == raw.shape[0] else xp.take(raw, from_host(np.array(rows), logits), axis=0)

    def _corrected(self, rows: list[int], site: int, now: Integers) -> CorrectedSite:
        """The laws of ``rows`` at ``site``."""
        logits, window = self._logits, self._window
        xp, count = namespace(logits), len(window.rows)
        everyone, raw = len(rows) == count, self._logits_at(rows, site)
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
        since, seen = site - self._first[row], self._seen(row, site)
        old = [
            nothing if position < lag else int(seen[site - lag] if lag <= since else context[position - lag])
            for lag in self._lags[row]
        ]
        new = [
            int(now[row, site - lag]) if lag <= since else was for lag, was in zip(self._lags[row], old, strict=True)
        ]
        return old, new

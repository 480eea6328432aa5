"""The best-known mistake, in the shipped step: the law recorded for a kept draft is the old one."""

import numpy as np

from coupled_sampling import HostStep
from coupled_sampling.arrays import to_host


class OldLawForKeptDrafts(HostStep):
    """Keeps the law a draft was first drawn from, as if keeping it had not changed its law."""

    def _decide(self, target, slots, window, correction=None):
        decided = super()._decide(target, slots, window, correction)
        law = self._draft_laws(target, slots, window).dense(target)
        kept = slots.has_draft & (to_host(decided.tokens) == slots.draft)
        self._recorded = np.where(kept[..., None], law, target)
        return decided

    def _remember(self, target, slots, window):
        super()._remember(self._recorded, slots, window)

"""How often a corrector is asked: what it costs is that many times what one correction takes."""

from __future__ import annotations

from coupled_sampling.contracts import Array
from coupled_sampling.corrections import Changes, Corrector

__all__ = ["Counting"]


class Counting:
    """``corrector``, with a ``count`` of the calls so far; each may be for several rows."""

    def __init__(self, corrector: Corrector) -> None:
        self._corrector, self.lags, self.count = corrector, corrector.lags, 0

    def correct(self, logits: Array, changes: Changes) -> Array:
        self.count += 1
        return self._corrector.correct(logits, changes)

"""`Meters`: what a replica did, in Ray's own metrics, which are told apart by replica and scraped where Ray's are."""

from __future__ import annotations

from collections.abc import Mapping

from coupled_sampling.serving.statistics import Statistics

__all__ = ["Meters"]

_NOW = {"running": "Sequences that have a row.", "waiting": "Sequences that wait for a row."}
_SUMS = {
    "steps": "Steps of the decoder.",
    "step_seconds": "Seconds that they took.",
    "passes": "Passes of sequences that committed something.",
    "tokens": "Committed tokens.",
    "drafted": "Slots for guesses.",
    "accepted": "Accepted guesses.",
}


class Meters:
    """Gauges and counters named ``ray_coupled_sampling_...``, by model and method; only within a replica of Ray Serve."""

    def __init__(self) -> None:
        from ray.serve.metrics import Counter, Gauge

        tags = ("model", "method")
        self._now = {name: Gauge(f"coupled_sampling_{name}", text, tag_keys=tags) for name, text in _NOW.items()}
        self._sums = {name: Counter(f"coupled_sampling_{name}", text, tag_keys=tags) for name, text in _SUMS.items()}
        self._told: dict[tuple[str, str, str], float] = {}

    def update(self, model: str, statistics: Mapping[str, Statistics]) -> None:
        """Tell what a model did so far."""
        for method, found in statistics.items():
            tags = {"model": model, "method": method}
            for name, gauge in self._now.items():
                gauge.set(getattr(found, name), tags=tags)
            for name, counter in self._sums.items():
                value = float(sum(found.accepted) if name == "accepted" else getattr(found, name))
                grown = value - self._told.get((name, model, method), 0.0)
                # A model that was closed, and opened again in a replica that it shares, counts from 0.
                self._told[name, model, method] = value
                if grown > 0:
                    counter.inc(grown, tags=tags)

"""An engine's numbers among the server's own, at Triton's ``/metrics``: `Metrics`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from coupled_sampling.serving.statistics import Statistics

__all__ = ["FAMILIES", "Family", "Metrics"]


class Family(NamedTuple):
    """A number that is told."""

    name: str
    kind: str
    """``COUNTER`` or ``GAUGE``."""
    what: str
    value: Callable[[Statistics], float]


FAMILIES = (
    Family("coupled_sampling_tokens_total", "COUNTER", "Committed tokens", lambda s: s.tokens),
    Family(
        "coupled_sampling_passes_total",
        "COUNTER",
        "Forward passes of sequences that committed tokens",
        lambda s: s.passes,
    ),
    Family("coupled_sampling_drafted_total", "COUNTER", "Slots for guesses in those passes", lambda s: s.drafted),
    Family("coupled_sampling_accepted_total", "COUNTER", "Accepted guesses", lambda s: sum(s.accepted)),
    Family("coupled_sampling_running", "GAUGE", "Sequences that have a row", lambda s: s.running),
    Family("coupled_sampling_waiting", "GAUGE", "Sequences that wait for a row", lambda s: s.waiting),
)
"""Each has the labels model, version, instance and method."""


class Metrics:
    """Numbers of one instance of a model.

    Parameters
    ----------
    server
        Triton's module ``triton_python_backend_utils``.
    labels
        What tells this instance from others.
    """

    def __init__(self, server: Any, labels: Mapping[str, str]) -> None:
        self._labels = dict(labels)
        self._told: dict[tuple[str, str], float] = {}
        self._metrics: dict[tuple[str, str], Any] = {}
        self._families: dict[str, Any] = {}
        self._lock = threading.Lock()
        try:
            for family in FAMILIES:
                kind = getattr(server.MetricFamily, family.kind)
                self._families[family.name] = server.MetricFamily(name=family.name, description=family.what, kind=kind)
        except Exception as error:  # of a server that was built without them
            self._families.clear()
            server.Logger.log_warn(f"this server takes no metrics of models: {error}")

    def tell(self, statistics: Mapping[str, Statistics]) -> None:
        """Bring the server's numbers up to date, from sums by method."""
        with self._lock:
            for method, sums in statistics.items():
                for family in FAMILIES:
                    if family.name in self._families:
                        self._tell(family, method, family.value(sums))

    def _tell(self, family: Family, method: str, value: float) -> None:
        key = family.name, method
        metric = self._metrics.get(key)
        if metric is None:
            metric = self._families[family.name].Metric(labels={**self._labels, "method": method})
            self._metrics[key], self._told[key] = metric, 0.0
        if value == self._told[key]:
            return
        if family.kind == "COUNTER":
            metric.increment(value - self._told[key])
        else:
            metric.set(value)
        self._told[key] = value

    def close(self) -> None:
        """Take them away, the numbers before what they belong to, as the server wants it."""
        with self._lock:
            self._metrics.clear()
            self._families.clear()

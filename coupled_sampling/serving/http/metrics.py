"""`Metrics`: what is told at ``/metrics``, by prometheus-client; names and meanings are vLLM's, with ``coupled_sampling_`` before.

Two kinds of numbers. What a client waits for is observed while it waits: times to the first token, between commits, and of whole
requests; a *request* is one sequence, so ``n=4`` counts as four. What the engines do is asked of them when somebody scrapes
(`coupled_sampling.serving.Statistics`), by method: sequences that run and wait, passes, tokens, and how many drafts were accepted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from coupled_sampling.errors import InvalidArgument, MissingDependency
from coupled_sampling.serving.errors import DeadlineExceeded, EngineFailed, EngineStopped, Overloaded
from coupled_sampling.serving.served import ServedModel
from coupled_sampling.serving.statistics import Statistics

__all__ = ["Metrics"]

_PREFIX = "coupled_sampling_"

_FIRST = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0)
_BETWEEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0)
_WHOLE = (0.05, 0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 60.0, 120.0, 240.0, 480.0)

_KINDS: tuple[tuple[type[Exception], str], ...] = (
    (Overloaded, "queue_full"),
    (DeadlineExceeded, "deadline"),
    (EngineStopped, "stopping"),
    (EngineFailed, "failed"),
    (InvalidArgument, "invalid"),
    (MissingDependency, "unsupported"),
)
"""Why a request was not begun."""


class _Sum(NamedTuple):
    """A number of the engines."""

    name: str
    help: str
    of: str
    """Field of `Statistics`."""


_GAUGES = (
    _Sum("num_requests_running", "Sequences that are decoded now.", "running"),
    _Sum("num_requests_waiting", "Sequences that wait for a row.", "waiting"),
    _Sum("rows", "Sequences that can be decoded at once, in the engines that are open.", "rows"),
)
_COUNTERS = (
    _Sum("generation_tokens", "Committed tokens.", "tokens"),
    _Sum("sequence_passes", "Passes of sequences: tokens over these are tokens per pass.", "passes"),
    _Sum("engine_steps", "Steps; each is a pass of all sequences of a batch.", "steps"),
    _Sum("engine_step_seconds", "Time spent in steps.", "step_seconds"),
    _Sum("spec_decode_num_drafts", "Passes of sequences that had guesses to check.", "drafts"),
    _Sum("spec_decode_num_draft_tokens", "Slots for guesses in these passes.", "drafted"),
)


class Metrics:
    """Counts what it is told, as a `coupled_sampling.serving.http.service.Watch`, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._first = self._histogram("time_to_first_token_seconds", "From request to the first commit.", _FIRST)
        self._between = self._histogram("inter_token_latency_seconds", "Between commits of a sequence.", _BETWEEN)
        self._whole = self._histogram("e2e_request_latency_seconds", "From request to the last token.", _WHOLE)
        self._ended = self._counter("requests_finished", "Sequences that ended, by reason.", "reason")
        self._refused = self._counter("requests_refused", "Requests that were not begun, by kind.", "kind")

    def _histogram(self, name: str, help: str, buckets: Sequence[float]) -> Histogram:  # noqa: A002
        return Histogram(_PREFIX + name, help, ["model_name"], buckets=buckets, registry=self.registry)

    def _counter(self, name: str, help: str, label: str) -> Counter:  # noqa: A002
        return Counter(_PREFIX + name, help, ["model_name", label], registry=self.registry)

    def refused(self, model: str, error: Exception) -> None:
        """See `coupled_sampling.serving.http.service.Watch`."""
        kind = next((kind for of, kind in _KINDS if isinstance(error, of)), "other")
        self._refused.labels(model, kind).inc()

    def first(self, model: str, seconds: float) -> None:
        """See `coupled_sampling.serving.http.service.Watch`."""
        self._first.labels(model).observe(seconds)

    def between(self, model: str, seconds: float) -> None:
        """See `coupled_sampling.serving.http.service.Watch`."""
        self._between.labels(model).observe(seconds)

    def ended(self, model: str, seconds: float, reason: str) -> None:
        """See `coupled_sampling.serving.http.service.Watch`."""
        self._ended.labels(model, reason).inc()
        if reason in ("length", "stop"):  # as vLLM's: one that was given up says nothing of how long requests take
            self._whole.labels(model).observe(seconds)

    async def text(self, models: Iterable[ServedModel]) -> bytes:
        """All numbers in Prometheus's text format."""
        found = {model.name: await model.source.statistics() for model in models}
        return generate_latest(_Now(self.registry, found))


class _Now(Collector):
    """What was counted, and what the engines say at one moment."""

    def __init__(self, registry: CollectorRegistry, found: Mapping[str, Mapping[str, Statistics]]) -> None:
        self._registry, self._found = registry, found

    def collect(self) -> Iterator[Metric]:
        yield from self._registry.collect()
        labels = ["model_name", "method"]
        for one in _GAUGES:
            yield self._filled(GaugeMetricFamily(_PREFIX + one.name, one.help, labels=labels), one.of)
        for one in _COUNTERS:
            yield self._filled(CounterMetricFamily(_PREFIX + one.name, one.help, labels=labels), one.of)
        accepted = CounterMetricFamily(
            _PREFIX + "spec_decode_num_accepted_tokens", "Guesses that were accepted.", labels=labels
        )
        by_position = CounterMetricFamily(
            _PREFIX + "spec_decode_num_accepted_tokens_per_pos",
            "Guesses that were accepted, by position behind the committed tokens.",
            labels=[*labels, "position"],
        )
        for model, method, statistics in self._rows():
            accepted.add_metric([model, method], sum(statistics.accepted))
            for position, count in enumerate(statistics.accepted):
                by_position.add_metric([model, method, str(position)], count)
        yield accepted
        yield by_position

    def _filled(self, family: GaugeMetricFamily | CounterMetricFamily, field: str) -> Metric:
        for model, method, statistics in self._rows():
            family.add_metric([model, method], getattr(statistics, field))
        return family

    def _rows(self) -> Iterator[tuple[str, str, Statistics]]:
        for model, methods in self._found.items():
            for method, statistics in methods.items():
                yield model, method, statistics

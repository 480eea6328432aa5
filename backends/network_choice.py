"""Whether a bundle's correction network is worth its time here: what ``corrections="auto"`` decides.

A network saves passes and takes time for each place that it corrects. So it pays where a pass is dear. How many tokens a pass
commits with it and with the table was counted when they were fitted, and is in the bundle. What a pass and a correction take is
measured here, on the model as it was opened: a few passes, which take as long as a few tokens of `ar`.

It is decided for methods that accept by match alone, whose tokens depend on no corrector. By rejection they do, though their law
does not, and the same seed is to give the same tokens on every machine: there a network is used where it is asked for by name.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from coupled_sampling.backends.ort.network_correction import NetworkCorrection
from coupled_sampling.bundles.opening import Bundle
from coupled_sampling.contracts import LogitsProvider, max_window
from coupled_sampling.corrections import Changes, Corrector
from coupled_sampling.errors import MissingDependency
from coupled_sampling.guidance import GuidedProvider
from coupled_sampling.methods import Method

__all__ = ["Candidates", "candidates_of", "host_corrector"]

_LEAST_GAIN = 1.02
"""Of tokens per second, for which a network is taken: less is within what measuring is off by."""

_PASSES = 3
_CALLS = 20


class _Way(NamedTuple):
    """What was counted while a corrector was tried."""

    tokens_per_pass: float
    corrections_per_pass: float


class Candidates(NamedTuple):
    """A network and the table that it would take the place of."""

    network: NetworkCorrection
    with_network: _Way
    with_table: _Way
    window: int
    """Slots per pass when this was counted."""

    def pays(self, provider: LogitsProvider, *, table_is_free: bool = False) -> bool:
        """Whether more tokens per second are to be expected of the network.

        ``table_is_free`` says that the table would be applied within the model's graph, beside which it takes no time.
        """
        rows, network = int(provider.batch_size), self.network
        seconds = _pass_seconds(provider, self.window)

        def rate(way: _Way, corrector: Corrector | None) -> float:
            each = 0.0 if corrector is None else _correction_seconds(corrector, network.vocab_size, rows)
            return way.tokens_per_pass / (seconds + way.corrections_per_pass * each)

        table = None if table_is_free else network.table
        return rate(self.with_network, network) > _LEAST_GAIN * rate(self.with_table, table)


def candidates_of(bundle: Bundle, method: Method) -> Candidates | None:
    """What there is to choose from for ``method``; None where a bundle has no network for it, or tells nothing good of one.

    Raises
    ------
    BundleError
        The network is damaged, or was made for another model, vocabulary or layout.
    """
    record = bundle.manifest.corrections
    if record is None or record.network is None or not method.recycles or method.acceptance != "match":
        return None
    told = record.provenance.get("match") if "match" in record.uses else None
    window = told.get("window") if isinstance(told, Mapping) else None
    better, worse = (_told(told, way) for way in ("network", "fitted"))
    if not isinstance(window, int) or better is None or worse is None:
        return None
    if better.tokens_per_pass < _LEAST_GAIN * worse.tokens_per_pass:
        return None
    try:
        network = NetworkCorrection.open(bundle, method)
    except MissingDependency:  # another back end runs the model, and ONNX Runtime is not there
        return None
    return None if network is None else Candidates(network, better, worse, window)


def host_corrector(bundle: Bundle, provider: LogitsProvider, method: Method, kind: str) -> Corrector | None:
    """The corrector that `coupled_sampling.backends.open_model` would give a step that the library decides over ``provider``.

    Raises
    ------
    BundleError, InvalidArgument, MissingDependency
        As from `Bundle.corrector` and `NetworkCorrection.open`.
    """
    if kind == "network":
        return NetworkCorrection.open(bundle, method)
    candidates = candidates_of(bundle, method) if kind == "auto" else None
    if candidates is not None and candidates.pays(provider):
        return candidates.network
    return bundle.corrector(method, kind)


def _told(told: Any, way: str) -> _Way | None:
    """What a bundle tells of a corrector; None unless it is told in full. It is free JSON, by whoever made the bundle."""
    apart = told.get("apart") if isinstance(told, Mapping) else None
    found = []
    for name in _Way._fields:
        of = apart.get(name) if isinstance(apart, Mapping) else None
        value = of.get(way) if isinstance(of, Mapping) else None
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            return None
        found.append(float(value))
    return _Way(*found)


def _pass_seconds(provider: LogitsProvider, window: int) -> float:
    """What a pass over ``window`` slots of all rows takes, halfway into a sequence: whatever it writes is written again later."""
    if isinstance(provider, GuidedProvider):
        provider = provider.provider  # it keeps account of what was forwarded
    rows, length = int(provider.batch_size), int(provider.max_length)
    width = min(window, max_window(provider))
    tokens, start = np.zeros((rows, width), np.int64), np.full(rows, min(length // 2, length - width))
    return _least_seconds(lambda: provider.forward(tokens, start), _PASSES)


def _correction_seconds(corrector: Corrector, vocab_size: int, rows: int) -> float:
    logits = np.zeros((rows, vocab_size), np.float32)
    old = np.zeros((rows, len(corrector.lags)), np.int64)
    changes = Changes(old, old + 1, np.full(rows, max(corrector.lags)))
    return _least_seconds(lambda: corrector.correct(logits, changes), _CALLS)


def _least_seconds(work: Callable[[], object], times: int) -> float:
    """The shortest of some runs after a first one: what else the machine does only adds to it."""
    work()
    found = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        found.append(time.perf_counter() - began)
    return min(found)

"""The embedded picture model on the GPU by way of array libraries and runtimes: its tokens are to be those of NumPy.

- ``arrays:torch`` and ``arrays:cupy``: the model is written in the library, and `HostStep` decides on the library's arrays, where
  they are. Every decision is compared with `HostStep` on NumPy; what differs must be a float tie, given how far logits are
  apart.
- ``runtimes:cuda`` and so on: the bundle is opened by a back end of the library, with the step that it has, and without
  corrections, on which tokens depend under rejection. How many tokens at the beginning of each picture are NumPy's is counted.
"""

from __future__ import annotations

import argparse
import importlib
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from embedded_model import Embedded, read_weights
from gpu_frame import Figure

from coupled_sampling import Decoder, HostStep, LogitsProvider, Request, generate, open_bundle
from coupled_sampling.arrays import to_host
from coupled_sampling.contracts import CoupledStep
from coupled_sampling.drafting import Copy
from coupled_sampling.errors import MissingDependency
from coupled_sampling.testing import StepComparison

METHODS = ("scd-match", "scd-maximal", "scd-gumbel")
MOST_APART = 1e-3
"""Of logits: more is another model."""
WINDOW, LAG = 16, 14


def module(name: str, rehearse: bool) -> tuple[Any, str]:
    """An array library, and where it computes: on the GPU, or where it can if this is a rehearsal."""
    try:
        found = importlib.import_module(name)
    except ImportError as error:
        raise MissingDependency(f"{name} cannot be imported: {error}") from error
    if name == "torch":
        device = "cuda" if found.cuda.is_available() else "cpu"
    else:
        try:
            device = "cuda" if found.cuda.runtime.getDeviceCount() else "cpu"
        except found.cuda.runtime.CUDARuntimeError as error:
            raise MissingDependency(f"CuPy sees no GPU: {error}") from error
    if device == "cpu" and not rehearse:
        raise MissingDependency(f"{name} {found.__version__} sees no GPU")
    return found, device


def logits_apart(one: LogitsProvider, other: LogitsProvider) -> float:
    """The largest difference of logits, in windows that overlap: the last write wins."""
    tokens, apart = np.random.default_rng(0).integers(0, 256, (1, one.max_length)), 0.0
    for start in range(0, one.max_length - WINDOW + 1, WINDOW - 3):
        window, begin = tokens[:, start : start + WINDOW], np.array([start])
        logits = [np.asarray(to_host(provider.forward(window, begin))) for provider in (one, other)]
        possible = np.isfinite(logits[0])  # the rest are tokens that are never generated
        if (np.isfinite(logits[1]) != possible).any():
            return float("inf")
        apart = max(apart, float(np.abs(logits[0][possible] - logits[1][possible]).max()))
    return apart


def decoded(step: CoupledStep, length: int, pictures: int) -> tuple[int, float]:
    """Passes, and seconds of all pictures but the first, which compiles what is compiled."""
    passes, seconds = 0, 0.0
    for picture in range(pictures + 1):
        decoder = Decoder(step, window=WINDOW, drafting=Copy(LAG, 0))
        decoder.add(Request([256 + picture], length, sequence=picture))
        began, count = time.perf_counter(), 0
        while decoder.active or decoder.waiting:
            decoder.step()
            count += 1
        if picture:
            seconds += time.perf_counter() - began
            passes += count
    return passes, seconds


def of_arrays(arguments: argparse.Namespace, name: str) -> Iterator[Figure]:
    library, device = module(name, arguments.rehearse)
    reference = Embedded(np, *read_weights())
    provider = Embedded(library, *read_weights(), on=device if name == "torch" else None)
    apart = logits_apart(reference, provider)
    if not apart <= MOST_APART:
        raise ValueError(f"logits are {apart:.3g} apart from NumPy's, expected at most {MOST_APART}")
    length = arguments.picture_length
    for method in METHODS:
        comparison = StepComparison(reference, HostStep(provider, method), logits_error=2 * apart)
        for picture in range(arguments.pictures):
            decoder = Decoder(comparison, window=WINDOW, drafting=Copy(LAG, 0))
            decoder.add(Request([256 + picture], length, sequence=picture))
            while decoder.active or decoder.waiting:
                decoder.step()
        report = comparison.report()
        passes, seconds = decoded(HostStep(provider, method), length, arguments.pictures)
        yield "arrays", {
            "library": name, "version": library.__version__, "device": device, "method": method, "logits_apart": apart,
            "sites": report.sites, "ties": report.ties, "expected_ties": report.expected_ties,
            "disagreements": report.disagreements, "examples": [str(one) for one in report.examples[:3]],
            "passes": passes, "tokens_per_pass": arguments.pictures * length / passes, "step_ms": 1e3 * seconds / passes,
        }  # fmt: skip


def same_beginnings(found: Any, expected: Any) -> list[int]:
    """How many tokens of each picture are equal before the first that is not: a float tie makes others of all after it."""
    return [int((np.asarray(a) == np.asarray(b)).cumprod().sum()) for a, b in zip(found, expected, strict=True)]


def of_runtimes(arguments: argparse.Namespace, backend: str) -> Iterator[Figure]:
    """``cuda``, ``cuda-graphs``, ``tensorrt`` and ``tensorrt-rtx``, and ``cpu``, which is there to rehearse with."""
    from gpu_parts import place_of

    from coupled_sampling.backends import Place, open_model

    if backend == "cpu" and not arguments.rehearse:
        raise MissingDependency("it is no GPU")
    place = Place() if backend == "cpu" else place_of(backend, arguments.device)
    length, prompts = arguments.picture_length, [[256 + picture] for picture in range(arguments.pictures)]
    settings: dict[str, Any] = {"length": length, "window": WINDOW, "drafting": Copy(LAG, 0), "seed": 0}
    bundle = open_bundle("fashion")
    for method in METHODS:
        began = time.perf_counter()
        with open_model(bundle, place, method=method, corrections="none") as step:
            took = time.perf_counter() - began
            runs = str(step.runs)
            found = generate(step, prompts, **settings).tokens
            passes, seconds = decoded(step, length, arguments.pictures)
        expected = generate(HostStep(Embedded(np, *read_weights()), method), prompts, **settings).tokens
        yield "runtimes", {
            "backend": backend, "runs": runs, "method": method, "opened_seconds": took, "length": length,
            "same_tokens": same_beginnings(found, expected), "passes": passes, "step_ms": 1e3 * seconds / passes,
        }  # fmt: skip

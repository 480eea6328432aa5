"""Opening what a method runs on: the only module of the command line that knows the back ends."""

from __future__ import annotations

import argparse
from collections.abc import Mapping

from coupled_sampling.backends import BACKENDS, Place, check_model, open_model
from coupled_sampling.backends.foreign.bundle import open_bundle_or_onnx
from coupled_sampling.backends.network_choice import host_corrector
from coupled_sampling.backends.ort.pixels import PixelDecoder
from coupled_sampling.backends.ort.plugins import PLUGINS
from coupled_sampling.backends.trt.progress import progress_bar
from coupled_sampling.bundles.opening import Bundle
from coupled_sampling.contracts import OpenProvider, Runs

__all__ = [
    "BACKENDS",
    "PROVIDERS",
    "STEPS",
    "PixelDecoder",
    "Place",
    "check_model",
    "describe_runs",
    "host_corrector",
    "open_asked",
    "open_model",
    "open_on_cpu",
    "open_pixels",
    "progress_bar",
]

PROVIDERS = tuple(PLUGINS)
"""Plugins of ONNX Runtime."""

STEPS = ("auto", "host", "graph", "kernels")
"""Where steps are decided: the back end's choice, by the library, in a graph with the model, by CUDA kernels."""


def open_asked(arguments: argparse.Namespace) -> Bundle:
    """What was asked for: a bundle, or a decoder that somebody else exported.

    ``arguments`` are those of `coupled_sampling.cli.arguments.add_model`.

    Raises
    ------
    BundleError, InvalidArgument, MissingDependency, ProviderError
        There is no such model, or it cannot be used.
    """
    return open_bundle_or_onnx(arguments.model, widen=arguments.widen, max_length=arguments.max_length)


def open_on_cpu(bundle: Bundle, *, rows: int) -> OpenProvider:
    """A bundle that was just made, to be checked."""
    return open_model(bundle, rows=rows)


def open_pixels(bundle: Bundle, place: Place) -> PixelDecoder:
    """The decoder of pictures or clips. It runs in ONNX Runtime on the CPU, wherever the model does."""
    return PixelDecoder.open(bundle, place.threads)


def describe_runs(ran: Mapping[str, Runs]) -> str:
    """A line for each way in which methods, the keys of ``ran``, ran."""
    ways = dict.fromkeys(ran.values())
    return "\n".join(f"{', '.join(m for m, found in ran.items() if found == way)}: {way}" for way in ways)

"""The back end ``openvino``: OpenVINO on the CPU. What its parts are for is in `coupled_sampling.backends.place`."""

from __future__ import annotations

from coupled_sampling.backends.openvino.provider import OpenVinoProvider, refused_type
from coupled_sampling.backends.openvino.runtime import find_runtime
from coupled_sampling.backends.place import Wanted, unknown_operators
from coupled_sampling.contracts import OpenProvider, OpenStep

__all__ = ["KERNELS", "SETTINGS", "STEPS", "TREES", "open", "takes"]

SETTINGS = frozenset({"threads"})
STEPS = ("host",)
KERNELS = ()
TREES = ()


def takes(wanted: Wanted) -> str | None:
    """Operators must be ONNX's own, and caches float32; anything else is taken."""
    return unknown_operators(wanted, "OpenVINO") or refused_type(wanted.bundle)


def open(wanted: Wanted) -> OpenProvider | OpenStep:  # noqa: A001 - it is called as opening.open
    """A provider."""
    return OpenVinoProvider(wanted.bundle, find_runtime(), wanted.model_rows, wanted.place.threads)

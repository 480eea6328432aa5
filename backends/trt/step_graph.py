"""The step graph that TensorRT takes: a window graph with the decision of ``scd-match`` behind it, derived when an engine is built.

No bundle has to carry it. Its noise is an input for each slot of the window, since TensorRT's caches have 4 axes and the ring of
the other step graphs has 3; and it has no float64, which TensorRT would narrow without an error. The other methods need one
or the other.
"""

from __future__ import annotations

import hashlib
from typing import Any

from coupled_sampling.backends.window_tensors import WindowTensor, window_tensors
from coupled_sampling.bundles.manifest import Manifest
from coupled_sampling.errors import InvalidArgument
from coupled_sampling.export.graphs.decision import decision_graph
from coupled_sampling.export.graphs.step import step_graph
from coupled_sampling.methods import Method, find_method

__all__ = ["append_step", "check_step", "step_digest", "step_tensors"]


def check_step(method: str | Method, guidance: float = 1.0, *, warped: bool = False) -> Method:
    """The method, if TensorRT can make its step.

    Raises
    ------
    InvalidArgument
        It cannot; says why, and what can.
    """
    found = find_method(method)
    instead = (
        "use KernelStep over TrtProvider(..., on_device=True), which makes the step in CUDA kernels (--step kernels)"
    )
    if found.name != "scd-match":
        raise InvalidArgument(
            f"method is {found.name!r}, expected 'scd-match' for a step in TensorRT: the other step graphs decide in float64, "
            f"which TensorRT narrows, or keep noise in a ring of 3 axes, which it does not take; {instead}"
        )
    if guidance != 1:
        raise InvalidArgument(
            f"guidance is {guidance}, expected 1 for a step in TensorRT: guided step graphs mix logits by a scale in float64, "
            f"which TensorRT narrows; {instead}"
        )
    if warped:
        raise InvalidArgument(
            "warped is True, expected neither top-k, top-p nor min-p for a step in TensorRT: warped step graphs sum in float64, "
            f"which TensorRT narrows; {instead}"
        )
    return found


def append_step(model: Any, method: str) -> Any:
    """A window graph (``onnx.ModelProto``, in its final precision) with the decision of ``method`` behind it."""
    return step_graph(model, check_step(method), noise="window")


def step_digest(method: str, vocab_size: int) -> str:
    """SHA-256 of the decision that is appended, so that engines of another one are known to be stale."""
    decision = decision_graph(check_step(method), vocab_size, noise="window")
    decision.producer_version = ""  # the same decision of another release is the same
    return hashlib.sha256(decision.SerializeToString(deterministic=True)).hexdigest()


def step_tensors(manifest: Manifest) -> dict[str, WindowTensor]:
    """All inputs and outputs of the step graph by name; ``docs/step-graph.md`` is the reference."""
    tensors = window_tensors(manifest)
    del tensors["logits"]
    rows, sites = ("rows",), ("rows", "slots")
    tensors |= {name: WindowTensor(True, "int64", rows) for name in ("known", "recycled", "fresh")}
    return tensors | {
        "draws": WindowTensor(True, "bool", rows),
        "temperature": WindowTensor(True, "float32", rows),
        "noise": WindowTensor(True, "float32", (*sites, manifest.vocab_size)),
        "tokens": WindowTensor(False, "int64", sites),
        "committed": WindowTensor(False, "int64", rows),
        "highest_logits": WindowTensor(False, "float32", sites),
    }

"""The back ends ``tensorrt`` and ``tensorrt-rtx``. What its parts are for is in `coupled_sampling.backends.place`."""

from __future__ import annotations

from coupled_sampling.backends.cuda.correction_tables import refused_by_kernels
from coupled_sampling.backends.place import Wanted, unknown_operators
from coupled_sampling.backends.trt.options import BuildOptions
from coupled_sampling.backends.trt.provider import TrtProvider
from coupled_sampling.backends.trt.step import STEP_METHOD, TrtStep, missing_step_graph
from coupled_sampling.contracts import OpenProvider, OpenStep

__all__ = ["KERNELS", "SETTINGS", "STEPS", "TREES", "open", "takes"]

SETTINGS = frozenset({"device", "cuda_graphs", "engines"})
STEPS = ("kernels", "host", "graph")
KERNELS = ("kernels", "graph")
TREES = ()

_INSTEAD = "leave step at 'auto', and CUDA kernels decide"


def takes(wanted: Wanted) -> str | None:
    """Operators must be ONNX's own. A step graph is ``scd-match``'s, neither guided, warped nor corrected, and in the bundle."""
    unknown = unknown_operators(wanted, "TensorRT")
    if unknown is not None:
        return unknown
    if wanted.step != "graph":
        return refused_by_kernels(wanted.corrections) if wanted.step == "kernels" else None
    if wanted.corrections is not None:
        return (
            "corrections are given, which an engine cannot apply between two of its tokens; use step='kernels' with a LowRank, or "
            "step='host'"
        )
    method = "" if wanted.method is None else wanted.method.name
    if method != STEP_METHOD:
        return (
            f"method is {method!r}, expected {STEP_METHOD!r} for a step in TensorRT: the other step graphs decide in float64, "
            f"which TensorRT narrows, or keep noise in a ring of 3 axes, which it does not take; {_INSTEAD}"
        )
    if wanted.guided:
        return (
            f"guidance is {wanted.guidance}, expected 1 for a step in TensorRT: guided step graphs mix logits by a scale in "
            f"float64, which TensorRT narrows; {_INSTEAD}"
        )
    if wanted.warped:
        return (
            "warped is True, expected neither top-k, top-p nor min-p for a step in TensorRT: warped step graphs sum in float64, "
            f"which TensorRT narrows; {_INSTEAD}"
        )
    missing = missing_step_graph(wanted.bundle)
    return None if missing is None else f"step is 'graph', but {missing}, or {_INSTEAD}"


def open(wanted: Wanted) -> OpenProvider | OpenStep:  # noqa: A001 - it is called as opening.open
    """A provider, or the step of the bundle's step graph for TensorRT."""
    options = _options(wanted)
    if wanted.step == "graph":
        return TrtStep.open(wanted.bundle, wanted.place, options, progress=wanted.progress)
    return TrtProvider.open(
        wanted.bundle, wanted.place, options, on_device=wanted.step == "kernels", progress=wanted.progress
    )


def _options(wanted: Wanted) -> BuildOptions:
    """An engine in the bundle's own precision, tuned for ``max_window`` slots and some fewer."""
    graph, windows = wanted.bundle.manifest.window_graph, BuildOptions().window_buckets
    if wanted.place.max_window is not None:
        most = min(wanted.place.max_window, graph.max_window)
        windows = (*(bucket for bucket in windows if bucket < most), most)
    return BuildOptions(row_buckets=(wanted.model_rows,), window_buckets=windows, precision=graph.dtype)

"""The back end ``cpu``: ONNX Runtime on the CPU. What its parts are for is in `coupled_sampling.backends.place`."""

from __future__ import annotations

from coupled_sampling.backends.foreign.bundle import ForeignBundle
from coupled_sampling.backends.ort.provider import OrtProvider, graph_path
from coupled_sampling.backends.ort.session import open_session
from coupled_sampling.backends.ort.step_checks import missing_step_graph, step_graph_record
from coupled_sampling.backends.ort.step_opening import step_of_bundle
from coupled_sampling.backends.place import Wanted
from coupled_sampling.contracts import OpenProvider, OpenStep

__all__ = ["KERNELS", "SETTINGS", "STEPS", "TREES", "open", "takes"]

SETTINGS = frozenset({"threads"})
STEPS = ("graph", "host")
KERNELS = ()
TREES = ("graph", "host")


def takes(wanted: Wanted) -> str | None:
    """A step graph must be in the bundle, and knows one kind of corrector; anything else is taken."""
    return missing_step_graph(wanted) if wanted.step == "graph" else None


def open(wanted: Wanted) -> OpenProvider | OpenStep:  # noqa: A001 - it is called as cpu.open
    """A provider, or the step of the bundle's step graph."""
    bundle, threads = wanted.bundle, wanted.place.threads
    if isinstance(bundle, ForeignBundle):
        return bundle.open(wanted.model_rows, threads, trees=wanted.trees)
    if wanted.step == "graph":
        record = step_graph_record(wanted)
        session = open_session(bundle.folder / record.file, threads)
        return step_of_bundle(bundle, record, session, wanted.rows, wanted.guidance, corrections=wanted.corrections)
    session = open_session(graph_path(bundle, trees=wanted.trees), threads)
    return OrtProvider(bundle, session, wanted.model_rows, trees=wanted.trees)

"""The back end ``ort``: ONNX Runtime with an execution provider that came as a plugin, which ``provider`` names.

What its parts are for is in `coupled_sampling.backends.place`; which plugins there are in `coupled_sampling.backends.ort.plugins`.

The library decides steps, so that every method and setting is there. On request the step graphs of ``ar`` and ``scd-match`` run in
a plugin, whole. Others compare numbers in float64, which such devices do not have; rounded to float32 they would change the law.
"""

from __future__ import annotations

from dataclasses import replace

from coupled_sampling.backends.ort.binding import HostBinding
from coupled_sampling.backends.ort.plugin_binding import HostMemoryBinding, PluginBinding
from coupled_sampling.backends.ort.plugin_session import PluginSession, open_plugin_session
from coupled_sampling.backends.ort.plugins import find_plugin
from coupled_sampling.backends.ort.provider import OrtProvider, check_dtype, graph_path
from coupled_sampling.backends.ort.step_checks import missing_step_graph, step_graph_record
from coupled_sampling.backends.ort.step_opening import step_of_bundle
from coupled_sampling.backends.place import Wanted
from coupled_sampling.contracts import OpenProvider, OpenStep, Runs

__all__ = ["KERNELS", "SETTINGS", "STEPS", "STEP_METHODS", "TREES", "open", "takes"]

SETTINGS = frozenset({"device", "provider", "threads"})
STEPS = ("host", "graph")
KERNELS = ()
TREES = ("host",)

STEP_METHODS = ("ar", "scd-match")
"""Methods whose step graphs are decided without float64."""


def takes(wanted: Wanted) -> str | None:
    """Step graphs are those of `STEP_METHODS`, plain; the library decides anything."""
    if wanted.step != "graph" or wanted.method is None:
        return None
    plugin, name = find_plugin(wanted.place.provider), wanted.method.name
    reason = ""
    if not plugin.steps:
        reason = f"provider {plugin.name!r} was tried with none"
    elif name not in STEP_METHODS:
        reason = f"that of {name} needs float64, plugins run those of {' and '.join(STEP_METHODS)}"
    elif wanted.warped or wanted.guided or wanted.corrections is not None:
        asked = "warped" if wanted.warped else "guidance" if wanted.guided else "corrections"
        reason = f"plugins run plain ones only, and {asked} is given"
    if reason:
        return f"step is 'graph', but of step graphs {reason}; set step to 'host'"
    return missing_step_graph(wanted)


def open(wanted: Wanted) -> OpenProvider | OpenStep:  # noqa: A001 - it is called as plugin.open
    """A provider, or the step of the bundle's step graph."""
    bundle, place = wanted.bundle, wanted.place
    plugin = find_plugin(place.provider)
    check_dtype(bundle, f"provider {plugin.name!r}")
    is_graph = wanted.step == "graph"
    record = step_graph_record(wanted) if is_graph else None
    path = graph_path(bundle, trees=wanted.trees) if record is None else bundle.folder / record.file
    opened = open_plugin_session(path, plugin, place.device or 0, place.threads)
    rows = wanted.rows if is_graph else wanted.model_rows
    binding = PluginBinding(opened) if plugin.memory and rows == 1 else HostMemoryBinding(opened.session)
    made: OpenProvider | OpenStep
    if record is None:
        made = OrtProvider(bundle, opened.session, rows, binding, trees=wanted.trees)
    else:
        made = step_of_bundle(bundle, record, opened.session, rows, wanted.guidance, binding)
    made.runs = _runs(made.runs, opened, binding)
    return made


def _runs(runs: Runs, opened: PluginSession, binding: HostBinding) -> Runs:
    """What runs it, with what was done to the graph and where its caches are."""
    on_device = isinstance(binding, PluginBinding)
    where = "on the device" if on_device else "on the host"
    return replace(runs, device=opened.device, changes=f"operators replaced, caches {where}")

"""Sessions of ONNX Runtime with an execution provider that came as a plugin, and no silent way back to the CPU.

The graph is rewritten in memory first (`coupled_sampling.bundles.portable_graphs`), as plugins lack operators that the exporter
writes. What nodes are then on the CPU all the same is read from the placement that ONNX Runtime reports; arithmetic on shapes is
there on purpose, anything else is refused, with a list.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coupled_sampling.arguments import in_one_line
from coupled_sampling.backends.foreign.rewriting import load_graph, serialise
from coupled_sampling.backends.ort.cuda_session import SHAPE_OPERATORS, placement_of
from coupled_sampling.backends.ort.plugins import Plugin, find_device
from coupled_sampling.backends.ort.session import check_threads, missing_kernel, session_options
from coupled_sampling.bundles.portable_graphs import portable_graph
from coupled_sampling.errors import BundleError, ProviderError

__all__ = ["PluginSession", "open_plugin_session"]


@dataclass(frozen=True)
class PluginSession:
    """A graph opened with a plugin.

    Parameters
    ----------
    onnxruntime, session
        The module, and its ``InferenceSession``.
    plugin
        The plugin.
    provider
        Name of its execution provider.
    device
        Number of the device among the plugin's; None where it is a CPU.
    placement
        Operators by execution provider, and how many nodes of each.
    """

    onnxruntime: Any
    session: Any
    plugin: Plugin
    provider: str
    device: int | None
    placement: Mapping[str, Counter[str]]

    @property
    def on_cpu(self) -> Counter[str]:
        """Operators that ONNX Runtime placed elsewhere than on the plugin, and how many nodes of each."""
        return sum((found for name, found in self.placement.items() if name != self.provider), Counter())


def open_plugin_session(graph: Path, plugin: Plugin, device: int = 0, threads: int | None = None) -> PluginSession:
    """Open ``graph``, rewritten, with a plugin.

    Parameters
    ----------
    graph
        Path of an ONNX file.
    plugin
        The plugin.
    device
        Number of the device among the plugin's, from 0.
    threads
        Threads within an operator, for what runs on a CPU.

    Raises
    ------
    BundleError
        The file cannot be read, or is too large to be rewritten.
    InvalidArgument
        There is no such device, ``threads`` is no number of threads, or the graph is not one that this library's exporter wrote.
    MissingDependency
        ``onnxruntime``, ``onnx`` or the plugin's package is missing or too old.
    ProviderError
        The plugin finds no device, cannot open the graph, or would leave nodes to the CPU.
    """
    check_threads(threads)
    onnxruntime, found = find_device(plugin, device)
    rewritten = portable_graph(load_graph(graph, f"provider {plugin.name!r}"), plugin.keeps)
    options = session_options(onnxruntime, threads)
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(graph.parent))
    options.add_provider_for_devices([found], plugin.session_options(threads))
    try:
        session = onnxruntime.InferenceSession(serialise(rewritten, graph), options, enable_fallback=0)
    except BundleError:
        raise
    except Exception as error:
        # Its exceptions share no base class but Exception.
        missing = missing_kernel(str(error))
        if missing is not None:
            raise ProviderError(
                f"neither provider {plugin.name!r} nor the CPU has a kernel for a node of {graph}: {missing}, with the types that "
                "it has there; export with --compute float32 or float16"
            ) from error
        raise ProviderError(
            f"provider {plugin.name!r} cannot open {graph}: {in_one_line(error)}. It needs {plugin.needs}"
        ) from error
    kind = found.device.type.name
    opened = PluginSession(
        onnxruntime, session, plugin, found.ep_name, None if kind == "CPU" else device, placement_of(session)
    )
    _refuse_nodes_on_the_cpu(opened, graph)
    return opened


def _refuse_nodes_on_the_cpu(opened: PluginSession, graph: Path) -> None:
    name, on_cpu = opened.plugin.name, opened.on_cpu
    if not opened.placement.get(opened.provider):
        raise ProviderError(
            f"provider {name!r} takes no node of {graph}; its package {opened.plugin.package} does not go with onnxruntime "
            f"{opened.onnxruntime.__version__}: {opened.plugin.install} --upgrade"
        )
    refused = {operator: count for operator, count in on_cpu.items() if operator not in SHAPE_OPERATORS}
    if refused:
        listed = ", ".join(f"{operator} ({count})" for operator, count in sorted(refused.items()))
        raise ProviderError(
            f"provider {name!r} has no kernel for {sum(refused.values())} nodes of {graph}, which would run on the CPU: {listed}; "
            f"install a newer {opened.plugin.package}, set step to 'host' if it is a step graph, or use backend 'cpu'"
        )

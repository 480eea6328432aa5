"""Which nodes of the shipped graphs, rewritten, each plugin of ONNX Runtime takes.

``python tests/standins/plugin_placement.py`` asks the plugins that are installed and writes ``plugin_placement.json`` beside this
file. Whether a plugin's device is there or pretended (`standins.plugin_devices`) makes no difference to what it has kernels for.
"""

import importlib.metadata
import json
import sys
import tempfile
from collections import Counter
from pathlib import Path

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]

from coupled_sampling import open_bundle
from coupled_sampling.backends.ort.plugin_session import open_plugin_session
from coupled_sampling.backends.ort.plugins import PLUGINS
from coupled_sampling.bundles.portable_graphs import portable_graph
from standins.cuda_placement import signatures
from standins.plugin_devices import why_not

RECORD = Path(__file__).with_suffix(".json")
FILES = ("window.onnx", "window-tree.onnx", "step-ar.onnx", "step-scd-match.onnx")
GRAPHS = {f"{bundle}/{name}": open_bundle(bundle).folder / name for bundle in ("fashion", "moving") for name in FILES}


def rewritten_signatures(graph, plugin):
    """By node name, operators with their types in the graph that ``plugin`` gets."""
    import onnx

    model = portable_graph(onnx.load(graph, load_external_data=False), plugin.keeps)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rewritten.onnx"
        path.write_bytes(model.SerializeToString())
        return signatures(path)


def placement(name):
    """The version of a plugin, and what it does: what it has kernels for, and by graph how many nodes are left to the CPU."""
    plugin = PLUGINS[name]
    kernels, on_cpu = set(), {}
    for label, graph in GRAPHS.items():
        known = rewritten_signatures(graph, plugin)
        opened = open_plugin_session(graph, plugin)
        for part in opened.session.get_provider_graph_assignment_info():
            taken = part.ep_name == opened.provider
            # Nodes that ONNX Runtime made itself, out of several, have names of its own.
            kernels |= {known[node.name] for node in part.get_nodes() if taken and node.name in known}
        on_cpu[label] = dict(sorted(opened.on_cpu.items()))
    return importlib.metadata.version(plugin.package), {"kernels": sorted(kernels), "on_cpu": on_cpu}


def unknown(record, label, found):
    """Signatures of a graph that the record knows neither as taken nor as operators left to the CPU."""
    # ONNX Runtime leaves Identity out before nodes are placed.
    elsewhere = {"Identity", *record["on_cpu"][label]}
    return sorted(one for one in found if one not in record["kernels"] and one.partition("(")[0] not in elsewhere)


def counted(graph, plugin):
    """Signatures of a rewritten graph, and how many nodes have each."""
    return Counter(rewritten_signatures(graph, plugin).values())


if __name__ == "__main__":
    records = {}
    for name in PLUGINS:
        reason = why_not(name)
        if reason is not None:
            print(f"{name}: {reason}")
            continue
        version, found = placement(name)
        records[name] = {"version": version, **found}
    RECORD.write_text(json.dumps(records, indent=1) + "\n")

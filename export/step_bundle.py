"""Step graphs, the graph for trees and the one without masks into a bundle, beside the window graph they were made from.

Weights are stored once: if the window graph has them inside, they move to a file of their own, to which the window graph and
all others refer. A step graph then is some 50 kB. Which variants a bundle gets follows from what its manifest offers:
a plain and a warped graph for every method, a warped and guided one where there is an unconditional prompt, the same with
corrected laws where the method recycles drafts, and for ``scd-match`` one for TensorRT, whose noise is an input for each slot.
The graph for trees is in every bundle whose window graph can be rewritten, which all are that this library's exporter wrote from
a description. The one without masks is there where the model needs none: without sliding windows, conditions and pictures in its
context.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from coupled_sampling.arguments import shown
from coupled_sampling.bundles.correction_writing import store_corrections
from coupled_sampling.bundles.files import whole_folder
from coupled_sampling.bundles.manifest import MANIFEST, CausalGraph, Manifest, StepGraph, TreeGraph
from coupled_sampling.bundles.manifest_file import file_record, write_manifest
from coupled_sampling.bundles.opening import Bundle, open_bundle
from coupled_sampling.bundles.replacing import check_replaceable
from coupled_sampling.errors import InvalidArgument
from coupled_sampling.export.graphs.builder import load_graph, require_onnx, save_graph
from coupled_sampling.export.graphs.causal_window import causal_window, query_heads
from coupled_sampling.export.graphs.checked_apart import check_apart
from coupled_sampling.export.graphs.decision import STEP_METHODS, WINDOW_NOISE_METHOD
from coupled_sampling.export.graphs.decision_tree import TREE_METHOD
from coupled_sampling.export.graphs.step import step_graph
from coupled_sampling.export.graphs.tree_window import tree_window
from coupled_sampling.fields import check_path
from coupled_sampling.methods import find_method

__all__ = [
    "CAUSAL_GRAPH",
    "TREE_GRAPH",
    "WEIGHTS",
    "add_step_graphs",
    "checked_methods",
    "tree_columns",
    "write_other_writings",
    "write_step_graphs",
]

TREE_GRAPH = "window-tree.onnx"
"""The file of the graph for trees."""

CAUSAL_GRAPH = "window-causal.onnx"
"""The file of the graph without masks."""

WEIGHTS = "weights.bin"
"""The file that weights move to."""

_WIDEST_TREE, _ROUND = 256, 32
_SMALLEST = 1024
"""Bytes of the smallest constant that moves; runtimes want to see small ones, such as axes and shapes, in the graph."""


def add_step_graphs(
    source: Bundle | str | Path, out: str | Path, methods: Sequence[str] = STEP_METHODS, *, force: bool = False
) -> Bundle:
    """Write a bundle that is ``source`` with step graphs, and with the graphs for trees and without masks if it can have them.

    Parameters
    ----------
    source
        A `Bundle`, or what `coupled_sampling.open_bundle` takes. It is not changed, unless it is ``out``.
    out
        Folder to make.
    methods
        Names of methods that have a step graph; graphs that ``source`` already has for other methods stay.
    force
        Replace a bundle that is at ``out``.

    Raises
    ------
    BundleError
        ``source`` is no bundle, or its window graph no valid ONNX graph.
    InvalidArgument
        A method has no step graph, or the window graph cannot have one.
    OutputError
        ``out`` exists and ``force`` is not set, or is no bundle, or has files that are not of it, or cannot be written; or somebody
        made or changed it meanwhile.
    MissingDependency
        ``onnx`` is not installed.

    Examples
    --------
    >>> from coupled_sampling.export import add_step_graphs
    >>> bundle = add_step_graphs("fashion", "with-steps", ["scd-match"])
    >>> bundle.step_graph("scd-match").name
    'step-scd-match.onnx'
    >>> bundle.tree_graph.name
    'window-tree.onnx'
    """
    opened = source if isinstance(source, Bundle) else open_bundle(source)
    out = check_path("out", out)
    replacing = check_replaceable(out, force=force)
    checked_methods(methods)
    with whole_folder(out, replacing) as folder:
        for name in (MANIFEST, *opened.manifest.files):
            # Not a link: ONNX refuses weights in a file that has two names.
            shutil.copyfile(opened.folder / name, folder / name)
        write_step_graphs(folder, methods)
    return open_bundle(out.absolute())


def write_step_graphs(folder: Path, methods: Sequence[str] = STEP_METHODS) -> Manifest:
    """Write step graphs and the window graph's other writings into the bundle at ``folder``, which nobody uses yet.

    Returns its new manifest, which is written as well.

    Raises
    ------
    InvalidArgument
        A method has no step graph, or the window graph cannot have one.
    BundleError
        The window graph is no valid ONNX graph.
    """
    names = checked_methods(methods)
    bundle = open_bundle(folder.absolute())
    if bundle.manifest.condition_graph is not None:
        raise InvalidArgument(
            f"the bundle {bundle.manifest.name} takes a condition, which step graphs cannot be told; leave step graphs out"
        )
    manifest, tables = bundle.manifest, bundle.correction_tables()
    window = _with_weights_outside(folder, manifest.window_graph.file)
    kept = tuple(graph for graph in manifest.step_graphs if graph.method not in names)
    for old in set(manifest.step_graphs) - set(kept):
        (folder / old.file).unlink()
    added = []
    tree, of_trees = manifest.tree_graph, None
    with contextlib.suppress(InvalidArgument):  # one that was written in another way stays without, or with what it has
        new = TreeGraph(TREE_GRAPH if tree is None else tree.file, tree_columns(manifest.window_graph.max_length))
        of_trees = tree_window(window, new.cache_length)
        save_graph(of_trees, folder / new.file, check=False)
        tree = new
    causal = _write_causal(folder, window, manifest, check=False)
    for name in names:
        guided = manifest.unconditional_prompt is not None
        for graph in _variants(name, guided=guided, trees=of_trees is not None):
            variant = {"warped": graph.warped, "guided": graph.guided, "corrected": graph.corrected, "tree": graph.tree}
            made = step_graph(of_trees if graph.tree else window, name, noise=graph.noise, **variant)
            save_graph(made, folder / graph.file, check=False)
            added.append(graph)
    others = [graph.file for graph in (tree, causal) if graph is not None]
    written = [manifest.window_graph.file, *(graph.file for graph in added), *others]
    check_apart([folder / name for name in written])
    present = [path.name for path in sorted(folder.iterdir()) if path.name != MANIFEST]
    files = {name: file_record(folder / name) for name in present}
    manifest = replace(manifest, files=files, step_graphs=(*kept, *added), tree_graph=tree, causal_graph=causal)
    if tables is not None and bundle.manifest.corrections is not None:
        before = bundle.manifest.corrections
        # The same model in other files: where weights moved out of the window graph, tables made for it have another fingerprint.
        manifest = store_corrections(folder, manifest, tables, before.provenance)
        if manifest.corrections is not None and manifest.corrections.file != before.file:
            (folder / before.file).unlink()
    write_manifest(folder, manifest)
    return manifest


def write_other_writings(folder: Path, manifest: Manifest) -> Manifest:
    """Write the graphs for trees and without masks into a bundle that was just exported to ``folder``, and its new manifest.

    The bundle has no correction tables yet.

    Raises
    ------
    InvalidArgument
        The window graph cannot be rewritten, or ONNX's checker refuses the graph that was.
    """
    name = manifest.window_graph.file
    window = _with_weights_outside(folder, name)
    tree = TreeGraph(TREE_GRAPH, tree_columns(manifest.window_graph.max_length))
    save_graph(tree_window(window, tree.cache_length), folder / tree.file)
    causal = _write_causal(folder, window, manifest, check=True)
    present = {path.name for path in folder.iterdir()} - {MANIFEST}
    changed = {one: file_record(folder / one) for one in sorted({name} | (present - set(manifest.files)))}
    written = replace(manifest, files={**manifest.files, **changed}, tree_graph=tree, causal_graph=causal)
    write_manifest(folder, written)
    return written


def _write_causal(folder: Path, window: Any, manifest: Manifest, *, check: bool) -> CausalGraph | None:
    """Write the window graph without masks, and its record; where that cannot be, what the bundle has."""
    known = manifest.causal_graph
    try:
        model, heads = causal_window(window), query_heads(window)
    except InvalidArgument:  # it needs its masks, or was written in another way
        return known
    graph = CausalGraph(CAUSAL_GRAPH if known is None else known.file, heads)
    save_graph(model, folder / graph.file, check=check)
    return graph


def tree_columns(max_length: int) -> int:
    """Columns of a tree graph's caches: room for a window of 256 slots that starts at the last position.

    Examples
    --------
    >>> from coupled_sampling.export.step_bundle import tree_columns
    >>> tree_columns(196)
    480
    """
    return -(-(max_length + _WIDEST_TREE) // _ROUND) * _ROUND


def _variants(method: str, *, guided: bool, trees: bool) -> list[StepGraph]:
    """The step graphs of ``method``, with guided ones if the bundle has a prompt for them, and with some for trees if it can."""
    graphs = []
    for tree in (False, True) if trees and method == TREE_METHOD else (False,):
        for corrected in (False, True) if find_method(method).recycles else (False,):
            name = f"step-{method}{'-tree' * tree}{'-corrected' * corrected}"
            plain = StepGraph(f"{name}.onnx", method, corrected=corrected, tree=tree)
            graphs += [plain, replace(plain, file=f"{name}-warped.onnx", warped=True)]
            if guided and not tree:
                graphs.append(
                    replace(plain, file=f"{name}-warped-guided.onnx", warped=True, guided=True, scales="slot")
                )
        if method == WINDOW_NOISE_METHOD:
            graphs.append(StepGraph(f"step-{method}{'-tree' * tree}-tensorrt.onnx", method, noise="window", tree=tree))
    return graphs


def checked_methods(methods: Sequence[str]) -> list[str]:
    """Names of ``methods``, each once.

    Raises
    ------
    InvalidArgument
        One has no step graph, or there is none.
    """
    if isinstance(methods, str) or not isinstance(methods, Sequence):
        raise InvalidArgument(f"methods is {shown(methods)}, expected names of methods, such as ('scd-match',)")
    names = list(dict.fromkeys(find_method(name).name for name in methods))
    for name in names:
        if name not in STEP_METHODS:
            raise InvalidArgument(
                f"methods has {name!r}, which has no step graph; expected some of {', '.join(STEP_METHODS)}"
            )
    if not names:
        raise InvalidArgument(f"methods is empty, expected some of {', '.join(STEP_METHODS)}")
    return names


def _with_weights_outside(folder: Path, name: str) -> Any:
    """The window graph with its large constants in a second file; written again if they were not."""
    onnx = require_onnx()
    window = load_graph(folder / name)
    inside = [tensor for tensor in window.graph.initializer if len(tensor.raw_data) >= _SMALLEST]
    if not inside:
        return window
    location = WEIGHTS
    while (folder / location).exists():
        location = f"more-{location}"
    with (folder / location).open("wb") as file:
        for tensor in inside:
            file.write(b"\0" * (-file.tell() % 64))
            offset, size = file.tell(), len(tensor.raw_data)
            file.write(tensor.raw_data)
            tensor.ClearField("raw_data")
            tensor.data_location = onnx.TensorProto.EXTERNAL
            for key, value in (("location", location), ("offset", offset), ("length", size)):
                tensor.external_data.add(key=key, value=str(value))
    save_graph(window, folder / name, check=False)
    return window

"""The step graph: a window graph with the decision inside it, one call per step.

`step_graph` takes any finished window graph, whoever wrote it, and appends a `decision_graph`: logits become an inner
value, tokens and counts come out. The names of the window graph stay as they are.

A bundle may hold a step graph for each of several methods. They are files of their own, not one file with an input that
chooses: methods differ in what state they have, and a branch would stop runtimes from planning memory. What they share
is the weights: where the window graph keeps them in a second file (external data), a step graph refers to that same
file and is some 50 kB itself. Load such a window graph with ``onnx.load(path, load_external_data=False)``.
"""

from __future__ import annotations

from typing import Any

from coupled_sampling.errors import InvalidArgument
from coupled_sampling.export.graphs.builder import OPSET, require_onnx
from coupled_sampling.export.graphs.decision import decision_graph
from coupled_sampling.export.graphs.tree_window import POSITION, SEES
from coupled_sampling.fields import check_is
from coupled_sampling.methods import Method

__all__ = ["STEP_FORMAT", "STEP_FORMAT_VERSION", "step_graph"]

STEP_FORMAT = "coupled-sampling step graph"
STEP_FORMAT_VERSION = 2
"""Raised when a loop written for the version before would go wrong. 1, which graphs without guidance still are, had one guidance
scale for a row."""


def step_graph(
    window_model: Any,
    method: str | Method,
    *,
    warped: bool = False,
    guided: bool = False,
    noise: str = "ring",
    corrected: bool = False,
    tree: bool = False,
) -> Any:
    """Append the decision of ``method`` to a window graph.

    Parameters
    ----------
    window_model
        ``onnx.ModelProto`` with inputs ``input_ids`` and ``start`` and output ``logits`` float32 (B, W, V), V static. It
        is not changed. For trees one of `coupled_sampling.export.tree_window`.
    method, warped, guided, noise, corrected, tree
        As for `coupled_sampling.export.graphs.decision.decision_graph`. A guided graph runs two rows of the window graph
        for each of its own.

    Returns
    -------
    onnx.ModelProto
        Not yet checked: `coupled_sampling.export.save_graph` does. Weights in a second file stay there.

    Raises
    ------
    InvalidArgument
        The model is no window graph, or there is no decision graph for ``method``.
    MissingDependency
        ``onnx`` is not installed.

    Examples
    --------
    >>> import onnx
    >>> from coupled_sampling import open_bundle
    >>> from coupled_sampling.export import step_graph
    >>> window = onnx.load(open_bundle("fashion").window_graph, load_external_data=False)
    >>> step = step_graph(window, "scd-match")
    >>> {"tokens", "committed"} <= {value.name for value in step.graph.output}
    True
    """
    onnx = require_onnx()
    check_is("window_model", window_model, onnx.ModelProto)
    for name, value in (("warped", warped), ("guided", guided), ("corrected", corrected), ("tree", tree)):
        check_is(name, value, bool)
    vocab_size = _vocab_size(onnx, window_model)
    decision = decision_graph(
        method, vocab_size, warped=warped, guided=guided, noise=noise, corrected=corrected, tree=tree
    )
    model = onnx.ModelProto()
    model.CopyFrom(window_model)
    model.ir_version = max(model.ir_version, decision.ir_version)
    graph, added = model.graph, decision.graph
    held = {value.name for value in graph.input}
    inside = {name for node in graph.node for name in node.output}
    told = next((value.name for value in graph.input if value.name.startswith("condition.")), None)
    if told is not None:
        raise InvalidArgument(
            f"window_model takes {told!r}, of a request's condition, which a step cannot be told; expected a window graph without"
        )
    _check_takes_trees(window_model, tree, held, inside)
    taken = inside | held | {value.name for value in graph.initializer}
    clashes = {name for node in added.node for name in node.output} & taken
    if clashes:
        raise InvalidArgument(f"window_model already has a value {min(clashes)!r}, which the decision needs; rename it")
    if guided:
        _double_rows(graph)
    outputs = [value for value in graph.output if value.name != "logits"]
    del graph.output[:]
    graph.output.extend([*added.output, *outputs])
    graph.input.extend(value for value in added.input if value.name not in held | inside)
    graph.node.extend(added.node)
    graph.initializer.extend(added.initializer)
    graph.name = "step_graph"
    graph.doc_string = model.doc_string = "One step. See docs/step-graph.md of coupled-sampling."
    metadata = {entry.key: entry.value for entry in (*window_model.metadata_props, *decision.metadata_props)}
    metadata |= {"format": STEP_FORMAT, "format_version": str(STEP_FORMAT_VERSION if guided else 1)}
    onnx.helper.set_model_props(model, metadata)
    return model


def _check_takes_trees(model: Any, tree: bool, inputs: set[str], inside: set[str]) -> None:
    """Refuse a window graph that takes trees for a step that does not, and the other way round: `InvalidArgument`."""
    takes = "parents" in inputs and {SEES, POSITION} <= inside
    if tree != ("parents" in inputs) or tree != takes:
        raise InvalidArgument(
            f"tree is {tree}, but window_model is {model.graph.name!r}, which takes {'trees' if takes else 'no trees'}; expected "
            f"{'one that coupled_sampling.export.tree_window made' if tree else 'the window graph that it was made from'}"
        )


def _vocab_size(onnx: Any, model: Any) -> int:
    """V, from the output ``logits`` of a window graph."""
    names = {value.name for value in model.graph.input}
    logits = next((value for value in model.graph.output if value.name == "logits"), None)
    version = max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)
    if logits is None or not {"input_ids", "start"} <= names or version < OPSET:
        raise InvalidArgument(
            f"window_model has inputs {sorted(names)}, outputs {sorted(v.name for v in model.graph.output)} and operator set "
            f"{version}; expected a window graph of operator set {OPSET} or more with input_ids, start and logits"
        )
    tensor = logits.type.tensor_type
    size = tensor.shape.dim[-1].dim_value if len(tensor.shape.dim) == 3 else 0
    if tensor.elem_type != onnx.TensorProto.FLOAT or size < 1:
        raise InvalidArgument(
            "window_model's logits are expected to be float32 (B, W, V) with a static V; export it so"
        )
    return int(size)


def _double_rows(graph: Any) -> None:
    """Name the rows of the window graph ``2B``: the decision's B rows are pairs of them."""
    for value in (*graph.input, *graph.output, *graph.value_info):
        for size in value.type.tensor_type.shape.dim:
            if size.dim_param == "B":
                size.dim_param = "2B"

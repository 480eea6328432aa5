"""A window graph without masks: what a slot sees follows from a length for each row.

`causal_window` rewrites a finished window graph. Attention loses its mask. It is told instead that it is causal, and how many
columns of each row are filled: ``start + W``. The W slots are the last of these, so slot w of row b sees the columns up to
``start[b] + w``, as before. ONNX calls this alignment lower right. Weights and all else stay as they are, so both graphs may share
a file of weights.

Kernels such as Flash Attention take no mask. They look at no column behind a row's length either. So the whole cache is given to
them, and the input ``kv_length`` goes: with it go two copies of the cache's beginning in every layer.

Not every runtime computes this rightly. ONNX Runtime does on the CPU from 1.28 on; before, slot w of a window saw the first w + 1
columns of the cache, and TensorRT's parser still reads it so. Therefore the graph with masks is the reference, and a back end
compares the two before it uses this one.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from coupled_sampling.errors import InvalidArgument
from coupled_sampling.export.graphs.builder import GraphBuilder, require_onnx
from coupled_sampling.export.graphs.window_parts import WindowParts, insert_nodes, self_attention
from coupled_sampling.fields import check_is

__all__ = ["CAUSAL_FORMAT", "causal_window", "query_heads"]

CAUSAL_FORMAT = "coupled-sampling causal window graph"
_EXPECTED = "a window graph that this library's exporter wrote from a description"
_MASK, _LENGTHS = 3, 6
"""Which inputs of Attention the mask and ``nonpad_kv_seqlen`` are."""


def causal_window(window_model: Any) -> Any:
    """Rewrite a window graph into one without masks.

    Parameters
    ----------
    window_model
        ``onnx.ModelProto`` of a window graph that `coupled_sampling.export.decoder_graph` wrote, in this version or an earlier one.
        It is not changed.

    Returns
    -------
    onnx.ModelProto
        Without the input ``kv_length``. Not yet checked: `coupled_sampling.export.save_graph` does. Weights in a second file stay
        there.

    Raises
    ------
    InvalidArgument
        The model is no such graph, or needs a mask: layers attend to the last positions only, it takes a condition, or it looks for
        pictures in its context.
    MissingDependency
        ``onnx`` is not installed.

    Examples
    --------
    >>> import onnx
    >>> from coupled_sampling import open_bundle
    >>> from coupled_sampling.export import causal_window
    >>> window = onnx.load(open_bundle("fashion").window_graph, load_external_data=False)
    >>> [value.name for value in causal_window(window).graph.input][:3]
    ['input_ids', 'start', 'past_key_values.0.key']
    """
    onnx = require_onnx()
    check_is("window_model", window_model, onnx.ModelProto)
    model = onnx.ModelProto()
    model.CopyFrom(window_model)
    parts = WindowParts.of(model)
    refusal = _needs_mask(model, parts)
    if refusal:
        raise InvalidArgument(f"window_model {refusal}, which needs a mask; use the graph as it is")
    graph = GraphBuilder()
    graph.scope("causal.")
    # From the positions and not from the shape of the window, which is on the host: nothing crosses to a device.
    last = graph.op("Gather", parts.position, graph.constant("causal.last", np.array(-1, np.int64)), axis=1)
    filled = graph.op("Add", last, graph.integers(1))
    made = {name: node for node in model.graph.node for name in node.output}
    for node in self_attention(model.graph):
        columns = [_whole(made.get(name)) for name in node.input[1:_MASK]]
        del node.input[1:]
        node.input.extend([*columns, *[""] * (_LENGTHS - _MASK), filled])
        node.attribute.append(onnx.helper.make_attribute("is_causal", 1))
    insert_nodes(model.graph, graph.build("causal", "", {}).graph)
    for node in model.graph.node:
        if "kv_length" in node.input:
            raise InvalidArgument(f"window_model cannot be rewritten: {node.name!r} uses 'kv_length'")
    inputs = [value for value in model.graph.input if value.name != "kv_length"]
    del model.graph.value_info[:], model.graph.input[:]
    model.graph.input.extend(inputs)
    model.graph.name = "causal_window_graph"
    model.graph.doc_string = model.doc_string = (
        "Tokens of a window to logits, without masks; caches in and out. See docs/bundle-format.md of coupled-sampling."
    )
    metadata = {entry.key: entry.value for entry in window_model.metadata_props} | {"format": CAUSAL_FORMAT}
    onnx.helper.set_model_props(model, metadata)
    return model


def query_heads(window_model: Any) -> int:
    """How many heads of queries a window graph has, which `causal_window` can rewrite or has rewritten.

    Raises
    ------
    InvalidArgument
        It joins what heads make in another way than this library's exporter.
    """
    onnx = require_onnx()
    check_is("window_model", window_model, onnx.ModelProto)
    graph = window_model.graph
    used = {name: node for node in graph.node for name in node.input}
    constants = {tensor.name: tensor for tensor in graph.initializer}
    caches = [value.type.tensor_type.shape.dim for value in graph.input if value.name.startswith("past_key_values.")]
    counts = set()
    for node in self_attention(graph):
        # (B, heads, W, size) is transposed to (B, W, heads, size), and that made a matrix (B * W, heads * size).
        turned = used.get(node.output[0])
        flat = None if turned is None else used.get(turned.output[0])
        shape = None if flat is None or flat.op_type != "Reshape" else constants.get(flat.input[1])
        width = 0 if shape is None else int(onnx.numpy_helper.to_array(shape)[-1])
        counts.add(width // caches[0][3].dim_value)
    if len(counts) != 1 or min(counts) < 1:
        raise InvalidArgument(
            f"window_model has layers of {sorted(counts)} heads of queries, where 0 is not known; expected {_EXPECTED}"
        )
    return int(counts.pop())


def _needs_mask(model: Any, parts: WindowParts) -> str:
    """What of a graph cannot be told without a mask; empty if nothing is."""
    condition = next((value.name for value in model.graph.input if value.name.startswith("condition.")), None)
    if condition is not None:
        return f"takes {condition!r}, of a request's condition"
    reach = max(parts.masks.values())
    if reach:
        return f"has a sliding window, of {reach} positions"
    return "looks for pictures in its context" if parts.pictures is not None else ""


def _whole(node: Any) -> str:
    """The cache of which an Attention reads the first ``kv_length`` columns."""
    if (
        node is None
        or node.op_type != "Slice"
        or not node.input[0].startswith("present.")
        or node.input[2] != "kv_length"
    ):
        raise InvalidArgument(
            f"window_model cannot be rewritten: its attention reads its caches in another way; expected {_EXPECTED}"
        )
    return str(node.input[0])

"""Graphs in another floating type: a strongly typed network computes in the types its graph is written in.

Of a step graph only the model is converted, up to the logits; the decision behind them stays in float32, whatever the model is in.

Every float32 of the model becomes float16 or bfloat16: weights, caches, and what lies between them. Logits stay float32, cast
once at the end. LayerNormalization and RMSNormalization keep their ``stash_type``, so sums of squares are still in float32.

Rounding changes the model: decoding stays lossless with respect to the law of the converted graph, which is not the law of
the bundle's. float16 ends at 65504: weights beyond it are refused here, activations beyond it become infinite when the engine
runs and are refused then; bfloat16 has float32's range and fewer digits.

TensorRT has no float64. Its parser narrows float64 to float32 with no more than a warning, so graphs that use it (most step graphs
do, for their draws) are refused here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from coupled_sampling.bundles.onnx_package import require_onnx
from coupled_sampling.errors import BundleError, InvalidArgument

__all__ = ["PRECISIONS", "convert_graph", "load_graph", "save_converted", "uses_float64"]

PRECISIONS = {"float32": 1, "float16": 10, "bfloat16": 16}
"""Types an engine may compute in, with their numbers in ONNX."""
_FLOAT, _DOUBLE, _TENSOR, _GRAPH = 1, 11, 4, 5
_LARGEST = {"float16": 65504.0, "bfloat16": 3.3895313892515355e38}


def load_graph(path: Path) -> Any:
    """The ``onnx.ModelProto`` in ``path`` with its weights.

    Raises
    ------
    BundleError
        It is no ONNX file.
    MissingDependency
        ``onnx`` is not installed.
    """
    onnx = _require_onnx()
    try:
        return onnx.load(str(path))
    except Exception as error:
        # protobuf's and onnx's exceptions share no base class but Exception.
        raise BundleError(f"onnx cannot load {path}: {error}; export the bundle again") from error


def uses_float64(model: Any) -> str | None:
    """The name of something float64 in ``model`` (an ``onnx.ModelProto``), None if there is nothing."""
    graph = model.graph
    for tensor in graph.initializer:
        if tensor.data_type == _DOUBLE:
            return f"weight {tensor.name!r}"
    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.elem_type == _DOUBLE:
            return f"input or output {value.name!r}"
    for node in graph.node:
        for attribute in node.attribute:
            casts = node.op_type == "Cast" and attribute.name == "to" and attribute.i == _DOUBLE
            if casts or (attribute.type == _TENSOR and attribute.t.data_type == _DOUBLE):
                return f"node {node.name!r} ({node.op_type})"
    return None


def convert_graph(model: Any, precision: str) -> None:
    """Write ``model`` (an ``onnx.ModelProto`` with its weights) anew in ``precision``, in place.

    Parameters
    ----------
    model
        A window graph, or a step graph made of one, that computes in float32, or in ``precision`` already.
    precision
        "float32" changes nothing; "float16", "bfloat16".

    Raises
    ------
    InvalidArgument
        A weight is beyond the type's range, the graph computes in another type, or uses float64.
    """
    wide = uses_float64(model)
    if wide is not None:
        raise InvalidArgument(
            f"the graph has float64 in {wide}; TensorRT has no float64 and would narrow it in silence: run step graphs with "
            "ONNX Runtime (OrtStep), or the window graph on TensorRT with the step's decisions in CUDA kernels or on the host"
        )
    caches = {value.type.tensor_type.elem_type for value in model.graph.input if value.name.startswith("past_key")}
    found = next((name for name, number in PRECISIONS.items() if caches == {number}), str(caches))
    if found == precision:
        return
    if found != "float32":
        raise InvalidArgument(
            f"precision is {precision!r}, but the graph was exported in {found}; ask for that, or export a float32 bundle"
        )
    _convert(model.graph, precision)


def _convert(graph: Any, precision: str) -> None:
    number = PRECISIONS[precision]
    nodes = _of_the_model(graph)
    values = {name for i in nodes for name in (*graph.node[i].input, *graph.node[i].output)}
    for tensor in graph.initializer:
        if tensor.name in values:
            _narrow(tensor, tensor.name, precision)
    for value in (*graph.input, *graph.output):
        kind = value.type.tensor_type
        if kind.elem_type == _FLOAT and value.name in values and value.name != "logits":
            kind.elem_type = number
    del graph.value_info[:]
    for i in nodes:
        node = graph.node[i]
        for attribute in node.attribute:
            if attribute.type == _TENSOR:
                _narrow(attribute.t, node.name, precision)
            elif attribute.type == _GRAPH:
                raise InvalidArgument(
                    f"node {node.name!r} ({node.op_type}) holds a graph of its own, which is not converted; use precision='float32'"
                )
            elif attribute.name in ("to", "output_dtype") and attribute.i == _FLOAT:
                attribute.i = number
        node.output[:] = ["logits.narrow" if name == "logits" else name for name in node.output]
    cast = type(graph.node[0])(op_type="Cast", name="logits.widen", input=["logits.narrow"], output=["logits"])
    cast.attribute.add(name="to", i=_FLOAT, type=2)
    graph.node.insert(1 + nodes[-1], cast)  # before a decision, which reads the logits


def _of_the_model(graph: Any) -> list[int]:
    """Indices of the nodes that logits and caches are made of, in order; what else there is, is a step's decision."""
    makers = {name: i for i, node in enumerate(graph.node) for name in node.output}
    wanted = ["logits", *(value.name for value in graph.output if value.name.startswith("present."))]
    found: set[int] = set()
    while wanted:
        maker = makers.get(wanted.pop())
        if maker is not None and maker not in found:
            found.add(maker)
            wanted.extend(graph.node[maker].input)
    return sorted(found)


def _narrow(tensor: Any, name: str, precision: str) -> None:
    """Round a float32 ``onnx.TensorProto`` in place."""
    if tensor.data_type != _FLOAT:
        return
    onnx = _require_onnx()
    import ml_dtypes  # onnx depends on it

    values = onnx.numpy_helper.to_array(tensor)
    largest = float(np.abs(values, where=np.isfinite(values), out=np.zeros_like(values)).max(initial=0.0))
    if largest > _LARGEST[precision]:
        raise InvalidArgument(
            f"weight {name!r} reaches {largest:.6g}, {precision} ends at {_LARGEST[precision]:.6g}; use precision='bfloat16' or "
            "'float32'"
        )
    narrow = values.astype(np.float16 if precision == "float16" else ml_dtypes.bfloat16)
    dims = list(tensor.dims)
    tensor.Clear()
    tensor.name, tensor.data_type, tensor.raw_data = name, PRECISIONS[precision], narrow.tobytes()
    tensor.dims.extend(dims)


def save_converted(model: Any, folder: Path) -> Path:
    """Write ``model`` into ``folder``, weights in a file of their own; returns the path of the ONNX file."""
    path = folder / "graph.onnx"
    _require_onnx().save_model(model, str(path), save_as_external_data=True, location="graph.data", size_threshold=1024)
    return path


def _require_onnx() -> Any:
    return require_onnx("building TensorRT engines", "tensorrt")

"""Graphs whose products round their inputs: what is found in them, and what is changed in memory so that they do not.

A quantised product may round what comes in, not only its weights. Then a draft changes the logits of the tokens before it, or they
depend on how a text is cut into windows, and no method that checks several tokens in one pass can be lossless. Two kinds are met:

- *dynamic quantisation*, with a scale that is taken from all of the call's input: `coupled_sampling.backends.foreign.widening`;
- *MatMulNBits at accuracy level 2, 3 or 4*, which rounds its input to float16, bfloat16 or int8. `raise_accuracy` sets level 1,
  which is float32.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from coupled_sampling.arguments import in_one_line
from coupled_sampling.bundles.onnx_package import require_onnx
from coupled_sampling.errors import BundleError

__all__ = ["FUSED", "SOURCE", "Changes", "load_graph", "raise_accuracy", "roundings", "serialise"]

SOURCE = "DynamicQuantizeLinear"
FUSED = frozenset({"DynamicQuantizeMatMul", "DynamicQuantizeLSTM", "QAttention"})
"""Operators of ONNX Runtime that round within; only the first can be widened, the others are met in graphs of other kinds."""


class Changes(NamedTuple):
    """What was done to a graph in memory, and what was found in it."""

    widened: int = 0
    """Products and the like of quantised activations that take floats now."""
    raised: Mapping[int, int] = {}
    """MatMulNBits whose accuracy level was set to 1, by the level that they had."""
    rounding: Mapping[str, int] = {}
    """Nodes that still take a scale for activations from a whole call, by kind; 0 where they were not counted."""
    widening: bool = False
    """Whether to widen was asked for, and nothing more can be widened."""

    def __str__(self) -> str:
        done = [f"{self.widened} quantised products widened to float32"] if self.widened else []
        if self.raised:
            levels = ", ".join(map(str, sorted(self.raised)))
            done.append(f"{sum(self.raised.values())} MatMulNBits at accuracy level 1 instead of {levels}")
        return " and ".join(done)

    def cause(self) -> str:
        """Why logits of this graph may depend on windows; empty if nothing is known."""
        if not self.rounding:
            return ""
        counted = ", ".join(f"{kind} ({count or 'some'} of them)" for kind, count in sorted(self.rounding.items()))
        return f"the cause is {counted}: a scale is taken from all of a window, so that drafts change the tokens before them"


def load_graph(path: Path, what: str) -> Any:
    """The ``onnx.ModelProto`` in a file, without weights that lie in other files.

    Raises
    ------
    BundleError
        The file is no ONNX, or cannot be read.
    MissingDependency
        ``onnx`` is not installed.
    """
    onnx = require_onnx(what)
    try:
        return onnx.load(str(path), load_external_data=False)
    except Exception as error:
        # protobuf's exceptions share no base class but Exception.
        raise BundleError(
            f"{path} cannot be read as ONNX: {in_one_line(error)}; download or export the file again"
        ) from error


def serialise(model: Any, path: Path) -> bytes:
    """The bytes of a rewritten graph; ``path`` is where it came from.

    Raises
    ------
    BundleError
        It has outgrown the 2 GB that the format can hold.
    """
    try:
        found: bytes = model.SerializeToString()
    except Exception as error:
        raise BundleError(
            f"{path} is too large to be rewritten in memory ({in_one_line(error)}); save it with its weights in a file of "
            "their own (onnx.save with save_as_external_data=True)"
        ) from error
    return found


def roundings(model: Any) -> Counter[str]:
    """How many nodes of each kind take a scale from the whole call to round their input."""
    return Counter(node.op_type for node in nodes_of(model.graph) if node.op_type in {SOURCE, *FUSED})


def raise_accuracy(model: Any) -> Counter[int]:
    """Have every MatMulNBits of a ``onnx.ModelProto`` compute with float32; how many were at each level that rounds."""
    found: Counter[int] = Counter()
    for node in nodes_of(model.graph):
        for attribute in node.attribute if node.op_type == "MatMulNBits" else ():
            # 0 leaves it to the runtime, which then takes float32.
            if attribute.name == "accuracy_level" and attribute.i not in (0, 1):
                found[attribute.i] += 1
                attribute.i = 1
    return found


def branches_of(node: Any) -> Iterator[Any]:
    """The graphs within a node."""
    for attribute in node.attribute:
        yield from ([attribute.g] if attribute.HasField("g") else [])
        yield from attribute.graphs


def nodes_of(graph: Any) -> Iterator[Any]:
    """All nodes of a graph and of the branches within it."""
    for node in graph.node:
        yield node
        for branch in branches_of(node):
            yield from nodes_of(branch)

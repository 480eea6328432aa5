"""Window and step graphs rewritten with operators that more runtimes know.

The exporter writes caches and attention with TensorScatter and Attention, which ONNX Runtime has on the CPU and on CUDA and
TensorRT has, too, but which execution providers such as WebGPU's do not: these nodes would run on the CPU, and the caches would
cross twice in every call. `portable_graph` replaces each operator of `REPLACED` by older ones that compute the same:

| operator | becomes |
|---|---|
| TensorScatter | ScatterElements at the slots' columns |
| Attention | MatMul, Where, Softmax, MatMul; heads that share keys are taken together, so that no key is copied |
| RotaryEmbedding | Slice, Mul, Add, Sub and Concat |
| Or, Mod | Not and And; Div, Mul and Sub |
| IsNaN, IsInf | comparisons with numbers |
| Size | Mul of Shape's parts |
| GatherElements, Identity, ReduceMax and Squeeze of int64 or boolean | the same of int32 or float32, between two Casts |

WebGPU's provider then takes all of a window graph but arithmetic on shapes, and all of the step graphs of ``ar`` and ``scd-match``
without top-k and the like, provided that its option ``enableInt64`` is on. It has no float64, which the others use.

Inputs, outputs, metadata and weights stay as they are, so that the rewritten graph takes the place of the original, and weights
that lie in a second file are read from there. What it computes differs in the order of sums only.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from coupled_sampling.bundles.onnx_package import require_onnx
from coupled_sampling.errors import InvalidArgument
from coupled_sampling.fields import check_is

__all__ = ["PORTABLE_OPSET", "REPLACED", "portable_graph"]

PORTABLE_OPSET = 23
"""The operator set of rewritten graphs, the last before TensorScatter. Providers know operators by the sets they were told of."""

REPLACED = ("TensorScatter", "Attention", "RotaryEmbedding", "Or", "Mod", "IsNaN", "IsInf", "Size")
"""Operators that a rewritten graph has none of."""

_NARROWED = ("GatherElements", "Identity", "ReduceMax", "Squeeze")
_ROTARY = frozenset({"interleaved", "rotary_embedding_dim", "num_heads"})

_LARGEST_FLOAT16 = 65504.0
_LARGEST_BFLOAT16 = (2 - 2.0**-7) * 2.0**127
_LARGEST_FLOAT32 = (2 - 2.0**-23) * 2.0**127

_END = 2**31 - 1  # beyond every axis, and a number that runtimes without 64 bits can read
_ATTENTION = frozenset({"scale", "softcap", "is_causal", "q_num_heads", "kv_num_heads", "qk_matmul_output_mode"})


def portable_graph(model: Any, keep: Collection[str] = ()) -> Any:
    """A copy of ``model`` without the operators of `REPLACED`.

    Parameters
    ----------
    model
        An ``onnx.ModelProto`` of a window or step graph. What lies in a second file need not be loaded.
    keep
        Operators to leave as they are, for a runtime that has them: one kernel is faster than several.

    Returns
    -------
    onnx.ModelProto
        The same inputs, outputs and weights; operator set `PORTABLE_OPSET`.

    Raises
    ------
    InvalidArgument
        An operator is used in a way that this library's exporter does not use it in.
    MissingDependency
        ``onnx`` is not installed.

    Examples
    --------
    >>> import onnx
    >>> from coupled_sampling import open_bundle
    >>> from coupled_sampling.export import portable_graph
    >>> window = onnx.load(open_bundle("fashion").window_graph, load_external_data=False)
    >>> sum(node.op_type == "TensorScatter" for node in window.graph.node)
    12
    >>> sum(node.op_type == "TensorScatter" for node in portable_graph(window).graph.node)
    0
    """
    onnx = require_onnx("rewriting graphs")
    check_is("model", model, onnx.ModelProto)
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    rewritten = onnx.ModelProto()
    rewritten.CopyFrom(model)
    for entry in rewritten.opset_import:
        if entry.domain in ("", "ai.onnx"):
            entry.version = min(entry.version, PORTABLE_OPSET)
    _Rewriting(onnx, rewritten.graph, inferred.graph).run(frozenset(keep))
    return rewritten


class _Rewriting:
    """One graph's nodes, replaced from the first to the last; ``inferred`` tells types and sizes of values."""

    def __init__(self, onnx: Any, graph: Any, inferred: Any) -> None:
        self._onnx, self._graph = onnx, graph
        self._types = {
            value.name: value.type.tensor_type for value in (*inferred.input, *inferred.output, *inferred.value_info)
        }
        self._constants = {tensor.name for tensor in graph.initializer}
        self._nodes: list[Any] = []
        self._shared: dict[tuple[Any, ...], str] = {}
        self._count = 0

    def run(self, keep: frozenset[str]) -> None:
        """Replace all that there is a rule for."""
        rules: Mapping[str, Callable[[Any], None]] = {
            "TensorScatter": self._tensor_scatter,
            "Attention": self._attention,
            "RotaryEmbedding": self._rotary,
            "Or": self._or,
            "Mod": self._mod,
            "IsNaN": self._is_nan,
            "IsInf": self._is_inf,
            "Size": self._size,
            **dict.fromkeys(_NARROWED, self._narrow),
        }
        nodes = list(self._graph.node)
        for node in nodes:
            rule = rules.get(node.op_type) if node.domain in ("", "ai.onnx") else None
            if rule is None or node.op_type in keep:
                self._nodes.append(node)
            else:
                rule(node)
        nodes = [type(node).FromString(node.SerializeToString()) for node in self._nodes]
        del self._graph.node[:]
        self._graph.node.extend(nodes)

    # What new nodes are written with.

    def _op(self, kind: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """A new node's output, which is called ``output`` if it has to be."""
        self._count += 1
        name = f"portable.{kind}.{self._count}"
        output = output or f"{name}.0"
        self._nodes.append(self._onnx.helper.make_node(kind, list(inputs), [output], name=name, **attributes))
        return output

    def _once(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """The output of a node that is written once, wherever it is needed."""
        key = (kind, inputs, *sorted((name, str(value)) for name, value in attributes.items()))
        if key not in self._shared:
            self._shared[key] = self._op(kind, *inputs, **attributes)
        return self._shared[key]

    def _constant(self, name: str, kind: int, shape: Sequence[int], values: Sequence[float]) -> str:
        name = f"portable.{name}"
        if name not in self._constants:
            self._constants.add(name)
            self._graph.initializer.append(self._onnx.helper.make_tensor(name, kind, list(shape), list(values)))
        return name

    def _integers(self, *values: int) -> str:
        name = f"integers.{'_'.join(map(str, values))}"
        return self._constant(name, self._onnx.TensorProto.INT64, [len(values)], values)

    def _integer(self, value: int) -> str:
        return self._constant(f"integer.{value}", self._onnx.TensorProto.INT64, [], [value])

    def _number(self, value: float, like: str) -> str:
        """A scalar of the type of ``like``."""
        kind = self._types[like].elem_type if like in self._types else self._onnx.TensorProto.FLOAT
        return self._constant(f"number.{value}.{kind}", kind, [], [value])

    def _largest(self, like: str) -> float:
        """The largest finite number of the type of ``like``."""
        types = self._onnx.TensorProto
        largest = {types.FLOAT16: _LARGEST_FLOAT16, types.BFLOAT16: _LARGEST_BFLOAT16, types.DOUBLE: sys.float_info.max}
        return largest.get(self._types[like].elem_type if like in self._types else types.FLOAT, _LARGEST_FLOAT32)

    def _sizes(self, value: str) -> list[int | None]:
        """The length of each axis, None where it is not known."""
        shape = self._types[value].shape.dim if value in self._types else ()
        return [axis.dim_value if axis.HasField("dim_value") else None for axis in shape]

    # One rule for each operator.

    def _tensor_scatter(self, node: Any) -> None:
        past, update, begin = node.input
        attributes = _attributes(self._onnx, node)
        mode, sizes = attributes.get("mode", b"linear").decode(), self._sizes(past)
        rank = len(sizes)
        if attributes.get("axis", -2) not in (-2, rank - 2) or rank < 3 or mode not in ("linear", "circular"):
            raise _refused(node, f"axis {attributes.get('axis', -2)} of {rank} axes, mode {mode}")
        # The caches of all layers are written at the same columns, those of the window's slots.
        of_window = begin == "start" and past.startswith("past_key_values.")
        counted = (self._once("Shape", "input_ids"), 1) if of_window else (self._once("Shape", update), rank - 2)
        width = self._once("Gather", counted[0], self._integer(counted[1]), axis=0)
        slots = self._once("Range", self._integer(0), width, self._integer(1))
        column = self._once("Add", self._once("Unsqueeze", begin, self._integers(1)), slots)
        if mode == "circular":
            length = self._once("Gather", self._once("Shape", past), self._integer(rank - 2), axis=0)
            column = self._remainder(column, length)
        column = self._once("Unsqueeze", column, self._integers(*range(1, rank - 2), rank - 1))
        if of_window and all(sizes[1:]):
            rows = self._once("Shape", begin)
            width = self._once("Unsqueeze", width, self._integers(0))
            known = [self._integers(*(size or 0 for size in part)) for part in (sizes[1:-2], sizes[-1:])]
            shape = self._once("Concat", rows, known[0], width, known[1], axis=0)
        else:
            shape = self._once("Shape", update)
        indices = self._once("Expand", column, shape)
        self._op("ScatterElements", past, indices, update, output=node.output[0], axis=rank - 2)

    def _attention(self, node: Any) -> None:
        """Scores are made as keys times queries and then turned, since queries are fewer than keys."""
        attributes = _attributes(self._onnx, node)
        unknown = sorted(set(attributes) - _ATTENTION)
        if len(node.input) != 4 or len(node.output) != 1 or unknown or attributes.get("is_causal"):
            raise _refused(node, f"{len(node.input)} inputs and the attributes {', '.join(sorted(attributes))}")
        query, key, value, mask = node.input
        queries, keys = self._sizes(query), self._sizes(self._whole_cache(key))
        if len(keys) != 4 or keys[1] is None or keys[3] is None:
            raise _refused(node, f"keys of the shape {keys}")
        scale = attributes.get("scale", keys[3] ** -0.5)
        shares_keys = len(queries) != 4 or queries[1] != keys[1]
        shape = self._op("Shape", query) if shares_keys else ""
        scaled = self._op("Mul", query, self._number(scale, query))
        # Heads that share keys lie side by side, so that they are more queries of the same head.
        grouped = self._op("Reshape", scaled, self._integers(0, keys[1], -1, keys[3])) if shares_keys else scaled
        scores = self._op("MatMul", key, self._op("Transpose", grouped, perm=[0, 1, 3, 2]))
        scores = self._op("Transpose", scores, perm=[0, 1, 3, 2])
        softcap = attributes.get("softcap", 0.0)
        if softcap:
            cap = self._number(softcap, query)
            scores = self._op("Mul", self._op("Tanh", self._op("Div", scores, cap)), cap)
        together = self._op("Shape", scores) if shares_keys else ""
        if shares_keys:
            rows = self._op("Slice", shape, self._integers(0), self._integers(3))
            scores = self._op("Reshape", scores, self._op("Concat", rows, self._integers(-1), axis=0))
        # Not minus infinity, which shaders may take for a number that never occurs; its exponential is 0 all the same.
        never = self._number(-self._largest(query) / 2, query)
        law = self._op("Softmax", self._op("Where", mask, scores, never), axis=-1)
        if not shares_keys:
            self._op("MatMul", law, value, output=node.output[0])
            return
        law = self._op("Reshape", law, together)
        self._op("Reshape", self._op("MatMul", law, value), shape, output=node.output[0])

    def _whole_cache(self, key: str) -> str:
        """What ``key`` is the first columns of; itself if it is no part. No size is inferred for a part."""
        made = next((node for node in reversed(self._nodes) if key in node.output), None)
        return made.input[0] if made is not None and made.op_type == "Slice" else key

    def _rotary(self, node: Any) -> None:
        """Pairs of a head's numbers turned; the cosines and sines of the slots are looked up once for all layers."""
        attributes = _attributes(self._onnx, node)
        heads, *tables = node.input[:3]
        if set(attributes) - _ROTARY or attributes.get("num_heads"):
            raise _refused(node, f"the attributes {', '.join(sorted(attributes))}")
        if len(node.input) > 3:
            tables = [self._once("Gather", table, node.input[3], axis=0) for table in tables]
        cos, sin = (self._once("Unsqueeze", table, self._integers(1)) for table in tables)
        size, last, end = attributes.get("rotary_embedding_dim", 0), self._integers(-1), self._integers(_END)
        turned = self._op("Slice", heads, self._integers(0), self._integers(size), last) if size else heads
        if attributes.get("interleaved"):
            first, second = (
                self._op("Slice", turned, self._integers(i), end, last, self._integers(2)) for i in range(2)
            )
        else:
            half = self._once("Shape", tables[0], start=-1)
            first = self._op("Slice", turned, self._integers(0), half, last)
            second = self._op("Slice", turned, half, end, last)
        real = self._op("Sub", self._op("Mul", first, cos), self._op("Mul", second, sin))
        imaginary = self._op("Add", self._op("Mul", first, sin), self._op("Mul", second, cos))
        if attributes.get("interleaved"):
            pairs = [self._op("Unsqueeze", part, last) for part in (real, imaginary)]
            both = self._op("Reshape", self._op("Concat", *pairs, axis=-1), self._integers(0, 0, 0, -1))
        else:
            both = self._op("Concat", real, imaginary, axis=-1)
        if size:
            both = self._op("Concat", both, self._op("Slice", heads, self._integers(size), end, last), axis=-1)
        self._nodes[-1].output[0] = node.output[0]

    def _or(self, node: Any) -> None:
        left, right = (self._op("Not", name) for name in node.input)
        self._op("Not", self._op("And", left, right), output=node.output[0])

    def _mod(self, node: Any) -> None:
        if _attributes(self._onnx, node).get("fmod"):
            raise _refused(node, "the attribute fmod")
        dividend, divisor = node.input
        self._remainder(dividend, divisor, output=node.output[0])

    def _remainder(self, dividend: str, divisor: str, output: str = "") -> str:
        """Of integers that are not negative."""
        whole = self._op("Mul", self._op("Div", dividend, divisor), divisor)
        return self._op("Sub", dividend, whole, output=output)

    def _is_nan(self, node: Any) -> None:
        """Neither up to 0 nor from 0 on. That it differs from itself could be taken for impossible by a shader's compiler."""
        zero = self._number(0.0, node.input[0])
        below, above = (self._op(kind, node.input[0], zero) for kind in ("LessOrEqual", "GreaterOrEqual"))
        self._op("And", self._op("Not", below), self._op("Not", above), output=node.output[0])

    def _is_inf(self, node: Any) -> None:
        attributes, name = _attributes(self._onnx, node), node.input[0]
        largest = self._largest(name)
        found = []
        if attributes.get("detect_positive", 1):
            found.append(self._op("Greater", name, self._number(largest, name)))
        if attributes.get("detect_negative", 1):
            found.append(self._op("Less", name, self._number(-largest, name)))
        if len(found) == 2:
            left, right = (self._op("Not", one) for one in found)
            self._op("Not", self._op("And", left, right), output=node.output[0])
        elif found:
            self._nodes[-1].output[0] = node.output[0]
        else:
            raise _refused(node, "no sign")

    def _size(self, node: Any) -> None:
        rank, shape = len(self._sizes(node.input[0])), self._op("Shape", node.input[0])
        if not rank:
            raise _refused(node, "an input of unknown rank")
        size, *others = (self._op("Gather", shape, self._integer(axis), axis=0) for axis in range(rank))
        for other in others:
            size = self._op("Mul", size, other)
        self._nodes[-1].output[0] = node.output[0]

    def _narrow(self, node: Any) -> None:
        """Tokens, slots and columns fit in 32 bits. Not so for booleans: ONNX Runtime prefers integers near shapes on the CPU."""
        kind, types = self._types.get(node.input[0]), self._onnx.TensorProto
        if kind is None or kind.elem_type not in (types.INT64, types.BOOL):
            self._nodes.append(node)
            return
        narrow = self._op("Cast", node.input[0], to=types.INT32 if kind.elem_type == types.INT64 else types.FLOAT)
        attributes = _attributes(self._onnx, node)
        made = self._op(node.op_type, narrow, *node.input[1:], **attributes)
        self._op("Cast", made, output=node.output[0], to=kind.elem_type)


def _attributes(onnx: Any, node: Any) -> dict[str, Any]:
    return {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}


def _refused(node: Any, found: str) -> InvalidArgument:
    return InvalidArgument(
        f"model has a node {node.name!r}, {node.op_type} with {found}, which cannot be rewritten; expected a graph that this "
        "library's exporter wrote"
    )

"""What of a finished window graph depends on how slots follow one another, found by structure.

That is the slots' position, the masks of attention and the position at which a picture begins. Names do not matter, so that graphs
of earlier versions are read too; what is written in any other way is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from coupled_sampling.errors import InvalidArgument
from coupled_sampling.export.graphs.builder import OPSET

__all__ = ["Pictures", "WindowParts", "insert_nodes", "replace_values", "self_attention"]

_CONDITION = "condition."
_FORMAT = "coupled-sampling window graph"
_EXPECTED = "a window graph that this library's exporter wrote from a description"


@dataclass(frozen=True)
class Pictures:
    """Where a graph looks for the mark of a picture.

    ``begin`` is the position behind the first mark, int64 (B, 1); ``marked`` boolean (B, 1, kv_length, 1), ``nowhere`` a constant
    that stands for no mark.
    """

    begin: str
    marked: str
    nowhere: str


@dataclass(frozen=True)
class WindowParts:
    """Values of a window graph: ``position`` int64 (B, W), and ``masks`` with how far back each reaches, 0 for all the way."""

    position: str
    masks: dict[str, int]
    pictures: Pictures | None
    max_length: int

    @classmethod
    def of(cls, model: Any) -> WindowParts:
        """The parts of a window graph.

        Raises
        ------
        InvalidArgument
            It is none, or is not written as the exporter writes it.
        """
        metadata = {entry.key: entry.value for entry in model.metadata_props}
        inputs = {value.name for value in model.graph.input}
        version = max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)
        fits = {"input_ids", "start", "kv_length"} <= inputs and version >= OPSET
        if metadata.get("format") != _FORMAT or not fits or not metadata.get("max_length", "").isdecimal():
            raise InvalidArgument(
                f"window_model has the format {metadata.get('format')!r}, inputs {sorted(inputs)} and operator set {version}; "
                f"expected {_EXPECTED}, with operator set {OPSET} or more"
            )
        return _Reading(model.graph).parts(int(metadata["max_length"]))


def self_attention(graph: Any) -> list[Any]:
    """The nodes that attend to a window's own columns.

    Attention to a request's vectors, which all slots see, is no affair of how they follow one another.
    """
    return [node for node in graph.node if node.op_type == "Attention" and not node.input[1].startswith(_CONDITION)]


_INPUTS = {"Unsqueeze": 2, "Add": 2, "Sub": 2, "And": 2, "LessOrEqual": 2, "Greater": 2, "ReduceMin": 2, "Where": 3}
"""How many inputs the operators have that are looked into."""


class _Reading:
    """Walks from values to the nodes that make them."""

    def __init__(self, graph: Any) -> None:
        self.graph = graph
        self.made = {name: node for node in graph.node for name in node.output}
        self.constants = {tensor.name: tensor for tensor in graph.initializer}

    def parts(self, max_length: int) -> WindowParts:
        attention = self_attention(self.graph)
        if not attention or any(len(node.input) != 4 for node in attention):
            raise _unknown("its attention has no mask")
        position = self.position()
        masks = {self.of_columns(node.input[3]): 0 for node in attention}
        return WindowParts(position, {mask: self.reach(mask, position) for mask in masks}, self.pictures(), max_length)

    def of_columns(self, mask: str) -> str:
        """The part of a mask that says how far slots see, where another one leaves out what is before a request's vectors."""
        both = self.inputs(mask, "And", ("Unsqueeze", "Or"))
        return both[0] if both else mask

    def position(self) -> str:
        """The sum of ``start`` and the slots' numbers."""
        found: list[str] = []
        for value in self.made:
            added = self.inputs(value, "Add", ("Unsqueeze", "Slice"))
            if added and self.inputs(added[0], "Unsqueeze")[:1] == ["start"]:
                found.append(value)
        if len(found) != 1:
            raise _unknown(f"{len(found)} values are the positions of slots")
        return found[0]

    def reach(self, mask: str, position: str) -> int:
        """How far back a mask reaches, its own column included; 0 for all the way."""
        allowed = self.inputs(mask, "Unsqueeze")[:1]
        both = self.inputs(allowed[0], "And", ("LessOrEqual", "Greater")) if allowed else []
        compared = self.inputs((both or allowed)[0], "LessOrEqual", ("Slice", "Unsqueeze")) if allowed else []
        own = self.inputs(compared[1], "Unsqueeze")[:1] if compared else []
        if own != [position]:
            raise _unknown(f"the mask {mask!r} is made in another way")
        if not both:
            return 0
        last = self.inputs(both[1], "Greater", ("Slice", "Sub"))
        reached = self.inputs(last[1], "Sub") if last else []
        reach = self.integer(reached[1]) if reached[:1] == compared[1:] else None
        if reach is None:
            raise _unknown(f"the mask {mask!r} is made in another way")
        return reach

    def pictures(self) -> Pictures | None:
        """Where it looks for the mark of a picture, if it does."""
        found = []
        for value in self.made:
            least = self.inputs(value, "ReduceMin", ("Where",))
            chosen = self.inputs(least[0], "Where") if least else []
            if chosen:
                begin = self.sole_use(self.sole_use(value, "Unsqueeze"), "Add")
                found.append(Pictures(begin, chosen[0], chosen[2]))
        if len(found) > 1:
            raise _unknown("it looks for marks of pictures in several places")
        return found[0] if found else None

    def inputs(self, value: str, kind: str, made_by: tuple[str, ...] = ()) -> list[str]:
        """Inputs of the node that makes ``value``, if it is of that kind and theirs are ``made_by``; else none."""
        node = self.made.get(value)
        if node is None or node.op_type != kind or len(node.input) != _INPUTS[kind]:
            return []
        kinds = [self.made[name].op_type if name in self.made else "" for name in node.input]
        return list(node.input) if tuple(kinds[: len(made_by)]) == made_by else []

    def sole_use(self, value: str, kind: str) -> str:
        """What the one node makes of ``value`` that uses it."""
        users = [(node.op_type, *node.output) for node in self.graph.node if value in node.input]
        if len(users) != 1 or users[0][:1] != (kind,) or len(users[0]) != 2:
            raise _unknown(f"{value!r} is used in another way")
        return str(users[0][1])

    def integer(self, name: str) -> int | None:
        """A constant, if it is a single integer."""
        tensor = self.constants.get(name)
        if tensor is None or list(tensor.dims) != [1] or len(tensor.raw_data) != 8:
            return None
        return int.from_bytes(tensor.raw_data, "little", signed=True)


def _unknown(reason: str) -> InvalidArgument:
    return InvalidArgument(f"window_model cannot be rewritten: {reason}; expected {_EXPECTED}")


def replace_values(graph: Any, written: Any, replaced: dict[str, str]) -> None:
    """Put the nodes of ``written`` into ``graph``, let its own nodes use the new values, and leave out what is in no output.

    Raises
    ------
    InvalidArgument
        A node that stays still depends on how slots follow one another.
    """
    for node in graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = replaced.get(name, name)
    insert_nodes(graph, written)
    ours = {name for node in written.node for name in node.output}
    for node in graph.node:
        told = {"start", "kv_length"} & set(node.input)
        cache = node.op_type == "TensorScatter" or (node.op_type == "Slice" and node.input[0].startswith("present."))
        if told and not cache and not ours & set(node.output):
            raise _unknown(f"{node.name!r} uses {min(told)!r}")


def insert_nodes(graph: Any, written: Any) -> None:
    """Put the nodes and constants of ``written`` into ``graph``, in order, and leave out what is in no output.

    Raises
    ------
    InvalidArgument
        There is no such order.
    """
    ordered = _in_order([*written.node, *graph.node])
    wanted, kept = {value.name for value in graph.output}, []
    for node in reversed(ordered):
        if wanted & set(node.output):
            kept.append(type(node).FromString(node.SerializeToString()))
            wanted |= set(node.input)
    held = {tensor.name: tensor for tensor in (*graph.initializer, *written.initializer)}
    constants = [type(one).FromString(one.SerializeToString()) for name, one in held.items() if name in wanted]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(reversed(kept))
    graph.initializer.extend(constants)


def _in_order(nodes: list[Any]) -> list[Any]:
    """Nodes, each behind those that make its inputs; else as they came."""
    made = {name for node in nodes for name in node.output}
    done: set[str] = set()
    ordered: list[Any] = []
    waiting = nodes
    # The first time the nodes that are new, and those behind them up to where one of the new ones is missing.
    for _ in range(3):
        later = []
        for node in waiting:
            if all(name in done or name not in made for name in node.input):
                ordered.append(node)
                done |= set(node.output)
            else:
                later.append(node)
        waiting = later
    if waiting:
        raise _unknown("its nodes are not in the order in which they are computed")
    return ordered

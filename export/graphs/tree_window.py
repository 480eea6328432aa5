"""A window graph that takes trees: several guesses for a position in one pass, each with its own context.

`tree_window` rewrites a finished window graph. The new one is told the parent of every slot (`coupled_sampling.trees`). What a slot
sees follows by pointer doubling, its position from how much of the window it sees, and its mask from both; these take the place of
the position and the masks that stood there. Weights and all else stay as they are, so both graphs may share a file of weights.

A slot's state lies in column ``start + slot``, whatever its position is. Therefore caches have more columns than there are
positions, and whatever counts columns as positions, a sliding window or the place of a picture, is told each column's position.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from coupled_sampling.errors import InvalidArgument
from coupled_sampling.export.graphs.builder import GraphBuilder, require_onnx
from coupled_sampling.export.graphs.window_parts import Pictures, WindowParts, replace_values
from coupled_sampling.fields import check_is

__all__ = ["POSITION", "SEES", "TREE_FORMAT", "tree_window"]

POSITION = "tree.position"
"""Inside the graph: the position of each slot, int64 (B, W). A step graph's decision reads it."""

SEES = "tree.sees"
"""Inside the graph: which slots each slot sees, bool (B, W, W or more); what lies beyond the W slots means nothing to others."""

TREE_FORMAT = "coupled-sampling tree window graph"
_PAST = "past_key_values."
_INT64 = 7
_END = 2**31 - 1  # behind every axis


def tree_window(window_model: Any, columns: int) -> Any:
    """Rewrite a window graph into one that takes trees.

    Parameters
    ----------
    window_model
        ``onnx.ModelProto`` of a window graph that `coupled_sampling.export.decoder_graph` wrote, in this version or an earlier one.
        It is not changed.
    columns
        Of each cache. A window of W slots needs W of them from ``start`` on, however few positions its slots are at.

    Returns
    -------
    onnx.ModelProto
        With the further input ``parents`` int64 (B, W): the slot before each, -1 for the state below ``start``. Not yet checked:
        `coupled_sampling.export.save_graph` does. Weights in a second file stay there.

    Raises
    ------
    InvalidArgument
        The model is no such graph, or ``columns`` are fewer than its positions.
    MissingDependency
        ``onnx`` is not installed.

    Examples
    --------
    >>> import onnx
    >>> from coupled_sampling import open_bundle
    >>> from coupled_sampling.export import tree_window
    >>> window = onnx.load(open_bundle("fashion").window_graph, load_external_data=False)
    >>> tree = tree_window(window, columns=480)
    >>> [value.name for value in tree.graph.input][:4]
    ['input_ids', 'start', 'kv_length', 'parents']
    """
    onnx = require_onnx()
    check_is("window_model", window_model, onnx.ModelProto)
    check_is("columns", columns, int)
    model = onnx.ModelProto()
    model.CopyFrom(window_model)
    parts = WindowParts.of(model)
    if columns < parts.max_length:
        raise InvalidArgument(
            f"columns is {columns}, expected at least the {parts.max_length} positions of the window graph"
        )
    graph = GraphBuilder()
    graph.scope("tree.")
    tree = _Tree(graph, columns, parts.max_length)
    replaced = {parts.position: tree.position}
    replaced |= {mask: tree.mask(reach) for mask, reach in parts.masks.items()}
    if parts.pictures is not None:
        replaced[parts.pictures.begin] = tree.picture(parts.pictures)
    replace_values(model.graph, graph.build("tree", "", {}).graph, replaced)
    inputs = [value for value in model.graph.input if not value.name.startswith(_PAST)]
    caches = [value for value in model.graph.input if value.name.startswith(_PAST)]
    for value in (*caches, *(value for value in model.graph.output if value.name != "logits")):
        value.type.tensor_type.shape.dim[2].dim_value = columns
    parents = onnx.helper.make_tensor_value_info("parents", onnx.TensorProto.INT64, ["B", "W"])
    del model.graph.value_info[:], model.graph.input[:]
    model.graph.input.extend([*inputs, parents, *caches])
    model.graph.name = "tree_window_graph"
    model.graph.doc_string = model.doc_string = (
        "Tokens of a window that may be a tree to logits; caches in and out. See docs/bundle-format.md of coupled-sampling."
    )
    metadata = {entry.key: entry.value for entry in window_model.metadata_props} | {"format": TREE_FORMAT}
    onnx.helper.set_model_props(model, metadata)
    return model


class _Tree:
    """Writes what follows from ``parents``: positions and masks.

    Widths are sliced out of a constant and not sent from the host, so that nothing crosses to a device.
    """

    def __init__(self, graph: GraphBuilder, columns: int, max_length: int) -> None:
        self.graph = graph
        counting = graph.constant("tree.counting", np.arange(columns + 2, dtype=np.int64))
        self.shape = graph.op("Shape", "input_ids")
        self.width = graph.op("Slice", self.shape, graph.integers(1), graph.integers(2))
        # Two numbers more than there are slots: a slot that none sees, and one that all see.
        wide = graph.op("Add", self.width, graph.integers(2))
        self.numbers = graph.op("Slice", counting, graph.integers(0), wide)
        self.last, self.never, self.always = (
            graph.op("Slice", self.numbers, graph.integers(begin), graph.integers(end))
            for begin, end in ((-3, -2), (-2, -1), (-1, _END))
        )
        sees = self._sees(max_length, wide)
        count = graph.op("ReduceSum", graph.op("Cast", sees, to=_INT64), graph.integers(2), keepdims=0)
        start = graph.op("Unsqueeze", "start", graph.integers(1))
        self.position = graph.op("Add", start, graph.op("Sub", count, graph.integers(2)), name=POSITION)
        """Of every slot, (B, W)."""
        self.every = graph.op("Slice", counting, graph.integers(0), "kv_length")
        self.below = graph.op("Less", self.every, start)
        self.slot = graph.op("Sub", self.every, start)
        slot = graph.op("Where", self.below, self.always, graph.op("Min", self.slot, self.never))
        slot = graph.op("Unsqueeze", slot, graph.integers(1))
        slot = graph.op("Expand", slot, graph.op("Concat", self.shape, "kv_length", axis=0))
        self.visible = graph.op("GatherElements", sees, slot, axis=2)
        """Which columns each slot attends to: all below ``start``, and those of its path: boolean (B, W, kv_length)."""
        self._positions = ""

    def _sees(self, max_length: int, wide: str) -> str:
        """Which slots each slot sees, boolean (B, W, W + 2): those on its path and itself, and the one that all see.

        By doubling: from what a slot sees within m steps of its path, and its m-th ancestor, to twice as many. A slot that follows
        the state below ``start`` is its own ancestor. Rows lie one after the other, so that one Gather serves all.
        """
        graph = self.graph
        slots = graph.op("Slice", self.numbers, graph.integers(0), self.width)
        above = graph.op("Where", graph.op("Less", "parents", graph.integers(0)), slots, "parents")
        zero = graph.constant("tree.zero", np.array(0, np.int64))
        first = graph.op(
            "Range", zero, graph.op("Size", "input_ids"), graph.op("Squeeze", self.width, graph.integers(0))
        )
        above = graph.op("Add", above, graph.op("Unsqueeze", first, graph.integers(1)))
        above = graph.op("Reshape", above, graph.integers(-1))
        own = graph.op("Equal", graph.op("Unsqueeze", slots, graph.integers(1)), self.numbers)
        own = graph.op("Or", own, graph.op("Equal", self.numbers, self.always))
        each = graph.op("Concat", self.shape, wide, axis=0)
        flat = graph.op("Concat", graph.integers(-1), wide, axis=0)
        sees = graph.op("Reshape", graph.op("Expand", own, each), flat)
        # A path has at most as many slots as there are positions.
        for left in reversed(range((max_length - 1).bit_length())):
            sees = graph.op("Or", sees, graph.op("Gather", sees, above))
            if left:
                above = graph.op("Gather", above, above)
        return graph.op("Reshape", sees, each, name=SEES)

    @property
    def column_positions(self) -> str:
        """The position of what lies in each column, int64 (B, kv_length); beyond the window it means nothing."""
        if not self._positions:
            graph = self.graph
            slot = graph.op("Max", graph.op("Min", self.slot, self.last), graph.integers(0))
            inside = graph.op("GatherElements", self.position, slot, axis=1)
            self._positions = graph.op("Where", self.below, self.every, inside)
        return self._positions

    def mask(self, reach: int) -> str:
        """Boolean (B, 1, W, kv_length): what each slot attends to, of the last ``reach`` positions; 0 means of all."""
        graph, allowed = self.graph, self.visible
        if reach:
            last = graph.op("Unsqueeze", graph.op("Sub", self.position, graph.integers(reach)), graph.integers(2))
            positions = graph.op("Unsqueeze", self.column_positions, graph.integers(1))
            allowed = graph.op("And", allowed, graph.op("Greater", positions, last))
        return graph.op("Unsqueeze", allowed, graph.integers(1))

    def picture(self, pictures: Pictures) -> str:
        """The position at which each slot's picture begins, (B, W): behind the first mark among the columns that it sees."""
        graph = self.graph
        positions = graph.op("Unsqueeze", self.column_positions, graph.integers(1))
        marked = graph.op("Squeeze", pictures.marked, graph.integers(3))
        counts = graph.op("And", marked, self.visible)
        first = graph.op("Where", counts, positions, pictures.nowhere)
        first = graph.op("ReduceMin", first, graph.integers(2), keepdims=0)
        return graph.op("Add", first, graph.integers(1))

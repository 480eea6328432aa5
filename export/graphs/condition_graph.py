"""The condition graph: a request's vectors to what a window graph takes of them, computed once for a request.

Its outputs are called as the window graph's inputs, and are those of one row: their first axis is 1. For `CrossAttention` they
are every layer's key and value (1, kv_heads, length, head_size), for `PrefixVectors` the embeddings of the first positions
(1, length, width) and the number of the first that is a vector (1,). A condition with fewer vectors than the model has room for is
padded here, so that whoever runs the graphs need not know on which side and with what.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from coupled_sampling.errors import InvalidArgument
from coupled_sampling.export.graphs.attention import normed_heads
from coupled_sampling.export.graphs.builder import GraphBuilder, write_graph
from coupled_sampling.export.graphs.conditions import CROSS_ATTENTION, FIRST, VECTORS, CrossAttention, cross_caches
from coupled_sampling.export.graphs.decoder import stored_bytes
from coupled_sampling.export.graphs.description import DecoderDescription
from coupled_sampling.export.graphs.linear import Linear
from coupled_sampling.export.graphs.storage import Storage, TensorFile
from coupled_sampling.export.graphs.weights import WeightReader, WeightSource
from coupled_sampling.fields import check_is, check_path

__all__ = ["condition_graph", "write_condition_graph"]


def condition_graph(
    description: DecoderDescription,
    weights: WeightSource,
    storage: Storage | None = None,
    tensors: TensorFile | None = None,
) -> Any:
    """The condition graph of a decoder that takes a condition, in memory. Arguments and errors are those of `decoder_graph`.

    Examples
    --------
    >>> import numpy as np
    >>> from coupled_sampling.export import CrossAttention, DecoderDescription
    >>> from coupled_sampling.export.graphs.condition_graph import condition_graph
    >>> description = DecoderDescription(32, 64, width=16, layers=1, heads=2, mlp_width=32, condition=CrossAttention(9, size=6))
    >>> weights = {name: np.zeros(shape, np.float32) for name, shape in description.weight_shapes().items()}
    >>> [value.name for value in condition_graph(description, weights).graph.output]
    ['condition.0.key', 'condition.0.value']
    """
    if description.condition is None:
        raise InvalidArgument("description has no condition, expected one whose window graph takes vectors")
    return _Writer(description, weights, storage or Storage(), tensors).write()


def write_condition_graph(
    description: DecoderDescription,
    weights: WeightSource,
    path: str | Path,
    storage: Storage | None = None,
    inline: bool | None = None,
) -> tuple[Path, ...]:
    """Write and check the condition graph of a decoder. Arguments, errors and files are those of `write_decoder_graph`.

    Examples
    --------
    >>> import numpy as np
    >>> from coupled_sampling.export import CrossAttention, DecoderDescription, write_condition_graph
    >>> description = DecoderDescription(32, 64, width=16, layers=1, heads=2, mlp_width=32, condition=CrossAttention(9, size=6))
    >>> weights = {name: np.zeros(shape, np.float32) for name, shape in description.weight_shapes().items()}
    >>> [path.name for path in write_condition_graph(description, weights, "condition.onnx")]
    ['condition.onnx']
    """
    check_is("description", description, DecoderDescription)
    stored = check_is("storage", storage, Storage | None) or Storage()
    size = stored_bytes(description, stored)  # an upper bound: most weights are the window graph's
    return write_graph(
        check_path("path", path), lambda tensors: condition_graph(description, weights, stored, tensors), size, inline
    )


class _Writer:
    """Writes the graph of one description, once."""

    def __init__(
        self, description: DecoderDescription, weights: WeightSource, storage: Storage, tensors: TensorFile | None
    ) -> None:
        self.description = description
        self.storage = storage
        self.graph = GraphBuilder(tensors)
        self.linear = Linear(self.graph, WeightReader(description.weight_shapes(), weights), storage)

    def write(self) -> Any:
        graph, condition = self.graph, self.description.condition
        assert condition is not None
        vectors = graph.input("condition", "float32", ["S", condition.size])
        count = graph.op("Shape", vectors, start=0, end=1)
        missing = graph.op("Sub", graph.integers(condition.length), count)
        if self.storage.compute != "float32":
            vectors = graph.op("Cast", vectors, to=self.storage.onnx_type)
        if isinstance(condition, CrossAttention):
            self.cross_attention(
                graph.op("Pad", vectors, graph.op("Concat", graph.integers(0, 0), missing, graph.integers(0), axis=0))
            )
        else:
            self.prefix(vectors, missing)
        return graph.build(
            "condition_graph",
            "Vectors of a request to what the window graph takes. See docs/bundle-format.md of coupled-sampling.",
            {"format": "coupled-sampling condition graph"},
        )

    def cross_attention(self, context: str) -> None:
        """Keys and values of ``context`` (length, size) in every layer."""
        graph, description = self.graph, self.description
        heads, context_rows = description.kv_heads, description.cross_attention
        assert context_rows is not None
        shape = (1, heads, context_rows.length, description.head_size)
        split = graph.integers(1, context_rows.length, heads, description.head_size)
        for layer in range(description.layers):
            prefix = f"layers.{layer}.{CROSS_ATTENTION}"
            graph.scope(f"layers.{layer}.")
            for part, name in zip(("key", "value"), cross_caches(layer), strict=True):
                made = graph.op("Reshape", self.linear(f"{prefix}.{part}", context), split)
                made = graph.op("Transpose", made, perm=[0, 2, 1, 3])
                if part == "key":
                    made = normed_heads(description, self.linear, prefix, ((part, heads),), made)
                graph.op("Identity", made, name=graph.output(name, self.storage.compute, shape))

    def prefix(self, vectors: str, missing: str) -> None:
        """Embeddings of ``vectors`` (S, size), with ``missing`` (1,) rows of zeros before them."""
        graph, prefix, width = self.graph, self.description.prefix, self.description.width
        assert prefix is not None
        x = graph.op("Gelu", self.linear("prefix.up", vectors), approximate="tanh")
        x = graph.op("Pad", self.linear("prefix.down", x), graph.op("Concat", missing, graph.integers(0, 0, 0), axis=0))
        graph.op(
            "Reshape",
            x,
            graph.integers(1, prefix.length, width),
            name=graph.output(VECTORS, self.storage.compute, (1, prefix.length, width)),
        )
        graph.op("Identity", missing, name=graph.output(FIRST, "int64", (1,)))

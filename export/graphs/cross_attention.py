"""What a window graph does with a request's vectors: attention to them in every layer, or their place at the first positions.

What the vectors become, keys and values or embeddings, are inputs here, one for each row of the window; see
`coupled_sampling.export.graphs.condition_graph`.
"""

from __future__ import annotations

import numpy as np

from coupled_sampling.export.graphs.attention import Window, normed_heads
from coupled_sampling.export.graphs.conditions import CROSS_ATTENTION, FIRST, VECTORS, PrefixVectors, cross_caches
from coupled_sampling.export.graphs.description import DecoderDescription
from coupled_sampling.export.graphs.linear import Linear

__all__ = ["cross_attention", "prefix_mask", "with_vectors"]


def cross_attention(description: DecoderDescription, linear: Linear, layer: int, x: str, window: Window) -> str:
    """What a layer's cross attention makes of ``x`` (B * W, width)."""
    graph, prefix, context = linear.graph, f"layers.{layer}.{CROSS_ATTENTION}", description.cross_attention
    assert context is not None
    sizes = graph.integers(description.heads, description.head_size)
    query = graph.op("Reshape", linear(f"{prefix}.query", x), graph.op("Concat", window.shape, sizes, axis=0))
    query = graph.op("Transpose", query, perm=[0, 2, 1, 3])
    query = normed_heads(description, linear, prefix, (("query", description.heads),), query)
    shape: list[str | int] = ["B", description.kv_heads, context.length, description.head_size]
    key, value = (graph.input(name, linear.storage.compute, shape) for name in cross_caches(layer))
    mixed = graph.op(
        "Attention", query, key, value, scale=description.attention_scale, softcap=description.attention_softcap
    )
    mixed = graph.op("Transpose", mixed, perm=[0, 2, 1, 3])
    flat = graph.op("Reshape", mixed, graph.integers(-1, description.heads * description.head_size))
    return linear(f"{prefix}.output", flat)


def with_vectors(prefix: PrefixVectors, linear: Linear, width: int, x: str, tokens: str, position: str) -> str:
    """Embeddings (B, W, width), those of the vectors' token replaced by the vectors of their positions."""
    graph = linear.graph
    vectors = graph.input(VECTORS, linear.storage.compute, ["B", prefix.length, width])
    graph.input(FIRST, "int64", ["B"])
    # A position behind them holds no vector; it is only kept from reading beyond.
    number = graph.op("Min", position, graph.integers(prefix.length - 1))
    held = graph.op("GatherND", vectors, graph.op("Unsqueeze", number, graph.integers(2)), batch_dims=1)
    stands = graph.op("Equal", tokens, graph.integers(prefix.token))
    return graph.op("Where", graph.op("Unsqueeze", stands, graph.integers(2)), held, x)


def prefix_mask(linear: Linear, mask: str, position: str) -> str:
    """``mask`` (B, 1, W, kv_length) without the columns before the first vector; a slot always sees its own."""
    graph = linear.graph
    # Counted by the mask's own width: one for windows that are trees has more columns than this graph's caches.
    width = graph.op("Squeeze", graph.op("Shape", mask, start=3, end=4), graph.integers(0))
    zero, one = (graph.constant(f"prefix.{number}", np.array(number, np.int64)) for number in (0, 1))
    columns = graph.op("Range", zero, width, one)
    first = graph.op("Unsqueeze", FIRST, graph.integers(1, 2, 3))
    own = graph.op("Unsqueeze", position, graph.integers(1, 3))
    seen = graph.op("Or", graph.op("GreaterOrEqual", columns, first), graph.op("Equal", columns, own))
    return graph.op("And", mask, seen)

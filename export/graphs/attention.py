"""The attention of a window graph: caches written in place, and a mask that says what a slot sees.

A slot's key and value go into its position's column of the caches (TensorScatter, so the last write wins), and its
query attends to the columns its context allows (Attention with an explicit boolean mask). What is not finite never
enters a column. Fewer heads of keys than of queries are Attention's own business. Its input ``nonpad_kv_seqlen``, which
some runtimes get silently wrong, is for `coupled_sampling.export.graphs.causal_window` only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from coupled_sampling.export.graphs.builder import GraphBuilder
from coupled_sampling.export.graphs.description import DecoderDescription
from coupled_sampling.export.graphs.linear import Linear
from coupled_sampling.export.graphs.picture_positions import PicturePositions, mark_columns, picture_places
from coupled_sampling.export.graphs.rotary import Rotary, rotary_tables
from coupled_sampling.export.graphs.storage import ONNX_TYPES, stored_type

__all__ = ["AttentionGraph", "Window", "normed_heads"]

_CACHE_AXIS = 2


@dataclass(frozen=True)
class Window:
    """Values that every layer shares.

    ``start`` int64 (B,), ``position`` int64 (B, W), ``kv_length`` int64 (1,), ``shape`` int64 (2,): (B, W), and ``masks``
    boolean (B, 1, W, kv_length), by how far they reach back. ``angles`` are what RotaryEmbedding takes after the heads: tables
    of cos and sin and the slots' positions in them, or cos and sin of each slot.
    """

    start: str
    position: str
    kv_length: str
    shape: str
    masks: Mapping[int, str]
    angles: Mapping[Rotary, Sequence[str]]


class AttentionGraph:
    """Writes the attention of one layer after the other."""

    def __init__(self, description: DecoderDescription, linear: Linear) -> None:
        self.description = description
        self.linear = linear
        self.graph = linear.graph
        self.kinds = description.kinds()
        turns = dict.fromkeys(kind.rotary for kind in self.kinds if kind.rotary is not None)
        self.tables = {rotary: self._tables(rotary, f".{n}" if n else "") for n, rotary in enumerate(turns)}

    def _tables(self, rotary: Rotary, number: str) -> list[str]:
        size, columns = rotary.turned(self.description.head_size), self.description.cache_length
        tables = zip(("cos", "sin"), rotary_tables(rotary, size, columns), strict=True)
        return [self.linear.vector(f"rotary{number}.{part}", table) for part, table in tables]

    def window(self, tokens: str, start: str, kv_length: str) -> Window:
        """What all layers share of a window ``tokens`` (B, W)."""
        graph, columns = self.graph, self.description.cache_length
        shape = graph.op("Shape", tokens)
        position = _slot_positions(graph, start, shape, columns)
        reaches = dict.fromkeys(kind.window for kind in self.kinds)
        masks = {reach: _context_mask(graph, position, kv_length, columns, reach) for reach in reaches}
        pictures = self.description.pictures
        places = [] if pictures is None else self.places(pictures, tokens, start, position, kv_length)
        angles = {rotary: self.angles(rotary, position, places) for rotary in self.tables}
        return Window(start, position, kv_length, shape, masks, angles)

    def places(self, pictures: PicturePositions, tokens: str, start: str, position: str, kv_length: str) -> list[str]:
        """Time, row and column of every slot, found by marks in a cache behind those of the layers."""
        graph, description, dtype = self.graph, self.description, self.linear.storage.compute
        shape = (description.kv_heads, description.head_size)
        update = mark_columns(graph, tokens, pictures.begin, shape, dtype)
        marks, _ = self.cached(description.layers, (update, update), start, kv_length)
        columns = description.cache_length
        numbers = graph.op("Slice", _counting(graph, columns), graph.integers(0), kv_length)
        return picture_places(graph, pictures, marks, position, (numbers, columns), dtype)

    def angles(self, rotary: Rotary, position: str, places: Sequence[str]) -> list[str]:
        """What RotaryEmbedding takes after the heads."""
        if rotary.pictures is None:
            return [*self.tables[rotary], position]
        graph, ends = self.graph, np.cumsum(rotary.pictures.sections)
        made = []
        for table in self.tables[rotary]:
            parts = []
            for place, end, count in zip(places, ends, rotary.pictures.sections, strict=True):
                rows = graph.op("Gather", table, place)
                cut = (graph.integers(int(end - count)), graph.integers(int(end)), graph.integers(2))
                parts.append(graph.op("Slice", rows, *cut))
            made.append(graph.op("Concat", *parts, axis=-1))
        return made

    def write(self, layer: int, x: str, window: Window) -> str:
        """What attention makes of ``x`` (B * W, width); writes the window's keys and values into the layer's caches."""
        graph, description, prefix = self.graph, self.description, f"layers.{layer}.attention"
        turned, still = description.heads + description.kv_heads, description.kv_heads
        joined = self.linear.joined(
            f"{prefix}.query_key_value", [f"{prefix}.{n}" for n in ("query", "key", "value")], x
        )
        joined = self.contained(joined)
        joined = self.normed_whole(prefix, joined)
        sizes = graph.integers(turned + still, description.head_size)
        heads = graph.op("Reshape", joined, graph.op("Concat", window.shape, sizes, axis=0))
        heads = graph.op("Transpose", heads, perm=[0, 2, 1, 3])
        counts = (("query", description.heads), ("key", description.kv_heads))
        both, value = graph.ops("Split", heads, graph.integers(turned, still), names=(None, None), axis=1)
        both = self.rotated(
            self.kinds[layer].rotary, normed_heads(description, self.linear, prefix, counts, both), window
        )
        query, key = graph.ops("Split", both, graph.integers(description.heads, still), names=(None, None), axis=1)
        mixed = graph.op(
            "Attention",
            query,
            *self.cached(layer, (key, value), window.start, window.kv_length),
            window.masks[self.kinds[layer].window],
            scale=description.attention_scale,
            softcap=description.attention_softcap,
        )
        mixed = graph.op("Transpose", mixed, perm=[0, 2, 1, 3])
        flat = graph.op("Reshape", mixed, graph.integers(-1, description.heads * description.head_size))
        return self.linear(f"{prefix}.output", flat)

    def contained(self, joined: str) -> str:
        """Queries, keys and values side by side (B * W, all heads), those of slots that are not finite made harmless to others.

        A slot that attends to a column with weight 0 gets 0 times what lies there, which is NaN if that is NaN or infinite, and
        columns stay until they are written again. So a draft whose context the model cannot compute would take with it the slots
        to its left, which must not depend on it. Its keys and values become 0, and its query NaN, so that its own logits are NaN.
        """
        graph, description, storage = self.graph, self.description, self.linear.storage
        size, dtype = description.head_size, stored_type(storage.compared)
        if storage.compared != storage.compute:
            joined = graph.op("Cast", joined, to=ONNX_TYPES[storage.compared])
        fill = np.zeros((description.heads + 2 * description.kv_heads) * size, dtype)
        fill[: description.heads * size] = np.nan
        # The mean is finite where all are, and it takes one read of them. The bound is float16's largest number in every type, so
        # that graphs can be converted.
        mean = graph.op("Abs", graph.op("ReduceMean", joined, graph.integers(-1), keepdims=1))
        finite = graph.op("LessOrEqual", mean, graph.constant("attention.largest", np.array(65504, dtype)))
        joined = graph.op("Where", finite, joined, graph.constant("attention.not_finite", fill))
        return self.linear.as_computed(joined, storage.compared)

    def cached(self, layer: int, updates: tuple[str, str], start: str, kv_length: str) -> list[str]:
        """Keys and values of columns below ``kv_length``, the window's among them."""
        graph, description = self.graph, self.description
        shape: list[str | int] = ["B", description.kv_heads, description.cache_length, description.head_size]
        read = []
        for (past, present), update in zip(_cache_names(layer), updates, strict=True):
            graph.input(past, self.linear.storage.compute, shape)
            graph.output(present, self.linear.storage.compute, shape)
            graph.op("TensorScatter", past, update, start, name=present, axis=-2, mode="linear")
            read.append(graph.op("Slice", present, graph.integers(0), kv_length, graph.integers(_CACHE_AXIS)))
        return read

    def normed_whole(self, prefix: str, joined: str) -> str:
        """Queries, keys and values side by side (B * W, all heads), the first two normalised as a whole if the model does that."""
        wanted, description = self.description.query_key_norm, self.description
        if wanted is None or not wanted.whole:
            return joined
        query, key = description.heads * description.head_size, description.kv_heads * description.head_size
        parts = self.graph.ops("Split", joined, self.graph.integers(query, key, key), names=(None,) * 3, axis=-1)
        normed = [
            self.linear.norm(f"{prefix}.{name}_norm", wanted.norm, part)
            for name, part in zip(("query", "key"), parts, strict=False)
        ]
        return self.graph.op("Concat", *normed, parts[2], axis=-1)

    def rotated(self, rotary: Rotary | None, heads: str, window: Window) -> str:
        """Queries and keys turned by their positions' angles, if the layer does that."""
        if rotary is None:
            return heads
        size = rotary.turned(self.description.head_size)
        partial = size if size < self.description.head_size else 0
        return self.graph.op(
            "RotaryEmbedding",
            heads,
            *window.angles[rotary],
            interleaved=int(rotary.pairs == "interleaved"),
            rotary_embedding_dim=partial,
        )


def normed_heads(
    description: DecoderDescription, linear: Linear, prefix: str, counts: Sequence[tuple[str, int]], heads: str
) -> str:
    """Heads (B, n, W, head_size), each normalised if the model does that.

    ``counts`` names what they are, "query" or "key", and how many of each: one normalisation without weights for all, then each
    head's own weights.
    """
    wanted, graph, size = description.query_key_norm, linear.graph, description.head_size
    if wanted is None or wanted.whole:
        return heads

    def vectors(part: str) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        each = [
            np.broadcast_to(np.asarray(linear.weights[f"{prefix}.{name}_norm.{part}"], np.float32), (count, size))
            for name, count in counts
        ]
        return np.concatenate(each)[:, None]

    ones, name = linear.vector("ones", np.ones(size, np.float32)), "_".join(name for name, _ in counts)
    heads = graph.op(wanted.norm.operator, heads, ones, axis=-1, epsilon=wanted.norm.epsilon)
    scale = vectors("weight") + np.float32(wanted.norm.one_plus)
    heads = graph.op("Mul", heads, linear.vector(f"{prefix}.{name}_norm.weight", scale))
    if wanted.norm.has_bias:
        heads = graph.op("Add", heads, linear.vector(f"{prefix}.{name}_norm.bias", vectors("bias")))
    return heads


def _cache_names(layer: int) -> tuple[tuple[str, str], tuple[str, str]]:
    """Names of a layer's caches: (past key, present key), (past value, present value)."""
    key, value = ((f"past_key_values.{layer}.{part}", f"present.{layer}.{part}") for part in ("key", "value"))
    return key, value


def _slot_positions(graph: GraphBuilder, start: str, shape: str, columns: int) -> str:
    """Position (B, W) of every slot. ``start`` is (B,), ``shape`` int64 (2,): (B, W), ``columns`` is S."""
    width = graph.op("Slice", shape, graph.integers(1), graph.integers(2))
    slots = graph.op("Slice", _counting(graph, columns), graph.integers(0), width)
    return graph.op("Add", graph.op("Unsqueeze", start, graph.integers(1)), slots)


def _context_mask(graph: GraphBuilder, position: str, kv_length: str, columns: int, reach: int = 0) -> str:
    """Which cache columns each slot attends to: boolean (B, 1, W, kv_length).

    The one place that says what a slot's context is: all columns up to its own, so every slot before it in the window
    and all state below ``start``; with ``reach``, the last that many of them. ``position`` is (B, W), ``kv_length``
    int64 (1,), ``columns`` is S.
    """
    every = graph.op("Slice", _counting(graph, columns), graph.integers(0), kv_length)
    own = graph.op("Unsqueeze", position, graph.integers(2))
    allowed = graph.op("LessOrEqual", every, own)
    if reach:
        near = graph.op("Greater", every, graph.op("Sub", own, graph.integers(reach)))
        allowed = graph.op("And", allowed, near)
    return graph.op("Unsqueeze", allowed, graph.integers(1))


def _counting(graph: GraphBuilder, count: int) -> str:
    """The constant 0, 1, ..., ``count - 1``."""
    return graph.constant("columns", np.arange(count, dtype=np.int64))

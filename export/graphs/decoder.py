"""The window graph of any described decoder: a window of tokens to logits, with the cache outside the graph.

Inputs, outputs and rules are in ``docs/bundle-format.md``, the model is what `DecoderDescription` says. Standard
operators only, opset 24. Everything between the embedding and the logits is a matrix (B * W, width), so that every
linear map is a single Gemm. Weights are read one after another and, where there are many, written to a second file as they come.

That the graph computes the model is not promised but checked: compare with `reference_logits`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from coupled_sampling.export.graphs.attention import AttentionGraph, Window
from coupled_sampling.export.graphs.builder import GraphBuilder, write_graph
from coupled_sampling.export.graphs.conditions import CROSS_ATTENTION
from coupled_sampling.export.graphs.cross_attention import cross_attention, prefix_mask, with_vectors
from coupled_sampling.export.graphs.description import DecoderDescription
from coupled_sampling.export.graphs.linear import Linear
from coupled_sampling.export.graphs.storage import Storage, TensorFile
from coupled_sampling.export.graphs.weights import WeightReader, WeightSource
from coupled_sampling.fields import check_is, check_path

__all__ = ["decoder_graph", "write_decoder_graph"]

_FLOAT32 = 1


def decoder_graph(
    description: DecoderDescription,
    weights: WeightSource,
    storage: Storage | None = None,
    tensors: TensorFile | None = None,
) -> Any:
    """The window graph of a decoder, in memory.

    Parameters
    ----------
    description
        The decoder.
    weights
        A mapping or function from the names of ``description.weight_shapes()`` to arrays of any float type. Each is
        asked for when it is needed, and let go.
    storage
        Types of weights and arithmetic; None means float32 throughout.
    tensors
        Where to write large weights to; None keeps all in the graph.

    Returns
    -------
    onnx.ModelProto
        Not yet checked: `coupled_sampling.export.save_graph` does. `write_decoder_graph` does all of it.

    Raises
    ------
    InvalidArgument
        A weight is missing, unknown, has another shape, is not finite, or cannot be stored as asked.
    MissingDependency
        ``onnx`` is not installed.

    Examples
    --------
    >>> import numpy as np
    >>> from coupled_sampling.export import DecoderDescription, Rotary
    >>> from coupled_sampling.export.graphs.decoder import decoder_graph
    >>> description = DecoderDescription(vocab_size=32, positions=64, width=16, layers=1, heads=2, mlp_width=32, rotary=Rotary())
    >>> weights = {name: np.zeros(shape, np.float32) for name, shape in description.weight_shapes().items()}
    >>> model = decoder_graph(description, weights)
    >>> [value.name for value in model.graph.output]
    ['logits', 'present.0.key', 'present.0.value']
    """
    return _Writer(description, weights, storage or Storage(), tensors).write()


def write_decoder_graph(
    description: DecoderDescription,
    weights: WeightSource,
    path: str | Path,
    storage: Storage | None = None,
    inline: bool | None = None,
) -> tuple[Path, ...]:
    """Write and check the window graph of a decoder, in about the memory of its largest weight.

    Parameters
    ----------
    description, weights, storage
        As for `decoder_graph`.
    path, inline
        As for `coupled_sampling.export.graphs.builder.write_graph`.

    Returns
    -------
    tuple of Path
        The files written: ``path``, and ``<path>.data`` if there is one.

    Raises
    ------
    InvalidArgument
        As for `decoder_graph`.
    OutputError
        A file cannot be written. Whatever happens, nothing half-written is left, and what was there before stays until
        all is written; a graph that exists always has its own weights beside it.

    Examples
    --------
    >>> import numpy as np
    >>> from coupled_sampling.export import DecoderDescription, Rotary, write_decoder_graph
    >>> description = DecoderDescription(vocab_size=32, positions=64, width=16, layers=1, heads=2, mlp_width=32, rotary=Rotary())
    >>> def weight(name):  # read, or made, when it is wanted
    ...     return np.zeros(description.weight_shapes()[name], np.float32)
    >>> [path.name for path in write_decoder_graph(description, weight, "window.onnx", inline=False)]
    ['window.onnx', 'window.onnx.data']
    """
    check_is("description", description, DecoderDescription)
    stored = check_is("storage", storage, Storage | None) or Storage()
    path = check_path("path", path)
    size = stored_bytes(description, stored)
    return write_graph(path, lambda tensors: decoder_graph(description, weights, stored, tensors), size, inline)


def stored_bytes(description: DecoderDescription, storage: Storage) -> int:
    """How many bytes all weights of a decoder take."""
    matrices = description.matrices()
    return sum(storage.bytes_of(shape, name in matrices) for name, shape in description.weight_shapes().items())


class _Writer:
    """Writes the graph of one description, once."""

    def __init__(
        self, description: DecoderDescription, weights: WeightSource, storage: Storage, tensors: TensorFile | None
    ) -> None:
        self.description = description
        self.storage = storage
        self.weights = WeightReader(description.weight_shapes(), weights)
        self.graph = GraphBuilder(tensors)
        self.linear = Linear(self.graph, self.weights, storage)
        self.attention = AttentionGraph(description, self.linear)

    def write(self) -> Any:
        description, graph = self.description, self.graph
        tokens = graph.input("input_ids", "int64", ["B", "W"])
        start = graph.input("start", "int64", ["B"])
        kv_length = graph.input("kv_length", "int64", [1])
        graph.output("logits", "float32", ["B", "W", description.vocab_size])
        window = self.attention.window(tokens, start, kv_length)
        x = self.embedded(tokens, window.position)
        if description.prefix is not None:
            masks = {reach: prefix_mask(self.linear, mask, window.position) for reach, mask in window.masks.items()}
            window = replace(window, masks=masks)
        place = self.layer_positions(window.position)
        for layer in range(description.layers):
            graph.scope(f"layers.{layer}.")
            x = x if place is None else graph.op("Add", x, place)
            for name in description.parts:
                part = f"layers.{layer}.{name}"
                y = self.part(layer, name, self.input_norm(part, x), window)
                x = self.added(x, self.output_norm(part, y))
        graph.scope("")
        self.head(self.norm("norm", x), window.shape)
        return graph.build(
            "window_graph",
            "Tokens of a window to logits; caches in and out. See docs/bundle-format.md of coupled-sampling.",
            {"format": "coupled-sampling window graph", "max_length": str(description.positions)},
        )

    def embedded(self, tokens: str, position: str) -> str:
        """Embeddings (B * W, width)."""
        description, graph, linear = self.description, self.graph, self.linear
        tables = [self.weights[name] for name in description.embedding_names()]
        table = linear.table("embedding.weight", tables[0] if len(tables) == 1 else np.concatenate(tables))
        del tables
        x = linear.as_computed(graph.op("Gather", table, tokens), self.storage.embeddings)
        if description.embedding_scale != 1:
            x = graph.op(
                "Mul", x, linear.vector("embedding.scale", np.array([description.embedding_scale], np.float32))
            )
        if description.learned_positions:
            rows = self.weights["position.weight"][description.position_offset :]
            rows = np.pad(rows, ((0, description.cache_length - len(rows)), (0, 0)))
            added = graph.op("Gather", linear.table("position.weight", rows), position)
            x = graph.op("Add", x, linear.as_computed(added, self.storage.embeddings))
        if description.prefix is not None:
            x = with_vectors(description.prefix, linear, description.width, x, tokens, position)
        return graph.op("Reshape", x, graph.integers(-1, description.width))

    def layer_positions(self, position: str) -> str | None:
        """What is added where every layer begins, (B * W, width), by each slot's frame, row and column."""
        wanted, graph = self.description.layer_positions, self.graph
        if wanted is None:
            return None
        tables, places = wanted.tables(self.description.width), wanted.places(self.description.cache_length)
        added = []
        for axis, table, place in zip(("frame", "row", "column"), tables, places.T.copy(), strict=True):
            numbers = graph.constant(f"layer_positions.{axis}", place)
            rows = self.linear.vector(f"layer_positions.{axis}.weight", table)
            added.append(graph.op("Gather", rows, graph.op("Gather", numbers, position)))
        return graph.op("Reshape", graph.op("Concat", *added, axis=-1), graph.integers(-1, self.description.width))

    def part(self, layer: int, name: str, x: str, window: Window) -> str:
        """What a part of a layer makes of ``x`` (B * W, width)."""
        if name == "attention":
            return self.attention.write(layer, x, window)
        if name == CROSS_ATTENTION:
            return cross_attention(self.description, self.linear, layer, x, window)
        return self.mlp(f"layers.{layer}.{name}", x)

    def added(self, x: str, y: str) -> str:
        """``x`` and what a part of a layer made of it."""
        if self.description.residual_scale != 1:
            scale = np.array([self.description.residual_scale], np.float32)
            y = self.graph.op("Mul", y, self.linear.vector("residual.scale", scale))
        return self.graph.op("Add", x, y)

    def input_norm(self, part: str, x: str) -> str:
        return self.norm(f"{part}_norm", x) if self.description.input_norm else x

    def output_norm(self, part: str, x: str) -> str:
        return self.norm(f"{part}_output_norm", x) if self.description.output_norm else x

    def norm(self, name: str, x: str) -> str:
        return self.linear.norm(name, self.description.norm, x)

    def mlp(self, prefix: str, x: str) -> str:
        """What an MLP makes of ``x`` (B * W, width)."""
        graph, kind = self.graph, self.description.activation
        if self.description.mlp == "plain":
            return self.linear(f"{prefix}.down", self.activation(kind, self.linear(f"{prefix}.up", x)))
        joined = self.linear.joined(f"{prefix}.gate_up", [f"{prefix}.gate", f"{prefix}.up"], x)
        gate, up = graph.ops("Split", joined, names=(None, None), axis=-1, num_outputs=2)
        return self.linear(f"{prefix}.down", graph.op("Mul", self.activation(kind, gate), up))

    def activation(self, kind: str, x: str) -> str:
        if kind == "relu":
            return self.graph.op("Relu", x)
        if kind in ("gelu", "gelu_tanh"):
            return self.graph.op("Gelu", x, approximate="none" if kind == "gelu" else "tanh")
        return self.graph.op("Swish", x, alpha=1.0 if kind == "silu" else 1.702)

    def head(self, x: str, shape: str) -> None:
        """The logits, float32 (B, W, V)."""
        description, graph = self.description, self.graph
        if description.head_hidden:
            x = self.activation("gelu", self.linear("head.hidden", x))
        scores = self.scores(x)
        if self.storage.compute != "float32":
            scores = graph.op("Cast", scores, to=_FLOAT32)
        if description.logit_scale != 1:
            scores = graph.op(
                "Mul", scores, graph.constant("logit_scale", np.array([description.logit_scale], np.float32))
            )
        if description.logit_softcap:
            cap = graph.constant("logit_softcap", np.array([description.logit_softcap], np.float32))
            scores = graph.op("Mul", graph.op("Tanh", graph.op("Div", scores, cap)), cap)
        before = description.generated_first
        after = description.vocab_size - before - description.generated
        if before or after:
            never = graph.constant("never", np.array(-np.inf, np.float32))
            scores = graph.op("Pad", scores, graph.integers(0, before, 0, after), never)
        logits_shape = graph.op("Concat", shape, graph.integers(description.vocab_size), axis=0)
        graph.op("Reshape", scores, logits_shape, name="logits")

    def scores(self, x: str) -> str:
        """Scores of the generated tokens, (B * W, generated)."""
        description = self.description
        if not description.tied_head:
            return self.linear("head", x)
        bias = self.weights["head.bias"] if description.head_bias else None
        if description.generated == description.vocab_size and not self.storage.bits:
            shared = self.linear.as_computed("embedding.weight", self.storage.embeddings)
            return self.linear.shared_product("head", shared, bias, x)
        table = np.concatenate([self.weights[name] for name in description.embedding_names()])
        first = description.generated_first
        return self.linear.product("head", table[first : first + description.generated], bias, x)

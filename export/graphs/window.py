"""The window graph of a GPT: a window of tokens to logits, with the cache outside the graph.

Row b's slot j sits at position ``start[b] + j``. The graph embeds it, writes its keys and values into column
``start[b] + j`` of the caches (TensorScatter, so the last write wins) and attends to the columns its context allows
(Attention with an explicit boolean mask). Inputs, outputs and rules are in ``docs/bundle-format.md``.

The model is a pre-norm Transformer decoder with learned absolute positions, biases, LayerNorm and GELU in its exact
form (Radford et al. 2019; Hendrycks and Gimpel, arXiv 1606.08415). Standard operators only, opset 24. Everything
between the embedding and the logits is a matrix (B * W, width), so that every linear map is a single Gemm.

Attention's input ``nonpad_kv_seqlen`` is never used: runtimes in the field get it silently wrong.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.bundles.manifest import WindowGraph
from coupled_sampling.errors import InvalidArgument
from coupled_sampling.export.graphs.builder import OPSET, GraphBuilder

__all__ = ["GptDescription", "cache_names", "context_mask", "slot_positions", "window_graph"]

_CACHE_AXIS = 2


@dataclass(frozen=True)
class GptDescription:
    """Sizes of a GPT.

    Parameters
    ----------
    vocab_size
        V: rows of the token embedding.
    generated
        The head scores tokens 0, ..., ``generated - 1``; logits of the others are -inf.
    positions
        Rows of the position embedding: most positions in a sequence.
    width, layers, heads
        ``heads`` divides ``width``.
    mlp_width
        Width of the hidden layer of the MLPs.
    norm_epsilon
        Added to the variance in LayerNorm.
    cache_length
        Columns of the caches, at least ``positions``; 0 means ``positions``. More gives backends that pad their
        windows room to write; positions beyond the embedding get a zero vector, and mean nothing.
    """

    vocab_size: int
    generated: int
    positions: int
    width: int
    layers: int
    heads: int
    mlp_width: int
    norm_epsilon: float = 1e-5
    cache_length: int = 0

    def __post_init__(self) -> None:
        for name in ("vocab_size", "generated", "positions", "width", "layers", "heads", "mlp_width"):
            if getattr(self, name) < 1:
                raise InvalidArgument(f"{name} is {getattr(self, name)}, expected an integer >= 1")
        if self.width % self.heads:
            raise InvalidArgument(f"heads is {self.heads}, expected a divisor of width, {self.width}")
        if self.generated > self.vocab_size:
            raise InvalidArgument(f"generated is {self.generated}, expected at most vocab_size, {self.vocab_size}")
        if self.cache_length and self.cache_length < self.positions:
            raise InvalidArgument(
                f"cache_length is {self.cache_length}, expected 0 or at least positions, {self.positions}"
            )

    @property
    def columns(self) -> int:
        """S: columns of the caches."""
        return self.cache_length or self.positions

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.width // self.heads

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the weights `window_graph` wants; matrices are (outputs, inputs)."""
        width = self.width
        shapes: dict[str, tuple[int, ...]] = {}
        linear: dict[str, tuple[int, ...]] = {
            "attention_in": (3 * width, width),
            "attention_out": (width, width),
            "mlp_in": (self.mlp_width, width),
            "mlp_out": (width, self.mlp_width),
        }
        for layer in range(self.layers):
            for name in ("attention_norm", "mlp_norm"):
                shapes[f"blocks.{layer}.{name}"] = (width,)
            shapes |= {f"blocks.{layer}.{name}": shape for name, shape in linear.items()}
        shapes |= {"norm": (width,), "head": (self.generated, width)}
        weights: dict[str, tuple[int, ...]] = {
            "embedding.weight": (self.vocab_size, width),
            "position.weight": (self.positions, width),
        }
        for name, shape in shapes.items():
            weights |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
        return weights

    def manifest(self, file: str) -> WindowGraph:
        """What a bundle's manifest says of the graph."""
        return WindowGraph(
            file=file,
            opset=OPSET,
            dtype="float32",
            layers=self.layers,
            kv_heads=self.heads,
            head_size=self.head_size,
            cache_length=self.columns,
            max_length=self.positions,
            max_window=self.positions,
            has_kv_length=True,
        )


def cache_names(layer: int) -> tuple[tuple[str, str], tuple[str, str]]:
    """Names of a layer's caches: (past key, present key), (past value, present value)."""
    key, value = ((f"past_key_values.{layer}.{part}", f"present.{layer}.{part}") for part in ("key", "value"))
    return key, value


def window_graph(description: GptDescription, weights: Mapping[str, NDArray[Any]]) -> Any:
    """The window graph of a GPT.

    Parameters
    ----------
    description
        Its sizes.
    weights
        By the names and with the shapes of `GptDescription.weight_shapes`; converted to float32.

    Returns
    -------
    onnx.ModelProto
        Not yet checked: `coupled_sampling.export.save_graph` does.

    Raises
    ------
    InvalidArgument
        A weight is missing, unknown, has another shape, or is not finite.
    MissingDependency
        ``onnx`` is not installed.
    """
    return _Writer(description, _checked(description, weights)).write()


def _checked(description: GptDescription, weights: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
    shapes = description.weight_shapes()
    wrong = sorted(set(weights) ^ set(shapes))
    if wrong:
        state = "is missing" if wrong[0] in shapes else "is unknown"
        raise InvalidArgument(f"weight {wrong[0]!r} {state}; expected exactly the names of weight_shapes()")
    for name, shape in shapes.items():
        if weights[name].shape != shape:
            raise InvalidArgument(f"weight {name!r} has shape {weights[name].shape}, expected {shape}")
        if not np.isfinite(weights[name]).all():
            raise InvalidArgument(f"weight {name!r} has NaN or infinite entries; was training stopped in time?")
    return {name: np.asarray(weights[name], np.float32) for name in shapes}


class _Writer:
    """Writes the graph from its inputs to its outputs, once."""

    def __init__(self, description: GptDescription, weights: Mapping[str, NDArray[np.float32]]) -> None:
        self.description = description
        self.weights = weights
        self.graph = GraphBuilder()

    def write(self) -> Any:
        description, graph = self.description, self.graph
        tokens = graph.input("input_ids", "int64", ["B", "W"])
        start = graph.input("start", "int64", ["B"])
        kv_length = graph.input("kv_length", "int64", [1])
        graph.output("logits", "float32", ["B", "W", description.vocab_size])
        shape = graph.op("Shape", tokens)
        position = slot_positions(graph, start, shape, description.columns)
        mask = context_mask(graph, position, kv_length, description.columns)
        heads = graph.op("Concat", shape, graph.integers(3 * description.heads, description.head_size), axis=0)
        x = self.embedded(tokens, position)
        for layer in range(description.layers):
            graph.scope(f"blocks.{layer}.")
            x = graph.op("Add", x, self.attention(layer, x, start, heads, mask, kv_length))
            x = graph.op("Add", x, self.mlp(layer, x))
        graph.scope("")
        logits_shape = graph.op("Concat", shape, graph.integers(description.vocab_size), axis=0)
        graph.op("Reshape", self.head(self.norm("norm", x)), logits_shape, name="logits")
        return graph.build(
            "window_graph",
            "Tokens of a window to logits; caches in and out. See docs/bundle-format.md of coupled-sampling.",
            {"format": "coupled-sampling window graph", "max_length": str(description.positions)},
        )

    def embedded(self, tokens: str, position: str) -> str:
        """Sum of both embeddings, (B * W, width)."""
        graph, description = self.graph, self.description
        beyond = description.columns - description.positions
        table = np.pad(self.weights["position.weight"], ((0, beyond), (0, 0)))
        x = graph.op(
            "Add",
            graph.op("Gather", graph.constant("embedding.weight", self.weights["embedding.weight"]), tokens),
            graph.op("Gather", graph.constant("position.weight", table), position),
        )
        return graph.op("Reshape", x, graph.integers(-1, description.width))

    def linear(self, name: str, x: str) -> str:
        weight = self.graph.constant(f"{name}.weight", self.weights[f"{name}.weight"].T)
        return self.graph.op("Gemm", x, weight, self.graph.constant(f"{name}.bias", self.weights[f"{name}.bias"]))

    def norm(self, name: str, x: str) -> str:
        scale, bias = (
            self.graph.constant(f"{name}.{part}", self.weights[f"{name}.{part}"]) for part in ("weight", "bias")
        )
        return self.graph.op("LayerNormalization", x, scale, bias, axis=-1, epsilon=self.description.norm_epsilon)

    def attention(self, layer: int, x: str, start: str, heads: str, mask: str, kv_length: str) -> str:
        """What a layer's attention adds, (B * W, width); writes the window's keys and values into the caches."""
        graph, description, block = self.graph, self.description, f"blocks.{layer}"
        joined = self.linear(f"{block}.attention_in", self.norm(f"{block}.attention_norm", x))
        # One transposition for query, key and value together: their heads lie side by side.
        joined = graph.op("Transpose", graph.op("Reshape", joined, heads), perm=[0, 2, 1, 3])
        query, *updates = graph.ops("Split", joined, names=(None, None, None), axis=1, num_outputs=3)
        shape: list[str | int] = ["B", description.heads, description.columns, description.head_size]
        read = []
        for (past, present), update in zip(cache_names(layer), updates, strict=True):
            graph.input(past, "float32", shape)
            graph.output(present, "float32", shape)
            graph.op("TensorScatter", past, update, start, name=present, axis=-2, mode="linear")
            read.append(graph.op("Slice", present, graph.integers(0), kv_length, graph.integers(_CACHE_AXIS)))
        mixed = graph.op("Attention", query, *read, mask)
        mixed = graph.op("Transpose", mixed, perm=[0, 2, 1, 3])
        return self.linear(f"{block}.attention_out", graph.op("Reshape", mixed, graph.integers(-1, description.width)))

    def mlp(self, layer: int, x: str) -> str:
        """What a layer's MLP adds, (B * W, width)."""
        block = f"blocks.{layer}"
        hidden = self.linear(f"{block}.mlp_in", self.norm(f"{block}.mlp_norm", x))
        return self.linear(f"{block}.mlp_out", self.graph.op("Gelu", hidden, approximate="none"))

    def head(self, x: str) -> str:
        """Logits (B * W, V): a token that is never generated has a zero column and a bias of -inf."""
        description = self.description
        never = description.vocab_size - description.generated
        weight = np.pad(self.weights["head.weight"], ((0, never), (0, 0))).T
        bias = np.pad(self.weights["head.bias"], (0, never), constant_values=-np.inf)
        return self.graph.op(
            "Gemm", x, self.graph.constant("head.weight", weight), self.graph.constant("head.bias", bias)
        )


def slot_positions(graph: GraphBuilder, start: str, shape: str, columns: int) -> str:
    """Position (B, W) of every slot. ``start`` is (B,), ``shape`` int64 (2,): (B, W), ``columns`` is S."""
    width = graph.op("Slice", shape, graph.integers(1), graph.integers(2))
    slots = graph.op("Slice", _counting(graph, columns), graph.integers(0), width)
    return graph.op("Add", graph.op("Unsqueeze", start, graph.integers(1)), slots)


def context_mask(graph: GraphBuilder, position: str, kv_length: str, columns: int, reach: int = 0) -> str:
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

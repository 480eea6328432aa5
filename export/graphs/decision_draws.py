"""Draws and searches as ONNX operators: what `coupled_sampling.draws` does with numpy, for laws that stay on the device.

- `largest`: the first largest entry of a row, in two levels: maxima of blocks, then one block. A plain ArgMax over the
  vocabulary is some ten times slower in ONNX Runtime than the reduction to maxima, which is vectorised. A short row is searched
  at once: there operators cost more than entries.
- `first_largest`: the same for runtimes that do not say which of several equal entries their ArgMax finds.
- `inverse_cdf`: the two-level search of `coupled_sampling.draws.categorical`, with its block size and its float64 sums,
  so that the tokens are the same save where a uniform falls within rounding of a cumulative sum.

Standard operators only; rows and slots are free dimensions, the vocabulary is static.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from coupled_sampling.export.graphs.builder import GraphBuilder

__all__ = [
    "DecisionBuilder",
    "LoopValue",
    "block_size",
    "blocks_of",
    "first_largest",
    "first_of",
    "inverse_cdf",
    "largest",
    "length_on_device",
    "noise_of_ring",
    "rows_at",
]


_SHORT = 320
"""Up to how many entries a row is searched at once."""


class LoopValue(NamedTuple):
    """What a loop carries from turn to turn."""

    name: str
    """Of what comes out in the end."""
    initial: str
    dtype: str
    shape: Sequence[str | int]
    """Of every turn; text names a size that may change."""


class DecisionBuilder(GraphBuilder):
    """A `GraphBuilder` whose constants and nodes all begin with ``decision.``, so that they can join any model.

    What is written and comes into no output is left out: ONNX Runtime would compute it in every step.
    """

    def __init__(self) -> None:
        super().__init__()
        self.scope("decision.")

    def constant(self, name: str, value: Any) -> str:
        """A constant named ``decision.<name>``."""
        return super().constant(f"decision.{name}", value)

    def number(self, value: float, dtype: str = "float32") -> str:
        """A scalar constant."""
        return self.constant(f"{dtype}.{value}", np.array(value, dtype))

    def loop(
        self, most: str, going: str, carried: Sequence[LoopValue], turn: Callable[[list[str]], tuple[str, list[str]]]
    ) -> list[str]:
        """What is ``carried`` after ``turn`` upon turn, ``most`` of them at most, while ``going`` is true.

        ``turn`` writes the nodes of one: of the values that it is given it makes those of the next, and whether there is one. It
        sees all values of the graph around it.
        """
        helper = self._onnx.helper
        around, scope = self._nodes, self._scope
        self._nodes, self._scope = [], f"{scope}turn."
        given = [f"{self._scope}{value.name}" for value in carried]
        again, made = turn(given)
        counters = [
            self._value(f"{self._scope}{name}", dtype, []) for name, dtype in (("number", "int64"), ("on", "bool"))
        ]
        before, after = (
            [self._value(name, value.dtype, value.shape) for name, value in zip(names, carried, strict=True)]
            for names in (given, made)
        )
        nodes = _needed(self._nodes, [again, *made])
        body = helper.make_graph(nodes, "turn", [*counters, *before], [self._value(again, "bool", []), *after])
        self._nodes, self._scope = around, scope
        names = [value.name for value in carried]
        return self.ops("Loop", most, going, *(value.initial for value in carried), names=names, body=body)

    def build(self, name: str, description: str, metadata: Mapping[str, str]) -> Any:
        """See `GraphBuilder.build`."""
        self._nodes = _needed(self._nodes, [value.name for value in self._outputs])
        read = {name for node in self._nodes for name in _read(node)}
        self._constants = {name: value for name, value in self._constants.items() if name in read}
        return super().build(name, description, metadata)


def _needed(nodes: Sequence[Any], outputs: Sequence[str]) -> list[Any]:
    """Those of ``nodes``, in their order, that ``outputs`` come from."""
    wanted, kept = set(outputs), []
    for node in reversed(nodes):
        if wanted.intersection(node.output):
            kept.append(node)
            wanted.update(_read(node))
    return kept[::-1]


def _read(node: Any) -> set[str]:
    """What ``node`` reads; a loop's body reads what stands around it."""
    inner = (inner for attribute in node.attribute for inner in attribute.g.node)
    return {name for each in (node, *inner) for name in each.input}


def block_size(vocab_size: int) -> int:
    """The block of `coupled_sampling.draws.categorical`: a power of two near the square root of ``vocab_size``."""
    return 1 << ((vocab_size.bit_length() + 1) // 2)


def blocks_of(graph: DecisionBuilder, values: str, vocab_size: int, filler: float) -> str:
    """``values`` (B, n, V) as blocks (B, n, count, block), the last one filled up with ``filler``.

    A small vocabulary is one block. Reshape costs nothing; filling up copies, and is left out where V is divisible.
    """
    block = block_size(vocab_size)
    if vocab_size <= 4 * block:
        return graph.op("Unsqueeze", values, graph.integers(2))
    count = -(-vocab_size // block)
    if vocab_size % block:
        room = graph.integers(0, 0, 0, 0, 0, count * block - vocab_size)
        values = graph.op("Pad", values, room, graph.number(filler))
    return graph.op("Reshape", values, graph.integers(0, 0, count, block))


def length_on_device(graph: DecisionBuilder, row: str) -> str:
    """The number of entries of a vector, (1,), as a value that no runtime keeps on the host.

    ONNX Runtime computes with sizes on the CPU, and so it does whatever needs nothing but a size and inputs of the graph.
    """
    every = graph.op("Range", graph.number(0, "int64"), graph.op("Size", row), graph.number(1, "int64"))
    return graph.op("Add", graph.op("ReduceMax", every, keepdims=1), graph.number(1, "int64"))


def first_of(graph: DecisionBuilder, values: str, axis: int = 0) -> str:
    """``values`` at index 0 of ``axis``, which goes."""
    return graph.op("Gather", values, graph.number(0, "int64"), axis=axis)


def rows_at(graph: DecisionBuilder, values: str, index: str) -> str:
    """``values[b, index[b, i]]``: (B, n, ...) and int64 (B, m) give (B, m, ...); whole rows are copied."""
    return graph.op("GatherND", values, graph.op("Unsqueeze", index, graph.integers(2)), batch_dims=1)


def noise_of_ring(graph: DecisionBuilder, positions: str, vocab_size: int) -> str:
    """The noise (B, W, V) of ``positions`` (B, W), kept in a ring: position i lies in column i mod R. Declares the ring."""
    noise = graph.input("noise", "float32", ["B", "N", vocab_size])
    begin = graph.input("noise_start", "int64", ["B"])
    ring: list[str | int] = ["B", "R", vocab_size]
    past = graph.input("past_noise", "float32", ring)
    # Were the ring written at an index that is on the host, all of it would be written there.
    size = length_on_device(graph, first_of(graph, first_of(graph, past, 2)))
    at = graph.op("Mod", begin, size)
    graph.op("TensorScatter", past, noise, at, name="present_noise", axis=-2, mode="circular")
    graph.output("present_noise", "float32", ring)
    return rows_at(graph, "present_noise", graph.op("Mod", positions, size))


def _chosen_block(graph: DecisionBuilder, blocks: str, chosen: str) -> str:
    """One block (B, n, block) of each row of ``blocks`` (B, n, count, block); ``chosen`` is int64 (B, n)."""
    return graph.op("GatherND", blocks, graph.op("Unsqueeze", chosen, graph.integers(2)), batch_dims=2)


def _joined(graph: DecisionBuilder, chosen: str, inside: str, vocab_size: int) -> str:
    """The token (B, n) that is entry ``inside`` of block ``chosen``."""
    block = graph.number(block_size(vocab_size), "int64")
    return graph.op("Add", graph.op("Mul", chosen, block), inside)


def _arg_max(graph: DecisionBuilder, values: str, size: int) -> str:
    """Where (B, n) the largest of ``values`` (B, n, size) is: an index below ``size``."""
    return graph.op("Min", graph.op("ArgMax", values, axis=-1, keepdims=0), graph.number(size - 1, "int64"))


def largest(graph: DecisionBuilder, values: str, vocab_size: int) -> tuple[str, str]:
    """The largest of ``values`` (B, n, V), (B, n), and the first token int64 (B, n) that has it. NaN is not seen.

    The token is one of the vocabulary whatever ``values`` are: where none is above -inf, ONNX Runtime's ArgMax on CUDA gives
    2**31 - 1 (issue 31161 of microsoft/onnxruntime), and slots that nobody asked for may hold anything.
    """
    if vocab_size <= _SHORT:
        return graph.op("ReduceMax", values, graph.integers(-1), keepdims=0), _arg_max(graph, values, vocab_size)
    blocks = blocks_of(graph, values, vocab_size, -np.inf)
    maxima = graph.op("ReduceMax", blocks, graph.integers(-1), keepdims=0)
    highest = graph.op("ReduceMax", maxima, graph.integers(-1), keepdims=0)
    block = block_size(vocab_size)
    chosen = _arg_max(graph, maxima, -(-vocab_size // block))
    inside = _arg_max(graph, _chosen_block(graph, blocks, chosen), block)
    return highest, _joined(graph, chosen, inside, vocab_size)


def first_largest(graph: DecisionBuilder, values: str, vocab_size: int) -> tuple[str, str]:
    """What `largest` gives, with the first of equal entries by arithmetic.

    A compiler may compute ``values`` twice and differently in the last bit, so that none equals the maximum; then ArgMax decides.
    """
    highest = graph.op("ReduceMax", values, graph.integers(-1), keepdims=1)
    tokens = graph.constant("tokens", np.arange(vocab_size, dtype=np.int32))
    beyond = graph.number(vocab_size, "int32")
    equal = graph.op("Where", graph.op("Equal", values, highest), tokens, beyond)
    first = graph.op("Cast", graph.op("ReduceMin", equal, graph.integers(-1), keepdims=0), to=7)
    found = _arg_max(graph, values, vocab_size)
    return graph.op("Squeeze", highest, graph.integers(-1)), graph.op("Min", first, found)


def _first_past(graph: DecisionBuilder, weights: str, size: int, threshold: str) -> tuple[str, str]:
    """First index (B, n) whose cumulative sum of ``weights`` float64 (B, n, size) exceeds ``threshold`` (B, n), else the
    last of positive weight; and the sum (B, n) before it."""
    sums = graph.op("CumSum", weights, graph.number(-1, "int64"))
    wide = graph.op("Unsqueeze", threshold, graph.integers(2))
    before = graph.op("Cast", graph.op("LessOrEqual", sums, wide), to=7)
    count = graph.op("ReduceSum", before, graph.integers(-1), keepdims=0)
    # The largest index of positive weight: ArgMax of the last index has no CUDA kernel in ONNX Runtime.
    positive = graph.op("Cast", graph.op("Greater", weights, graph.number(0.0, "float64")), to=1)
    indices = graph.constant(f"counting.{size}", np.arange(size, dtype=np.float32))
    last = graph.op("ReduceMax", graph.op("Mul", positive, indices), graph.integers(-1), keepdims=0)
    # Sums do not fall, so those at or below the threshold are the first ``count``.
    within = graph.op("Less", count, graph.number(size, "int64"))
    index = graph.op("Where", within, count, graph.op("Cast", last, to=7))
    at = graph.op("Unsqueeze", index, graph.integers(2))
    own = graph.op("GatherElements", weights, at, axis=2)
    left = graph.op("Sub", graph.op("GatherElements", sums, at, axis=2), own)
    return index, graph.op("Squeeze", left, graph.integers(2))


def inverse_cdf(
    graph: DecisionBuilder, weights: str, uniform: str, vocab_size: int, otherwise: str | None = None
) -> str:
    """Tokens int64 (B, n) of probability proportional to ``weights`` float32 (B, n, V), by ``uniform`` float64 (B, n).

    Where all weights of a row are zero, those of ``otherwise`` (B, n, V) are drawn from instead: only sums and one
    block of it are looked at.
    """
    blocks = blocks_of(graph, weights, vocab_size, 0.0)
    sums = _block_sums(graph, blocks)
    total = graph.op("ReduceSum", sums, graph.integers(-1), keepdims=0)
    empty = others = None
    if otherwise is not None:
        empty = graph.op("Equal", total, graph.number(0.0, "float64"))
        others = blocks_of(graph, otherwise, vocab_size, 0.0)
        sums = graph.op("Where", graph.op("Unsqueeze", empty, graph.integers(2)), _block_sums(graph, others), sums)
        total = graph.op("ReduceSum", sums, graph.integers(-1), keepdims=0)
    threshold = graph.op("Mul", uniform, total)
    size = block_size(vocab_size)
    if vocab_size <= 4 * size:
        size = vocab_size
        chosen = graph.op("Mul", graph.op("Cast", threshold, to=7), graph.number(0, "int64"))
    else:
        chosen, before = _first_past(graph, sums, -(-vocab_size // size), threshold)
        # Rounding may leave less than nothing.
        threshold = graph.op("Max", graph.op("Sub", threshold, before), graph.number(0.0, "float64"))
    block = _chosen_block(graph, blocks, chosen)
    if empty is not None and others is not None:
        wide = graph.op("Unsqueeze", empty, graph.integers(2))
        block = graph.op("Where", wide, _chosen_block(graph, others, chosen), block)
    inside, _ = _first_past(graph, graph.op("Cast", block, to=11), size, threshold)
    return _joined(graph, chosen, inside, vocab_size)


def _block_sums(graph: DecisionBuilder, blocks: str) -> str:
    """Sums float64 (B, n, count) of ``blocks`` float32 (B, n, count, block), added up in float32 within a block."""
    return graph.op("Cast", graph.op("ReduceSum", blocks, graph.integers(-1), keepdims=0), to=11)

"""The graph of a correction network: what the laws of positions become when their neighbours change, in one small ONNX graph.

It is a fitted table with a network on top of it (`coupled_sampling.corrections.LowRank`, `coupled_sampling.fitting.fit_network`):

    base      = A l + B u + U sum over changed neighbours k of (w_k[new] - w_k[old])
    corrected = base + G f(base, old, new) + g

f reads the law of base, its logarithms and its probabilities each through a matrix, and its entropy; and of each neighbour an
embedding of what it is now, one of what it was, and whether it changed. It has two hidden layers. G has a few columns.

Inputs and outputs are in ``docs/bundle-format.md``. Operators are ONNX's own, of opset 24. Matrices are stored in half precision,
and widened by the runtime when the graph is loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.corrections import LowRank
from coupled_sampling.export.graphs.builder import GraphBuilder

__all__ = ["LEAST", "NetworkWeights", "network_graph"]

LEAST = -15.0
"""Log-probabilities that the network reads are cut off here."""

_LOWEST = -1e30
"""Logits of tokens that are forbidden, where a law is made of them: -inf in all of a row would make NaN."""

_FLOAT32 = 1
"""ONNX's number of the type."""

Matrix = NDArray[np.floating]


class NetworkWeights(NamedTuple):
    """The numbers of a correction network over M tokens, with embeddings of E and a basis of C columns."""

    read_logs: Matrix
    """(M, R) what reads the logarithms of a law."""
    read_law: Matrix
    """(M, R) what reads its probabilities."""
    new: Matrix
    """(K, V + 1, E) embeddings of the neighbours of now; the last row is for none."""
    old: Matrix
    """(K, V + 1, E) of what changed neighbours were."""
    layers: Sequence[tuple[Matrix, Matrix]]
    """A matrix (inputs, outputs) and a vector (outputs,) for each hidden layer, then for the coefficients of the basis. Inputs of
    the first are, in this order: what reads logarithms, what reads probabilities, the entropy, and for each neighbour both
    embeddings and whether it changed."""
    basis: Matrix
    """(C, M) G."""
    bias: Matrix
    """(M,) g."""


def network_graph(table: LowRank, weights: NetworkWeights, first: int) -> Any:
    """The graph of a network over ``table``, an ``onnx.ModelProto``.

    Parameters
    ----------
    table
        What it corrects first.
    weights
        The network.
    first
        The first of the M tokens, within the table's vocabulary, that it is over. Others get what the table says.

    Raises
    ------
    MissingDependency
        ``onnx`` is not installed.
    """
    vocab_size, lags = table.vocab_size, len(table.lags)
    graph = GraphBuilder()
    logits = graph.input("logits", "float32", ["n", vocab_size])
    old, new = (graph.input(name, "int64", ["n", lags]) for name in ("old", "new"))
    graph.input("position", "int64", ["n"])
    count = len(weights.bias)
    corrected = graph.output("corrected", "float32", ["n", vocab_size])
    changed = graph.op("Not", graph.op("Equal", old, new))
    base = _table(graph, table, logits, old, new, changed)
    coefficients = _layers(graph, weights, _features(graph, weights, base, (old, new, changed), first, lags))
    wide = np.zeros((len(weights.basis) + 1, vocab_size), np.float32)
    wide[:, first : first + count] = [*weights.basis, weights.bias]
    moved = graph.op("Gemm", coefficients, _matrix(graph, "basis", wide[:-1]), graph.constant("bias", wide[-1]))
    graph.op("Add", base, moved, name=corrected)
    return graph.build(
        "correction_network", "Laws under changed neighbours.", {"format": "coupled-sampling correction network"}
    )


def _table(graph: GraphBuilder, table: LowRank, logits: str, old: str, new: str, changed: str) -> str:
    """What the table makes of the logits. Rows of neighbours k = 0, 1, ... lie one table after the other."""
    lags, rows = len(table.lags), table.vocab_size + 1
    begins = graph.constant("begins", rows * np.arange(lags))
    sources = _matrix(graph, "table.neighbours", table.neighbours.reshape(lags * rows, -1))
    now, before = (graph.op("Gather", sources, graph.op("Add", tokens, begins)) for tokens in (new, old))
    moved = graph.op("ReduceSum", graph.op("Sub", now, before), graph.integers(1), keepdims=0)
    bits = graph.op("Mul", graph.op("Cast", changed, to=7), graph.constant("bits", 2 ** np.arange(lags)))
    which = graph.op("ReduceSum", bits, graph.integers(1), keepdims=0)
    stale, own = table.stale_scale.astype(np.float32), table.unigram_scale.astype(np.float32)
    stale[0], own[0] = 1, 0  # where nothing changed the law stays
    scale, share = (
        graph.op("Gather", graph.constant(name, values[:, None]), which)
        for name, values in (("table.stale_scale", stale), ("table.unigram_scale", own))
    )
    unigram = graph.constant("table.unigram", table.unigram.astype(np.float32))
    kept = graph.op("Add", graph.op("Mul", scale, logits), graph.op("Mul", share, unigram))
    basis = _matrix(graph, "table.basis", np.ascontiguousarray(table.basis.T))
    return graph.op("Add", kept, graph.op("MatMul", moved, basis))


def _features(
    graph: GraphBuilder,
    weights: NetworkWeights,
    base: str,
    neighbours: tuple[str, str, str],
    first: int,
    lags: int,
) -> str:
    """What the network reads, (n, inputs)."""
    count = len(weights.bias)
    inside = graph.op("Slice", base, graph.integers(first), graph.integers(first + count), graph.integers(1))
    finite = graph.op("Max", inside, graph.constant("lowest", np.array(_LOWEST, np.float32)))
    whole = graph.op("LogSoftmax", finite, axis=-1)
    law = graph.op("Exp", whole)
    logs = graph.op("Max", whole, graph.constant("least", np.array(LEAST, np.float32)))
    negative = graph.op("ReduceSum", graph.op("Mul", law, logs), graph.integers(1), keepdims=1)
    read = [
        graph.op("MatMul", logs, _matrix(graph, "read_logs", weights.read_logs)),
        graph.op("MatMul", law, _matrix(graph, "read_law", weights.read_law)),
        graph.op("Neg", negative),
    ]
    old, new, changed = neighbours
    flags = graph.op("Cast", changed, to=_FLOAT32)
    for k in range(lags):
        at = graph.constant(f"neighbour.{k}", np.array(k))
        now, before = (graph.op("Gather", tokens, at, axis=1) for tokens in (new, old))
        flag = graph.op("Slice", flags, graph.integers(k), graph.integers(k + 1), graph.integers(1))
        embedded = graph.op("Gather", _matrix(graph, f"new.{k}", weights.new[k]), now)
        was = graph.op("Gather", _matrix(graph, f"old.{k}", weights.old[k]), before)
        read += [embedded, graph.op("Mul", was, flag), flag]
    return graph.op("Concat", *read, axis=1)


def _layers(graph: GraphBuilder, weights: NetworkWeights, x: str) -> str:
    """The coefficients of the basis, (n, C)."""
    for i, (matrix, vector) in enumerate(weights.layers):
        bias = graph.constant(f"layers.{i}.bias", vector.astype(np.float32))
        x = graph.op("Gemm", x, _matrix(graph, f"layers.{i}", matrix), bias)
        if i + 1 < len(weights.layers):
            x = graph.op("Relu", x)
    return x


def _matrix(graph: GraphBuilder, name: str, values: Matrix) -> str:
    """A matrix in float32, which is stored in half precision."""
    return graph.op("Cast", graph.weight(name, values.astype(np.float16)), to=_FLOAT32)

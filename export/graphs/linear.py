"""Linear maps, norms and vectors of a decoder, in the types that `Storage` asks for.

Every map is one Gemm over a matrix (B * W, inputs). Maps of the same input are joined into one, which saves operators
and changes no product. Float matrices stay (outputs, inputs), so that a head can share the embedding's; codes of
quantised ones are written in the form that `Storage` asks for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.export.graphs.builder import GraphBuilder
from coupled_sampling.export.graphs.nbits import nbits_product
from coupled_sampling.export.graphs.parts import Norm
from coupled_sampling.export.graphs.storage import Storage, converted, quantised
from coupled_sampling.export.graphs.weights import WeightReader

__all__ = ["Linear"]


class Linear:
    """Writes linear maps, each weight read once."""

    def __init__(self, graph: GraphBuilder, weights: WeightReader, storage: Storage) -> None:
        self.graph = graph
        self.weights = weights
        self.storage = storage

    def __call__(self, name: str, x: str) -> str:
        """The map called ``name`` of ``x`` (N, inputs)."""
        return self.joined(name, [name], x)

    def joined(self, name: str, parts: Sequence[str], x: str) -> str:
        """The maps called ``parts`` of ``x`` (N, inputs), their outputs side by side."""
        matrix = _stacked([self.weights[f"{part}.weight"] for part in parts])
        biased = f"{parts[0]}.bias" in self.weights.shapes
        bias = _stacked([self.weights[f"{part}.bias"] for part in parts]) if biased else None
        return self.product(name, matrix, bias, x)

    def product(self, name: str, matrix: NDArray[Any], bias: NDArray[Any] | None, x: str) -> str:
        """``x @ matrix.T + bias`` with a matrix (outputs, inputs)."""
        storage, graph = self.storage, self.graph
        if storage.bits:
            codes, scales = quantised(matrix, storage.bits, storage.block, storage.compute)
            kept = converted(f"{name}.scale", scales, storage.compute)
            if storage.is_nbits:
                added = None if bias is None else self.vector(f"{name}.bias", bias)
                return nbits_product(graph, name, codes, kept, added, x)
            weight = graph.op(
                "DequantizeLinear",
                graph.weight(f"{name}.weight", codes),
                graph.weight(f"{name}.scale", kept),
                axis=0,
                block_size=storage.block,
            )
            return self.shared_product(name, weight, bias, x, transposed=False)
        weight = graph.weight(f"{name}.weight", converted(f"{name}.weight", matrix, storage.weights))
        return self.shared_product(name, self.as_computed(weight, storage.weights), bias, x)

    def shared_product(
        self, name: str, weight: str, bias: NDArray[Any] | None, x: str, *, transposed: bool = True
    ) -> str:
        """``x`` times a matrix that is in the graph already, of the type of the arithmetic."""
        added = () if bias is None else (self.vector(f"{name}.bias", bias),)
        return self.graph.op("Gemm", x, weight, *added, transB=int(transposed))

    def norm(self, name: str, norm: Norm, x: str) -> str:
        """``x`` normalised over its last axis, with the weights called ``name``."""
        scale = np.asarray(self.weights[f"{name}.weight"], np.float32) + np.float32(norm.one_plus)
        inputs = [x, self.vector(f"{name}.weight", scale)]
        if norm.has_bias:
            inputs.append(self.vector(f"{name}.bias", self.weights[f"{name}.bias"]))
        return self.graph.op(norm.operator, *inputs, axis=-1, epsilon=norm.epsilon)

    def vector(self, name: str, value: NDArray[Any]) -> str:
        """A constant of the type of the arithmetic."""
        return self.graph.constant(name, converted(name, value, self.storage.compute))

    def table(self, name: str, value: NDArray[Any]) -> str:
        """A constant to look rows up in, of the type of embeddings."""
        return self.graph.weight(name, converted(name, value, self.storage.embeddings))

    def as_computed(self, value: str, dtype: str) -> str:
        """A value of type ``dtype`` in the type of the arithmetic."""
        if dtype == self.storage.compute:
            return value
        return self.graph.op("Cast", value, to=self.storage.onnx_type)


def _stacked(arrays: Sequence[NDArray[Any]]) -> NDArray[Any]:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)

"""The model that a graph of rounded weights stands for.

A graph of int4 weights is not the checkpoint's model, it is another one near it; but it must be *exactly* that other one. So
its logits are compared with `coupled_sampling.export.reference_logits` of the weights as they were stored: whatever is wrong with
codes, scales or their packing shows as more than rounding, which the distance from the checkpoint's own logits would hide.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.export.graphs.description import DecoderDescription
from coupled_sampling.export.graphs.storage import Storage, converted, quantised
from coupled_sampling.export.graphs.weights import WeightReader, WeightSource

__all__ = ["RoundedModel", "dequantised", "rounded_model"]


class RoundedModel(NamedTuple):
    """A decoder whose weights are what a graph keeps of them."""

    description: DecoderDescription
    weights: WeightSource


def rounded_model(description: DecoderDescription, weights: WeightSource, storage: Storage) -> RoundedModel:
    """The model that `coupled_sampling.export.graphs.decoder.decoder_graph` makes of these arguments.

    Parameters
    ----------
    description, weights, storage
        As for `coupled_sampling.export.graphs.decoder.decoder_graph`.

    Returns
    -------
    RoundedModel
        ``weights`` reads and rounds a weight when it is asked for. Where the head shares the embedding's matrix and is quantised,
        it is rounded more than the embedding, so that the description then has a head of its own.

    Examples
    --------
    >>> import numpy as np
    >>> from coupled_sampling.export import DecoderDescription, Rotary, Storage
    >>> from coupled_sampling.export.graphs.rounded import rounded_model
    >>> description = DecoderDescription(vocab_size=32, positions=64, width=16, layers=1, heads=2, mlp_width=32, rotary=Rotary())
    >>> random = np.random.default_rng(0)
    >>> weights = {name: random.normal(size=shape) for name, shape in description.weight_shapes().items()}
    >>> model = rounded_model(description, weights, Storage("int4", block=16))
    >>> len(np.unique(model.weights("layers.0.mlp.up.weight")[0])) <= 15  # codes from -7 to 7
    True
    """
    reader, matrices = WeightReader(description.weight_shapes(), weights), description.matrices()
    tables = (*description.embedding_names(), "position.weight")
    own_head, settings = description.tied_head and storage.bits > 0, (storage.bits, storage.block, storage.compute)

    def rounded(name: str) -> NDArray[Any]:
        if own_head and name == "head.weight":
            table = np.concatenate([reader[part] for part in description.embedding_names()])
            first = description.generated_first
            return dequantised(*quantised(table[first : first + description.generated], *settings))
        value = reader[name]
        if name in matrices and storage.bits:
            return dequantised(*quantised(value, *settings))
        return converted(name, value, storage.embeddings) if name in matrices or name in tables else value

    return RoundedModel(replace(description, tied_head=False) if own_head else description, rounded)


def dequantised(codes: NDArray[Any], scales: NDArray[np.float32]) -> NDArray[np.float32]:
    """The matrix (outputs, inputs) that codes (inputs, outputs) and scales (inputs / block, outputs) stand for."""
    widened: NDArray[np.float32] = codes.astype(np.float32) * np.repeat(scales, len(codes) // len(scales), axis=0)
    return widened.T

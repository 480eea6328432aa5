"""Decoders that take a request's vectors, small and random, and their graphs in ONNX Runtime."""

import dataclasses

import numpy as np
import pytest

from coupled_sampling.export import (
    CrossAttention,
    DecoderDescription,
    GridRotary,
    LayerPositions,
    Norm,
    PrefixVectors,
    QueryKeyNorm,
    Rotary,
)
from standins.tree_windows import TreeRun

LENGTH = 18
PLAIN = DecoderDescription(
    vocab_size=23, positions=LENGTH, width=24, layers=2, heads=4, kv_heads=2, mlp_width=20, generated=22
)
CONTEXT = CrossAttention(length=7, size=10)
PREFIX = PrefixVectors(length=5, size=10, hidden=14, token=22)

CROSS = dataclasses.replace(PLAIN, rotary=Rotary(), condition=CONTEXT)
CLIP = {"rows": 2, "columns": 3, "frames": 2, "prefix": 1}
PLACED = dataclasses.replace(PLAIN, layer_positions=LayerPositions(**CLIP))
COSMOS = dataclasses.replace(
    PLAIN,
    head_size=12,
    rotary=Rotary("half", 500000.0, grid=GridRotary(**CLIP, prefix_vanishes=False)),
    query_key_norm=QueryKeyNorm(Norm("rms", 1e-5)),
    layer_positions=LayerPositions(**CLIP),
    condition=CONTEXT,
)
"""The structure of Cosmos-Predict1 Video2World: token 22 begins a video and is never generated."""
VECTORS = dataclasses.replace(
    PLAIN,
    head_size=8,
    rotary=Rotary("interleaved", grid=GridRotary(3, 4, prefix=5)),
    condition=PREFIX,
    embedding_scale=3.0,
)
"""The structure of LlamaGen from text: token 22 stands for a vector."""


def some_vectors(count, size=10, seed=0):
    return np.random.default_rng(seed).normal(size=(count, size))


class ConditionedRun(TreeRun):
    """A window graph with its caches, and the graph of conditions, whose outcome each row keeps."""

    def __init__(self, window, condition, rows):
        super().__init__(window, rows)
        onnxruntime = pytest.importorskip("onnxruntime")
        self.reading = onnxruntime.InferenceSession(condition.SerializeToString(), providers=["CPUExecutionProvider"])
        self.rows, self.told = rows, {}

    def begin(self, row, vectors):
        names = [value.name for value in self.reading.get_outputs()]
        made = self.reading.run(None, {"condition": np.asarray(vectors, np.float32)})
        for name, value in zip(names, made, strict=True):
            self.told.setdefault(name, np.full((self.rows, *value.shape[1:]), 7, value.dtype))[row] = value[0]

    def inputs(self):
        return self.caches | self.told


def some_tokens(description, *shape, seed=0):
    """Tokens, of which those that stand for vectors are where these may be, and only there."""
    random = np.random.default_rng(seed)
    tokens = random.integers(0, description.vocab_size - 1, shape)
    prefix = description.prefix
    if prefix is not None:
        first = tokens[..., : prefix.length]
        first[random.random(first.shape) < 0.7] = prefix.token
    return tokens

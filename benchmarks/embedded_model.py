"""The embedded picture model on the arrays of NumPy, torch or CuPy: what one would write without an ONNX runtime.

    provider = Embedded(torch, weights, heads, on="cuda")

A `coupled_sampling.LogitsProvider` of one row whose weights, cache and logits lie on one device. The weights are read from the
bundle without the package onnx, which a machine with a GPU need not have.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from coupled_sampling import open_bundle
from coupled_sampling.bundles.wire import BYTES, INTEGER, read_fields, read_integer
from coupled_sampling.contracts import Array, Integers

GRAPH, INITIALIZER = 7, 5
"""Numbers of fields: a model's graph, and a graph's weights."""
DIMS, TYPE, NAME, RAW, OUTSIDE = 1, 2, 8, 9, 13
"""And of a tensor's: sizes, type of its elements, name, its bytes, or entries that say where these lie in another file."""
FLOAT32 = 1


def read_weights() -> tuple[dict[str, np.ndarray], int]:
    """The float32 tensors of the embedded model's window graph by name, and how many heads attention has."""
    bundle = open_bundle("fashion")
    found = {}
    data = bundle.window_graph.read_bytes()
    for number, _, start, end in read_fields(data, 0, len(data)):
        if number == GRAPH:
            for inner, _, first, last in read_fields(data, start, end):
                if inner == INITIALIZER:
                    found.update(_tensor(data, first, last, bundle.folder))
    return found, bundle.manifest.window_graph.kv_heads


def _tensor(data: bytes, start: int, end: int, folder: Path) -> dict[str, np.ndarray]:
    sizes: list[int] = []
    name, kind, raw, outside = "", 0, b"", {}
    for number, form, first, last in read_fields(data, start, end):
        if number == DIMS and form == INTEGER:
            sizes.append(read_integer(data, first, last)[0])
        elif number == DIMS and form == BYTES:  # packed
            while first < last:
                size, first = read_integer(data, first, last)
                sizes.append(size)
        elif number == TYPE:
            kind = read_integer(data, first, last)[0]
        elif number == NAME:
            name = data[first:last].decode()
        elif number == RAW:
            raw = data[first:last]
        elif number == OUTSIDE:
            entry = {n: data[a:b].decode() for n, _, a, b in read_fields(data, first, last)}
            outside[entry[1]] = entry[2]
    if kind != FLOAT32:
        return {}
    if not outside:
        return {name: np.frombuffer(raw, "<f4").reshape(sizes)}
    place, count = folder / outside["location"], math.prod(sizes)
    return {name: np.fromfile(place, "<f4", count, offset=int(outside.get("offset", 0))).reshape(sizes)}


class Embedded:
    """The model on arrays of ``xp``: the module numpy, torch or cupy; ``on`` is torch's device."""

    batch_size = 1

    def __init__(self, xp: Any, weights: dict[str, np.ndarray], heads: int, on: str | None = None) -> None:
        self.xp, self._heads = xp, heads
        self._on = {} if on is None else {"device": on}
        self._weights = {name: self._array(values) for name, values in weights.items()}
        self.vocab_size, self._width = weights["embedding.weight"].shape
        self.max_length = self.max_window = weights["position.weight"].shape[0]
        self._layers = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("blocks."))
        empty = np.zeros((2, self._layers, heads, self.max_length, self._width // heads), np.float32)
        self._cache = self._array(empty)
        self._columns = self._array(np.arange(self.max_length))

    def forward(self, tokens: Integers, start: Integers) -> Array:
        """Logits float32 (1, W, V)."""
        xp, begin, count = self.xp, int(start[0]), tokens.shape[1]
        positions = self._columns[begin : begin + count]
        seen = self._columns[None, :] <= positions[:, None]
        ids = self._array(np.array(tokens[0]))
        x = self._weights["embedding.weight"][ids] + self._weights["position.weight"][positions]
        for layer in range(self._layers):
            block = f"blocks.{layer}."
            split = self._linear(block + "attention_in", self._norm(block + "attention_norm", x))
            query, key, value = (self._by_head(split[:, i * self._width : (i + 1) * self._width]) for i in range(3))
            self._cache[0, layer, :, begin : begin + count] = key
            self._cache[1, layer, :, begin : begin + count] = value
            keys, values = self._cache[0, layer], self._cache[1, layer]
            scores = (query @ keys.swapaxes(1, 2)) * (self._width // self._heads) ** -0.5
            scores = xp.where(seen, scores, -math.inf)
            weights = xp.exp(scores - self._most(scores))
            mixed = (weights / weights.sum(-1)[..., None]) @ values
            x = x + self._linear(block + "attention_out", mixed.swapaxes(0, 1).reshape(count, self._width))
            hidden = self._linear(block + "mlp_in", self._norm(block + "mlp_norm", x))
            x = x + self._linear(block + "mlp_out", 0.5 * hidden * (1 + self._erf(hidden * 0.5**0.5)))
        return self._linear("head", self._norm("norm", x))[None]

    def _array(self, values: np.ndarray) -> Array:
        return self.xp.asarray(np.array(values), **self._on)  # a copy, which may be written to

    def _by_head(self, x: Array) -> Array:
        return x.reshape(x.shape[0], self._heads, -1).swapaxes(0, 1)

    def _most(self, scores: Array) -> Array:
        return self.xp.amax(scores, -1)[..., None]

    def _linear(self, name: str, x: Array) -> Array:
        return x @ self._weights[f"{name}.weight"] + self._weights[f"{name}.bias"]

    def _norm(self, name: str, x: Array, epsilon: float = 1e-5) -> Array:
        away = x - x.mean(-1)[:, None]
        scale = self.xp.sqrt((away**2).mean(-1)[:, None] + epsilon)
        return away / scale * self._weights[f"{name}.weight"] + self._weights[f"{name}.bias"]

    def _erf(self, x: Array) -> Array:
        if hasattr(self.xp, "special"):
            return self.xp.special.erf(x)
        if self.xp.__name__ == "cupy":
            from cupyx.scipy.special import erf

            return erf(x)
        return np.vectorize(math.erf, otypes=[np.float32])(x)

"""A decoder-only transformer in JAX: pre-norm, learned positions, GELU, and a cache in which the last write wins.

It is what one would write anyway; nothing here knows how tokens are drawn. One function matters to decoding:

    forward(params, shape, cache, tokens, start) -> logits, cache

``tokens`` (B, W) stand at the positions from ``start`` (B,) on; ``logits[b, j]`` are for the position after that of
``tokens[b, j]``. State for these positions replaces whatever was there, so to go back is to start lower.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Params = dict[str, Any]
Cache = list[tuple[jax.Array, jax.Array]]


@dataclass(frozen=True)
class Shape:
    """Sizes of the model, known while it is compiled."""

    vocab_size: int
    width: int
    layers: int
    heads: int
    mlp_width: int
    positions: int
    dtype: str = "float32"

    @property
    def parameters(self) -> int:
        block = 4 * self.width**2 + 2 * self.width * self.mlp_width
        return self.layers * block + (2 * self.vocab_size + self.positions) * self.width

    @property
    def bytes_read(self) -> int:
        """Of weights in a pass, which looks a few rows up in the embedding and reads all else."""
        read = self.parameters - (self.vocab_size + self.positions) * self.width
        return read * jnp.dtype(self.dtype).itemsize


SHAPES = {
    "3b": Shape(32768, width=3072, layers=25, heads=24, mlp_width=12288, positions=2048, dtype="bfloat16"),
    "1b": Shape(32768, width=2048, layers=16, heads=16, mlp_width=8192, positions=2048, dtype="bfloat16"),
    "tiny": Shape(512, width=64, layers=2, heads=4, mlp_width=256, positions=128, dtype="bfloat16"),
}
"""For `random_params`: about three billion parameters, one billion, and next to none."""


def read_bundle(folder: Path) -> tuple[Shape, Params]:
    """The weights of a bundle's window graph, by the names that the graph of `fashion` has for them."""
    import onnx  # the graph names what lies where in weights.bin

    graph = onnx.load(folder / "window.onnx").graph
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    (cache,) = [value for value in graph.input if value.name == "past_key_values.0.key"]
    return params_of(arrays, cache.type.tensor_type.shape.dim[1].dim_value)


def params_of(arrays: dict[str, np.ndarray], heads: int) -> tuple[Shape, Params]:
    """Shape and weights, of arrays by the names that they have in the graph."""
    params: Params = {"blocks": []}
    for name, array in arrays.items():
        if array.dtype != np.float32:
            continue  # the graph's own constants
        *path, last = name.split(".")
        holder = params
        if path[0] == "blocks":
            blocks, index = params["blocks"], int(path[1])
            blocks.extend({} for _ in range(index + 1 - len(blocks)))
            holder, path = blocks[index], path[2:]
        holder.setdefault(path[0], {})[last] = jnp.asarray(array)
    vocab_size, width = params["embedding"]["weight"].shape
    mlp_width = params["blocks"][0]["mlp_in"]["weight"].shape[1]
    positions = params["position"]["weight"].shape[0]
    return Shape(vocab_size, width, len(params["blocks"]), heads, mlp_width, positions), params


def random_params(shape: Shape, seed: int = 0) -> Params:
    """Weights that mean nothing, made on the device: for timing."""
    sizes = {
        "attention_in": (shape.width, 3 * shape.width),
        "attention_out": (shape.width, shape.width),
        "mlp_in": (shape.width, shape.mlp_width),
        "mlp_out": (shape.mlp_width, shape.width),
    }
    keys = iter(jax.random.split(jax.random.key(seed), 3 + len(sizes) * shape.layers))

    def weight(*size: int) -> jax.Array:
        return jax.random.normal(next(keys), size, shape.dtype) * size[0] ** -0.5

    def norm() -> Params:
        return {"weight": jnp.ones(shape.width, shape.dtype), "bias": jnp.zeros(shape.width, shape.dtype)}

    def block() -> Params:
        linear = {
            name: {"weight": weight(*size), "bias": jnp.zeros(size[1], shape.dtype)} for name, size in sizes.items()
        }
        return {"attention_norm": norm(), "mlp_norm": norm(), **linear}

    return {
        "embedding": {"weight": weight(shape.vocab_size, shape.width)},
        "position": {"weight": weight(shape.positions, shape.width)},
        "norm": norm(),
        "head": {"weight": weight(shape.width, shape.vocab_size), "bias": jnp.zeros(shape.vocab_size, shape.dtype)},
        "blocks": [block() for _ in range(shape.layers)],
    }


def empty_cache(shape: Shape, rows: int, columns: int) -> Cache:
    """Keys and values (B, heads, columns, head size) per layer."""
    size = (rows, shape.heads, columns, shape.width // shape.heads)
    return [(jnp.zeros(size, shape.dtype), jnp.zeros(size, shape.dtype)) for _ in range(shape.layers)]


def forward(params: Params, shape: Shape, cache: Cache, tokens: jax.Array, start: jax.Array) -> tuple[jax.Array, Cache]:
    """Logits (B, W, V), and the cache with these positions in it."""
    positions = start[:, None] + jnp.arange(tokens.shape[1])
    columns = jnp.arange(cache[0][0].shape[2])
    seen = columns <= positions[:, None, :, None]  # (B, 1, W, columns)
    known = jnp.minimum(
        positions, shape.positions - 1
    )  # slots past the end are there, but nobody asks for their logits
    x = params["embedding"]["weight"][tokens] + params["position"]["weight"][known]
    written = []
    for block, held in zip(params["blocks"], cache, strict=True):
        mixed, kept = _attention(block, shape, held, _norm(block["attention_norm"], x), start, seen)
        x = x + mixed
        hidden = jax.nn.gelu(_linear(block["mlp_in"], _norm(block["mlp_norm"], x)), approximate=False)
        x = x + _linear(block["mlp_out"], hidden)
        written.append(kept)
    return _linear(params["head"], _norm(params["norm"], x)), written


def _attention(
    block: Params, shape: Shape, held: tuple[jax.Array, jax.Array], x: jax.Array, start: jax.Array, seen: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    rows, count, width = x.shape
    split = _linear(block["attention_in"], x).reshape(rows, count, 3, shape.heads, width // shape.heads)
    query, key, value = split.transpose(2, 0, 3, 1, 4)  # each (B, heads, W, head size)
    write = jax.vmap(lambda cache, new, at: jax.lax.dynamic_update_slice(cache, new, (0, at, 0)))
    keys, values = write(held[0], key, start), write(held[1], value, start)
    scores = _product("bhwd,bhsd->bhws", query, keys) * (width // shape.heads) ** -0.5
    weights = jax.nn.softmax(jnp.where(seen, scores, -jnp.inf), axis=-1).astype(values.dtype)
    mixed = _product("bhws,bhsd->bhwd", weights, values).astype(x.dtype)
    return _linear(block["attention_out"], mixed.transpose(0, 2, 1, 3).reshape(rows, count, width)), (keys, values)


def _product(subscripts: str, left: jax.Array, right: jax.Array) -> jax.Array:
    """Summed in float32, whatever the factors are; factors in float32 are not rounded, as a GPU else would."""
    precision = "highest" if left.dtype == jnp.float32 else "default"
    return jnp.einsum(subscripts, left, right, precision=precision, preferred_element_type=jnp.float32)


def _linear(params: Params, x: jax.Array) -> jax.Array:
    return (_product("...i,io->...o", x, params["weight"]) + params["bias"]).astype(x.dtype)


def _norm(params: Params, x: jax.Array, epsilon: float = 1e-5) -> jax.Array:
    wide = x.astype(jnp.float32)
    away = wide - wide.mean(axis=-1, keepdims=True)
    return (away * jax.lax.rsqrt((away**2).mean(axis=-1, keepdims=True) + epsilon)).astype(x.dtype) * params[
        "weight"
    ] + params["bias"]

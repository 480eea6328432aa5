"""The logits of a description in numpy: the oracle that exported graphs are checked against.

One whole sequence in, all its logits out: no caches, no windows, no fused maps, float64 unless another type is asked
for. It is written for reading and for being right, not for speed: attention takes T^2 memory per head.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from coupled_sampling.arguments import checked_tokens
from coupled_sampling.errors import InvalidArgument
from coupled_sampling.export.graphs.conditions import CROSS_ATTENTION
from coupled_sampling.export.graphs.description import DecoderDescription, LayerKind, Norm
from coupled_sampling.export.graphs.rotary import Rotary, rotary_tables
from coupled_sampling.export.graphs.weights import WeightReader, WeightSource
from coupled_sampling.fields import check_is

__all__ = ["reference_logits"]

Array = NDArray[Any]


def reference_logits(
    description: DecoderDescription,
    weights: WeightSource,
    tokens: NDArray[np.int64],
    dtype: DTypeLike = np.float64,
    condition: NDArray[np.floating[Any]] | None = None,
) -> Array:
    """Logits of every position of one sequence.

    Parameters
    ----------
    description
        The decoder.
    weights
        A mapping or function from the names of ``description.weight_shapes()`` to arrays of any float type.
    tokens
        int64 (T,), T at most ``description.positions``.
    dtype
        Type to compute in.
    condition
        (n, size), the vectors of a request, where ``description.condition`` wants some.

    Returns
    -------
    NDArray
        (T, V), -inf for tokens that are never generated.

    Raises
    ------
    InvalidArgument
        A weight does not fit, or ``tokens`` is no sequence the decoder takes.

    Examples
    --------
    >>> import numpy as np
    >>> from coupled_sampling.export import DecoderDescription, Rotary, reference_logits
    >>> description = DecoderDescription(vocab_size=32, positions=64, width=16, layers=1, heads=2, mlp_width=32, rotary=Rotary())
    >>> random = np.random.default_rng(0)
    >>> weights = {name: random.normal(size=shape) for name, shape in description.weight_shapes().items()}
    >>> reference_logits(description, weights, np.array([3, 1, 4])).shape
    (3, 32)
    """
    check_is("description", description, DecoderDescription)
    tokens = checked_tokens("tokens", tokens, description.vocab_size)
    if len(tokens) > description.positions:
        raise InvalidArgument(
            f"tokens has {len(tokens)} tokens, expected at most the {description.positions} positions of a sequence"
        )
    wanted = description.condition
    shape = None if condition is None else np.shape(condition)
    if (wanted is None) != (shape is None) or (
        wanted is not None
        and (shape is None or len(shape) != 2 or not 0 < shape[0] <= wanted.length or shape[1] != wanted.size)
    ):
        raise InvalidArgument(
            f"condition has the shape {shape}, expected "
            + (
                "None: the description takes none"
                if wanted is None
                else f"(n, {wanted.size}) with n up to {wanted.length}"
            )
        )
    return _Reference(description, weights, np.dtype(dtype), condition).logits(tokens)


class _Reference:
    def __init__(
        self, description: DecoderDescription, weights: WeightSource, dtype: np.dtype[Any], condition: Array | None
    ) -> None:
        self.description = description
        self.dtype = dtype
        self.condition = None if condition is None else np.asarray(condition, dtype)
        self.weights = WeightReader(description.weight_shapes(), weights)

    def logits(self, tokens: NDArray[np.int64]) -> Array:
        description = self.description
        table = np.concatenate([self.weight(name) for name in description.embedding_names()])
        x = table[tokens] * self.dtype.type(description.embedding_scale)
        if description.learned_positions:
            first = description.position_offset
            x = x + self.weight("position.weight")[first : first + len(tokens)]
        x = self.with_vectors(x, tokens)
        for layer, kind in enumerate(description.kinds()):
            if description.layer_positions is not None:
                x = x + description.layer_positions.rows_of(description.width, len(tokens)).astype(self.dtype)
            for part in description.parts:
                prefix = f"layers.{layer}.{part}"
                y = self.norm(f"{prefix}_norm", x) if description.input_norm else x
                y = self.part(part, prefix, y, kind, tokens)
                y = self.norm(f"{prefix}_output_norm", y) if description.output_norm else y
                x = x + y * self.dtype.type(description.residual_scale)
        x = self.norm("norm", x)
        if description.head_hidden:
            x = activation("gelu", self.linear("head.hidden", x))
        generated = slice(description.generated_first, description.generated_first + description.generated)
        matrix = table[generated] if description.tied_head else self.weight("head.weight")
        scores = x @ matrix.T
        if description.head_bias:
            scores = scores + self.weight("head.bias")
        scores = _softcap(scores * self.dtype.type(description.logit_scale), description.logit_softcap)
        logits = np.full((len(tokens), description.vocab_size), -np.inf, self.dtype)
        logits[:, generated] = scores
        return logits

    def weight(self, name: str) -> Array:
        return self.weights[name].astype(self.dtype)

    def linear(self, name: str, x: Array) -> Array:
        y = x @ self.weight(f"{name}.weight").T
        bias = f"{name}.bias"
        return y + self.weight(bias) if bias in self.weights.shapes else y

    def norm(self, name: str, x: Array) -> Array:
        norm = self.description.norm
        bias = self.weight(f"{name}.bias") if norm.has_bias else None
        return _normalise(norm, x, self.weight(f"{name}.weight"), bias)

    def with_vectors(self, x: Array, tokens: NDArray[np.int64]) -> Array:
        """Embeddings with the request's vectors where their token stands; the last vector is right before what follows them."""
        prefix = self.description.prefix
        if prefix is None or self.condition is None:
            return x
        vectors = self.linear("prefix.down", activation("gelu_tanh", self.linear("prefix.up", self.condition)))
        x, first = x.copy(), prefix.length - len(vectors)
        for position in np.flatnonzero(tokens == prefix.token):
            if position >= prefix.length:
                raise InvalidArgument(f"tokens has {prefix.token} at position {position}, where no vector can stand")
            x[position] = vectors[position - first] if position >= first else 0
        return x

    def part(self, name: str, prefix: str, x: Array, kind: LayerKind, tokens: NDArray[np.int64]) -> Array:
        if name == CROSS_ATTENTION:
            return self.cross_attention(prefix, x)
        return self.attention(prefix, x, kind, tokens) if name == "attention" else self.mlp(prefix, x)

    def cross_attention(self, prefix: str, x: Array) -> Array:
        description, wanted, given = self.description, self.description.cross_attention, self.condition
        assert wanted is not None
        assert given is not None
        context = np.concatenate([given, np.zeros((wanted.length - len(given), wanted.size), self.dtype)])
        query, key, value = (
            self.linear(f"{prefix}.{name}", source).reshape(len(source), -1, description.head_size)
            for name, source in (("query", x), ("key", context), ("value", context))
        )
        if description.query_key_norm is not None:
            query, key = self.normed_heads(f"{prefix}.query_norm", query), self.normed_heads(f"{prefix}.key_norm", key)
        return self.mixed(prefix, query, key, value, np.ones((len(x), len(context)), bool))

    def attention(self, prefix: str, x: Array, kind: LayerKind, tokens: NDArray[np.int64]) -> Array:
        description, length = self.description, len(x)
        query, key, value = (
            self.linear(f"{prefix}.{name}", x).reshape(length, -1, description.head_size)
            for name in ("query", "key", "value")
        )
        if description.query_key_norm is not None:
            query, key = self.normed_heads(f"{prefix}.query_norm", query), self.normed_heads(f"{prefix}.key_norm", key)
        if kind.rotary is not None:
            query, key = (_rotate(kind.rotary, heads, tokens) for heads in (query, key))
        distance = np.arange(length)[:, None] - np.arange(length)
        allowed = (distance >= 0) & (distance < (kind.window or length))
        if description.prefix is not None and self.condition is not None:
            allowed &= (np.arange(length) >= description.prefix.length - len(self.condition)) | (distance == 0)
        return self.mixed(prefix, query, key, value, allowed)

    def mixed(self, prefix: str, query: Array, key: Array, value: Array, allowed: NDArray[np.bool_]) -> Array:
        """What queries (T, heads, head_size) make of keys and values (S, kv_heads, head_size); ``allowed`` is (T, S)."""
        description, mixed = self.description, np.zeros_like(query)
        for head in range(description.heads):
            shared = head * description.kv_heads // description.heads
            scores = query[:, head] @ key[:, shared].T * self.dtype.type(description.attention_scale)
            scores = np.where(allowed, _softcap(scores, description.attention_softcap), -np.inf)
            shares = np.exp(scores - scores.max(-1, keepdims=True))
            mixed[:, head] = shares / shares.sum(-1, keepdims=True) @ value[:, shared]
        return self.linear(f"{prefix}.output", mixed.reshape(len(query), -1))

    def normed_heads(self, name: str, heads: Array) -> Array:
        """``heads`` is (T, heads, head_size); weights are (head_size,), (heads, head_size), or all heads' as one."""
        wanted = self.description.query_key_norm
        assert wanted is not None
        bias = self.weight(f"{name}.bias") if wanted.norm.has_bias else None
        parts = heads.reshape(len(heads), -1) if wanted.whole else heads
        return _normalise(wanted.norm, parts, self.weight(f"{name}.weight"), bias).reshape(heads.shape)

    def mlp(self, prefix: str, x: Array) -> Array:
        up = self.linear(f"{prefix}.up", x)
        if self.description.mlp == "gated":
            up = activation(self.description.activation, self.linear(f"{prefix}.gate", x)) * up
        else:
            up = activation(self.description.activation, up)
        return self.linear(f"{prefix}.down", up)


def activation(kind: str, x: Array) -> Array:
    """One of `coupled_sampling.export.graphs.description.ACTIVATIONS`, elementwise."""
    if kind == "relu":
        return np.asarray(np.maximum(x, 0))
    if kind == "gelu":
        erf = np.vectorize(math.erf, otypes=[x.dtype])
        return np.asarray(x * (1 + erf(x / math.sqrt(2))) / 2)
    if kind == "gelu_tanh":
        return np.asarray(x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2)
    steepness = {"silu": 1.0, "quick_gelu": 1.702}[kind]
    return np.asarray(x / (1 + np.exp(-steepness * x)))


def _normalise(norm: Norm, x: Array, weight: Array, bias: Array | None) -> Array:
    if norm.kind == "layer":
        x = x - x.mean(-1, keepdims=True)
    y = x / np.sqrt((x * x).mean(-1, keepdims=True) + norm.epsilon) * (weight + norm.one_plus)
    return np.asarray(y if bias is None else y + bias)


def _softcap(x: Array, cap: float) -> Array:
    return np.asarray(cap * np.tanh(x / cap)) if cap else x


def _rotate(rotary: Rotary, heads: Array, tokens: NDArray[np.int64]) -> Array:
    """``heads`` (T, heads, head_size), the first entries of each turned by their position's angles."""
    size = rotary.turned(heads.shape[-1])
    tables = rotary_tables(rotary, size, len(heads))
    if rotary.pictures is not None:
        which = np.repeat(np.arange(3), rotary.pictures.sections)  # which of its three places a pair turns with
        places = rotary.pictures.places(tokens)[:, which]
        tables = (tables[0][places, np.arange(size // 2)], tables[1][places, np.arange(size // 2)])
    cos, sin = (table[:, None].astype(heads.dtype) for table in tables)
    if rotary.pairs == "half":
        first, second = slice(0, size // 2), slice(size // 2, size)
    else:
        first, second = slice(0, size, 2), slice(1, size, 2)
    turned = heads.copy()
    turned[..., first] = heads[..., first] * cos - heads[..., second] * sin
    turned[..., second] = heads[..., first] * sin + heads[..., second] * cos
    return turned

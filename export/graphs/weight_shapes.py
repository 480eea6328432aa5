"""Which weights a described decoder has: the names that an exporter gives them, and their shapes."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from coupled_sampling.export.graphs.conditions import CROSS_ATTENTION

if TYPE_CHECKING:
    from coupled_sampling.export.graphs.description import DecoderDescription

__all__ = ["Shapes", "weight_shapes"]

Shapes: TypeAlias = dict[str, tuple[int, ...]]


def weight_shapes(decoder: DecoderDescription) -> Shapes:
    """Names and shapes of all weights, in the order in which a graph wants them; matrices are (outputs, inputs)."""
    shapes: Shapes = {name: (rows, decoder.width) for name, rows in decoder.embedding_names().items()}
    if decoder.learned_positions:
        shapes["position.weight"] = (decoder.position_offset + decoder.positions, decoder.width)
    if decoder.prefix is not None:
        shapes |= _linear("prefix.up", decoder.prefix.hidden, decoder.prefix.size, bias=False)
        shapes |= _linear("prefix.down", decoder.width, decoder.prefix.hidden, bias=False)
    of_a_layer = _layer(decoder)
    for layer in range(decoder.layers):
        shapes |= {f"layers.{layer}.{name}": shape for name, shape in of_a_layer.items()}
    shapes |= _norm(decoder, "norm")
    inputs = decoder.width
    if decoder.head_hidden:
        shapes |= _linear("head.hidden", decoder.head_hidden, inputs, bias=True)
        inputs = decoder.head_hidden
    head = _linear("head", decoder.generated, inputs, decoder.head_bias)
    if decoder.tied_head:
        del head["head.weight"]
    return shapes | head


def _layer(decoder: DecoderDescription) -> Shapes:
    shapes: Shapes = {}
    for part in decoder.parts:
        if decoder.input_norm:
            shapes |= _norm(decoder, f"{part}_norm")
        shapes |= _mlp(decoder) if part == "mlp" else _attention(decoder, part)
        if decoder.output_norm:
            shapes |= _norm(decoder, f"{part}_output_norm")
    return shapes


def _attention(decoder: DecoderDescription, part: str) -> Shapes:
    width, query, key = decoder.width, decoder.heads * decoder.head_size, decoder.kv_heads * decoder.head_size
    biased, output_biased, source = decoder.query_key_value_bias, decoder.attention_output_bias, width
    if part == CROSS_ATTENTION and decoder.cross_attention is not None:
        biased, output_biased, source = False, False, decoder.cross_attention.size
    shapes: Shapes = {}
    for name, outputs, inputs in (("query", query, width), ("key", key, source), ("value", key, source)):
        shapes |= _linear(f"{part}.{name}", outputs, inputs, biased)
    if decoder.query_key_norm is not None:
        for name, heads in (("query", decoder.heads), ("key", decoder.kv_heads)):
            shape = decoder.query_key_norm.shape(heads, decoder.head_size)
            shapes[f"{part}.{name}_norm.weight"] = shape
            if decoder.query_key_norm.norm.has_bias:
                shapes[f"{part}.{name}_norm.bias"] = shape
    return shapes | _linear(f"{part}.output", width, query, output_biased)


def _mlp(decoder: DecoderDescription) -> Shapes:
    shapes: Shapes = {}
    for name in ("gate", "up") if decoder.mlp == "gated" else ("up",):
        shapes |= _linear(f"mlp.{name}", decoder.mlp_width, decoder.width, decoder.mlp_bias)
    return shapes | _linear("mlp.down", decoder.width, decoder.mlp_width, decoder.mlp_bias)


def _norm(decoder: DecoderDescription, name: str) -> Shapes:
    parts = ("weight", "bias") if decoder.norm.has_bias else ("weight",)
    return {f"{name}.{part}": (decoder.width,) for part in parts}


def _linear(name: str, outputs: int, inputs: int, bias: bool) -> Shapes:
    shapes: Shapes = {f"{name}.weight": (outputs, inputs)}
    return shapes | {f"{name}.bias": (outputs,)} if bias else shapes

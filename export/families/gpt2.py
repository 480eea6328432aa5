"""GPT-2 (Radford et al. 2019): layer norms before attention and a plain MLP, learned positions, biases, tied head.

Its checkpoints store linear maps as ``Conv1D``, (inputs, outputs), and queries, keys and values as one map: both are undone
here. Names have the prefix ``transformer.`` or not, whichever class saved them. Scaling attention by the number of the
layer (``scale_attn_by_inverse_layer_idx``) makes layers differ and is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.export.checkpoints.contract import Checkpoint
from coupled_sampling.export.checkpoints.places import Place, layer_name, read_places, require_tied_head
from coupled_sampling.export.families.config import ConfigReader, architectures
from coupled_sampling.export.families.contract import Decoding, Exportable
from coupled_sampling.export.families.settings import choose_positions, take_activation, take_stop_tokens
from coupled_sampling.export.families.settings import describe as describe_decoder
from coupled_sampling.export.graphs.description import DecoderDescription, Norm

__all__ = ["HARMLESS_TENSORS", "Gpt2", "gpt2_places", "prefix_of", "take_choices"]

CONV1D_NAMES = {
    "attention.query": "attn.c_attn",
    "attention.key": "attn.c_attn",
    "attention.value": "attn.c_attn",
    "attention.output": "attn.c_proj",
    "mlp.up": "mlp.c_fc",
    "mlp.down": "mlp.c_proj",
}
OTHER_NAMES = {"attention_norm": "ln_1", "mlp_norm": "ln_2", "norm": "ln_f", "embedding": "wte", "position": "wpe"}
JOINED = ("attention.query", "attention.key", "attention.value")
HEAD = "lm_head.weight"
HARMLESS_TENSORS = (".attn.bias", ".attn.masked_bias")
"""The causal mask and the number it masks with, which old files store."""


class Gpt2:
    """GPT-2."""

    name = "gpt2"

    def recognises(self, config: Mapping[str, Any]) -> bool:
        """Whether ``model_type`` is ``gpt2``."""
        named = "GPT2LMHeadModel" in architectures(config)
        return bool(config.get("model_type", "gpt2" if named else None) == "gpt2")

    def load(self, checkpoint: Checkpoint, positions: int | None = None) -> Exportable:
        reader = ConfigReader(checkpoint.config, f"the configuration of {checkpoint.path}")
        choices = take_choices(reader, activation="gelu_new")
        table_rows = choices["positions"]
        choices["positions"] = choose_positions(positions, table_rows)
        description = describe_decoder(
            checkpoint,
            **choices,
            norm=Norm("layer", reader.number("layer_norm_epsilon", 1e-5)),
            tied_head=reader.flag("tie_word_embeddings", True),
        )
        stop_tokens = take_stop_tokens(reader, description.vocab_size)
        reader.finish()
        prefix = prefix_of(checkpoint)
        harmless: tuple[str, ...] = HARMLESS_TENSORS
        if description.tied_head:
            require_tied_head(checkpoint, f"{prefix}wte.weight", HEAD)
            harmless = (*HARMLESS_TENSORS, HEAD)
        weights = read_places(checkpoint, gpt2_places(description, prefix, table_rows), harmless)
        return Exportable(self.name, description, weights, Decoding(stop_tokens=stop_tokens))


def take_choices(reader: ConfigReader, activation: str) -> dict[str, Any]:
    """What a configuration of GPT-2 or ImageGPT says of a description; ``activation`` is meant by a missing one."""
    width, heads, positions = reader.count("n_embd"), reader.count("n_head"), reader.count("n_positions")
    reader.take("n_ctx", positions, accepted=(positions,))
    reader.take("scale_attn_by_inverse_layer_idx", False, accepted=(False,))
    # It changes the order of two operations so that half precision does not overflow, not what they compute.
    reader.flag("reorder_and_upcast_attn", False)
    reader.take("add_cross_attention", False, accepted=(False,))
    reader.ignore("_num_labels")
    scaled = reader.flag("scale_attn_weights", True)
    return {
        "vocab_size": reader.count("vocab_size"),
        "positions": positions,
        "width": width,
        "layers": reader.count("n_layer"),
        "heads": heads,
        "mlp_width": reader.count("n_inner", 4 * width),
        "mlp": "plain",
        "activation": take_activation(reader, "activation_function", activation),
        "learned_positions": True,
        "attention_scale": 0.0 if scaled else 1.0,
        "query_key_value_bias": True,
        "attention_output_bias": True,
        "mlp_bias": True,
    }


def prefix_of(checkpoint: Checkpoint) -> str:
    """What stands before the names of all tensors but the head's."""
    return "transformer." if any(name.startswith("transformer.") for name in checkpoint.names()) else ""


def gpt2_places(description: DecoderDescription, prefix: str, table_rows: int) -> dict[str, Place]:
    """Places of all weights.

    Parameters
    ----------
    description
        The decoder.
    prefix
        See `prefix_of`.
    table_rows
        Positions of the checkpoint's own table, of which the first ``description.positions`` are read.
    """
    return {name: _place(name, shape, prefix, table_rows) for name, shape in description.weight_shapes().items()}


def _place(name: str, shape: tuple[int, ...], prefix: str, table_rows: int) -> Place:
    if name == "head.weight":
        return Place(HEAD, shape)
    if name == "position.weight":
        return Place(f"{prefix}wpe.weight", (table_rows, shape[1]), lambda table: table[: shape[0]])
    if not name.startswith("layers."):
        stem, part = name.rsplit(".", 1)
        return Place(f"{prefix}{OTHER_NAMES[stem]}.{part}", shape)
    layer, rest = layer_name(name)
    stem, part = rest.rsplit(".", 1)
    if stem not in CONV1D_NAMES:
        return Place(f"{prefix}h.{layer}.{OTHER_NAMES[stem]}.{part}", shape)
    joined = stem in JOINED
    outputs = shape[0] * (3 if joined else 1)
    first = shape[0] * JOINED.index(stem) if joined else 0

    def weight(stored: NDArray[Any]) -> NDArray[Any]:
        return np.ascontiguousarray(stored.T[first : first + shape[0]])

    return Place(f"{prefix}h.{layer}.{CONV1D_NAMES[stem]}.{part}", (*shape[1:], outputs), weight)

"""Gemma 2 (arXiv 2408.00118) and the text decoder of Gemma 3 (arXiv 2503.19786).

Both normalise what enters and what leaves attention and MLP, with weights stored as scale minus 1; multiply embeddings by the
root of the width; scale queries by a number of their own; and have layers that attend to the last few positions only. Gemma 2
bounds scores and logits by tanh and slides in every other layer. Gemma 3 has norms of queries and keys instead, slides in five
layers of six, and gives those that slide rotary positions of another base, which are never scaled.

Gemma 3 from 4B on is a model of text and pictures: its text decoder is exported, and pictures in prompts are not. Gemma 3n and
Gemma 4 are other architectures.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from coupled_sampling.export.checkpoints.contract import Checkpoint
from coupled_sampling.export.families.config import ConfigReader
from coupled_sampling.export.families.rotary_settings import OF_ONE_LENGTH, Lengths, take_rotary
from coupled_sampling.export.families.text import HEAD, LAYER_NAMES, Reading, TextFamily, take_llama
from coupled_sampling.export.families.windows import (
    FULL,
    SLIDING,
    attention_choices,
    effective_window,
    take_layer_types,
    take_window,
)
from coupled_sampling.export.graphs.description import LayerKind, Norm, QueryKeyNorm
from coupled_sampling.export.graphs.rotary import Rotary

__all__ = ["Gemma"]

TEXT_DEFAULTS: dict[str, Any] = {
    "vocab_size": 262208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-6,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
}
"""Of transformers' Gemma3TextConfig: configurations of text and pictures leave out what is as here."""

GLOBAL_BASE, LOCAL_BASE = 1000000.0, 10000.0
"""Gemma 3's rotary bases where a configuration names none: of layers that see everything, and of those that slide."""

_PICTURES = ("vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector.")
_PREFIXES = ("language_model.model.", "model.language_model.", "model.")
"""Of the text decoder's tensors, longest ones first: of files on the hub, of transformers 5, and of models of text alone."""


class Gemma(TextFamily):
    """Gemma 2, and Gemma 3's text decoder."""

    name: ClassVar[str] = "gemma"
    model_types: ClassVar[Mapping[str, str]] = {
        "gemma2": "Gemma2ForCausalLM",
        "gemma3_text": "Gemma3ForCausalLM",
        "gemma3": "Gemma3ForConditionalGeneration",
    }
    names: ClassVar[Mapping[str, str]] = LAYER_NAMES | {
        "attention_output_norm": "post_attention_layernorm",
        "mlp_norm": "pre_feedforward_layernorm",
        "mlp_output_norm": "post_feedforward_layernorm",
    }

    def reader(self, config: Mapping[str, Any], where: str, kind: str) -> ConfigReader:
        if kind != "gemma3":
            return ConfigReader(_two_rotaries(config) if kind == "gemma3_text" else config, where)
        outer = ConfigReader(config, where)
        text = outer.take("text_config")
        if not isinstance(text, Mapping):
            raise outer.refusal("text_config", text, "an object of keys and values")
        tied, stop = outer.flag("tie_word_embeddings", True), outer.take("eos_token_id", None)
        outer.ignore("vision_config", "mm_tokens_per_image", "boi_token_index", "eoi_token_index", "image_token_index")
        outer.finish()
        # The outer end tokens are those of generation; the inner one is often the class's, which ends texts but no turns.
        found = {"tie_word_embeddings": tied} | dict(text) | ({} if stop is None else {"eos_token_id": stop})
        return ConfigReader(_two_rotaries(TEXT_DEFAULTS | found), f"{where}, text_config")

    def read(self, reader: ConfigReader, where: str, kind: str, positions: int | None) -> Reading:
        third = kind != "gemma2"
        base = GLOBAL_BASE if third else LOCAL_BASE
        choices, notes = take_llama(
            reader,
            where,
            positions,
            base=base,
            scalings=OF_ONE_LENGTH,
            activation=("hidden_activation", "gelu_pytorch_tanh"),
        )
        far = near = choices.pop("rotary")
        if third:
            near = _local_rotary(reader, where, choices["head_size"], Lengths(choices["positions"], None))
        norm = choices["norm"] = Norm("rms", choices["norm"].epsilon, one_plus=True)
        bias = reader.flag("attention_bias", False)
        if third:
            # Its own code reads this softcap and never uses it.
            reader.take("attn_logit_softcapping", None, accepted=(None,))
        reader.take("use_bidirectional_attention", False, accepted=(False,))
        reader.ignore("cache_implementation", "hidden_act")
        choices |= {
            "norm_placement": "both",
            "query_key_norm": QueryKeyNorm(norm) if third else None,
            "query_key_value_bias": bias,
            "attention_output_bias": bias,
            "attention_scale": reader.number("query_pre_attn_scalar", positive=True) ** -0.5,
            "attention_softcap": 0.0 if third else _softcap(reader, where, "attn_logit_softcapping"),
            "logit_softcap": _softcap(reader, where, "final_logit_softcapping", *([None] if third else [])),
            "embedding_scale": choices["width"] ** 0.5,
            "tied_head": reader.flag("tie_word_embeddings", True),
        }
        if kind == "gemma3":
            notes = (*notes, "Prompts are text: the encoder of pictures is not exported.")
        return Reading(choices | _layers(reader, choices, third, near, far), notes)

    def prefix(self, checkpoint: Checkpoint) -> str:
        names = checkpoint.names()
        return next((prefix for prefix in _PREFIXES if any(name.startswith(prefix) for name in names)), "")

    def unused(self, checkpoint: Checkpoint) -> tuple[str, ...]:
        return tuple(name for name in checkpoint.names() if name.startswith(_PICTURES))

    def head(self, checkpoint: Checkpoint) -> str:
        outer = any(name.startswith(_PREFIXES[0]) for name in checkpoint.names())
        return f"language_model.{HEAD}" if outer else HEAD


def _two_rotaries(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration with Gemma 3's two rotary positions, as it had them before transformers 5.

    Layers that see everything then have the usual keys, those that slide have ``rope_local_base_freq``.
    """
    found, nested = dict(config), config.get("rope_parameters")
    if isinstance(nested, Mapping) and {FULL, SLIDING} & set(nested):
        if {*nested} - {FULL, SLIDING} or "rope_local_base_freq" in config:
            return found
        found["rope_parameters"] = nested.get(FULL)
        found["rope_local_base_freq"] = nested.get(SLIDING)
    return found


def _local_rotary(reader: ConfigReader, where: str, head_size: int, lengths: Lengths) -> Rotary:
    local = reader.take("rope_local_base_freq", LOCAL_BASE)
    keys = {"rope_parameters": local} if isinstance(local, Mapping) else {"rope_theta": local}
    return take_rotary(ConfigReader(keys, where), where, head_size, lengths, base=LOCAL_BASE, kinds=("default",)).rotary


def _softcap(reader: ConfigReader, where: str, key: str, default: Any = ...) -> float:
    """A bound of scores; 0 for null, which means none."""
    cap = reader.take(key, default)
    return 0.0 if cap is None else ConfigReader({key: cap}, where).number(key, positive=True)


def _layers(reader: ConfigReader, choices: Mapping[str, Any], third: bool, near: Rotary, far: Rotary) -> dict[str, Any]:
    """What each layer sees: the last of every so many sees everything."""
    layers, window = choices["layers"], take_window(reader)
    # Early configurations of Gemma 2 say the window twice.
    reader.take("sliding_window_size", window, accepted=(window,))
    pattern = reader.count("sliding_window_pattern", 6) if third else 2
    reader.take("_sliding_window_pattern", pattern, accepted=(pattern,))
    types = take_layer_types(reader, layers, [SLIDING if (i + 1) % pattern else FULL for i in range(layers)])
    if SLIDING in types and window is None:
        raise reader.refusal("sliding_window", window, f"an integer, since there are layers of the type {SLIDING!r}")
    effect = effective_window(window, choices["positions"])
    return attention_choices([LayerKind(effect, near) if one == SLIDING else LayerKind(0, far) for one in types])

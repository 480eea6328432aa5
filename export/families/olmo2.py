"""OLMo 2 (arXiv 2501.00656): Llama with norms of what leaves attention and MLP, and of all queries and all keys as a whole.

OLMo (1), OLMoE and OLMo 3 are other architectures.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from coupled_sampling.export.families.config import ConfigReader
from coupled_sampling.export.families.text import LAYER_NAMES, Reading, TextFamily, take_llama
from coupled_sampling.export.graphs.description import QueryKeyNorm

__all__ = ["Olmo2"]


class Olmo2(TextFamily):
    """OLMo 2."""

    name: ClassVar[str] = "olmo2"
    model_types: ClassVar[Mapping[str, str]] = {"olmo2": "Olmo2ForCausalLM"}
    names: ClassVar[Mapping[str, str]] = LAYER_NAMES | {
        "attention_output_norm": "post_attention_layernorm",
        "mlp_output_norm": "post_feedforward_layernorm",
    }

    def read(self, reader: ConfigReader, where: str, kind: str, positions: int | None) -> Reading:
        choices, notes = take_llama(reader, where, positions)
        bias = reader.flag("attention_bias", False)
        choices |= {
            "norm_placement": "output",
            "query_key_norm": QueryKeyNorm(choices["norm"], whole=True),
            "query_key_value_bias": bias,
            "attention_output_bias": bias,
            "tied_head": reader.flag("tie_word_embeddings", False),
        }
        return Reading(choices, notes)

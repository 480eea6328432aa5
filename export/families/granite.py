"""Granite 3 of IBM (dense): Llama with four numbers that multiply embeddings, scores of attention, what layers add, and logits.

They are muP's (Yang et al., arXiv 2203.03466). The last one divides. Granite's mixtures of experts and hybrids with Mamba layers
are other architectures.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from coupled_sampling.export.families.config import ConfigReader
from coupled_sampling.export.families.text import Reading, TextFamily, take_llama

__all__ = ["Granite"]


class Granite(TextFamily):
    """Granite, the dense ones."""

    name: ClassVar[str] = "granite"
    model_types: ClassVar[Mapping[str, str]] = {"granite": "GraniteForCausalLM"}

    def read(self, reader: ConfigReader, where: str, kind: str, positions: int | None) -> Reading:
        choices, notes = take_llama(reader, where, positions)
        bias = reader.flag("attention_bias", False)
        choices |= {
            "embedding_scale": reader.number("embedding_multiplier", 1.0, positive=True),
            # A missing key means 1, and no root of the size of a head.
            "attention_scale": reader.number("attention_multiplier", 1.0, positive=True),
            "residual_scale": reader.number("residual_multiplier", 1.0, positive=True),
            "logit_scale": 1 / reader.number("logits_scaling", 1.0, positive=True),
            "query_key_value_bias": bias,
            "attention_output_bias": bias,
            "mlp_bias": reader.flag("mlp_bias", False),
            "tied_head": reader.flag("tie_word_embeddings", False),
        }
        return Reading(choices, notes)

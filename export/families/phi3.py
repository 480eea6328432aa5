"""Phi-3 mini and medium (arXiv 2404.14219), Phi-3.5 mini, Phi-4 and Phi-4 mini: Llama with two pairs of maps stored as one.

Queries, keys and values are rows of one matrix, and so are gate and up. Some models have a sliding window in all layers, some turn
only a part of every head, and those for 128k positions have long rotary scaling; see
`coupled_sampling.export.families.rotary_settings` for what a graph makes of it. Phi-3 small and vision, Phi-3.5 MoE and Phi-4
multimodal are other architectures.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from coupled_sampling.export.checkpoints.places import Place
from coupled_sampling.export.families.config import ConfigReader
from coupled_sampling.export.families.text import (
    Reading,
    Rows,
    TextFamily,
    gate_up,
    rows_place,
    take_llama,
)
from coupled_sampling.export.families.windows import effective_window, take_window
from coupled_sampling.export.graphs.description import DecoderDescription

__all__ = ["Phi3"]

ORIGINAL_POSITIONS = 4096
"""What a missing ``original_max_position_embeddings`` means to transformers' Phi3Config, whatever ``rope_scaling`` says."""

_SCALINGS = ("default", "longrope", "su")
"""Its own code knows no others."""


class Phi3(TextFamily):
    """Phi-3 to Phi-4, the dense ones of text."""

    name: ClassVar[str] = "phi3"
    model_types: ClassVar[Mapping[str, str]] = {"phi3": "Phi3ForCausalLM"}

    def reader(self, config: Mapping[str, Any], where: str, kind: str) -> ConfigReader:
        return ConfigReader({"original_max_position_embeddings": ORIGINAL_POSITIONS} | dict(config), where)

    def read(self, reader: ConfigReader, where: str, kind: str, positions: int | None) -> Reading:
        choices, notes = take_llama(reader, where, positions, partial=True, scalings=_SCALINGS)
        for key in ("attention_bias", "mlp_bias", "lm_head_bias"):
            reader.take(key, False, accepted=(False,))
        # Of other programs' code for the same models, where only these values occur.
        for key in ("full_attn_mod", "interpolate_factor"):
            reader.take(key, 1, accepted=(1,))
        choices |= {
            "attention_window": effective_window(take_window(reader, None), choices["positions"]),
            "tied_head": reader.flag("tie_word_embeddings", False),
        }
        return Reading(choices, notes)

    def place(
        self, description: DecoderDescription, name: str, shape: tuple[int, ...], prefix: str, head: str
    ) -> Place:
        query, key = description.heads * description.head_size, description.kv_heads * description.head_size
        rows = Rows("self_attn.qkv_proj", query + 2 * key)
        parts = {
            "attention.query.weight": (rows, 0),
            "attention.key.weight": (rows, query),
            "attention.value.weight": (rows, query + key),
        }
        plain = super().place
        fused = parts | gate_up(description)
        return rows_place(fused, name, shape, prefix) or plain(description, name, shape, prefix, head)

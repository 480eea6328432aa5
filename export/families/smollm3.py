"""SmolLM3: Llama in which every fourth layer has no rotary positions (NoPE, arXiv 2501.18795).

``no_rope_layers`` has an entry for every layer, and 1 means that the layer *has* rotary positions. Sliding windows, where they are
switched on, are those of the layers without.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from coupled_sampling.export.families.config import ConfigReader
from coupled_sampling.export.families.text import Reading, TextFamily, take_llama
from coupled_sampling.export.families.windows import (
    FULL,
    SLIDING,
    attention_choices,
    effective_window,
    take_layer_types,
    take_window,
)
from coupled_sampling.export.graphs.description import LayerKind

__all__ = ["SmolLM3"]


class SmolLM3(TextFamily):
    """SmolLM3."""

    name: ClassVar[str] = "smollm3"
    model_types: ClassVar[Mapping[str, str]] = {"smollm3": "SmolLM3ForCausalLM"}

    def read(self, reader: ConfigReader, where: str, kind: str, positions: int | None) -> Reading:
        choices, notes = take_llama(reader, where, positions, base=2000000.0)
        layers, rotary = choices["layers"], choices.pop("rotary")
        every = reader.count("no_rope_layer_interval", 4)
        turning = reader.counts("no_rope_layers", [int((i + 1) % every != 0) for i in range(layers)])
        if len(turning) != layers or max(turning) > 1:
            raise reader.refusal(
                "no_rope_layers", turning, f"{layers} times 1, for a layer with rotary positions, or 0"
            )
        window = take_window(reader, None)
        switched = reader.flag("use_sliding_window", False) and window is not None
        usual = [SLIDING if switched and not turns else FULL for turns in turning]
        types = take_layer_types(reader, layers, usual)
        if SLIDING in types and not switched:
            raise reader.refusal(
                "layer_types", list(types), f"only {FULL!r}, since sliding windows are not switched on"
            )
        effect = effective_window(window, choices["positions"])
        kinds = [
            LayerKind(effect if one == SLIDING else 0, rotary if turns else None)
            for one, turns in zip(types, turning, strict=True)
        ]
        bias = reader.flag("attention_bias", False)
        reader.ignore("max_window_layers")
        choices |= {
            "query_key_value_bias": bias,
            "attention_output_bias": bias,
            "mlp_bias": reader.flag("mlp_bias", False),
            "tied_head": reader.flag("tie_word_embeddings", True),
        }
        return Reading(choices | attention_choices(kinds), notes)

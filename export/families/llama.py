"""Llama and its relatives: Llama 1 to 3 and SmolLM2, Mistral, Qwen 2 and 2.5, Qwen 3.

One architecture (Touvron et al., arXiv 2302.13971): RMS norms before attention and a gated MLP, rotary positions, grouped
keys and values. The relatives differ in which maps have biases, in Qwen 3's norm of queries and keys, and in their sliding
windows: Mistral's hold for all layers, Qwen's for the later ones and only where they are switched on. Llama's own code knows
none, so that a configuration that names one is refused where it would have an effect. Mixtures of experts are other
architectures.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from coupled_sampling.export.checkpoints.contract import CheckpointError
from coupled_sampling.export.families.config import ConfigReader
from coupled_sampling.export.families.text import Reading, TextFamily, take_llama
from coupled_sampling.export.families.windows import (
    FULL,
    SLIDING,
    attention_choices,
    effective_window,
    kinds_of,
    take_layer_types,
    take_window,
)
from coupled_sampling.export.graphs.description import QueryKeyNorm

__all__ = ["Llama"]


@dataclass(frozen=True)
class Relative:
    """What a relative may have.

    Parameters
    ----------
    architecture
        What ``architectures`` calls it.
    attention_bias
        Accepted values of that key; the first one is meant by a missing key.
    output_bias
        Whether ``attention_bias`` holds for the output of attention, too.
    mlp_bias
        Accepted values.
    query_key_norm
        Whether it has one.
    window
        Which layers have sliding windows: "none", "all", or "switched" by ``use_sliding_window`` from ``max_window_layers`` on.
    """

    architecture: str
    attention_bias: tuple[bool, ...]
    output_bias: bool = False
    mlp_bias: tuple[bool, ...] = (False,)
    query_key_norm: bool = False
    window: str = "switched"


RELATIVES = {
    "llama": Relative("LlamaForCausalLM", (False, True), output_bias=True, mlp_bias=(False, True), window="none"),
    "mistral": Relative("MistralForCausalLM", (False,), window="all"),
    "qwen2": Relative("Qwen2ForCausalLM", (True,)),
    "qwen3": Relative("Qwen3ForCausalLM", (False, True), output_bias=True, query_key_norm=True),
}
"""By ``model_type``."""


class Llama(TextFamily):
    """Llama 1 to 3, SmolLM2, Mistral, Qwen 2 to 3."""

    name: ClassVar[str] = "llama"
    model_types: ClassVar[Mapping[str, str]] = {name: relative.architecture for name, relative in RELATIVES.items()}

    def reader(self, config: Mapping[str, Any], where: str, kind: str) -> ConfigReader:
        # Qwen 3's own code takes 128 for a missing head_dim, the others divide. Only Llama has a key head for each head then.
        missing: dict[str, dict[str, Any]] = {"llama": {"num_key_value_heads": None}, "qwen3": {"head_dim": 128}}
        return ConfigReader(missing.get(kind, {}) | dict(config), where)

    def read(self, reader: ConfigReader, where: str, kind: str, positions: int | None) -> Reading:
        relative = RELATIVES[kind]
        choices, notes = take_llama(reader, where, positions)
        bias = reader.take("attention_bias", relative.attention_bias[0], accepted=relative.attention_bias)
        kinds = kinds_of(*_windows(reader, where, kind, choices), choices.pop("rotary"))
        reader.take("rope_interleaved", False, accepted=(False,))
        reader.ignore("is_llama_config")
        choices |= {
            "query_key_norm": QueryKeyNorm(choices["norm"]) if relative.query_key_norm else None,
            "query_key_value_bias": bias,
            "attention_output_bias": bias and relative.output_bias,
            "mlp_bias": reader.take("mlp_bias", False, accepted=relative.mlp_bias),
            "tied_head": reader.flag("tie_word_embeddings", False),
        }
        return Reading(choices | attention_choices(kinds), notes)


def _windows(reader: ConfigReader, where: str, kind: str, choices: Mapping[str, Any]) -> tuple[tuple[str, ...], int]:
    """The type of every layer, and the window of those that slide; 0 for one without effect."""
    # A missing window means 4096 to the code of Mistral and Qwen, null means none: so it must be said.
    layers, positions, own = choices["layers"], choices["positions"], RELATIVES[kind].window
    if own == "switched":
        reader.take("use_mrope", False, accepted=(False,))
        on, first = reader.flag("use_sliding_window", False), reader.count("max_window_layers", 28, least=0)
        window = take_window(reader) if on else None
        reader.ignore("sliding_window")
        usual = [SLIDING if window is not None and i >= first else FULL for i in range(layers)]
        types = take_layer_types(reader, layers, usual)
        if SLIDING in types and window is None:
            raise reader.refusal("layer_types", list(types), f"only {FULL!r}, since there is no sliding window")
        return types, effective_window(window, positions)
    window = take_window(reader) if own == "all" else take_window(reader, None)
    effect = effective_window(window, positions)
    types = take_layer_types(reader, layers, [FULL if window is None else SLIDING] * layers)
    if effect and own == "none":
        raise CheckpointError(
            f"{where}: sliding_window is {window}, and Llama's own code has no windows; with positions at most {window} it has "
            f"no effect, positions is {positions}"
        )
    if effect and FULL in types:
        raise reader.refusal(
            "layer_types", list(types), f"{SLIDING!r} for all: this architecture's own code heeds nothing else"
        )
    return (SLIDING,) * layers, effect

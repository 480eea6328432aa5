"""Llama and its relatives: Llama 1 to 3 and SmolLM2, Mistral, Qwen 2 and 2.5, Qwen 3.

One architecture (Touvron et al., arXiv 2302.13971): RMS norms before attention and a gated MLP, rotary positions, grouped
keys and values. The relatives differ in which maps have biases, in Qwen 3's norm of queries and keys, and in the keys
with which a configuration speaks of sliding windows. Sliding windows themselves are not exported: a window at least as long
as the longest sequence has no effect and is accepted, any other is refused. Mixtures of experts are other architectures.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from coupled_sampling.arguments import is_whole, shown
from coupled_sampling.export.checkpoints.contract import Checkpoint, CheckpointError
from coupled_sampling.export.checkpoints.places import Place, layer_name, read_places, require_tied_head
from coupled_sampling.export.families.config import ConfigReader
from coupled_sampling.export.families.contract import Decoding, Exportable
from coupled_sampling.export.families.rotary_settings import take_rotary
from coupled_sampling.export.families.settings import choose_positions, describe, take_activation, take_stop_tokens
from coupled_sampling.export.graphs.description import DecoderDescription, Norm, QueryKeyNorm

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
        Which keys speak of sliding windows: "optional", "required" or "switched" by ``use_sliding_window``.
    """

    architecture: str
    attention_bias: tuple[bool, ...]
    output_bias: bool = False
    mlp_bias: tuple[bool, ...] = (False,)
    query_key_norm: bool = False
    window: str = "switched"


RELATIVES = {
    "llama": Relative("LlamaForCausalLM", (False, True), output_bias=True, mlp_bias=(False, True), window="optional"),
    "mistral": Relative("MistralForCausalLM", (False,), window="required"),
    "qwen2": Relative("Qwen2ForCausalLM", (True,)),
    "qwen3": Relative("Qwen3ForCausalLM", (False, True), output_bias=True, query_key_norm=True),
}
"""By ``model_type``."""

LAYER_NAMES = {
    "attention_norm": "input_layernorm",
    "attention.query": "self_attn.q_proj",
    "attention.key": "self_attn.k_proj",
    "attention.value": "self_attn.v_proj",
    "attention.query_norm": "self_attn.q_norm",
    "attention.key_norm": "self_attn.k_norm",
    "attention.output": "self_attn.o_proj",
    "mlp_norm": "post_attention_layernorm",
    "mlp.gate": "mlp.gate_proj",
    "mlp.up": "mlp.up_proj",
    "mlp.down": "mlp.down_proj",
}
EMBEDDING, HEAD = "embed_tokens.weight", "lm_head.weight"
HARMLESS_TENSORS = ("rotary_emb.inv_freq",)


class Llama:
    """Llama 1 to 3, SmolLM2, Mistral, Qwen 2 to 3."""

    name = "llama"

    def recognises(self, config: Mapping[str, Any]) -> bool:
        """Whether ``model_type``, or ``architectures`` without it, is one of `RELATIVES`."""
        return _relative(config) is not None

    def load(self, checkpoint: Checkpoint, positions: int | None = None) -> Exportable:
        kind = _relative(checkpoint.config)
        if kind is None:
            raise CheckpointError(
                f"{checkpoint.path}: model_type is {shown(checkpoint.config.get('model_type'))}, expected one of "
                f"{', '.join(RELATIVES)}; is the family right?"
            )
        where = f"the configuration of {checkpoint.path}"
        reader = ConfigReader(checkpoint.config, where)
        vocab_size = reader.count("vocab_size")
        stop_tokens = take_stop_tokens(reader, vocab_size)
        description = _description(checkpoint, reader, where, kind, positions, vocab_size)
        reader.finish()
        prefix = "model." if any(name.startswith("model.") for name in checkpoint.names()) else ""
        harmless: tuple[str, ...] = HARMLESS_TENSORS
        if description.tied_head:
            require_tied_head(checkpoint, prefix + EMBEDDING, HEAD)
            harmless = (*HARMLESS_TENSORS, HEAD)
        places = {name: Place(_tensor(name, prefix), shape) for name, shape in description.weight_shapes().items()}
        weights = read_places(checkpoint, places, harmless)
        return Exportable(self.name, description, weights, Decoding(stop_tokens=stop_tokens))


def _relative(config: Mapping[str, Any]) -> str | None:
    if config.get("model_type") is not None:
        return config["model_type"] if config["model_type"] in RELATIVES else None
    named = config.get("architectures") or ()
    return next((name for name, relative in RELATIVES.items() if relative.architecture in named), None)


def _description(
    checkpoint: Checkpoint, reader: ConfigReader, where: str, kind: str, positions: int | None, vocab_size: int
) -> DecoderDescription:
    relative = RELATIVES[kind]
    width, heads = reader.count("hidden_size"), reader.count("num_attention_heads")
    # Qwen 3's own code takes 128 for a missing head_dim, the others divide.
    head_size = reader.count("head_dim", 128 if kind == "qwen3" else width // heads)
    # A missing key means another number in every relative but Llama.
    kv_heads = reader.count("num_key_value_heads", heads) if kind == "llama" else reader.count("num_key_value_heads")
    norm = Norm("rms", reader.number("rms_norm_eps"))
    bias = reader.take("attention_bias", relative.attention_bias[0], accepted=relative.attention_bias)
    longest = choose_positions(positions, reader.count("max_position_embeddings"))
    _refuse_window(reader, where, kind, longest)
    _ignore_hints(reader)
    return describe(
        checkpoint,
        vocab_size=vocab_size,
        positions=longest,
        width=width,
        layers=reader.count("num_hidden_layers"),
        heads=heads,
        kv_heads=kv_heads or heads,
        head_size=head_size,
        mlp_width=reader.count("intermediate_size"),
        norm=norm,
        activation=take_activation(reader, "hidden_act", "silu"),
        rotary=take_rotary(reader, where, head_size),
        query_key_norm=QueryKeyNorm(norm) if relative.query_key_norm else None,
        query_key_value_bias=bias,
        attention_output_bias=bias and relative.output_bias,
        mlp_bias=reader.take("mlp_bias", False, accepted=relative.mlp_bias),
        tied_head=reader.flag("tie_word_embeddings", False),
    )


def _refuse_window(reader: ConfigReader, where: str, kind: str, positions: int) -> None:
    layers = reader.take("layer_types", [])
    if not isinstance(layers, list) or any(layer != "full_attention" for layer in layers):
        raise CheckpointError(f"{where}: layer_types is {shown(layers)}, and only 'full_attention' can be exported")
    window = None
    if RELATIVES[kind].window == "switched":
        reader.take("use_sliding_window", False, accepted=(False,))
        reader.take("use_mrope", False, accepted=(False,))
        reader.ignore("sliding_window", "max_window_layers")
    elif RELATIVES[kind].window == "required":
        # A missing key means 4096 to Mistral's own code, null means none.
        window = reader.take("sliding_window")
    else:
        window = reader.take("sliding_window", None)
    if window is not None and not is_whole(window):
        raise reader.refusal("sliding_window", window, "an integer or null")
    if window is not None and window < positions:
        raise CheckpointError(
            f"{where}: sliding_window is {window}, and sliding windows are not exported; with positions at most {window} it has "
            f"no effect, positions is {positions}"
        )


def _ignore_hints(reader: ConfigReader) -> None:
    """Keys that some files have for other programs' sake."""
    reader.take("rope_interleaved", False, accepted=(False,))
    reader.ignore("is_llama_config", "transformers.js_config", "max_sequence_length")


def _tensor(name: str, prefix: str) -> str:
    """Hugging Face's name of the weight ``name``."""
    if name.startswith("layers."):
        layer, rest = layer_name(name)
        stem, part = rest.rsplit(".", 1)
        return f"{prefix}layers.{layer}.{LAYER_NAMES[stem]}.{part}"
    return {"embedding.weight": prefix + EMBEDDING, "norm.weight": f"{prefix}norm.weight", "head.weight": HEAD}[name]

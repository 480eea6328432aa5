"""GGUF's metadata as the configuration that Hugging Face's ``config.json`` would hold.

Four architectures: ``llama`` (also Mistral, SmolLM2 and TinyLlama files), ``qwen2`` (also Qwen2.5), ``qwen3`` and
``gpt2``. Every key is used, or is known to describe the file and nothing that is computed, or has a value with which it changes
nothing; any other key stops the export by its name and value.

Llama 3's scaling of rotary frequencies is not in the metadata: the converter stores its result, a factor for each
frequency, as the tensor ``rope_freqs.weight``. It comes out as ``rope_scaling = {"rope_type": "frequency_factors",
"frequency_factors": [...]}`` with head_dim / 2 entries: frequency i is rope_theta ** (-2i / head_dim) / factor i. That is
exact, whereas the four numbers it was made from cannot be told from it. No ``config.json`` has this type, so that code
which does not know it refuses it.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from coupled_sampling.arguments import is_whole, shown
from coupled_sampling.export.checkpoints.contract import CheckpointError

__all__ = ["ARCHITECTURES", "Architecture", "check_architecture", "huggingface_config"]


class Architecture(NamedTuple):
    """What a GGUF architecture is called elsewhere, and its conventions."""

    class_name: str
    """Entry of ``architectures`` in ``config.json``."""
    interleaved: bool
    """Whether the rows of q and k are stored interleaved, see `rotary_layout`."""


ARCHITECTURES = {
    "llama": Architecture("LlamaForCausalLM", interleaved=True),
    "qwen2": Architecture("Qwen2ForCausalLM", interleaved=False),
    "qwen3": Architecture("Qwen3ForCausalLM", interleaved=False),
    "gpt2": Architecture("GPT2LMHeadModel", interleaved=False),
}

NEUTRAL = {
    "expert_count": (0,),
    "logit_scale": (0, 1),
    "embedding_scale": (0, 1),
    "residual_scale": (0, 1),
    "attention.scale": (0,),
    "attention.clamp_kqv": (0,),
    "attention.max_alibi_bias": (0,),
    "attention.causal": (True,),
    "attn_logit_softcapping": (0,),
    "final_logit_softcapping": (0,),
    "use_parallel_residual": (False,),
    "expert_used_count": (0,),
    "nextn_predict_layers": (0,),
    "rope.scaling.attn_factor": (1,),
    "tensor_data_layout": ("reference", "Meta AI original pth"),
}
"""Keys that change the function, and the values with which they do not."""

_KEYS = {
    "used": "block_count context_length embedding_length feed_forward_length vocab_size attention.head_count",
    "rotary": "attention.head_count_kv attention.key_length attention.value_length attention.layer_norm_rms_epsilon "
    "attention.sliding_window rope.dimension_count rope.freq_base rope.scale_linear rope.scaling.type rope.scaling.factor",
    "gpt2": "attention.head_count_kv attention.layer_norm_epsilon",
    # Without this scaling nothing reads them.
    "yarn": "rope.scaling.yarn_beta_fast rope.scaling.yarn_beta_slow rope.scaling.yarn_attn_factor "
    "rope.scaling.yarn_ext_factor rope.scaling.yarn_log_multiplier",
    "describing": "rope.scaling.finetuned rope.scaling.original_context_length pooling_type decoder_start_token_id",
}
"""Keys below the architecture's name."""
_OTHERS = ("general.", "tokenizer.", "quantize.", "split.", "imatrix.", "mradermacher.")
"""What the file is called, how it was made, and its tokenizer, which has a reader of its own."""

REQUIRED: Any = object()


def huggingface_config(
    metadata: Mapping[str, Any], tensors: Container[str], frequency_factors: Sequence[float] | None = None
) -> dict[str, Any]:
    """The configuration of a GGUF file under the keys of ``config.json``.

    Parameters
    ----------
    metadata
        The file's keys and values.
    tensors
        GGUF's names of its tensors: they tell tied embeddings and biases.
    frequency_factors
        The tensor ``rope_freqs.weight``, (head_dim / 2,), if there is one.

    Raises
    ------
    CheckpointError
        The architecture is unknown, a key is missing, or one asks for what the architecture here does not have.

    Examples
    --------
    >>> from coupled_sampling.export.checkpoints.gguf_config import huggingface_config
    >>> metadata = {"general.architecture": "gpt2", "gpt2.context_length": 64, "gpt2.embedding_length": 16}
    >>> metadata |= {"gpt2.block_count": 2, "gpt2.attention.head_count": 2, "gpt2.feed_forward_length": 64}
    >>> metadata |= {"gpt2.attention.layer_norm_epsilon": 1e-5, "gpt2.vocab_size": 32}
    >>> config = huggingface_config(metadata, tensors=["token_embd.weight"])
    >>> config["model_type"], config["n_embd"], config["layer_norm_epsilon"]
    ('gpt2', 16, 1e-05)
    """
    name = check_architecture(metadata.get("general.architecture"))
    _refuse_unknown(metadata, name)
    for key, values in NEUTRAL.items():
        value = metadata.get(f"{name}.{key}", values[0])
        if value not in values:
            raise CheckpointError(
                f"{name}.{key} is {shown(value)}, expected {values[0]!r}: a variant of {name} that cannot be exported"
            )
    config = {
        "architectures": [ARCHITECTURES[name].class_name],
        "model_type": name,
        "vocab_size": _vocabulary_size(metadata, name),
        "bos_token_id": metadata.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": metadata.get("tokenizer.ggml.eos_token_id"),
        "tie_word_embeddings": "output.weight" not in tensors,
    }
    if name == "gpt2":
        return config | _gpt2(metadata)
    return config | _rotary(metadata, name, frequency_factors) | _llama(metadata, name, tensors)


def check_architecture(name: Any) -> str:
    """The architecture ``name``; one that is not known is a `CheckpointError`."""
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise CheckpointError(
            f"general.architecture is {shown(name)}, expected one of {', '.join(ARCHITECTURES)}; "
            "this model cannot be exported from GGUF"
        )
    return name


def _refuse_unknown(metadata: Mapping[str, Any], name: str) -> None:
    kinds = ["used", "describing", "gpt2" if name == "gpt2" else "rotary"]
    kinds += ["yarn"] if metadata.get(f"{name}.rope.scaling.type") == "yarn" else []
    keys = [*NEUTRAL, *(key for kind in kinds for key in _KEYS[kind].split())]
    known = {f"{name}.{key}" for key in keys}
    left = [key for key in metadata if key not in known and not key.startswith(_OTHERS)]
    if left:
        listed = ", ".join(f"{key} = {shown(metadata[key])}" for key in sorted(left)[:8])
        raise CheckpointError(
            f"metadata has keys that are not understood: {listed}. They may change the numbers, so the export stops here; if they "
            "have no effect, gguf-new-metadata --remove-metadata KEY takes them out of the file"
        )
    if metadata.get("general.type", "model") != "model":
        raise CheckpointError(f"general.type is {shown(metadata['general.type'])}, expected 'model'")


def _llama(metadata: Mapping[str, Any], name: str, tensors: Container[str]) -> dict[str, Any]:
    heads = _count(metadata, f"{name}.attention.head_count")
    config = {
        "hidden_act": "silu",
        "hidden_size": _count(metadata, f"{name}.embedding_length"),
        "num_hidden_layers": _count(metadata, f"{name}.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": _count(metadata, f"{name}.attention.head_count_kv", heads),
        "head_dim": _head_size(metadata, name),
        "intermediate_size": _count(metadata, f"{name}.feed_forward_length"),
        "max_position_embeddings": _count(metadata, f"{name}.context_length"),
        "rms_norm_eps": _number(metadata, f"{name}.attention.layer_norm_rms_epsilon"),
        "attention_bias": "blk.0.attn_q.bias" in tensors,
        "mlp_bias": "blk.0.ffn_gate.bias" in tensors,
    }
    window = metadata.get(f"{name}.attention.sliding_window")
    return config | ({"sliding_window": window} if window else {})


def _gpt2(metadata: Mapping[str, Any]) -> dict[str, Any]:
    positions, heads = _count(metadata, "gpt2.context_length"), _count(metadata, "gpt2.attention.head_count")
    if _count(metadata, "gpt2.attention.head_count_kv", heads) != heads:
        raise CheckpointError(
            f"gpt2.attention.head_count_kv is {metadata['gpt2.attention.head_count_kv']}, expected {heads}, one for each head"
        )
    return {
        "activation_function": "gelu_new",
        "n_embd": _count(metadata, "gpt2.embedding_length"),
        "n_layer": _count(metadata, "gpt2.block_count"),
        "n_head": heads,
        "n_inner": _count(metadata, "gpt2.feed_forward_length"),
        "n_positions": positions,
        "n_ctx": positions,
        "layer_norm_epsilon": _number(metadata, "gpt2.attention.layer_norm_epsilon"),
    }


def _rotary(metadata: Mapping[str, Any], name: str, factors: Sequence[float] | None) -> dict[str, Any]:
    head_size = _head_size(metadata, name)
    turned = metadata.get(f"{name}.rope.dimension_count", head_size)
    if turned != head_size:
        raise CheckpointError(
            f"{name}.rope.dimension_count is {shown(turned)}, expected the size of a head, {head_size}: "
            "partial rotary embeddings are not read from GGUF"
        )
    return {
        "rope_theta": _number(metadata, f"{name}.rope.freq_base", 10000.0),
        "rope_scaling": _rotary_scaling(metadata, name, factors, head_size),
    }


def _rotary_scaling(
    metadata: Mapping[str, Any], name: str, factors: Sequence[float] | None, head_size: int
) -> dict[str, Any] | None:
    prefix = f"{name}.rope.scaling"
    linear = _number(metadata, f"{name}.rope.scale_linear", 1.0)
    factor = _number(metadata, f"{prefix}.factor", linear)
    kind = metadata.get(f"{prefix}.type", "linear" if factor != 1 else "none")  # as llama.cpp has it
    if factors is not None:
        if kind != "none" or len(factors) != head_size // 2:
            raise CheckpointError(
                f"rope_freqs.weight has {len(factors)} entries beside {prefix}.type {shown(kind)}, "
                f"expected {head_size // 2} beside 'none'"
            )
        return {"rope_type": "frequency_factors", "frequency_factors": list(factors)}
    if kind == "none":
        return None
    if kind not in ("linear", "yarn"):
        raise CheckpointError(
            f"{prefix}.type is {shown(kind)}, expected none, linear or yarn; use the safetensors folder"
        )
    scaling = {"rope_type": kind, "factor": factor}
    if kind == "linear":
        return scaling
    scaling["original_max_position_embeddings"] = _count(metadata, f"{prefix}.original_context_length")
    for own, key in (("yarn_beta_fast", "beta_fast"), ("yarn_beta_slow", "beta_slow")):
        if f"{prefix}.{own}" in metadata:
            scaling[key] = _number(metadata, f"{prefix}.{own}")
    for own in ("attn_factor", "yarn_attn_factor", "yarn_ext_factor", "yarn_log_multiplier"):
        if f"{prefix}.{own}" in metadata:
            raise CheckpointError(
                f"{prefix}.{own} is set, a variant of YaRN not read from GGUF; use the safetensors folder"
            )
    return scaling


def _head_size(metadata: Mapping[str, Any], name: str) -> int:
    width, heads = _count(metadata, f"{name}.embedding_length"), _count(metadata, f"{name}.attention.head_count")
    size = _count(metadata, f"{name}.attention.key_length", width // heads)
    values = _count(metadata, f"{name}.attention.value_length", size)
    if values != size:
        raise CheckpointError(
            f"{name}.attention.value_length is {values}, key_length is {size}, expected the same; "
            "heads of two sizes cannot be exported"
        )
    return size


def _vocabulary_size(metadata: Mapping[str, Any], name: str) -> int:
    tokens = metadata.get("tokenizer.ggml.tokens")
    return _count(metadata, f"{name}.vocab_size", len(tokens) if isinstance(tokens, list) else REQUIRED)


def _value(metadata: Mapping[str, Any], key: str, default: Any = REQUIRED) -> Any:
    value = metadata.get(key, default)
    if value is REQUIRED:
        raise CheckpointError(
            f"metadata {key} is missing; the file was not made by llama.cpp's converter, convert again"
        )
    return value


def _count(metadata: Mapping[str, Any], key: str, default: Any = REQUIRED) -> int:
    value = _value(metadata, key, default)
    if not is_whole(value) or value < 1:
        raise CheckpointError(f"metadata {key} is {shown(value)}, expected a positive integer, the same for all layers")
    return int(value)


def _number(metadata: Mapping[str, Any], key: str, default: Any = REQUIRED) -> float:
    """The float of fewest digits that rounds to the stored float32: 1e-05 and not 9.999999747378752e-06."""
    value = _value(metadata, key, default)
    right = isinstance(value, int | float) and not isinstance(value, bool)
    if not right or not abs(value) <= float(np.finfo(np.float32).max):  # nor NaN
        raise CheckpointError(f"metadata {key} is {shown(value)}, expected a number that float32 has")
    return float(str(np.float32(value)))

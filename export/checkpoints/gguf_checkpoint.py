"""GGUF files under Hugging Face's names: the same tensors, shapes and configuration keys as the model's own folder.

What differs in a GGUF file is undone here, per architecture: names (``blk.3.attn_q`` is
``model.layers.3.self_attn.q_proj``), the interleaved query and key rows of ``llama`` (see `rotary_layout`), and GPT-2's
linear layers, which Hugging Face stores as (inputs, outputs). What quantisation lost stays lost.

Architectures not listed are refused by name, and so is any tensor without a Hugging Face name: a graph built from part
of a model is another model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.arguments import shown
from coupled_sampling.export.checkpoints.contract import Checkpoint, CheckpointError, TensorInfo
from coupled_sampling.export.checkpoints.gguf_config import ARCHITECTURES, check_architecture, huggingface_config
from coupled_sampling.export.checkpoints.gguf_file import PLAIN, GgufFile
from coupled_sampling.export.checkpoints.rotary_layout import unpermute_rotary

__all__ = ["huggingface_name", "open_gguf"]

ROTARY_FACTORS = "rope_freqs.weight"
"""Becomes ``rope_scaling`` of the configuration; Hugging Face's files have no such tensor."""

LLAMA_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "blk.*.attn_norm": "model.layers.*.input_layernorm",
    "blk.*.attn_q": "model.layers.*.self_attn.q_proj",
    "blk.*.attn_k": "model.layers.*.self_attn.k_proj",
    "blk.*.attn_v": "model.layers.*.self_attn.v_proj",
    "blk.*.attn_q_norm": "model.layers.*.self_attn.q_norm",
    "blk.*.attn_k_norm": "model.layers.*.self_attn.k_norm",
    "blk.*.attn_output": "model.layers.*.self_attn.o_proj",
    "blk.*.ffn_norm": "model.layers.*.post_attention_layernorm",
    "blk.*.ffn_gate": "model.layers.*.mlp.gate_proj",
    "blk.*.ffn_up": "model.layers.*.mlp.up_proj",
    "blk.*.ffn_down": "model.layers.*.mlp.down_proj",
}
GPT2_NAMES = {
    "token_embd": "transformer.wte",
    "position_embd": "transformer.wpe",
    "output_norm": "transformer.ln_f",
    "output": "lm_head",
    "blk.*.attn_norm": "transformer.h.*.ln_1",
    "blk.*.attn_qkv": "transformer.h.*.attn.c_attn",
    "blk.*.attn_output": "transformer.h.*.attn.c_proj",
    "blk.*.ffn_norm": "transformer.h.*.ln_2",
    "blk.*.ffn_up": "transformer.h.*.mlp.c_fc",
    "blk.*.ffn_down": "transformer.h.*.mlp.c_proj",
}
_MOST_FACTORS = 2**16
NAMES = {"llama": LLAMA_NAMES, "qwen2": LLAMA_NAMES, "qwen3": LLAMA_NAMES, "gpt2": GPT2_NAMES}

TRANSPOSED = (".c_attn.weight", ".c_proj.weight", ".c_fc.weight")
"""GPT-2's ``Conv1D`` weights, (inputs, outputs) in Hugging Face's files."""


def huggingface_name(name: str, architecture: str) -> str | None:
    """Hugging Face's name of GGUF's tensor ``name``, None if it has none.

    >>> huggingface_name("blk.3.attn_q.weight", "llama")
    'model.layers.3.self_attn.q_proj.weight'
    """
    stem, _, part = name.rpartition(".")
    layer = re.match(r"blk\.(\d+)\.", stem)
    pattern = stem if layer is None else f"blk.*.{stem[layer.end() :]}"
    found = NAMES[architecture].get(pattern)
    if found is None or part not in ("weight", "bias"):
        return None
    return f"{found if layer is None else found.replace('*', layer[1])}.{part}"


def open_gguf(path: Path) -> Checkpoint:
    """Open a ``.gguf`` file under Hugging Face's names; ``metadata`` of the result has the file's own keys.

    Raises
    ------
    CheckpointError
        The file is damaged, of an unknown architecture or type, one part of several, or holds a tensor without a name.
    MissingDependency
        ``gguf`` is not installed.
    """
    file: GgufFile | None = None
    try:
        file = GgufFile(path, _check_key)
        return _checkpoint(path, file)
    except CheckpointError as error:
        if file is not None:
            file.close()
        raise CheckpointError(str(error) if str(path) in str(error) else f"{path}: {error}") from error


def _check_key(key: str, value: Any) -> None:
    if key == "general.architecture":
        check_architecture(value)


def _checkpoint(path: Path, file: GgufFile) -> Checkpoint:
    parts = file.metadata.get("split.count", 0)
    if parts not in (0, 1):
        raise CheckpointError(
            f"it is one of {shown(parts)} parts; join them with llama-gguf-split --merge and open the result"
        )
    factors = _rotary_factors(file) if ROTARY_FACTORS in file.tensors else None
    config = huggingface_config(file.metadata, file.tensors, factors)
    architecture = str(file.metadata["general.architecture"])
    sources: dict[str, str] = {}
    tensors: dict[str, TensorInfo] = {}
    for own, entry in file.tensors.items():
        if own == ROTARY_FACTORS:
            continue
        name = huggingface_name(own, architecture)
        if name is None:
            raise CheckpointError(
                f"tensor {shown(own)} is no part of the architecture {architecture!r} as this library knows it; "
                "the file is of a variant (experts, adapters, several modalities) that cannot be exported"
            )
        shape = entry.shape[::-1] if _is_transposed(name, architecture) else entry.shape
        dtype = PLAIN.get(entry.type, "bfloat16" if entry.type == "BF16" else entry.type)
        sources[name] = own
        tensors[name] = TensorInfo(shape, dtype, entry.bytes, path)

    def load(name: str) -> NDArray[Any]:
        return _in_huggingface_layout(name, file.read(sources[name]), architecture, config)

    return Checkpoint(path, "gguf", config, tensors, load, file.metadata, file.close)


def _rotary_factors(file: GgufFile) -> list[float]:
    shape = file.tensors[ROTARY_FACTORS].shape
    if len(shape) != 1 or shape[0] > _MOST_FACTORS:
        raise CheckpointError(
            f"tensor {ROTARY_FACTORS!r} has shape {shape}, expected a factor for each of at most {_MOST_FACTORS} pairs of a head"
        )
    return [float(factor) for factor in file.read(ROTARY_FACTORS)]


def _in_huggingface_layout(
    name: str, array: NDArray[Any], architecture: str, config: Mapping[str, Any]
) -> NDArray[Any]:
    if _is_transposed(name, architecture):
        return np.ascontiguousarray(array.T)
    if ARCHITECTURES[architecture].interleaved and ".q_proj." in name:
        return unpermute_rotary(array, config["num_attention_heads"])
    if ARCHITECTURES[architecture].interleaved and ".k_proj." in name:
        return unpermute_rotary(array, config["num_key_value_heads"])
    return array


def _is_transposed(name: str, architecture: str) -> bool:
    return architecture == "gpt2" and name.endswith(TRANSPOSED)

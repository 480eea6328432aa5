"""Families of models: each maps the checkpoints of one kind to a description and weights.

A family is a file of this package with a class, and a line in `FAMILIES`. Its file knows the model's tokens and, where there are
any, its pictures. Files are imported when a checkpoint is looked at.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from coupled_sampling.arguments import shown
from coupled_sampling.errors import CheckpointError, InvalidArgument
from coupled_sampling.export.checkpoints.contract import Checkpoint
from coupled_sampling.export.families.contract import Decoding, Exportable, Family, NamedByTensors

__all__ = [
    "FAMILIES",
    "Decoding",
    "Exportable",
    "Family",
    "find_family",
]

FAMILIES: dict[str, str] = {
    "llama": "Llama",
    "gemma": "Gemma",
    "phi3": "Phi3",
    "olmo2": "Olmo2",
    "smollm3": "SmolLM3",
    "granite": "Granite",
    "gpt2": "Gpt2",
    "imagegpt": "ImageGpt",
    "janus": "Janus",
    "llamagen": "LlamaGen",
    "chameleon": "Chameleon",
    "emu3": "Emu3",
    "glm_image": "GlmImage",
    "cosmos": "Cosmos",
}
"""Class of every family, by the name that ``--family`` takes and its file has."""

_EXPERTS = "a mixture of experts, of which no graph can be written"
_PICTURES = "a model that takes pictures, and not the text decoder alone"
UNSUPPORTED: dict[str, str] = {
    "mixtral": _EXPERTS,
    "qwen2_moe": _EXPERTS,
    "qwen3_moe": _EXPERTS,
    "phimoe": _EXPERTS,
    "olmoe": _EXPERTS,
    "granitemoe": _EXPERTS,
    "granitemoeshared": _EXPERTS,
    "granitemoehybrid": "a hybrid with Mamba layers, of which no graph can be written",
    "phi3small": "Phi-3 small, with block-sparse attention and another MLP than Phi-3 mini and medium",
    "phi3_v": _PICTURES,
    "phi4mm": _PICTURES,
    "phi4_multimodal": _PICTURES,
    "gemma": "Gemma 1; Gemma 2 and Gemma 3 can be exported",
    "gemma3n": "Gemma 3n, whose layers share caches and choose among several streams",
    "gemma3n_text": "Gemma 3n, whose layers share caches and choose among several streams",
    "gemma4": "Gemma 4, another architecture than Gemma 3",
    "gemma4_text": "Gemma 4, another architecture than Gemma 3",
    "olmo": "OLMo 1, with norms that have no weights; OLMo 2 can be exported",
    "olmo3": "OLMo 3; OLMo 2 can be exported",
}
"""Relatives of the families that are none of theirs, by ``model_type``, and what they are."""


def _family(name: str) -> Family:
    module = importlib.import_module(f"{__name__}.{name}")
    return cast(Family, getattr(module, FAMILIES[name])())


def find_family(checkpoint: Checkpoint, name: str = "auto") -> Family:
    """The family called ``name``, or the one that recognises the checkpoint's configuration, or else the names of its tensors.

    Raises
    ------
    InvalidArgument
        No family has that name.
    CheckpointError
        No family recognises the checkpoint.

    Examples
    --------
    >>> import json
    >>> from pathlib import Path
    >>> import numpy as np
    >>> from safetensors.numpy import save_file
    >>> from coupled_sampling.export import open_checkpoint
    >>> from coupled_sampling.export.families import find_family
    >>> Path("tiny").mkdir()
    >>> _ = Path("tiny/config.json").write_text(json.dumps({"model_type": "llama"}))
    >>> save_file({"lm_head.weight": np.zeros((32, 8), np.float32)}, "tiny/model.safetensors")
    >>> with open_checkpoint("tiny") as checkpoint:
    ...     find_family(checkpoint).name
    'llama'
    """
    try:
        return family_of(checkpoint.path, checkpoint.config, name)
    except CheckpointError:
        names = frozenset(checkpoint.names())
        for candidate in map(_family, FAMILIES):
            if isinstance(candidate, NamedByTensors) and candidate.recognises_tensors(names):
                return candidate
        raise


def family_of(path: Path, config: Mapping[str, Any], name: str = "auto") -> Family:
    """As `find_family`, from the configuration alone, before any weights are looked at."""
    if name != "auto":
        if name not in FAMILIES:
            raise InvalidArgument(f"family is {name!r}, expected auto or one of {', '.join(FAMILIES)}")
        return _family(name)
    for candidate in FAMILIES:
        family = _family(candidate)
        if family.recognises(config):
            return family
    kind = config.get("model_type")
    if isinstance(kind, str) and kind in UNSUPPORTED:
        raise CheckpointError(f"{path} cannot be exported: model_type is {kind!r}, {UNSUPPORTED[kind]}")
    raise CheckpointError(f"{path} is of no family that can be exported: {_identity(config)}; known are "
                          f"{', '.join(FAMILIES)}. Name one with --family if the checkpoint is of its kind")  # fmt: skip


def _identity(config: Mapping[str, Any]) -> str:
    return f"model_type is {shown(config.get('model_type'))}, architectures {shown(config.get('architectures'))}"

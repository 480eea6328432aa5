"""Families of models: each maps the checkpoints of one kind to a description and weights.

A family is a module of this package with a class; `FAMILIES` says which. Modules are imported when a checkpoint is looked at.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from typing import Any, cast

from coupled_sampling.errors import CheckpointError, InvalidArgument
from coupled_sampling.export.checkpoints.contract import Checkpoint
from coupled_sampling.export.families.contract import Decoding, Exportable, Family

__all__ = ["FAMILIES", "Decoding", "Exportable", "Family", "family_names", "find_family"]

FAMILIES: dict[str, tuple[str, str]] = {
    "llama": ("llama", "Llama"),
    "gpt2": ("gpt2", "Gpt2"),
    "imagegpt": ("imagegpt", "ImageGpt"),
    "janus": ("janus", "Janus"),
    "llamagen": ("llamagen", "LlamaGen"),
    "chameleon": ("chameleon", "Chameleon"),
    "emu3": ("emu3", "Emu3"),
}
"""Module and class of every family, by the name that ``--family`` takes."""


def family_names() -> tuple[str, ...]:
    """Names of all families whose file is there."""
    return tuple(name for name, (module, _) in FAMILIES.items() if importlib.util.find_spec(f"{__name__}.{module}"))


def _family(name: str) -> Family:
    module, kind = FAMILIES[name]
    return cast(Family, getattr(importlib.import_module(f"{__name__}.{module}"), kind)())


def find_family(checkpoint: Checkpoint, name: str = "auto") -> Family:
    """The family called ``name``, or the one that recognises the checkpoint's configuration.

    Raises
    ------
    InvalidArgument
        No family has that name.
    CheckpointError
        No family recognises the checkpoint.
    """
    names = family_names()
    if name != "auto":
        if name not in names:
            raise InvalidArgument(f"family is {name!r}, expected auto or one of {', '.join(names)}")
        return _family(name)
    for candidate in names:
        family = _family(candidate)
        if family.recognises(checkpoint.config):
            return family
    raise CheckpointError(f"{checkpoint.path} is of no family that can be exported: {_identity(checkpoint.config)}; known are "
                          f"{', '.join(names)}. Name one with --family if the checkpoint is of its kind")  # fmt: skip


def _identity(config: Mapping[str, Any]) -> str:
    return f"model_type is {config.get('model_type')!r}, architectures {config.get('architectures')!r}"

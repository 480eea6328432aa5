"""Rotary positions as configurations describe them: three generations of keys for one table of angles.

Files on the hub have ``rope_theta`` beside ``rope_scaling``, whose kind is called ``type`` or ``rope_type``; transformers
5 writes all of it into ``rope_parameters``; GGUF files store a factor for every frequency instead of what it was made
from. YaRN, dynamic and long rotary scaling also change with the length or scale the attention, and are refused by name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from coupled_sampling.arguments import shown
from coupled_sampling.errors import InvalidArgument
from coupled_sampling.export.checkpoints.contract import CheckpointError
from coupled_sampling.export.families.config import ConfigReader
from coupled_sampling.export.graphs.rotary import Rotary, RotaryScaling

__all__ = ["take_rotary"]

SCALINGS = ("default", "linear", "llama3", "frequency_factors")

LLAMA3_PUBLISHED = (1.0, 4.0, 8192)
"""Low and high frequency factor and original positions of all Llama 3.1, 3.2 and 3.3 models."""


def take_rotary(reader: ConfigReader, where: str, head_size: int) -> Rotary:
    """Rotary positions of a configuration, pairs in Hugging Face's order.

    Parameters
    ----------
    where
        What ``reader`` reads, for messages.
    head_size
        Entries of a head; all turn.

    Raises
    ------
    CheckpointError
        The scaling is of a kind that cannot be exported, or two keys contradict each other.
    """
    base, nested, older = (reader.take(key, None) for key in ("rope_theta", "rope_parameters", "rope_scaling"))
    for part in (nested, older):
        if part is not None and not isinstance(part, Mapping):
            raise CheckpointError(
                f"{where}: rotary scaling is {shown(part)}, expected a configuration of its own or null"
            )
    if nested and older and dict(nested) != dict(older):
        raise CheckpointError(
            f"{where}: rope_parameters and rope_scaling differ, expected one of them; remove the other"
        )
    inner = ConfigReader(nested or older or {}, f"{where}, rotary positions")
    theta = inner.take("rope_theta", 10000.0 if base is None else base)
    if base is not None and theta != base:
        raise CheckpointError(
            f"{where}: rope_theta is {shown(base)} and {shown(theta)} in rope_parameters; remove one of them"
        )
    kind = inner.take("rope_type", "", accepted=("", *SCALINGS))
    old_kind = inner.take("type", kind or "default", accepted=SCALINGS)
    if kind and old_kind != kind:
        raise CheckpointError(f"{where}: rope_type is {kind!r} and type {old_kind!r}, expected the same; remove one")
    for one in (reader, inner):
        one.take("partial_rotary_factor", 1.0, accepted=(1.0, 1))
    try:
        scaling = _scaling(inner, where, kind or old_kind, float(theta), head_size)
        rotary = Rotary("half", float(theta), scaling=scaling)
    except (InvalidArgument, TypeError, ValueError) as error:
        raise CheckpointError(f"{where}: {error}") from error
    inner.finish()
    return rotary


def _scaling(inner: ConfigReader, where: str, kind: str, base: float, head_size: int) -> RotaryScaling | None:
    if kind == "linear":
        inner.ignore("original_max_position_embeddings")
        return RotaryScaling("linear", inner.number("factor"))
    if kind == "llama3":
        return RotaryScaling(
            "llama3",
            inner.number("factor"),
            inner.number("low_freq_factor"),
            inner.number("high_freq_factor"),
            inner.count("original_max_position_embeddings"),
        )
    if kind == "frequency_factors":
        return _scaling_of_factors(inner.take("frequency_factors"), where, base, head_size)
    return None


def _scaling_of_factors(factors: Any, where: str, base: float, head_size: int) -> RotaryScaling:
    """Llama 3's scaling if it makes these factors, float (head_size / 2,), to float32's precision; otherwise refused."""
    found, (low, high, original) = np.asarray(factors, np.float64), LLAMA3_PUBLISHED
    factor = float(found.max())
    turns = original * base ** (-np.arange(0, head_size, 2) / head_size) / (2 * math.pi)
    unstretched = np.clip((turns - low) / (high - low), 0, 1)
    expected = 1 / ((1 - unstretched) / factor + unstretched)
    if found.shape != expected.shape or not np.allclose(found, expected, rtol=1e-5, atol=0):
        raise CheckpointError(
            f"{where}: the file stores {found.size} factors of rotary frequencies, from {found.min():g} to {factor:g}, and only "
            "those of Llama 3.1 to 3.3 can be exported from GGUF; use the model's safetensors folder"
        )
    return RotaryScaling("llama3", factor, low, high, original)

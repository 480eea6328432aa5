"""Rotary positions as configurations describe them: three generations of keys for one table of angles.

Files on the hub have ``rope_theta`` beside ``rope_scaling``, whose kind is called ``type`` or ``rope_type``; transformers
5 writes all of it into ``rope_parameters``; GGUF files store a factor for every frequency instead of what it was made
from. Dynamic scaling changes with the length and is refused by name.

Long rotary scaling has two sets of factors, for sequences up to the original length and beyond. transformers changes from one to
the other when a sequence grows past that length, with keys in its cache that were turned by the first: the logits of a sequence
then depend on how it was cut into calls. A graph has one set for all: the short one up to the original length, which is what
is exported unless more positions are asked for, and beyond that the long one, for short sequences too.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import numpy as np

from coupled_sampling.arguments import shown
from coupled_sampling.errors import InvalidArgument
from coupled_sampling.export.checkpoints.contract import CheckpointError
from coupled_sampling.export.families.config import ConfigReader
from coupled_sampling.export.families.settings import choose_positions
from coupled_sampling.export.graphs.rotary import Rotary, RotaryScaling

__all__ = ["OF_ONE_LENGTH", "SCALINGS", "Lengths", "Positions", "take_rotary"]

SCALINGS = ("default", "linear", "llama3", "yarn", "longrope", "su", "frequency_factors")
"""Kinds that can be exported; "su" is an older name of "longrope"."""

LONG = ("longrope", "su")
OF_ONE_LENGTH = tuple(kind for kind in SCALINGS if kind not in LONG)
"""Kinds of which a model has one, whatever the length of a sequence."""

LLAMA3_PUBLISHED = (1.0, 4.0, 8192)
"""Low and high frequency factor and original positions of all Llama 3.1, 3.2 and 3.3 models."""


class Lengths(NamedTuple):
    """How long sequences may be: ``most`` of the checkpoint, and what is ``asked`` for; None for no wish."""

    most: int
    asked: int | None


class Positions(NamedTuple):
    """Rotary positions, the longest sequence to export, and what a user must know of it."""

    rotary: Rotary
    longest: int
    notes: tuple[str, ...] = ()


def take_rotary(
    reader: ConfigReader,
    where: str,
    head_size: int,
    lengths: Lengths,
    *,
    base: float = 10000.0,
    partial: bool = False,
    kinds: Collection[str] = SCALINGS,
) -> Positions:
    """Rotary positions of a configuration, pairs in Hugging Face's order.

    Parameters
    ----------
    where
        What ``reader`` reads, for messages.
    head_size
        Entries of a head.
    base
        What a missing ``rope_theta`` means.
    partial
        Whether ``partial_rotary_factor`` may be less than 1; otherwise all entries of a head turn.
    kinds
        Scalings that are supported, of `SCALINGS`.

    Raises
    ------
    CheckpointError
        The scaling is of a kind that cannot be exported, or two keys contradict each other.
    InvalidArgument
        More positions are asked for than the checkpoint has, or than a graph can have.
    """
    given, nested, older = (reader.take(key, None) for key in ("rope_theta", "rope_parameters", "rope_scaling"))
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
    outer = ConfigReader({"rope_theta": given}, where).number("rope_theta", base, positive=True)
    theta = inner.number("rope_theta", outer, positive=True)
    if given is not None and theta != outer:
        raise CheckpointError(f"{where}: rope_theta is {given!r} and {theta!r} in rope_parameters; remove one of them")
    kind = inner.take("rope_type", "", accepted=("", *kinds))
    old_kind = inner.take("type", kind or "default", accepted=kinds)
    if kind and old_kind != kind:
        raise CheckpointError(f"{where}: rope_type is {kind!r} and type {old_kind!r}, expected the same; remove one")
    size = _turned(reader, inner, head_size, partial)
    original = _original_positions(reader, inner, lengths.most)
    asked = lengths.asked
    if asked is None and (kind or old_kind) in LONG:
        asked = min(original, lengths.most)
    longest = choose_positions(asked, lengths.most)
    try:
        if (kind or old_kind) in LONG:
            scaling, notes = _long_scaling(inner, lengths.most, original, longest)
        else:
            scaling = _scaling(inner, where, kind or old_kind, theta, size or head_size, lengths.most, original)
            notes = ()
        rotary = Rotary("half", theta, size, scaling)
    except (InvalidArgument, TypeError, ValueError) as error:
        raise CheckpointError(f"{where}: {error}") from error
    inner.finish()
    return Positions(rotary, longest, notes)


def _turned(reader: ConfigReader, inner: ConfigReader, head_size: int, partial: bool) -> int:
    """Entries of a head that turn; 0 for all."""
    said = {one.number("partial_rotary_factor", 1.0, positive=True) for one in (reader, inner)} - {1.0}
    share = max(said, default=1.0)
    if len(said) > 1 or share > 1 or (said and not partial):
        expected = "one number up to 1" if partial else "1, the only one that this family's own code heeds"
        raise reader.refusal("partial_rotary_factor", share, expected)
    return int(head_size * share) if share < 1 else 0


def _original_positions(reader: ConfigReader, inner: ConfigReader, most: int) -> int:
    """Positions that the model was first trained on. Where both are there, the outer key holds, as in transformers."""
    nested = inner.count("original_max_position_embeddings", most)
    return reader.count("original_max_position_embeddings", nested)


def _long_scaling(
    inner: ConfigReader, most: int, original: int, longest: int
) -> tuple[RotaryScaling | None, tuple[str, ...]]:
    """Scaling, and what a user must know: see the top of this file."""
    short, long = (tuple(inner.numbers(f"{key}_factor")) for key in ("short", "long"))
    factor = inner.number("factor", most / original, positive=True)
    usual = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
    strength = inner.number("attention_factor", usual, positive=True)
    if longest <= original:
        note = (
            f"Positions end at {longest}, the original length being {original}, and are scaled by the short factors of its long "
            f"rotary scaling. Up to {most} positions can be exported by --max-length, which then take the long factors."
        )
        return RotaryScaling("factors", factors=short, attention_factor=strength), (note,)
    note = (
        f"All positions are scaled by the long factors of its long rotary scaling, also in sequences of up to {original} tokens, "
        "for which transformers takes the short ones: a cache cannot change from one to the other."
    )
    return RotaryScaling("factors", factors=long, attention_factor=strength), (note,)


def _scaling(
    inner: ConfigReader, where: str, kind: str, base: float, size: int, most: int, original: int
) -> RotaryScaling | None:
    if kind == "linear":
        return RotaryScaling("linear", inner.number("factor"))
    if kind == "llama3":
        return RotaryScaling(
            "llama3",
            inner.number("factor"),
            inner.number("low_freq_factor"),
            inner.number("high_freq_factor"),
            original,
        )
    if kind == "yarn":
        factor = inner.number("factor", most / original, positive=True)
        return RotaryScaling(
            "yarn",
            factor,
            inner.number("beta_slow", 1.0, positive=True),
            inner.number("beta_fast", 32.0, positive=True),
            original,
            whole_pairs=inner.flag("truncate", True),
            attention_factor=_yarn_strength(inner, factor),
        )
    if kind == "frequency_factors":
        return _scaling_of_factors(inner.take("frequency_factors"), where, base, size)
    return None


def _yarn_strength(inner: ConfigReader, factor: float) -> float:
    """What cos and sin are multiplied by: section 3.4 of the paper, with the two exponents of DeepSeek's models."""

    def growth(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    above, below = inner.number("mscale", 0.0), inner.number("mscale_all_dim", 0.0)
    usual = growth(above) / growth(below) if above and below else growth(1.0)
    return inner.number("attention_factor", usual, positive=True)


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

"""Rotary positions: a rotation of each query and key by angles that depend on the position only.

A head of size D is cut into pairs (x, y), and pair i of the token at position t turns by the angle a = t * base^(-2i/D):
(x cos a - y sin a, x sin a + y cos a), so that the product of a query and a key depends on the distance alone (Su et al.,
arXiv 2104.09864). Everything is in two tables, cos and sin, one row per position: variants differ in their angles only,
and a graph looks them up. Angles are computed in float32, as the models' own code does: at position 4096 they are up to
1e-4 off, and the weights were trained with that.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.errors import InvalidArgument
from coupled_sampling.export.graphs.picture_positions import PicturePositions
from coupled_sampling.fields import check_fields

__all__ = ["SCALINGS", "GridRotary", "Rotary", "RotaryScaling", "rotary_tables"]

SCALINGS = ("linear", "llama3", "yarn", "factors")
"""Kinds of `RotaryScaling`."""


@dataclass(frozen=True)
class RotaryScaling:
    """How angles were stretched for sequences longer than those first trained on.

    Parameters
    ----------
    kind
        "linear": all angles are divided by ``factor`` (Chen et al., arXiv 2306.15595). "llama3": those of wavelengths
        beyond ``original_positions / low_frequency_factor`` are, those below ``original_positions /
        high_frequency_factor`` are not, and between them the share falls linearly with the turns that a pair makes in
        ``original_positions`` (Llama 3.1). "yarn": the same two ends, but the share falls linearly with the pair's number
        (YaRN, arXiv 2309.00071). "factors": each pair's angle is divided by a number of its own (LongRoPE, arXiv 2402.13753).
    factor
        At least 1. Not of "factors".
    low_frequency_factor, high_frequency_factor, original_positions
        Of "llama3" and "yarn", which calls the first two beta_slow and beta_fast.
    whole_pairs
        Whether "yarn" rounds the ends outward to whole pairs.
    factors
        Of "factors", one for each pair.
    attention_factor
        cos and sin are multiplied by it, so that products of queries and keys are by its square.

    Raises
    ------
    InvalidArgument
        The kind is unknown, or a number cannot be.

    Examples
    --------
    >>> from coupled_sampling.export import Rotary, RotaryScaling
    >>> Rotary(base=500000.0, scaling=RotaryScaling("llama3", factor=8.0)).scaling.original_positions
    8192
    """

    kind: str
    factor: float = 1.0
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    original_positions: int = 8192
    whole_pairs: bool = True
    factors: tuple[float, ...] = ()
    attention_factor: float = 1.0

    def __post_init__(self) -> None:
        check_fields(self)
        if self.kind not in SCALINGS:
            raise InvalidArgument(
                f"kind of rotary scaling is {self.kind!r}, expected one of {', '.join(map(repr, SCALINGS))}"
            )
        if not (math.isfinite(self.factor) and self.factor >= 1):
            raise InvalidArgument(f"factor of rotary scaling is {self.factor}, expected a number >= 1")
        if self.kind in ("llama3", "yarn") and not 0 < self.low_frequency_factor < self.high_frequency_factor:
            raise InvalidArgument(
                f"low_frequency_factor is {self.low_frequency_factor} and high_frequency_factor "
                f"{self.high_frequency_factor}, expected 0 < low < high"
            )
        if bool(self.factors) != (self.kind == "factors") or not all(
            math.isfinite(one) and one > 0 for one in self.factors
        ):
            raise InvalidArgument(
                f"factors of rotary scaling are {self.factors}, expected numbers > 0 for the kind 'factors' and none for others"
            )
        if not (math.isfinite(self.attention_factor) and self.attention_factor > 0):
            raise InvalidArgument(f"attention_factor is {self.attention_factor}, expected a number > 0")
        if self.original_positions < 1:
            raise InvalidArgument(f"original_positions is {self.original_positions}, expected an integer >= 1")


@dataclass(frozen=True)
class GridRotary:
    """Positions in a picture or a video, frame by frame and row by row: a pair turns with the frame, the row or the column.

    Without frames, half of the pairs turn with the row and half with the column (LlamaGen). With frames, a head of D entries gives
    2 (D // 6) of them to the row and as many to the column; the others, which come first, turn with the frame (Cosmos).

    Parameters
    ----------
    rows, columns
        Of a picture's tokens.
    prefix
        Tokens before the picture.
    frames
        Of a video; 0 for a picture.
    prefix_vanishes
        Whether cos *and* sin of the prefix are zero, as in LlamaGen's own code: its queries and keys vanish. Else it does not turn.
    trained
        The frames, rows and columns that ``scaling`` takes for its ``original_positions``, each axis its own; empty without.

    Examples
    --------
    >>> from coupled_sampling.export import GridRotary, Rotary
    >>> Rotary("interleaved", grid=GridRotary(rows=16, columns=16)).grid.prefix
    1
    >>> GridRotary(rows=40, columns=64, frames=5, prefix=0).axes(128)  # entries of a head for frame, row and column
    (44, 42, 42)
    """

    rows: int
    columns: int
    prefix: int = 1
    frames: int = 0
    prefix_vanishes: bool = True
    trained: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        check_fields(self)
        if self.rows < 1 or self.columns < 1 or self.prefix < 0 or self.frames < 0:
            raise InvalidArgument(
                f"a grid of {self.rows} by {self.columns} in {self.frames} frames after {self.prefix} tokens, "
                "expected at least 1 by 1 in 0 after 0"
            )
        if self.trained and (len(self.trained) != len(self.sizes) or min(self.trained) < 1):
            raise InvalidArgument(f"trained is {self.trained}, expected {len(self.sizes)} sizes >= 1, or none")

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many positions each axis has: frames, if there are any, rows and columns."""
        return (*((self.frames,) if self.frames else ()), self.rows, self.columns)

    def axes(self, size: int) -> tuple[int, ...]:
        """How many of ``size`` turned entries each axis has."""
        if not self.frames:
            return size // 2, size // 2
        space = 2 * (size // 6)
        return size - 2 * space, space, space


@dataclass(frozen=True)
class Rotary:
    """Rotary positions of a model.

    Parameters
    ----------
    pairs
        Which entries of a head form a pair. "half": i and i + size / 2 (Hugging Face's Llama). "interleaved": 2i and
        2i + 1 (Meta's own Llama, GGUF, LlamaGen).
    base
        Also called theta.
    size
        Entries of a head that turn, the first ones; 0 means all of them.
    scaling
        None for none.
    grid
        Positions in a picture or a video; None for positions in a line.
    pictures
        Positions of text and pictures behind it; None for positions in a line.

    Examples
    --------
    >>> from coupled_sampling.export import Rotary
    >>> from coupled_sampling.export.graphs.rotary import rotary_tables
    >>> cos, sin = rotary_tables(Rotary(), size=4, positions=3)
    >>> cos.shape, cos[0], sin[0]  # position 0 does not turn
    ((3, 2), array([1., 1.], dtype=float32), array([0., 0.], dtype=float32))
    """

    pairs: str = "half"
    base: float = 10000.0
    size: int = 0
    scaling: RotaryScaling | None = None
    grid: GridRotary | None = None
    pictures: PicturePositions | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if self.pairs not in ("half", "interleaved"):
            raise InvalidArgument(f"pairs is {self.pairs!r}, expected 'half' or 'interleaved'")
        if not (math.isfinite(self.base) and self.base > 0):
            raise InvalidArgument(f"base of the rotary positions is {self.base}, expected a number > 0")
        if self.size < 0 or self.size % self._multiple:
            raise InvalidArgument(
                f"size of the rotary positions is {self.size}, expected 0 or an even number of entries"
            )
        if self.grid is not None and (self.scaling is not None) != bool(self.grid.trained):
            raise InvalidArgument(
                "a grid has scaling without its field trained, or trained without scaling; expected both or neither"
            )
        if self.grid is not None and self.scaling is not None and self.scaling.kind != "llama3":
            raise InvalidArgument(f"scaling of a grid is of the kind {self.scaling.kind!r}, expected 'llama3'")
        if self.grid is not None and self.pictures is not None:
            raise InvalidArgument("grid and pictures are both given, expected at most one of them")
        if self.scaling is not None and self.scaling.kind == "yarn" and self.base <= 1:
            raise InvalidArgument(f"base of the rotary positions is {self.base}, expected a number > 1 for yarn")

    @property
    def _multiple(self) -> int:
        """What the number of entries that turn is a multiple of."""
        return 4 if self.grid is not None and not self.grid.frames else 2

    def turned(self, head_size: int) -> int:
        """Entries of a head of ``head_size`` that turn."""
        return self.size or head_size

    def require_fit(self, head_size: int) -> None:
        """Refuse heads that these positions cannot turn.

        Raises
        ------
        InvalidArgument
            More entries turn than there are, no whole number of pairs does, or pairs and factors are of different number.
        """
        size, multiple = self.turned(head_size), self._multiple
        if size > head_size or size % multiple:
            raise InvalidArgument(
                f"rotary positions turn {size} entries of a head, expected a multiple of {multiple} up to head_size, {head_size}"
            )
        if self.pictures is not None and sum(self.pictures.sections) != size // 2:
            raise InvalidArgument(
                f"sections is {self.pictures.sections}, expected numbers that sum to the {size // 2} pairs that turn"
            )
        if self.scaling is not None and self.scaling.kind == "factors" and len(self.scaling.factors) != size // 2:
            raise InvalidArgument(
                f"rotary scaling has {len(self.scaling.factors)} factors, expected one for each of the {size // 2} pairs that turn"
            )


def rotary_tables(rotary: Rotary, size: int, positions: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Cosines and sines of every pair at every position.

    Parameters
    ----------
    rotary
        The kind of rotation.
    size
        Entries of a head that turn, an even number.
    positions
        Rows to make, of positions in a line where there are ``pictures``. Rows beyond a grid's last token do not turn (cos 1,
        sin 0).

    Returns
    -------
    tuple
        cos and sin, float32 (positions, size / 2).
    """
    if rotary.grid is None:
        angles = np.outer(np.arange(positions, dtype=np.float32), _frequencies(rotary, size))
        strength = np.float32(1.0 if rotary.scaling is None else rotary.scaling.attention_factor)
        return np.cos(angles) * strength, np.sin(angles) * strength
    grid = rotary.grid
    places = np.indices(grid.sizes).reshape(len(grid.sizes), -1).astype(np.float32)
    parts = []
    for i, (place, entries) in enumerate(zip(places, grid.axes(size), strict=True)):
        scaling = replace(rotary.scaling, original_positions=grid.trained[i]) if rotary.scaling is not None else None
        parts.append(np.outer(place, _frequencies(replace(rotary, grid=None, scaling=scaling), entries)))
    angles = np.concatenate(parts, axis=1)
    before = np.full((grid.prefix, size // 2), 0 if grid.prefix_vanishes else 1, np.float32)
    beyond = max(0, positions - grid.prefix - len(angles))
    cos, sin = (
        np.concatenate([first, table, np.full((beyond, size // 2), rest, np.float32)])[:positions]
        for first, table, rest in ((before, np.cos(angles), 1), (0 * before, np.sin(angles), 0))
    )
    return cos, sin


def _frequencies(rotary: Rotary, size: int) -> NDArray[np.float32]:
    """Angle per position of every pair, float32 (size / 2,)."""
    exponents = np.arange(0, size, 2, dtype=np.float32) / np.float32(size)
    frequencies = np.float32(1) / np.float32(rotary.base) ** exponents
    scaling = rotary.scaling
    if scaling is None:
        return frequencies
    if scaling.kind == "factors":
        return np.asarray(frequencies / np.asarray(scaling.factors, np.float32))
    stretched = frequencies / np.float32(scaling.factor)
    if scaling.kind == "linear":
        return stretched
    unstretched = (
        _yarn_shares(scaling, rotary.base, size) if scaling.kind == "yarn" else _llama3_shares(scaling, frequencies)
    )
    mixed: NDArray[np.float32] = ((1 - unstretched) * stretched + unstretched * frequencies).astype(np.float32)
    return mixed


def _llama3_shares(scaling: RotaryScaling, frequencies: NDArray[np.float32]) -> NDArray[Any]:
    """By how much each pair keeps its angle, 0 to 1: a straight line over the turns it makes."""
    low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
    turns = scaling.original_positions * frequencies / (2 * math.pi)
    return np.asarray(np.clip((turns - low) / (high - low), 0, 1))


def _yarn_shares(scaling: RotaryScaling, base: float, size: int) -> NDArray[Any]:
    """By how much each pair keeps its angle, 0 to 1: a straight line over the pairs' numbers."""

    def pair_of(turns: float) -> float:
        """The pair, not always a whole one, that makes so many turns in the original positions."""
        return size * math.log(scaling.original_positions / (2 * math.pi * turns)) / (2 * math.log(base))

    first, last = pair_of(scaling.high_frequency_factor), pair_of(scaling.low_frequency_factor)
    if scaling.whole_pairs:
        first, last = math.floor(first), math.ceil(last)
    # The last end is held against size - 1 and not the last pair, as in YaRN's own code: the weights were trained with that.
    first, last = max(first, 0), min(last, size - 1)
    if first == last:
        last += 0.001
    return np.asarray(1 - np.clip((np.arange(size // 2) - first) / (last - first), 0, 1))

"""Rotary positions: a rotation of each query and key by angles that depend on the position only.

A head of size D is cut into pairs (x, y), and pair i of the token at position t turns by the angle a = t * base^(-2i/D):
(x cos a - y sin a, x sin a + y cos a), so that the product of a query and a key depends on the distance alone (Su et al.,
arXiv 2104.09864). Everything is in two tables, cos and sin, one row per position: variants differ in their angles only,
and a graph looks them up. Angles are computed in float32, as the models' own code does: at position 4096 they are up to
1e-4 off, and the weights were trained with that.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.errors import InvalidArgument
from coupled_sampling.fields import check_fields

__all__ = ["GridRotary", "Rotary", "RotaryScaling", "rotary_tables"]


@dataclass(frozen=True)
class RotaryScaling:
    """How angles were stretched for sequences longer than those first trained on.

    Parameters
    ----------
    kind
        "linear": all angles are divided by ``factor`` (Chen et al., arXiv 2306.15595). "llama3": those of wavelengths
        beyond ``original_positions / low_frequency_factor`` are, those below ``original_positions /
        high_frequency_factor`` are not, with a linear passage between (Llama 3.1).
    factor
        At least 1.
    low_frequency_factor, high_frequency_factor, original_positions
        Of "llama3".

    Examples
    --------
    >>> from coupled_sampling.export import Rotary, RotaryScaling
    >>> Rotary(base=500000.0, scaling=RotaryScaling("llama3", factor=8.0)).scaling.original_positions
    8192
    """

    kind: str
    factor: float
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    original_positions: int = 8192

    def __post_init__(self) -> None:
        check_fields(self)
        if self.kind not in ("linear", "llama3"):
            raise InvalidArgument(f"kind of rotary scaling is {self.kind!r}, expected 'linear' or 'llama3'")
        if not (math.isfinite(self.factor) and self.factor >= 1):
            raise InvalidArgument(f"factor of rotary scaling is {self.factor}, expected a number >= 1")
        if self.kind == "llama3" and not 0 < self.low_frequency_factor < self.high_frequency_factor:
            raise InvalidArgument(
                f"low_frequency_factor is {self.low_frequency_factor} and high_frequency_factor "
                f"{self.high_frequency_factor}, expected 0 < low < high"
            )
        if self.original_positions < 1:
            raise InvalidArgument(f"original_positions is {self.original_positions}, expected an integer >= 1")


@dataclass(frozen=True)
class GridRotary:
    """Positions in a picture, row by row: half of the pairs turn with the row and half with the column (LlamaGen).

    Parameters
    ----------
    rows, columns
        Of the picture's tokens.
    prefix
        Tokens before the picture. Their cos *and* sin are zero, as in LlamaGen's own code: they are not left unturned,
        their queries and keys vanish.

    Examples
    --------
    >>> from coupled_sampling.export import GridRotary, Rotary
    >>> Rotary("interleaved", grid=GridRotary(rows=16, columns=16)).grid.prefix
    1
    """

    rows: int
    columns: int
    prefix: int = 1

    def __post_init__(self) -> None:
        check_fields(self)
        if self.rows < 1 or self.columns < 1 or self.prefix < 0:
            raise InvalidArgument(
                f"a grid of {self.rows} by {self.columns} after {self.prefix} tokens, expected at least 1 by 1 after 0"
            )


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
        Two-dimensional positions; None for positions in a line.

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

    def __post_init__(self) -> None:
        check_fields(self)
        if self.pairs not in ("half", "interleaved"):
            raise InvalidArgument(f"pairs is {self.pairs!r}, expected 'half' or 'interleaved'")
        if not (math.isfinite(self.base) and self.base > 0):
            raise InvalidArgument(f"base of the rotary positions is {self.base}, expected a number > 0")
        if self.size < 0 or self.size % (4 if self.grid else 2):
            raise InvalidArgument(
                f"size of the rotary positions is {self.size}, expected 0 or an even number of entries"
            )
        if self.scaling is not None and self.grid is not None:
            raise InvalidArgument("scaling and grid are both given, expected at most one of them")


def rotary_tables(rotary: Rotary, size: int, positions: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Cosines and sines of every pair at every position.

    Parameters
    ----------
    rotary
        The kind of rotation.
    size
        Entries of a head that turn, an even number.
    positions
        Rows to make. Rows beyond a grid's last token do not turn (cos 1, sin 0).

    Returns
    -------
    tuple
        cos and sin, float32 (positions, size / 2).
    """
    if rotary.grid is None:
        angles = np.outer(np.arange(positions, dtype=np.float32), _frequencies(rotary, size))
        return np.cos(angles), np.sin(angles)
    grid, frequencies = rotary.grid, _frequencies(rotary, size // 2)
    rows, columns = (np.outer(np.arange(count, dtype=np.float32), frequencies) for count in (grid.rows, grid.columns))
    angles = np.concatenate([np.repeat(rows, grid.columns, axis=0), np.tile(columns, (grid.rows, 1))], axis=1)
    zeros = np.zeros((grid.prefix, size // 2), np.float32)
    beyond = max(0, positions - grid.prefix - len(angles))
    cos, sin = (
        np.concatenate([zeros, table, np.full((beyond, size // 2), rest, np.float32)])[:positions]
        for table, rest in ((np.cos(angles), 1), (np.sin(angles), 0))
    )
    return cos, sin


def _frequencies(rotary: Rotary, size: int) -> NDArray[np.float32]:
    """Angle per position of every pair, float32 (size / 2,)."""
    exponents = np.arange(0, size, 2, dtype=np.float32) / np.float32(size)
    frequencies = np.float32(1) / np.float32(rotary.base) ** exponents
    scaling = rotary.scaling
    if scaling is None:
        return frequencies
    stretched = frequencies / np.float32(scaling.factor)
    if scaling.kind == "linear":
        return stretched
    low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
    turns = scaling.original_positions * frequencies / (2 * math.pi)
    unstretched = np.clip((turns - low) / (high - low), 0, 1)
    mixed: NDArray[np.float32] = ((1 - unstretched) * stretched + unstretched * frequencies).astype(np.float32)
    return mixed

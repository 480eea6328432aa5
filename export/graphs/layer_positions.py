"""Positions that are added to the residual stream where a layer begins, in every layer.

They are sines and cosines of a place in a clip, not learned. The width is cut in three parts, for frame, row and column; a part of
d entries for index p holds sin(p w_k) for k < d / 2, then cos(p w_k), where w_k = base^(-k / (d / 2)) (arXiv 1706.03762 for one
axis). Rows and columns get 2 (width // 6) entries each, frames the rest. Positions before the clip and behind it get zeros, which
no place in the clip has. Source: nvidia-cosmos/cosmos-predict1, cosmos_predict1/autoregressive/modules/embedding.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.export.graphs.parts import require_positive, require_whole
from coupled_sampling.fields import check_fields

__all__ = ["LayerPositions"]


@dataclass(frozen=True)
class LayerPositions:
    """Where a token lies in a clip, added in every layer (Cosmos-Predict1 Video2World).

    Parameters
    ----------
    frames, rows, columns
        Of the clip's tokens, which lie frame by frame and row by row.
    prefix
        Tokens before the clip.
    base
        Of the frequencies.

    Examples
    --------
    >>> from coupled_sampling.export import LayerPositions
    >>> positions = LayerPositions(frames=2, rows=2, columns=3, prefix=1)
    >>> positions.parts(16)
    (8, 4, 4)
    >>> positions.places(5).tolist()  # frame, row and column of the tokens 0, 1, ...; the first is of the prefix and has none
    [[2, 2, 3], [0, 0, 0], [0, 0, 1], [0, 0, 2], [0, 1, 0]]
    >>> positions.rows_of(16, 5)[:2, :2].tolist()
    [[0.0, 0.0], [0.0, 0.0]]
    """

    frames: int
    rows: int
    columns: int
    prefix: int = 0
    base: float = 10000.0

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("frames", "rows", "columns"):
            require_whole(f"{name} of the layers' positions", getattr(self, name), 1)
        require_whole("prefix of the layers' positions", self.prefix, 0)
        require_positive("base of the layers' positions", self.base)

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Frames, rows and columns."""
        return self.frames, self.rows, self.columns

    def parts(self, width: int) -> tuple[int, int, int]:
        """Entries of ``width``, an even number, for frame, row and column."""
        space = 2 * (width // 6)
        return width - 2 * space, space, space

    def places(self, count: int) -> NDArray[np.int64]:
        """Frame, row and column (count, 3) of the positions 0, ..., count - 1; where there is none, one behind the last of each."""
        index = np.arange(count, dtype=np.int64) - self.prefix
        inside = (index >= 0) & (index < self.frames * self.rows * self.columns)
        each = np.stack(
            [index // (self.rows * self.columns), index // self.columns % self.rows, index % self.columns], 1
        )
        return np.where(inside[:, None], each, np.array(self.sizes, np.int64))

    def tables(self, width: int) -> list[NDArray[np.float64]]:
        """What is added for each frame, row and column, (n + 1, part) each: the last row, of zeros, is for no place."""
        made = []
        for count, part in zip(self.sizes, self.parts(width), strict=True):
            angles = np.arange(count)[:, None] * self.base ** (-np.arange(part // 2) / (part / 2))
            made.append(np.pad(np.concatenate([np.sin(angles), np.cos(angles)], axis=1), ((0, 1), (0, 0))))
        return made

    def rows_of(self, width: int, count: int) -> NDArray[Any]:
        """What is added at the positions 0, ..., count - 1: float64 (count, width)."""
        return np.concatenate(
            [table[place] for table, place in zip(self.tables(width), self.places(count).T, strict=True)], 1
        )

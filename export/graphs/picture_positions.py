"""Positions of pictures that begin wherever a prompt ends: three numbers for every token, found by the graph itself (GLM-Image).

Text has its own position, three times. A token of a picture has the position at which the picture begins, plus 0, its row and its
column; what follows counts on from the largest of them. Each pair of a head turns with one of the three numbers
(multimodal rotary positions, Wang et al., arXiv 2409.12191), and `sections` says which.

A window graph is told where a window starts and not where the picture did. It could not know: the token that begins pictures
may lie in any call before. So it marks that token's column in a cache of its own, which is written, rolled back and copied
like the others, and looks for the first mark. Nothing outside the graph has to know.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.errors import InvalidArgument
from coupled_sampling.export.graphs.builder import GraphBuilder
from coupled_sampling.export.graphs.storage import stored_type
from coupled_sampling.fields import check_fields

__all__ = ["PicturePositions", "mark_columns", "picture_places"]

_FLOAT32 = 1


@dataclass(frozen=True)
class PicturePositions:
    """Pictures behind the first token that begins one.

    Parameters
    ----------
    begin
        The token.
    grids
        Rows and columns of the pictures that follow it, one right after the other.
    sections
        How many pairs turn with the position in time, how many with the row and how many with the column, in this order.

    Raises
    ------
    InvalidArgument
        A number cannot be.

    Examples
    --------
    >>> from coupled_sampling.export import PicturePositions
    >>> pictures = PicturePositions(begin=7, grids=((1, 2), (2, 2)), sections=(2, 3, 3))
    >>> pictures.offsets(8).tolist()  # two tokens, four tokens, and what follows
    [[0, 0, 0], [0, 0, 1], [2, 2, 2], [2, 2, 3], [2, 3, 2], [2, 3, 3], [4, 4, 4], [5, 5, 5]]
    >>> pictures.places([3, 7, 0, 1, 2]).tolist()
    [[0, 0, 0], [1, 1, 1], [2, 2, 2], [2, 2, 3], [4, 4, 4]]
    """

    begin: int
    grids: tuple[tuple[int, int], ...]
    sections: tuple[int, int, int]

    def __post_init__(self) -> None:
        check_fields(self)
        if self.begin < 0:
            raise InvalidArgument(f"begin is {self.begin}, expected a token")
        if not self.grids or min(min(grid) for grid in self.grids) < 1:
            raise InvalidArgument(f"grids is {self.grids}, expected rows and columns >= 1 of one or more pictures")
        if min(self.sections) < 0:
            raise InvalidArgument(f"sections is {self.sections}, expected numbers of pairs >= 0")

    def offsets(self, count: int) -> NDArray[np.int64]:
        """Places of the ``count`` tokens behind the one that begins pictures, less that of the first: int64 (count, 3)."""
        parts, first = [], 0
        for rows, columns in self.grids:
            row, column = np.divmod(np.arange(rows * columns), columns)
            parts.append(first + np.stack([np.zeros_like(row), row, column], axis=-1))
            first += max(rows, columns)
        after = first + np.arange(count)
        return np.concatenate([*parts, np.stack([after] * 3, axis=-1)])[:count].astype(np.int64)

    def places(self, tokens: NDArray[np.int64] | list[int]) -> NDArray[np.int64]:
        """Time, row and column of every token of one sequence: int64 (T, 3)."""
        found = np.asarray(tokens)
        begins = np.flatnonzero(found == self.begin)
        first = int(begins[0]) + 1 if len(begins) else len(found)
        text = np.stack([np.arange(min(first, len(found)))] * 3, axis=-1)
        return np.concatenate([text, first + self.offsets(len(found) - len(text))])


def mark_columns(graph: GraphBuilder, tokens: str, begin: int, shape: tuple[int, int], dtype: str) -> str:
    """1 in the window's columns of tokens ``begin``, else 0: (B, heads, W, size), what goes into the cache of marks.

    ``tokens`` is (B, W), ``shape`` heads and size of the caches, ``dtype`` their type.
    """
    found = graph.op("Equal", tokens, graph.integers(begin))
    ones = graph.constant("marks.one", np.ones((1, shape[0], 1, shape[1]), stored_type(dtype)))
    nothing = graph.constant("marks.none", np.zeros((1, 1, 1, 1), stored_type(dtype)))
    return graph.op("Where", graph.op("Unsqueeze", found, graph.integers(1, 3)), ones, nothing)


def picture_places(
    graph: GraphBuilder, pictures: PicturePositions, marks: str, position: str, columns: tuple[str, int], dtype: str
) -> list[str]:
    """Time, row and column of every slot, each int64 (B, W).

    Parameters
    ----------
    marks
        The cache of marks below ``kv_length``, (B, heads, kv_length, size).
    position
        Columns of the slots, (B, W).
    columns
        Numbers of the columns below ``kv_length``, and S.
    dtype
        Type of the caches.
    """
    numbers, count = columns
    one = graph.op("Slice", marks, graph.integers(0, 0), graph.integers(1, 1), graph.integers(1, 3))
    if dtype != "float32":
        one = graph.op("Cast", one, to=_FLOAT32)  # CUDA's kernels compare no bfloat16
    marked = graph.op("Greater", one, graph.constant("marks.half", np.array(0.5, np.float32)))
    numbers = graph.op("Unsqueeze", numbers, graph.integers(1))
    # A mark beyond a slot's own column, of a sequence that was rolled back, is beyond all that it sees: it takes itself for text.
    first = graph.op("Where", marked, numbers, graph.integers(count))
    first = graph.op("ReduceMin", first, graph.integers(1, 2, 3), keepdims=0)
    picture = graph.op("Add", graph.op("Unsqueeze", first, graph.integers(1)), graph.integers(1))
    behind = graph.op("Sub", position, picture)
    inside = graph.op("GreaterOrEqual", behind, graph.integers(0))
    index = graph.op("Max", behind, graph.integers(0))
    places = []
    for name, offsets in zip(("time", "row", "column"), pictures.offsets(count).T, strict=True):
        table = graph.constant(f"pictures.{name}", np.ascontiguousarray(offsets))
        place = graph.op("Add", graph.op("Gather", table, index), picture)
        places.append(graph.op("Where", inside, place, position))
    return places

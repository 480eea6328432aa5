"""Exact laws of functions of one or two uniform numbers, by finding where the outcome changes.

A coupling that takes uniforms compares them with thresholds, so its outcome is constant between breakpoints. A grid
finds the pieces and bisection their ends, to about 1e-12: no sampling error. Pieces narrower than a grid cell may be missed,
so that a law found here is off by at most the cells in which that happened; laws whose masses are not much below 1/`CELLS`
have none.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["CELLS", "law_of_one", "law_of_two"]

CELLS = 64
"""Grid cells per uniform."""
BISECTIONS = 40


def _pieces(outcome: Callable[[NDArray[np.float64]], NDArray[Any]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Midpoints (K,) and lengths (K,) of the pieces on which ``outcome(uniforms (n,)) -> (n, ...)`` is constant."""
    points = (np.arange(CELLS) + 0.5) / CELLS
    points = np.concatenate([[0.0], points, [1 - 2.0**-53]])
    values = outcome(points).reshape(len(points), -1)
    changes = np.flatnonzero((values[1:] != values[:-1]).any(axis=1))
    low, high, left = points[changes], points[changes + 1], values[changes]
    for _ in range(BISECTIONS if len(changes) else 0):
        middle = (low + high) / 2
        same = (outcome(middle).reshape(len(middle), -1) == left).all(axis=1)
        low, high = np.where(same, middle, low), np.where(same, high, middle)
    edges = np.concatenate([[0.0], (low + high) / 2, [1.0]])
    return (edges[1:] + edges[:-1]) / 2, np.diff(edges)


def law_of_one(outcome: Callable[[NDArray[np.float64]], NDArray[np.int64]], size: int) -> NDArray[np.float64]:
    """Law (size,) of ``outcome(uniforms (n,)) -> (n,)`` in [0, size) for one uniform number."""
    middle, length = _pieces(outcome)
    return np.asarray(np.bincount(outcome(middle), length, size), np.float64)


def law_of_two(
    outcome: Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.int64]], size: int
) -> NDArray[np.float64]:
    """Law (size,) of ``outcome(first (n,), second (n,)) -> (n,)`` in [0, size) for two independent uniform numbers.

    Exact where the outcome is constant on rectangles, as it is if each comparison looks at one of the numbers.
    """
    columns = np.concatenate([[0.0], (np.arange(CELLS) + 0.5) / CELLS, [1 - 2.0**-53]])

    def pattern(first: NDArray[np.float64]) -> NDArray[np.int64]:
        repeated = np.repeat(first, len(columns))
        return outcome(repeated, np.tile(columns, len(first))).reshape(len(first), len(columns))

    law = np.zeros(size)
    for middle, length in zip(*_pieces(pattern), strict=True):
        fixed = float(middle)
        law += length * law_of_one(lambda second, fixed=fixed: outcome(np.full(len(second), fixed), second), size)  # type: ignore[misc]
    return law

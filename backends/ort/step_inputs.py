"""A window as the small inputs of a step graph: settings, uniforms and race noise. Nothing here knows where tensors lie.

Draws come from the frozen layout of `coupled_sampling.noise`. Rows that draw nothing get no draws: what stands there is not used.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.contracts import Integers, Window
from coupled_sampling.noise import race_weights_between, uniforms

__all__ = [
    "candidates",
    "fill_race_noise",
    "fill_uniforms",
    "known_tokens",
    "temperatures",
    "warp_settings",
]


def known_tokens(tokens: Integers, start: Integers, first_row: int) -> Window:
    """A window of known tokens (n, W) of the rows from ``first_row`` on, which decides nothing."""
    rows, width = tokens.shape
    none = np.zeros(rows, np.int64)
    nobody: list[None] = [None] * rows
    return Window(tokens, start, none + width, none, none, none > 0, none, nobody, list(tokens), nobody, first_row)


def temperatures(window: Window) -> list[float]:
    """``temperature`` (B,)."""
    return [1.0 if info is None else info.sampling.temperature for info in window.rows]


def warp_settings(window: Window, vocab_size: int) -> dict[str, list[Any]]:
    """``top_k``, ``top_p`` and ``min_p``, each (B,)."""
    settings = [None if info is None else info.sampling for info in window.rows]
    return {
        "top_k": [0 if s is None or s.top_k is None or s.top_k >= vocab_size else s.top_k for s in settings],
        "top_p": [1.0 if s is None else s.top_p for s in settings],
        "min_p": [0.0 if s is None else s.min_p for s in settings],
    }


def candidates(window: Window, vocab_size: int, nucleus: int) -> int:
    """How many of the largest logits to look at: as many as the widest top-k; ``nucleus`` where top-p alone decides."""
    count = 1
    for info in window.rows:
        if info is not None:
            top_k = info.sampling.top_k
            limited = top_k is not None and top_k < vocab_size
            count = max(count, top_k if limited and top_k else nucleus if info.sampling.top_p < 1 else 1)
    return min(count, vocab_size)


def fill_uniforms(window: Window, drawn: NDArray[np.float64]) -> None:
    """Write ``uniforms`` to ``drawn`` (B, W, 3)."""
    width = drawn.shape[1]
    for b, info in enumerate(window.rows):
        if info is not None and window.draws[b]:
            first = int(window.start[b]) + 1
            drawn[b] = uniforms(info.seed, info.sequence, int(window.round[b]), first, width)[:, :3]


def fill_race_noise(window: Window, positions: Sequence[tuple[int, int]], noise: NDArray[np.float32]) -> None:
    """Write the race weights of each row's ``positions`` (first, end) to the beginning of its ``noise`` (B, N, V)."""
    for b, info in enumerate(window.rows):
        if info is not None:
            first, end = positions[b]
            noise[b, : end - first] = race_weights_between(info.seed, info.sequence, first, end, noise.shape[2])

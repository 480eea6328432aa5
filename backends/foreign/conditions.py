"""What a request says to a decoder that reads an encoder's output: the condition, and what a row makes of it."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.backends.conditions import problem_of_vectors

__all__ = ["Reading", "problem_of_condition"]


class Reading(NamedTuple):
    """What a row knows of its encoder's output. Nothing writes to it, so rows may share one."""

    states: NDArray[Any]
    """(1, S, D) as the graph takes them."""
    mask: NDArray[np.int64]
    """(1, S), or as many ones as the graph wants for S states."""
    caches: tuple[NDArray[Any], ...]
    """Keys and values of all layers, (1, heads, S, size)."""


def problem_of_condition(condition: Any, states: tuple[int | None, int | None]) -> str | None:
    """What is wrong with ``condition``, as a sentence without its subject; None if it can be read.

    Parameters
    ----------
    condition
        Of a request; an encoder's output if all is well.
    states
        (S, D) that the graph takes, None for a size that it leaves open.
    """
    length, size = states
    wanted = f"the encoder's output of one input, floating ({length or 'S'}, {size or 'D'})"
    return problem_of_vectors(condition, (length, length), size, wanted, "encode the input first")

"""What the exporter writes a pixel graph from: a described decoder of pictures, its weights, and which tokens are its codes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from coupled_sampling.export.pictures.description import VqDescription
from coupled_sampling.export.pictures.picture_tokens import PictureTokens

__all__ = ["PictureDecoder"]


@dataclass(frozen=True)
class PictureDecoder:
    """A decoder of pictures, understood.

    Parameters
    ----------
    description
        The decoder.
    weights
        From a name of ``description.weight_shapes()`` to the array, read from the checkpoint when it is called.
    tokens
        Which tokens of a generation are codes.
    source
        The checkpoint that holds it.
    """

    description: VqDescription
    weights: Callable[[str], NDArray[Any]]
    tokens: PictureTokens
    source: Path

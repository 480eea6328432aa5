"""What the exporter writes a pixel graph from: a described decoder of pictures, its weights, and which tokens are its codes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from coupled_sampling.export.graphs.storage import Storage
from coupled_sampling.export.graphs.weights import WeightSource
from coupled_sampling.export.pictures.description import VqDescription
from coupled_sampling.export.pictures.picture_tokens import PictureTokens
from coupled_sampling.export.pictures.pixel_graph import write_vq_pixel_graph
from coupled_sampling.export.pictures.video_description import CausalVideoDescription
from coupled_sampling.export.pictures.video_pixel_graph import write_video_pixel_graph

__all__ = ["PictureDecoder"]


@dataclass(frozen=True)
class PictureDecoder:
    """A decoder of pictures or videos, understood.

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

    description: VqDescription | CausalVideoDescription
    weights: Callable[[str], NDArray[Any]]
    tokens: PictureTokens
    source: Path

    def write(self, weights: WeightSource, path: Path, storage: Storage) -> tuple[Path, ...]:
        """Write the pixel graph of ``weights``, which are those of this decoder, perhaps counted on their way."""
        if isinstance(self.description, CausalVideoDescription):
            return write_video_pixel_graph(self.description, weights, self.tokens, path, storage)
        return write_vq_pixel_graph(self.description, weights, self.tokens, path, storage)

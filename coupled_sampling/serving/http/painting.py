"""`Painter`: tokens as files of pictures, whole, or as far as they are committed.

A partial picture has the pixels of whole rows of tokens, and grey below. They come from the pixel decoder that also makes the final
picture, which gets the committed rows and arbitrary tokens for the rest. The tokens of a partial picture are final: committed ones
never change. Its pixels are final, too, where those of a row come from its own tokens, as in the embedded model. A convolutional
decoder looks across the edge: there the pixels next to the grey may still change when more rows come.
"""

from __future__ import annotations

import asyncio
import base64
import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.bundles.layouts import Layout
from coupled_sampling.bundles.manifest import Grid
from coupled_sampling.errors import InvalidArgument, MissingDependency
from coupled_sampling.serving.http.errors import ApiError
from coupled_sampling.serving.served import ServedModel

__all__ = ["BLANK", "FORMATS", "Painter"]

BLANK = 128
"""The grey of rows that are not committed."""

FORMATS: dict[str, dict[str, Any]] = {
    "png": {"format": "PNG"},
    "jpeg": {"format": "JPEG", "quality": 100, "subsampling": 0},
    "webp": {"format": "WEBP", "lossless": True},
}
"""What Pillow is told of each. PNG and WebP keep every pixel; JPEG does not, and is as good as it can be."""


class Painter:
    """Makes files of one model's pictures.

    Parameters
    ----------
    model
        A model with a pixel graph.
    output_format
        One of `FORMATS`.

    Raises
    ------
    ApiError
        The model makes no pictures.
    MissingDependency
        Pillow is not installed, or writes no such files.
    """

    def __init__(self, model: ServedModel, output_format: str) -> None:
        manifest = model.bundle.manifest
        if manifest.pixel_graph is None:
            raise ApiError(
                400,
                f"the model {model.name} makes no pictures; "
                + ("it has no pixel graph" if model.makes_pictures else "continue a text with /v1/completions"),
                param="model",
            )
        self._model, self._format = model, output_format
        self._length, self._grid = manifest.length, manifest.grid
        self._height = manifest.pixel_graph.height
        self.size = f"{manifest.pixel_graph.width}x{manifest.pixel_graph.height}"
        """``WIDTHxHEIGHT``."""
        if manifest.layout:  # every first token is allowed where it stands, and forced ones are as they have to be
            self._fill = np.repeat([s.first for s in manifest.layout], [s.times for s in manifest.layout]).astype(
                np.int64
            )
            self._places = Layout(manifest.layout).free()
        else:
            self._fill = np.full(manifest.length, manifest.generated_tokens.first, np.int64)
            self._places = np.arange(manifest.length)
        _require(output_format)

    async def open(self) -> None:
        """Open what makes the pixels, so that what is wrong with it is told before anything is decoded.

        Raises
        ------
        BundleError, MissingDependency
            It cannot be opened.
        """
        await self._model.open_pictures()

    @property
    def grid(self) -> Grid:
        """Rows and columns of the picture's tokens.

        Raises
        ------
        InvalidArgument
            The model does not say.
        """
        if self._grid is None:
            raise InvalidArgument(
                f"partial_images: the bundle of the model {self._model.name} does not say in which rows its tokens lie; "
                "leave partial_images out"
            )
        return self._grid

    def thresholds(self, partial_images: int) -> list[int]:
        """How many rows each of so many partial pictures has: evenly spread, none of them empty.

        Raises
        ------
        InvalidArgument
            The model does not say in which rows its tokens lie.
        """
        if not partial_images:
            return []
        rows = self.grid.rows
        return sorted({math.ceil(rows * (i + 1) / (partial_images + 1)) for i in range(partial_images)})

    def rows(self, tokens: int) -> int:
        """How many rows the first ``tokens`` committed ones fill."""
        return int(np.searchsorted(self._places, tokens)) // self.grid.columns

    async def whole(self, tokens: Sequence[int]) -> str:
        """The picture of all its tokens, in base 64."""
        return await self._written(np.asarray(tokens, np.int64), self._height)

    async def partial(self, tokens: Sequence[int], rows: int) -> str:
        """The first ``rows`` rows of a picture of which at least these are in ``tokens``, in base 64."""
        grid, filled = self.grid, self._fill.copy()
        known = int(self._places[rows * grid.columns - 1]) + 1
        filled[:known] = tokens[:known]
        return await self._written(filled, self._height * rows // grid.rows)

    async def _written(self, tokens: NDArray[np.int64], height: int) -> str:
        (pixels,) = await self._model.pictures([tokens.tolist()])
        return await asyncio.to_thread(_encoded, pixels, height, FORMATS[self._format])


def _encoded(pixels: NDArray[np.uint8], height: int, settings: dict[str, Any]) -> str:
    from PIL import Image

    shown = pixels.copy()
    shown[height:] = BLANK
    written = io.BytesIO()
    Image.fromarray(shown[..., 0] if shown.shape[-1] == 1 else shown).save(written, **settings)
    return base64.b64encode(written.getvalue()).decode()


def _require(output_format: str) -> None:
    try:
        from PIL import features
    except ImportError as error:
        raise MissingDependency(
            "pictures need Pillow, which is not installed: pip install 'coupled-sampling[serve]'"
        ) from error
    codec = {"png": "zlib", "jpeg": "jpg", "webp": "webp"}[output_format]
    if not features.check(codec):
        raise MissingDependency(f"output_format: the installed Pillow writes no {output_format}; ask for png")

"""`Painter`: tokens as files of pictures or of clips, whole, or in parts as far as they are committed.

| | a part is | a part is sent as | formats; the first one if none is asked for |
|---|---|---|---|
| `PicturePainter` | a row of tokens | the rows so far, and grey below | PNG, WebP, JPEG |
| `ClipPainter` | a frame of pixels | this frame alone | WebP, PNG and GIF, animated; a frame alone is no GIF, but PNG |

All pixels come from the pixel decoder that also makes the whole, which gets the committed tokens and arbitrary ones for the rest.
The tokens of a part are final: committed ones never change. A frame's pixels are final, too: nothing that comes later has a part in
them. So are those of a row where they come from its own tokens, as in the embedded model of pictures. A convolutional decoder looks
across the edge: there the pixels next to the grey may still change when more rows come.
"""

from __future__ import annotations

import asyncio
import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.animations import FPS, check_fps, check_size
from coupled_sampling.bundles.layouts import Layout
from coupled_sampling.bundles.manifest import Grid
from coupled_sampling.errors import InvalidArgument
from coupled_sampling.serving.http.errors import ApiError
from coupled_sampling.serving.http.files import CLIPS, PICTURES, clip_file, picture_file, require
from coupled_sampling.serving.served import ServedModel

__all__ = ["BLANK", "ClipPainter", "Painter", "PicturePainter", "painter_of"]

BLANK = 128
"""The grey of rows that are not committed."""


def painter_of(model: ServedModel, output_format: str | None, fps: int | None) -> Painter:
    """What makes files of what ``model`` makes.

    Parameters
    ----------
    model
        A model with a pixel graph.
    output_format
        Of the files; None leaves it to the painter.
    fps
        Frames of a clip in a second; None is `FPS`.

    Raises
    ------
    ApiError
        The model makes no pictures, or none of that format, or it makes pictures, which have no frames.
    MissingDependency
        Pillow is not installed, or writes no such files.
    """
    if model.frames:
        return ClipPainter(model, output_format, fps)
    painter = PicturePainter(model, output_format)
    if fps is not None:
        raise ApiError(
            400,
            f"fps is {fps}, but the model {model.name} makes pictures, which do not move; leave it out",
            param="fps",
        )
    return painter


class Painter(ABC):
    """Makes files of what one model makes.

    Attributes
    ----------
    noun, part_noun
        What it makes, and in what parts it is sent, in words.
    size
        ``WIDTHxHEIGHT``.
    told
        What a response says of its files.
    prompt
        What is gone on from: a clip begins with the frames that it holds.
    """

    noun: ClassVar[str]
    part_noun: ClassVar[str]
    formats: ClassVar[Collection[str]]

    def __init__(self, model: ServedModel, output_format: str | None) -> None:
        manifest = model.bundle.manifest
        if manifest.pixel_graph is None:
            raise ApiError(
                400,
                f"the model {model.name} makes no pictures; "
                + ("it has no pixel graph" if model.makes_pictures else "continue a text with /v1/completions"),
                param="model",
            )
        self._format = output_format or next(iter(self.formats))
        if self._format not in self.formats:
            raise ApiError(
                400,
                f"output_format is {output_format!r}, but the model {model.name} makes {self.noun}s; "
                f"expected one of {', '.join(self.formats)}",
                param="output_format",
            )
        require(self._format)
        self._model, self._manifest, self._graph = model, manifest, manifest.pixel_graph
        self.prompt: Sequence[int] = ()
        self.size = f"{self._graph.width}x{self._graph.height}"
        self.told: dict[str, Any] = {"output_format": self._format, "size": self.size}
        if manifest.layout:  # every first token is allowed where it stands, and forced ones are as they have to be
            self._fill = np.repeat([s.first for s in manifest.layout], [s.times for s in manifest.layout]).astype(
                np.int64
            )
            self._places = Layout(manifest.layout).free()
        else:
            self._fill = np.full(manifest.length, manifest.generated_tokens.first, np.int64)
            self._places = np.arange(manifest.length)

    async def open(self) -> None:
        """Open what makes the pixels, so that what is wrong with it is told before anything is decoded.

        Raises
        ------
        BundleError, MissingDependency
            It cannot be opened.
        """
        await self._model.open_pictures()

    @property
    @abstractmethod
    def count(self) -> int:
        """How many parts there are.

        Raises
        ------
        InvalidArgument
            The model does not say.
        """

    @abstractmethod
    def ready(self, tokens: int) -> int:
        """How many parts the first ``tokens`` committed ones decide."""

    @abstractmethod
    async def partials(self, tokens: Sequence[int], due: Sequence[int]) -> list[dict[str, Any]]:
        """For each number of parts in ``due``, of which all are in ``tokens``, what its event says: ``b64_json`` and more."""

    @abstractmethod
    async def whole(self, tokens: Sequence[int]) -> str:
        """The file of all tokens, in base 64."""

    def thresholds(self, partial_images: int) -> list[int]:
        """After how many parts each of so many partial images is sent: evenly spread, none of them empty.

        Raises
        ------
        InvalidArgument
            The model does not say in which parts its tokens lie.
        """
        if not partial_images:
            return []
        return sorted({math.ceil(self.count * (i + 1) / (partial_images + 1)) for i in range(partial_images)})

    async def _pixels(self, tokens: Sequence[int], known: int) -> NDArray[np.uint8]:
        """Of the first ``known`` tokens, and arbitrary ones for the rest."""
        filled = self._fill.copy()
        filled[:known] = tokens[:known]
        every = self._manifest.picture_tokens(self.prompt, filled)
        pixels: NDArray[np.uint8] = (await self._model.pictures([every.tolist()]))[0]
        return pixels


class PicturePainter(Painter):
    """Makes files of pictures."""

    noun, part_noun, formats = "picture", "rows of tokens", PICTURES

    @property
    def _grid(self) -> Grid:
        if self._manifest.grid is None:
            raise InvalidArgument(
                f"partial_images: the bundle of the model {self._model.name} does not say in which rows its tokens lie; "
                "leave partial_images out"
            )
        return self._manifest.grid

    @property
    def count(self) -> int:
        return self._grid.rows

    def ready(self, tokens: int) -> int:
        return int(np.searchsorted(self._places, tokens)) // self._grid.columns

    async def partials(self, tokens: Sequence[int], due: Sequence[int]) -> list[dict[str, Any]]:
        return [{"b64_json": await self._first(tokens, rows), "rows": rows} for rows in due]

    async def whole(self, tokens: Sequence[int]) -> str:
        return await asyncio.to_thread(picture_file, await self._pixels(tokens, len(tokens)), self._format)

    async def _first(self, tokens: Sequence[int], rows: int) -> str:
        pixels = (await self._pixels(tokens, int(self._places[rows * self._grid.columns - 1]) + 1)).copy()
        pixels[self._graph.height * rows // self._grid.rows :] = BLANK
        return await asyncio.to_thread(picture_file, pixels, self._format)


class ClipPainter(Painter):
    """Makes files of clips; ``fps`` of their frames are shown in a second.

    Raises
    ------
    InvalidArgument
        No file of that format can have so many, or such large ones.
    """

    noun, part_noun, formats = "clip", "frames", CLIPS

    def __init__(self, model: ServedModel, output_format: str | None, fps: int | None) -> None:
        super().__init__(model, output_format)
        self._fps = fps or int(FPS)
        check_fps(self._fps, CLIPS[self._format])
        check_size(self._graph.height, self._graph.width, CLIPS[self._format])
        self._frame_format = self._format if self._format in PICTURES else "png"
        self.told |= {"frames": self.count, "fps": self._fps}

    @property
    def count(self) -> int:
        return self._graph.frames

    def ready(self, tokens: int) -> int:
        return self._manifest.frames_of(tokens)

    async def partials(self, tokens: Sequence[int], due: Sequence[int]) -> list[dict[str, Any]]:
        if not due:
            return []
        pixels = await self._pixels(tokens, len(tokens))  # once: a frame of tokens may be several of pixels
        files = await asyncio.to_thread(lambda: [picture_file(pixels[n - 1], self._frame_format) for n in due])
        return [
            {"b64_json": file, "frame": frames - 1, "output_format": self._frame_format}
            for file, frames in zip(files, due, strict=True)
        ]

    async def whole(self, tokens: Sequence[int]) -> str:
        return await asyncio.to_thread(clip_file, await self._pixels(tokens, len(tokens)), self._format, self._fps)

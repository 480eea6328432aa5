"""Pixels as files: pictures, and clips as animations of one file, by Pillow, in base 64.

A clip's frames follow each other at a rate. Files count time in whole steps, so that a frame ends at the step nearest to its time,
and no error adds up. Frames that are alike and follow each other are one frame that stays longer: what is seen at any time is the
same, and the file may have fewer frames than the clip.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.errors import MissingDependency

__all__ = ["CLIPS", "PICTURES", "clip_file", "picture_file", "require"]

PICTURES: dict[str, dict[str, Any]] = {
    "png": {"format": "PNG"},
    "webp": {"format": "WEBP", "lossless": True},
    "jpeg": {"format": "JPEG", "quality": 100, "subsampling": 0},
}
"""What Pillow is told of each. PNG and WebP keep every pixel; JPEG does not, and is as good as it can be."""

CLIPS: dict[str, dict[str, Any]] = {
    "webp": PICTURES["webp"],
    "png": PICTURES["png"],
    "gif": {"format": "GIF"},
}
"""The same of clips. GIF keeps every pixel of frames with up to 256 colours, as grey ones have, and the nearest ones of others."""

_STEPS = {"webp": 1, "png": 1, "gif": 10}
"""Milliseconds in which each of `CLIPS` counts time."""

_CODECS = {"png": "zlib", "webp": "webp", "jpeg": "jpg"}
"""What Pillow may have been built without."""


def picture_file(pixels: NDArray[np.uint8], output_format: str) -> str:
    """A file, one of `PICTURES`, of pixels (height, width, channels)."""
    return _written([pixels], PICTURES[output_format])


def clip_file(pixels: NDArray[np.uint8], output_format: str, fps: int) -> str:
    """A file, one of `CLIPS`, of pixels (frames, height, width, channels) that repeats them, ``fps`` of them in a second."""
    step = _STEPS[output_format]
    ends = [step * round(1000 * i / (fps * step)) for i in range(len(pixels) + 1)]
    lasting = [end - begin for begin, end in pairwise(ends)]
    return _written(pixels, {**CLIPS[output_format], "save_all": True, "duration": lasting, "loop": 0})


def require(output_format: str) -> None:
    """Refuse a format that cannot be written here.

    Raises
    ------
    MissingDependency
        Pillow is not installed, or writes no such files.
    """
    try:
        from PIL import features
    except ImportError as error:
        raise MissingDependency(
            "pictures need Pillow, which is not installed: pip install 'coupled-sampling[serve]'"
        ) from error
    if output_format in _CODECS and not features.check(_CODECS[output_format]):
        raise MissingDependency(f"output_format: the installed Pillow writes no {output_format}; ask for png")


def _written(frames: Sequence[NDArray[np.uint8]] | NDArray[np.uint8], settings: dict[str, Any]) -> str:
    from PIL import Image

    first, *rest = [Image.fromarray(frame[..., 0] if frame.shape[-1] == 1 else frame) for frame in frames]
    more = {"append_images": rest} if settings.get("save_all") else {}
    file = io.BytesIO()
    first.save(file, **settings, **more)
    return base64.b64encode(file.getvalue()).decode()

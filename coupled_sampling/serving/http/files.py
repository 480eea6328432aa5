"""Pixels as files in base 64: pictures by Pillow, clips by `coupled_sampling.animations`."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.animations import encode_clip
from coupled_sampling.errors import MissingDependency

__all__ = ["CLIPS", "PICTURES", "clip_file", "picture_file", "require"]

PICTURES: dict[str, dict[str, Any]] = {
    "png": {"format": "PNG"},
    "webp": {"format": "WEBP", "lossless": True},
    "jpeg": {"format": "JPEG", "quality": 100, "subsampling": 0},
}
"""What Pillow is told of each. PNG and WebP keep every pixel; JPEG does not, and is as good as it can be."""

CLIPS = {"webp": "WEBP", "png": "PNG", "gif": "GIF"}
"""Kinds of animations. GIF keeps every pixel of frames with up to 256 colours, as grey ones have; the others keep all."""

_CODECS = {"png": "zlib", "webp": "webp", "jpeg": "jpg"}
"""What Pillow may have been built without."""


def picture_file(pixels: NDArray[np.uint8], output_format: str) -> str:
    """A file, one of `PICTURES`, of pixels (height, width, channels)."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(file, **PICTURES[output_format])
    return base64.b64encode(file.getvalue()).decode()


def clip_file(pixels: NDArray[np.uint8], output_format: str, fps: int) -> str:
    """A file, one of `CLIPS`, of pixels (frames, height, width, channels) that repeats them, ``fps`` of them in a second."""
    return base64.b64encode(encode_clip(pixels, CLIPS[output_format], fps)).decode()


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

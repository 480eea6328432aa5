"""Files of clips: animated GIF, WebP and PNG by Pillow, MP4 by PyAV. What is written loops for ever, where its kind can say so.

| kind | pixels |
|---|---|
| GIF | greys and up to 256 colours in a frame as they are; more are reduced to 256 |
| WebP, PNG | as they are |
| MP4 | lossy, H.264 |

A frame that is exactly the one before it may be written as a longer showing of that one: the clip plays the same.
"""

from __future__ import annotations

import importlib
import io
import math
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.errors import InvalidArgument, MissingDependency

__all__ = ["CLIPS", "FPS", "check_fps", "check_size", "encode_clip", "require_kind"]

CLIPS = {".gif": "GIF", ".webp": "WEBP", ".png": "PNG", ".apng": "PNG", ".mp4": "MP4"}
"""Kinds of clips, by the ending of a file; a file without one is the first of them."""
FPS = 8.0
"""Frames in a second, unless told otherwise."""

_FASTEST = {"GIF": 50.0, "WEBP": 100.0, "PNG": 100.0, "MP4": 100.0}
"""Most frames in a second: programs that show GIFs take a hundredth of a second for a tenth."""
_WIDEST = {"GIF": 2**16 - 1, "WEBP": 2**14 - 1, "PNG": 2**31 - 1, "JPEG": 65_500, "MP4": 2**14}
"""Most pixels of a side, of clips and of pictures."""
_TICK = {"GIF": 10, "WEBP": 1, "PNG": 1}
"""Milliseconds that durations are multiples of."""
_SETTINGS: dict[str, dict[str, Any]] = {
    "GIF": {"optimize": False},
    "WEBP": {"lossless": True, "quality": 80, "method": 4},
    "PNG": {},
}
"""Of Pillow's writers; the quality of what is lossless is the work that is spent on a small file."""


def check_fps(fps: float, kind: str) -> float:
    """``fps``, which a clip of that kind can have.

    Raises
    ------
    InvalidArgument
        It cannot.
    """
    if not (math.isfinite(fps) and 0.1 <= fps <= _FASTEST[kind]):
        raise InvalidArgument(f"fps is {fps:g}, expected 0.1 to {_FASTEST[kind]:g} frames in a second for {kind}")
    return fps


def check_size(height: int, width: int, kind: str) -> None:
    """Refuse a picture, or a clip, that is larger than its kind can be: one of `CLIPS`, or a JPEG.

    Raises
    ------
    InvalidArgument
        It is.

    Examples
    --------
    >>> from coupled_sampling.animations import check_size
    >>> check_size(640, 1024, "WEBP")
    >>> check_size(20406, 1026, "WEBP")
    Traceback (most recent call last):
    coupled_sampling.errors.InvalidArgument: a WEBP of 20406 by 1026 pixels is too large, expected at most 16383 in a side...
    """
    if max(height, width) > _WIDEST[kind]:
        raise InvalidArgument(
            f"a {kind} of {height} by {width} pixels is too large, expected at most {_WIDEST[kind]} in a side; ask for fewer of "
            "them in one file, or for PNG"
        )


def require_kind(kind: str) -> None:
    """Have what writes clips of a kind, one of the values of `CLIPS`.

    Raises
    ------
    MissingDependency
        A package is not installed, or was built without it.
    """
    if kind == "MP4":
        _av()
        return
    _pillow()
    features = importlib.import_module("PIL.features")
    if kind == "WEBP" and not features.check("webp"):
        raise MissingDependency("the installed Pillow writes no WebP: pip install --force-reinstall pillow")


def encode_clip(frames: NDArray[np.uint8], kind: str, fps: float = FPS) -> bytes:
    """The file of one clip.

    Parameters
    ----------
    frames
        uint8 (frames, H, W, C), C 1 or 3.
    kind
        One of the values of `CLIPS`.
    fps
        Frames in a second.

    Raises
    ------
    InvalidArgument
        The kind cannot have so many frames in a second, or such large ones.
    MissingDependency
        What writes it is not installed.

    Examples
    --------
    >>> import io
    >>> import numpy as np
    >>> from PIL import Image
    >>> from coupled_sampling.animations import encode_clip
    >>> frames = np.arange(3 * 4 * 4, dtype=np.uint8).reshape(3, 4, 4, 1)
    >>> Image.open(io.BytesIO(encode_clip(frames, "GIF"))).n_frames
    3
    """
    check_fps(fps, kind)
    check_size(frames.shape[1], frames.shape[2], kind)
    written = io.BytesIO()
    if kind == "MP4":
        _write_mp4(frames, written, fps)
        return written.getvalue()
    pillow = _pillow()
    first, *others = [pillow.fromarray(frame[..., 0] if frame.shape[-1] == 1 else frame) for frame in frames]
    durations = _durations(len(frames), fps, _TICK[kind])
    first.save(written, kind, save_all=True, append_images=others, duration=durations, loop=0, **_SETTINGS[kind])
    return written.getvalue()


def _durations(count: int, fps: float, tick: int) -> list[int]:
    """Milliseconds of each frame, multiples of ``tick``; those that it is no divisor of come out right in the sum."""
    ends = [math.floor(1000 * i / (fps * tick) + 0.5) * tick for i in range(count + 1)]
    return [end - begin for begin, end in pairwise(ends)]


def _write_mp4(frames: NDArray[np.uint8], file: io.BytesIO, fps: float) -> None:
    # Colours are halved in both directions, so that sides are even: a column or row of white is added.
    padding = ((0, 0), (0, frames.shape[1] % 2), (0, frames.shape[2] % 2), (0, 0))
    even = np.pad(frames, padding, constant_values=255)
    colours = np.broadcast_to(even, (*even.shape[:3], 3))
    av = _av()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000), options={"crf": "16"})
        stream.height, stream.width, stream.pix_fmt = *even.shape[1:3], "yuv420p"
        for frame in colours:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())


def _pillow() -> Any:
    return _required("PIL.Image", "clips need Pillow", "pictures")


def _av() -> Any:
    return _required("av", "MP4 needs PyAV (av)", "video")


def _required(module: str, what: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingDependency(f"{what}, which is not installed: pip install 'coupled-sampling[{extra}]'") from error

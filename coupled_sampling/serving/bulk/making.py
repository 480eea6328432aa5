"""A sequence that is wanted, made: its tokens, its text, its picture or clip."""

from __future__ import annotations

import asyncio
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.animations import encode_clip, require_kind
from coupled_sampling.backends import PixelDecoder
from coupled_sampling.bundles.manifest import Manifest
from coupled_sampling.bundles.opening import Bundle
from coupled_sampling.bundles.text import TextStream
from coupled_sampling.errors import InvalidArgument, MissingDependency
from coupled_sampling.serving.bulk.rows import Asked
from coupled_sampling.serving.errors import DeadlineExceeded, Overloaded
from coupled_sampling.serving.jobs import Job
from coupled_sampling.serving.lanes import Source
from coupled_sampling.serving.ways import job_settings

__all__ = ["Made", "Maker", "picture_ending", "require_pillow"]

_LONGEST_WAIT = 1.0
"""Seconds after which a lane is asked for again that had no room."""


def require_pillow() -> Any:
    """The module ``PIL.Image``.

    Raises
    ------
    MissingDependency
        It is not installed.
    """
    try:
        import PIL.Image
    except ImportError as error:
        raise MissingDependency(
            "pictures need Pillow, which is not installed: pip install 'coupled-sampling[bulk]'"
        ) from error
    return PIL.Image


def picture_ending(manifest: Manifest) -> str:
    """How the names of files end that a model's pictures or clips are written to: both kinds keep every pixel.

    Raises
    ------
    MissingDependency
        What writes them is not installed; not asked for a model that makes neither.
    """
    if manifest.pixel_graph is not None:
        require_pillow()
    if not manifest.makes_clips:
        return ".png"
    require_kind("WEBP")
    return ".webp"


@dataclass(frozen=True)
class Made:
    """What became of one sequence.

    Parameters
    ----------
    asked
        What was wanted.
    method, window
        How it was decoded; the window may be "auto".
    tokens, logprobs
        What was generated; the second where it was asked for.
    passes
        Forward passes that it took.
    reason
        Why it ended: "length", "stop" or "error".
    error
        What went wrong, where that is the reason.
    text
        Of a model that reads text: up to a stop string.
    picture
        The bytes of a PNG, of a model that makes pictures; of an animated WebP without loss, of one that makes clips.
    """

    asked: Asked
    method: str
    window: int | str
    tokens: tuple[int, ...] = ()
    logprobs: tuple[float, ...] | None = None
    passes: int = 0
    reason: str = "error"
    error: str | None = None
    text: str | None = None
    picture: bytes | None = None


class Maker:
    """Makes sequences of one model, as many at a time as it is asked for.

    Parameters
    ----------
    bundle
        The model.
    source
        Where jobs are done.
    defaults
        Settings of jobs that do not say, as the source has them.
    """

    def __init__(self, bundle: Bundle, source: Source, defaults: dict[str, Any]) -> None:
        self._bundle, self._source, self._defaults = bundle, source, defaults
        self._tokenizer = bundle.tokenizer()
        self._pixels: PixelDecoder | None = None
        if bundle.manifest.pixel_graph is not None:
            picture_ending(bundle.manifest)
            self._pixels = PixelDecoder.open(bundle, threads=1)

    async def make(self, asked: Asked) -> Made:
        """Make ``asked``. What is wrong with it alone is told in what is returned.

        Raises
        ------
        ServingError
            The model does not work any more.
        """
        decoding = job_settings(self._bundle, self._defaults, asked.job)
        tokens: list[int] = []
        logprobs: list[float] = []
        passes, reason, error = 0, "error", None
        try:
            async with await self._begun(asked.job) as pieces:
                async for piece in pieces:
                    tokens += piece.tokens
                    logprobs += piece.logprobs or ()
                    if piece.reason is not None:
                        reason, error, passes = piece.reason, piece.error, len(piece.committed_per_pass)
        except (InvalidArgument, DeadlineExceeded) as refused:
            error = str(refused)
        text = picture = None
        if error is None:
            try:
                text, picture = await asyncio.to_thread(self._shown, asked.job, tokens)
            except InvalidArgument as refused:  # tokens without pixels
                reason, error = "error", str(refused)
        return Made(
            asked,
            decoding.method,
            decoding.window,
            tokens=tuple(tokens),
            logprobs=tuple(logprobs) if asked.job.logprobs else None,
            passes=passes,
            reason=reason,
            error=error,
            text=text,
            picture=picture,
        )

    async def _begun(self, job: Job) -> Any:
        while True:
            try:
                return await self._source.submit(job)
            except Overloaded as full:  # as many lanes are open as may be, all of them busy
                await asyncio.sleep(min(full.retry_after, _LONGEST_WAIT))

    def _shown(self, job: Job, tokens: list[int]) -> tuple[str | None, bytes | None]:
        """The text, and the picture or clip as a file."""
        text = picture = None
        if self._tokenizer is not None:
            stream = TextStream(self._tokenizer, job.stop, job.prompt if job.continued else ())
            text = stream.feed(tokens) + stream.finish()
        if self._pixels is not None:
            (pixels,) = self._pixels(self._bundle.manifest.picture_tokens(job.prompt, tokens)[None])
            picture = encode_clip(pixels, "WEBP") if self._bundle.manifest.makes_clips else _png(pixels)
        return text, picture


def _png(pixels: NDArray[np.uint8]) -> bytes:
    written = io.BytesIO()
    require_pillow().fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(written, "PNG")
    return written.getvalue()

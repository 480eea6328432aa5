"""Clips for people: a grid of them as one file, and frames as files of their own, as soon as they are decided."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.animations import encode_clip
from coupled_sampling.bundles.files import check_place, write_whole
from coupled_sampling.bundles.manifest import Manifest
from coupled_sampling.cli.models import PixelDecoder
from coupled_sampling.cli.pictures import sheet, write_picture
from coupled_sampling.decoding import Commit
from coupled_sampling.errors import OutputError

__all__ = ["FrameFiles", "check_new_folder", "write_clips"]


def write_clips(clips: NDArray[np.uint8], path: Path, kind: str, fps: float) -> None:
    """Write ``clips`` uint8 (N, frames, H, W, C) as one: each of its frames is the sheet of theirs.

    Raises
    ------
    MissingDependency, OutputError
        What writes clips of that ``kind`` is not installed; the file cannot be written.
    """
    encoded = encode_clip(np.stack([sheet(frame) for frame in clips.swapaxes(0, 1)]), kind, fps)
    write_whole(path, lambda partial: partial.write_bytes(encoded))


def check_new_folder(path: Path) -> None:
    """Refuse a folder that cannot be made, or has something in it: frames of two runs must not be mixed.

    Raises
    ------
    OutputError
        It cannot be used.
    """
    real = check_place(path)
    if not os.path.lexists(real):
        return
    if not real.is_dir():
        raise OutputError(f"cannot write {path}: it is no folder; name another one")
    if not os.access(real, os.W_OK | os.X_OK):
        raise OutputError(f"cannot write {path}: no permission; name another folder")
    found = next(real.iterdir(), None)
    if found is not None:
        raise OutputError(f"cannot write {path}: it has {found.name} in it; name a new or an empty folder")


class FrameFiles:
    """Files of frames, such as ``clip-00-frame-03.png``, each written once all of its tokens are committed.

    Parameters
    ----------
    folder
        Where they go; it is made with the first of them.
    pixels
        What makes frames of tokens.
    prompts
        What each clip goes on from.
    method
        Whose clips they are, where several methods run.
    """

    def __init__(self, folder: Path, pixels: PixelDecoder, prompts: Sequence[Sequence[int]], method: str) -> None:
        self._folder, self._pixels, self._method = folder, pixels, method
        self._manifest = pixels.bundle.manifest
        undecided = _undecided(self._manifest)
        self._tokens = np.stack([self._manifest.picture_tokens(prompt, undecided) for prompt in prompts])
        self._begun = self._tokens.shape[1] - len(undecided)
        self._committed = [0] * len(prompts)
        self._written = [0] * len(prompts)

    def watch(self, method: str, commit: Commit) -> None:
        """Write the frames that a commit has decided.

        Raises
        ------
        OutputError
            One cannot be written.
        """
        if method != self._method:
            return
        clip, begin = commit.handle, self._committed[commit.handle]
        self._committed[clip] = end = begin + len(commit.tokens)
        self._tokens[clip, self._begun + begin : self._begun + end] = commit.tokens
        decided = self._manifest.frames_of(end)
        if decided == self._written[clip]:
            return
        # What is not decided yet has no part in them.
        (frames,) = self._pixels(self._tokens[clip : clip + 1])
        try:
            self._folder.mkdir(exist_ok=True)
        except OSError as error:
            raise OutputError(f"cannot write {self._folder}: {error}") from error
        for i in range(self._written[clip], decided):
            write_picture(frames[i], self._folder / self._name(clip, i))
        self._written[clip] = decided

    def _name(self, clip: int, frame: int) -> str:
        digits = [max(2, len(str(count - 1))) for count in (len(self._tokens), self._pixels.shape[0])]
        return f"clip-{clip:0{digits[0]}}-frame-{frame:0{digits[1]}}.png"


def _undecided(manifest: Manifest) -> NDArray[np.int64]:
    """(length,) tokens that may stand where none is committed yet."""
    if not manifest.layout:
        return np.full(manifest.length, manifest.generated_tokens.first, np.int64)
    spans = manifest.layout
    return np.repeat([span.first for span in spans], [span.times for span in spans]).astype(np.int64)

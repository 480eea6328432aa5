"""Frames of clips: which of their pixels are decided, and the ones that a prompt holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.sampling import Integers

__all__ = ["PromptFrames", "decided_frames"]


def decided_frames(pixel_frames: int, frames: int, whole: int) -> int:
    """How many of ``pixel_frames`` frames of pixels the first ``whole`` of ``frames`` frames of tokens decide.

    Each makes equally many, but for the first one, which makes a single one where the decoder is causal in time. Where both come
    out even, the smaller number is right for both; where neither does, none is known before the end.

    >>> decided_frames(12, 12, whole=3), decided_frames(33, 5, whole=2)
    (3, 9)
    """
    if whole in (0, frames):
        return pixel_frames if whole else 0
    (alike, uneven), (later, odd) = divmod(pixel_frames, frames), divmod(pixel_frames - 1, frames - 1)
    possible = [] if uneven else [whole * alike]
    return min(possible if odd else [*possible, 1 + (whole - 1) * later], default=0)


class PromptFrames(NamedTuple):
    """The frames that every prompt of a model ends with, as tokens that the model could have generated.

    What comes before them cannot be generated. Where the model wants certain tokens there, such as one that begins a video, these
    are all that comes before.

    >>> frames = PromptFrames(tokens=2, first=0, last=7)
    >>> frames.refusal([9, 1, 2]) is None, frames.refusal([0, 1, 2])
    (True, '2 tokens from 0 to 7 at its end, the frames to go on from, and none of these before')
    >>> PromptFrames(tokens=2, first=0, last=7, begin=(8,)).refusal([1, 2])
    '8 first, and then 2 tokens from 0 to 7, the frames to go on from'
    """

    tokens: int
    """How many there are; 0 where a prompt only has to begin in some way."""
    first: int
    last: int
    """The tokens that can be generated: from ``first`` to ``last``."""
    begin: tuple[int, ...] = ()
    """What every prompt begins with; empty where any tokens that are never generated may come before the frames."""

    def refusal(self, prompt: Sequence[int] | Integers) -> str | None:
        """What is expected of a ``prompt`` that is not made so; None of one that is."""
        given = np.asarray(prompt, np.int64)
        frames = self._possible(given)
        whole = frames.sum() == self.tokens and frames[-self.tokens :].all()
        nothing_else = not self.begin or len(given) == len(self.begin) + self.tokens
        if self._begins(given) and (not self.tokens or (whole and nothing_else)):
            return None
        first = f"{', '.join(map(str, self.begin))} first"
        if not self.tokens:
            return first
        which = f"{self.tokens} tokens from {self.first} to {self.last}"
        if self.begin:
            return f"{first}, and then {which}, the frames to go on from"
        return f"{which} at its end, the frames to go on from, and none of these before"

    def found(self, prompt: Sequence[int] | Integers) -> str:
        """What there is in place of it: how many tokens, and the first that cannot be where it is.

        >>> frames = PromptFrames(tokens=2, first=0, last=7, begin=(8,))
        >>> frames.found([8, 1]), frames.found([8, 1, 9]), frames.found([9, 1, 2])
        ('2 tokens', '3 tokens, of which token 2 is 9', '3 tokens, of which token 0 is 9')
        """
        given = np.asarray(prompt, np.int64)
        counted, before = f"{len(given)} tokens", len(given) - self.tokens
        if not self._begins(given):
            wrong = next(
                (i for i, (one, begin) in enumerate(zip(given, self.begin, strict=False)) if one != begin), None
            )
        elif before < len(self.begin):
            wrong = None
        else:
            tail = self._possible(given)
            tail[:before] = True if self.begin else ~tail[:before]
            wrong = None if tail.all() else int(tail.argmin())
        return counted if wrong is None else f"{counted}, of which token {wrong} is {given[wrong]}"

    def _possible(self, given: Integers) -> NDArray[np.bool_]:
        return (given >= self.first) & (given <= self.last)

    def _begins(self, given: Integers) -> bool:
        return tuple(given[: len(self.begin)].tolist()) == self.begin

"""What is asked of a decoder, and what it gives back: `Request` and `Commit`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from coupled_sampling.contracts import Integers, Sampling
from coupled_sampling.errors import InvalidArgument
from coupled_sampling.trace import Trace

__all__ = ["Commit", "Request", "checked_prompt"]


@dataclass(frozen=True)
class Request:
    """One sequence to generate.

    Parameters
    ----------
    prompt
        Tokens to continue, at least one.
    length
        Tokens to generate, the prompt not counted; >= 1.
    seed, sequence
        Key of the sequence's noise, both in [0, 2**64): the same key, prompt and settings give the same tokens in any
        batch and any order, save with windows that are chosen while decoding. Give sequences that share a seed different
        ``sequence`` numbers.
    stop
        Tokens that end the sequence; the stop token itself is committed.
    sampling
        How logits become the target law.

    Examples
    --------
    >>> from coupled_sampling import Request, Sampling
    >>> Request([3, 1], length=20, seed=1, stop=[7], sampling=Sampling(temperature=0.5)).length
    20
    >>> Request([3], length=0)
    Traceback (most recent call last):
    coupled_sampling.errors.InvalidArgument: length is 0, expected a number of tokens to generate, >= 1
    """

    prompt: Sequence[int]
    length: int
    seed: int = 0
    sequence: int = 0
    stop: Sequence[int] = ()
    sampling: Sampling = field(default_factory=Sampling)

    def __post_init__(self) -> None:
        for name in ("seed", "sequence"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not 0 <= value < 2**64:
                raise InvalidArgument(f"{name} is {value!r}, expected an integer in [0, 2**64)")
        if isinstance(self.length, bool) or not isinstance(self.length, (int, np.integer)) or self.length < 1:
            raise InvalidArgument(f"length is {self.length!r}, expected a number of tokens to generate, >= 1")
        stop = np.asarray(self.stop if self.stop is not None else 0.5)
        if stop.ndim != 1 or (stop.size and not np.issubdtype(stop.dtype, np.integer)):
            raise InvalidArgument(f"stop is {self.stop!r}, expected a sequence of integer tokens, empty for none")


class Commit(NamedTuple):
    """Newly committed tokens of one sequence.

    Examples
    --------
    >>> from coupled_sampling import stream
    >>> from coupled_sampling.testing import TableProvider, random_table
    >>> commits = list(stream(TableProvider(random_table(0, 4), 4), [[0, 2]], length=6, method="ar"))
    >>> commits[0].handle, commits[0].position, commits[0].tokens.shape, commits[0].finished
    (0, 2, (1,), False)
    >>> commits[-1].finished
    True
    """

    handle: int
    """What `Decoder.add` returned; in `coupled_sampling.stream`, the index of the prompt."""
    position: int
    """Position of the first of ``tokens``, the prompt included."""
    tokens: Integers
    """(n,) never empty."""
    finished: bool
    """Whether the sequence has ended, by length or by a stop token."""
    trace: Trace
    """The sequence's trace so far; it grows while the sequence goes on."""


def checked_prompt(request: Request, vocab_size: int) -> Integers:
    """The prompt as int64, refused if it is empty or leaves the vocabulary."""
    prompt = np.asarray(request.prompt)
    if prompt.ndim != 1 or not prompt.size:
        raise InvalidArgument(f"prompt has shape {prompt.shape}, expected at least one token in a flat sequence")
    if not np.issubdtype(prompt.dtype, np.integer):
        raise InvalidArgument(f"prompt has type {prompt.dtype}, expected integer tokens")
    outside = (prompt < 0) | (prompt >= vocab_size)
    if outside.any():
        where = int(np.flatnonzero(outside)[0])
        raise InvalidArgument(f"prompt token {where} is {prompt[where]}, expected tokens in [0, {vocab_size})")
    return prompt.astype(np.int64)

"""What is asked of a decoder, and what it gives back: `Request` and `Commit`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.arguments import checked_tokens, is_whole, shown
from coupled_sampling.errors import InvalidArgument
from coupled_sampling.sampling import Integers, Sampling
from coupled_sampling.trace import Trace

__all__ = ["Commit", "Guidance", "Reason", "Request", "StopRule", "read_interval"]

Reason: TypeAlias = Literal["length", "stop", "error", "removed"]
"""Why a sequence ended."""

StopRule: TypeAlias = Callable[[Integers, int], "int | None"]
"""``rule(generated (n,), new) -> keep or None``: whether a sequence ends among its ``new`` latest tokens.

``generated`` are all generated tokens so far, read-only. The outcome is None to go on, or how many of them to keep, at least
``n - new``: what follows is discarded. It may look at nothing else, and at a sequence's own tokens only.
"""


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance of one request, where the model is a guided one (`coupled_sampling.GuidedProvider`).

    Parameters
    ----------
    scale
        The scale; or a function from int64 (n,) indices of generated tokens, the first is 0, to scales (n,). None is the
        model's own.
    unconditional
        The unconditional prompt, such as a negative one, at least one token. None is the model's own.
    condition
        What the unconditional row is told in place of the request's ``condition``, such as an encoder's output for no text at
        all. None is the request's own.

    Examples
    --------
    A scale that falls from 6 by one for each token, and a prompt for what is not wanted:

    >>> import numpy as np
    >>> from coupled_sampling import Guidance
    >>> guidance = Guidance(scale=lambda index: np.maximum(6.0 - index, 1.0), unconditional=[5])
    >>> guidance.scales(np.array([0, 1, 99]), own=7.5)
    array([6., 5., 1.])
    >>> Guidance(unconditional=[5]).scales(np.array([0, 1]), own=7.5)
    array([7.5, 7.5])
    """

    scale: float | Callable[[Integers], Any] | None = None
    unconditional: Sequence[int] | None = None
    condition: object = None

    def __post_init__(self) -> None:
        if not callable(self.scale) and self.scale is not None:
            try:
                finite = not isinstance(self.scale, bool) and bool(np.isfinite(self.scale))
            except (TypeError, ValueError):
                finite = False
            if not finite:
                raise InvalidArgument(f"scale is {self.scale!r}, expected a finite number or a function of the index")
        if self.unconditional is not None:
            checked_tokens("unconditional", self.unconditional)

    @classmethod
    def until(cls, tokens: int, scale: float, unconditional: Sequence[int] | None = None) -> Guidance:
        """Guidance at ``scale`` for the first ``tokens`` generated tokens, and none after them.

        LlamaGen's ``cfg_interval=n``, n >= 0, guides the first n + 2 tokens.

        Examples
        --------
        >>> import numpy as np
        >>> from coupled_sampling import Guidance
        >>> Guidance.until(100, scale=4.0).scales(np.array([0, 99, 100]), own=7.5)
        array([4., 4., 1.])
        """
        if not is_whole(tokens) or tokens < 0:
            raise InvalidArgument(f"tokens is {tokens!r}, expected how many of the first tokens to guide, >= 0")
        return cls.within(0, tokens, scale, unconditional)

    @classmethod
    def within(cls, first: int, end: int, scale: float, unconditional: Sequence[int] | None = None) -> Guidance:
        """Guidance at ``scale`` for the generated tokens ``first``, ..., ``end - 1``, and none before and after them.

        That a limited interval can be better than guidance throughout was found for diffusion (arXiv 2404.07724).

        Examples
        --------
        >>> import numpy as np
        >>> from coupled_sampling import Guidance
        >>> Guidance.within(10, 100, scale=4.0).scales(np.array([9, 10, 99, 100]), own=7.5)
        array([1., 4., 4., 1.])
        """
        if not is_whole(first) or not is_whole(end) or not 0 <= first <= end:
            raise InvalidArgument(f"first is {first!r} and end {end!r}, expected whole numbers, 0 <= first <= end")
        checked = cls(scale=scale)
        if callable(scale) or checked.scale is None:
            raise InvalidArgument(f"scale is {scale!r}, expected a finite number")
        return cls(_Within(int(first), int(end), float(scale)), unconditional)

    def scales(self, index: Integers, own: float) -> NDArray[np.float64]:
        """The scale of each generated token, given by its ``index`` (n,): float64 (n,); ``own`` is the model's.

        Raises
        ------
        InvalidArgument
            The function returned something else than a finite number for each.
        """
        if not callable(self.scale):
            return np.full(len(index), own if self.scale is None else self.scale, np.float64)
        made = np.asarray(self.scale(index))
        real = np.issubdtype(made.dtype, np.integer) or np.issubdtype(made.dtype, np.floating)
        if made.shape != index.shape or not real or not np.isfinite(made).all():
            raise InvalidArgument(
                f"guidance.scale returned {made!r} for {len(index)} indices, expected as many finite numbers"
            )
        return made.astype(np.float64)


@dataclass(frozen=True)
class _Within:
    """A scale for the tokens ``first``, ..., ``end - 1``, and 1 for others."""

    first: int
    end: int
    scale: float

    def __call__(self, index: Integers) -> NDArray[np.float64]:
        return np.where((index >= self.first) & (index < self.end), self.scale, 1.0)


def read_interval(text: object) -> tuple[int, int]:
    """The generated tokens (first, end) that are guided, of "FIRST:END", a slice as in Python: either may be left out.

    Raises
    ------
    InvalidArgument
        It is no such text, or has no token.

    Examples
    --------
    >>> from coupled_sampling.requests import read_interval
    >>> read_interval("10:100"), read_interval(":100")
    ((10, 100), (0, 100))
    """
    parts = text.split(":") if isinstance(text, str) else []
    if len(parts) == 2 and all(part == "" or (part.isascii() and part.isdigit() and len(part) <= 18) for part in parts):
        first, end = int(parts[0] or 0), int(parts[1] or _NO_END)
        if first < end:
            return first, end
    raise InvalidArgument(
        f"guidance_interval is {shown(text)}, expected FIRST:END, the first generated token to guide, from 0, and the first "
        "behind them that is not, such as 10:100"
    )


_NO_END = 2**63 - 1


@dataclass(frozen=True)
class Request:
    """One sequence to generate, or several of one prompt.

    Parameters
    ----------
    prompt
        Tokens to continue, at least one.
    length
        Tokens to generate, the prompt not counted; >= 1.
    seed, sequence
        Key of the sequence's noise, both in [0, 2**64): the same key, prompt and settings give the same tokens in any
        batch and any order, save with windows that are chosen while decoding. Give sequences that share a seed different
        ``sequence`` numbers; None has the decoder draw a fresh one, which `Decoder.request` tells.
    stop
        Tokens that end the sequence; the stop token itself is committed.
    stop_sequences
        Runs of generated tokens that end the sequence; they are committed.
    stop_rule
        A function that ends the sequence, see `StopRule`: stop strings are made of it.
    sampling
        How logits become the target law.
    samples
        How many sequences to generate: sample k has the sequence number ``sequence + k``. A model that can copy its state
        from row to row reads their prompt once.
    logprobs, model_logprobs
        Whether commits carry log-probabilities: under the target laws, and under the model's own laws, before processors and
        temperature.
    guidance
        Guidance of its own, where the model is a guided one.
    condition
        Anything; handed to the model's ``begin``: an encoder's output, a picture.
    generated
        To go on with an interrupted sequence: its generated tokens so far, which ``length`` counts. See `resumed`.

    Examples
    --------
    >>> from coupled_sampling import Request, Sampling
    >>> Request([3, 1], length=20, seed=1, stop=[7], sampling=Sampling(temperature=0.5)).length
    20
    >>> Request([3], length=0)
    Traceback (most recent call last):
    coupled_sampling.errors.InvalidArgument: length is 0, expected a number of tokens to generate, >= 1
    """

    prompt: Sequence[int] | Integers
    length: int
    seed: int = 0
    sequence: int | None = 0
    stop: Sequence[int] = ()
    sampling: Sampling = field(default_factory=Sampling)
    stop_sequences: Sequence[Sequence[int]] = ()
    stop_rule: StopRule | None = None
    samples: int = 1
    logprobs: bool = False
    model_logprobs: bool = False
    guidance: Guidance | None = None
    condition: object = None
    generated: Sequence[int] | Integers = ()

    def __post_init__(self) -> None:
        for name, least, what in (
            ("seed", 0, "an integer in [0, 2**64)"),
            ("sequence", 0, "an integer in [0, 2**64), or None for a fresh one"),
            ("length", 1, "a number of tokens to generate, >= 1"),
            ("samples", 1, "a number of sequences, >= 1"),
        ):
            value = getattr(self, name)
            if not (value is None and name == "sequence") and not (is_whole(value) and least <= value < 2**64):
                raise InvalidArgument(f"{name} is {value!r}, expected {what}")
        if self.sequence is not None and self.sequence + self.samples > 2**64:
            raise InvalidArgument(
                f"sequence is {self.sequence}, expected at most 2**64 - samples: each of {self.samples} samples has its own"
            )
        for name, kind in (("sampling", Sampling), ("logprobs", bool), ("model_logprobs", bool)):
            if not isinstance(getattr(self, name), kind):
                raise InvalidArgument(f"{name} is {getattr(self, name)!r}, expected a {kind.__name__}")
        if not isinstance(self.guidance, Guidance | None):
            raise InvalidArgument(f"guidance is {self.guidance!r}, expected a Guidance, or None for the model's own")
        if self.stop_rule is not None and not callable(self.stop_rule):
            raise InvalidArgument(f"stop_rule is {self.stop_rule!r}, expected a function of generated tokens, or None")
        checked_tokens("stop", self.stop, least=0)
        done = checked_tokens("generated", self.generated, least=0)
        if len(done) >= self.length:
            raise InvalidArgument(
                f"generated has {len(done)} tokens and length is {self.length}, which counts them: nothing is left to generate"
            )
        several = isinstance(self.stop_sequences, Sequence) or getattr(self.stop_sequences, "ndim", 0) > 0
        if isinstance(self.stop_sequences, str) or not several:
            raise InvalidArgument(f"stop_sequences is {self.stop_sequences!r}, expected a sequence of token sequences")
        for i, sequence in enumerate(self.stop_sequences):
            checked_tokens(f"stop_sequences[{i}]", sequence)

    def resumed(self, generated: Sequence[int] | Integers) -> Request:
        """The same request after an interruption.

        Parameters
        ----------
        generated
            The tokens (n,) that it has so far.

        Examples
        --------
        >>> from coupled_sampling import Decoder, Request
        >>> from coupled_sampling.testing import TableProvider, random_table
        >>> model, request = TableProvider(random_table(0, 4), 4), Request([0], length=9)
        >>> decoder = Decoder(model, method="scd-match", window=4)
        >>> handle = decoder.add(request)
        >>> first = decoder.step()[0]
        >>> rest = request.resumed(first.tokens)
        >>> other = Decoder(model, method="scd-match", window=4)
        >>> other.add(rest), other.step()[0].position == 1 + len(first.tokens)
        (0, True)
        """
        return replace(self, generated=[*np.asarray(generated).tolist()])


class Commit(NamedTuple):
    """Newly committed tokens of one sequence.

    Examples
    --------
    >>> from coupled_sampling import stream
    >>> from coupled_sampling.testing import TableProvider, random_table
    >>> commits = list(stream(TableProvider(random_table(0, 4), 4), [[0, 2]], length=6, method="ar"))
    >>> commits[0].handle, commits[0].position, commits[0].tokens.shape, commits[0].finished
    (0, 2, (1,), False)
    >>> commits[-1].finished, commits[-1].reason
    (True, 'length')
    """

    handle: int
    """What `Decoder.add` returned; in `coupled_sampling.stream`, the index of the prompt."""
    position: int
    """Position of the first of ``tokens``, the prompt included."""
    tokens: Integers
    """(n,) never empty, save where the reason is "error"."""
    finished: bool
    """Whether the sequence has ended."""
    trace: Trace
    """The sequence's trace so far; it grows while the sequence goes on."""
    reason: Reason | None = None
    """Why it has ended; None while it goes on."""
    error: Exception | None = None
    """What ended it, where the reason is "error"; its message names the handle."""
    logprobs: NDArray[np.float64] | None = None
    """(n,) log-probabilities of ``tokens`` under their target laws, if the request asks for them."""
    model_logprobs: NDArray[np.float64] | None = None
    """(n,) under the model's own laws, if the request asks for them."""

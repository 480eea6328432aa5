"""The short way in: `generate` and `stream`, for a list of prompts that are all known beforehand."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypedDict, Unpack

import numpy as np

from coupled_sampling.contracts import CoupledStep, Integers, LogitsProvider, Sampling
from coupled_sampling.decoding import Commit, Decoder, Request
from coupled_sampling.drafting import Drafting
from coupled_sampling.errors import InvalidArgument
from coupled_sampling.methods import Method
from coupled_sampling.noise import Noise
from coupled_sampling.trace import Trace
from coupled_sampling.windows import WindowRule

__all__ = ["DecoderSettings", "Generation", "generate", "stream"]


class DecoderSettings(TypedDict, total=False):
    """The settings of a `Decoder` that `generate` and `stream` pass on to it, as keywords.

    Examples
    --------
    >>> from coupled_sampling import generate
    >>> from coupled_sampling.generation import DecoderSettings
    >>> from coupled_sampling.testing import TableProvider, random_table
    >>> settings: DecoderSettings = {"method": "scd-match", "window": 4, "drafting": "repeat"}
    >>> generate(TableProvider(random_table(0, 4), 4), [[0]], length=6, **settings).tokens[0].shape
    (6,)
    """

    method: str | Method
    """Default "scd-gumbel"."""
    window: int | str | WindowRule
    """Default 32."""
    drafting: str | Drafting
    """Default "random"."""
    noise: Noise | None
    """Default `CounterNoise`, or the noise of a `CoupledStep`, beside which none may be given."""


class Generation(NamedTuple):
    """What `generate` returns; both lists are in the order of the prompts.

    Examples
    --------
    >>> from coupled_sampling import generate
    >>> from coupled_sampling.testing import TableProvider, random_table
    >>> generation = generate(TableProvider(random_table(0, 4), 4), [[0], [1, 2]], length=[3, 5])
    >>> [tokens.shape for tokens in generation.tokens]
    [(3,), (5,)]
    >>> tokens, traces = generation  # it is a tuple, too
    """

    tokens: list[Integers]
    """Generated tokens (n,), the prompt not included; shorter than asked where a stop token came."""
    traces: list[Trace]


def _requests(
    prompts: Sequence[Sequence[int]],
    length: int | Sequence[int],
    seed: int,
    stop: Sequence[int],
    sampling: Sampling | Sequence[Sampling] | None,
) -> list[Request]:
    sampling = Sampling() if sampling is None else sampling
    lengths = list(length) if isinstance(length, Sequence | np.ndarray) else [length] * len(prompts)
    samplings = [sampling] * len(prompts) if isinstance(sampling, Sampling) else list(sampling)
    for name, given in (("length", lengths), ("sampling", samplings)):
        if len(given) != len(prompts):
            raise InvalidArgument(
                f"{name} has {len(given)} entries for {len(prompts)} prompts; give one for all, or one each"
            )
    return [
        Request(prompt, lengths[i], seed=seed, sequence=i, stop=stop, sampling=samplings[i])
        for i, prompt in enumerate(prompts)
    ]


def _steps(decoder: Decoder) -> Iterator[Commit]:
    while decoder.active or decoder.waiting:
        yield from decoder.step()


def stream(
    model: LogitsProvider | CoupledStep,
    prompts: Sequence[Sequence[int]],
    *,
    length: int | Sequence[int],
    seed: int = 0,
    stop: Sequence[int] = (),
    sampling: Sampling | Sequence[Sampling] | None = None,
    **decoder: Unpack[DecoderSettings],
) -> Iterator[Commit]:
    """Generate, yielding each sequence's newly committed tokens as soon as they are final.

    Parameters are those of `generate`; they are checked before the first token is asked for. ``Commit.handle`` is the
    index of the prompt.

    Examples
    --------
    >>> from coupled_sampling import stream
    >>> from coupled_sampling.testing import TableProvider, random_table
    >>> model = TableProvider(random_table(0, 4), 4)
    >>> sum(len(commit.tokens) for commit in stream(model, [[0]], length=8, method="scd-match"))
    8
    """
    loop = Decoder(model, **decoder)
    for request in _requests(prompts, length, seed, stop, sampling):
        loop.add(request)
    return _steps(loop)


def generate(
    model: LogitsProvider | CoupledStep,
    prompts: Sequence[Sequence[int]],
    *,
    length: int | Sequence[int],
    seed: int = 0,
    stop: Sequence[int] = (),
    sampling: Sampling | Sequence[Sampling] | None = None,
    progress: Callable[[int], object] | None = None,
    **decoder: Unpack[DecoderSettings],
) -> Generation:
    """Continue every prompt.

    Parameters
    ----------
    model
        A `LogitsProvider`, or a `CoupledStep` (then ``method`` is its own). More prompts than its rows are queued.
    prompts
        Token sequences, each of at least one token.
    length
        Tokens to generate, the prompt not counted: one for all, or one each.
    seed
        Prompt i uses the noise of (seed, i), whatever the batch.
    stop
        Tokens that end a sequence; the stop token is the last of its tokens.
    sampling
        One `Sampling` for all, or one each; default: the model's own law at temperature 1.
    progress
        Called after every commit with the number of new tokens.
    **decoder
        ``method="scd-gumbel"``, ``window=32``, ``drafting="random"`` and ``noise=None``, as for `Decoder`.

    Returns
    -------
    Generation
        Tokens and traces, in the order of the prompts.

    Raises
    ------
    InvalidArgument
        An argument cannot work; nothing was run.
    ProviderError
        The model returned something that its contract does not allow.

    Examples
    --------
    >>> import numpy as np
    >>> from coupled_sampling import generate
    >>> class Walk:
    ...     vocab_size, batch_size, max_length = 5, 2, 64
    ...     def forward(self, tokens, start):
    ...         near = abs(tokens[..., None] - np.arange(5)) <= 1
    ...         return np.where(near, 0.0, -np.inf)
    >>> tokens, traces = generate(Walk(), [[2], [4]], length=8, method="scd-match", window=4)
    >>> [bool((abs(np.diff(t)) <= 1).all()) for t in tokens], [t.tokens for t in traces]
    ([True, True], [8, 8])
    """
    parts: list[list[Integers]] = [[] for _ in prompts]
    traces = [Trace() for _ in prompts]
    for commit in stream(model, prompts, length=length, seed=seed, stop=stop, sampling=sampling, **decoder):
        parts[commit.handle].append(commit.tokens)
        traces[commit.handle] = commit.trace
        if progress is not None:
            progress(len(commit.tokens))
    return Generation([np.concatenate(p) for p in parts], traces)

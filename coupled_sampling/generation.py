"""The short way in: `generate` and `stream`, for a list of prompts that are all known beforehand."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypedDict, Unpack

import numpy as np

from coupled_sampling.branching import Branching
from coupled_sampling.contracts import CoupledStep, Integers, LogitsProvider, Sampling
from coupled_sampling.corrections import Corrector
from coupled_sampling.decoding import Commit, Decoder, Request
from coupled_sampling.drafting import Drafting
from coupled_sampling.errors import InvalidArgument
from coupled_sampling.methods import Method
from coupled_sampling.noise import Noise
from coupled_sampling.trace import Trace
from coupled_sampling.windows import WindowRule

__all__ = ["DecoderSettings", "Generation", "GenerationSettings", "generate", "stream"]


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
    window: int | str | WindowRule | None
    """Default None: 32, or as many slots as the model takes."""
    drafting: str | Drafting
    """Default "random"."""
    noise: Noise | None
    """Default `CounterNoise`, or the noise of a `CoupledStep`, beside which none may be given."""
    prompt_chunk: int | None
    """Default None: as the model says."""
    reuse_prefixes: bool
    """Default False."""
    corrections: Corrector | None
    """Default None: redrafts are drawn from the laws of the pass."""
    branches: int | Branching | None
    """Default None: as the rule for windows says, which is none of fixed ones."""


class GenerationSettings(DecoderSettings, total=False):
    """What else `generate` and `stream` take, as keywords.

    Examples
    --------
    Two prompts with noise of their own, that end at a run of two tokens:

    >>> from coupled_sampling import generate
    >>> from coupled_sampling.generation import GenerationSettings
    >>> from coupled_sampling.testing import TableProvider, random_table
    >>> settings: GenerationSettings = {"seeds": [3, 5], "stop_sequences": [[1, 1]]}
    >>> len(generate(TableProvider(random_table(0, 4), 4), [[0], [0]], length=6, **settings).tokens)
    2
    """

    seeds: Sequence[int] | None
    """One seed for each prompt, in place of ``seed``."""
    sequences: Sequence[int | None] | None
    """One sequence number for each prompt; default: 0, 1, ..."""
    stop_sequences: Sequence[Sequence[int]]
    """Runs of generated tokens that end a sequence."""


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


class _Given(NamedTuple):
    """The arguments that requests are made of."""

    prompts: Iterable[Sequence[int] | Integers]
    length: int | Sequence[int]
    seed: int
    stop: Sequence[int]
    sampling: Sampling | Sequence[Sampling] | None


def _requests(given: _Given, settings: GenerationSettings) -> tuple[list[Request], DecoderSettings]:
    """A request for each prompt; and the settings that are the decoder's."""
    single = isinstance(given.prompts, str) or getattr(given.prompts, "ndim", 1) == 0
    if single or not isinstance(given.prompts, Iterable):
        raise InvalidArgument(f"prompts is {given.prompts!r}, expected token sequences, one each sequence to generate")
    prompts = list(given.prompts)
    sampling = Sampling() if given.sampling is None else given.sampling
    each: dict[str, list[Any]] = {
        "length": _each("length", given.length, Sequence | np.ndarray, len(prompts)),
        "sampling": _each("sampling", sampling, Sequence, len(prompts)),
        "seeds": [given.seed] * len(prompts),
        "sequences": list(range(len(prompts))),
    }
    decoder = {name: value for name, value in settings.items() if name in DecoderSettings.__annotations__}
    for name in ("seeds", "sequences"):
        if settings.get(name) is not None:
            each[name] = _each(name, settings[name], Sequence | np.ndarray, len(prompts))
    unknown = sorted(set(settings) - set(GenerationSettings.__annotations__))
    if unknown:
        raise TypeError(f"got an unexpected keyword argument {unknown[0]!r}")
    requests = [
        Request(
            prompt,
            each["length"][i],
            seed=each["seeds"][i],
            sequence=each["sequences"][i],
            stop=given.stop,
            sampling=each["sampling"][i],
            stop_sequences=settings.get("stop_sequences", ()),
        )
        for i, prompt in enumerate(prompts)
    ]
    return requests, decoder  # type: ignore[return-value]


def _each(name: str, given: Any, several: Any, count: int) -> list[Any]:
    """``given`` for each of ``count`` prompts, of which it may be one for all."""
    one = not isinstance(given, several) or isinstance(given, str) or getattr(given, "ndim", 1) == 0
    values = [given] * count if one else list(given)
    if len(values) != count:
        raise InvalidArgument(f"{name} has {len(values)} entries for {count} prompts; give one for all, or one each")
    return values


def _steps(decoder: Decoder) -> Iterator[Commit]:
    errors = []
    while decoder.active or decoder.waiting:
        for commit in decoder.step():
            if commit.error is not None:
                errors.append(commit.error)
            yield commit
    if errors:
        raise errors[0]


def _begin(given: _Given, model: LogitsProvider | CoupledStep, settings: GenerationSettings) -> Decoder:
    requests, own = _requests(given, settings)
    decoder = Decoder(model, **own)
    for request in requests:
        decoder.add(request)
    return decoder


def stream(
    model: LogitsProvider | CoupledStep,
    prompts: Iterable[Sequence[int] | Integers],
    *,
    length: int | Sequence[int],
    seed: int = 0,
    stop: Sequence[int] = (),
    sampling: Sampling | Sequence[Sampling] | None = None,
    **settings: Unpack[GenerationSettings],
) -> Iterator[Commit]:
    """Generate, yielding each sequence's newly committed tokens as soon as they are final.

    Parameters are those of `generate`; they are checked before the first token is asked for. ``Commit.handle`` is the
    index of the prompt. A sequence that fails ends with a commit whose reason is "error"; the others go on, and its error is raised
    when they are done.

    Examples
    --------
    >>> from coupled_sampling import stream
    >>> from coupled_sampling.testing import TableProvider, random_table
    >>> model = TableProvider(random_table(0, 4), 4)
    >>> sum(len(commit.tokens) for commit in stream(model, [[0]], length=8, method="scd-match"))
    8
    """
    return _steps(_begin(_Given(prompts, length, seed, stop, sampling), model, settings))


def generate(
    model: LogitsProvider | CoupledStep,
    prompts: Iterable[Sequence[int] | Integers],
    *,
    length: int | Sequence[int],
    seed: int = 0,
    stop: Sequence[int] = (),
    sampling: Sampling | Sequence[Sampling] | None = None,
    progress: Callable[[int], object] | None = None,
    **settings: Unpack[GenerationSettings],
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
    **settings
        ``seeds``, ``sequences`` and ``stop_sequences``, see `GenerationSettings`; ``method="scd-gumbel"``, ``window=None`` (32),
        ``drafting="random"``, ``noise=None``, ``prompt_chunk=None``, ``reuse_prefixes=False`` and ``corrections=None``, as
        for `Decoder`.

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
    RequestFailed
        A processor raised; its exception is the cause. (To have the others' tokens nevertheless, use `stream` or `Decoder`.)

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
    if progress is not None and not callable(progress):
        raise InvalidArgument(f"progress is {progress!r}, expected a function of the number of new tokens, or None")
    decoder = _begin(_Given(prompts, length, seed, stop, sampling), model, settings)
    parts: list[list[Integers]] = [[] for _ in range(decoder.waiting)]
    traces = [Trace() for _ in parts]
    for commit in _steps(decoder):
        if commit.error is not None:
            raise commit.error
        parts[commit.handle].append(commit.tokens)
        traces[commit.handle] = commit.trace
        if progress is not None:
            progress(len(commit.tokens))
    return Generation([np.concatenate(p) for p in parts], traces)

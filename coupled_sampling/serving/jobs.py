"""A request as data: `Job` says what a client wants of a model, `Piece` is what was committed of it.

A `coupled_sampling.Request` holds functions: processors, a stop rule. A job holds what they are made of, so it crosses machines.
Whoever has its pieces can go on with it elsewhere: `Job.resumed` of the committed tokens is the same sequence, exactly for methods
whose tokens are ``ar``'s (``scd-match``), and in law for all.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Literal, NamedTuple, TypeVar

from coupled_sampling.arguments import check_number, checked_tokens, is_whole, shown
from coupled_sampling.bundles.opening import Bundle
from coupled_sampling.bundles.settings import DecodingSettings
from coupled_sampling.bundles.text import StopStrings, Tokenizer
from coupled_sampling.decoding import Commit, Request
from coupled_sampling.errors import CoupledSamplingError, InvalidArgument
from coupled_sampling.grammars import Grammar
from coupled_sampling.processors import FrequencyPenalty, LogitBias, PresencePenalty, RepetitionPenalty
from coupled_sampling.requests import Guidance

__all__ = ["LONGEST_GRAMMAR", "GrammarSource", "Job", "Piece"]

LONGEST_GRAMMAR = 16_384
"""Characters of a grammar. What a longer one costs to compile grows without bound: 60 000 of a regular expression may take 2 GB."""

_STACK = 64 << 20
"""Bytes of stack while a grammar compiles. Rules as deep as can be in one that long take 8 MB; without room the process dies."""

_STACKS = threading.Lock()
"""Held while the size of new threads' stacks is another."""

_T = TypeVar("_T")


class GrammarSource(NamedTuple):
    """What a grammar is made of.

    Examples
    --------
    >>> from coupled_sampling.serving import GrammarSource, Job
    >>> Job((1,), seed=0, grammar=GrammarSource("regex", "yes|no")).processed
    True
    """

    kind: Literal["json_schema", "regex", "lark"]
    """The constructor of `coupled_sampling.grammars.Grammar`."""
    text: str
    """What it is given."""

    def grammar(self, bundle: Bundle, stop: Sequence[int]) -> Grammar:
        """The grammar over a bundle's tokens.

        Raises
        ------
        InvalidArgument, MissingDependency
            It is none, or is too long; the package ``llguidance`` is not installed.
        """
        if len(self.text) > LONGEST_GRAMMAR:
            name = {"json_schema": "schema", "lark": "grammar"}.get(self.kind, self.kind)
            raise InvalidArgument(
                f"{name} has {len(self.text)} characters, expected at most {LONGEST_GRAMMAR}; ask for something simpler"
            )
        return _compiled(self, _ByIdentity(bundle), tuple(stop))


class _ByIdentity(NamedTuple):
    """A bundle as a key."""

    bundle: Bundle

    def __hash__(self) -> int:
        return id(self.bundle)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ByIdentity) and self.bundle is other.bundle


@lru_cache(maxsize=4)
def _compiled(source: GrammarSource, of: _ByIdentity, stop: tuple[int, ...]) -> Grammar:
    """The grammar; a request for many texts has it compiled once, and few are kept, as one may be large."""
    made: Grammar = _with_room(lambda: getattr(Grammar, source.kind)(source.text, of.bundle, stop or None))
    return made


def _with_room(work: Callable[[], _T]) -> _T:
    """What ``work`` returns, called in a thread with a large stack: llguidance recurses into rules as deep as they are nested."""
    made: list[_T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            made.append(work())
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run, name="compiling a grammar", daemon=True)
    with _STACKS:
        usual = threading.stack_size(_STACK)
        try:
            thread.start()
        finally:
            threading.stack_size(usual)
    thread.join()
    if failed:
        raise failed[0]
    return made[0]


@dataclass(frozen=True)
class Job:
    """One sequence that a client wants.

    Parameters
    ----------
    prompt
        Its tokens.
    seed, sequence
        Key of its noise, as of a `coupled_sampling.Request`.
    settings
        How to decode it, over what the server and the bundle recommend: names and values of
        `coupled_sampling.bundles.Bundle.settings`.
    stop
        Texts that end it. Of a model that reads text.
    continued
        Whether its text goes on from the prompt's, as stop strings have to know; a reply in a conversation does not.
    logprobs
        Whether its pieces carry log-probabilities.
    bias
        What is added to the logits of tokens.
    frequency_penalty, presence_penalty, repetition_penalty
        See `coupled_sampling.processors`; 0, 0 and 1 are none.
    grammar
        What its text has to keep to.
    generated
        Tokens it has already, when it goes on after an interruption; the length counts them.
    deadline
        Seconds within which it has to be done; None is no limit.

    Raises
    ------
    InvalidArgument
        A value cannot work in any model.

    Examples
    --------
    >>> from coupled_sampling.serving import Job
    >>> job = Job((257,), seed=3, settings={"temperature": 0.5})
    >>> job.resumed([7, 9]).generated
    (7, 9)
    """

    prompt: tuple[int, ...]
    seed: int
    sequence: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)
    stop: tuple[str, ...] = ()
    continued: bool = True
    logprobs: bool = False
    bias: Mapping[int, float] = field(default_factory=dict)
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    grammar: GrammarSource | None = None
    generated: tuple[int, ...] = ()
    deadline: float | None = None

    def __post_init__(self) -> None:
        checked_tokens("prompt", self.prompt)
        for name in ("seed", "sequence"):
            value = getattr(self, name)
            if not is_whole(value) or not 0 <= value < 2**64:
                raise InvalidArgument(f"{name} is {shown(value)}, expected an integer in [0, 2**64)")
        for name in ("frequency_penalty", "presence_penalty", "repetition_penalty"):
            check_number(name, getattr(self, name))
        if self.deadline is not None and check_number("deadline", self.deadline, "seconds") <= 0:
            raise InvalidArgument(f"deadline is {self.deadline}, expected seconds > 0, or None")

    def resumed(self, generated: Sequence[int]) -> Job:
        """The same sequence after an interruption, with the tokens it has so far."""
        return replace(self, generated=tuple(int(token) for token in generated))

    @property
    def processed(self) -> bool:
        """Whether it has logits processors of its own."""
        penalties = self.frequency_penalty, self.presence_penalty, self.repetition_penalty
        return bool(self.bias) or penalties != (0, 0, 1) or self.grammar is not None

    def request(self, settings: DecodingSettings, bundle: Bundle, tokenizer: Tokenizer | None) -> Request:
        """What a decoder is asked, with ``settings`` that were made of this job's.

        Raises
        ------
        InvalidArgument, MissingDependency
            It cannot be done with this model.
        """
        changes: dict[str, Any] = {}
        if self.stop:
            if tokenizer is None:
                raise InvalidArgument(
                    f"stop is {self.stop[0]!r}, a text, but this model has no tokenizer; leave it out"
                )
            changes["stop_rule"] = StopStrings(tokenizer, self.stop, self.prompt if self.continued else ())
        if settings.guided:
            changes["guidance"] = Guidance(settings.scale)
        (sampling,) = settings.samplings([self.prompt])
        processors = [*self._processors(), *sampling.processors]
        stop = settings.stop
        if self.grammar is not None:
            grammar = self.grammar.grammar(bundle, settings.stop)
            processors, stop = [*processors, grammar], tuple(dict.fromkeys((*settings.stop, *grammar.stop)))
        return settings.request(
            self.prompt,
            seed=self.seed,
            sequence=self.sequence,
            sampling=replace(sampling, processors=tuple(processors)),
            stop=stop,
            logprobs=self.logprobs,
            generated=self.generated,
            **changes,
        )

    def _processors(self) -> list[Any]:
        """Its processors, in the order of OpenAI's API and of transformers: penalties, then biases."""
        made: list[Any] = []
        if self.repetition_penalty != 1:
            made.append(RepetitionPenalty(self.repetition_penalty))
        if self.frequency_penalty:
            made.append(FrequencyPenalty(self.frequency_penalty))
        if self.presence_penalty:
            made.append(PresencePenalty(self.presence_penalty))
        if self.bias:
            made.append(LogitBias(dict(self.bias)))
        return made


class Piece(NamedTuple):
    """Newly committed tokens of a job.

    Examples
    --------
    >>> from coupled_sampling.serving import Piece
    >>> pieces = [Piece((7, 9)), Piece((4,), "length", committed_per_pass=(2, 1))]
    >>> [token for piece in pieces for token in piece.tokens], pieces[-1].reason
    ([7, 9, 4], 'length')
    """

    tokens: tuple[int, ...]
    """Never empty, save where ``error`` says why it ended."""
    reason: str | None = None
    """Why it has ended, "length", "stop" or "error"; None while it goes on."""
    error: str | None = None
    """What ended it, where the reason is "error"."""
    logprobs: tuple[float, ...] | None = None
    """Of ``tokens`` under their target laws, if the job asks for them."""
    committed_per_pass: tuple[int, ...] = ()
    """With the last piece: committed tokens of each pass, in order."""

    @classmethod
    def of(cls, commit: Commit) -> Piece:
        """A commit as data."""
        return cls(
            tuple(commit.tokens.tolist()),
            commit.reason,
            None if commit.error is None else _told(commit.error),
            None if commit.logprobs is None else tuple(commit.logprobs.tolist()),
            tuple(commit.trace.committed_per_step) if commit.finished else (),
        )


def _told(error: Exception) -> str:
    """What ended a request, without the number that it has within a decoder."""
    cause = error.__cause__ or error
    return str(cause) if isinstance(cause, CoupledSamplingError) else f"{type(cause).__name__}: {cause}"

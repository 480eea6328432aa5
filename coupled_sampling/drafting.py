"""Fresh drafts: first guesses for positions that were never guessed before.

A fresh draft changes how fast a sequence is decoded, never its law. Two kinds exist: a guess read off the tokens to
its left (its law is a point mass), and a guess drawn from a draft model (its law is carried along). Either way it may
look only at what lies to the left of the position it is for.

=================== ==========================================================================================
specification       guess for position i
=================== ==========================================================================================
``random``          uniform over the vocabulary; ``random:FIRST:COUNT`` over COUNT tokens from FIRST on
``repeat``          the token at i - 1
``copy:LAG``        the token at i - LAG: the row above in an image, the frame before in a video
``ngram``           what followed the most recent earlier occurrence of the last n tokens; ``ngram:N``, default 3
`DraftModel`        a draw from any second logits provider (`coupled_sampling.draft_model`)
=================== ==========================================================================================

Where ``copy`` or ``ngram`` have nothing to go by, they repeat; where nothing was generated yet, ``copy`` and
``repeat`` repeat the last token of the prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from coupled_sampling.arguments import check_count, is_whole
from coupled_sampling.contracts import Array, Integers, RowInfo
from coupled_sampling.errors import InvalidArgument
from coupled_sampling.noise import Noise, Purpose, Sites
from coupled_sampling.requests import Request

__all__ = [
    "CarriesLaws",
    "Copy",
    "DraftContext",
    "Drafting",
    "NGram",
    "Proposal",
    "Random",
    "Repeat",
    "SelectiveDrafting",
    "find_drafting",
]


class DraftContext(NamedTuple):
    """What one row asks for.

    Examples
    --------
    >>> import numpy as np
    >>> from coupled_sampling import Sampling
    >>> from coupled_sampling.contracts import RowInfo
    >>> from coupled_sampling.drafting import DraftContext
    >>> context = DraftContext(0, tokens=np.array([9, 4, 5]), prompt_length=1, wanted=2, info=RowInfo(0, 0, Sampling()), round=0)
    >>> len(context.tokens)  # the position of the first guess
    3
    """

    row: int
    """Batch row."""
    tokens: Integers
    """(L,) the row's tokens from position 0 on: committed, then drafts. The first guess is for position L."""
    prompt_length: int
    wanted: int
    """Number of guesses, >= 1."""
    info: RowInfo
    round: int


class Proposal(NamedTuple):
    """Guesses for one row.

    Examples
    --------
    >>> import numpy as np
    >>> from coupled_sampling.drafting import Proposal
    >>> Proposal(np.array([5, 5])).law is None  # guesses without a law are point masses
    True
    """

    tokens: Integers
    """(count,)."""
    law: Array | None = None
    """(count, V) the laws they were drawn from; None for point masses."""


@runtime_checkable
class Drafting(Protocol):
    """A rule for fresh drafts.

    Examples
    --------
    A rule of your own, which counts upwards. It looks at nothing but the tokens to the left, so it changes no law:

    >>> import numpy as np
    >>> from coupled_sampling import generate
    >>> from coupled_sampling.drafting import Proposal
    >>> class Counting:
    ...     def propose(self, contexts, noise, *, vocab_size, shared):
    ...         return [Proposal((c.tokens[-1] + 1 + np.arange(c.wanted)) % vocab_size) for c in contexts]
    >>> class Ring:
    ...     vocab_size, batch_size, max_length = 5, 1, 64
    ...     def forward(self, tokens, start):
    ...         return 99.0 * ((tokens[..., None] + 1) % 5 == np.arange(5))
    >>> generate(Ring(), [[0]], length=8, window=8, drafting=Counting()).traces[0].nfe
    1
    """

    def propose(
        self, contexts: Sequence[DraftContext], noise: Noise, *, vocab_size: int, shared: bool
    ) -> list[Proposal]:
        """One proposal per context.

        ``shared`` says that acceptance is by match, so that a rule which draws should draw with the position's shared noise.
        """
        ...


@runtime_checkable
class CarriesLaws(Protocol):
    """What a rule says whose drafts carry laws: a step that cannot test such drafts refuses requests before anything runs.

    Examples
    --------
    >>> from coupled_sampling import DraftModel
    >>> from coupled_sampling.drafting import CarriesLaws, Random
    >>> from coupled_sampling.testing import TableProvider, random_table
    >>> isinstance(DraftModel(TableProvider(random_table(0, 4), 4)), CarriesLaws), isinstance(Random(), CarriesLaws)
    (True, False)
    """

    @property
    def carries_laws(self) -> bool:
        """Whether proposals have a law other than a point mass."""
        ...


@runtime_checkable
class SelectiveDrafting(Protocol):
    """What a rule offers that cannot draft for every request.

    Examples
    --------
    >>> from coupled_sampling import Request
    >>> from coupled_sampling.drafting import Random
    >>> Random(first=0, count=99).takes(Request([0], length=1), vocab_size=10, rows=1)
    'cannot be drafted for: drafting random:0:99 leaves the vocabulary [0, 10); choose a range inside it'
    """

    def takes(self, request: Request, vocab_size: int, rows: int) -> str | None:
        """None if it can, for a model of that vocabulary and so many rows; else why not, as a sentence without its subject."""
        ...


def proposal_sites(contexts: Sequence[DraftContext], offset: int, count: int) -> Sites:
    """Sites for ``count`` guesses of each context, from its ``offset``-th on."""
    first = np.array([len(context.tokens) + offset for context in contexts], np.int64)
    return Sites(
        seed=np.array([context.info.seed for context in contexts], np.uint64),
        sequence=np.array([context.info.sequence for context in contexts], np.uint64),
        round=np.array([context.round for context in contexts], np.int64),
        position=first[:, None] + np.arange(count),
        valid=np.ones((len(contexts), count), bool),
    )


@dataclass(frozen=True)
class Random:
    """Uniform guesses over ``count`` tokens from ``first`` on; by default over the whole vocabulary.

    Examples
    --------
    >>> import numpy as np
    >>> from coupled_sampling import CounterNoise, Sampling
    >>> from coupled_sampling.contracts import RowInfo
    >>> from coupled_sampling.drafting import DraftContext, Random
    >>> context = DraftContext(0, np.array([9]), 1, 4, RowInfo(0, 0, Sampling()), round=0)
    >>> guesses = Random(first=2, count=3).propose([context], CounterNoise(), vocab_size=10, shared=False)[0].tokens
    >>> guesses.shape, bool(((guesses >= 2) & (guesses < 5)).all())
    ((4,), True)
    """

    first: int = 0
    count: int | None = None

    def __post_init__(self) -> None:
        for name in ("first", "count"):
            value = getattr(self, name)
            if not is_whole(value) and not (value is None and name == "count"):
                raise InvalidArgument(f"drafting random: {name} is {value!r}, expected an integer")

    def takes(self, request: Request, vocab_size: int, rows: int) -> str | None:
        """See `SelectiveDrafting.takes`."""
        choices = vocab_size - self.first if self.count is None else self.count
        if self.first < 0 or choices < 1 or self.first + choices > vocab_size:
            return (
                f"cannot be drafted for: drafting random:{self.first}:{choices} leaves the vocabulary [0, {vocab_size}); choose a "
                "range inside it"
            )
        return None

    def propose(
        self, contexts: Sequence[DraftContext], noise: Noise, *, vocab_size: int, shared: bool
    ) -> list[Proposal]:
        """See `Drafting.propose`."""
        choices = vocab_size - self.first if self.count is None else self.count
        proposals = []
        for context in contexts:
            sites = proposal_sites([context], 0, context.wanted)
            weights = np.ones((1, context.wanted, choices), np.float32)
            drawn = noise.categorical(weights, sites, Purpose.PROPOSE, where=sites.valid)
            proposals.append(Proposal(self.first + np.asarray(drawn[0], np.int64)))
        return proposals


@dataclass(frozen=True)
class Copy:
    """Guess the token ``lag`` positions before, if that was generated, else the token before.

    Examples
    --------
    >>> import numpy as np
    >>> from coupled_sampling import CounterNoise, Sampling
    >>> from coupled_sampling.contracts import RowInfo
    >>> from coupled_sampling.drafting import Copy, DraftContext
    >>> context = DraftContext(0, np.array([9, 4, 5, 6]), 1, 5, RowInfo(0, 0, Sampling()), round=0)
    >>> Copy(lag=3).propose([context], CounterNoise(), vocab_size=10, shared=False)[0].tokens
    array([4, 5, 6, 4, 5])
    """

    lag: int

    def __post_init__(self) -> None:
        check_count("drafting copy: the lag", self.lag)

    def propose(
        self, contexts: Sequence[DraftContext], noise: Noise, *, vocab_size: int, shared: bool
    ) -> list[Proposal]:
        """See `Drafting.propose`."""
        return [self._propose(context) for context in contexts]

    def _propose(self, context: DraftContext) -> Proposal:
        length = len(context.tokens)
        first = max(0, length - self.lag)
        tokens = context.tokens[first:].tolist()  # no earlier one is asked for
        for position in range(length, length + context.wanted):
            source = position - self.lag
            tokens.append(tokens[(source if source >= context.prompt_length else position - 1) - first])
        return Proposal(np.array(tokens[length - first :], np.int64))


class Repeat(Copy):
    """Guess the token before.

    Examples
    --------
    >>> import numpy as np
    >>> from coupled_sampling import CounterNoise, Sampling
    >>> from coupled_sampling.contracts import RowInfo
    >>> from coupled_sampling.drafting import DraftContext, Repeat
    >>> context = DraftContext(0, np.array([9, 4, 5, 6]), 1, 3, RowInfo(0, 0, Sampling()), round=0)
    >>> Repeat().propose([context], CounterNoise(), vocab_size=10, shared=False)[0].tokens
    array([6, 6, 6])
    """

    def __init__(self) -> None:
        super().__init__(lag=1)


@dataclass(frozen=True)
class NGram:
    """Guess what followed the most recent earlier occurrence of the last ``size`` tokens, or of fewer where there is none.

    Prompt lookup decoding; the prompt is searched too.

    Examples
    --------
    >>> import numpy as np
    >>> from coupled_sampling import CounterNoise, Sampling
    >>> from coupled_sampling.contracts import RowInfo
    >>> from coupled_sampling.drafting import DraftContext, NGram
    >>> context = DraftContext(0, np.array([1, 2, 3, 4, 1, 2]), 1, 3, RowInfo(0, 0, Sampling()), round=0)
    >>> NGram(size=2).propose([context], CounterNoise(), vocab_size=10, shared=False)[0].tokens  # after 1, 2 came 3, 4, 1
    array([3, 4, 1])
    """

    size: int = 3

    def __post_init__(self) -> None:
        check_count("drafting ngram: the size", self.size)

    def propose(
        self, contexts: Sequence[DraftContext], noise: Noise, *, vocab_size: int, shared: bool
    ) -> list[Proposal]:
        """See `Drafting.propose`."""
        return [self._propose(context) for context in contexts]

    def _propose(self, context: DraftContext) -> Proposal:
        length = len(context.tokens)
        lag = self._lag(context.tokens)
        tokens = np.concatenate([context.tokens, np.empty(context.wanted, np.int64)])
        for position in range(length, len(tokens)):
            tokens[position] = tokens[position - lag]  # a guess of its own once it copies past the end
        return Proposal(tokens[length:])

    def _lag(self, tokens: Integers) -> int:
        """How far back the most recent earlier occurrence of the longest matching suffix ends; 1 where there is none."""
        for size in range(min(self.size, len(tokens) - 1), 0, -1):
            # Without the last token, so that the suffix does not find itself.
            windows = np.lib.stride_tricks.sliding_window_view(tokens[:-1], size)
            found = np.flatnonzero((windows == tokens[-size:]).all(axis=1))
            if found.size:
                return len(tokens) - (int(found[-1]) + size)
        return 1


def find_drafting(specification: str | Drafting) -> Drafting:
    """The rule that ``specification`` names (see the table above); a `Drafting` object is returned as it is.

    Raises
    ------
    InvalidArgument
        No rule has that name, or its numbers are unusable.

    Examples
    --------
    >>> from coupled_sampling.drafting import find_drafting
    >>> find_drafting("copy:14")
    Copy(lag=14)
    >>> find_drafting("ngram")
    NGram(size=3)
    """
    if isinstance(specification, Drafting) and not isinstance(specification, type):
        return specification
    if not isinstance(specification, str):
        raise InvalidArgument(
            f"drafting is {specification!r}, expected a name such as 'copy:14', or an object with propose(contexts, noise, ...)"
        )
    name, *numbers = specification.split(":")
    makers: dict[str, tuple[Callable[..., Drafting], tuple[int, ...]]] = {
        "random": (Random, (0, 2)),
        "repeat": (Repeat, (0,)),
        "copy": (Copy, (1,)),
        "ngram": (NGram, (0, 1)),
    }
    if name in makers:
        maker, counts = makers[name]
        if len(numbers) in counts and all(number.isdecimal() for number in numbers):
            return maker(*(int(number) for number in numbers))
    raise InvalidArgument(
        f"drafting is {specification!r}, expected random, random:FIRST:COUNT, repeat, copy:LAG, ngram or ngram:N, such as copy:14"
    )

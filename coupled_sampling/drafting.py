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
`DraftModel`        a draw from any second logits provider (ordinary speculative decoding)
=================== ==========================================================================================

Where ``copy`` or ``ngram`` have nothing to go by, they repeat; where nothing was generated yet, ``copy`` and
``repeat`` repeat the last token of the prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from coupled_sampling.arrays import namespace, to_host
from coupled_sampling.contracts import Array, Integers, LogitsProvider, PromptObserver, RowInfo, max_window
from coupled_sampling.errors import InvalidArgument
from coupled_sampling.noise import Noise, Purpose, Sites
from coupled_sampling.target import target_laws

__all__ = [
    "Copy",
    "DraftContext",
    "DraftModel",
    "Drafting",
    "NGram",
    "Proposal",
    "Random",
    "Repeat",
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
    >>> context = DraftContext(row=0, tokens=np.array([9, 4, 5]), prompt_length=1, wanted=2, info=RowInfo(0, 0, Sampling()), round=0)
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


def _sites(contexts: Sequence[DraftContext], offset: int, count: int) -> Sites:
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

    def propose(
        self, contexts: Sequence[DraftContext], noise: Noise, *, vocab_size: int, shared: bool
    ) -> list[Proposal]:
        """See `Drafting.propose`."""
        choices = vocab_size - self.first if self.count is None else self.count
        if self.first < 0 or choices < 1 or self.first + choices > vocab_size:
            raise InvalidArgument(
                f"drafting random:{self.first}:{choices} leaves the vocabulary [0, {vocab_size}); choose a range inside it"
            )
        proposals = []
        for context in contexts:
            sites = _sites([context], 0, context.wanted)
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
        if self.lag < 1:
            raise InvalidArgument(f"drafting copy:{self.lag}: the lag must be >= 1")

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
        if self.size < 1:
            raise InvalidArgument(f"drafting ngram:{self.size}: the size must be >= 1")

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
            tokens[position] = tokens[position - lag]
        return Proposal(tokens[length:])

    def _lag(self, tokens: Integers) -> int:
        """How far back the most recent earlier occurrence of the longest matching suffix ends; 1 where there is none."""
        for size in range(min(self.size, len(tokens) - 1), 0, -1):
            windows = np.lib.stride_tricks.sliding_window_view(tokens[:-1], size)
            found = np.flatnonzero((windows == tokens[-size:]).all(axis=1))
            if found.size:
                return len(tokens) - (int(found[-1]) + size)
        return 1


class DraftModel:
    """Guesses drawn from a second, cheaper model over the same vocabulary.

    Parameters
    ----------
    provider
        Any `LogitsProvider` with the target's vocabulary and at least its rows. Its law is warped by each request's own
        sampling settings and carried along, so that rejection stays exact.

    Notes
    -----
    The state it holds for a row is the longest common prefix of what it last forwarded and what it is asked about, so a
    refusal, another request in the row or a rollback need no signal.

    Examples
    --------
    A draft model that is the target itself is always right. A pass over a window of 4 then commits 4 tokens, three drafts and one more:

    >>> from coupled_sampling import DraftModel, generate
    >>> from coupled_sampling.testing import TableProvider, random_table
    >>> table = random_table(0, 5)
    >>> model, draft = TableProvider(table, 5), TableProvider(table, 5)
    >>> tokens, traces = generate(model, [[0]], length=16, method="speculative", window=4, drafting=DraftModel(draft))
    >>> traces[0].nfe
    4
    """

    def __init__(self, provider: LogitsProvider) -> None:
        self.provider = provider
        self.max_length = int(provider.max_length)
        self._held: dict[int, Integers] = {}

    def begin(self, row: int, prompt: Integers) -> None:
        """Row ``row`` starts ``prompt``: tell the provider, if it wants to know."""
        if isinstance(self.provider, PromptObserver):
            self._held.pop(row, None)
            self.provider.begin(row, prompt)

    def propose(
        self, contexts: Sequence[DraftContext], noise: Noise, *, vocab_size: int, shared: bool
    ) -> list[Proposal]:
        """See `Drafting.propose`."""
        self._check(contexts, vocab_size)
        tokens = {context.row: context.tokens for context in contexts}
        laws: dict[int, list[Array]] = {context.row: [] for context in contexts}
        for offset in range(max(context.wanted for context in contexts)):
            asking = [context for context in contexts if context.wanted > offset]
            logits = self._last_logits({context.row: tokens[context.row] for context in asking})
            sites = _sites(asking, offset, 1)
            law = target_laws(
                logits,
                [context.info for context in asking],
                [tokens[context.row] for context in asking],
                sites.position,
                sites.valid,
            )
            if shared:
                drawn = noise.shared(law, sites, where=sites.valid)
            else:
                drawn = noise.categorical(law, sites, Purpose.PROPOSE, where=sites.valid)
            guesses = to_host(drawn)
            for i, context in enumerate(asking):
                laws[context.row].append(law[i, 0, ...])
                tokens[context.row] = np.append(tokens[context.row], guesses[i, 0])
        return [
            Proposal(tokens[c.row][len(c.tokens) :], namespace(laws[c.row][0]).stack(laws[c.row], axis=0))
            for c in contexts
        ]

    def _check(self, contexts: Sequence[DraftContext], vocab_size: int) -> None:
        if self.provider.vocab_size != vocab_size:
            raise InvalidArgument(
                f"the draft model's vocabulary is {self.provider.vocab_size}, the target's {vocab_size}; they must be the same"
            )
        for context in contexts:
            reach = len(context.tokens) + context.wanted - 1
            if context.row >= self.provider.batch_size or reach > self.max_length:
                raise InvalidArgument(
                    f"the draft model holds {self.provider.batch_size} rows of {self.max_length} positions, but row "
                    f"{context.row} needs {reach}; give it as many rows and positions as the target has"
                )

    def _last_logits(self, wanted: dict[int, Integers]) -> Array:
        """Logits (len(wanted), 1, V) after the last token of each row's tokens, forwarding what is not held yet."""
        rows = max(wanted) + 1
        held = {
            row: min(_common_prefix(self._held.get(row), tokens), len(tokens) - 1) for row, tokens in wanted.items()
        }
        while True:
            width = min(max(len(tokens) - held[row] for row, tokens in wanted.items()), max_window(self.provider))
            window, start = np.zeros((rows, width), np.int64), np.zeros(rows, np.int64)
            for row in range(rows):
                tokens = wanted.get(row, self._held.get(row, np.zeros(0, np.int64)))
                end = min(held[row] + width, len(tokens)) if row in wanted else len(tokens)
                start[row] = max(0, end - width)
                window[row, : end - start[row]] = tokens[start[row] : end]
                if row in wanted:
                    held[row] = end
            logits = self.provider.forward(window, start)
            for row in wanted:
                self._held[row] = wanted[row][: held[row]].copy()  # the caller goes on writing into its tokens
            if all(held[row] == len(tokens) for row, tokens in wanted.items()):
                return _stack_slots(logits, {row: len(tokens) - 1 - int(start[row]) for row, tokens in wanted.items()})


def _common_prefix(held: Integers | None, tokens: Integers) -> int:
    """Length of the longest common prefix."""
    if held is None:
        return 0
    shorter = min(len(held), len(tokens))
    differ = np.flatnonzero(held[:shorter] != tokens[:shorter])
    return int(differ[0]) if differ.size else shorter


def _stack_slots(logits: Array, slots: dict[int, int]) -> Array:
    """``logits[row, slot]`` of each pair: (len(slots), 1, V)."""
    return namespace(logits).stack([logits[row, slot : slot + 1, ...] for row, slot in slots.items()], axis=0)


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
    if not isinstance(specification, str):
        return specification
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

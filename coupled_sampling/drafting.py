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

Where ``copy`` or ``ngram`` have nothing to go by, they repeat the token before. ``copy`` and ``repeat`` guess nothing but generated
tokens: the last token of a picture's prompt, such as its class, cannot stand in the picture. Of a video's first frames as a prompt
they copy, if they are told which tokens can be generated, as a bundle's rules are. Where nothing was generated yet they
guess a *fill* token if they have one, as a bundle's rules do where its manifest names one. Else they wait for the first token: that
costs one pass. ``ngram`` looks a text's prompt up, and may repeat its last token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from coupled_sampling.arguments import check_count, is_whole
from coupled_sampling.contracts import Integers
from coupled_sampling.draft_contracts import (
    AsksForLaws,
    CarriesLaws,
    DraftContext,
    Drafting,
    Proposal,
    SelectiveDrafting,
    WaitsForTokens,
    proposal_sites,
)
from coupled_sampling.errors import InvalidArgument
from coupled_sampling.noise import Noise, Purpose
from coupled_sampling.requests import Request

__all__ = [
    "AsksForLaws",
    "CarriesLaws",
    "Copy",
    "DraftContext",
    "Drafting",
    "NGram",
    "Proposal",
    "Random",
    "Repeat",
    "SelectiveDrafting",
    "WaitsForTokens",
    "find_drafting",
    "proposal_sites",
]


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
    """Guess the token ``lag`` positions before, if that was generated or could have been, else the token before.

    Parameters
    ----------
    lag
        How far back: a picture's columns, for the row above.
    fill
        What to guess where nothing was generated yet. Without one the rule waits for the first token, see `WaitsForTokens`; whoever
        asks it all the same gets the token before, whatever that is.
    generated
        For prompts that what is generated goes on from, as a video does from its first frames: the tokens that the model can
        generate, as ``(first, count)``. Those of a prompt are then copied, too. None copies nothing of a prompt.

    Examples
    --------
    >>> import numpy as np
    >>> from coupled_sampling import CounterNoise, Sampling
    >>> from coupled_sampling.contracts import RowInfo
    >>> from coupled_sampling.drafting import Copy, DraftContext
    >>> context = DraftContext(0, np.array([9, 4, 5, 6]), 1, 5, RowInfo(0, 0, Sampling()), round=0)
    >>> Copy(lag=3).propose([context], CounterNoise(), vocab_size=10, shared=False)[0].tokens
    array([4, 5, 6, 4, 5])

    Of a prompt of one token, which is not copied:

    >>> context = context._replace(tokens=np.array([9]))
    >>> Copy(lag=3, fill=2).propose([context], CounterNoise(), vocab_size=10, shared=False)[0].tokens
    array([2, 2, 2, 2, 2])

    Of a prompt of two frames of three tokens:

    >>> context = context._replace(tokens=np.array([1, 2, 3, 4, 5, 6]), prompt_length=6)
    >>> Copy(lag=3, generated=(0, 10)).propose([context], CounterNoise(), vocab_size=10, shared=False)[0].tokens
    array([4, 5, 6, 4, 5])
    """

    lag: int
    fill: int | None = None
    generated: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        check_count("drafting copy: the lag", self.lag)
        _check_fill(self.fill)
        _check_generated("copy", self.generated)

    def takes(self, request: Request, vocab_size: int, rows: int) -> str | None:
        """See `SelectiveDrafting.takes`."""
        return _fill_refusal(self, self.fill, vocab_size)

    def waits(self, tokens: Integers, prompt_length: int) -> bool:
        """See `WaitsForTokens.waits`."""
        if self.fill is not None or len(tokens) > prompt_length:
            return False
        source = len(tokens) - self.lag
        return source < 0 or not _can_stand(int(tokens[source]), self.generated, otherwise=False)

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
            found = tokens[source - first] if source >= 0 else None
            if found is not None and (
                source >= context.prompt_length or _can_stand(found, self.generated, otherwise=False)
            ):
                tokens.append(found)
            else:
                tokens.append(_before(tokens[-1], position, context.prompt_length, self.fill))
        return Proposal(np.array(tokens[length - first :], np.int64))


@dataclass(frozen=True)
class Repeat(Copy):
    """Guess the token before, if that was generated; ``fill`` is that of `Copy`.

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

    lag: int = field(default=1, init=False, repr=False)


@dataclass(frozen=True)
class NGram:
    """Guess what followed the most recent earlier occurrence of the last ``size`` tokens, or of fewer where there is none.

    Prompt lookup decoding. The prompt is searched too, and repeated from: a text goes on in the words that it began with. A model
    whose prompts are of other tokens than those it generates is told so by ``generated``.

    Parameters
    ----------
    size
        Most tokens to look for.
    fill
        What to guess where nothing was generated yet and nothing is found.
    generated
        The tokens that the model can generate, as ``(first, count)``; None is all of them. In the place of others it guesses the
        token before, if that was generated, else ``fill``. Without a fill it waits for the first token, see `WaitsForTokens`.

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
    fill: int | None = None
    generated: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        check_count("drafting ngram: the size", self.size)
        _check_fill(self.fill)
        _check_generated("ngram", self.generated)

    def takes(self, request: Request, vocab_size: int, rows: int) -> str | None:
        """See `SelectiveDrafting.takes`."""
        return _fill_refusal(self, self.fill, vocab_size)

    def waits(self, tokens: Integers, prompt_length: int) -> bool:
        """See `WaitsForTokens.waits`."""
        if self.generated is None or self.fill is not None or len(tokens) > prompt_length:
            return False
        return not _can_stand(int(self._guesses(tokens, prompt_length, 1)[0]), self.generated, otherwise=True)

    def propose(
        self, contexts: Sequence[DraftContext], noise: Noise, *, vocab_size: int, shared: bool
    ) -> list[Proposal]:
        """See `Drafting.propose`."""
        return [Proposal(self._guesses(c.tokens, c.prompt_length, c.wanted)) for c in contexts]

    def _guesses(self, given: Integers, prompt_length: int, wanted: int) -> Integers:
        """int64 (wanted,): what follows ``given``."""
        length, lag = len(given), self._lag(given)
        tokens = np.concatenate([given, np.empty(wanted, np.int64)])
        for position in range(length, len(tokens)):
            # A copy of a guess of its own once it reaches past the end.
            found = int(tokens[position - lag]) if lag else None
            if found is None or not _can_stand(found, self.generated, otherwise=True):
                found = _before(int(tokens[position - 1]), position, prompt_length, self.fill)
            tokens[position] = found
        return tokens[length:]

    def _lag(self, tokens: Integers) -> int:
        """How far back the most recent earlier occurrence of the longest matching suffix ends; 0 where there is none."""
        for size in range(min(self.size, len(tokens) - 1), 0, -1):
            # Without the last token, so that the suffix does not find itself.
            windows = np.lib.stride_tricks.sliding_window_view(tokens[:-1], size)
            found = np.flatnonzero((windows == tokens[-size:]).all(axis=1))
            if found.size:
                return len(tokens) - (int(found[-1]) + size)
        return 0


def _before(token: int, position: int, prompt_length: int, fill: int | None) -> int:
    """The guess for ``position`` where there is nothing better: the ``token`` before, if that was generated, else ``fill``."""
    return token if position > prompt_length or fill is None else fill


def _can_stand(token: int, generated: tuple[int, int] | None, *, otherwise: bool) -> bool:
    """Whether the model can generate ``token``; ``otherwise`` where nothing is said of that."""
    return otherwise if generated is None else 0 <= token - generated[0] < generated[1]


def _check_generated(rule: str, span: object) -> None:
    if span is not None and not (isinstance(span, tuple) and len(span) == 2 and all(is_whole(n) for n in span)):
        raise InvalidArgument(
            f"drafting {rule}: generated is {span!r}, expected (first, count), or None where nothing is said of it"
        )


def _check_fill(fill: int | None) -> None:
    if fill is not None and not (is_whole(fill) and fill >= 0):
        raise InvalidArgument(f"drafting: the fill token is {fill!r}, expected a token, or None for none")


def _fill_refusal(rule: Drafting, fill: int | None, vocab_size: int) -> str | None:
    if fill is not None and fill >= vocab_size:
        return f"cannot be drafted for: the fill token of drafting {rule!r} is none of the vocabulary [0, {vocab_size})"
    return None


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
    Copy(lag=14, fill=None, generated=None)
    >>> find_drafting("ngram")
    NGram(size=3, fill=None, generated=None)
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

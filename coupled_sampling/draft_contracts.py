"""What a rule for fresh drafts is, and what else it can offer: each ability is a Protocol, and is asked for by it.

A rule sees the tokens to the left of the positions that it guesses, and whatever was decided about these; nothing that it guesses
from may lie further right. That is all that exactness asks of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from coupled_sampling.contracts import Array, Integers, RowInfo
from coupled_sampling.noise import Noise, Sites
from coupled_sampling.requests import Request

__all__ = [
    "AsksForLaws",
    "CarriesLaws",
    "DraftContext",
    "Drafting",
    "Proposal",
    "SelectiveDrafting",
    "WaitsForTokens",
    "proposal_sites",
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
    laws: Array | None = None
    """(n, V) the target laws of the last n committed tokens that have one, in order; None where there is none, or where the rule
    does not ask (`AsksForLaws`). They are in the model's array library, and not to be written to."""
    laws_end: int = 0
    """The position behind the last of them: what stands in ``tokens`` from there on are drafts, which have no law yet."""

    def law_at(self, position: int) -> Array | None:
        """(V,) the target law that the token at ``position`` was committed under; None where it is not among ``laws``."""
        if self.laws is None:
            return None
        back = self.laws_end - position
        return self.laws[self.laws.shape[0] - back, ...] if 1 <= back <= self.laws.shape[0] else None


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


@runtime_checkable
class WaitsForTokens(Protocol):
    """What a rule offers that has nothing to go by while too little was generated.

    A row for which it waits has no fresh drafts in that step. So a first step only forwards the prompt, and commits one token.

    Examples
    --------
    >>> import numpy as np
    >>> from coupled_sampling.drafting import Copy
    >>> prompt = np.array([9])
    >>> Copy(14).waits(prompt, prompt_length=1), Copy(14, fill=3).waits(prompt, prompt_length=1)
    (True, False)
    """

    def waits(self, tokens: Integers, prompt_length: int) -> bool:
        """Whether it has no guess for the position after ``tokens`` (L,), of which the first ``prompt_length`` are the prompt's."""
        ...


@runtime_checkable
class AsksForLaws(Protocol):
    """What a rule offers that wants the laws which tokens were committed under: `DraftContext.laws`.

    A law is there as soon as its token is committed: whatever a step accepts or corrects has one. Tokens that a resumed request
    brought along (``Request.generated``) have none: the run of laws begins behind them. With a step that cannot hand laws out
    requests are refused before anything runs.

    Examples
    --------
    What may stand below a token of a picture is much the same as what might have stood in its place. So here a draft is drawn from
    the law of the token ``lag`` positions before, and carries this law. Where that token is not committed yet, its law is uniform.

    >>> import numpy as np
    >>> from coupled_sampling import generate
    >>> from coupled_sampling.drafting import Proposal, proposal_sites
    >>> from coupled_sampling.noise import Purpose
    >>> from coupled_sampling.testing import TableProvider, random_table
    >>> class LawOfTheRowAbove:
    ...     carries_laws = True
    ...     def __init__(self, lag):
    ...         self.lag = self.laws_back = lag
    ...     def propose(self, contexts, noise, *, vocab_size, shared):
    ...         proposals = []
    ...         for context in contexts:
    ...             first, laws = len(context.tokens), np.full((context.wanted, vocab_size), 1 / vocab_size)
    ...             for i in range(context.wanted):
    ...                 law = context.law_at(first + i - self.lag)
    ...                 laws[i] = laws[i] if law is None else law
    ...             sites = proposal_sites([context], 0, context.wanted)
    ...             if shared:  # acceptance is by match: the same noise draws the same token from the same law
    ...                 drawn = noise.shared(laws[None], sites, where=sites.valid)
    ...             else:
    ...                 drawn = noise.categorical(laws[None], sites, Purpose.PROPOSE, where=sites.valid)
    ...             proposals.append(Proposal(np.asarray(drawn[0], np.int64), laws))
    ...         return proposals
    >>> model = TableProvider(random_table(0, 5), 5)
    >>> drafted = generate(model, [[0]], length=20, method="scd-match", window=4, drafting=LawOfTheRowAbove(3))
    >>> plain = generate(model, [[0]], length=20, method="ar")
    >>> drafted.tokens[0].tolist() == plain.tokens[0].tolist(), drafted.traces[0].nfe < 20
    (True, True)
    """

    @property
    def laws_back(self) -> int:
        """How many positions back from the last committed token it wants laws; 0 for none."""
        ...


def proposal_sites(contexts: Sequence[DraftContext], offset: int, count: int) -> Sites:
    """Where a rule that draws asks a noise: the sites of ``count`` guesses of each context, from its ``offset``-th on.

    Examples
    --------
    >>> import numpy as np
    >>> from coupled_sampling import Sampling
    >>> from coupled_sampling.contracts import RowInfo
    >>> from coupled_sampling.drafting import DraftContext, proposal_sites
    >>> context = DraftContext(0, np.array([9, 4]), 1, 3, RowInfo(0, 0, Sampling()), round=0)
    >>> proposal_sites([context], offset=1, count=2).position
    array([[3, 4]])
    """
    first = np.array([len(context.tokens) + offset for context in contexts], np.int64)
    return Sites(
        seed=np.array([context.info.seed for context in contexts], np.uint64),
        sequence=np.array([context.info.sequence for context in contexts], np.uint64),
        round=np.array([context.round for context in contexts], np.int64),
        position=first[:, None] + np.arange(count),
        valid=np.ones((len(contexts), count), bool),
    )

"""What else a model or a step can do: each ability is a Protocol, and is asked for by it, never by the name of a method.

A provider of one method needs none of them. Whoever offers one has it used: prompts are read in chunks where rows can be forwarded
apart, samples of one prompt share it where a row's state can be copied.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from coupled_sampling.corrections import Corrector
from coupled_sampling.requests import Request
from coupled_sampling.sampling import Array, Integers

__all__ = [
    "Forks",
    "GivesLaws",
    "PointMassesOnly",
    "PromptReader",
    "ReadsPrompts",
    "RequestObserver",
    "RowRanges",
    "Selective",
    "TreeSteps",
    "Trees",
    "Wraps",
]


@runtime_checkable
class PointMassesOnly(Protocol):
    """What a step says that cannot test drafts which carry laws, as those of a draft model do.

    Examples
    --------
    >>> from coupled_sampling.backends import open_model
    >>> from coupled_sampling.contracts import PointMassesOnly
    >>> with open_model("fashion", method="sjd", step="graph") as step:
    ...     isinstance(step, PointMassesOnly), step.refuses_laws
    (True, 'this step graph can only take point masses; use HostStep for them')
    """

    @property
    def refuses_laws(self) -> str | None:
        """Why not, and what to do instead; None where it can, or needs no laws at all."""
        ...


@runtime_checkable
class GivesLaws(Protocol):
    """What a step says that can hand out the target laws of the tokens it commits (``Outcome.laws``), where a row asks for them.

    Drafting rules may: see `coupled_sampling.drafting.AsksForLaws`. With a step that does not say so their requests are refused.

    Examples
    --------
    >>> from coupled_sampling import HostStep
    >>> from coupled_sampling.contracts import GivesLaws
    >>> from coupled_sampling.testing import TableProvider, random_table
    >>> isinstance(HostStep(TableProvider(random_table(0, 4), 4)), GivesLaws)
    True
    """

    @property
    def gives_laws(self) -> bool:
        """Whether it can."""
        ...


@runtime_checkable
class RequestObserver(Protocol):
    """What a provider offers when it must be told which request a row works on: for guidance, an encoder's output, audio.

    Examples
    --------
    >>> import numpy as np
    >>> from coupled_sampling import Decoder, Request
    >>> class Told:
    ...     vocab_size, batch_size, max_length = 2, 1, 64
    ...     def begin(self, row, request):
    ...         print("row", row, "starts with", request.prompt, "and is to look at", request.condition)
    ...     def forward(self, tokens, start):
    ...         return np.zeros((*tokens.shape, 2))
    >>> decoder = Decoder(Told())
    >>> handle, commits = decoder.add(Request([1, 0], length=1, condition="a picture")), decoder.step()
    row 0 starts with [1 0] and is to look at a picture
    """

    def begin(self, row: int, request: Request) -> None:
        """Row ``row`` starts ``request``, whose ``prompt`` is an int64 array (L,). What it raises ends the request.

        The row may be forwarded all the same, idle between rows that go on.
        """
        ...


@runtime_checkable
class Selective(Protocol):
    """What a provider or a step offers that cannot do everything a `Request` can ask for.

    Examples
    --------
    >>> import numpy as np
    >>> from coupled_sampling import Decoder, Request
    >>> class Shy:
    ...     vocab_size, batch_size, max_length = 2, 1, 64
    ...     def takes(self, request):
    ...         return "is longer than 9 tokens; ask for fewer" if request.length > 9 else None
    ...     def forward(self, tokens, start):
    ...         return np.zeros((*tokens.shape, 2))
    >>> Decoder(Shy()).check(Request([0], length=10))
    Traceback (most recent call last):
    coupled_sampling.errors.InvalidArgument: request is longer than 9 tokens; ask for fewer
    """

    def takes(self, request: Request) -> str | None:
        """None if it can; else why not and what to do instead, as a sentence without its subject ("has ..., which ...")."""
        ...


@runtime_checkable
class RowRanges(Protocol):
    """What a provider offers that can forward some of its rows without touching the others: a prompt's chunk, the last busy row.

    Examples
    --------
    >>> import numpy as np
    >>> from coupled_sampling import Decoder, Request
    >>> class Apart:
    ...     vocab_size, batch_size, max_length = 2, 4, 64
    ...     def forward(self, tokens, start):
    ...         return self.forward_rows(tokens, start, range(len(start)))
    ...     def forward_rows(self, tokens, start, rows):
    ...         print("rows", list(rows))
    ...         return np.zeros((*tokens.shape, 2))
    >>> decoder = Decoder(Apart(), method="ar")
    >>> handles = [decoder.add(Request([0], length=1 + row, sequence=row)) for row in range(3)]
    >>> while decoder.active or decoder.waiting:
    ...     commits = decoder.step()
    rows [0, 1, 2]
    rows [1, 2]
    rows [2]
    """

    def forward_rows(self, tokens: Integers, start: Integers, rows: range) -> Array:
        """`LogitsProvider.forward` for the consecutive ``rows``, of which ``tokens`` (n, W) and ``start`` (n,) are."""
        ...


@runtime_checkable
class Trees(Protocol):
    """What a provider offers that can forward windows which are trees, see `coupled_sampling.trees`.

    Examples
    --------
    >>> import numpy as np
    >>> from coupled_sampling.contracts import Trees
    >>> from coupled_sampling.testing import TableProvider, random_table
    >>> model = TableProvider(random_table(0, 4), 4)
    >>> isinstance(model, Trees)
    True
    >>> parents = np.array([[-1, 0, 0, 2]])  # after token 3 two guesses side by side, 1 and 2, and behind the second a 0
    >>> model.forward_tree(np.array([[3, 1, 2, 0]]), np.array([0]), parents, range(1)).shape
    (1, 4, 4)
    """

    @property
    def max_columns(self) -> int:
        """``start + W`` is at most this. Slots side by side need room beyond ``max_length``: a model that has no more than that
        takes fewer branches towards its end."""
        ...

    def forward_tree(self, tokens: Integers, start: Integers, parents: Integers, rows: range) -> Array:
        """`LogitsProvider.forward` of a window that is a tree.

        Parameters
        ----------
        tokens, start
            As for `LogitsProvider.forward`: int64 (n, W) and (n,).
        parents
            int64 (n, W): each slot's parent, -1 for the state below ``start``; see `coupled_sampling.trees`. No slot lies at or
            beyond ``max_length``.
        rows
            The n consecutive rows that these are. A provider that does not offer `RowRanges` is given the first rows.

        Returns
        -------
        Array
            Logits (n, W, V): those of a slot are for the position after its own, given the slots on its path.

            State is held afterwards for the positions below ``start`` and for those of the leading slots that follow one another.
            What is held for others means nothing.
        """
        ...


@runtime_checkable
class TreeSteps(Protocol):
    """What a step says of windows that are trees.

    Examples
    --------
    >>> from coupled_sampling import HostStep
    >>> from coupled_sampling.testing import TableProvider, random_table
    >>> HostStep(TableProvider(random_table(0, 4), 4), "scd-match").refuses_branches is None
    True
    >>> HostStep(TableProvider(random_table(0, 4), 4), "sjd").refuses_branches
    'sjd accepts drafts by rejection, and branches are for the acceptance "match"; use scd-match or speculative-match'
    """

    @property
    def refuses_branches(self) -> str | None:
        """Why it cannot decide windows with branches, and what to do instead; None where it can."""
        ...

    @property
    def max_columns(self) -> int:
        """See `Trees.max_columns`."""
        ...

    @property
    def corrections(self) -> Corrector | None:
        """What predicts laws in it, so that a rule for branches can; None if nothing does."""
        ...


@runtime_checkable
class ReadsPrompts(Protocol):
    """What a provider or a step says of the width in which it likes to read prompts.

    Examples
    --------
    >>> import numpy as np
    >>> from coupled_sampling import generate
    >>> class Wide:
    ...     vocab_size, batch_size, max_length, prompt_chunk = 2, 1, 64, 20
    ...     def forward(self, tokens, start):
    ...         print("width", tokens.shape[1])
    ...         return np.zeros((*tokens.shape, 2))
    >>> _ = generate(Wide(), [[0] * 41], length=1, window=4)
    width 20
    width 20
    width 1
    """

    @property
    def prompt_chunk(self) -> int:
        """Most known tokens of a row to forward in one call while a prompt is read, at most ``max_window``."""
        ...


@runtime_checkable
class Forks(Protocol):
    """What a provider or a step offers that can copy a row's state, so that samples of one prompt read it once.

    Examples
    --------
    >>> from coupled_sampling.contracts import Forks
    >>> from coupled_sampling.testing import TableProvider, random_table
    >>> isinstance(TableProvider(random_table(0, 4), 4), Forks)
    True
    """

    @property
    def forks(self) -> bool:
        """Whether it can: a step over a provider can where the provider can."""
        ...

    def fork(self, source: int, targets: Sequence[int], length: int) -> None:
        """Give the rows ``targets`` the state that row ``source`` has for the positions below ``length``."""
        ...


@runtime_checkable
class Wraps(Protocol):
    """What works on a provider of somebody else's: steps, guidance, draft models.

    Examples
    --------
    >>> from coupled_sampling import HostStep
    >>> from coupled_sampling.contracts import Wraps
    >>> from coupled_sampling.testing import TableProvider, random_table
    >>> model = TableProvider(random_table(0, 4), 4)
    >>> isinstance(HostStep(model), Wraps), isinstance(model, Wraps)
    (True, False)
    """

    @property
    def provider(self) -> Any: ...


@runtime_checkable
class PromptReader(ReadsPrompts, Protocol):
    """What a step offers that can read prompts in chunks of their own, beside its windows.

    A step that does not is given prompts in windows that decide nothing.

    Examples
    --------
    >>> from coupled_sampling import HostStep
    >>> from coupled_sampling.contracts import PromptReader
    >>> from coupled_sampling.testing import TableProvider, random_table
    >>> step = HostStep(TableProvider(random_table(0, 4), 4, max_length=40))
    >>> isinstance(step, PromptReader), step.prompt_chunk, step.touches_all  # a plain provider cannot tell rows apart
    (True, 40, True)
    """

    @property
    def touches_all(self) -> bool:
        """Whether a call writes all rows from the first to the last of its own, so that ``rows`` must begin with row 0."""
        ...

    @property
    def keeps_prefixes(self) -> bool:
        """Whether a row's state depends on its tokens alone, so that another request with the same beginning may use it."""
        ...

    def read(self, tokens: Integers, start: Integers, rows: range) -> None:
        """Forward known tokens (n, C) of the consecutive ``rows`` at ``start`` (n,), for their state alone."""
        ...

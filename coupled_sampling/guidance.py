"""Classifier-free guidance as a provider made from a provider (Ho and Salimans, arXiv 2207.12598).

A guided model of B rows is a model of 2B rows: row 2b with the user's prompt, row 2b + 1 with an unconditional prompt
of its own, both continued by the same tokens. The guided logits are

    unconditional + scale * (conditional - unconditional).

A token that the conditional row forbids (-inf) stays forbidden, except at scale 0. One that only the unconditional row forbids
has no guided logit at scales above 1 (it would be +inf): such logits are refused when a law is made of them.

Scale and unconditional prompt are the model's, or a request's own (`coupled_sampling.Guidance`); a scale may change from token to
token. Which rows go together, and where, is in `coupled_sampling.guided_rows`.

Losslessness is with respect to the law of the guided logits, whatever one thinks of that law.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.arrays import at_least_float32, filled, namespace, taken
from coupled_sampling.bounds import TreeProvider, check_fork, check_model, check_rows, check_tree_window, check_window
from coupled_sampling.contracts import (
    Array,
    Integers,
    LogitsProvider,
    RequestObserver,
    RowRanges,
    Trees,
    max_window,
    prompt_chunk,
)
from coupled_sampling.errors import InvalidArgument
from coupled_sampling.guided_rows import GuidedRows, PairedWindow, Scale, Unconditional
from coupled_sampling.guided_trees import BEFORE, BEHIND, GuidedTrees, PairedTrees
from coupled_sampling.requests import Request
from coupled_sampling.wrapping import Wrapping

__all__ = ["GuidedProvider"]


class GuidedProvider(Wrapping):
    """``provider`` under classifier-free guidance.

    Parameters
    ----------
    provider
        Has an even ``batch_size``; the guided provider has half of it.
    scale
        Guidance scale; 1 is the conditional law itself, 0 the unconditional one. Finite. Or a function from int64 (n,) indices of
        generated tokens, the first is 0, to scales (n,). A request may have its own.
    unconditional
        The unconditional prompt, or a function from a row's prompt to it. At least one token. A request may have its own.

    Notes
    -----
    It offers what ``provider`` offers: ranges of rows, windows that are trees, prompts in chunks, forks.

    With a fixed unconditional prompt of L tokens, ``max_length`` is L - 1 less than the provider's. Whether a request's own
    unconditional prompt, or one that is made from its prompt, fits with the tokens to come is found by `takes`. A window may be
    wider than what a row has left; slots behind the end of a request may then have no guided logits, and are NaN. A tree takes more
    than one call where a longer unconditional prompt leaves it too few columns.

    The decoding loop says which request a row works on (``begin``). Used without a loop, prompts are taken to be as
    long as the unconditional one.

    Examples
    --------
    A model that looks at the first token of its prompt, and here at an unconditional prompt, 2, of its own:

    >>> import numpy as np
    >>> from coupled_sampling import GuidedProvider
    >>> class ByClass:
    ...     vocab_size, batch_size, max_length = 3, 2, 8
    ...     def forward(self, tokens, start):
    ...         return np.broadcast_to(np.eye(3)[tokens[:, :1]], (*tokens.shape, 3))
    >>> guided = GuidedProvider(ByClass(), scale=3.0, unconditional=[2])
    >>> guided.batch_size  # half of the rows
    1
    >>> guided.forward(np.array([[0]]), np.array([0]))  # unconditional + 3 * (conditional - unconditional)
    array([[[ 3.,  0., -2.]]])

    A request with guidance of its own:

    >>> from coupled_sampling import Guidance, Request
    >>> guided.begin(0, Request([0], length=4, guidance=Guidance(scale=2.0, unconditional=[1])))
    >>> guided.forward(np.array([[0]]), np.array([0]))
    array([[[ 2., -1.,  0.]]])
    """

    def __new__(cls, provider: LogitsProvider, *arguments: object, **settings: object) -> Self:
        # What can be done is asked by Protocols, so that a class that cannot must not have the method.
        if cls is not GuidedProvider:
            return super().__new__(cls)
        kinds = {(True, False): _GuidedByRows, (False, True): _GuidedTrees, (True, True): _GuidedTreesByRows}
        offers = isinstance(provider, RowRanges), isinstance(provider, Trees)
        return super().__new__(kinds.get(offers, cls))  # type: ignore[return-value]

    def __init__(self, provider: LogitsProvider, scale: Scale, unconditional: Unconditional) -> None:
        check_model("provider", provider)
        if provider.batch_size % 2:
            raise InvalidArgument(
                f"provider.batch_size is {provider.batch_size}, expected an even number: guidance runs two rows for each one"
            )
        self.provider, self.scale = provider, scale
        self.vocab_size = int(provider.vocab_size)
        self.batch_size = int(provider.batch_size) // 2
        about = unconditional, self.batch_size, self.vocab_size, int(provider.max_length), scale
        self._rows = (
            GuidedTrees(*about, columns=int(provider.max_columns))
            if isinstance(provider, Trees)
            else GuidedRows(*about)
        )
        self.max_length = self._rows.max_length
        self.max_window = min(max_window(provider), self.max_length)

    def takes(self, request: Request) -> str | None:
        """Why ``request`` cannot be guided, or what the provider cannot do. See `coupled_sampling.contracts.Selective.takes`."""
        return self._rows.takes(request, self.provider)

    def begin(self, row: int, request: Request) -> None:
        """Row ``row`` starts ``request``.

        Raises
        ------
        InvalidArgument
            It cannot be guided, see `takes`.
        """
        for inner, told in enumerate(self._rows.begin(row, request), 2 * row):
            if isinstance(self.provider, RequestObserver):
                self.provider.begin(inner, told)

    @property
    def prompt_chunk(self) -> int:
        """See `coupled_sampling.contracts.ReadsPrompts`."""
        return min(prompt_chunk(self.provider), self.max_window)

    def fork(self, source: int, targets: Sequence[int], length: int) -> None:
        """Copy both rows' state. See `coupled_sampling.contracts.Forks.fork`.

        Raises
        ------
        InvalidArgument
            The provider cannot, or a target has begun with other prompts.
        """
        provider = self._forking()
        check_fork(self, source, targets, length)
        for inner_source, inner_targets, inner_length in self._rows.fork(source, targets, length):
            provider.fork(inner_source, inner_targets, inner_length)

    def forward(self, tokens: Integers, start: Integers) -> Array:
        """Guided logits (B, W, V). See `coupled_sampling.contracts.LogitsProvider.forward`."""
        check_window(self, tokens, start)
        paired = self._rows.paired(tokens, start)
        for opening, begins in self._rows.openings(paired):
            self.provider.forward(opening, begins)
        return _guided(self.provider.forward(paired.tokens, paired.start), paired)


class _Ranges(LogitsProvider, RowRanges, Protocol):
    """A provider that can forward some of its rows."""


class _GuidedByRows(GuidedProvider):
    """A guided provider over one that can forward some of its rows: so can this one."""

    provider: _Ranges

    def forward(self, tokens: Integers, start: Integers) -> Array:
        check_window(self, tokens, start)
        return self._forward(tokens, start, range(len(start)))

    def forward_rows(self, tokens: Integers, start: Integers, rows: range) -> Array:
        """See `coupled_sampling.contracts.RowRanges.forward_rows`."""
        check_window(self, tokens, start)
        check_rows(self, tokens, rows)
        return self._forward(tokens, start, rows)

    def _forward(self, tokens: Integers, start: Integers, rows: range) -> Array:
        paired = self._rows.paired(tokens, start, rows.start)
        self._open_apart(rows)
        inner = range(2 * rows.start, 2 * rows.stop)
        return _guided(self.provider.forward_rows(paired.tokens, paired.start, inner), paired)

    def _open_apart(self, rows: range) -> None:
        for row, opening, begins in self._rows.openings_apart(rows, self.prompt_chunk):
            self.provider.forward_rows(opening, begins, range(row, row + 1))


class _Trees(TreeProvider, RowRanges, Protocol):
    """A provider that takes trees; ranges of rows are asked for before they are used."""


class _GuidedTrees(GuidedProvider):
    """A guided provider over one that takes trees: so does this one."""

    provider: TreeProvider
    _rows: GuidedTrees

    @property
    def max_columns(self) -> int:
        """See `coupled_sampling.contracts.Trees.max_columns`."""
        return self._rows.max_columns

    def forward_tree(self, tokens: Integers, start: Integers, parents: Integers, rows: range) -> Array:
        """See `coupled_sampling.contracts.Trees.forward_tree`."""
        check_tree_window(self, tokens, start, parents)
        check_rows(self, tokens, rows)
        paired, inner = self._rows.trees(tokens, start, parents, rows.start), range(2 * rows.start, 2 * rows.stop)
        self._open(paired, inner)
        found = []
        for call in paired.calls:
            logits = at_least_float32(self.provider.forward_tree(*call, inner))
            # Copies, since the next call may use the memory again.
            found.append(logits if call is paired.calls[-1] else namespace(logits).concat([logits], axis=0))
        return _guided_trees(found, paired)

    def _open(self, paired: PairedTrees, inner: range) -> None:
        for opening in self._rows.tree_openings(paired):
            self.provider.forward_tree(*opening, inner)


class _GuidedTreesByRows(_GuidedTrees, _GuidedByRows):
    """Both."""

    provider: _Trees

    def _open(self, paired: PairedTrees, inner: range) -> None:
        self._open_apart(paired.rows)


def _guided_trees(found: Sequence[Array], paired: PairedTrees) -> Array:
    """Guided logits (B, W, V) of the logits (2B, W, V) of each call."""
    xp, width = namespace(found[-1]), paired.scale.shape[1]
    rows = []
    for b, partner in enumerate(paired.partner):
        conditional, beside = found[-1][2 * b, ...], [logits[2 * b + 1, ...] for logits in found]
        unconditional = beside[-1]
        if len(found) > 1 or (partner != np.arange(width)).any():
            nothing = filled((1, conditional.shape[-1]), float("nan"), conditional)
            where, last = partner.copy(), len(found) * width
            where[partner == BEFORE] = last + np.flatnonzero(partner == BEFORE)
            where[partner == BEHIND] = last + width
            unconditional = taken(xp.concat([*beside, conditional, nothing], axis=0), where)
        rows.append(_mixed_by_slot(conditional, unconditional, paired.scale[b]))
    return xp.stack(rows, axis=0)


def _guided(logits: Array, paired: PairedWindow) -> Array:
    """Guided logits (B, W, V) of ``logits`` (2B, W, V)."""
    logits = at_least_float32(logits)
    rows = []
    for b, lag in enumerate(paired.lag.tolist()):
        conditional = logits[2 * b, ...]
        rows.append(_mixed_by_slot(conditional, _aligned(conditional, logits[2 * b + 1, ...], lag), paired.scale[b]))
    return namespace(logits).stack(rows, axis=0)


def _aligned(conditional: Array, unconditional: Array, lag: int) -> Array:
    """Unconditional logits (W, V) slot by slot beside ``conditional`` ones.

    Slots before the unconditional prompt begins stay conditional; they are of the row's own prompt. Slots past the end of the
    model's memory are NaN; they are behind the end of the request.
    """
    width, vocab_size = conditional.shape
    if not lag:
        return unconditional
    if lag > 0:
        missing = min(lag, width)
        parts = [conditional[:missing, ...], unconditional[: width - missing, ...]]
    else:
        missing = min(-lag, width)
        parts = [unconditional[missing:, ...], filled((missing, vocab_size), float("nan"), unconditional)]
    return namespace(conditional).concat(parts, axis=0)


def _mixed_by_slot(conditional: Array, unconditional: Array, scale: NDArray[np.float64]) -> Array:
    """Guided logits (W, V) at ``scale`` (W,), one run of slots with equal scales after the other."""
    bounds = [0, *(np.flatnonzero(np.diff(scale)) + 1).tolist(), len(scale)]
    if len(bounds) == 2:
        return _mixed(conditional, unconditional, float(scale[0]))
    runs = [
        _mixed(conditional[first:end, ...], unconditional[first:end, ...], float(scale[first]))
        for first, end in itertools.pairwise(bounds)
    ]
    return namespace(conditional).concat(runs, axis=0)


def _mixed(conditional: Array, unconditional: Array, scale: float) -> Array:
    """Guided logits (n, V)."""
    if scale in (0, 1):
        return conditional if scale == 1 else unconditional
    xp = namespace(conditional)
    forbidden = xp.isinf(conditional) & (conditional < 0)
    finite = xp.where(forbidden, xp.zeros_like(conditional), conditional)  # a scale times -inf may be NaN
    # Not unconditional + scale * (conditional - unconditional), which is NaN where both rows forbid a token.
    with np.errstate(
        over="ignore", invalid="ignore"
    ):  # at a scale beyond the type of the logits; what comes of it is refused
        return xp.where(forbidden, conditional, (1 - scale) * unconditional + scale * finite)

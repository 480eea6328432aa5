"""Rows of a batch as paths: windows that are trees, for a model that knows no trees.

Every path of a tree, from the state below the window to a slot behind which there is none, is an ordinary run of tokens. So a model
of B rows serves B // R rows for each of R sequences: the first of them holds the sequence itself, and each of the others forwards
a path of its own beside it. What the paths share is computed once for each of them, so that slots are dearer than in a model with a
mask for trees; but nothing is asked of the model beyond `coupled_sampling.LogitsProvider.forward`. It is the reference for such
masks, too.

A spare row's state is that of the path it forwarded last. So it is remembered which tokens each row of the model holds, and a row
begins where its own tokens and those that are wanted part: it catches up in the same call, which is then wider, or by a copy of
the first row's state where the model can fork.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.arguments import check_count
from coupled_sampling.arrays import namespace, read_only, taken
from coupled_sampling.bounds import check_fork, check_model, check_rows, check_tree_window, check_window
from coupled_sampling.contracts import (
    Array,
    Forks,
    Integers,
    LogitsProvider,
    RequestObserver,
    RowRanges,
    max_window,
    prompt_chunk,
)
from coupled_sampling.errors import InvalidArgument
from coupled_sampling.refusals import refusal_of
from coupled_sampling.requests import Request
from coupled_sampling.rows import common_length
from coupled_sampling.trees import Tree
from coupled_sampling.wrapping import Wrapping

__all__ = ["RowsAsPaths"]

_NOTHING, _UNKNOWN = np.zeros(0, np.int64), -1


class RowsAsPaths(Wrapping):
    """``provider`` as a model of ``rows`` rows that forwards trees, each path of which is a row of ``provider``.

    Parameters
    ----------
    provider
        Has ``batch_size // rows`` rows for each row of this one.
    rows
        How many sequences at once, 1 to ``provider.batch_size``.

    Notes
    -----
    **A tree may take several calls of** ``provider``: where it has more paths than a row has rows, and where a spare row has to
    catch up with more tokens than ``max_window``. So passes of the model are then more than steps of the decoder. A provider that
    forks has nothing to catch up with. Prompts are read by all rows of a sequence.

    What ``provider`` held before it was wrapped counts for nothing. It offers what ``provider`` offers: ranges of rows, prompts in
    chunks, forks, to be told requests. A tree's slots need no room of their own, so that ``max_columns`` is no limit.

    Examples
    --------
    A model that says after each token what came before it. Behind a 5 stand a 1, with a 2 behind it, and beside them a 3:

    >>> import numpy as np
    >>> from coupled_sampling import RowsAsPaths
    >>> class Before:
    ...     vocab_size, batch_size, max_length = 6, 4, 16
    ...     held = np.zeros((4, 16), int)
    ...     def forward(self, tokens, start):
    ...         for row, first in enumerate(start):
    ...             self.held[row, first : first + tokens.shape[1]] = tokens[row]
    ...         at = start[:, None] + np.arange(tokens.shape[1]) - 1
    ...         return np.eye(6)[self.held[np.arange(len(start))[:, None], at]]
    >>> model = RowsAsPaths(Before(), rows=2)  # two rows of its four for each
    >>> tokens, parents = np.array([[5, 1, 2, 3]]), np.array([[-1, 0, 1, 0]])
    >>> model.forward_tree(tokens, np.array([0]), parents, range(1)).argmax(-1)[0, 1:]
    array([5, 1, 5])

    Decoded with branches:

    >>> from coupled_sampling import generate
    >>> from coupled_sampling.testing import TableProvider, random_table
    >>> model = RowsAsPaths(TableProvider(random_table(0, 5), 5, batch_size=3), rows=1)
    >>> len(generate(model, [[0]], length=9, method="scd-match", window=6, branches=3).tokens[0])
    9
    """

    def __new__(cls, provider: LogitsProvider, *arguments: object, **settings: object) -> Self:
        # What can be done is asked by Protocols, so that a class that cannot must not have the method.
        if cls is not RowsAsPaths:
            return super().__new__(cls)
        offers = isinstance(provider, RowRanges), isinstance(provider, RequestObserver)
        kinds = {(True, False): _ByRows, (False, True): _Told, (True, True): _ToldByRows}
        return super().__new__(kinds.get(offers, cls))  # type: ignore[return-value]

    def __init__(self, provider: LogitsProvider, rows: int) -> None:
        check_model("provider", provider)
        if check_count("rows", rows) > provider.batch_size:
            raise InvalidArgument(
                f"rows is {rows}, expected 1 to provider.batch_size, {provider.batch_size}: each has rows of its own"
            )
        self.provider = provider
        self.vocab_size, self.batch_size = int(provider.vocab_size), int(rows)
        self.max_length, self.max_window = int(provider.max_length), max_window(provider)
        self._each = int(provider.batch_size) // self.batch_size
        self._held: list[Integers] = [_NOTHING] * (self.batch_size * self._each)
        """Of each row of the provider, the tokens from position 0 on whose state it has."""
        # Asked once: to ask a Protocol takes longer than a good part of a pass.
        self._by_rows = provider if isinstance(provider, RowRanges) else None
        self._forks = provider if isinstance(provider, Forks) and provider.forks else None

    def takes(self, request: Request) -> str | None:
        """What the provider cannot do. See `coupled_sampling.contracts.Selective.takes`."""
        return refusal_of(self.provider, request)

    @property
    def prompt_chunk(self) -> int:
        """See `coupled_sampling.contracts.ReadsPrompts`."""
        return prompt_chunk(self.provider)

    def fork(self, source: int, targets: Sequence[int], length: int) -> None:
        """Copy the state of ``source``'s first row. See `coupled_sampling.contracts.Forks.fork`.

        Raises
        ------
        InvalidArgument
            The provider cannot.
        """
        self._forking()
        check_fork(self, source, targets, length)
        self._copy(self._each * source, [self._each * target for target in targets], length)

    def _copy(self, source: int, targets: Sequence[int], length: int) -> None:
        assert self._forks is not None, "asked where the provider forks"
        held = self._held[source][:length]
        for target in targets:
            self._held[target] = self._held[target][: common_length(self._held[target], held)]  # if the copy fails
        self._forks.fork(source, targets, length)
        for target in targets:
            self._held[target] = held

    @property
    def max_columns(self) -> int:
        """See `coupled_sampling.contracts.Trees`: no limit, since what stands side by side does so in other rows."""
        return 1 << 62

    def forward(self, tokens: Integers, start: Integers) -> Array:
        """Logits (B, W, V) of the first row of each. See `coupled_sampling.LogitsProvider.forward`."""
        check_window(self, tokens, start)
        return self._forward(tokens, start, range(len(start)))

    def _forward(self, tokens: Integers, start: Integers, rows: range) -> Array:
        wanted = [
            np.concatenate([self._below(row, int(first)), own])
            for row, first, own in zip(rows, start, tokens, strict=True)
        ]
        # The spare rows forward as much of the same as they lack: where they lack nothing, they are ready for a tree.
        runs = [own for own in wanted for _ in range(self._each)]
        inner = self._inner(rows)
        begins = self._begins(runs, np.repeat(start, self._each).tolist(), inner)
        return self._call(runs, begins, tokens.shape[1], inner).logits[:: self._each, ...]

    def forward_tree(self, tokens: Integers, start: Integers, parents: Integers, rows: range) -> Array:
        """See `coupled_sampling.contracts.Trees.forward_tree`.

        Raises
        ------
        InvalidArgument
            The window leaves the model's memory, or ``rows`` are some that the provider cannot forward alone.
        """
        check_tree_window(self, tokens, start, parents)
        check_rows(self, tokens, rows)
        if rows.start and self._by_rows is None:
            raise InvalidArgument(
                f"rows is {rows!r}, expected rows from 0 on: the provider cannot forward others alone"
            )
        tree = Tree.of(parents)
        plans = [_Paths.of(tokens[b], tree, b) for b in range(len(rows))]
        below = [self._below(row, int(first)) for row, first in zip(rows, start, strict=True)]
        gathered = _Gathered(np.stack([plan.holder for plan in plans]), start[:, None] + tree.depth, self._each)
        rounds = -(-max(len(plan.paths) for plan in plans) // self._each)
        # The path that is the row's own comes first in each plan, and last of all, so that the first row keeps it.
        for turn in reversed(range(rounds)):
            runs = [
                np.concatenate([known, plan.path(turn * self._each + spare)])
                for plan, known in zip(plans, below, strict=True)
                for spare in range(self._each)
            ]
            self._paths(runs, start, self._inner(rows), gathered, turn)
        return gathered.logits(self.vocab_size)

    def _paths(self, runs: list[Integers], start: Integers, inner: range, gathered: _Gathered, turn: int) -> None:
        """Forward ``runs``, each whole one of a row of ``inner``, as far as they are not held, and all of their windows."""
        firsts = np.repeat(start, self._each).tolist()
        begins = self._begins(runs, firsts, inner)
        if self._forks is not None:
            for group, first in enumerate(start.tolist()):
                own = range(group * self._each, (group + 1) * self._each)
                behind = [inner[i] for i in own if begins[i] < first]
                if behind:
                    self._copy(inner[own.start], behind, first)
            begins = firsts
        lacks = max(len(run) - begin for run, begin in zip(runs, begins, strict=True))
        while lacks > 0:
            width = min(lacks, self.max_window)
            called = self._call(runs, begins, width, inner)
            gathered.add(called, turn)
            begins = [begin + width for begin in called.begins]
            lacks = max(len(run) - begin for run, begin in zip(runs, begins, strict=True))

    def _below(self, row: int, start: int) -> Integers:
        """The tokens below ``start`` in ``row``; `_UNKNOWN` where none was forwarded yet: then what comes behind means nothing."""
        below = np.full(start, _UNKNOWN)
        held = self._held[row * self._each][:start]
        below[: len(held)] = held
        return below

    def _begins(self, runs: Sequence[Integers], firsts: Sequence[int], inner: range) -> list[int]:
        """Where each row of ``inner`` begins with its own of ``runs``: at the position wanted, or before, where it lacks tokens."""
        return [
            first if _UNKNOWN in run[:first] else min(common_length(self._held[row], run), first)
            for row, run, first in zip(inner, runs, firsts, strict=True)
        ]

    def _inner(self, rows: range) -> range:
        return range(rows.start * self._each, rows.stop * self._each)

    def _call(self, runs: Sequence[Integers], begins: Sequence[int], width: int, inner: range) -> _Called:
        """Forward ``width`` tokens of each of ``runs`` from ``begins`` on, or from below where it is shorter."""
        tokens, start = np.zeros((len(runs), width), np.int64), np.zeros(len(runs), np.int64)
        holds = []
        for i, (run, begin) in enumerate(zip(runs, begins, strict=True)):
            start[i] = first = max(0, min(begin, len(run) - width))
            own = run[first : first + width]
            tokens[i, : len(own)] = np.maximum(own, 0)
            unknown = np.flatnonzero(run == _UNKNOWN)
            holds.append(np.concatenate([run[:first], tokens[i]])[: unknown[0] if unknown.size else None])
        for row, held in zip(inner, holds, strict=True):  # what is there whatever becomes of the call
            self._held[row] = self._held[row][: common_length(self._held[row], held)]
        window = read_only(tokens), read_only(start)
        logits = self.provider.forward(*window) if self._by_rows is None else self._by_rows.forward_rows(*window, inner)
        for row, held in zip(inner, holds, strict=True):
            self._held[row] = held
        return _Called(logits, start.tolist(), width)


class _Called(NamedTuple):
    """A call of the provider."""

    logits: Array
    begins: list[int]
    width: int


class _Paths(NamedTuple):
    """The paths of one row's tree that are not the beginning of another one."""

    paths: list[Integers]
    """The first is the row's own, or goes on from it: it has the leading slots."""
    holder: Integers
    """(W,) which of them has each slot."""

    @classmethod
    def of(cls, tokens: Integers, tree: Tree, row: int) -> _Paths:
        slots = [tuple(tokens[tree.path(row, slot)].tolist()) for slot in range(len(tokens))]
        holder: dict[tuple[int, ...], int] = {}
        paths: list[tuple[int, ...]] = []
        for path in sorted(slots, key=len, reverse=True):
            if path not in holder:  # equal tokens are one path, as in padding
                holder.update(dict.fromkeys((path[: end + 1] for end in range(len(path))), len(paths)))
                paths.append(path)
        own = holder[slots[int(tree.leading()[row]) - 1]]
        order = [own, *(i for i in range(len(paths)) if i != own)]
        place = {i: new for new, i in enumerate(order)}
        return cls([np.array(paths[i], np.int64) for i in order], np.array([place[holder[path]] for path in slots]))

    def path(self, index: int) -> Integers:
        """The path ``index``; behind the last one the first again, which does no harm."""
        return self.paths[index if index < len(self.paths) else 0]


class _Gathered:
    """The logits of a tree's slots, from whichever call has them.

    ``holder`` (n, W) is the path that has each slot, ``position`` (n, W) where it lies, ``each`` the rows of one row's paths.
    """

    def __init__(self, holder: Integers, position: Integers, each: int) -> None:
        self._turn, self._row = holder // each, holder % each + each * np.arange(len(holder))[:, None]
        self._position, self._parts = position, list[Array]()
        self._place: NDArray[np.int64] = np.full(holder.shape, -1)

    def add(self, called: _Called, turn: int) -> None:
        """Take what ``called`` has of the paths that were forwarded in ``turn``: a copy, since its memory may be used again."""
        column = self._position - np.array(called.begins)[self._row]
        new = (self._turn == turn) & (self._place < 0) & (column >= 0) & (column < called.width)
        if new.any():
            source = (self._row * called.width + column)[new]
            self._place[new] = sum(part.shape[0] for part in self._parts) + np.arange(len(source))
            flat = namespace(called.logits).reshape(called.logits, (-1, called.logits.shape[-1]))
            self._parts.append(taken(flat, source))

    def logits(self, vocab_size: int) -> Array:
        """(n, W, V)."""
        whole = namespace(self._parts[0]).concat(self._parts, axis=0)
        return namespace(whole).reshape(taken(whole, self._place.reshape(-1)), (*self._place.shape, vocab_size))


class _ByRows(RowsAsPaths):
    """Paths in rows of a provider that can forward some of its rows: so can this one."""

    def forward_rows(self, tokens: Integers, start: Integers, rows: range) -> Array:
        """See `coupled_sampling.contracts.RowRanges.forward_rows`."""
        check_window(self, tokens, start)
        check_rows(self, tokens, rows)
        return self._forward(tokens, start, rows)


class _Observing(LogitsProvider, RequestObserver, Protocol):
    """A provider that is told requests."""


class _Told(RowsAsPaths):
    """Paths in rows of a provider that is told requests: so is this one."""

    provider: _Observing

    def begin(self, row: int, request: Request) -> None:
        """Tell all rows of ``row``'s paths. See `coupled_sampling.contracts.RequestObserver.begin`."""
        inner = range(row * self._each, (row + 1) * self._each)
        for spare in inner:
            self._held[spare] = _NOTHING
        for spare in inner:
            self.provider.begin(spare, request)


class _ToldByRows(_Told, _ByRows):
    """Both."""

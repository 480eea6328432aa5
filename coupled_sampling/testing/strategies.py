"""Hypothesis strategies: laws, tables, prompts and whole decoding problems, which shrink to what a reader can take in.

Laws are small integers divided by their sum, so a failure shrinks to (1/2, 1/2) and not to (0.4999, 0.5001). A `World` is all
that a decoding needs; its ``repr`` is Python that makes it again. Nothing here loads Hypothesis before a strategy is made.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.contracts import Sampling
from coupled_sampling.errors import InvalidArgument, MissingDependency
from coupled_sampling.testing.arguments import (
    check_choice,
    check_count,
    check_kind,
    check_number,
    check_prompts,
    check_sequence,
    check_tokens,
    shown,
)
from coupled_sampling.testing.worlds import TableProvider

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

__all__ = [
    "Table",
    "World",
    "batches",
    "laws",
    "pairs_of_laws",
    "prompts",
    "samplings",
    "tables",
    "windows",
    "worlds",
]

Law: TypeAlias = NDArray[np.float64]
LawKind: TypeAlias = Literal["any", "flat", "peaked", "zeros", "near-ties", "subnormal"]
KINDS = ("flat", "peaked", "zeros", "near-ties", "subnormal")
_MOST_ORDER = 8
"""Tables grow as the vocabulary to the power of the order."""


def _hypothesis() -> Any:
    """The module ``hypothesis.strategies``."""
    try:
        from hypothesis import strategies
    except ImportError as error:
        raise MissingDependency(
            "these strategies need the package hypothesis, which is not installed: pip install 'coupled-sampling[testing]'"
        ) from error
    return strategies


@dataclass(frozen=True)
class Table:
    """A Markov model: the next law is a row of weights, chosen by the last ``order`` tokens.

    Parameters
    ----------
    vocab_size, order
        The table has ``vocab_size ** order`` rows; tokens before the first count as 0.
    weights
        Rows of ``vocab_size`` integers >= 0, not all 0; a law is a row divided by its sum.

    Examples
    --------
    >>> from coupled_sampling.testing.strategies import Table
    >>> table = Table(vocab_size=2, order=1, weights=((1, 3), (1, 1)))
    >>> table((0, 1, 0))  # after token 0
    array([0.25, 0.75])
    """

    vocab_size: int
    order: int
    weights: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        check_count("vocab_size", self.vocab_size)
        check_count("order", self.order, 0, _MOST_ORDER)
        rows = self.vocab_size**self.order
        expected = f"{rows} rows of {self.vocab_size} integers >= 0, not all of them 0"
        held = [check_sequence("weights", row, expected) for row in check_sequence("weights", self.weights, expected)]
        own = [sum(check_count("weights", weight, 0) for weight in row) for row in held]
        if len(held) != rows or not all(own) or any(len(row) != self.vocab_size for row in held):
            raise InvalidArgument(f"weights are {shown(self.weights)}, expected {expected}")

    def __call__(self, context: tuple[int, ...]) -> Law:
        """Law (V,) of the next token given all tokens before it."""
        index = 0
        for token in ((0,) * self.order + tuple(context))[len(context) :]:
            index = index * self.vocab_size + max(int(token), 0)
        row = np.array(self.weights[index], np.float64)
        return np.asarray(row / row.sum())


@dataclass(frozen=True)
class World:
    """A decoding problem: a model, its prompts, and the settings that must not matter.

    Parameters
    ----------
    table
        The model.
    prompts
        One per sequence, at least one token each.
    length, window, rows
        Tokens to generate, slots per step, rows of the provider.
    stop
        Tokens that end a sequence.

    Examples
    --------
    >>> from coupled_sampling.testing.strategies import Table, World
    >>> world = World(Table(2, 0, ((1, 3),)), prompts=((0,), (1, 0)), length=4, window=2)
    >>> world.provider().max_length
    8
    """

    table: Table
    prompts: tuple[tuple[int, ...], ...]
    length: int = 1
    window: int = 1
    rows: int = 1
    stop: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        check_kind("table", self.table, Table)
        check_prompts("prompts", self.prompts, self.table.vocab_size)
        for name in ("length", "window", "rows"):
            check_count(name, getattr(self, name))
        check_tokens("stop", self.stop, self.table.vocab_size)

    def provider(self) -> TableProvider:
        """A new provider of the model, with room for every sequence and a window more."""
        positions = max(map(len, self.prompts)) + self.length + self.window
        return TableProvider(self.table, self.table.vocab_size, self.rows, positions)


def _sizes(vocab_size: int | None, least: int = 2) -> SearchStrategy[int]:
    st = _hypothesis()
    if vocab_size is None:
        return st.integers(least, 6)
    return st.just(check_count("vocab_size", vocab_size, least))


def _normalised(weights: Any) -> Law:
    values = np.asarray(weights, np.float64)
    return np.asarray(values / values.sum())


@functools.cache  # strategies are validated when first used, which costs more than a draw
def _integers(size: int, least: int = 1) -> SearchStrategy[list[int]]:
    st = _hypothesis()
    return st.lists(st.integers(least, 9), min_size=size, max_size=size)


@functools.cache
def _law_of_kind(size: int, kind: str) -> SearchStrategy[Law]:
    st = _hypothesis()
    flat, place = _integers(size), st.integers(0, size - 1)

    def peaked(weights: list[int], token: int, power: int) -> Law:
        return _normalised([10**power if i == token else weight for i, weight in enumerate(weights)])

    def with_zero(weights: list[int], forbidden: int, allowed: int) -> Law:
        allowed = (forbidden + 1 + allowed) % size if size > 1 else 0
        kept = [0 if i == forbidden and i != allowed else weight for i, weight in enumerate(weights)]
        kept[allowed] = max(kept[allowed], 1)
        return _normalised(kept)

    def near_ties(steps: list[int]) -> Law:
        return np.array([1 / size + step * np.spacing(1 / size) for step in steps])

    def subnormal(weights: list[int], token: int, units: int) -> Law:
        law = _normalised([0 if i == token else weight for i, weight in enumerate(weights)])
        law[token] = units * 5e-324
        return law

    made: dict[str, Callable[[], SearchStrategy[Law]]] = {
        "flat": lambda: st.builds(_normalised, flat),
        "peaked": lambda: st.builds(peaked, flat, place, st.integers(3, 15)),
        "zeros": lambda: st.builds(with_zero, _integers(size, 0), place, st.integers(0, max(0, size - 2))),
        "near-ties": lambda: st.builds(near_ties, st.lists(st.integers(0, 3), min_size=size, max_size=size)),
        "subnormal": lambda: st.builds(subnormal, flat, place, st.integers(1, 1 << 40)),
    }
    return made[kind]()


@functools.cache
def _law_of_kinds(size: int, kinds: tuple[str, ...]) -> SearchStrategy[Law]:
    return _hypothesis().one_of(*(_law_of_kind(size, kind) for kind in kinds))


def laws(vocab_size: int | None = None, kind: LawKind = "any") -> SearchStrategy[Law]:
    """Laws float64 (V,), which sum to one up to rounding.

    Parameters
    ----------
    vocab_size
        V, at least 2; by default from 2 to 6.
    kind
        ``flat``: ratios of at most 9. ``peaked``: one token has 10 times the mass of any other, or much more.
        ``zeros``: at least one token is forbidden. ``near-ties``: all masses equal up to a few units in the last
        place. ``subnormal``: one token has a mass below the smallest normal number. ``any``: one of these, the
        simplest first.

    Examples
    --------
    >>> from hypothesis import find
    >>> from coupled_sampling.testing.strategies import laws
    >>> find(laws(3, kind="flat"), lambda law: law[0] > law[1])  # the simplest such law
    array([0.5 , 0.25, 0.25])
    """
    check_choice("kind", kind, ("any", *KINDS))
    kinds = KINDS if kind == "any" else (kind,)
    return _sizes(vocab_size).flatmap(lambda size: _law_of_kinds(size, kinds))


def pairs_of_laws(
    vocab_size: int | None = None, tv: float | SearchStrategy[float] | None = None
) -> SearchStrategy[tuple[Law, Law]]:
    """Pairs (draft law, target law) at a total variation distance of ``tv``, up to rounding.

    Both have a common part of mass 1 - tv, and the rest on tokens that only one of them has.

    Parameters
    ----------
    vocab_size
        As for `laws`.
    tv
        In [0, 1], or a strategy for it; by default a multiple of 1/8.

    Examples
    --------
    >>> from hypothesis import find
    >>> from coupled_sampling.testing.strategies import pairs_of_laws
    >>> draft_law, target_law = find(pairs_of_laws(2, tv=0.25), lambda pair: True)
    >>> float(abs(draft_law - target_law).sum() / 2)
    0.25
    """
    st = _hypothesis()
    if tv is not None and not isinstance(tv, st.SearchStrategy):
        expected = "a number in [0, 1], or a strategy for it"
        if not 0 <= check_number("tv", tv, expected) <= 1:
            raise InvalidArgument(f"tv is {tv}, expected {expected}")
    far = (
        st.integers(0, 8).map(lambda eighths: eighths / 8)
        if tv is None
        else tv
        if isinstance(tv, st.SearchStrategy)
        else st.just(tv)
    )

    def pair(common: Law, weights: list[int], owners: list[bool], variation: float) -> tuple[Law, Law]:
        mine = np.array([True, *owners, False])
        own, other = (_normalised(np.where(side, weights, 0)) for side in (mine, ~mine))
        return (1 - variation) * common + variation * own, (1 - variation) * common + variation * other

    def of_size(size: int) -> SearchStrategy[tuple[Law, Law]]:
        owners = st.lists(st.booleans(), min_size=size - 2, max_size=size - 2)
        return st.builds(pair, _law_of_kinds(size, KINDS), _integers(size), owners, far)

    return _sizes(vocab_size).flatmap(of_size)


@functools.cache
def _tables_of_size(size: int, order: int) -> SearchStrategy[Table]:
    st = _hypothesis()
    row = st.one_of(_integers(size), _integers(size, 0).filter(any)).map(tuple)
    rows = st.lists(row, min_size=size**order, max_size=size**order).map(tuple)
    return st.builds(Table, st.just(size), st.just(order), rows)


def tables(vocab_size: int | None = None, order: int | None = None) -> SearchStrategy[Table]:
    """Markov models of ``order`` 0 to 2 (by default 1 or 2) with weights from 0 to 9; by default 2 or 3 tokens.

    Examples
    --------
    >>> from hypothesis import find
    >>> from coupled_sampling.testing.strategies import tables
    >>> find(tables(2, order=1), lambda table: True)
    Table(vocab_size=2, order=1, weights=((1, 1), (1, 1)))
    """
    st = _hypothesis()

    sizes = st.integers(2, 3) if vocab_size is None else _sizes(vocab_size, 1)
    orders = st.integers(1, 2) if order is None else st.just(check_count("order", order, 0, _MOST_ORDER))
    return st.tuples(sizes, orders).flatmap(lambda both: _tables_of_size(*both))


def prompts(vocab_size: int, max_length: int = 3) -> SearchStrategy[tuple[int, ...]]:
    """Prompts of 1 to ``max_length`` tokens.

    Examples
    --------
    >>> from hypothesis import find
    >>> from coupled_sampling.testing.strategies import prompts
    >>> find(prompts(vocab_size=5), lambda prompt: len(prompt) == 2)
    (0, 0)
    """
    st = _hypothesis()
    check_count("vocab_size", vocab_size)
    check_count("max_length", max_length)
    return st.lists(st.integers(0, vocab_size - 1), min_size=1, max_size=max_length).map(tuple)


def batches(vocab_size: int, max_rows: int = 3, max_length: int = 3) -> SearchStrategy[tuple[tuple[int, ...], ...]]:
    """One to ``max_rows`` prompts, of lengths that differ.

    Examples
    --------
    >>> from hypothesis import find
    >>> from coupled_sampling.testing.strategies import batches
    >>> len(find(batches(vocab_size=5), lambda prompts: len(prompts) == 2))
    2
    """
    check_count("max_rows", max_rows)
    return _hypothesis().lists(prompts(vocab_size, max_length), min_size=1, max_size=max_rows).map(tuple)


def windows(max_window: int = 5) -> SearchStrategy[int]:
    """Window sizes from 1 to ``max_window``.

    Examples
    --------
    >>> from hypothesis import find
    >>> from coupled_sampling.testing.strategies import windows
    >>> find(windows(), lambda window: window > 1)
    2
    """
    return _hypothesis().integers(1, check_count("max_window", max_window))


def samplings(vocab_size: int) -> SearchStrategy[Sampling]:
    """Sampling settings, the plain ones first: temperature 0 included, and ``top_k`` up to one more than there are tokens.

    Examples
    --------
    >>> from hypothesis import find
    >>> from coupled_sampling.testing.strategies import samplings
    >>> find(samplings(vocab_size=5), lambda sampling: sampling.temperature < 1).temperature
    0.5
    """
    st = _hypothesis()
    check_count("vocab_size", vocab_size)
    return st.builds(
        Sampling,
        temperature=st.sampled_from([1.0, 0.5, 2.0, 0.0]),
        top_k=st.one_of(st.none(), st.integers(1, vocab_size + 1)),
        top_p=st.sampled_from([1.0, 0.9, 0.5, 0.1]),
        min_p=st.sampled_from([0.0, 0.05, 0.5, 1.0]),
    )


def worlds(
    vocab_size: int | None = None, *, max_length: int = 4, max_window: int = 4, max_rows: int = 2, stops: bool = True
) -> SearchStrategy[World]:
    """Decoding problems small enough to enumerate: see `World`.

    Examples
    --------
    >>> from hypothesis import given, settings
    >>> from coupled_sampling import generate
    >>> from coupled_sampling.testing.strategies import worlds
    >>> @settings(max_examples=10, database=None, derandomize=True)
    ... @given(worlds(stops=False))
    ... def every_length_is_kept(world):
    ...     tokens = generate(world.provider(), world.prompts, length=world.length, window=world.window).tokens
    ...     assert [len(t) for t in tokens] == [world.length] * len(world.prompts)
    >>> every_length_is_kept()
    """
    st = _hypothesis()
    for name, value in (("max_length", max_length), ("max_window", max_window), ("max_rows", max_rows)):
        check_count(name, value)
    check_kind("stops", stops, bool)

    def of_table(table: Table) -> SearchStrategy[World]:
        tokens = st.integers(0, table.vocab_size - 1)
        return st.builds(
            World,
            table=st.just(table),
            prompts=batches(table.vocab_size, max_rows),
            length=st.integers(1, max_length),
            window=windows(max_window),
            rows=st.integers(1, max_rows),
            stop=st.lists(tokens, max_size=1).map(tuple) if stops else st.just(()),
        )

    return tables(vocab_size).flatmap(of_table)

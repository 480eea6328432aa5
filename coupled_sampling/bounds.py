"""What is asked of a model, of the arguments of ``forward`` and of what it returns, before anything uses them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from coupled_sampling.arguments import check_count
from coupled_sampling.arrays import is_floating
from coupled_sampling.contracts import CoupledStep, Integers, LogitsProvider, Trees, TreeSteps, max_window
from coupled_sampling.errors import InvalidArgument, ProviderError
from coupled_sampling.trees import check_parents

__all__ = ["TreeProvider", "check_tree_window", "check_window"]


class TreeProvider(LogitsProvider, Trees, Protocol):
    """A provider that offers `Trees`.

    Examples
    --------
    >>> from coupled_sampling.bounds import TreeProvider
    >>> from coupled_sampling.testing import TableProvider, random_table
    >>> model: TreeProvider = TableProvider(random_table(0, 4), 4)
    """


class _TreeStep(CoupledStep, TreeSteps, Protocol):
    """A step that offers `TreeSteps`."""


def check_model(name: str, model: Any) -> None:
    """Refuse what is no `LogitsProvider`, or one whose sizes are none.

    Raises
    ------
    InvalidArgument
        It names ``name``.
    """
    if not isinstance(model, LogitsProvider):
        raise InvalidArgument(
            f"{name} is a {type(model).__name__}, expected a LogitsProvider: an object with vocab_size, batch_size, max_length and "
            "forward(tokens, start)"
        )
    for size in ("vocab_size", "batch_size", "max_length"):
        check_count(f"{name}.{size}", getattr(model, size))


def check_logits(who: str, logits: Any, expected: tuple[int, ...]) -> None:
    """Refuse what ``who`` returned if it is not floating logits of the ``expected`` shape.

    Raises
    ------
    ProviderError
        It is not.
    """
    shape = getattr(logits, "shape", None)
    if shape is None or tuple(shape) != expected:
        raise ProviderError(
            f"{who} returned {type(logits).__name__} of shape {None if shape is None else tuple(shape)}, "
            f"expected logits of shape {expected}: (rows, window, vocabulary)"
        )
    if not is_floating(logits):
        raise ProviderError(f"{who} returned logits of type {logits.dtype}, expected a floating type")


def check_window(provider: LogitsProvider | CoupledStep, tokens: Any, start: Any) -> None:
    """Refuse a window that ``provider`` cannot hold.

    Parameters
    ----------
    provider
        A provider, or a step over one. Its ``batch_size``, ``max_length``, ``max_window`` and ``vocab_size`` are the bounds.
    tokens, start
        What ``forward`` was given: int64 (B, W) and int64 (B,) if all is well.

    Raises
    ------
    InvalidArgument
        A type, a shape, a start or a token is out of bounds.

    Examples
    --------
    >>> import numpy as np
    >>> from coupled_sampling.bounds import check_window
    >>> from coupled_sampling.testing import TableProvider, random_table
    >>> model = TableProvider(random_table(0, 5), 5, max_length=16)
    >>> check_window(model, np.array([[0, 4]]), np.array([3]))
    >>> check_window(model, np.array([[0, 5]]), np.array([3]))
    Traceback (most recent call last):
    coupled_sampling.errors.InvalidArgument: row 0, slot 1 is token 5, expected tokens in [0, 5)
    """
    _check_types(provider, tokens, start)
    width = tokens.shape[1]
    most = max_window(provider)
    if not 1 <= width <= most:
        raise InvalidArgument(f"tokens has {width} slots, expected 1 to max_window, {most}")
    last = provider.max_length - width
    if last < 0 or np.maximum.reduce(start.view(np.uint64)) > last:
        row = int(((start < 0) | (start > last)).argmax())
        raise InvalidArgument(
            f"row {row} starts at {start[row]}, expected 0 to {last}: the model holds "
            f"{provider.max_length} positions and the window has {width} slots"
        )
    _check_tokens(provider, tokens)


def check_tree_window(provider: TreeProvider | _TreeStep, tokens: Any, start: Any, parents: Any) -> None:
    """Refuse a window that is a tree and that ``provider`` cannot hold.

    Raises
    ------
    InvalidArgument
        A type, a shape, a start, a token or a parent is out of bounds.

    Examples
    --------
    >>> import numpy as np
    >>> from coupled_sampling.bounds import check_tree_window
    >>> from coupled_sampling.testing import TableProvider, random_table
    >>> model = TableProvider(random_table(0, 5), 5, max_length=4)
    >>> tokens, parents = np.array([[0, 1, 2, 3]]), np.array([[-1, 0, 0, 0]])
    >>> check_tree_window(model, tokens, np.array([2]), parents)  # six slots, but four positions
    >>> check_tree_window(model, tokens, np.array([3]), parents)
    Traceback (most recent call last):
    coupled_sampling.errors.InvalidArgument: row 0 has a slot at position 4, expected positions in [0, 4), which the model holds
    """
    _check_types(provider, tokens, start)
    last = provider.max_columns - tokens.shape[1]
    if not tokens.shape[1] or last < 0 or (start < 0).any() or (start > last).any():
        row = int(((start < 0) | (start > last)).argmax())
        raise InvalidArgument(
            f"row {row} starts at {start[row]} and has {tokens.shape[1]} slots, expected at least one, and all within the "
            f"{provider.max_columns} columns that the model has"
        )
    _check_tokens(provider, tokens)
    check_parents(parents, tokens.shape, start, provider.max_length)


def _check_types(provider: LogitsProvider | CoupledStep, tokens: Any, start: Any) -> None:
    for name, array, axes in (("tokens", tokens, 2), ("start", start, 1)):
        if not isinstance(array, np.ndarray) or array.dtype != np.int64 or array.ndim != axes:
            found = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
            raise InvalidArgument(f"{name} is {found}, expected a numpy int64 array with {axes} axes")
    rows = len(tokens)
    if not 1 <= rows <= provider.batch_size or start.shape != (rows,):
        raise InvalidArgument(
            f"tokens has {rows} rows and start {len(start)}, expected equal numbers from 1 to batch_size, "
            f"{provider.batch_size}; open the model with a larger batch_size for more"
        )


def _check_tokens(provider: LogitsProvider | CoupledStep, tokens: Integers) -> None:
    # As unsigned numbers, negative ones are the largest.
    if np.maximum.reduce(tokens.view(np.uint64), axis=None) >= provider.vocab_size:
        row, slot = np.argwhere((tokens < 0) | (tokens >= provider.vocab_size))[0]
        raise InvalidArgument(
            f"row {row}, slot {slot} is token {tokens[row, slot]}, expected tokens in [0, {provider.vocab_size})"
        )


def check_rows(provider: LogitsProvider | CoupledStep, tokens: Integers, rows: Any) -> None:
    """Refuse ``rows`` that are no range of the provider's rows, one for each of ``tokens`` (n, W): `InvalidArgument`."""
    one_by_one = isinstance(rows, range) and rows.step == 1 and rows.start >= 0 and rows.stop <= provider.batch_size
    if not one_by_one or len(rows) != len(tokens):
        raise InvalidArgument(
            f"rows is {rows!r}, expected a range of {len(tokens)} consecutive rows, as many as tokens has, among "
            f"the {provider.batch_size} that there are"
        )


def check_fork(provider: LogitsProvider | CoupledStep, source: int, targets: Sequence[int], length: int) -> None:
    """Refuse to copy what is no row, or more positions than a row has: `InvalidArgument`."""
    wrong = [row for row in (source, *targets) if not 0 <= row < provider.batch_size]
    if wrong:
        raise InvalidArgument(f"row {wrong[0]} to fork, expected rows from 0 to {provider.batch_size - 1}")
    if not 0 <= length <= provider.max_length:
        raise InvalidArgument(f"length to fork is {length}, expected 0 to max_length, {provider.max_length}")

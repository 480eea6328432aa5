"""Arguments that anything takes, refused by name: counts, numbers, truths, tokens.

A bool is an integer to Python and a string a sequence; NaN is less than nothing and more than nothing. So each kind is asked for
once, here. Every function returns what it was given, as a plain value, or raises `InvalidArgument` with the argument's name.
"""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.errors import InvalidArgument

__all__ = ["check_count", "check_flag", "check_number", "checked_tokens", "in_one_line", "is_whole", "shown"]

_SHOWN = 80
"""Characters of a wrong value that a message shows."""

_SAID = 400
"""Characters of another library's message."""


def shown(value: Any) -> str:
    """``value`` as a message shows it: short, and never an error of its own."""
    try:
        text = repr(value)
    except Exception:  # a stranger's __repr__
        text = f"an object of type {type(value).__name__}"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def in_one_line(error: BaseException | str) -> str:
    """What an exception of another library says, whose messages may be pages."""
    said = " ".join(str(error).split())
    return said if len(said) <= _SAID else f"{said[:_SAID]}..."


def is_whole(value: object) -> bool:
    """Whether ``value`` is an integer, Python's or numpy's, and no bool."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def check_count(name: str, value: Any, least: int = 1, most: int | None = None) -> int:
    """An integer >= ``least``, and not above ``most`` where there is a limit."""
    if not is_whole(value) or value < least or (most is not None and value > most):
        above = most is not None and is_whole(value) and value > most
        limits = f"from {least} to {most}" if above else f">= {least}"
        raise InvalidArgument(f"{name} is {shown(value)}, expected an integer {limits}")
    return int(value)


def check_number(name: str, value: Any, expected: str = "a finite number") -> Any:
    """A finite real number: an integer, a float or a fraction."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, Real):
        raise InvalidArgument(f"{name} is {shown(value)}, expected {expected}")
    if isinstance(value, float | np.floating) and not math.isfinite(value):
        raise InvalidArgument(f"{name} is {shown(value)}, expected {expected}")
    return value


def check_flag(name: str, value: Any) -> bool:
    """True or False."""
    if not isinstance(value, bool):
        raise InvalidArgument(f"{name} is {shown(value)}, expected True or False")
    return value


def checked_tokens(name: str, tokens: object, vocab_size: int | None = None, *, least: int = 1) -> NDArray[np.int64]:
    """``tokens`` as int64 (n,), refused if they are fewer than ``least``, no flat integers or outside the vocabulary."""
    try:
        found = np.asarray(tokens if tokens is not None else 0.5)
    except (TypeError, ValueError):  # ragged
        found = np.asarray(0.5)
    whole = np.issubdtype(found.dtype, np.integer) or (found.size == 0 and not isinstance(tokens, str))
    if found.ndim != 1 or not whole:
        raise InvalidArgument(f"{name} is {shown(tokens)}, expected integer tokens in a flat sequence")
    if len(found) < least:
        raise InvalidArgument(f"{name} has shape {found.shape}, expected at least one token in a flat sequence")
    if vocab_size is not None:
        outside = (found < 0) | (found >= vocab_size)
        if outside.any():
            where = int(outside.argmax())
            raise InvalidArgument(f"{name} token {where} is {found[where]}, expected tokens in [0, {vocab_size})")
    return found.astype(np.int64)

"""Refusing wrong arguments by name, before anything runs: the checks that all public functions of `coupled_sampling.testing` share.

A proof that was given nonsense must say so. A tolerance of NaN compares as false with everything, so nothing could fail; a string
is a sequence and a bool is an integer to Python; an error from deep inside names nothing that the caller wrote.

Each function returns what it was given, as a plain Python number or list, or raises `InvalidArgument` with the argument's name.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.arguments import check_count as _check_count
from coupled_sampling.arguments import check_number, shown
from coupled_sampling.branching import Branching
from coupled_sampling.contracts import RequestObserver, Sampling
from coupled_sampling.drafting import find_drafting
from coupled_sampling.errors import InvalidArgument
from coupled_sampling.methods import Method, find_method
from coupled_sampling.windows import WindowRule

__all__ = [
    "check_branches",
    "check_callable",
    "check_choice",
    "check_conditions",
    "check_count",
    "check_decoding",
    "check_kind",
    "check_law",
    "check_level",
    "check_method",
    "check_model",
    "check_names",
    "check_number",
    "check_prompts",
    "check_seed",
    "check_sequence",
    "check_tokens",
    "check_tolerance",
    "shown",
]

_MOST = 2**31 - 1
"""The largest count that is taken anywhere: beyond it is a slip of the keyboard, which would run for ever."""
_OFF_ONE = 1e-6
"""How far from one the sum of a law may be: float32 laws of real models are within it, weights and logits are not."""


def check_count(name: str, value: Any, least: int = 1, most: int = _MOST) -> int:
    """An integer from ``least`` to ``most``."""
    return _check_count(name, value, least, most)


def check_seed(name: str, value: Any) -> int:
    """An integer in [0, 2**64)."""
    return check_count(name, value, 0, 2**64 - 1)


def check_tolerance(name: str, value: Any) -> Any:
    """A finite number >= 0: with NaN or infinity, nothing could fail."""
    expected = "a finite number >= 0"
    if check_number(name, value, expected) < 0:
        raise InvalidArgument(f"{name} is {shown(value)}, expected {expected}")
    return value


def check_level(name: str, value: Any) -> float:
    """A number between 0 and 1, both excluded: the level of a test, or how often a right answer may fail."""
    expected = "a probability between 0 and 1, such as 0.001"
    if not 0 < check_number(name, value, expected) < 1:
        raise InvalidArgument(f"{name} is {shown(value)}, expected {expected}")
    return float(value)


def check_choice(name: str, value: Any, options: Collection[str]) -> str:
    """One of ``options``."""
    if not isinstance(value, str) or value not in options:
        raise InvalidArgument(f"{name} is {shown(value)}, expected one of {', '.join(options)}")
    return value


def check_names(name: str, values: Any, options: Collection[str]) -> list[str]:
    """Some of ``options``; a single string is none of them."""
    given: list[Any] | None = None
    if isinstance(values, Collection) and not isinstance(values, str):
        with contextlib.suppress(Exception):  # an array of no axes, a stranger's __iter__
            given = list(values)
    if given is None:
        raise InvalidArgument(f"{name} is no list of strings, expected names among {list(options)}")
    unknown = [value for value in given if not isinstance(value, str) or value not in options]
    if unknown:
        raise InvalidArgument(f"{name} has {shown(unknown)}, expected names among {list(options)}")
    return given


def check_callable(name: str, value: Any, arguments: int | None = None) -> None:
    """Something to call, with that many positional arguments where they are known."""
    if not callable(value):
        raise InvalidArgument(f"{name} is {shown(value)}, expected something to call")
    if arguments is None:
        return
    try:
        signature = inspect.signature(value)
    except (TypeError, ValueError):  # some built-ins do not tell
        return
    try:
        signature.bind(*range(arguments))
    except TypeError as error:
        raise InvalidArgument(
            f"{name} is {shown(value)}, expected something that can be called with {arguments} arguments: {error}"
        ) from None


def _listed(name: str, values: Any, expected: str) -> list[Any]:
    if isinstance(values, str | bytes) or not isinstance(values, Sequence | np.ndarray) or np.ndim(values) == 0:
        raise InvalidArgument(f"{name} is {shown(values)}, expected {expected}")
    return list(values)


def check_sequence(name: str, values: Any, expected: str) -> list[Any]:
    """A list, a tuple or an array, and no string, as a list."""
    try:
        return _listed(name, values, expected)
    except (ValueError, TypeError):  # numpy cannot see a ragged list as an array, but it is a list
        if isinstance(values, list | tuple):
            return list(values)
        raise InvalidArgument(f"{name} is {shown(values)}, expected {expected}") from None


def check_tokens(name: str, values: Any, vocab_size: int | None = None, least: int = 0) -> list[int]:
    """At least ``least`` tokens, below ``vocab_size`` where it is known."""
    bounds = ">= 0" if vocab_size is None else f"in [0, {vocab_size})"
    expected = f"a list of tokens {bounds}" if least == 0 else f"a list of at least {least} tokens {bounds}"
    tokens = check_sequence(name, values, expected)
    for token in tokens:
        wrong = isinstance(token, bool) or not isinstance(token, int | np.integer)
        if wrong or token < 0 or (vocab_size is not None and token >= vocab_size):
            raise InvalidArgument(f"{name} holds {shown(token)}, expected {expected}")
    if len(tokens) < least:
        raise InvalidArgument(f"{name} is {shown(values)}, expected {expected}")
    return [int(token) for token in tokens]


def check_prompts(name: str, values: Any, vocab_size: int | None = None, least: int = 1) -> list[list[int]]:
    """At least one prompt, each of at least ``least`` tokens."""
    prompts = check_sequence(name, values, "a list of prompts, each a list of tokens")
    if not prompts:
        raise InvalidArgument(f"{name} is empty, expected at least one prompt, each a list of tokens")
    return [check_tokens(f"{name}[{i}]", prompt, vocab_size, least) for i, prompt in enumerate(prompts)]


def check_conditions(name: str, values: Any, provider: Any) -> list[object]:
    """At least one condition, for a ``provider`` that is told requests."""
    if not isinstance(values, list | tuple) or not values:
        raise InvalidArgument(f"{name} is {shown(values)}, expected a list of at least one condition, or None for none")
    if not isinstance(provider, RequestObserver):
        raise InvalidArgument(
            f"{name} is given, but the provider has no begin(row, request) to be told them by; leave it out"
        )
    return list(values)


def check_law(name: str, values: Any, vocab_size: int | None = None) -> Sequence[Any] | NDArray[Any]:
    """Probabilities of tokens, floats or fractions: not negative, finite, and with a sum of one up to rounding."""
    size = "probabilities" if vocab_size is None else f"{vocab_size} probabilities"
    expected = f"{size} that sum to 1"
    if isinstance(values, np.ndarray) and values.dtype == np.float64 and values.shape == (vocab_size,):
        total = float(values.sum())  # the usual case, in two calls: a sum with NaN is NaN
        if values.min() >= 0 and abs(total - 1) <= _OFF_ONE:
            return values
    law = check_sequence(name, values, expected)
    for chance in law:
        if check_number(name, chance, f"{expected}, but one of them is {shown(chance)}") < 0:
            raise InvalidArgument(f"{name} holds {shown(chance)}, expected {expected}")
    if not law or (vocab_size is not None and len(law) != vocab_size):
        raise InvalidArgument(f"{name} has {len(law)} probabilities, expected {expected}")
    if abs(float(sum(law)) - 1) > _OFF_ONE:
        raise InvalidArgument(f"{name} sums to {float(sum(law)):.6g}, expected {expected}; normalise it")
    return law


def check_kind(name: str, value: Any, kind: type[Any]) -> None:
    """An object of that type."""
    if not isinstance(value, kind):
        raise InvalidArgument(f"{name} is {shown(value)}, expected an object of type {kind.__name__}")


def check_method(name: str, value: Any) -> Method:
    """A method, or the name of one."""
    if not isinstance(value, str | Method):
        raise InvalidArgument(f"{name} is {shown(value)}, expected the name of a method, such as 'scd-maximal'")
    return find_method(value)


def check_decoding(window: Any, drafting: Any, sampling: Any, branches: Any = 0) -> None:
    """What `coupled_sampling.generate` takes by these names."""
    if isinstance(window, str):
        check_choice("window", window, ("auto",))
    elif not isinstance(window, WindowRule):
        check_count("window", window)
    if isinstance(drafting, str):
        find_drafting(drafting)
    elif isinstance(drafting, type) or not callable(getattr(drafting, "propose", None)):
        raise InvalidArgument(f"drafting is {shown(drafting)}, expected the name of a rule, such as 'repeat', or one")
    if not isinstance(sampling, Sampling | None):
        raise InvalidArgument(f"sampling is {shown(sampling)}, expected a Sampling, or None for the plain one")
    if isinstance(branches, type) or not isinstance(branches, Branching):
        check_count("branches", branches, 0)


def check_branches(branches: Any) -> None:
    """A number of slots, or a rule, as `coupled_sampling.generate` takes it."""
    if not isinstance(branches, Branching) or isinstance(branches, type):
        check_count("branches", branches, 0)


def check_model(name: str, value: Any, method: str = "forward") -> None:
    """A logits provider, or with the method "step" a coupled step, as far as can be seen without calling it."""
    kind = "a logits provider" if method == "forward" else "a coupled step"
    if isinstance(value, type) or not callable(getattr(value, method, None)):
        raise InvalidArgument(f"{name} is {shown(value)}, expected {kind}, which has a method {method}")
    for attribute in ("vocab_size", "batch_size", "max_length"):
        check_count(f"{name}.{attribute}", getattr(value, attribute, None))
    if method == "step":
        check_method(f"{name}.method", getattr(value, "method", None))

"""Settings and records checked as they are made: every field is what its annotation says, or is refused by name.

A frozen dataclass says in its annotations what it holds, and Python asks nobody. `check_fields`, the first line of a
``__post_init__``, asks: a text for a size, True for a count, one number for several are refused there, with the field's name, and
not as an error of arithmetic far inside. What means the same becomes the same: a list is kept as the tuple that is annotated,
numpy's integers as Python's, an integer as the float that is wanted.
"""

from __future__ import annotations

import functools
import os
import types
import typing
from collections.abc import Callable, Hashable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

import numpy as np

from coupled_sampling.arguments import is_whole, shown
from coupled_sampling.errors import InvalidArgument

__all__ = ["check_fields", "check_is", "check_path"]

_PLAIN = {int: "an integer", float: "a number", str: "a text", bool: "True or False"}


def check_fields(record: Any) -> None:
    """Hold every field of the dataclass instance ``record`` against its annotation.

    Raises
    ------
    InvalidArgument
        A field is of another kind.
    """
    hints = _hints(type(record))  # type: ignore[arg-type]  # a class is hashable
    for field in fields(record):
        value = getattr(record, field.name)
        found = check_is(field.name, value, hints[field.name])
        if found is not value:
            object.__setattr__(record, field.name, found)


@functools.cache
def _hints(kind: Hashable) -> dict[str, Any]:
    """Annotations of the class ``kind``, evaluated."""
    return typing.get_type_hints(kind)


def check_path(name: str, value: Any) -> Path:
    """A path: a text that is not empty and has no NUL, or what `os.fspath` makes one of.

    Raises
    ------
    InvalidArgument
        It is none.
    """
    text = os.fspath(value) if isinstance(value, str | os.PathLike) else None
    if not isinstance(text, str) or not text or "\0" in text:
        raise InvalidArgument(f"{name} is {shown(value)}, expected the path of a file or folder")
    return Path(value)


def check_is(name: str, value: Any, kind: Any) -> Any:
    """``value`` as an instance of the annotation ``kind``.

    Raises
    ------
    InvalidArgument
        It is none.
    """
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if kind in (Any, object):
        return value
    if origin in (types.UnionType, typing.Union):
        return _one_of(name, value, inner)
    if origin is Literal:
        if isinstance(value, str | int | None) and value in inner:
            return value
        raise InvalidArgument(f"{name} is {shown(value)}, expected one of {', '.join(map(repr, inner))}")
    if origin is tuple:
        return _items(name, value, inner)
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise _refusal(name, value, "a mapping")
        for key, item in value.items():
            check_is(f"a key of {name}", key, inner[0])
            check_is(f"{name}[{shown(key)}]", item, inner[1])
        return value
    if origin is Callable or kind is Callable:
        if not callable(value):
            raise _refusal(name, value, "a function")
        return value
    return _plain(name, value, kind)


def _one_of(name: str, value: Any, kinds: tuple[Any, ...]) -> Any:
    if value is None and type(None) in kinds:
        return None
    wanted = [kind for kind in kinds if kind is not type(None)]
    for kind in wanted:
        try:
            return check_is(name, value, kind)
        except InvalidArgument as error:
            refusal = error
    if len(wanted) == 1 and type(None) not in kinds:
        raise refusal
    expected = " or ".join([*(_name(kind) for kind in wanted), *["None"] * (type(None) in kinds)])
    raise _refusal(name, value, expected)


def _items(name: str, value: Any, kinds: tuple[Any, ...]) -> tuple[Any, ...]:
    """A tuple of a fixed length, or of any number of one kind; lists and numpy's vectors will do."""
    several = isinstance(value, tuple | list) or (isinstance(value, np.ndarray) and value.ndim == 1)
    many = len(kinds) == 2 and kinds[1] is Ellipsis
    if not several or (not many and len(value) != len(kinds)):
        count = "" if many else f"{len(kinds)} "
        raise _refusal(name, value, f"a sequence of {count}values, each {_name(kinds[0])}")
    each = [kinds[0]] * len(value) if many else kinds
    found = tuple(check_is(f"{name}[{i}]", item, kind) for i, (item, kind) in enumerate(zip(value, each, strict=True)))
    same = isinstance(value, tuple) and all(one is other for one, other in zip(found, value, strict=True))
    return value if same else found


def _plain(name: str, value: Any, kind: Any) -> Any:
    if kind is bool and isinstance(value, bool | np.bool_):
        return bool(value) if isinstance(value, np.bool_) else value
    if kind is int and is_whole(value):
        return int(value)
    if kind is float and (is_whole(value) or isinstance(value, float | np.floating)):
        return _real(name, value)
    if kind is Path:
        return check_path(name, value)
    if kind not in (bool, int, float) and isinstance(value, kind):
        return value
    raise _refusal(name, value, _name(kind))


def _real(name: str, value: Any) -> float:
    try:
        return float(value)
    except OverflowError as error:
        raise InvalidArgument(f"{name} is {shown(value)}, expected a number that a float can hold") from error


def _name(kind: Any) -> str:
    if kind in _PLAIN:
        return _PLAIN[kind]
    if typing.get_origin(kind) is tuple:
        return f"a sequence of values, each {_name(typing.get_args(kind)[0])}"
    if kind is Path:
        return "a path"
    if (typing.get_origin(kind) or kind) is Callable:
        return "a function"
    named = getattr(typing.get_origin(kind) or kind, "__name__", str(kind))
    return f"a {named}"


def _refusal(name: str, value: Any, expected: str) -> InvalidArgument:
    return InvalidArgument(f"{name} is {shown(value)}, expected {expected}")

"""JSON as records: every field of the type that its annotation names, no field too many, none missing."""

from __future__ import annotations

import functools
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any

from coupled_sampling.bundles.records import expect
from coupled_sampling.errors import BundleError

__all__ = ["parse"]

_LARGEST = 2**53
"""Integers beyond have no float64 of their own; files are smaller, too."""


def parse(kind: Any, value: Any, field: str) -> Any:
    """``value``, read from JSON, as an instance of the annotation ``kind``; ``field`` is its path for messages."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if origin is types.UnionType:
        if value is None:
            return None
        records = [one for one in inner if is_dataclass(one)]  # of a list or a record, an object is the record
        return parse(records[0] if records and isinstance(value, dict) else inner[0], value, field)
    if origin is tuple:
        expect(isinstance(value, list), field, value, "a list")
        return tuple(parse(inner[0], item, f"{field}[{i}]") for i, item in enumerate(value))
    if origin is Mapping:
        expect(isinstance(value, dict), field, value, "an object")
        return {key: parse(inner[1], item, f"{field}[{key!r}]") for key, item in value.items()}
    if is_dataclass(kind):
        return _parse_record(kind, value, field)
    accepted = (int, float) if kind is float else kind  # JSON has one kind of number, 1 and 1.0
    right = isinstance(value, accepted) and (kind is bool or not isinstance(value, bool))  # True is an int to Python
    expect(right, field, value, {int: "an integer", float: "a number", str: "a text", bool: "true or false"}[kind])
    if kind is int or (kind is float and isinstance(value, int)):
        expect(abs(value) <= _LARGEST, field, value, f"at most {_LARGEST}, which nothing in a bundle exceeds")
    return float(value) if kind is float else value


@functools.cache
def _annotations(kind: type[Any]) -> dict[str, Any]:
    """What `typing.get_type_hints` makes of a class, which takes longer than all the rest for a record."""
    return typing.get_type_hints(kind)


def _parse_record(kind: Any, value: Any, field: str) -> Any:
    expect(isinstance(value, dict), field or "the manifest", value, "an object")
    prefix = f"{field}." if field else ""
    annotations = _annotations(kind)
    for key in value:
        if key not in annotations:
            raise BundleError(f"field {prefix}{key:.60} is unknown, expected only {', '.join(annotations)}; remove it")
    for entry in fields(kind):
        if entry.name not in value and entry.default is MISSING:
            raise BundleError(f"field {prefix}{entry.name} is missing; export the bundle again")
    return kind(**{key: parse(annotations[key], item, prefix + key) for key, item in value.items()})

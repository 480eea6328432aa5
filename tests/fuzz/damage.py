"""Damage: a whole file in, a slightly wrong one out, the same one for the same random numbers.

Two kinds take turns. Bytes are flipped, cut, repeated and overwritten with numbers at the edges of their types, which is what
disks and networks do. Structures (JSON, protobuf messages, the tables of GGUF) stay well-formed and say wrong things, which is what
people do; most of these get past the parser.
"""

from __future__ import annotations

import copy
import json
from random import Random
from typing import Any

__all__ = ["WRONG", "damaged_bytes", "damaged_json", "damaged_message", "paths"]

WRONG = (
    None, True, False, -1, 0, 1, 2, 3, 7, 64, 2**16, 2**31 - 1, 2**31, 2**53 + 1, 2**63 - 1, 2**63, 10**30, -(2**63), 0.0, 0.5,
    -1.5, 1e-45, 1e38, 1e308, float("inf"), float("nan"), "", "x", "0", "model", "\0", "../x", "\ud800", "é😀", "x" * 5000,
    "\x1b[1m\x07",
    [], {}, [[]], [None], [0], [-1], ["x"], [1e999], [[0, 1]], {"": 0}, {"x": {}}, {"content": "x"}, [{"x": 1}],
)  # fmt: skip
"""Values that are hardly ever right."""

_EDGES = (
    0,
    1,
    2,
    0x7F,
    0x80,
    0xFF,
    0x7FFF,
    0xFFFF,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**63 - 1,
    2**63,
    2**64 - 1,
    8_388_610,
)


def damaged_bytes(random: Random, data: bytes, times: int | None = None) -> bytes:
    """``data`` with a few places changed; an early place as often as all others, since that is where headers are."""
    made = bytearray(data)
    for _ in range(times or random.choice((1, 1, 1, 2, 3, 8))):
        if not made:
            return random.randbytes(4)
        place = random.randrange(random.choice((len(made), min(len(made), 512))))
        size = random.choice((1, 1, 2, 4, 8, 32))
        match random.randrange(8):
            case 0 | 1:
                made[place] ^= 1 << random.randrange(8)
            case 2:
                made[place] = random.randrange(256)
            case 3 | 4:
                width = random.choice((1, 2, 4, 8))
                made[place : place + width] = (random.choice(_EDGES) % 256**width).to_bytes(width, "little")
            case 5:
                del made[place : place + size]
            case 6:
                made[place:place] = made[place : place + size] * random.choice((1, 2, 16))
            case 7:
                del made[place:]
    return bytes(made)


def paths(document: Any, before: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The places of all values in ``document``, as keys and indices, without its own."""
    found = []
    items = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    for key, value in items:
        found += [(*before, key), *paths(value, (*before, key))]
    return found


def damaged_json(random: Random, document: Any) -> bytes:
    """The text of ``document`` with one value or a few wrong, gone or elsewhere; now and then no JSON at all."""
    made = json.loads(json.dumps(document))
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        places = paths(made)
        if not places:
            break
        place = random.choice(places)
        _change(random, made, place, places)
    text = json.dumps(made).encode()
    if random.random() < 0.15:
        return damaged_bytes(random, text)
    if random.random() < 0.02:
        return random.choice((b"", b"[]", b"null", b"{", b"[" * 10**5, b'{"a":' * 10**5, text[:-1] + b',"name":1}'))
    return text


def _change(random: Random, document: Any, place: tuple[Any, ...], places: list[tuple[Any, ...]]) -> None:
    holder = _at(document, place[:-1])
    key, value = place[-1], holder[place[-1]]
    if random.random() < 0.5 and (value is None or isinstance(value, bool | int | float | str)):
        holder[key] = _of_its_kind(random, value)
        return
    match random.randrange(10):
        case 0:
            del holder[key]
        case 1 if isinstance(holder, dict):
            holder[random.choice(("x", "", key + "x", key.upper()))] = holder.pop(key)
        case 2 if isinstance(value, list) and value:
            holder[key] = value * random.choice((2, 50)) if random.random() < 0.7 else value[:-1]
        case 3:
            holder[key] = json.loads(json.dumps(_at(document, random.choice(places))))
        case 4 if isinstance(value, int | float) and not isinstance(value, bool):
            holder[key] = random.choice((value + 1, value - 1, -value, value * 2, value // 2, value * 1000, str(value)))
        case _:
            holder[key] = copy.deepcopy(random.choice(WRONG))  # later changes may go into it


def _of_its_kind(random: Random, value: Any) -> Any:
    """Another value of the same type, which is what passes a look at types."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, str):
        cut = random.randrange(len(value) + 1)
        return random.choice(
            (value[:cut], value + "x", value[cut:] + value[:cut], value.upper(), "", " ", "<s>", "\\p{L}+", "(a|b)*?")
        )
    if value is None:
        return random.choice(("x", 0, [], {}))
    edges = (value + 1, value - 1, -value, value * 2, value // 2, value * 1000, 0, 1, 255, 2**16, 2**31 - 1, 2**32 - 1)
    return type(value)(random.choice(edges))


def _at(document: Any, place: tuple[Any, ...]) -> Any:
    for key in place:
        document = document[key]
    return document


def damaged_message(random: Random, message: Any) -> bytes:
    """The bytes of a protobuf ``message``, which is changed: fields emptied, doubled, renumbered or renamed."""
    if random.random() < 0.3:
        return damaged_bytes(random, message.SerializeToString())
    for _ in range(random.choice((1, 1, 2, 4))):
        every = _messages(message)
        _damage_field(random, random.choice(every), every)
    return message.SerializeToString()


def _messages(message: Any) -> list[Any]:
    found = [message]
    for field, value in message.ListFields():
        if field.message_type is not None:
            for inner in value if field.is_repeated else [value]:
                found += _messages(inner)
    return found


def _damage_field(random: Random, message: Any, every: list[Any]) -> None:
    field = random.choice(message.DESCRIPTOR.fields)
    if field.message_type is not None:
        donors = [one for one in every if one.DESCRIPTOR is field.message_type]
        if donors and random.random() < 0.6:
            copy = type(donors[0])()
            copy.CopyFrom(random.choice(donors))
            (getattr(message, field.name).add() if field.is_repeated else getattr(message, field.name)).CopyFrom(copy)
        else:
            message.ClearField(field.name)
        return
    value = _scalar(random, field)
    if not field.is_repeated:
        setattr(message, field.name, value)
        return
    held = getattr(message, field.name)
    if held and random.random() < 0.7:
        held[random.randrange(len(held))] = value
    else:
        held.append(value)


def _scalar(random: Random, field: Any) -> Any:
    kinds = field.CPPTYPE_STRING, field.CPPTYPE_FLOAT, field.CPPTYPE_DOUBLE
    if field.cpp_type == kinds[0]:
        text = random.choice(
            ("", "x", "logits", "input_ids", "start", "Loop", "If", "Scan", "MatMul", "../x", "é", "a" * 300)
        )
        return text.encode() if field.type == field.TYPE_BYTES else text
    if field.cpp_type in kinds[1:]:
        return random.choice((0.0, -1.0, 1e38, float("nan"), float("inf")))
    if field.cpp_type == field.CPPTYPE_ENUM:
        return random.choice(list(field.enum_type.values_by_number))
    bits = 31 if field.cpp_type in (field.CPPTYPE_INT32, field.CPPTYPE_UINT32) else 63
    signed = field.cpp_type in (field.CPPTYPE_INT32, field.CPPTYPE_INT64)
    return random.choice((0, 1, 2, 3, 7, 24, 2**16, 2**bits - 1, *((-1, -(2**bits)) if signed else ())))

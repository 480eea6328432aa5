"""Protocol Buffers on the wire: the fields of a message, found without any definition of it.

ONNX graphs and SentencePiece models are such messages. A message is a run of fields; a field is a number, a kind, and either a
number or a run of bytes, which may be a message itself. Reading fields one after the other and stepping over what is not wanted
costs nothing per byte, needs no package, and no damage can make it read beyond its end.

https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator

__all__ = ["BYTES", "FOUR", "INTEGER", "WireError", "read_fields", "read_integer"]

INTEGER, EIGHT, BYTES, FOUR = 0, 1, 2, 5
"""Kinds of fields. Two more, groups, are out of use since 2008; neither format has them."""

_LONGEST = 10
"""Bytes of the longest integer: 7 bits each of 64."""


class WireError(ValueError):
    """Bytes that are no message. Who reads a file makes an error of it that names the file."""


def read_fields(data: bytes | mmap.mmap, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """The fields of the message ``data[start:end]``, in their order: number, kind, and where the value begins and ends.

    Raises
    ------
    WireError
        There is no message.

    Examples
    --------
    >>> from coupled_sampling.bundles.wire import read_fields
    >>> message = bytes([0x08, 0x05, 0x12, 0x02, 0x68, 0x69])
    >>> [(number, message[start:end]) for number, _, start, end in read_fields(message, 0, len(message))]
    [(1, b'\x05'), (2, b'hi')]
    """
    at = start
    while at < end:
        tag = data[at]
        if tag < 0x80:  # as nearly all are
            at += 1
        else:
            tag, at = read_integer(data, at, end)
        number, kind = tag >> 3, tag & 7
        if not 0 < number < 1 << 29:
            raise WireError(f"byte {at} has a field of the number {number}")
        first = at
        if kind == BYTES:
            if at < end and data[at] < 0x80:
                size, first = data[at], at + 1
            else:
                size, first = read_integer(data, at, end)
            at = first + size
        elif kind == INTEGER:
            _, at = read_integer(data, at, end)
        elif kind in (EIGHT, FOUR):
            at += 8 if kind == EIGHT else 4
        else:
            raise WireError(f"byte {at} has a field of the kind {kind}")
        if at > end:
            raise WireError(f"a field at byte {first} ends at {at}, behind its message, which ends at {end}")
        yield number, kind, first, at


def read_integer(data: bytes | mmap.mmap, at: int, end: int) -> tuple[int, int]:
    """The integer at a place, and where what follows it begins.

    Raises
    ------
    WireError
        It does not end before ``end``, or is too long.

    Examples
    --------
    >>> from coupled_sampling.bundles.wire import read_integer
    >>> read_integer(bytes([0x96, 0x01]), 0, 2)
    (150, 2)
    """
    value = 0
    for i in range(_LONGEST):
        if at + i >= end:
            raise WireError(f"an integer at byte {at} does not end")
        byte = data[at + i]
        value |= (byte & 0x7F) << 7 * i
        if byte < 0x80:
            return value, at + i + 1
    raise WireError(f"an integer at byte {at} is too long")

"""Messages of Protocol Buffers on the wire: every kind of field, and every way in which bytes are no message."""

import struct

import pytest

from coupled_sampling.bundles.wire import BYTES, FOUR, INTEGER, WireError, read_fields, read_integer
from standins.pieces import varint, wire


def test_fields_of_every_kind_are_found():
    data = (
        wire(1, 300)
        + wire(2, b"text")
        + wire(3, 1.5)
        + varint(4 << 3 | 1)
        + struct.pack("<d", 2.5)
        + wire(1000, b"x" * 200)
    )
    found = list(read_fields(data, 0, len(data)))
    assert [(number, kind) for number, kind, _, _ in found] == [
        (1, INTEGER),
        (2, BYTES),
        (3, FOUR),
        (4, 1),
        (1000, BYTES),
    ]
    values = [data[start:end] for _, _, start, end in found]
    assert values == [varint(300), b"text", struct.pack("<f", 1.5), struct.pack("<d", 2.5), b"x" * 200]
    assert read_integer(data, *found[0][2:]) == (300, found[0][3])
    assert list(read_fields(data, 5, 5)) == []


@pytest.mark.parametrize("value", [0, 1, 127, 128, 2**32, 2**64 - 1])
def test_integers_are_read_as_they_were_written(value):
    assert read_integer(varint(value), 0, 10) == (value, len(varint(value)))


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (wire(1, b"four")[:-1], "behind its message"),
        (varint(1 << 3 | 5) + b"abc", "behind its message"),
        (varint(1 << 3 | 2) + varint(2**62), "behind its message"),
        (varint(1 << 3 | 2), "does not end"),
        (b"\x80", "does not end"),
        (b"\x08\xff", "does not end"),
        (b"\xff" * 11, "too long"),
        (varint(0), "of the number 0"),
        (varint(1 << 32 | 2) + b"\x00", "of the number"),
        (varint(1 << 3 | 3), "of the kind 3"),
    ],
)
def test_bytes_that_are_no_message_are_refused(data, word):
    with pytest.raises(WireError, match=word):
        list(read_fields(data, 0, len(data)))
    # What comes behind a message is none of it, whatever it is.
    with pytest.raises(WireError, match=word):
        list(read_fields(data + bytes(20), 0, len(data)))

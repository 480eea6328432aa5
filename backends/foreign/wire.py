"""The one thing that is wanted from an ONNX file and that ONNX Runtime does not tell: its operator set.

A file is a protobuf message. Its fields are walked over from one to the next, past the graph with all its weights, so that nothing
of them is read and the package ``onnx`` is not needed.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

from coupled_sampling.errors import BundleError

__all__ = ["read_opset"]

OPSETS, DOMAIN, VERSION = 8, 1, 2
"""Numbers of fields: ``ModelProto.opset_import``, and those of an ``OperatorSetIdProto``."""


def read_opset(path: Path) -> int:
    """The version of the default operator set that a file asks for; 1 where it asks for none.

    Raises
    ------
    BundleError
        The file is no ONNX.
    """
    try:
        with path.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
            for number, value in _fields(content, 0, len(content)):
                if number == OPSETS and isinstance(value, range):
                    found = dict(_fields(content, value.start, value.stop))
                    name, version = found.get(DOMAIN, range(0)), found.get(VERSION)
                    domain = bytes(content[name.start : name.stop]) if isinstance(name, range) else None
                    if domain in (b"", b"ai.onnx") and isinstance(version, int) and version >= 1:
                        return version
    except (OSError, ValueError, IndexError) as error:
        raise BundleError(f"{path} cannot be read as ONNX: {error}; download or export the file again") from error
    return 1


def _fields(content: mmap.mmap, at: int, end: int) -> Iterator[tuple[int, int | range]]:
    """Numbers of the fields in a message and their values: an integer, or where in the file a text or message is."""
    while at < end:
        key, at = _varint(content, at)
        number, kind = key >> 3, key & 7
        if kind == 0:
            value, at = _varint(content, at)
            yield number, value
            continue
        if kind == 2:
            size, at = _varint(content, at)
        else:
            size = {1: 8, 5: 4}.get(kind, end)
        if at + size > end:
            raise ValueError(f"a field at {at} reaches beyond the end")
        yield number, range(at, at + size)
        at += size


def _varint(content: mmap.mmap, at: int) -> tuple[int, int]:
    """An integer, seven bits a byte, and where it ends."""
    value = 0
    for count in range(10):
        byte = content[at + count]
        value |= (byte & 127) << (7 * count)
        if byte < 128:
            return value, at + count + 1
    raise ValueError(f"an integer at {at} has no end")

"""The GGUF container: llama.cpp's one-file checkpoints, read header first, then tensor by tensor.

A file is a run of typed key/value pairs, a table of tensors (name, dimensions with the fastest first, block type, place)
and, aligned, their bytes. Block types store a row as blocks of 32 or 256 numbers with a scale each (``Q4_K`` and kin);
the package ``gguf`` knows their sizes and turns them into float32. Specification:
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.

The header is parsed here and not by ``gguf.GGUFReader``: that one makes an array of every token and every merge (seconds
and hundreds of megabytes for a vocabulary of 150 000), and answers a truncated file with an error about reshaping.
Names and shapes are GGUF's own here; `gguf_checkpoint` gives them Hugging Face's. Little-endian versions 2 and 3 only.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.arguments import is_whole, shown
from coupled_sampling.bundles.json_files import GGUF_HEADER
from coupled_sampling.errors import MissingDependency
from coupled_sampling.export.checkpoints.contract import CheckpointError

__all__ = ["GgufFile", "GgufTensor"]

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_DIMENSIONS = 8
MOST_TENSORS, MOST_KEYS, MOST_ENTRIES = 100_000, 10_000, 4_000_000
"""In a file, and in all lists of its metadata together: Python makes an object of each before anybody looks at one."""
LEAST_TENSOR, LEAST_KEY = 32, 13
"""Bytes that a tensor's entry and a key with its value take at least."""
ROWS_AT_ONCE = 1 << 20
"""About how many numbers are dequantised in one go: bounds what is needed beside the result."""

SCALARS = ("u1", "i1", "<u2", "<i2", "<u4", "<i4", "<f4", "?", "", "", "<u8", "<i8", "<f8")
"""numpy types of the scalar value types, by number; 8 is a text and 9 an array."""
TEXT, ARRAY = 8, 9

PLAIN = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
}
"""Types that numpy has; the rest are blocks, bfloat16 among them."""


def _require_gguf() -> Any:
    """The package ``gguf``.

    Raises
    ------
    MissingDependency
        It is not installed.
    """
    try:
        import gguf
        import gguf.quants
    except ImportError as error:
        raise MissingDependency(
            "reading GGUF files needs the package gguf, which is not installed: pip install 'coupled-sampling[export]'"
        ) from error
    return gguf


class GgufTensor(NamedTuple):
    """An entry of the table of tensors."""

    shape: tuple[int, ...]
    """Row-major: the file's dimensions reversed."""
    type: str
    """``F32``, ``Q4_K``, ..."""
    offset: int
    """From the start of the file."""
    bytes: int


class GgufFile:
    """An opened GGUF file: ``metadata`` (texts, numbers, lists of them) and ``tensors``; `close` it.

    Parameters
    ----------
    path
        The file.
    check
        Called with every key and its value as soon as they are read; what it raises stops the reading, so that a file that is of
        no use is not refused for being truncated, too.

    Raises
    ------
    CheckpointError
        It is not GGUF, of another version or byte order, truncated, damaged, or holds a type that cannot be decoded.
    MissingDependency
        ``gguf`` is not installed.
    """

    def __init__(self, path: Path, check: Callable[[str, Any], object] = lambda key, value: None) -> None:
        self.path = path
        self._check = check
        self._gguf = _require_gguf()
        self._size = path.stat().st_size
        self._file: BinaryIO = path.open("rb")
        self._entries = 0
        self._decodable: set[str] = set()
        try:
            counts = self._read_preamble()
            self._check_counts(*counts)
            self.metadata: dict[str, Any] = self._read_metadata(counts[1])
            # Not before, unless there are absurdly many: of a file that is cut short and of no use the second is said.
            self._require_room(counts[0], "tensors", LEAST_TENSOR)
            self.tensors: dict[str, GgufTensor] = self._read_table(counts[0])
        except (UnicodeDecodeError, MemoryError) as error:
            self.close()
            raise self._damaged(str(error)) from error
        except CheckpointError:
            self.close()
            raise

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def read(self, name: str) -> NDArray[Any]:
        """A tensor in its row-major shape: integers and float64 as they are, everything else as float32."""
        entry = self.tensors[name]
        self._file.seek(entry.offset)
        if entry.type in PLAIN:
            array = np.frombuffer(
                bytearray(self._take(entry.bytes, name)), np.dtype(PLAIN[entry.type]).newbyteorder("<")
            )
            array = array.reshape(entry.shape)
            return array.astype(np.float32) if entry.type == "F16" else array
        kind = self._gguf.GGMLQuantizationType[entry.type]
        width = entry.shape[-1]
        rows = math.prod(entry.shape[:-1])
        row_bytes = entry.bytes // rows
        result = np.empty((rows, width), np.float32)
        step = max(1, ROWS_AT_ONCE // width)
        for start in range(0, rows, step):
            stop = min(start + step, rows)
            raw = np.frombuffer(self._take((stop - start) * row_bytes, name), np.uint8).reshape(stop - start, row_bytes)
            with np.errstate(invalid="ignore", over="ignore"):  # what is not finite is refused where it is used
                result[start:stop] = self._gguf.quants.dequantize(raw, kind)
        return result.reshape(entry.shape)

    def _read_preamble(self) -> tuple[int, int]:
        magic = self._file.read(4)
        if magic != MAGIC:
            raise CheckpointError(f"{self.path} begins with {magic!r}, expected {MAGIC!r}: this is no GGUF file")
        version = self._number("<u4", "version")
        if version & 0xFFFF == 0:
            raise CheckpointError(f"{self.path} is big-endian GGUF, expected little-endian; convert the model again")
        if version not in VERSIONS:
            raise CheckpointError(
                f"{self.path} is of GGUF version {version}, expected {' or '.join(map(str, VERSIONS))}; "
                "convert the model again with today's llama.cpp"
            )
        return self._number("<u8", "tensor count"), self._number("<u8", "metadata count")

    def _check_counts(self, tensors: int, keys: int) -> None:
        """Refuse counts that nobody has any use for, before anything is made for each."""
        for count, what, least, most in (
            (tensors, "tensors", LEAST_TENSOR, MOST_TENSORS),
            (keys, "metadata keys", LEAST_KEY, MOST_KEYS),
        ):
            if count > most:
                self._require_room(count, what, least)
                raise CheckpointError(f"{self.path} has {count} {what}, and {most} are the most that is read")

    def _require_room(self, count: int, what: str, least: int) -> None:
        """Refuse ``count`` things of at least ``least`` bytes if the file is shorter than all of them."""
        if count * least > self._size:
            raise self._damaged(f"it announces {count} {what}, and has room for {self._size // least}")

    def _read_metadata(self, count: int) -> dict[str, Any]:
        metadata: dict[str, Any] = {}
        for index in range(count):
            key = self._text(f"the name of metadata entry {index}")
            if key in metadata:
                raise self._damaged(f"metadata {shown(key)} occurs twice")
            metadata[key] = self._value(self._number("<u4", key), key)
            self._check(key, metadata[key])
        return metadata

    def _value(self, kind: int, key: str) -> Any:
        if kind == TEXT:
            return self._text(key)
        if kind != ARRAY:
            return self._numbers(self._scalar(kind, key), 1, key)[0]
        inner, count = self._number("<u4", key), self._number("<u8", key)
        self._entries += count
        if self._entries > MOST_ENTRIES:
            raise CheckpointError(
                f"{self.path}: the lists of its metadata have {self._entries} entries up to {shown(key)}, and {MOST_ENTRIES} "
                "are the most that is read"
            )
        if inner == TEXT:
            return [self._text(key) for _ in range(count)]
        return self._numbers(self._scalar(inner, key), count, key)

    def _scalar(self, kind: int, key: str) -> str:
        if kind >= len(SCALARS) or not SCALARS[kind]:
            raise self._damaged(
                f"metadata {shown(key)} has value type {kind}, expected a number, a text or a list of them"
            )
        return SCALARS[kind]

    def _read_table(self, count: int) -> dict[str, GgufTensor]:
        entries: dict[str, tuple[list[int], int, int]] = {}
        for index in range(count):
            name = self._text(f"the name of tensor {index}")
            if name in entries:
                raise self._damaged(f"tensor {name!r} occurs twice")
            dimensions = self._number("<u4", name)
            if not 1 <= dimensions <= MAX_DIMENSIONS:
                raise self._damaged(f"tensor {name!r} has {dimensions} dimensions")
            shape = self._numbers("<u8", dimensions, name)[::-1]
            entries[name] = (shape, self._number("<u4", name), self._number("<u8", name))
        alignment = self.metadata.get("general.alignment", self._gguf.GGUF_DEFAULT_ALIGNMENT)
        if not is_whole(alignment) or alignment < 1:
            raise self._damaged(f"general.alignment is {shown(alignment)}, expected a power of two")
        start = -(-self._file.tell() // alignment) * alignment
        return {name: self._entry(name, *entry, start) for name, entry in entries.items()}

    def _entry(self, name: str, shape: list[int], number: int, offset: int, start: int) -> GgufTensor:
        try:
            kind = self._gguf.GGMLQuantizationType(number)
        except ValueError as error:
            raise CheckpointError(
                f"{self.path}: tensor {name!r} is of GGUF type number {number}, which the installed package gguf does not "
                "know; pip install --upgrade gguf"
            ) from error
        block, block_bytes = self._gguf.GGML_QUANT_SIZES[kind]
        if kind.name not in PLAIN and kind.name not in self._decodable:
            try:
                self._gguf.quants.dequantize(np.zeros((1, block_bytes), np.uint8), kind)
                self._decodable.add(kind.name)
            except NotImplementedError as error:
                raise CheckpointError(
                    f"{self.path}: tensor {name!r} is of type {kind.name}, which the package gguf cannot decode; "
                    "use a file of another type, such as Q8_0 or Q4_K_M"
                ) from error
        if shape[-1] % block or math.prod(shape) == 0:
            raise self._damaged(
                f"tensor {name!r} of type {kind.name} has shape {tuple(shape)}, rows of {block} expected"
            )
        size = math.prod(shape) // block * block_bytes
        if start + offset + size > self._size:
            raise CheckpointError(
                f"{self.path}: tensor {name!r} lies at bytes {start + offset} to {start + offset + size}, the file has "
                f"{self._size}: truncated; download it again"
            )
        return GgufTensor(tuple(shape), kind.name, start + offset, size)

    def _number(self, dtype: str, where: str) -> int:
        return int(self._numbers(dtype, 1, where)[0])

    def _numbers(self, dtype: str, count: int, where: str) -> list[Any]:
        kind = np.dtype(dtype)
        found: list[Any] = np.frombuffer(self._head(kind.itemsize * count, where), kind).tolist()
        return found

    def _text(self, where: str) -> str:
        (length,) = struct.unpack("<Q", self._head(8, where))
        return str(self._head(length, where), "utf-8")

    def _head(self, size: int, where: str) -> bytes:
        """The next bytes of the header, which may not be longer than any model's."""
        taken = self._take(size, where)
        if self._file.tell() > GGUF_HEADER.most:
            GGUF_HEADER.check_size(self._file.tell(), self.path, CheckpointError)
        return taken

    def _take(self, size: int, where: str) -> bytes:
        taken = self._file.read(size) if size <= self._size else b""
        if len(taken) != size:
            raise self._damaged(f"it ends or its numbers are wrong at {shown(where)}, {size} bytes expected there")
        return taken

    def _damaged(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self.path} ({self._size} bytes) is truncated or damaged: {what}; download it again")

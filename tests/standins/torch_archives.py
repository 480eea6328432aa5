"""Archives as PyTorch writes them, byte by byte: a zip of a pickle and of storages."""

import io
import struct
import zipfile
from dataclasses import dataclass, field
from typing import Any

import numpy as np

__all__ = ["Code", "Module", "Tensor", "archive_of", "call", "named", "pickled"]

STORAGES = {
    "float64": "DoubleStorage",
    "float32": "FloatStorage",
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
    "int64": "LongStorage",
    "int32": "IntStorage",
    "uint8": "ByteStorage",
    "bool": "BoolStorage",
}


@dataclass
class Tensor:
    """Elements ``first``, ... of the storage ``key``, which has ``count`` of ``dtype``."""

    key: str
    dtype: str
    count: int
    shape: tuple[Any, ...]
    strides: tuple[Any, ...]
    first: int = 0


@dataclass
class Module:
    """An object of TorchScript."""

    attributes: dict[str, Any] = field(default_factory=dict)
    kind: str = "M"


class Code(bytes):
    """Instructions as they are."""


def named(module, name):
    """The instruction that names something."""
    return Code(b"c" + f"{module}\n{name}\n".encode())


def call(function, *arguments):
    """Instructions that call a function."""
    return Code(function + b"(" + b"".join(map(written, arguments)) + b"tR")


def written(value):
    """Instructions that put ``value`` on the stack."""
    if isinstance(value, Code):
        return bytes(value)
    if value is None or isinstance(value, bool):
        return {None: b"N", True: b"\x88", False: b"\x89"}[value]
    if isinstance(value, int):
        return b"J" + struct.pack("<i", value) if abs(value) < 2**31 else b"\x8a\x09" + value.to_bytes(9, "little")
    if isinstance(value, float):
        return b"G" + struct.pack(">d", value)
    if isinstance(value, str):
        return b"X" + struct.pack("<I", len(value.encode())) + value.encode()
    if isinstance(value, tuple):
        return b"(" + b"".join(map(written, value)) + b"t"
    if isinstance(value, list):
        return b"](" + b"".join(map(written, value)) + b"e"
    if isinstance(value, dict):
        return b"}(" + b"".join(written(part) for item in value.items() for part in item) + b"u"
    if isinstance(value, Module):
        return named("__torch__.inner", value.kind) + b")\x81" + written(value.attributes) + b"b"
    storage = ("storage", named("torch", STORAGES[value.dtype]), value.key, "cpu", value.count)
    nothing = Code(named("collections", "OrderedDict") + b")R")
    tensor = named("torch._utils", "_rebuild_tensor_v2")
    return call(tensor, Code(written(storage) + b"Q"), value.first, value.shape, value.strides, False, nothing)


def pickled(value):
    """The whole pickle."""
    return b"\x80\x02" + written(value) + b"."


class _Storages:
    """Takes arrays for their storages, each written once."""

    def __init__(self, order):
        self.order, self.entries = order, {}

    def tensor(self, array):
        key = str(len(self.entries))
        raw = np.ascontiguousarray(array)
        bytes_of = raw.view(f"u{raw.dtype.itemsize}").astype(
            f"{'<' if self.order == 'little' else '>'}u{raw.dtype.itemsize}"
        )
        self.entries[key] = bytes_of.tobytes()
        strides = tuple(stride // raw.dtype.itemsize for stride in raw.strides)
        return Tensor(key, raw.dtype.name, raw.size, array.shape, strides if array.ndim else ())

    def replaced(self, value):
        if isinstance(value, np.ndarray):
            return self.tensor(value)
        if isinstance(value, dict):
            return {key: self.replaced(one) for key, one in value.items()}
        if isinstance(value, Module):
            return Module(self.replaced(value.attributes), value.kind)
        return value


def archive_of(value, *, storages=None, order="little", more=None, pickle=None, compression=zipfile.ZIP_STORED):
    """The bytes of an archive of ``value``, in which arrays stand for tensors with storages of their own.

    ``storages`` are further ones by key, ``more`` further entries by name; ``pickle`` takes the place of that of ``value``.
    """
    taken = _Storages(order)
    described = taken.replaced(value)
    entries = {
        "data.pkl": pickled(described) if pickle is None else pickle,
        "byteorder": order.encode(),
        "version": b"3\n",
    }
    entries |= {f"data/{key}": data for key, data in (taken.entries | (storages or {})).items()}
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name, data in (entries | (more or {})).items():
            info = zipfile.ZipInfo(f"model/{name}")
            info.compress_type = compression
            at = stream.tell() + 30 + len(info.filename) + 4
            # As PyTorch does: filled up to 64 bytes in the entry's own header, of which the table at the end knows nothing.
            info.extra = b"FB" + struct.pack("<H", -at % 64) + bytes(-at % 64)
            archive.writestr(info, data)
            info.extra = b""
    return stream.getvalue()

"""PyTorch's archives (``.pt``, ``.pth``, ``.bin``, ``.jit``), read without PyTorch and without running anything in them.

Such a file is a zip: ``NAME/data.pkl`` describes the tensors (`coupled_sampling.export.checkpoints.torch_pickle`), and
``NAME/data/0``, ``NAME/data/1``, ... are their elements, not compressed, so that a tensor is read from its place in the file when
it is asked for. Two kinds of contents are known:

- a ``state_dict``, that is names and tensors, or a dictionary with one in the entry ``model``, ``module`` or ``state_dict``;
- TorchScript: a tree of modules, whose tensors are named by the attributes that lead to them, as in a ``state_dict``.

Views, transposed tensors and tensors that share a storage come as what they are. A tensor with more elements than its storage, as
an expanded one has, is refused: no header may ask for more memory than the file is long.
"""

from __future__ import annotations

import math
import re
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.bundles.json_files import PICKLE_OF_TENSORS
from coupled_sampling.errors import MissingDependency
from coupled_sampling.export.checkpoints.contract import Checkpoint, CheckpointError, TensorInfo
from coupled_sampling.export.checkpoints.safetensors_reader import CONFIG, read_config, refuse_quantised_config
from coupled_sampling.export.checkpoints.torch_pickle import Inert, StoredTensor, read_pickle

__all__ = ["is_archive", "open_torch_archive"]

PARTS = ("model", "module", "state_dict")
"""Entries under which training scripts keep a ``state_dict`` among other things."""

_BEGINNING = b"PK\x03\x04"
_PICKLE = re.compile(r"[^/]+/data\.pkl")
_LOCAL_HEADER, _LENGTHS_AT = 30, 26
"""Bytes of an entry's own header before its name, and where in it the lengths of name and extra field are."""
_ENCRYPTED = 1
_MOST_ENTRIES = 200_000
_MOST_AXES = 32
_MOST_PLACES, _MOST_LEVELS, _LONGEST_NAME = 50_000, 32, 200
"""In a tree of modules: tensors and modules, modules in each other, characters of an attribute's name."""
_DROPPED = "_extra_state"
"""What Transformer Engine keeps beside weights."""


def is_archive(path: Path) -> bool:
    """Whether a file begins as an archive does; older files of PyTorch are pickles alone."""
    with path.open("rb") as file:
        return file.read(len(_BEGINNING)) == _BEGINNING


def open_torch_archive(path: Path) -> Checkpoint:
    """Open an archive. Its configuration is ``config.json`` beside it; without one it is empty.

    Raises
    ------
    CheckpointError
        It is truncated or damaged, or holds something else than named tensors.
    MissingDependency
        ``ml_dtypes``, which has bfloat16, is not installed.
    """
    try:
        import ml_dtypes  # noqa: F401 - numpy knows bfloat16 by name once it is imported
    except ImportError as error:
        raise MissingDependency(
            "reading a PyTorch archive needs the package ml_dtypes: pip install 'coupled-sampling[export]'"
        ) from error
    config: dict[str, Any] = {}
    if (path.parent / CONFIG).is_file():
        config = read_config(path.parent)
        refuse_quantised_config(path.parent / CONFIG, config)
    archive = _Archive(path)
    try:
        tensors = archive.tensors()
    except BaseException:
        archive.close()
        raise
    table = {name: archive.info(name, tensor) for name, tensor in tensors.items()}
    return Checkpoint(path, "torch", config, table, lambda name: archive.read(name, tensors[name]), None, archive.close)


class _Archive:
    """The file, and what its entries are."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO = path.open("rb")
        try:
            self._size = path.stat().st_size
            self._entries = _entries(path, self._file)
            pickles = [name for name in self._entries if _PICKLE.fullmatch(name)]
            if len(pickles) != 1:
                raise CheckpointError(
                    f"{path} is a zip file with {len(pickles)} entries NAME/data.pkl, expected one: it is no archive of PyTorch's"
                )
            self._pickle, self._home = pickles[0], pickles[0].removesuffix("data.pkl")
            self._order = self._byte_order()
        except BaseException:
            self._file.close()
            raise

    def close(self) -> None:
        self._file.close()

    def tensors(self) -> dict[str, StoredTensor]:
        """All tensors by name, in the order of the pickle, each found to be where it says."""
        entry = self._entries[self._pickle]
        PICKLE_OF_TENSORS.check_size(entry.file_size, self._path, CheckpointError)
        made = read_pickle(self._bytes(entry), self._path)
        tensors = dict(_attributes(made, self._path)) if isinstance(made, Inert) else _state(made, self._path)
        if not tensors:
            raise CheckpointError(
                f"{self._path} holds no tensors"
                + (": a frozen module has its weights in its code; save it unfrozen" if isinstance(made, Inert) else "")
            )
        for name, tensor in tensors.items():
            self._check(name, tensor)
        return tensors

    def info(self, name: str, tensor: StoredTensor) -> TensorInfo:
        size = np.dtype(tensor.storage.dtype).itemsize
        return TensorInfo(tensor.shape, tensor.storage.dtype, math.prod(tensor.shape) * size, self._path)

    def read(self, name: str, tensor: StoredTensor) -> NDArray[Any]:
        """The tensor, in memory of its own and in the machine's order of bytes."""
        dtype = np.dtype(tensor.storage.dtype)
        if not math.prod(tensor.shape):
            return np.empty(tensor.shape, dtype)
        entry = self._entries[f"{self._home}data/{tensor.storage.key}"]
        count = _reach(tensor)
        self._file.seek(self._place(entry) + tensor.first * dtype.itemsize)
        run = np.fromfile(self._file, np.dtype(f"u{dtype.itemsize}"), count)
        if run.size != count:
            raise CheckpointError(f"{self._path}: tensor {name!r} is cut off; the file has changed since it was opened")
        if self._order != sys.byteorder:
            run.byteswap(inplace=True)
        strides = [stride * dtype.itemsize for stride in tensor.strides]
        return np.ascontiguousarray(np.lib.stride_tricks.as_strided(run.view(dtype), tensor.shape, strides)).reshape(
            tensor.shape
        )

    def _check(self, name: str, tensor: StoredTensor) -> None:
        """Refuse a tensor that is not within its storage, or a storage that is not whole."""
        storage = tensor.storage
        entry = self._entries.get(f"{self._home}data/{storage.key}")
        if entry is None:
            raise self._refusal(name, f"its elements, data/{storage.key}, are missing")
        size = np.dtype(storage.dtype).itemsize
        if storage.elements * size != entry.file_size:
            raise self._refusal(
                name, f"data/{storage.key} has {entry.file_size} bytes, expected {storage.elements} of {storage.dtype}"
            )
        if len(tensor.shape) > _MOST_AXES:
            raise self._refusal(name, f"it has {len(tensor.shape)} axes, expected at most {_MOST_AXES}")
        elements = math.prod(tensor.shape)
        # Numpy makes no such array, empty or not.
        if not elements and math.prod(filter(None, tensor.shape)) * size > sys.maxsize:
            raise self._refusal(name, f"it is empty, and of shape {tensor.shape}")
        if elements and (tensor.first + _reach(tensor) > storage.elements or elements > storage.elements):
            raise self._refusal(
                name,
                f"{elements} elements of shape {tensor.shape} reach beyond the {storage.elements} of data/{storage.key}, or are "
                "some of these several times, as in an expanded tensor; save it after .contiguous()",
            )
        self._place(entry)

    def _refusal(self, name: str, what: str) -> CheckpointError:
        return CheckpointError(f"{self._path}: tensor {name!r} cannot be read: {what}")

    def _place(self, entry: zipfile.ZipInfo) -> int:
        """Where an entry's bytes begin in the file."""
        header = b""
        if 0 <= entry.header_offset < self._size:  # others may be no place in any file
            self._file.seek(entry.header_offset)
            header = self._file.read(_LOCAL_HEADER)
        lengths = header[_LENGTHS_AT:]
        place = entry.header_offset + _LOCAL_HEADER + int.from_bytes(lengths[:2], "little")
        place += int.from_bytes(lengths[2:], "little")
        whole = len(header) == _LOCAL_HEADER and header.startswith(_BEGINNING)
        if not whole or place + entry.file_size > self._size:
            raise CheckpointError(
                f"{self._path}: {entry.filename} is not where the archive's table says; copy or download the file again"
            )
        return place

    def _bytes(self, entry: zipfile.ZipInfo) -> bytes:
        self._file.seek(self._place(entry))
        return self._file.read(entry.file_size)

    def _byte_order(self) -> str:
        entry = self._entries.get(f"{self._home}byteorder")
        order = b"little" if entry is None else self._bytes(entry)[:16]
        if order not in (b"little", b"big"):
            raise CheckpointError(f"{self._path}: byteorder is {order!r}, expected little or big")
        return order.decode()


def _entries(path: Path, file: BinaryIO) -> dict[str, zipfile.ZipInfo]:
    """The entries that can be read in place, by name; others, such as TorchScript's compressed code, are none of ours."""
    try:
        with zipfile.ZipFile(file) as archive:
            found = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError) as error:
        raise CheckpointError(f"{path} is no whole archive: {error}; copy or download the file again") from error
    if len(found) > _MOST_ENTRIES:
        raise CheckpointError(f"{path} has {len(found)} entries, and {_MOST_ENTRIES} are the most that is read")
    entries: dict[str, zipfile.ZipInfo] = {}
    for entry in found:
        if entry.filename in entries:
            raise CheckpointError(f"{path} has two entries {entry.filename!r}, expected one; download the file again")
        plain = entry.compress_type == zipfile.ZIP_STORED and entry.compress_size == entry.file_size
        if plain and not entry.flag_bits & _ENCRYPTED:
            entries[entry.filename] = entry
    return entries


def _reach(tensor: StoredTensor) -> int:
    """Elements from a tensor's first to its last, both included, of one that has any."""
    return 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.strides, strict=True))


def _state(made: Any, path: Path) -> dict[str, StoredTensor]:
    """The tensors of a ``state_dict``, or of the one entry that is such."""
    if isinstance(made, dict):
        inner = [part for part in PARTS if isinstance(made.get(part), dict)]
        if len(inner) > 1:
            raise CheckpointError(
                f"{path} has several tables of tensors, {', '.join(inner)}, expected one; save the right one alone"
            )
        made = made[inner[0]] if inner else made
    if not isinstance(made, dict):
        raise CheckpointError(
            f"{path} holds a {type(made).__name__}, expected a dictionary of tensors: save the model's state_dict"
        )
    tensors = {name: value for name, value in made.items() if not str(name).endswith(_DROPPED)}
    for name, value in tensors.items():
        if not isinstance(name, str) or not isinstance(value, StoredTensor):
            raise CheckpointError(
                f"{path}: the entry {str(name)[:80]!r} is a {type(value).__name__}, expected a dictionary of named tensors, or "
                f"one in the entry {', '.join(PARTS[:-1])} or {PARTS[-1]}"
            )
    return tensors


def _attributes(module: Inert, path: Path) -> Iterator[tuple[str, StoredTensor]]:
    """The tensors of a tree of modules, each under the attributes that lead to it."""
    left: list[tuple[tuple[str, ...], Any]] = [((), module)]
    met = 0
    while left:
        names, value = left.pop()
        if isinstance(value, StoredTensor):
            yield ".".join(names), value
            continue
        inside = [(str(key), one) for key, one in value.attributes.items() if isinstance(one, StoredTensor | Inert)]
        met += len(inside)
        long = any(len(key) > _LONGEST_NAME for key, _ in inside)
        if met > _MOST_PLACES or len(names) > _MOST_LEVELS or long:  # modules may hold each other, and grow without end
            raise CheckpointError(
                f"{path} has more than {_MOST_PLACES} tensors and modules, {_MOST_LEVELS} modules in each other or {_LONGEST_NAME} "
                "characters in a name: no model that can be read has"
            )
        left += [((*names, key), one) for key, one in reversed(inside)]

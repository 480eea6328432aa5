"""Which other files an ONNX graph opens: found in its bytes, without a package that knows ONNX.

A tensor of a graph may lie in a file of its own, whose name the tensor has as an entry ``location``. A runtime opens that file by
itself, so a bundle must list it, or weights would run that no hash covers. Tensors are where one looks for them, in the graph's
list, and where one does not: as attributes of nodes, in graphs within nodes, in functions, in the halves of sparse tensors.

All of them are visited, but only those parts of the file that hold the word ``location`` at all are looked into: what has not the
word has no such entry. A file of gigabytes then costs one search for a word, which is faster than its hash.
"""

from __future__ import annotations

import bisect
import mmap
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from coupled_sampling.arguments import shown
from coupled_sampling.bundles.wire import BYTES, WireError, read_fields
from coupled_sampling.errors import BundleError

__all__ = ["check_graph_files", "external_files"]

_WORD = b"location"

_INSIDE: Mapping[str, Mapping[int, str]] = {
    "ModelProto": {7: "GraphProto", 20: "TrainingInfoProto", 25: "FunctionProto"},
    "TrainingInfoProto": {1: "GraphProto", 2: "GraphProto"},
    "GraphProto": {1: "NodeProto", 5: "TensorProto", 15: "SparseTensorProto"},
    "FunctionProto": {7: "NodeProto", 11: "AttributeProto"},
    "NodeProto": {5: "AttributeProto"},
    "AttributeProto": {
        5: "TensorProto",
        6: "GraphProto",
        10: "TensorProto",
        11: "GraphProto",
        22: "SparseTensorProto",
        23: "SparseTensorProto",
    },
    "SparseTensorProto": {1: "TensorProto", 2: "TensorProto"},
    "TensorProto": {13: "StringStringEntryProto"},
}
"""ONNX's messages, and those of their fields that tensors can be in, by number; a test holds them against the package onnx."""

_MOST_WORDS = 1 << 20
_MOST_FIELDS = 1 << 22
"""A graph of a thousand layers has some 10,000 of either; a file with more than these was made to keep its reader busy."""

_CHUNK = 1 << 20


def check_graph_files(folder: Path, graph: str, listed: Iterable[str]) -> None:
    """Refuse a graph of a bundle that opens a file which no hash covers.

    Parameters
    ----------
    folder
        The bundle's.
    graph
        Name of the graph's file.
    listed
        Names of the files whose hashes the manifest has.

    Raises
    ------
    BundleError
        The graph names a file that is not listed, or lies elsewhere; or the graph is damaged.
    """
    path = folder / graph
    if path.suffix.lower() == ".ort":  # another format, which is told by its name, and may have files outside, too
        raise BundleError(f"{path} is a graph of ONNX Runtime's own format, expected ONNX; convert it")
    known = set(listed)
    for name in external_files(path):
        if name not in known:
            raise BundleError(
                f"{path} opens the file {shown(name)}, which the manifest does not list, so no hash covers it; "
                "list it in files, or export the bundle again"
            )
        # As ONNX Runtime has it: beside the graph, or beside what the graph is a link to, as in Hugging Face's cache.
        if (folder / name).resolve().parent not in (folder.resolve(), path.resolve().parent):
            raise BundleError(
                f"{folder / name} is a link to another place, and {path.name} opens it; put the file itself there"
            )


def external_files(path: Path) -> list[str]:
    """Names of the files that the ONNX graph at ``path`` opens, as it gives them, each once.

    Raises
    ------
    BundleError
        The graph is damaged where files are named, or cannot be read.

    Examples
    --------
    >>> from coupled_sampling import open_bundle
    >>> from coupled_sampling.bundles.graph_files import external_files
    >>> external_files(open_bundle("fashion").window_graph)
    ['weights.bin']
    """
    try:
        with path.open("rb") as file:
            words = _positions(file)
            if not words:
                return []
            if file.tell() <= _CHUNK:
                file.seek(0)
                return list(dict.fromkeys(_locations(file.read(), words)))
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return list(dict.fromkeys(_locations(data, words)))
    except (WireError, UnicodeDecodeError) as error:
        raise BundleError(
            f"{path} names files outside it and is no whole ONNX graph: {error}; export the bundle again"
        ) from error
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error}; copy or export the bundle again") from error


def _positions(file: BinaryIO) -> list[int]:
    """Where the word stands in the file."""
    found: list[int] = []
    before, kept = 0, b""
    while chunk := file.read(_CHUNK):
        data = kept + chunk
        at = data.find(_WORD)
        while at >= 0:
            found.append(before - len(kept) + at)
            if len(found) > _MOST_WORDS:
                raise WireError(f"it has the word {_WORD.decode()} more than {_MOST_WORDS} times")
            at = data.find(_WORD, at + len(_WORD))
        before += len(chunk)
        kept = data[-(len(_WORD) - 1) :]  # a word may lie across two chunks
    return found


def _locations(data: bytes | mmap.mmap, words: list[int]) -> Iterator[str]:
    """Every location of an external tensor in the graph."""
    steps = 0
    waiting = [("ModelProto", 0, len(data))]
    while waiting:  # not by recursion: graphs may lie within graphs as deep as their writer likes
        message, start, end = waiting.pop()
        inside = _INSIDE[message]
        for number, kind, first, last in read_fields(data, start, end):
            steps += 1
            if steps > _MOST_FIELDS:
                raise WireError(f"it has more than {_MOST_FIELDS} fields")
            if number not in inside or kind != BYTES or not _has_word(words, first, last):
                continue
            part = inside[number]
            if part in _INSIDE:
                waiting.append((part, first, last))
            else:
                yield from _location(data, first, last)


def _has_word(words: list[int], start: int, end: int) -> bool:
    i = bisect.bisect_left(words, start)
    return i < len(words) and words[i] + len(_WORD) <= end


def _location(data: bytes | mmap.mmap, start: int, end: int) -> Iterator[str]:
    """The value of an entry that is called so; the last of several, as protobuf reads them."""
    entry = {number: data[first:last] for number, _, first, last in read_fields(data, start, end)}
    if entry.get(1) == _WORD:
        yield entry.get(2, b"").decode()

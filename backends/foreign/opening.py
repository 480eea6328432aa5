"""A decoder graph of somebody else, from its file to a session: read, rewritten in memory where it must be, and opened.

The file itself is never changed. A graph that names no quantised product is given to ONNX Runtime as it is. One that does is read
with the package ``onnx``: products that can compute with float32 are told to (`coupled_sampling.backends.foreign.rewriting`), and
what else rounds activations is counted, to be named as the cause if the graph is refused.
"""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any, NamedTuple

from coupled_sampling.arguments import in_one_line
from coupled_sampling.backends.foreign.checks import probe_graph
from coupled_sampling.backends.foreign.configuration import Configuration
from coupled_sampling.backends.foreign.graph import DecoderGraph, read_graph
from coupled_sampling.backends.foreign.rewriting import (
    FUSED,
    SOURCE,
    Changes,
    load_graph,
    raise_accuracy,
    roundings,
    serialise,
)
from coupled_sampling.backends.foreign.widening import widen
from coupled_sampling.backends.ort.session import open_session
from coupled_sampling.errors import BundleError, InvalidArgument, MissingDependency

__all__ = ["DecoderFile", "OpenedDecoder", "open_foreign_session"]

ACCURACY = "accuracy_level"
NAMES = (SOURCE, *sorted(FUSED), ACCURACY)
"""What a graph that may round activations has in its file, as text."""


class OpenedDecoder(NamedTuple):
    """A graph that is ready to run."""

    graph: DecoderGraph
    session: Any
    changes: Changes


class DecoderFile:
    """The file of a decoder, opened when it is made: what cannot be used is refused then.

    The first session is kept for whoever opens a model first, since making one takes as long as reading all weights does.
    """

    def __init__(self, path: Path, *, widen: bool = False, threads: int | None = None) -> None:
        self.path, self.widen = path, widen
        self.configuration = Configuration.beside(path)
        self._threads = threads
        self._ready: OpenedDecoder | None = self._open(threads)
        self.graph, self.changes = self._ready.graph, self._ready.changes
        self.vocab_size, _ = probe_graph(self.graph, self._ready.session)

    def open(self, threads: int | None = None) -> OpenedDecoder:
        """A session with so many threads."""
        ready, self._ready = self._ready, None
        if ready is not None and threads == self._threads:
            return ready
        del ready  # all weights would be held twice
        return self._open(threads)

    def _open(self, threads: int | None) -> OpenedDecoder:
        session, changes = open_foreign_session(self.path, threads, widening=self.widen)
        try:
            graph = read_graph(self.path, session, self.configuration.cache_sizes())
        except UnicodeError as error:
            raise BundleError(
                f"{self.path} has names that are no text: {error}; download or export the file again"
            ) from error
        return OpenedDecoder(graph, session, changes)


def open_foreign_session(file: Path, threads: int | None = None, *, widening: bool = False) -> tuple[Any, Changes]:
    """A session of a downloaded graph, rewritten in memory where that is needed, and what was done.

    Raises
    ------
    BundleError
        ONNX Runtime cannot load the file; the message speaks of a downloaded one.
    InvalidArgument
        ``widening`` is asked for, and there is nothing to widen.
    MissingDependency
        ``onnxruntime`` is missing or too old; or ``onnx`` is, and it is needed.
    """
    named = _mentioned(file)
    if not named and not widening:
        return _session(file, file, threads), Changes()
    if widening and not named - {ACCURACY}:
        raise InvalidArgument(
            f"widen is True, but {file} has no activations that are quantised per call ({SOURCE}); leave it out"
        )
    try:
        model = load_graph(file, "rewriting a quantised graph in memory")
    except MissingDependency as error:
        if widening or ACCURACY in named:
            raise MissingDependency(
                f"{file} has quantised products that may round activations; to see and to change that, {error}"
            ) from error
        return _session(file, file, threads), Changes(rounding=dict.fromkeys(named, 0))
    try:
        raised, widened = raise_accuracy(model), widen(model) if widening else 0
    except UnicodeError as error:
        raise BundleError(f"{file} has names that are no text: {error}; download or export the file again") from error
    changes = Changes(widened, dict(raised), dict(roundings(model)), widening)
    if not widened and not raised:
        return _session(file, file, threads), changes
    graph = serialise(model, file)
    del model  # a copy of all weights that are in the graph itself
    return _session(graph, file, threads), changes


def _mentioned(file: Path) -> set[str]:
    """Which of `NAMES` are in the file. They may be parts of other names: then it is read for nothing."""
    try:
        with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return {name for name in NAMES if content.find(name.encode()) >= 0}
    except ValueError:  # an empty file cannot be mapped
        return set()
    except OSError as error:
        raise BundleError(f"{file} cannot be read: {error.strerror}; check that it is yours to read") from error


def _session(graph: Path | bytes, file: Path, threads: int | None) -> Any:
    """A session; errors speak of a downloaded file."""
    try:
        return open_session(graph, threads, beside=file.absolute().parent)
    except BundleError as error:
        cause = in_one_line(str(error.__cause__))
        external = "external data" in cause.lower() or "external_data" in cause.lower()
        advice = (
            f"its weights are in a file of their own ({file.name}_data or {file.name}.data): put it beside the graph"
            if external
            else "download or export the file again"
        )
        raise BundleError(f"ONNX Runtime cannot load {file}: {cause}; {advice}") from error

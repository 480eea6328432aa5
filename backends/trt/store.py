"""Engines on disk: beside their bundle, with a fingerprint, whole or not at all, and never loaded where they do not belong.

An engine is a folder ``<bundle>.engines/<slot>`` with ``engine.plan`` and ``fingerprint.json``. The slot's name says what it is
for (graph, flavour, GPU, options); the fingerprint says everything that decides whether the engine may be loaded: the SHA-256 of
the graph and of its weights, the flavour's version, the GPU, the options, and the engine's own SHA-256. One difference and it is
not loaded but built again, in its place. Nothing is written before a build has succeeded.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from coupled_sampling.backends.trt.flavour import Flavour
from coupled_sampling.backends.trt.options import BuildOptions
from coupled_sampling.bundles.files import read_contents, whole_folder, write_whole
from coupled_sampling.bundles.opening import Bundle
from coupled_sampling.errors import OutputError

__all__ = ["EngineStore", "Fingerprint"]

FORMAT = 1
"""Raised when engines of an older version of this library must not be loaded."""


@dataclass(frozen=True)
class Fingerprint:
    """What an engine was built from and for.

    Parameters
    ----------
    files
        SHA-256 of the graph and of its weights' files, by name.
    flavour, version
        Which TensorRT.
    gpu
        `Flavour.gpu`.
    options
        `BuildOptions.record`.
    """

    files: dict[str, str]
    flavour: str
    version: str
    gpu: str
    options: dict[str, Any]
    format: int = FORMAT

    @classmethod
    def of(
        cls, bundle: Bundle, flavour: Flavour, gpu: str, options: BuildOptions, graph: str | None = None
    ) -> Fingerprint:
        """The fingerprint of an engine of ``graph``, a file of ``bundle``; None is its window graph."""
        manifest = bundle.manifest
        built = manifest.window_graph.file if graph is None else graph
        graphs = {manifest.window_graph.file} | {other.file for other in manifest.step_graphs}
        beside = (manifest.pixel_graph, manifest.tree_graph, manifest.causal_graph)
        graphs |= {other.file for other in beside if other is not None}
        others = {name for name in manifest.files if name in graphs or name == manifest.tokenizer} - {built}
        files = {name: record.sha256 for name, record in sorted(manifest.files.items()) if name not in others}
        return cls(files, flavour.name, flavour.version, gpu, options.record())

    def slot(self, graph: str) -> str:
        """A folder's name for engines that replace each other: same graph, flavour, GPU and options."""
        key = json.dumps([self.gpu, self.options], sort_keys=True)
        digest = hashlib.sha256(key.encode()).hexdigest()[:12]
        return "-".join(
            re.sub(r"[^\w.]+", "_", part) for part in (graph, self.flavour, self.options["precision"], digest)
        )

    def differences(self, other: dict[str, Any]) -> list[str]:
        """What ``other`` says differently, in words."""
        own = asdict(self)
        return [
            f"{name} was {other.get(name)!r}, now {value!r}" for name, value in own.items() if other.get(name) != value
        ]


class EngineStore:
    """Where the engines of a bundle lie.

    Parameters
    ----------
    bundle
        The bundle.
    folder
        None is ``<bundle>.engines`` beside the bundle's folder.
    graph
        File of the bundle that the engines are built from; None is its window graph.

    Examples
    --------
    >>> from coupled_sampling import open_bundle
    >>> from coupled_sampling.backends.trt import EngineStore
    >>> store = EngineStore(open_bundle("fashion"), "engines")
    >>> store.folder.name, store.graph
    ('engines', 'window.onnx')
    """

    def __init__(self, bundle: Bundle, folder: Path | str | None = None, graph: str | None = None) -> None:
        beside = bundle.folder.absolute().with_name(f"{bundle.folder.absolute().name}.engines")
        self.folder = beside if folder is None else Path(folder)
        self.graph = bundle.manifest.window_graph.file if graph is None else graph

    def place(self, fingerprint: Fingerprint) -> Path:
        """The folder of an engine."""
        return self.folder / fingerprint.slot(Path(self.graph).stem)

    def load(self, fingerprint: Fingerprint) -> tuple[bytes | None, str]:
        """The engine with this ``fingerprint``, or None and why there is none."""
        place = self.place(fingerprint)
        try:
            record = json.loads((place / "fingerprint.json").read_text(encoding="utf-8"))
            if not isinstance(record, dict):
                raise ValueError("not an object")
            engine = (place / "engine.plan").read_bytes()
        except FileNotFoundError:
            return None, f"there is no engine at {place}"
        except (OSError, ValueError) as error:
            return None, f"the engine at {place} cannot be read ({error})"
        differences = fingerprint.differences(record)
        if differences:
            return None, f"the engine at {place} is stale: {'; '.join(differences)}"
        if hashlib.sha256(engine).hexdigest() != record.get("engine_sha256"):
            return None, f"the engine at {place} is damaged: its SHA-256 is not the one recorded"
        return engine, ""

    def check_writable(self) -> None:
        """Refuse, before a build, a folder that cannot be written.

        Raises
        ------
        OutputError
            It cannot.
        """
        try:
            self.folder.mkdir(exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"cannot make {self.folder}: {error.strerror}; pass engines=, a folder that is yours"
            ) from error
        if not os.access(self.folder, os.W_OK):
            raise OutputError(f"cannot write into {self.folder}: no permission; pass engines=, a folder that is yours")

    def save(self, fingerprint: Fingerprint, engine: bytes) -> Path:
        """Put an engine in its place, replacing a stale one.

        Raises
        ------
        OutputError
            It cannot be written.
        """
        self.check_writable()
        record = asdict(fingerprint) | {"engine_sha256": hashlib.sha256(engine).hexdigest()}
        place = self.place(fingerprint)
        try:
            with whole_folder(place, read_contents(place) if place.is_dir() else None) as folder:
                (folder / "engine.plan").write_bytes(engine)
                (folder / "fingerprint.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        except OutputError:
            if self.load(fingerprint)[0] is None:  # else another process built the same engine meanwhile
                raise
        return place

    def cache(self, fingerprint: Fingerprint, kind: str) -> Path:
        """Path of a cache that makes the next build or start faster; it is only ever a hint to TensorRT, which checks it."""
        key = hashlib.sha256(f"{fingerprint.version} {fingerprint.gpu}".encode()).hexdigest()[:12]
        return self.folder / f"{fingerprint.flavour}-{key}.{kind}"

    def read_cache(self, path: Path) -> bytes:
        """What is in a cache file; nothing if there is none."""
        with contextlib.suppress(OSError):
            return path.read_bytes()
        return b""

    def write_cache(self, path: Path, content: bytes) -> None:
        """Replace a cache file; that it cannot be written costs time, no more, so it is not an error."""
        with contextlib.suppress(OutputError):
            write_whole(path, lambda partial: partial.write_bytes(content))

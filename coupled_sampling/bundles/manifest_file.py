"""The file ``manifest.json`` of a bundle: how it is read, and how it is written while others read it.

What it says is a `coupled_sampling.bundles.manifest.Manifest`. A file that is too new, damaged or another program's is refused
with a `BundleError` that names it. Nothing here looks at the other files of a bundle but to count and hash them;
`coupled_sampling.bundles.opening` does.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import typing
from dataclasses import asdict
from pathlib import Path

from coupled_sampling.arguments import shown
from coupled_sampling.bundles.json_files import MANIFEST_FILE, read_object
from coupled_sampling.bundles.manifest import MANIFEST, FileRecord, Manifest
from coupled_sampling.bundles.parsing import parse
from coupled_sampling.errors import BundleError, InvalidArgument, OutputError
from coupled_sampling.fields import check_is, check_path

__all__ = ["FORMAT", "FORMAT_VERSION", "file_record", "is_bundle", "read_manifest", "write_manifest"]

FORMAT = "coupled-sampling-bundle"
FORMAT_VERSION = 8
"""1 knew no step graphs, 2 none for TensorRT, 3 no chat templates, 4 no corrections and no fill token, 5 no graph for trees, 6 no
conditions and no frames, 7 no graph without masks; all are still read."""


def is_bundle(folder: Path) -> bool:
    """Whether a folder has a manifest of this format. Other programs have files of that name, too."""
    try:
        with (folder / MANIFEST).open("rb") as file:
            return FORMAT.encode() in file.read(1 << 20)
    except OSError:
        return False


def file_record(path: Path) -> FileRecord:
    """The record of a file as it is now.

    Examples
    --------
    >>> from pathlib import Path
    >>> from coupled_sampling.bundles import file_record
    >>> _ = Path("weights.bin").write_bytes(b"1234")
    >>> record = file_record(Path("weights.bin"))
    >>> record.bytes, record.sha256[:8]
    (4, '03ac6742')
    """
    path = check_path("path", path)
    with path.open("rb") as file:
        return FileRecord(hashlib.file_digest(file, "sha256").hexdigest(), path.stat().st_size)


def read_manifest(folder: Path) -> Manifest:
    """The manifest of the bundle at ``folder``, whose other files are not looked at.

    Raises
    ------
    BundleError
        There is none of this format.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise BundleError(f"{path} is missing: {folder} is not a bundle; expected a folder that export wrote")
    document = read_object(path, MANIFEST_FILE)
    if document.get("format") != FORMAT:
        raise BundleError(
            f"{path}: format is {shown(document.get('format'))}, expected {FORMAT!r}: this is no bundle of this library"
        )
    version = document.get("format_version")
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise BundleError(f"{path}: format_version is {shown(version)}, expected an integer from 1 to {FORMAT_VERSION}")
    if version > FORMAT_VERSION:
        raise BundleError(
            f"{path}: format_version is {shown(version)}, this library reads up to {FORMAT_VERSION}; upgrade coupled-sampling"
        )
    body = {key: value for key, value in document.items() if key not in ("format", "format_version")}
    try:
        return typing.cast(Manifest, parse(Manifest, body, ""))
    except (BundleError, InvalidArgument) as error:
        raise BundleError(f"{path}: {error}") from error


def write_manifest(folder: str | Path, manifest: Manifest) -> Path:
    """Write ``manifest`` into ``folder``, atomically: readers see the old one or the new one.

    Raises
    ------
    OutputError
        It cannot be written; nothing half-written is left.

    Examples
    --------
    >>> from dataclasses import replace
    >>> from coupled_sampling import open_bundle
    >>> from coupled_sampling.bundles import write_manifest
    >>> manifest = open_bundle("fashion").manifest
    >>> write_manifest(".", replace(manifest, description="The same model under another description.")).name
    'manifest.json'
    """
    path = check_path("folder", folder) / MANIFEST
    check_is("manifest", manifest, Manifest)
    if manifest.window_graph.caches == "growing":
        raise OutputError(
            f"{manifest.name} is an ONNX file of somebody else's, opened as it is; a bundle is made of the checkpoint that it came "
            "from, by `coupled-sampling export`"
        )
    partial = path.with_name(f"{MANIFEST}.{os.getpid()}.partial")  # in the same folder: a rename is atomic only there
    document = {"format": FORMAT, "format_version": FORMAT_VERSION, **asdict(manifest)}
    try:
        text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
        partial.write_bytes(text.encode("utf-8", "backslashreplace"))  # half a surrogate pair, as JSON escapes it
        partial.replace(path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}; choose a folder that exists and is yours") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()
    return path

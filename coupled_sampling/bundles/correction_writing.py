"""Putting correction tables into a bundle that may be in use.

A bundle is read while it is written to, and whoever writes may be killed. So the tables go into a file with a new name, which no
manifest knows yet, and a network into another; then the manifest is replaced, in one rename; then the files that it named before
are removed. Before that rename the bundle is the old one, after it the new one. A kill leaves at most files that nothing names,
which the next writing removes.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from coupled_sampling.arguments import check_flag, shown
from coupled_sampling.bundles.correction_tables import CorrectionTables, fingerprint, stored_arrays
from coupled_sampling.bundles.files import whole_folder, write_whole
from coupled_sampling.bundles.hidden import find_leftovers, held, is_held
from coupled_sampling.bundles.manifest import MANIFEST, Manifest
from coupled_sampling.bundles.manifest_file import file_record, read_manifest, write_manifest
from coupled_sampling.bundles.opening import Bundle, open_bundle
from coupled_sampling.bundles.records import CorrectionsRecord
from coupled_sampling.bundles.replacing import check_replaceable
from coupled_sampling.bundles.uninterrupted import uninterrupted
from coupled_sampling.errors import BundleError, InvalidArgument, OutputError
from coupled_sampling.fields import check_is, check_path

__all__ = ["check_corrections_place", "store_corrections", "write_corrections"]

_NAME = re.compile(r"corrections-(?:[0-9a-f]{12}\.npz|network-[0-9a-f]{12}\.onnx)")
"""By what is in it: no two files of different tables have the same name."""

_MOST_PROVENANCE = 2**16
"""Characters of JSON."""


def write_corrections(
    bundle: Bundle | str | Path,
    tables: CorrectionTables,
    provenance: Mapping[str, Any],
    *,
    out: str | Path | None = None,
    force: bool = False,
) -> Bundle:
    """Put ``tables`` into a bundle, in the place of those it had.

    Whoever reads the bundle meanwhile finds the old one or the new one, also after a kill.

    Parameters
    ----------
    bundle
        A `Bundle`, as it was when the tables were fitted to it, or what `coupled_sampling.open_bundle` takes.
    tables
        What to put there.
    provenance
        How it was fitted and what it did on samples kept apart, by use; see `coupled_sampling.bundles.CorrectionsRecord`.
    out
        Folder to make: a copy of the bundle with the tables. None writes into the bundle itself.
    force
        Replace a bundle that is at ``out``.

    Raises
    ------
    BundleError
        There is no such bundle.
    InvalidArgument
        The tables are over another vocabulary, or ``provenance`` is no JSON.
    OutputError
        The bundle cannot be written to, or was changed since it was opened; or ``out`` cannot be made.

    Examples
    --------
    >>> import numpy as np
    >>> from coupled_sampling.bundles import CorrectionTables, write_corrections
    >>> from coupled_sampling.corrections import LowRank
    >>> V, K, R = 267, 2, 4
    >>> parts = np.zeros(V), np.zeros((V, R)), np.zeros((K, V + 1, R)), np.ones(2**K), np.zeros(2**K)
    >>> tables = CorrectionTables({"match": LowRank((1, 14), *parts)})
    >>> bundle = write_corrections("fashion", tables, {"match": {"samples": 0}}, out="with-tables")
    >>> bundle.manifest.corrections.uses, bundle.corrector("scd-match", "fitted").lags
    (('match',), (1, 14))
    """
    opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
    check_is("tables", tables, CorrectionTables)
    check_flag("force", force)
    _check(opened.manifest, tables, provenance)
    if out is None:
        check_corrections_place(opened)
        _check_unchanged(opened, tables)
        _replace(opened.folder, read_manifest(opened.folder), tables, provenance)
        return open_bundle(opened.folder)
    out = check_path("out", out)
    replacing = check_replaceable(out, force=force)
    with whole_folder(out, replacing) as folder:
        for name in (MANIFEST, *opened.manifest.files):
            shutil.copyfile(opened.folder / name, folder / name)
        _check_unchanged(Bundle(folder, opened.manifest), tables)
        _replace(folder, opened.manifest, tables, provenance)
    return open_bundle(out.absolute())


def check_corrections_place(bundle: Bundle, *, copied: bool = False) -> None:
    """Refuse a bundle that tables cannot be written into, or into a copy of which, before any work is done.

    Raises
    ------
    OutputError
        It is somebody else's ONNX file, or its folder cannot be written to.
    """
    if bundle.manifest.window_graph.caches == "growing":
        raise OutputError(
            f"{bundle.manifest.name} is an ONNX file of somebody else's, opened as it is, and has no place for tables; make a "
            "bundle of the checkpoint that it came from, by `coupled-sampling export`"
        )
    if not copied and not os.access(bundle.folder, os.W_OK | os.X_OK):
        raise OutputError(
            f"cannot write tables into {bundle.folder}: no permission; name another folder with out, for a copy of the bundle that "
            "has them"
        )


def store_corrections(
    folder: Path, manifest: Manifest, tables: CorrectionTables, provenance: Mapping[str, Any]
) -> Manifest:
    """Write the files of ``tables`` beside a bundle's other files; gives the manifest that names them, which is not written yet.

    Raises
    ------
    OutputError
        One cannot be written.
    """
    mark = fingerprint(folder, manifest, tables.lags)
    stream = io.BytesIO()
    np.savez(stream, **stored_arrays(tables, mark))  # type: ignore[arg-type]  # an array may be named anything but allow_pickle
    stored = [_stored(folder, "corrections-{}.npz", stream.getvalue())]
    if tables.network is not None:
        stored.append(_stored(folder, "corrections-network-{}.onnx", tables.network))
    files = {file: known for file, known in manifest.files.items() if file not in _named(manifest)}
    record = CorrectionsRecord(stored[0], tables.lags, mark, tuple(tables.fitted), dict(provenance), *stored[1:])
    return replace(manifest, files=files | {name: file_record(folder / name) for name in stored}, corrections=record)


def _stored(folder: Path, pattern: str, content: bytes) -> str:
    """Write a file whose name says what is in it."""
    name = pattern.format(hashlib.sha256(content).hexdigest()[:12])
    write_whole(folder / name, lambda partial: partial.write_bytes(content))
    return name


def _replace(folder: Path, manifest: Manifest, tables: CorrectionTables, provenance: Mapping[str, Any]) -> None:
    written = store_corrections(folder, manifest, tables, provenance)
    try:
        with contextlib.ExitStack() as holding:
            for name in _named(written):  # who writes at the same time leaves them alone
                holding.enter_context(held(folder / name))
            write_manifest(folder, written)
    finally:
        uninterrupted(lambda: _remove_unnamed(folder))


def _remove_unnamed(folder: Path) -> None:
    """Remove files of tables that the manifest does not name: those before, and what a run that was killed left."""
    named = _named(read_manifest(folder))
    left = [path for path in folder.iterdir() if _NAME.fullmatch(path.name) and path.name not in named]
    for path in left:
        with contextlib.suppress(OSError):
            if not is_held(path):
                path.unlink()
    # A file that was half-written is hidden beside its name, which is not known any more.
    for path in folder.glob(".corrections-*"):
        found = _NAME.match(path.name, 1)
        name = found.group() if found else ""
        with contextlib.suppress(OSError):
            if name and path in find_leftovers(folder / name):
                path.unlink()


def _named(manifest: Manifest) -> list[str]:
    """The files of tables that ``manifest`` names."""
    record = manifest.corrections
    return [] if record is None else [name for name in (record.file, record.network) if name is not None]


def _check(manifest: Manifest, tables: CorrectionTables, provenance: Mapping[str, Any]) -> None:
    vocab_size = next(iter(tables.fitted.values())).vocab_size
    if vocab_size != manifest.vocab_size:
        raise InvalidArgument(
            f"tables are over {vocab_size} tokens, and the bundle {manifest.name} has {manifest.vocab_size}; fit them to this model"
        )
    check_is("provenance", provenance, Mapping[str, Any])
    try:
        text = json.dumps(
            dict(provenance), allow_nan=False
        )  # a manifest with NaN in it would be refused when it is read
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidArgument(
            f"provenance is {shown(provenance)}, expected JSON with finite numbers: {error}"
        ) from error
    if len(text) > _MOST_PROVENANCE:
        raise InvalidArgument(f"provenance has {len(text)} characters of JSON, expected at most {_MOST_PROVENANCE}")


def _check_unchanged(bundle: Bundle, tables: CorrectionTables) -> None:
    """Refuse to put tables into another model than they were fitted to."""
    try:
        now = read_manifest(bundle.folder)
        same = fingerprint(bundle.folder, now, tables.lags) == fingerprint(bundle.folder, bundle.manifest, tables.lags)
    except (BundleError, KeyError) as error:
        raise OutputError(
            f"cannot write tables into {bundle.folder}: it is no whole bundle any more ({error})"
        ) from error
    if not same:
        raise OutputError(
            f"cannot write tables into {bundle.folder}: its model was changed since they were fitted; fit them again"
        )

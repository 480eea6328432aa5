"""What may be replaced or removed: bundles, and nothing else.

A folder is a bundle if its manifest can be read as one of this format. Its other files may be damaged or missing, since a broken
bundle is what one wants to replace. But a file that the manifest does not list is somebody's own, and stops it.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from coupled_sampling.bundles.files import Contents, check_place, read_contents, real_path
from coupled_sampling.bundles.hidden import PARTIAL, REPLACED, find_leftovers
from coupled_sampling.bundles.manifest import MANIFEST
from coupled_sampling.bundles.opening import read_manifest
from coupled_sampling.bundles.renames import rename_new
from coupled_sampling.errors import BundleError, OutputError

__all__ = ["check_replaceable", "leftovers", "remove_leftovers"]

_NAMED = 3
"""Files that a message names."""


def check_replaceable(out: Path, *, force: bool) -> Contents | None:
    """Refuse a folder that cannot be made or replaced, before any work is done.

    Returns
    -------
    Contents or None
        What is there and may be replaced, for `coupled_sampling.bundles.files.whole_folder`; None if nothing is there.

    Raises
    ------
    OutputError
        Something is there and ``force`` is not set; or it is no bundle, or has files that the bundle does not list; or nothing can
        be written there.
    """
    real = check_place(out)
    if not os.path.lexists(real):
        return None
    if not force:
        raise OutputError(f"cannot write {out}: it exists; choose another name, or --force to replace a bundle")
    if not real.is_dir():
        raise OutputError(f"cannot replace {out}: it is no bundle, it is no folder; choose another name")
    if not os.access(real, os.W_OK | os.X_OK):
        raise OutputError(f"cannot replace {out}: no permission; choose another name")
    return _bundle_alone(real, f"cannot replace {out}")


def leftovers(out: Path) -> tuple[Path, ...]:
    """What runs that were killed left beside ``out``.

    Raises
    ------
    OutputError
        ``out`` leads nowhere.
    """
    return find_leftovers(real_path(out))


def remove_leftovers(out: Path) -> tuple[Path, ...]:
    """Remove what runs that were killed left beside ``out``; gives what was removed.

    A bundle that such a run had set aside to replace it, and that is missing now, is put back.

    Raises
    ------
    OutputError
        One cannot be removed, or has files that are no bundle's.
    """
    real = real_path(out)
    found = find_leftovers(real)
    for path in found:
        try:
            _remove(path, real)
        except OutputError:
            raise
        except OSError as error:
            raise OutputError(f"cannot remove {path}: {error.strerror or error}") from error
    return found


def _remove(path: Path, real: Path) -> None:
    """Remove what was left beside ``real``, or put it back."""
    if path.name.endswith(REPLACED):
        if not os.path.lexists(real):
            rename_new(path, real)
            return
        _bundle_alone(path, f"cannot remove {path}")
        # Half of it is no bundle any more, and must not have the name of one.
        path = path.rename(path.with_name(path.name.replace(REPLACED, PARTIAL)))
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def _bundle_alone(folder: Path, refusal: str) -> Contents:
    """What is in ``folder``, if it is a bundle and nothing else; ``refusal`` is how messages begin."""
    try:
        manifest = read_manifest(folder)
        contents = read_contents(folder)
    except (BundleError, OSError) as error:
        raise OutputError(f"{refusal}: it is no bundle ({error}); choose another name") from error
    strange = sorted(contents.names - {MANIFEST, *manifest.files})
    if strange:
        more = f" and {len(strange) - _NAMED} more" if len(strange) > _NAMED else ""
        raise OutputError(
            f"{refusal}: the bundle does not list {', '.join(strange[:_NAMED])}{more} in it; move that away, or choose "
            "another name"
        )
    return contents

"""What may be replaced or removed: bundles, and nothing else.

A folder is a bundle if its manifest can be read as one of this format. Its other files may be damaged or missing, since a broken
bundle is what one wants to replace. But a file that the manifest does not list is somebody's own, and stops it.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import NamedTuple

from coupled_sampling.bundles.files import Contents, check_place, read_contents, real_path
from coupled_sampling.bundles.hidden import PARTIAL, REPLACED, find_leftovers
from coupled_sampling.bundles.manifest import MANIFEST
from coupled_sampling.bundles.manifest_file import read_manifest
from coupled_sampling.bundles.renames import rename_new
from coupled_sampling.errors import BundleError, OutputError

__all__ = ["Leftover", "check_replaceable", "leftovers", "remove_leftovers"]

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
    if not _is_text(real):
        raise OutputError(f"cannot write {out}: {real} is no text in UTF-8, so that no runtime opens files there")
    if not os.path.lexists(real):
        return None
    if not force:
        raise OutputError(f"cannot write {out}: it exists; choose another name, or --force to replace a bundle")
    if not real.is_dir():
        raise OutputError(f"cannot replace {out}: it is no bundle, it is no folder; choose another name")
    if not os.access(real, os.W_OK | os.X_OK):
        raise OutputError(f"cannot replace {out}: no permission; choose another name")
    return _bundle_alone(real, f"cannot replace {out}")


class Leftover(NamedTuple):
    """What a run that was killed left beside its result."""

    path: Path
    is_only_copy: bool
    """Whether it is the bundle that was about to be replaced, and is missing now."""


def leftovers(out: Path) -> tuple[Leftover, ...]:
    """What runs that were killed left beside ``out``.

    Raises
    ------
    OutputError
        ``out`` leads nowhere.
    """
    real = real_path(out)
    found = find_leftovers(real)
    # Of several one can be put back; `find_leftovers` has them first.
    missing = [not os.path.lexists(real) and i == 0 and path.name.endswith(REPLACED) for i, path in enumerate(found)]
    return tuple(map(Leftover, found, missing))


def remove_leftovers(out: Path) -> tuple[Leftover, ...]:
    """Remove what runs that were killed left beside ``out``, and put back a bundle of which it is the only copy; gives what it was.

    Raises
    ------
    OutputError
        One cannot be removed, or has files that are no bundle's.
    """
    found, real = leftovers(out), real_path(out)
    for path, is_only_copy in found:
        try:
            if is_only_copy:
                rename_new(path, real)
            else:
                _remove(path)
        except OutputError:
            raise
        except OSError as error:
            raise OutputError(f"cannot remove {path}: {error.strerror or error}") from error
    return found


def _is_text(path: Path) -> bool:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def _remove(path: Path) -> None:
    """Remove what was left."""
    if path.name.endswith(REPLACED):
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

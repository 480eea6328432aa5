"""Writing results: whole or not at all, never over what is not ours, and refused before the work rather than after it.

A result is made under a hidden name beside its own (`coupled_sampling.bundles.hidden`), and gets its name at the end. A file
takes the place of the one that was there. A folder takes no place but a free one, or that of a folder which was allowed to be
replaced and has not changed since.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from coupled_sampling.bundles.hidden import PARTIAL, REPLACED, held, hidden_path
from coupled_sampling.bundles.renames import exchange, rename_new
from coupled_sampling.bundles.uninterrupted import uninterrupted
from coupled_sampling.errors import OutputError

__all__ = ["Contents", "check_place", "check_writable", "read_contents", "real_path", "whole_folder", "write_whole"]


@dataclass(frozen=True)
class Contents:
    """What lies in a folder: enough to see whether anything was added, removed or changed."""

    entries: frozenset[tuple[str, int, int, int]]
    """Of each file and folder in it, at any depth: its path from there, kind, bytes and time of its last change."""

    @property
    def names(self) -> frozenset[str]:
        """Paths of all of them."""
        return frozenset(name for name, *_ in self.entries)


def read_contents(folder: Path) -> Contents:
    """What lies in ``folder``; links in it are not followed.

    Raises
    ------
    OSError
        It cannot be read.
    """

    def fails(error: OSError) -> None:
        raise error

    entries = set()
    for place, folders, files in os.walk(folder, onerror=fails):
        for name in (*folders, *files):
            path = os.path.join(place, name)  # noqa: PTH118 - a folder of somebody else's may have a million files
            found = os.lstat(path)
            size = 0 if stat.S_ISDIR(found.st_mode) else found.st_size
            entries.add((os.path.relpath(path, folder), stat.S_IFMT(found.st_mode), size, found.st_mtime_ns))
    return Contents(frozenset(entries))


def real_path(path: Path) -> Path:
    """Where ``path`` leads, of which the last part need not be there.

    Raises
    ------
    OutputError
        It leads nowhere, such as in a loop of links.
    """
    try:
        with contextlib.suppress(FileNotFoundError):
            path.stat()
        return Path(os.path.realpath(path))
    except (OSError, ValueError) as error:
        loop = isinstance(error, OSError) and error.errno == errno.ELOOP
        why = "it is a loop of links" if loop else getattr(error, "strerror", None) or str(error)
        raise OutputError(f"cannot write {path}: {why}; choose another name") from error


def check_place(path: Path) -> Path:
    """Refuse a ``path`` beside which nothing can be written; gives where it leads.

    Raises
    ------
    OutputError
        Its folder does not exist or is not writable, or it is a loop of links.
    """
    real = real_path(path)
    folder, leads = real.parent, f" leads to {real}," if path.is_symlink() else ""
    if not folder.is_dir():
        raise OutputError(f"cannot write {path}:{leads} the folder {folder} does not exist; create it first")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"cannot write {path}: no permission for the folder {folder}; choose another place")
    if _is_kept_by_its_folder(real):
        raise OutputError(f"cannot write {path}: it is somebody else's; choose another name")
    return real


def check_writable(path: Path) -> None:
    """Refuse a file that cannot be written, before any work is done.

    Raises
    ------
    OutputError
        As from `check_place`; or there is something else than a regular file, or one that may not be written.
    """
    real = check_place(path)
    if not os.path.lexists(real):
        return
    if real.is_dir():
        raise OutputError(f"cannot write {path}: it is a folder; name a file")
    if not real.is_file():
        raise OutputError(f"cannot write {path}: it is a device or a pipe; name a regular file")
    if not os.access(real, os.W_OK):
        raise OutputError(f"cannot write {path}: no permission; choose another place")


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Have ``write`` make a hidden file beside ``path``, then rename it; nothing is left behind if it fails.

    Where ``path`` is a link, what it leads to is written.

    Raises
    ------
    OutputError
        The file could not be written.
    """
    check_writable(path)
    real = real_path(path)
    partial = hidden_path(real, PARTIAL, real.suffix)
    try:
        partial.touch(exist_ok=False)
        with held(partial):
            write(partial)
        partial.replace(real)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error}") from error
    finally:
        uninterrupted(lambda: partial.unlink(missing_ok=True))


@contextlib.contextmanager
def whole_folder(out: Path, replacing: Contents | None = None) -> Iterator[Path]:
    """A hidden folder beside ``out`` that gets its name if the block ends well, and vanishes if not.

    Whatever happens, Ctrl-C included, there is either what was there or the whole new folder. Where ``out`` is a link, it stays
    one, and what it leads to is meant.

    Parameters
    ----------
    out
        The folder to make.
    replacing
        What is at ``out``, and may be replaced: from `read_contents`. None replaces nothing.

    Raises
    ------
    OutputError
        A folder cannot be made or renamed, or the block failed to write; or at the end there is something at ``out`` that is not
        exactly what may be replaced. It is left alone.
    """
    real = check_place(out)
    folder = hidden_path(real)
    try:
        folder.mkdir()
        with held(folder):
            yield folder
            uninterrupted(lambda: _put(folder, real, replacing))
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(f"cannot write {out}: {error}; nothing was changed") from error
    finally:
        uninterrupted(lambda: shutil.rmtree(folder, ignore_errors=True))


def _put(folder: Path, out: Path, replacing: Contents | None) -> None:
    """Give ``folder`` the name ``out``; what had it is ``folder`` afterwards."""
    if replacing is None or not os.path.lexists(out):
        _take(folder, out)
        return
    _check_unchanged(out, out, replacing)
    aside = Path(f"{str(folder).removesuffix(PARTIAL)}{REPLACED}")
    with held(out):
        # First: under a name of this kind, whoever cleans up after a kill looks at what it is before it is removed.
        folder.rename(aside)
        swapped = False
        try:
            swapped = exchange(aside, out)
            if swapped:
                _check_unchanged(out, aside, replacing)  # under a hidden name nobody puts anything into it any more
        except BaseException:
            if swapped:
                exchange(aside, out)
            aside.rename(folder)
            raise
        if swapped:
            _discard(aside, folder)
        else:
            aside.rename(folder)
            _put_in_two_steps(folder, out, aside, replacing)


def _put_in_two_steps(folder: Path, out: Path, aside: Path, replacing: Contents) -> None:
    """The same where names cannot be swapped: for a moment nothing is at ``out``."""
    out.rename(aside)
    try:
        _check_unchanged(out, aside, replacing)
        _take(folder, out)
    except BaseException as error:
        try:
            rename_new(aside, out)
        except OSError:
            raise OutputError(f"cannot replace {out}: {error}; what was there lies in {aside}") from error
        raise
    _discard(aside, folder)


def _discard(aside: Path, folder: Path) -> None:
    """Leave what was replaced to be removed; half of it is no bundle any more, and must not have the name of one."""
    try:
        aside.rename(folder)
    except OSError:
        shutil.rmtree(aside, ignore_errors=True)


def _take(folder: Path, out: Path) -> None:
    """Give ``folder`` a name that nothing has."""
    try:
        rename_new(folder, out)
    except FileExistsError as error:
        raise OutputError(
            f"cannot write {out}: somebody else made it meanwhile; it is left alone, choose another name"
        ) from error


def _check_unchanged(out: Path, folder: Path, expected: Contents) -> None:
    """Refuse to replace ``out``, now at ``folder``, if it is not what it was."""
    if not folder.is_dir() or folder.is_symlink():
        raise OutputError(f"cannot replace {out}: it is no folder any more; nothing was changed")
    found = read_contents(folder)
    if found != expected:
        name = min(name for name, *_ in found.entries ^ expected.entries)
        raise OutputError(
            f"cannot replace {out}: {name} in it was changed meanwhile; nothing was changed, run it again"
        )


def _is_kept_by_its_folder(path: Path) -> bool:
    """Whether what has the name is another user's, in a folder such as /tmp where everybody can rename what is theirs alone."""
    if not hasattr(os, "geteuid") or os.geteuid() == 0 or not os.path.lexists(path):
        return False
    folder = path.parent.stat()
    return bool(folder.st_mode & stat.S_ISVTX) and os.geteuid() not in (folder.st_uid, path.lstat().st_uid)

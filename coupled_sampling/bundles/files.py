"""Writing results: whole or not at all, and refused before the work rather than after it."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from coupled_sampling.errors import OutputError

__all__ = ["check_writable", "whole_folder", "write_whole"]


def check_writable(path: Path) -> None:
    """Refuse a ``path`` that cannot be written, before any work is done.

    Raises
    ------
    OutputError
        Its folder does not exist or is not writable, or it is a folder itself.
    """
    folder = path.parent
    try:
        exists = path.exists()
        if not folder.is_dir():
            raise OutputError(f"cannot write {path}: the folder {folder} does not exist; create it first")
        if path.is_dir():
            raise OutputError(f"cannot write {path}: it is a folder; name a file")
        if exists and not path.is_file():
            raise OutputError(f"cannot write {path}: it is a device or a pipe; name a regular file")
        path.lstat()
    except FileNotFoundError:
        pass
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error}; choose another name") from error
    if not os.access(folder, os.W_OK) or (exists and not os.access(path, os.W_OK)):
        raise OutputError(f"cannot write {path}: no permission; choose another place")


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Have ``write`` make a temporary file beside ``path``, then rename it; nothing is left behind if it fails.

    Raises
    ------
    OutputError
        The file could not be written.
    """
    check_writable(path)
    path = path.resolve()  # what a link points to is written, not the link
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=f".partial{path.suffix}")
        os.close(handle)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error}") from error
    partial = Path(name)
    try:
        write(partial)
        partial.chmod(0o666 & ~_umask())  # mkstemp made it for its owner alone
        partial.replace(path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error}") from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            partial.unlink()


@contextlib.contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A hidden folder beside ``out`` that takes its place if the block ends well, and vanishes if not.

    What is at ``out`` is replaced; whether it may be is for the caller to know. Whatever happens, Ctrl-C included, there is either
    the old folder or the whole new one.

    Raises
    ------
    OutputError
        A folder cannot be made or renamed, or the block failed to write.
    """
    out = out.absolute()
    try:
        folder = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}-", suffix=".partial"))
    except OSError as error:
        raise OutputError(f"cannot write {out}: {error.strerror}; choose a folder that exists and is yours") from error
    aside = folder.with_suffix(".replaced")
    try:
        yield folder
        folder.chmod(0o777 & ~_umask())
        if out.exists():
            out.rename(aside)
        folder.rename(out)
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(f"cannot write {out}: {error}; nothing was changed") from error
    finally:
        if aside.exists() and not out.exists():  # interrupted between the two renames
            aside.rename(out)
        for leftover in (folder, aside):
            shutil.rmtree(leftover, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)  # setting it is the only way to ask
    os.umask(mask)
    return mask

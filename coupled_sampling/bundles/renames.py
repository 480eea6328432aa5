"""Renames that lose nothing: one that never replaces what has the name, and one by which two folders swap their names.

POSIX's own rename replaces in silence, and so cannot give a name to work that took an hour, in which somebody else may have taken
it. Linux has a call that fails instead. Elsewhere an empty folder is made under the name, which fails if there is anything, and is
then replaced: a folder can only replace an empty one, so whatever somebody puts into it meanwhile is safe, too.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import sys
from pathlib import Path

__all__ = ["exchange", "rename_new"]

_AT_FDCWD = -100
_NOREPLACE = 1
_EXCHANGE = 2
_UNKNOWN = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}
"""What a kernel or a file system says that does not know the call, such as NFS."""


def rename_new(folder: Path, name: Path) -> None:
    """Rename ``folder`` to ``name``, which nothing has.

    Raises
    ------
    FileExistsError
        Something has the name. It is as it was, and so is ``folder``.
    OSError
        It cannot be renamed.
    """
    if _renameat2(folder, name, _NOREPLACE):
        return
    if sys.platform == "win32":
        folder.rename(name)  # never replaces there
        return
    name.mkdir()  # the claim: of several processes one succeeds
    try:
        folder.rename(name)
    except BaseException as error:
        with contextlib.suppress(OSError):
            name.rmdir()
        if isinstance(error, OSError) and error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(name)) from error
        raise


def exchange(one: Path, other: Path) -> bool:
    """Swap the names of two folders, so that there is no moment in which one of them is missing; False where that is unknown.

    Raises
    ------
    OSError
        They cannot be renamed.
    """
    return _renameat2(one, other, _EXCHANGE)


def _renameat2(old: Path, new: Path, flags: int) -> bool:
    """Linux's rename with ``flags``; False where it is not known."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        call = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):  # a C library without it
        return False
    if call(_AT_FDCWD, os.fsencode(old), _AT_FDCWD, os.fsencode(new), flags) == 0:
        return True
    code = ctypes.get_errno()
    if code in _UNKNOWN:
        return False
    raise OSError(code, os.strerror(code), str(new))

"""Hidden names: where results lie until they are whole, and what a run that was killed leaves there.

A result called ``out`` is made as ``.out-<token>.coupled-sampling.partial`` in the same folder. A bundle that is replaced is
``.out-<token>.coupled-sampling.replaced`` for a moment. A run holds what it makes by a lock that ends with its process, whatever
ends that. So what has such a name and is held by nobody was left by a run that was killed: by SIGKILL, or with the machine.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import sys
import time
from collections.abc import Iterator
from pathlib import Path

if sys.platform != "win32":
    import fcntl

__all__ = ["PARTIAL", "REPLACED", "find_leftovers", "held", "held_alone", "hidden_path", "is_held"]

PARTIAL, REPLACED = "coupled-sampling.partial", "coupled-sampling.replaced"
"""What names end with, before the result's own ending if it is a file."""

_TOKEN = 8
"""Random bytes of a name: nobody has the same."""
_LONGEST = 120
"""Bytes of a result's name that a hidden one can take over; file systems end at 255."""
_LONG_AGO = 24 * 3600.0
"""Seconds after which something is left, where there are no locks to ask."""


def hidden_path(path: Path, kind: str = PARTIAL, suffix: str = "") -> Path:
    """A new hidden name beside ``path``, with an ending where what writes the file goes by it."""
    return path.with_name(f"{_beginning(path)}{secrets.token_hex(_TOKEN)}.{kind}{suffix}")


def find_leftovers(path: Path) -> tuple[Path, ...]:
    """What runs that were killed left while they made ``path``, of which links were followed; what has to be put back comes first.

    What a run that goes on holds is not among it.
    """
    form = re.compile(
        re.escape(_beginning(path)) + rf"[0-9a-f]{{{2 * _TOKEN}}}\.({re.escape(PARTIAL)}|{re.escape(REPLACED)})(\..*)?"
    )
    try:
        found = [one for one in path.parent.iterdir() if form.fullmatch(one.name) and not one.is_symlink()]
    except OSError:  # it is said elsewhere that nothing can be written there
        return ()
    return tuple(
        sorted((one for one in found if not is_held(one)), key=lambda one: (not one.match(f"*{REPLACED}"), one))
    )


@contextlib.contextmanager
def held(path: Path) -> Iterator[None]:
    """Hold a file or folder until the block ends, or the process does; where there are no locks, nothing happens."""
    handle = None
    if sys.platform != "win32":
        with contextlib.suppress(OSError):  # a file system without locks
            handle = os.open(path, os.O_RDONLY)
            fcntl.flock(handle, fcntl.LOCK_SH)
    try:
        yield
    finally:
        if handle is not None:
            os.close(handle)


@contextlib.contextmanager
def held_alone(path: Path) -> Iterator[bool]:
    """Hold a file until the block ends, or the process does; gives False where another run holds it. Without locks it is True."""
    handle, mine = None, True
    if sys.platform != "win32":
        try:
            handle = os.open(path, os.O_RDONLY)
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            mine = False
        except OSError:  # a file system without locks
            pass
    try:
        yield mine
    finally:
        if handle is not None:
            os.close(handle)


def is_held(path: Path) -> bool:
    """Whether a run that goes on holds ``path``; without locks, whether it was changed within a day."""
    if sys.platform != "win32":
        try:
            handle = os.open(path, os.O_RDONLY)
        except OSError:
            return True  # gone, or not ours to open
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return False
        except BlockingIOError:
            return True
        except OSError:
            pass
        finally:
            os.close(handle)
    try:
        return time.time() - path.stat().st_mtime < _LONG_AGO
    except OSError:
        return True


def _beginning(path: Path) -> str:
    name = os.fsencode(path.name)
    short = path.name if len(name) <= _LONGEST else hashlib.sha256(name).hexdigest()
    return f".{short}-"

"""What tests compile is compiled once per run, whichever of the run's processes asks first.

A build is found by what went into it: sources, compiler and options. `conftest` makes one folder for a run and names it in
the environment, so that pytest's workers, and a pytest that a test starts, find what another has built. Outside of pytest
each process has a folder of its own.
"""

import fcntl
import functools
import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

VARIABLE = "COUPLED_SAMPLING_TEST_BUILDS"
"""The environment variable that names the folder; `conftest` sets it."""


@functools.cache
def _own_folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="coupled-sampling-builds-")


def built(made_of: object, build: Callable[[Path], None]) -> Path:
    """The folder that ``build`` filled, in this process or another.

    Parameters
    ----------
    made_of
        All that the result depends on: two calls with the same ``repr`` share one build.
    build
        Fills the empty folder that it is given. If it raises, nothing is kept.
    """
    builds = Path(os.environ.get(VARIABLE) or _own_folder().name)
    folder = builds / hashlib.sha256(repr(made_of).encode()).hexdigest()
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # a second process waits for the first instead of compiling as well
        if not folder.is_dir():
            unfinished = Path(tempfile.mkdtemp(dir=builds))
            build(unfinished)
            unfinished.rename(folder)
    return folder

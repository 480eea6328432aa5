"""Models whose opening is told, for tests that have to find, or to disturb, the processes that have them open."""

import os
import time
from pathlib import Path

from coupled_sampling import Decoder, open_bundle
from coupled_sampling.errors import BundleError


def open_and_tell(folder, model):
    """Open ``model`` and leave a file in ``folder`` whose name is this process."""
    (Path(folder) / str(os.getpid())).touch()
    return open_bundle(model)


def open_here_only(process, model):
    """Open ``model`` in this process; in others there is none."""
    if os.getpid() != process:
        raise BundleError("no bundle in this process")
    return open_bundle(model)


def open_slowly(model):
    """Open ``model`` where every step of a decoder takes 30 ms more, in this process from now on: for processes of a test's own."""
    step = Decoder.step

    def slowly(self):
        time.sleep(0.03)
        return step(self)

    if step.__name__ != slowly.__name__:
        Decoder.step = slowly
    return open_bundle(model)

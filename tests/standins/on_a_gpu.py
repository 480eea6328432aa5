"""For tests that need a GPU: which absences skip them, and that nothing else does."""

import pytest

from coupled_sampling.backends.cuda.device import Device
from coupled_sampling.errors import CoupledSamplingError, MissingDependency


def gpu():
    """The first GPU; skips the test, with the reason, where there is none or no driver."""
    try:
        return Device()
    except CoupledSamplingError as error:
        pytest.skip(f"{type(error).__name__}: {error}")


def opened(open_):
    """What ``open_`` gives on a machine with a GPU. A missing package or an unsupported GPU skips the test; a failure fails it."""
    gpu()
    try:
        return open_()
    except MissingDependency as error:
        pytest.skip(f"{type(error).__name__}: {error}")

"""What goes to the device before a decision's kernels and what comes back after them: two host arrays, and running it all.

`PlainRoundTrip` does with any `Launcher`. A launcher that can do better has a method ``round_trip``, as `PinnedLauncher` has: from
the second time on, all of it is one CUDA graph.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.backends.cuda.kernels import Launcher

__all__ = ["PlainRoundTrip", "RoundTrip", "RoundTripLauncher", "Span", "round_trip"]


class Span(NamedTuple):
    """Device memory: its address and how many bytes of it are meant."""

    pointer: int
    size: int


class RoundTrip(Protocol):
    """Fill ``given``, `run`, read ``made``."""

    @property
    def given(self) -> NDArray[np.uint8]:
        """What is uploaded; always the same array."""
        ...

    @property
    def made(self) -> NDArray[np.uint8]:
        """What was downloaded; always the same array, written over by the next `run`."""
        ...

    def run(self) -> None:
        """Upload, launch, download, and wait for it."""
        ...


@runtime_checkable
class RoundTripLauncher(Protocol):
    """A launcher with round trips of its own."""

    def round_trip(self, given: Span, made: Span, launch: Callable[[], None]) -> RoundTrip:
        """An upload to ``given``, ``launch``, whose launches are the same every time, and a download from ``made``."""
        ...


class PlainRoundTrip:
    """A `RoundTrip` over any launcher."""

    def __init__(self, launcher: Launcher, given: Span, made: Span, launch: Callable[[], None]) -> None:
        self.given, self.made = np.zeros(given.size, np.uint8), np.zeros(made.size, np.uint8)
        self._launcher, self._there, self._back, self._launch = launcher, given.pointer, made.pointer, launch

    def run(self) -> None:
        """See `RoundTrip.run`."""
        self._launcher.upload(self._there, self.given)
        self._launch()
        self._launcher.download(self._back, self.made)


def round_trip(launcher: Launcher, given: Span, made: Span, launch: Callable[[], None]) -> RoundTrip:
    """The launcher's own round trip, or a plain one."""
    if isinstance(launcher, RoundTripLauncher):
        return launcher.round_trip(given, made, launch)
    return PlainRoundTrip(launcher, given, made, launch)

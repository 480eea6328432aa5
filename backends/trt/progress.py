"""A build's progress, and Ctrl-C in the middle of one.

TensorRT reports to an ``IProgressMonitor`` and stops when that says so. An exception must not pass through TensorRT's own
frames, so Ctrl-C is noted while a build runs and raised once it has ended.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["Progress", "interruptible", "progress_bar", "progress_monitor"]

Progress = Callable[[float, str], object]
"""``progress(done, phase)``: the part of the build that is done, in [0, 1] and never falling, and what is being done."""


def progress_monitor(module: Any, report: Progress, is_cancelled: Callable[[], bool]) -> Any:
    """An ``IProgressMonitor`` of ``module`` that reports to ``report``.

    Parameters
    ----------
    module
        ``tensorrt`` or ``tensorrt_rtx``.
    report
        Called at every step. An exception in it ends the reports, not the build.
    is_cancelled
        Whether the build should stop.
    """

    class Monitor(module.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            module.IProgressMonitor.__init__(self)
            self.phases: dict[str, tuple[str | None, int, int]] = {}
            self.reached = 0.0
            self.failed = False

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.phases[phase_name] = (parent_phase, num_steps, 0)
            self.tell(phase_name)

        def step_complete(self, phase_name: str, step: int) -> bool:
            if phase_name in self.phases:
                parent, steps, _ = self.phases[phase_name]
                self.phases[phase_name] = (parent, steps, step + 1)
            self.tell(phase_name)
            return not is_cancelled()

        def phase_finish(self, phase_name: str) -> None:
            self.phases.pop(phase_name, None)

        def done(self, phase: str | None, part: float = 0.0) -> float:
            """Part of the whole that is done when ``part`` of a step of ``phase`` is."""
            while phase in self.phases:
                parent, steps, complete = self.phases[phase]
                part, phase = min(1.0, (complete + part) / max(1, steps)), parent
            return part

        def tell(self, phase_name: str) -> None:
            self.reached = max(self.reached, self.done(phase_name))
            if not self.failed:
                try:
                    report(self.reached, phase_name)
                except Exception:
                    self.failed = True  # an exception must not reach TensorRT's frames

    return Monitor()


@contextlib.contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Note Ctrl-C during the block and raise it when the block ends; gives a function that says whether it came.

    Outside the main thread, where Ctrl-C never arrives, nothing is done.
    """
    came = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield came.is_set
        return
    before = signal.signal(signal.SIGINT, lambda *_: came.set())
    try:
        yield came.is_set
    finally:
        signal.signal(signal.SIGINT, before if before is not None else signal.SIG_DFL)
        if came.is_set():
            raise KeyboardInterrupt


@contextlib.contextmanager
def progress_bar(title: str) -> Iterator[Progress]:
    """A bar on the terminal from the first report on if ``tqdm`` is installed, else nothing.

    Examples
    --------
    >>> from coupled_sampling.backends.trt import progress_bar
    >>> with progress_bar("building") as progress:
    ...     progress(0.5, "choosing kernels")
    """
    try:
        from tqdm import tqdm
    except ImportError:
        yield lambda done, phase: None
        return
    bars: list[Any] = []

    def report(done: float, phase: str) -> None:
        if not bars:
            bars.append(tqdm(total=100, desc=title, unit="%", leave=False, disable=None))
        bars[0].set_postfix_str(phase[:40], refresh=False)
        bars[0].update(100 * done - bars[0].n)

    try:
        yield report
    finally:
        for bar in bars:
            bar.close()

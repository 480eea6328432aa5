"""How a command ends when it is told to: by Ctrl-C, by ``kill``, or when its terminal goes.

Each of these raises an exception where the command is, so that what it has half-written is removed on the way out. Only the command
line does that: a library has no business with signals.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

__all__ = ["Stopped", "stopped_by_signals"]

_GRACE = 5.0
"""Seconds in which one more signal changes nothing: removing what is half-written has begun. After that it counts again."""

_USUAL = {
    "SIGINT": signal.default_int_handler,
    "SIGTERM": signal.SIG_DFL,
    "SIGHUP": signal.SIG_DFL,  # Windows has none
}
"""What is replaced; a signal that is handled otherwise, or ignored as by ``nohup``, stays so."""


class Stopped(KeyboardInterrupt):
    """The command was told to stop by a signal; whatever knows what to do at Ctrl-C does it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number

    @property
    def exit_code(self) -> int:
        """What shells report of a program that a signal has ended."""
        return 128 + self.number

    def __str__(self) -> str:
        words = {"SIGINT": "interrupted", "SIGTERM": "terminated", "SIGHUP": "the terminal has gone"}
        return words[signal.Signals(self.number).name]


@contextlib.contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Raise `Stopped` in the block at the first signal that would end the program. Outside the main thread nothing is changed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: dict[int, Any] = {}
    last: float | None = None
    over = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal last
        now = time.monotonic()
        if last is not None and now - last < _GRACE:
            return
        if over:  # somebody else's program goes on after the command
            signal.signal(number, before[number])
            signal.raise_signal(number)
            return
        last = now
        raise Stopped(number)

    for name, usual in _USUAL.items():
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) == usual:
            before[number] = signal.signal(number, stop)
    try:
        yield
    finally:
        over = True
        if last is None:
            for number, handler in before.items():
                signal.signal(number, handler)

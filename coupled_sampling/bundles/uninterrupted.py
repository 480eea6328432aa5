"""The few moments of a write that Ctrl-C must not fall into.

Python raises `KeyboardInterrupt`, and whatever a signal handler raises, in the main thread only. So these moments run in a thread
of their own, and what comes meanwhile is raised once they are over. No signal handler is touched.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

__all__ = ["uninterrupted"]


def uninterrupted(work: Callable[[], object]) -> None:
    """Do ``work`` to its end, then raise what interrupted the caller meanwhile.

    Raises
    ------
    BaseException
        What interrupted, or else what ``work`` raised.
    """
    claim, done = threading.Lock(), threading.Event()
    failures: list[BaseException] = []
    interrupts: list[BaseException] = []

    def once() -> None:
        if claim.acquire(blocking=False):
            try:
                work()
            except BaseException as error:  # raised below, in the thread of the caller
                failures.append(error)
            finally:
                done.set()

    try:
        threading.Thread(target=once).start()
    except RuntimeError:  # no thread can be had, such as while Python ends
        once()
    except BaseException as interrupt:  # whether the thread has started or not, one of the two does it
        interrupts.append(interrupt)
        once()
    while not done.is_set():
        try:
            done.wait()
        except BaseException as interrupt:
            interrupts.append(interrupt)
    for error in (*interrupts, *failures):
        raise error

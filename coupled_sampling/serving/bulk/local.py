"""Many sequences in this process, by continuous batching: whoever is free takes the next prompt.

Several coroutines, more than the model has rows, pull from one iterator. So a row that ends is taken over by the next prompt at the
next pass, and no prompt waits for those that were read with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Generator, Iterator

from coupled_sampling.serving.bulk.making import Made, Maker
from coupled_sampling.serving.bulk.rows import Asked

__all__ = ["PER_ROW", "made_here"]

PER_ROW = 4
"""Sequences under way for each row of the model. Twice as many would do if every one were handed over within a pass."""

_MOST_KEPT = 256
"""Sequences that are made and not yet taken; then no more are begun."""


class _Loop:
    """An event loop in a thread, whose coroutines make what is asked for; signals interrupt who reads, never these."""

    def __init__(self, maker: Maker, asked: Iterator[Asked], at_once: int) -> None:
        self._maker, self._asked, self._at_once = maker, asked, at_once
        self.out: queue.SimpleQueue[Made | BaseException | None] = queue.SimpleQueue()
        self._ready = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._all: asyncio.Task[None] | None = None
        self._room: asyncio.Semaphore | None = None
        self._thread = threading.Thread(target=self._run, name="coupled-sampling bulk", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            asyncio.run(self._main())
            self.out.put(None)
        except asyncio.CancelledError:
            self.out.put(None)
        except BaseException as error:
            self.out.put(error)
        finally:
            self._ready.set()

    async def _main(self) -> None:
        self._loop, self._all = asyncio.get_running_loop(), asyncio.current_task()
        self._room = asyncio.Semaphore(_MOST_KEPT)
        self._ready.set()
        async with asyncio.TaskGroup() as group:
            for _ in range(self._at_once):
                group.create_task(self._work(self._room))

    async def _work(self, room: asyncio.Semaphore) -> None:
        for asked in self._asked:  # one iterator of all
            made = await self._maker.make(asked)
            await room.acquire()
            self.out.put(made)

    def taken(self) -> None:
        """One of what is made was taken."""
        if self._loop is not None and self._room is not None:
            with contextlib.suppress(RuntimeError):  # it has ended
                self._loop.call_soon_threadsafe(self._room.release)

    def stop(self) -> None:
        """Give up what is under way."""
        self._ready.wait()
        if self._loop is not None and self._all is not None:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._all.cancel)
        self._thread.join()


def made_here(maker: Maker, asked: Iterator[Asked], rows: int) -> Generator[Made, None, None]:
    """Make all of ``asked``; gives each as soon as it is done. Closing it gives up what is under way.

    Parameters
    ----------
    maker
        Makes them.
    asked
        What is wanted; it is read as there is room, in a thread.
    rows
        Rows of the model.

    Raises
    ------
    ServingError
        The model does not work any more.
    InvalidArgument, OSError
        As ``asked`` raises.
    """
    loop = _Loop(maker, asked, PER_ROW * rows)
    try:
        while True:
            found = loop.out.get()
            if found is None:
                return
            if isinstance(found, BaseException):
                raise _first(found)
            loop.taken()
            yield found
    finally:
        loop.stop()


def _first(error: BaseException) -> BaseException:
    """What went wrong first, of a group of errors."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error

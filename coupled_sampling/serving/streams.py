"""`CommitStream`: what a coroutine reads the commits of its request from."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, TypeVar

from coupled_sampling.decoding import Commit
from coupled_sampling.serving.errors import DeadlineExceeded

__all__ = ["CommitStream", "in_thread", "late"]

_T = TypeVar("_T")


async def in_thread(undo: Callable[[_T], object], work: Callable[..., _T], *arguments: Any) -> _T:
    """What ``work(*arguments)`` returns, called in a thread. It cannot be cancelled: if the caller is, it is undone."""
    working = asyncio.ensure_future(asyncio.to_thread(work, *arguments))
    try:
        return await asyncio.shield(working)
    except asyncio.CancelledError:
        working.add_done_callback(lambda done: undo(done.result()) if done.exception() is None else None)
        raise


def late() -> DeadlineExceeded:
    """What ends a request whose deadline has passed."""
    return DeadlineExceeded("the request took longer than it was given; ask for fewer tokens, or for more time")


class CommitStream:
    """The commits of one request, an asynchronous iterator and context manager: leaving it early frees the rows.

    Made by `coupled_sampling.serving.Engine.submit`. It ends with the last commit of the last sample, or raises what ended it.

    Examples
    --------
    >>> import asyncio, contextlib
    >>> from coupled_sampling import Decoder, Request
    >>> from coupled_sampling.serving import Engine
    >>> from coupled_sampling.testing import TableProvider, random_table
    >>> async def beginning(engine):
    ...     async with await engine.submit(Request([0], length=1000, seed=1)) as stream:
    ...         async for commit in stream:
    ...             return commit.reason  # leaving the block frees the row
    >>> decoder = Decoder(TableProvider(random_table(0, 4), 4, max_length=1001))
    >>> with Engine(lambda: contextlib.nullcontext(decoder)) as engine:
    ...     print(asyncio.run(beginning(engine)))
    None
    >>> engine.statistics.finished
    {'removed': 1}
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        samples: int,
        cancel: Callable[[CommitStream], None],
        deadline: float | None = None,
    ) -> None:
        self.loop = loop
        self._due = None if deadline is None else loop.time() + deadline
        """The engine ends what is late between its steps. This is for a step that takes too long, or never ends."""
        self.handles: Sequence[int] = ()
        """Of its samples, in order; what `Commit.handle` is."""
        self._open = samples
        self._cancel = cancel
        self._queue: asyncio.Queue[Commit | Exception] = asyncio.Queue()
        self._over = False

    def taken(self, handles: Sequence[int]) -> None:
        """The engine has queued it."""
        self.handles = handles

    def cancel(self) -> None:
        """Give it up: its rows are free at the next step, and no more commits come. From any thread, and more than once."""
        self._over = True
        self._cancel(self)

    @staticmethod
    def hand_over(loop: asyncio.AbstractEventLoop, parts: Sequence[tuple[CommitStream, Commit]]) -> None:
        """Put commits into their queues, which all belong to ``loop``. From the engine's thread."""

        def put() -> None:
            for stream, commit in parts:
                stream._queue.put_nowait(commit)

        with contextlib.suppress(RuntimeError):  # the loop was closed: nobody reads any more
            loop.call_soon_threadsafe(put)

    def end(self, error: Exception) -> None:
        """End it by ``error``. From the engine's thread."""
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(self._queue.put_nowait, error)

    def __aiter__(self) -> CommitStream:
        return self

    async def __anext__(self) -> Commit:
        if self._over or not self._open:
            raise StopAsyncIteration
        try:
            async with asyncio.timeout_at(self._due):
                found = await self._queue.get()
        except TimeoutError:
            self.cancel()
            found = late()
        if isinstance(found, Exception):
            self._over = True
            raise found
        if found.finished:
            self._open -= 1
        return found

    async def __aenter__(self) -> CommitStream:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._open and not self._over:
            self.cancel()

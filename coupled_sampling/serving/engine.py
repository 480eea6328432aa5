"""The engine: one thread that owns one `coupled_sampling.Decoder`, between coroutines that ask and a model that steps.

::

    engine = Engine(opened)                      # a context manager that gives a Decoder; entered by the engine's thread
    stream = await engine.submit(request)        # refused here, or taken
    async with stream:                           # leaving it early frees the row
        async for commit in stream: ...
    engine.close()                               # no more are taken, those under way finish

The event loop never waits for the model, and the model never waits for a reader: commits go into the stream's own queue, which a
request's length bounds. Which requests share a batch changes no token of any (`coupled_sampling.decoding`).

| what happens | what the stream gets |
|---|---|
| the request fails: its logits, its processor | a commit with the reason "error"; the others go on |
| its deadline passes | `DeadlineExceeded`, and its row is free |
| the model raises | nothing, the step is tried again; after `TRIES` of them `EngineFailed`, and the engine takes no more |
| the engine is closed, and it has not finished in time | `EngineStopped` |

It knows no network and no text: it is also for those who have a server of their own.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import TracebackType

from coupled_sampling.arguments import check_count, check_number, in_one_line
from coupled_sampling.decoding import Commit, Decoder, Request
from coupled_sampling.errors import InvalidArgument
from coupled_sampling.serving.errors import EngineFailed, EngineStopped, Overloaded
from coupled_sampling.serving.statistics import Counts, Statistics
from coupled_sampling.serving.streams import CommitStream, in_thread, late

__all__ = ["TRIES", "Engine", "Health"]

_LOG = logging.getLogger("coupled_sampling.serving")

TRIES = 3
"""How often a step is tried before the engine gives up. A decoder loses nothing where its model raises."""

_PAUSE = 0.05
"""Seconds before a step is tried again; twice as many the next time."""

_STALLED = 60.0
"""Seconds of one step after which the engine is called unhealthy. The first of a large model, which warms it up, may take some."""


@dataclass(frozen=True)
class Health:
    """Whether an engine works.

    Attributes
    ----------
    ready
        It takes requests.
    alive
        Its thread runs, and no step takes longer than a minute.
    why
        What is wrong, in words; None where nothing is.

    Examples
    --------
    >>> import contextlib
    >>> from coupled_sampling import Decoder
    >>> from coupled_sampling.serving import Engine
    >>> from coupled_sampling.testing import TableProvider, random_table
    >>> decoder = Decoder(TableProvider(random_table(0, 4), 4))
    >>> with Engine(lambda: contextlib.nullcontext(decoder)) as engine:
    ...     engine.health
    Health(ready=True, alive=True, why=None)
    >>> engine.health.why
    'the engine is closed'
    """

    ready: bool
    alive: bool
    why: str | None = None


class Engine:
    """A decoder in a thread of its own.

    Parameters
    ----------
    opened
        Called and entered by the engine's thread: a context manager that gives the `Decoder`, and closes its model at the end.
    most_waiting
        How many requests may wait for a row; more are refused with `Overloaded`.
    name
        Of the thread, and in messages.

    Examples
    --------
    >>> import asyncio, contextlib
    >>> from coupled_sampling import Decoder, Request
    >>> from coupled_sampling.serving import Engine
    >>> from coupled_sampling.testing import TableProvider, random_table
    >>> async def tokens(engine, seed):
    ...     async with await engine.submit(Request([0], length=9, seed=seed)) as stream:
    ...         return [int(token) for commit in [commit async for commit in stream] for token in commit.tokens]
    >>> async def both(engine):
    ...     return await asyncio.gather(tokens(engine, 1), tokens(engine, 2))
    >>> decoder = Decoder(TableProvider(random_table(0, 4), 4, batch_size=2), method="scd-match", window=4)
    >>> with Engine(lambda: contextlib.nullcontext(decoder)) as engine:
    ...     [len(made) for made in asyncio.run(both(engine))]
    [9, 9]
    """

    def __init__(
        self, opened: Callable[[], AbstractContextManager[Decoder]], *, most_waiting: int = 64, name: str = "engine"
    ) -> None:
        self._opened, self._most_waiting, self.name = opened, check_count("most_waiting", most_waiting, 0), name
        self._decoder: Decoder | None = None
        self._rows = 0
        self._streams: dict[int, CommitStream] = {}
        self._deadlines: list[tuple[float, int, int]] = []
        """When each is due, its first handle and how many it has: a stream that is over is not held until then."""
        self._wake = threading.Condition()
        """Guards what stands above; never held while the model runs."""
        self._ready = threading.Event()
        self._waiters: list[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = []
        """Of coroutines that wait for it."""
        self._ends: float | None = None
        self._failure: BaseException | None = None
        self._stepping: float | None = None
        self._counts = Counts()
        self._thread = threading.Thread(target=self._run, name=f"coupled-sampling {name}", daemon=True)
        self._thread.start()

    def __enter__(self) -> Engine:
        self.wait_until_ready()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close(drain=None if error is None else 0)

    def wait_until_ready(self) -> None:
        """Return once the model is open.

        Raises
        ------
        EngineFailed
            It could not be opened, or has failed since.
        """
        self._ready.wait()
        if self._failure is not None:
            what = f"the {self.name} has failed" if self._rows else f"the model of the {self.name} could not be opened"
            raise EngineFailed(f"{what}: {self._failure}") from self._failure

    async def ready(self) -> None:
        """What `wait_until_ready` does, for coroutines: no thread waits, however many of them do."""
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[None] = loop.create_future()
        with self._wake:
            if self._ready.is_set():
                waiter.set_result(None)
            else:
                self._waiters.append((loop, waiter))
        await waiter
        self.wait_until_ready()

    def _tell_ready(self) -> None:
        with self._wake:
            self._ready.set()
            waiters, self._waiters = self._waiters, []
        for loop, waiter in waiters:
            with contextlib.suppress(RuntimeError):  # the loop was closed
                loop.call_soon_threadsafe(_settle, waiter)

    async def submit(self, request: Request, *, deadline: float | None = None) -> CommitStream:
        """Queue ``request``; returns the stream of its commits.

        Parameters
        ----------
        request
            What to decode. Of several samples the commits come as they are made; their handles tell them apart.
        deadline
            Seconds from now within which it has to finish; None is no limit.

        Raises
        ------
        InvalidArgument
            It cannot be decoded, see `Decoder.check`.
        Overloaded
            As many wait as may.
        EngineStopped, EngineFailed
            The engine takes no more requests.
        """
        return await in_thread(CommitStream.cancel, self.put, asyncio.get_running_loop(), request, deadline)

    def put(self, loop: asyncio.AbstractEventLoop, request: Request, deadline: float | None = None) -> CommitStream:
        """What `submit` does, for a thread that has prepared a request: its stream is read in ``loop``."""
        if deadline is not None and check_number("deadline", deadline, "seconds") <= 0:
            raise InvalidArgument(f"deadline is {deadline}, expected seconds > 0, or None")
        stream = CommitStream(loop, request.samples, self._cancel, deadline)
        self._open_decoder()  # it waits, if the model is still opening
        with self._wake:
            decoder = self._open_decoder()
            self._refuse_more(decoder, request.samples)
            first = decoder.add(request)
            stream.taken(range(first, first + request.samples))
            self._streams.update(dict.fromkeys(stream.handles, stream))
            if deadline is not None:
                heapq.heappush(self._deadlines, (time.monotonic() + deadline, first, request.samples))
            self._wake.notify()
        return stream

    def check(self, request: Request) -> None:
        """Refuse what cannot be decoded, as `submit` does, and queue nothing.

        Raises
        ------
        InvalidArgument, EngineStopped, EngineFailed
            See `submit`.
        """
        self._open_decoder().check(request)

    def _open_decoder(self) -> Decoder:
        """The decoder, while requests are taken."""
        self.wait_until_ready()
        if self._ends is not None or self._decoder is None:
            raise EngineStopped(f"the {self.name} takes no more requests; ask another one")
        return self._decoder

    def _refuse_more(self, decoder: Decoder, samples: int) -> None:
        waiting = max(0, decoder.active + decoder.waiting + samples - self._rows)
        if waiting > self._most_waiting:
            raise Overloaded(
                f"the {self.name} has {decoder.active} sequences under way and {decoder.waiting} waiting, of at most "
                f"{self._most_waiting}; come back later",
                retry_after=self._counts.seconds_until_room(decoder.waiting, self._rows),
            )

    def _cancel(self, stream: CommitStream) -> None:
        """Take a stream's sequences away; rows are free at the next step."""
        with self._wake:
            self._take_away(stream)
            self._wake.notify()

    def _take_away(self, stream: CommitStream) -> None:
        for handle in stream.handles:
            if self._streams.pop(handle, None) is not None and self._decoder is not None:
                try:
                    self._decoder.remove(handle)
                except InvalidArgument:  # it finished in the step that is just being delivered
                    continue
                self._counts.removed()

    def close(self, *, drain: float | None = None) -> None:
        """Take no more requests, let those under way finish, and close the model.

        Parameters
        ----------
        drain
            Seconds to wait for requests under way; what is not done by then ends with `EngineStopped`. None waits for all of them,
            and 0 for none.
        """
        with self._wake:
            self._ends = min(self._ends or float("inf"), time.monotonic() + (float("inf") if drain is None else drain))
            self._wake.notify()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    @property
    def over(self) -> bool:
        """Whether it takes nothing any more, and never will again: it has failed, or is closed."""
        return self._failure is not None or not self._thread.is_alive()

    @property
    def health(self) -> Health:
        """Whether it works."""
        began, failure = self._stepping, self._failure
        if failure is not None:
            return Health(False, False, f"the {self.name} has failed: {failure}")
        if not self._ready.is_set():
            return Health(False, True, f"the {self.name} opens its model")
        if not self._thread.is_alive():
            return Health(False, False, f"the {self.name} is closed")
        if began is not None and time.monotonic() - began > _STALLED:
            return Health(False, False, f"the {self.name} has been in one step for {time.monotonic() - began:.0f} s")
        return Health(self._ends is None, True, None if self._ends is None else f"the {self.name} is draining")

    @property
    def statistics(self) -> Statistics:
        """What it has done so far."""
        decoder = self._decoder
        active, waiting = (0, 0) if decoder is None else (decoder.active, decoder.waiting)
        return self._counts.statistics(active, waiting, self._rows)

    def _run(self) -> None:
        """The thread."""
        try:
            with self._opened() as decoder:
                self._decoder, self._rows = decoder, decoder.batch_size
                self._tell_ready()
                try:
                    while self._wait(decoder):
                        self._deliver(self._step(decoder))
                except BaseException as error:
                    self._failure = error
                finally:
                    self._end_all()  # before the model is closed, which may take its time
        except BaseException as error:
            self._failure = self._failure or error
        finally:
            self._decoder = None
            self._tell_ready()

    def _wait(self, decoder: Decoder) -> bool:
        """Wait until there is something to step; False at the end."""
        with self._wake:
            while True:
                self._expire()
                now, under_way = time.monotonic(), decoder.active + decoder.waiting
                if self._ends is not None and (not under_way or now >= self._ends):
                    return False
                if under_way:
                    return True
                # A deadline of what is not under way any more is dropped when it passes: nobody waits for it.
                self._wake.wait()

    def _step(self, decoder: Decoder) -> list[Commit]:
        for attempt in itertools.count(1):
            began = self._stepping = time.monotonic()
            try:
                # Wider windows of a method without drafts are for reading prompts.
                guesses = decoder.window - 1 if decoder.method.drafts else 0
                commits = decoder.step()
                self._counts.stepped(commits, time.monotonic() - began, guesses)
                return commits
            except Exception as error:
                if attempt == TRIES:
                    raise
                _LOG.warning("a step of the %s failed, and is tried again: %s", self.name, in_one_line(error))
                time.sleep(_PAUSE * 2**attempt)
            finally:
                self._stepping = None
        raise AssertionError

    def _deliver(self, commits: Iterable[Commit]) -> None:
        """Hand commits to their streams: one call into each event loop, however many there are."""
        with self._wake:
            found: dict[asyncio.AbstractEventLoop, list[tuple[CommitStream, Commit]]] = {}
            for commit in commits:
                stream = self._streams.get(commit.handle)
                if stream is not None:
                    found.setdefault(stream.loop, []).append((stream, commit))
                    if commit.finished:
                        del self._streams[commit.handle]
        for loop, parts in found.items():
            CommitStream.hand_over(loop, parts)

    def _expire(self) -> None:
        """End what is too late."""
        while self._deadlines and self._deadlines[0][0] <= time.monotonic():
            _, first, samples = heapq.heappop(self._deadlines)
            stream = next(filter(None, map(self._streams.get, range(first, first + samples))), None)
            if stream is not None:
                self._take_away(stream)
                stream.end(late())

    def _end_all(self) -> None:
        """End what is left, with the reason."""
        with self._wake:
            self._ends = self._ends or time.monotonic()
            for stream in set(self._streams.values()):
                error: Exception = EngineStopped(
                    f"the {self.name} was closed before the request was done; send it again"
                )
                if self._failure is not None:
                    error = EngineFailed(f"the {self.name} has failed: {self._failure}")
                    error.__cause__ = self._failure
                stream.end(error)
            self._streams.clear()


def _settle(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():  # as it is where whoever waited was cancelled
        waiter.set_result(None)

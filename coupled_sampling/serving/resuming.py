"""`Resuming`: jobs that go on elsewhere when the place where they are done is gone, in one unbroken stream.

It wraps a `coupled_sampling.serving.lanes.Source` that has several places, any of which may die, such as the replicas of a
deployment. What it does when a place is gone (`EngineStopped`, `EngineFailed`):

| the job | what happens |
|---|---|
| has had no piece | it is submitted again |
| has begun | it is submitted again with the tokens it has, as `Job.resumed`, and its stream goes on with the next token |
| has moved as often as it may | `EngineFailed` |

For methods whose tokens are ``ar``'s (``scd-match``, the default) the stream is the one that the job has without an interruption.
For the others it keeps to the model's law, and its later tokens differ.

The deadline counts from the first submission, and holds here, too: a place that answers nothing any more ends nothing. A refusal
of a job that was never taken is passed on at once, also `Overloaded`: the client is told, and comes back. A job that was taken
and finds no room where it goes on waits and tries again.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from types import TracebackType

from coupled_sampling.serving.engine import Health
from coupled_sampling.serving.errors import DeadlineExceeded, EngineFailed, EngineStopped, Overloaded
from coupled_sampling.serving.jobs import Job, Piece
from coupled_sampling.serving.lanes import Pieces, Source
from coupled_sampling.serving.statistics import Statistics
from coupled_sampling.serving.streams import late

__all__ = ["PAUSES", "Resuming"]

PAUSES = (0.0, 0.5, 2.0)
"""Seconds before each move of a job: the first is at once, as most often a single replica has died, and others are there."""


class Resuming:
    """A source whose jobs survive the places where they are done.

    Parameters
    ----------
    source
        Where jobs are done. Each ``submit`` may go to another place.
    pauses
        Seconds before each move of a job; it moves as often as there are pauses.

    Examples
    --------
    >>> import asyncio
    >>> from coupled_sampling import open_bundle
    >>> from coupled_sampling.serving.jobs import Job
    >>> from coupled_sampling.serving.lanes import Lanes, LaneSettings
    >>> from coupled_sampling.serving.resuming import Resuming
    >>> async def draw(source):
    ...     async with await source.submit(Job((257,), seed=1)) as pieces:
    ...         return sum([len(piece.tokens) async for piece in pieces])
    >>> with Lanes(lambda: open_bundle("fashion"), LaneSettings(rows=1)) as lanes:
    ...     asyncio.run(draw(Resuming(lanes)))
    196
    """

    def __init__(self, source: Source, *, pauses: Sequence[float] = PAUSES) -> None:
        self._source, self._pauses = source, tuple(pauses)

    async def submit(self, job: Job) -> Pieces:
        """See `coupled_sampling.serving.lanes.Source.submit`."""
        pieces = _UnbrokenPieces(self._source, job, self._pauses)
        await pieces.begin()
        return pieces

    async def health(self) -> Health:
        """See `coupled_sampling.serving.lanes.Source.health`."""
        return await self._source.health()

    async def statistics(self) -> Mapping[str, Statistics]:
        """See `coupled_sampling.serving.lanes.Source.statistics`. The two parts of a job that moved count as two sequences."""
        return await self._source.statistics()


class _UnbrokenPieces:
    """The pieces of a job, wherever they come from."""

    def __init__(self, source: Source, job: Job, pauses: Sequence[float]) -> None:
        self._source, self._job, self._pauses = source, job, iter(pauses)
        self._ends = None if job.deadline is None else time.monotonic() + job.deadline
        self._tokens = list(job.generated)
        self._before: list[int] = []
        """Committed tokens of each pass in the places that are gone."""
        self._here: list[int] = []
        """Of those in the present one."""
        self._part = contextlib.AsyncExitStack()
        self._reading: AsyncIterator[Piece] | None = None
        self._over = False

    async def begin(self) -> None:
        """Submit the job somewhere."""
        try:
            await self._submit()
        except (EngineStopped, EngineFailed) as error:
            await self._move(error)

    async def _submit(self) -> None:
        async with self._in_time():
            pieces = await self._source.submit(self._rest())
            await self._part.enter_async_context(pieces)
        self._reading = aiter(pieces)

    async def _move(self, error: Exception) -> None:
        """Submit what is left of the job, after ``error`` ended its present part."""
        await self._leave()
        self._before += self._here
        self._here = []
        for pause in self._pauses:
            async with self._in_time():
                await asyncio.sleep(pause)
            try:
                return await self._submit()
            except (EngineStopped, EngineFailed) as again:
                error = again
            except Overloaded as full:
                if self._reading is None:  # nobody has taken it yet: the client can wait as well as this can
                    raise
                error = full
        self._over = True
        raise EngineFailed(f"nobody could go on with the request: {error}") from error

    def _rest(self) -> Job:
        """What is left of the job."""
        left = None if self._ends is None else self._ends - time.monotonic()
        if left is not None and left <= 0:
            raise self._late()
        return replace(self._job, generated=tuple(self._tokens), deadline=left)

    @contextlib.asynccontextmanager
    async def _in_time(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(
                None if self._ends is None else max(0.0, self._ends - time.monotonic())
            ) as limit:
                yield
        except TimeoutError:
            if not limit.expired():
                raise
            raise self._late() from None

    def _late(self) -> DeadlineExceeded:
        self._over = True
        return late()

    def __aiter__(self) -> _UnbrokenPieces:
        return self

    async def __anext__(self) -> Piece:
        while not self._over:
            assert self._reading is not None
            try:
                async with self._in_time():
                    piece = await anext(self._reading)
            except StopAsyncIteration:
                await self._move(EngineStopped("the stream ended before the request did"))
            except (EngineStopped, EngineFailed) as error:
                await self._move(error)
            else:
                return self._whole(piece)
        raise StopAsyncIteration

    def _whole(self, piece: Piece) -> Piece:
        """``piece`` as one of the whole job."""
        self._tokens += piece.tokens
        self._here.append(len(piece.tokens))
        if piece.reason is None:
            return piece
        self._over = True
        return piece._replace(committed_per_pass=(*self._before, *piece.committed_per_pass))

    async def __aenter__(self) -> _UnbrokenPieces:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._over = True
        await self._leave()

    async def _leave(self) -> None:
        """Give the present part up, so that its row is free if its place still is there."""
        part, self._part = self._part, contextlib.AsyncExitStack()
        with contextlib.suppress(EngineStopped, EngineFailed):
            await part.aclose()

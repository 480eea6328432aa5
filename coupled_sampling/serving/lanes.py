"""`Lanes`: the engines of one model, one for each way to decode it.

A decoder has one method, one window and one kind of step. So requests that differ in these go to different engines, each with the
model open: a lane. A lane opens when the first request asks for it. When as many are open as may be, one that is idle makes room;
if none is, the request is refused with `Overloaded`. Temperatures, seeds, lengths and stops share a lane.

Where steps are decided in the model's own graph, requests with top-k, top-p or min-p, with processors, grammars, log-probabilities
or guidance go to another lane, of the library's own steps, which they share; by the step "host" all share one. Which lane a request
goes to depends on the request alone, so that its tokens do, too.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol

from coupled_sampling.backends import Place, open_model
from coupled_sampling.bundles.opening import Bundle
from coupled_sampling.bundles.settings import DecodingSettings
from coupled_sampling.decoding import Decoder, Request
from coupled_sampling.errors import BundleError
from coupled_sampling.serving.engine import Engine, Health
from coupled_sampling.serving.errors import DeadlineExceeded, EngineFailed, EngineStopped, Overloaded
from coupled_sampling.serving.jobs import Job, Piece
from coupled_sampling.serving.statistics import Statistics
from coupled_sampling.serving.streams import CommitStream, in_thread
from coupled_sampling.serving.ways import Way, job_settings

__all__ = ["LaneSettings", "Lanes", "Pieces", "Source"]

_PAUSE = 5.0
"""Seconds after a failure in which a lane is not opened anew."""

_LEAST = 1e-3
"""Seconds that a job has left when it is put into an engine, at least: there, too, they have to be more than none."""


class Pieces(Protocol):
    """The pieces of one job: an asynchronous iterator and context manager; leaving it early frees its row."""

    def __aiter__(self) -> AsyncIterator[Piece]: ...

    async def __aenter__(self) -> Pieces: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...


class Source(Protocol):
    """Where jobs are done: here, by `Lanes`, or on other machines, by `coupled_sampling.serving.deployment`."""

    async def submit(self, job: Job) -> Pieces:
        """Begin ``job``.

        Raises
        ------
        InvalidArgument, MissingDependency
            It cannot be done.
        ServingError
            It cannot be done now.
        """
        ...

    async def health(self) -> Health:
        """Whether jobs are taken."""
        ...

    async def statistics(self) -> Mapping[str, Statistics]:
        """What was done, by method."""
        ...


@dataclass(frozen=True)
class LaneSettings:
    """How a model is served.

    Parameters
    ----------
    place
        Where it runs.
    rows
        Sequences decoded together in a lane.
    most_waiting
        Requests that may wait for a row of a lane.
    step
        Where steps are decided, see `coupled_sampling.backends.open_model`.
    lanes
        Most lanes open at once: each has the model in memory.
    defaults
        How requests are decoded that do not say: names and values of `coupled_sampling.bundles.Bundle.settings`. The method is
        ``scd-match`` if nothing else is said: its tokens depend on no window, and it goes on exactly after an interruption.

    Examples
    --------
    >>> from coupled_sampling.serving import LaneSettings
    >>> LaneSettings(rows=16, defaults={"window": 24}).defaults
    {'method': 'scd-match', 'window': 24}
    """

    place: Place = field(default_factory=Place)
    rows: int = 8
    most_waiting: int = 64
    step: str = "auto"
    lanes: int = 2
    defaults: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "defaults", {"method": "scd-match", **self.defaults})


class _CommitPieces:
    """A stream's commits as pieces."""

    def __init__(self, stream: CommitStream) -> None:
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[Piece]:
        async for commit in self._stream:
            yield Piece.of(commit)

    async def __aenter__(self) -> _CommitPieces:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._stream.__aexit__(kind, error, traceback)


class Lanes:
    """A model's engines in this process.

    Parameters
    ----------
    opened
        Opens the bundle. It is asked again for every lane: a model whose files were replaced meanwhile is refused, not mixed with
        the one that is served.
    settings
        How it is served.

    Raises
    ------
    BundleError, InvalidArgument, MissingDependency, ProviderError
        It cannot be served so.

    Examples
    --------
    >>> import asyncio
    >>> from coupled_sampling import open_bundle
    >>> from coupled_sampling.serving import Job, Lanes, LaneSettings
    >>> async def draw(lanes):
    ...     async with await lanes.submit(Job((257,), seed=1)) as pieces:
    ...         return sum([len(piece.tokens) async for piece in pieces])
    >>> with Lanes(lambda: open_bundle("fashion"), LaneSettings(rows=1)) as lanes:
    ...     asyncio.run(draw(lanes))
    196
    """

    def __init__(self, opened: Callable[[], Bundle], settings: LaneSettings | None = None) -> None:
        self._opened, self.settings = opened, settings or LaneSettings()
        self.bundle = opened()
        self.tokenizer = self.bundle.tokenizer()
        self._lock = threading.Lock()
        self._lanes: dict[Way, Engine] = {}
        """Open ones, the one that was used last at the end."""
        self._coming: Counter[Engine] = Counter()
        """How many jobs are about to be put into each: it is not idle."""
        self._failures: dict[Way, tuple[float, EngineFailed]] = {}
        self._done: dict[str, Statistics] = {}
        """By method, of lanes that were closed."""
        self._retiring: dict[threading.Thread, tuple[Way, Engine]] = {}
        """Lanes that made room, while they close."""
        self._closed = False
        decoding = self.bundle.settings(**self.settings.defaults)
        self._usual = Way.of(decoding, self.settings.step, on_host=decoding.guided or decoding.sampling.warps)
        self._usual.check(self.bundle, self.settings.place, self.settings.rows, decoding)
        self._arrived(self._lane(self._usual, decoding))

    def __enter__(self) -> Lanes:
        self.wait_until_ready()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close(drain=None if error is None else 0)

    def wait_until_ready(self) -> None:
        """Return once the lane of the defaults is open.

        Raises
        ------
        EngineFailed
            It could not be opened.
        """
        for engine in list(self._lanes.values()):
            engine.wait_until_ready()

    def decoding(self, job: Job) -> DecodingSettings:
        """How ``job`` is decoded.

        Raises
        ------
        InvalidArgument
            It cannot be.
        """
        return job_settings(self.bundle, self.settings.defaults, job)

    async def submit(self, job: Job) -> Pieces:
        """See `Source.submit`. A job's deadline counts from here, also while a model opens for it."""
        loop = asyncio.get_running_loop()
        ends = None if job.deadline is None else loop.time() + job.deadline
        try:
            async with asyncio.timeout_at(ends) as limit:
                way, engine, request = await in_thread(lambda made: self._arrived(made[1]), self._prepare, job)
                try:
                    await engine.ready()
                    left = None if ends is None else max(ends - loop.time(), _LEAST)
                    return _CommitPieces(await in_thread(CommitStream.cancel, engine.put, loop, request, left))
                except EngineFailed as error:
                    self._drop(way, engine, error)
                    raise
                finally:
                    self._arrived(engine)
        except TimeoutError:
            if not limit.expired():
                raise
            raise DeadlineExceeded(
                "the request took longer than it was given before it was begun; ask for more time"
            ) from None

    def _prepare(self, job: Job) -> tuple[Way, Engine, Request]:
        """What to ask of which engine, which may just be opening. It may take long: a grammar compiles."""
        decoding = self.decoding(job)
        way = Way.of_job(job, decoding, self.settings.step)
        request = job.request(decoding, self.bundle, self.tokenizer)
        if way not in self._lanes:
            way.check(self.bundle, self.settings.place, self.settings.rows, decoding)
        return way, self._lane(way, decoding), request

    async def health(self) -> Health:
        """See `Source.health`: that of the usual lane. One that made room for another is well: it opens when a job asks for it."""
        with self._lock:
            engine, failed = self._lanes.get(self._usual), self._failures.get(self._usual)
        if engine is not None:
            return engine.health
        if self._closed or failed is not None:
            return Health(False, False, "the model is closed" if failed is None else str(failed[1]))
        return Health(True, True)

    async def statistics(self) -> Mapping[str, Statistics]:
        """See `Source.statistics`."""
        with self._lock:
            sums = dict(self._done)
            for way, engine in (*self._lanes.items(), *self._retiring.values()):
                sums[way.method] = engine.statistics.added_to(sums.get(way.method))
        return sums

    def close(self, *, drain: float | None = None) -> None:
        """Take no more jobs, let those under way finish for up to ``drain`` seconds, and close the model."""
        with self._lock:
            self._closed = True
            engines, retiring = list(self._lanes.values()), list(self._retiring)
        closing = [threading.Thread(target=engine.close, kwargs={"drain": drain}) for engine in engines]
        for thread in closing:
            thread.start()
        for thread in (*closing, *retiring):
            thread.join()

    def _lane(self, way: Way, decoding: DecodingSettings) -> Engine:
        """The engine of ``way``, or one that is just opening; it is not closed to make room before ``_coming`` is counted down."""
        with self._lock:
            if self._closed:
                raise EngineStopped("the model is closed; ask another server")
            engine = self._lanes.pop(way, None)
            if (
                engine is not None and engine.over
            ):  # not one that is stuck in a step: it still has its rows and its model
                self._failures[way] = (time.monotonic(), EngineFailed(str(engine.health.why)))
                self._forget(way, engine)
                engine = None
            if engine is None:
                failed = self._failures.get(way)
                if failed is not None and time.monotonic() - failed[0] < _PAUSE:
                    raise EngineFailed(str(failed[1])) from failed[1].__cause__  # each has a traceback of its own
                self._failures.pop(way, None)
                self._make_room(way)
                engine = Engine(
                    lambda: self._open(way, decoding), most_waiting=self.settings.most_waiting, name=f"engine ({way})"
                )
            self._lanes[way] = engine
            if self._coming[engine] >= self.settings.rows + self.settings.most_waiting:
                raise Overloaded(
                    f"as many requests as may come to the {engine.name} at once; come back later", retry_after=5.0
                )
            self._coming[engine] += 1
            return engine

    def _arrived(self, engine: Engine) -> None:
        """What was coming to ``engine`` is there, or will not come."""
        with self._lock:
            self._coming[engine] -= 1
            if not self._coming[engine]:
                del self._coming[engine]

    def _make_room(self, way: Way) -> None:
        """Close the idle lane that was not used for longest, if as many are open as may be."""
        if len(self._lanes) < self.settings.lanes:
            return
        for other, engine in self._lanes.items():
            found = engine.statistics
            if not found.running + found.waiting + self._coming[engine]:
                del self._lanes[other]
                self._retire(other, engine)
                return
        ways = "; ".join(map(str, self._lanes))
        raise Overloaded(
            f"{way} needs the model opened once more, and as many are open as may be, all busy ({ways}); come back later",
            retry_after=5.0,
        )

    def _retire(self, way: Way, engine: Engine) -> None:
        """Close a lane in a thread of its own: nobody waits for a model to close."""

        def close() -> None:
            engine.close()
            with self._lock:
                del self._retiring[thread]
                self._forget(way, engine)

        thread = threading.Thread(target=close, name=f"closing {engine.name}")
        self._retiring[thread] = way, engine
        thread.start()

    def _drop(self, way: Way, engine: Engine, error: EngineFailed) -> None:
        with self._lock:
            if self._lanes.get(way) is engine:
                del self._lanes[way]
                self._failures[way] = (time.monotonic(), error)
                self._forget(way, engine)

    def _forget(self, way: Way, engine: Engine) -> None:
        self._done[way.method] = engine.statistics.added_to(self._done.get(way.method)).ended()

    @contextlib.contextmanager
    def _open(self, way: Way, decoding: DecodingSettings) -> Iterator[Decoder]:
        """The decoder of a lane; its engine's thread enters this."""
        bundle = self._opened()
        if bundle.manifest != self.bundle.manifest:
            raise BundleError(
                f"the model in {bundle.folder} was replaced while it is served; start the server again to serve the new one"
            )
        with open_model(
            bundle,
            self.settings.place,
            self.settings.rows,
            method=way.method,
            step=way.step,
            guidance=decoding.scale,
            corrections=way.corrections,
            trees=decoding.trees,
        ) as model:
            yield Decoder(model, **decoding.decoder, reuse_prefixes=not way.guided)

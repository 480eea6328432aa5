"""`Service`: the models by name; and `Run`: the pieces of several jobs as one stream, measured."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from coupled_sampling.arguments import check_count, check_number
from coupled_sampling.errors import InvalidArgument
from coupled_sampling.serving.errors import DeadlineExceeded, EngineStopped
from coupled_sampling.serving.http.errors import ApiError
from coupled_sampling.serving.http.guards import Traffic
from coupled_sampling.serving.jobs import Job, Piece
from coupled_sampling.serving.served import ServedModel

__all__ = ["HttpSettings", "Run", "Service", "Watch"]


@dataclass(frozen=True)
class HttpSettings:
    """What the application allows.

    Parameters
    ----------
    most_body, body_seconds
        Bytes of a request, and seconds in which they have to arrive.
    most_choices
        Sequences of one request: prompts times ``n``.
    deadline
        Seconds within which a request has to be done; a client may ask for fewer. None is no limit.
    keys
        API keys, any of which opens; none asks for no key.

    Raises
    ------
    InvalidArgument
        A value cannot work.

    Examples
    --------
    >>> from coupled_sampling.serving.http import HttpSettings
    >>> HttpSettings(deadline=30).most_body
    1048576
    """

    most_body: int = 1 << 20
    body_seconds: float = 30.0
    most_choices: int = 32
    deadline: float | None = 600.0
    keys: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_count("most_body", self.most_body)
        check_count("most_choices", self.most_choices)
        for name, seconds in (("body_seconds", self.body_seconds), ("deadline", self.deadline)):
            if seconds is not None and check_number(name, seconds, "seconds") <= 0:
                raise InvalidArgument(f"{name} is {seconds}, expected seconds > 0")


class Watch(Protocol):
    """What is told of runs: `coupled_sampling.serving.http.metrics` counts them."""

    def refused(self, model: str, error: Exception) -> None:
        """A run was not begun."""
        ...

    def first(self, model: str, seconds: float) -> None:
        """The first tokens of a sequence came, so long after it was asked for."""
        ...

    def between(self, model: str, seconds: float) -> None:
        """More tokens came, so long after those before."""
        ...

    def ended(self, model: str, seconds: float, reason: str) -> None:
        """A sequence ended; ``reason`` is that of its last piece, "deadline" or "cancelled"."""
        ...


class Run:
    """Several jobs at once: an asynchronous iterator over ``(index, piece)``, and a context manager that frees their rows.

    Made by `Service.begin`. A job that fails while it is decoded ends with a piece whose ``error`` says why.
    """

    def __init__(self, model: ServedModel, watch: Watch) -> None:
        self._model, self._watch = model, watch
        self._began = time.perf_counter()
        self._stack = contextlib.AsyncExitStack()
        self._queue: asyncio.Queue[tuple[int, Piece] | Exception] = asyncio.Queue()
        self._open = 0

    async def begin(self, jobs: Sequence[Job]) -> None:
        """Submit all of them, or none."""
        await self._stack.__aenter__()
        try:
            for index, job in enumerate(jobs):
                pieces = await self._stack.enter_async_context(await self._model.source.submit(job))
                task = asyncio.create_task(self._read(index, aiter(pieces)))
                self._open += 1
                self._stack.push_async_callback(_cancelled, task)
        except BaseException as error:
            await self._stack.aclose()
            if isinstance(error, Exception):
                self._watch.refused(self._model.name, error)
            raise

    async def _read(self, index: int, pieces: AsyncIterator[Piece]) -> None:
        name, before, reason = self._model.name, self._began, "cancelled"
        try:
            async for piece in pieces:
                now = time.perf_counter()
                told = self._watch.first if before == self._began else self._watch.between
                told(name, now - before)
                before, reason = now, piece.reason or reason
                self._queue.put_nowait((index, piece))
            if reason == "cancelled":  # or whoever reads the run would wait for good
                raise EngineStopped("the stream of a sequence ended before the sequence did")
        except Exception as error:
            reason = "deadline" if isinstance(error, DeadlineExceeded) else "error"
            self._queue.put_nowait(error)
        finally:
            self._watch.ended(name, time.perf_counter() - self._began, reason)

    def __aiter__(self) -> Run:
        return self

    async def __anext__(self) -> tuple[int, Piece]:
        if not self._open:
            raise StopAsyncIteration
        found = await self._queue.get()
        if isinstance(found, Exception):
            raise found
        self._open -= found[1].reason is not None
        return found

    async def __aenter__(self) -> Run:
        return self

    async def __aexit__(self, *raised: object) -> None:
        await self._stack.aclose()


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


class Service:
    """What the routes of the application work on.

    Parameters
    ----------
    models
        The models; names are unique.
    settings
        What is allowed.
    watch
        Told of runs.

    Raises
    ------
    InvalidArgument
        Two models have one name.

    Examples
    --------
    A route of your own beside those of `make_app`:

    >>> from coupled_sampling import open_bundle
    >>> from coupled_sampling.serving import Lanes, LaneSettings, ServedModel
    >>> from coupled_sampling.serving.http import make_app
    >>> with Lanes(lambda: open_bundle("fashion"), LaneSettings(rows=1)) as lanes:
    ...     app = make_app([ServedModel("fashion", lanes.bundle, lanes)])
    ...     service = app.state.service
    ...     list(service.models), service.deadline(30), service.deadline(None)
    (['fashion'], 30, 600.0)
    """

    def __init__(self, models: Sequence[ServedModel], settings: HttpSettings, watch: Watch) -> None:
        self.models: Mapping[str, ServedModel] = {model.name: model for model in models}
        if len(self.models) < len(models):
            names = [model.name for model in models]
            twice = next(name for name in names if names.count(name) > 1)
            raise InvalidArgument(f"two models are called {twice!r}; give one of them another name")
        self.traffic = Traffic()
        self.settings, self.watch = settings, watch

    def find(self, name: str) -> ServedModel:
        """The model that a client calls so.

        Raises
        ------
        ApiError
            There is none.
        """
        found = self.models.get(name)
        if found is None:
            raise ApiError(
                404,
                f"there is no model {name[:100]!r} here, expected one of {', '.join(self.models)}",
                param="model",
                code="model_not_found",
            )
        return found

    def deadline(self, asked: float | None) -> float | None:
        """Seconds that a request has: what is asked for, and at most what is allowed."""
        allowed = self.settings.deadline
        return allowed if asked is None else asked if allowed is None else min(asked, allowed)

    def check_count(self, count: int) -> None:
        """Refuse a request that asks for ``count`` sequences if they are too many; before anything is made of it.

        Raises
        ------
        ApiError
            They are.
        """
        if count > self.settings.most_choices:
            raise ApiError(
                400, f"n: {count} sequences are asked for, expected at most {self.settings.most_choices}", param="n"
            )

    async def begin(self, model: ServedModel, jobs: Sequence[Job]) -> Run:
        """Begin ``jobs`` of one request, all or none; use it as a context manager.

        Raises
        ------
        ApiError
            They are too many.
        InvalidArgument, MissingDependency, ServingError
            One of them cannot be done, or not now.
        """
        self.check_count(len(jobs))
        run = Run(model, self.watch)
        await run.begin(jobs)
        return run

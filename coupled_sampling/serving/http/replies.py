"""Responses that end when their client goes: a whole one, or server-sent events.

A stream's first event is made before the response begins: what is refused, late or failed until then has a status of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Coroutine
from typing import Any, TypeVar

import anyio
from fastapi import Request
from fastapi.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from coupled_sampling.serving.http.errors import ApiError, as_api_error

__all__ = ["Event", "events", "unless_gone"]

_T = TypeVar("_T")

Event = tuple[str | None, Any]
"""Name of a server-sent event, or None, and what is its data: a text, or something that JSON can say."""

_BREAKS = {0x85: "\\u0085", 0x2028: "\\u2028", 0x2029: "\\u2029"}
"""Characters at which Python's ``splitlines``, and clients that use it, end a line, and JSON's other way to write them."""

_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
"""Neither a browser nor a proxy is to keep events back."""


async def unless_gone(request: Request, work: Coroutine[Any, Any, _T]) -> _T:
    """The outcome of ``work``, which is cancelled when the client goes.

    Raises
    ------
    ApiError
        The client has gone; nobody is left to read it.
    """
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            working.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await working
            raise ApiError(499, "the client has gone")
        return working.result()
    finally:
        watching.cancel()
        working.cancel()
        # The caller may be cancelled, too, as by a server that stops. What is worked on is closed next: it must be let go.
        with anyio.CancelScope(shield=True):
            await asyncio.wait({working})
        if not working.cancelled():
            working.exception()  # else asyncio complains that nobody has looked


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def events(request: Request, made: AsyncGenerator[Event, None]) -> Response:
    """Server-sent events; ``made`` is closed when it ends, or when the client goes.

    Raises
    ------
    Exception
        Whatever ``made`` raises before its first event.
    """
    try:
        first = await unless_gone(request, made.__anext__())
    except BaseException:
        with anyio.CancelScope(shield=True):
            await made.aclose()
        raise
    return _EventStream(first, made)


class _EventStream(StreamingResponse):
    """Starlette's leaves it to some servers to notice that a client has gone, and what makes the body open."""

    def __init__(self, first: Event, made: AsyncGenerator[Event, None]) -> None:
        self._made = made
        super().__init__(_written(first, made), media_type="text/event-stream", headers=_HEADERS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await unless_gone(Request(scope, receive), self.stream_response(send))
        except ApiError:
            pass
        finally:
            with anyio.CancelScope(shield=True):
                await self.body_iterator.aclose()  # type: ignore[attr-defined]  # it is a generator
                await self._made.aclose()  # by itself: where the body was not begun, nothing of it has run


async def _written(first: Event, made: AsyncGenerator[Event, None]) -> AsyncGenerator[str, None]:
    yield _line(first)
    try:
        async for event in made:
            yield _line(event)
    except Exception as error:  # too late for a status
        yield _line(("error", as_api_error(error).body))


def _line(event: Event) -> str:
    name, data = event
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    text = text.translate(_BREAKS)
    return ("" if name is None else f"event: {name}\n") + f"data: {text}\n\n"

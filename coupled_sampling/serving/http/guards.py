"""What stands before the routes, as plain ASGI: a name for each request, keys, a limit and a time for bodies, and draining.

From the outside in: `RequestIds` names a request and answers what nobody caught; `Draining` counts what is under way, and refuses
more while the server stops; `Keys` asks for an API key; `Bodies` reads a body, of a limited size and in a limited time, before a
route sees anything of it. What follows a body, such as that the client has gone, goes on to the route as it comes.

Keys and draining are about ``/v1``. ``/health`` and ``/metrics`` are open, as with vLLM: probes and scrapers have no keys.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import re
import uuid
from collections.abc import Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from coupled_sampling.serving.http.errors import ApiError, as_api_error

__all__ = ["Bodies", "Draining", "Keys", "RequestIds", "Traffic"]

_LOG = logging.getLogger("coupled_sampling.serving")

_NAME = re.compile(r"[\w.:-]{1,128}", re.ASCII)
"""A name that a client may give a request: it comes back in a header."""


def _is_api(scope: Scope) -> bool:
    """Whether a request is for the models, wherever the application is mounted: in doubt it is."""
    return "/v1" in scope["path"]


class Traffic:
    """How many requests are under way, and whether more are taken."""

    def __init__(self) -> None:
        self.under_way = 0
        self.draining = False
        self._idle = asyncio.Event()
        self._idle.set()

    def entered(self) -> None:
        """A request has begun."""
        self.under_way += 1
        self._idle.clear()

    def left(self) -> None:
        """One has ended."""
        self.under_way -= 1
        if not self.under_way:
            self._idle.set()

    async def idle(self) -> None:
        """Return once nothing is under way."""
        await self._idle.wait()


class RequestIds:
    """Has every response carry ``x-request-id``: the client's, or a new one. Answers an error that nobody caught, and logs it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI has it."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        given = Headers(scope=scope).get("x-request-id", "")
        name = given if _NAME.fullmatch(given) else uuid.uuid4().hex
        began = False

        async def named(message: Message) -> None:
            nonlocal began
            if message["type"] == "http.response.start":
                began = True
                MutableHeaders(scope=message)["x-request-id"] = name
            await send(message)

        try:
            await self._app(scope, receive, named)
        except Exception as error:
            _LOG.error("request %s failed", name)
            if began:  # too late for a status; the server cuts the connection
                raise
            await as_api_error(error).response(scope, receive, named)


class Draining:
    """Counts requests for the models, and refuses more while the server stops.

    Parameters
    ----------
    app
        What answers the others.
    traffic
        Where they are counted.
    """

    def __init__(self, app: ASGIApp, traffic: Traffic) -> None:
        self._app, self._traffic = app, traffic

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI has it."""
        if scope["type"] != "http" or not _is_api(scope):
            return await self._app(scope, receive, send)
        if self._traffic.draining:
            refusal = ApiError(
                503,
                "the server is stopping; send the request again, or ask another server",
                code="draining",
                retry_after=5,
            )
            response = refusal.response
            response.headers["Connection"] = "close"
            return await response(scope, receive, send)
        self._traffic.entered()
        try:
            await self._app(scope, receive, send)
        finally:
            self._traffic.left()


class Keys:
    """Asks for an API key: ``Authorization: Bearer KEY``.

    Parameters
    ----------
    app
        What answers those that have one.
    keys
        Any of which opens. All of them are compared, in a time that tells nothing of how much of one was right.
    """

    def __init__(self, app: ASGIApp, keys: Sequence[str]) -> None:
        self._app, self._keys = app, tuple(key.encode() for key in keys)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI has it."""
        if scope["type"] != "http" or not _is_api(scope) or self._opens(Headers(scope=scope).get("authorization", "")):
            return await self._app(scope, receive, send)
        refusal = ApiError(
            401, "this server wants an API key, expected the header Authorization: Bearer KEY", code="invalid_api_key"
        )
        response = refusal.response
        response.headers["WWW-Authenticate"] = "Bearer"
        await response(scope, receive, send)

    def _opens(self, authorization: str) -> bool:
        scheme, _, given = authorization.partition(" ")
        key = given.strip().encode("utf-8", "surrogateescape")
        found = [hmac.compare_digest(key, one) for one in self._keys]
        return scheme.lower() == "bearer" and any(found)


class Bodies:
    """Reads a body before anything else is done with a request.

    Parameters
    ----------
    app
        What gets it, in one message.
    most
        Bytes of one.
    seconds
        In which it has to arrive.
    """

    def __init__(self, app: ASGIApp, most: int, seconds: float) -> None:
        self._app, self._most, self._seconds = app, most, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI has it."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        try:
            async with asyncio.timeout(self._seconds):
                body = await self._read(Headers(scope=scope), receive)
        except TimeoutError:
            late = ApiError(
                408, f"the body did not arrive within {self._seconds:g} s; send it again", code="body_timeout"
            )
            return await _closing(late, scope, receive, send)
        except ApiError as error:
            return await _closing(error, scope, receive, send)
        if body is None:  # the client has gone; nobody is there to be answered
            return None
        first: Message | None = {"type": "http.request", "body": body, "more_body": False}

        async def replayed() -> Message:
            nonlocal first
            if first is not None:
                message, first = first, None
                return message
            return await receive()

        await self._app(scope, replayed, send)

    async def _read(self, headers: Headers, receive: Receive) -> bytes | None:
        length = headers.get("content-length", "")
        if (
            length.isdecimal() and int(length[:20]) > self._most
        ):  # 20 digits are beyond any limit, and int() has one of its own
            raise self._too_large()
        parts, size = [], 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self._most:
                raise self._too_large()
            if not message.get("more_body", False):
                return b"".join(parts)

    def _too_large(self) -> ApiError:
        return ApiError(413, f"the body is too large, expected at most {self._most} bytes", code="body_too_large")


async def _closing(error: ApiError, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer, and have no more of the body: what is left of it is not the next request."""
    response = error.response
    response.headers["Connection"] = "close"
    await response(scope, receive, send)

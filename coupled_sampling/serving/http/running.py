"""`run_server`: the application by uvicorn in this process, until a signal says that it is enough.

::

    the first signal    /health says 503 "draining", more requests get 503 and Retry-After, those under way go on
    nothing under way   the server ends
    `drain` has passed  what is left is ended with an error, and then the server
    a second signal     the process ends at once, as by any signal that nobody handles
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import signal
import socket
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn
from fastapi import FastAPI

from coupled_sampling.errors import InvalidArgument
from coupled_sampling.serving.http.guards import Traffic

__all__ = ["LOG_LEVELS", "bound_socket", "run_server", "url_of"]

LOG_LEVELS = ("critical", "error", "warning", "info", "debug")

_LOG = logging.getLogger("coupled_sampling.serving")

_WRITING = 5
"""Seconds in which the last responses are written; a client that does not read is not waited for longer."""

_KEEP_ALIVE = 75
"""Seconds that an idle connection stays open: longer than reverse proxies keep theirs, which else send into a closed one."""


def bound_socket(host: str, port: int) -> socket.socket:
    """A socket at that address, not yet listening: whether there is such an address is known before a model is opened.

    Raises
    ------
    InvalidArgument
        The address is in use, is none of this machine's, or may not be used.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError) as error:
        raise InvalidArgument(f"host is {host!r}, which is no address, expected one such as 127.0.0.1") from error
    family, kind, protocol, _, address = found[0]
    made = socket.socket(family, kind, protocol)
    try:
        if os.name == "posix":  # elsewhere it would allow two servers at one port
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
    except OSError as error:
        made.close()
        if error.errno == errno.EADDRINUSE:
            raise InvalidArgument(
                f"port is {port}, which is in use at {host}; choose another one, 0 for any"
            ) from error
        if error.errno == errno.EADDRNOTAVAIL:
            raise InvalidArgument(f"host is {host!r}, which is no address of this machine") from error
        raise InvalidArgument(f"cannot serve at {host}, port {port}: {error.strerror}; choose another port") from error
    return made


def url_of(bound: socket.socket) -> str:
    """Where a socket is found."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if bound.family == socket.AF_INET6 else f"http://{host}:{port}"


def run_server(
    app: FastAPI,
    bound: socket.socket,
    *,
    drain: float,
    log_level: str,
    started: Callable[[], object],
    give_up: Callable[[], object],
) -> bool:
    """Serve until a signal; returns whether everything that was under way then could finish.

    Parameters
    ----------
    app
        What `coupled_sampling.serving.http.make_app` made.
    bound
        Where; closed at the end.
    drain
        Seconds for what is under way.
    log_level
        One of `LOG_LEVELS`.
    started
        Called once requests are taken.
    give_up
        Called, in a thread, when ``drain`` has passed: it ends the models' engines, so that every request ends with an error.

    Raises
    ------
    InvalidArgument
        Another server has begun to listen at the address.
    """
    config = uvicorn.Config(
        app,
        ws="none",
        server_header=False,
        log_level=log_level,
        log_config=_logging(log_level),
        timeout_keep_alive=_KEEP_ALIVE,
        timeout_graceful_shutdown=_WRITING,
    )
    server, traffic = _Server(config, started), app.state.service.traffic
    with bound:
        try:
            bound.listen(config.backlog)
        except OSError as error:
            raise InvalidArgument(f"cannot serve at {url_of(bound)}: {error.strerror}; choose another port") from error
        return asyncio.run(_serve(server, bound, traffic, drain, give_up))


class _Server(uvicorn.Server):
    """Tells when it has started, and leaves signals alone."""

    def __init__(self, config: uvicorn.Config, started: Callable[[], object]) -> None:
        super().__init__(config)
        self._tell = started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._tell()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def _serve(
    server: uvicorn.Server, bound: socket.socket, traffic: Traffic, drain: float, give_up: Callable[[], object]
) -> bool:
    told = asyncio.Event()
    with _signals(asyncio.get_running_loop(), told):
        serving = asyncio.create_task(server.serve(sockets=[bound]))
        waiting = asyncio.create_task(told.wait())
        await asyncio.wait({serving, waiting}, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        finished = True
        if not serving.done():
            traffic.draining = True
            _LOG.info("stopping: %d requests under way, at most %g s", traffic.under_way, drain)
            finished = await _idle(traffic, drain)
            if not finished:
                _LOG.warning("%d requests did not finish in time, and end with an error", traffic.under_way)
                await asyncio.to_thread(give_up)
                await _idle(traffic, _WRITING)
        server.should_exit = True
        await serving
        return finished


async def _idle(traffic: Traffic, seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
            await traffic.idle()
    except TimeoutError:
        return not traffic.under_way
    return True


@contextlib.contextmanager
def _signals(loop: asyncio.AbstractEventLoop, told: asyncio.Event) -> Iterator[None]:
    """Set ``told`` at the first signal; the second one does what it does to any program."""
    before: dict[int, Any] = {}

    def stop(number: int, frame: object) -> None:
        for other in before:
            signal.signal(other, signal.SIG_DFL)
        loop.call_soon_threadsafe(told.set)

    for name in ("SIGINT", "SIGTERM", "SIGHUP"):  # Windows has no SIGHUP
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
            before[number] = signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _logging(level: str) -> dict[str, Any]:
    """One line an event on standard error, which is where a service's log is expected."""
    loggers = ("uvicorn", "uvicorn.access", "coupled_sampling.serving")
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"plain": {"format": "%(asctime)s %(levelname)s %(message)s"}},
        "handlers": {"standard error": {"class": "logging.StreamHandler", "formatter": "plain"}},
        "loggers": {
            name: {"handlers": ["standard error"], "level": level.upper(), "propagate": False} for name in loggers
        },
    }

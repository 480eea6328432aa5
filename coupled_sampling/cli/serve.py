"""``coupled-sampling serve``: models behind OpenAI's API, on this machine."""

from __future__ import annotations

import argparse
import contextlib
import ipaddress
import re
import socket
import stat
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from coupled_sampling.cli.arguments import METHOD_NAMES, add_foreign, add_where, window
from coupled_sampling.cli.models import Place, open_asked
from coupled_sampling.cli.output import say, tell
from coupled_sampling.errors import InvalidArgument, MissingDependency, SharedNoise

if TYPE_CHECKING:
    from coupled_sampling.serving import Lanes

__all__ = ["DESCRIPTION", "EXAMPLES", "SUMMARY", "add_arguments", "run"]

SUMMARY = "serve models to many clients over HTTP"
DESCRIPTION = """\
Serve models over HTTP, as OpenAI's API has it, so that its clients work unchanged.
Requests that come together are decoded together, and each gets the tokens it would
get alone. SIGTERM or Ctrl-C lets those under way finish."""
EXAMPLES = """\
  # fashion at http://127.0.0.1:8000
  coupled-sampling serve fashion
  # two models, one of them by a name of its own, on another port
  coupled-sampling serve fashion clothes=fashion --port 8080
  # sixteen sequences at once, for clients on other machines who have a key
  coupled-sampling serve fashion --rows 16 --host 0.0.0.0 --api-key-file keys.txt"""

_NAMED = re.compile(r"([A-Za-z0-9][\w.:-]*)=(.+)", re.ASCII)
"""A model with a name; a path that looks like one is written with ./ before it."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``serve``."""
    parser.add_argument(
        "models",
        metavar="MODEL",
        nargs="+",
        help="a bundle's folder, the name of an embedded model, or an ONNX file or its folder; NAME=MODEL gives it another name "
        "than its own",
    )
    add_foreign(parser)
    _add_listening(parser.add_argument_group("who is served").add_argument)
    _add_limits(parser.add_argument_group("how much").add_argument)
    add = parser.add_argument_group("how requests are decoded unless they say it themselves").add_argument
    add("--method", default="scd-match", metavar="METHOD", help=f"one of {METHOD_NAMES} (default: %(default)s)")
    add("--window", type=window, metavar="W", help="most tokens in one forward pass, or auto (default: the bundle's)")
    add("--branches", type=int, metavar="N", help="slots of the window for other guesses (default: the bundle's)")
    add(
        "--corrections",
        choices=("auto", "none", "plain", "fitted", "network"),
        default="auto",
        help="what guesses are redrawn from; see `coupled-sampling generate --help` (default: %(default)s)",
    )
    add_where(parser)


def _add_listening(add: Any) -> None:
    add(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="where to listen: 0.0.0.0 is every network of this machine (default: %(default)s)",
    )
    add("--port", type=int, default=8000, metavar="N", help="0 is any that is free (default: %(default)s)")
    add(
        "--api-key-file",
        type=Path,
        metavar="FILE",
        help="API keys, one a line, any of which opens /v1 (default: none, and everybody may ask)",
    )
    add(
        "--log-level",
        choices=("critical", "error", "warning", "info", "debug"),
        default="info",
        help="what is logged, on standard error; info has a line for every request (default: %(default)s)",
    )


def _add_limits(add: Any) -> None:
    add("--rows", type=int, default=8, metavar="N", help="sequences decoded together (default: %(default)s)")
    add(
        "--max-queue",
        type=int,
        default=64,
        metavar="N",
        help="sequences that may wait for a row; more are refused with 429 (default: %(default)s)",
    )
    add(
        "--lanes",
        type=int,
        default=2,
        metavar="N",
        help="ways to decode that are open at once: each method or window that clients ask for has the model in memory "
        "once more (default: %(default)s)",
    )
    add(
        "--timeout",
        type=float,
        default=600,
        metavar="SECONDS",
        help="time that a request may take; one that takes longer gets 504 (default: %(default)s)",
    )
    add(
        "--max-body",
        type=int,
        default=1 << 20,
        metavar="BYTES",
        help="most bytes of a request's body (default: %(default)s)",
    )
    add(
        "--drain",
        type=float,
        default=30,
        metavar="SECONDS",
        help="time for requests under way once the server is told to stop (default: %(default)s)",
    )


class _Asked(NamedTuple):
    """A model to serve."""

    name: str | None
    """What clients call it; None is its own name."""
    model: str

    @classmethod
    def of(cls, text: str) -> _Asked:
        named = _NAMED.fullmatch(text)
        return cls(None, text) if named is None else cls(named[1], named[2])


def run(arguments: argparse.Namespace) -> int:
    """Open the models and serve them; 0 if all that was under way at the end could finish, else 1."""
    try:
        from coupled_sampling.serving.http import HttpSettings, make_app
        from coupled_sampling.serving.http.running import bound_socket, run_server, url_of
    except ImportError as error:
        raise MissingDependency(
            f"serve needs {error.name}, which is not installed: pip install 'coupled-sampling[serve]'"
        ) from error
    from coupled_sampling.serving import ServedModel

    _check(arguments)
    keys = () if arguments.api_key_file is None else _keys(arguments.api_key_file)
    allowed = HttpSettings(most_body=arguments.max_body, deadline=arguments.timeout, keys=keys)
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore", SharedNoise)  # clients choose their seeds
        lanes = _opened(arguments, stack)
        app = make_app([ServedModel(name, one.bundle, one) for name, one in lanes], allowed)
        bound = stack.enter_context(bound_socket(arguments.host, arguments.port))
        _warn_of_strangers(bound, keys)
        for name, one in lanes:
            tell(f"opening {name}")
            one.wait_until_ready()
        names = ", ".join(name for name, _ in lanes)
        finished = run_server(
            app,
            bound,
            drain=arguments.drain,
            log_level=arguments.log_level,
            started=lambda: say(f"serving {names} at {url_of(bound)}"),
            give_up=lambda: _end(lanes),
        )
    return 0 if finished else 1


def _opened(arguments: argparse.Namespace, stack: contextlib.ExitStack) -> list[tuple[str, Lanes]]:
    """Every model with its name, checked and about to open; ``stack`` closes them."""
    from coupled_sampling.serving import Lanes, LaneSettings

    settings = LaneSettings(
        place=_place(arguments),
        rows=arguments.rows,
        most_waiting=arguments.max_queue,
        step=arguments.step,
        lanes=arguments.lanes,
        defaults=_defaults(arguments),
    )
    found = []
    for asked in map(_Asked.of, arguments.models):
        one = argparse.Namespace(model=asked.model, widen=arguments.widen, max_length=arguments.max_length)
        lanes = Lanes(partial(open_asked, one), settings)
        stack.callback(lanes.close, drain=0)
        found.append((asked.name or lanes.bundle.manifest.name, lanes))
    return found


def _end(lanes: Sequence[tuple[str, Lanes]]) -> None:
    """End all requests with an error."""
    for _, one in lanes:
        one.close(drain=0)


def _check(arguments: argparse.Namespace) -> None:
    """Refuse numbers that cannot work, before a model is looked for."""
    for name in ("rows", "lanes", "max_body", "timeout"):
        if not getattr(arguments, name) > 0:
            raise InvalidArgument(f"{name.replace('_', '-')} is {getattr(arguments, name)}, expected more than 0")
    for name in ("max_queue", "drain"):
        if not getattr(arguments, name) >= 0:
            raise InvalidArgument(f"{name.replace('_', '-')} is {getattr(arguments, name)}, expected at least 0")
    if not 0 <= arguments.port < 1 << 16:
        raise InvalidArgument(f"port is {arguments.port}, expected one of 0 to 65535")
    named = [name for name, _ in map(_Asked.of, arguments.models) if name is not None]
    for name in named:
        if named.count(name) > 1:
            raise InvalidArgument(f"two models are called {name!r}; give one of them another name")


def _place(arguments: argparse.Namespace) -> Place:
    return Place(
        backend=arguments.backend,
        device=arguments.device,
        threads=arguments.threads,
        cuda_graphs=arguments.cuda_graphs,
        engines=arguments.engines,
        provider=arguments.provider,
    )


def _defaults(arguments: argparse.Namespace) -> dict[str, Any]:
    given = {name: getattr(arguments, name) for name in ("method", "window", "branches", "corrections")}
    return {name: value for name, value in given.items() if value is not None}


def _keys(file: Path) -> tuple[str, ...]:
    """The keys in a file; a warning if everybody on this machine can read it."""
    from coupled_sampling.serving.keys import read_keys

    keys = read_keys(file, "api-key-file")
    if file.stat().st_mode & stat.S_IROTH:
        tell(f"coupled-sampling: warning: everybody on this machine can read {file}; chmod 600 changes that")
    return keys


def _warn_of_strangers(bound: socket.socket, keys: Sequence[str]) -> None:
    host = bound.getsockname()[0]
    if not keys and not ipaddress.ip_address(host.partition("%")[0]).is_loopback:
        tell(
            f"coupled-sampling: warning: everybody who reaches {host} may use this server; ask for keys with --api-key-file FILE, "
            "or leave --host out to serve this machine only"
        )

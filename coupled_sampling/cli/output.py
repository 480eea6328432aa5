"""What is printed: all of it goes through here, so that no file can write to a terminal what it likes.

A model's name, a tokenizer's text and a path are strangers' words. Control characters in them move the cursor, set the window's
title or answer in the user's name, and halves of surrogate pairs cannot be written at all: both are shown as escapes, such as
``\\x1b``. Characters that the terminal's encoding does not have are spelled in ASCII, so that a figure never ends a run whose work
is done. A standard output that is full is an `OutputError`; what is told on a standard error that is closed is lost, no more.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any, TextIO

from coupled_sampling.errors import OutputError

__all__ = ["one_line", "printable", "say", "say_json", "tell", "usable_streams", "warnings_in_one_line", "write"]

_UNTAME = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters but tab and newline; separators and changes of direction, which disguise lines; lone surrogates."""
_BREAKS = re.compile("[\t\n]")
_SPELLED = {"\xb1": "+/-", "\xd7": "x", "\u2264": "<=", "\u2265": ">=", "\u2013": "-", "\u2014": "-", "\u2026": "..."}
"""How plus-minus, times, at most, at least, dashes and dots are written where an encoding does not have them."""


def printable(text: str, encoding: str | None = None) -> str:
    """``text`` as a terminal of that ``encoding`` can show it: escapes instead of control characters, ASCII instead of other signs.

    By default the encoding is that of standard output.
    """
    tame = _UNTAME.sub(_escaped, text)
    known = encoding or getattr(sys.stdout, "encoding", None) or "utf-8"
    try:
        tame.encode(known)
        return tame
    except UnicodeEncodeError:
        return "".join(_spelled(character, known) for character in tame)
    except LookupError:  # a stream of somebody's own; only what every encoding has is sure
        return "".join(_spelled(character, "ascii") for character in tame)


def one_line(text: str) -> str:
    """``text`` in one line: what comes from a file must not look like lines of ours."""
    return _BREAKS.sub(_escaped, text)


def say(text: str) -> None:
    """Print a line, or several, on standard output.

    Raises
    ------
    BrokenPipeError, OutputError
        Nobody reads any more; it cannot be written.
    """
    write(f"{text}\n", sys.stdout)


def say_json(value: Any, default: Callable[[Any], Any] | None = None) -> None:
    """Print ``value`` as JSON that every reader takes: numbers that are none are null. ``default`` is that of `json.dumps`."""
    plain = json.loads(json.dumps(value, default=default), parse_constant=lambda _: None)
    say(json.dumps(plain, indent=2).replace("\x7f", "\\u007f"))  # the one control character that json.dumps leaves


def tell(text: str) -> None:
    """Print ``text`` as one line on standard error, if there is any."""
    if sys.stderr is not None:
        with contextlib.suppress(OSError):
            write(f"{_joined(text)}\n", sys.stderr)


@contextlib.contextmanager
def warnings_in_one_line() -> Iterator[None]:
    """Have warnings told as errors are, without the source line that gave them."""

    def told(message: Warning | str, *_: object, **__: object) -> str:
        return f"coupled-sampling: warning: {_joined(printable(str(message)))}\n"

    before = warnings.formatwarning
    warnings.formatwarning = told
    try:
        yield
    finally:
        warnings.formatwarning = before


def write(text: str, stream: TextIO) -> None:
    """Write ``text`` as far as it can be shown, at once.

    Raises
    ------
    BrokenPipeError, OutputError
        Nobody reads any more; it cannot be written.
    """
    try:
        stream.write(printable(text, getattr(stream, "encoding", None)))
        stream.flush()
    except (OSError, ValueError) as error:
        _forget(stream)
        if isinstance(error, BrokenPipeError):
            raise
        name = {"<stdout>": "standard output", "<stderr>": "standard error"}.get(
            getattr(stream, "name", ""), "the output"
        )
        raise OutputError(f"cannot write {name}: {getattr(error, 'strerror', None) or error}") from error


@contextlib.contextmanager
def usable_streams() -> Iterator[None]:
    """Standard streams for the time of a command: nothing but ours may be taken for them.

    A file that is opened while standard error is closed would get its number, and whatever a library in C complains of would be
    written into it. So closed ones lead nowhere instead.

    Raises
    ------
    OutputError
        Standard output is closed.
    """
    with contextlib.ExitStack() as stack:
        if None in (sys.stdin, sys.stdout, sys.stderr):
            _occupy_closed()
        if sys.stderr is None:
            stack.enter_context(contextlib.redirect_stderr(stack.enter_context(open(os.devnull, "w"))))  # noqa: PTH123
        if sys.stdout is None:
            raise OutputError("standard output is closed; give it a place, such as > /dev/null")
        yield


def _occupy_closed() -> None:
    """Have every standard stream that is closed lead nowhere."""
    while (handle := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass  # the lowest number that is free, which is to stay taken
    os.close(handle)


def _forget(stream: TextIO) -> None:
    """Lead a stream that cannot be written nowhere: Python writes what is left of it once more at its end, and complains."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        handle = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(handle, stream.fileno())
        finally:
            os.close(handle)


def _joined(text: str) -> str:
    return " ".join(line.strip() for line in text.strip().splitlines())


def _escaped(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode()


def _spelled(character: str, encoding: str) -> str:
    try:
        character.encode(encoding)
        return character
    except UnicodeEncodeError:
        return _SPELLED.get(character) or character.encode("unicode_escape").decode()

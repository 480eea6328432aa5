"""`read_keys`: the API keys in a file."""

from __future__ import annotations

import re
from pathlib import Path

from coupled_sampling.errors import InvalidArgument

__all__ = ["read_keys"]


def read_keys(file: Path, argument: str) -> tuple[str, ...]:
    """The API keys in ``file``, one a line; ``argument`` is what messages call it.

    Raises
    ------
    InvalidArgument
        It cannot be read. There are none in it: serving without a key has to be asked for by naming no file. Or one of them cannot
        stand in a header.
    """
    try:
        lines = [line.strip() for line in file.read_text("utf-8").splitlines()]
    except UnicodeDecodeError as error:
        raise InvalidArgument(f"{argument} is {str(file)!r}, which is no text; write one key a line") from error
    except OSError as error:
        raise InvalidArgument(f"{argument} is {str(file)!r}, which cannot be read: {error.strerror}") from error
    if not any(lines):
        raise InvalidArgument(
            f"{argument} is {str(file)!r}, which has no keys in it; write one a line, or leave it out"
        )
    for number, line in enumerate(lines, 1):
        if not re.fullmatch(r"[\x21-\x7e]*", line):
            raise InvalidArgument(f"line {number} of {file} is no key, expected ASCII without spaces")
    return tuple(filter(None, lines))

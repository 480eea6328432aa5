"""``--print-completion SHELL``: a script that makes a shell complete commands, options and their values.

shtab writes the script from the parser once, so that pressing Tab starts no Python. What a value is, its metavar says.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from typing import Any

from coupled_sampling.cli.output import say
from coupled_sampling.errors import MissingDependency
from coupled_sampling.methods import METHODS

__all__ = ["SHELLS", "PrintCompletion"]

SHELLS = ("bash", "zsh", "tcsh")

_FILES = ("FILE", "PATH", "CHECKPOINT")
_FOLDERS = ("FOLDER", "MODEL", "OUT")


class PrintCompletion(argparse.Action):
    """Prints the script for a shell and ends the program, as ``--version`` does."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        """Print, and exit with 0.

        Raises
        ------
        MissingDependency
            shtab is not installed.
        """
        say(completion(parser, str(values)))
        parser.exit()


def completion(parser: argparse.ArgumentParser, shell: str) -> str:
    """The script for ``shell``, one of `SHELLS`.

    Raises
    ------
    MissingDependency
        shtab is not installed.
    """
    try:
        import shtab
    except ImportError as error:
        raise MissingDependency(
            "completion needs shtab, which is not installed: pip install 'coupled-sampling[completion]'"
        ) from error
    for action in _actions(parser):
        if action.metavar in _FILES:
            action.complete = shtab.FILE  # type: ignore[attr-defined]  # where shtab looks for it
        elif action.metavar in _FOLDERS:
            action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
        elif action.metavar == "METHOD":
            action.choices = tuple(METHODS)  # not when parsing: a wrong name is refused by `find_method`
    return str(shtab.complete(parser, shell))


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """All options and arguments, those of commands included."""
    for action in parser._actions:  # argparse has no public way to walk a parser; shtab walks it so, too
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _actions(command)

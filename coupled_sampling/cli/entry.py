"""The command line: ``coupled-sampling COMMAND``, one file a command, all of them listed in `COMMANDS`.

Results go to standard output, progress bars to standard error. An error is one line on standard error and exit code 2;
``verify`` ends with 1 when a method fails. A signal that ends a command leaves nothing half-written: Ctrl-C is exit code 130,
SIGTERM 143 and SIGHUP 129.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn, Protocol

from coupled_sampling import __version__
from coupled_sampling.cli import (
    bulk,
    compare,
    export,
    fit_corrections,
    generate,
    inspect,
    serve,
    step_graphs,
    triton,
    verify,
)
from coupled_sampling.cli.completion import SHELLS, PrintCompletion
from coupled_sampling.cli.output import tell, usable_streams, warnings_in_one_line, write
from coupled_sampling.cli.stopping import Stopped, stopped_by_signals
from coupled_sampling.errors import CoupledSamplingError

__all__ = ["COMMANDS", "Command", "main", "make_parser"]


class Command(Protocol):
    """What the module of a command has."""

    SUMMARY: str
    """A few words for the list of commands."""
    DESCRIPTION: str
    """What it does, for its own help; lines as they are to be printed."""
    EXAMPLES: str
    """Some command lines and what they do."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add its options."""
        ...

    def run(self, arguments: argparse.Namespace) -> int:
        """Do it; returns the exit code."""
        ...


COMMANDS: Mapping[str, Command] = {
    "generate": generate,
    "compare": compare,
    "verify": verify,
    "inspect": inspect,
    "serve": serve,
    "export": export,
    "bulk": bulk,
    "step-graphs": step_graphs,
    "fit-corrections": fit_corrections,
    "triton": triton,
}
"""A new command is a module like these, and a line here."""

_DESCRIPTION = """\
Lossless parallel decoding of autoregressive models: several tokens in every
forward pass, with exactly the law of one token at a time."""

_EPILOG = """\
`coupled-sampling COMMAND --help` says more about a command. To begin with:

  # pictures by fashion, and how much sooner than one token at a time
  coupled-sampling generate --beside-ar

To complete commands and options with the Tab key:

  pip install 'coupled-sampling[completion]'
  # bash
  coupled-sampling --print-completion bash \\
      > ~/.local/share/bash-completion/completions/coupled-sampling
  # zsh, in a folder of $fpath
  coupled-sampling --print-completion zsh > FOLDER/_coupled-sampling"""


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, and whose help is printed as all else is."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"coupled-sampling: error: {message}; `{self.prog} --help` says what can be given\n")

    def _print_message(self, message: str, file: Any = None) -> None:
        if file is None or file is sys.stderr:
            tell(message)
        else:
            write(message, file)


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands; ``run`` of what it parses is the command."""
    parser = _Parser(
        prog="coupled-sampling",
        usage="%(prog)s [--help] [--version] COMMAND ...",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    parser.add_argument(
        "--print-completion", action=PrintCompletion, choices=SHELLS, help="print a completion script for that shell"
    )
    commands = parser.add_subparsers(
        dest="command", required=True, title="commands", metavar="COMMAND", prog=parser.prog
    )
    for name, command in COMMANDS.items():
        added = commands.add_parser(
            name,
            help=command.SUMMARY,
            description=command.DESCRIPTION,
            epilog=f"examples:\n{command.EXAMPLES}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_arguments(added)
        added.usage = f"%(prog)s {_positionals(added)} [options]"
        added.set_defaults(run=command.run)
    return parser


def _positionals(parser: argparse.ArgumentParser) -> str:
    """The arguments without a dash; the usage of thirty options is no help."""
    given = [action for action in parser._actions if not action.option_strings]
    shown = {"?": "[{0}]", "+": "{0} [{0} ...]"}
    return " ".join(shown.get(str(one.nargs), "{0}").format(one.metavar) for one in given)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code.

    Parameters
    ----------
    arguments
        What follows the program's name; by default what it was started with.

    Raises
    ------
    SystemExit
        As argparse does: after ``--help``, ``--version`` and a completion script with 0, after an unknown option with 2.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with usable_streams(), warnings_in_one_line(), stopped_by_signals():
            parsed = make_parser().parse_args(given, argparse.Namespace(given=given))
            return int(parsed.run(parsed))
    except BrokenPipeError:  # an OSError, but of whoever reads, such as `head`
        return 1
    except (CoupledSamplingError, OSError) as error:
        tell(f"coupled-sampling: error: {error}")
        return 2
    except KeyboardInterrupt as interrupt:
        stopped = interrupt if isinstance(interrupt, Stopped) else Stopped(signal.SIGINT)
        tell(f"coupled-sampling: {stopped}; nothing half-written is left")
        return stopped.exit_code

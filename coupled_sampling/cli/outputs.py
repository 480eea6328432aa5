"""What a command will write, looked at before its work: whether it can be written, and what runs that were killed left there."""

from __future__ import annotations

import argparse
import contextlib
import shlex
from collections.abc import Collection
from pathlib import Path

from coupled_sampling.bundles.files import check_writable, real_path
from coupled_sampling.bundles.manifest import MANIFEST
from coupled_sampling.bundles.manifest_file import read_manifest
from coupled_sampling.bundles.replacing import leftovers, remove_leftovers
from coupled_sampling.cli.output import tell
from coupled_sampling.errors import BundleError, InvalidArgument, OutputError

__all__ = ["add_clean", "check_output", "ending", "mention_leftovers", "same_file"]


def add_clean(parser: argparse.ArgumentParser) -> None:
    """The option that removes what was left."""
    parser.add_argument(
        "--clean",
        action="store_true",
        help="first remove what runs that were killed left beside the output, and put back a bundle that one of them was "
        "about to replace",
    )


def mention_leftovers(arguments: argparse.Namespace, out: Path) -> None:
    """Say what runs that were killed left beside ``out``, and how it is removed; with ``--clean`` remove it.

    Raises
    ------
    OutputError
        ``out`` leads nowhere, or what was left cannot be removed.
    """
    if arguments.clean:
        for path, is_only_copy in remove_leftovers(out):
            tell(f"coupled-sampling: {f'put back {out}' if is_only_copy else f'removed {path}'}")
        return
    again = shlex.join(["coupled-sampling", *arguments.given, "--clean"])
    for path, is_only_copy in leftovers(out):
        what = "put it back, as it is the bundle that was to be replaced" if is_only_copy else "remove it"
        tell(f"coupled-sampling: note: a run that was killed left {path}; to {what}: {again}")


def check_output(arguments: argparse.Namespace, out: Path) -> None:
    """Refuse a file that cannot be written, and mention what is left beside it.

    Raises
    ------
    OutputError
        It cannot be written, or is a file of a bundle.
    """
    mention_leftovers(arguments, out)
    check_writable(out)
    real = real_path(out)
    with contextlib.suppress(BundleError):  # a folder without a bundle
        if real.name in {MANIFEST, *read_manifest(real.parent).files}:
            raise OutputError(f"cannot write {out}: it is a file of the bundle {real.parent}; choose another name")


def ending(name: str, path: Path, known: Collection[str], why: str = "") -> str:
    """The ending of ``path``, which says what kind of file it is to be: one of ``known``, the first of which also is that of none.

    ``name`` is the option that it was given by, and ``why`` may say why it is to be one of these.

    Raises
    ------
    InvalidArgument
        It is another.
    """
    found = path.suffix.lower() or next(iter(known))
    if found not in known:
        raise InvalidArgument(f"{name} is {str(path)!r}, expected a file that ends in {', '.join(known)}{why}")
    return found


def same_file(one: Path, other: Path) -> bool:
    """Whether both paths lead to the same place."""
    return real_path(one) == real_path(other)

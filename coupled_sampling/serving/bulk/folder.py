"""The folder that results go to: whose it is, and where in it things lie.

::

    OUT/bulk.json                      the model and the settings that all of it was made with
    OUT/record/part-00000000.parquet   the record, in parts, each of which appears whole
    OUT/pictures/ca/a.png              pictures, or clips that end in .webp, in 256 folders

One run at a time has it. A run with another model or other settings is refused; nothing is ever removed but what a run that was
killed left half-written.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from coupled_sampling.arguments import shown
from coupled_sampling.bundles.files import check_place, write_whole
from coupled_sampling.bundles.hidden import PARTIAL, held_alone
from coupled_sampling.errors import OutputError

__all__ = ["BULK", "RECORD", "Folder", "opened_folder", "picture_path"]

BULK = "bulk.json"
RECORD = "record"
"""A folder of its own, so that what reads parquet can be given its name."""
_FORMAT = 1

_PLAIN = re.compile(r"[a-z0-9_][a-z0-9_.-]{0,99}")
"""Ids that are file names everywhere, also where upper and lower case are the same."""
_KEPT = 60
"""Characters of another id that its file name shows."""


def picture_path(name: str, ending: str = ".png") -> str:
    """Where the picture of an id, or its clip, lies in the folder; names of such files have an ``ending`` in common.

    Ids of lower-case letters, digits, dots, dashes and underscores are file names as they are. Others are escaped, and have a
    number behind them, so that no two are the same.

    Examples
    --------
    >>> picture_path("shoe-1"), picture_path("Shoe/1")
    ('pictures/44/shoe-1.png', 'pictures/25/Shoe%2F1~25b5d731ee8efbbf.png')
    """
    digest = hashlib.sha256(name.encode()).hexdigest()
    plain = _PLAIN.fullmatch(name) is not None
    file = name if plain else f"{quote(name, safe='').replace('.', '%2E')[:_KEPT]}~{digest[:16]}"
    return f"pictures/{digest[:2]}/{file}{ending}"


class Folder:
    """A folder that this run has. Made by `opened_folder`."""

    def __init__(self, path: Path, facts: Mapping[str, Any]) -> None:
        self.path, self._facts = path, facts

    def begin(self) -> None:
        """Say in it whose it is, if it is new, and remove what a run that was killed left half-written.

        Raises
        ------
        OutputError
            It cannot be written.
        """
        if not (self.path / BULK).exists():
            text = json.dumps(self._facts, indent=2) + "\n"
            write_whole(self.path / BULK, lambda partial: partial.write_text(text, encoding="utf-8"))
        try:
            (self.path / RECORD).mkdir(exist_ok=True)
        except OSError as error:
            raise OutputError(f"cannot write {self.path / RECORD}: {error}") from error
        for place, _, files in os.walk(self.path):  # nobody else writes here
            for name in files:
                if name.startswith(".") and f".{PARTIAL}" in name:
                    (Path(place) / name).unlink(missing_ok=True)

    def write_picture(self, name: str, picture: bytes, ending: str) -> str:
        """Write the picture or clip of an id, over what is there; returns where it lies in the folder.

        Raises
        ------
        OutputError
            It cannot be written.
        """
        where = picture_path(name, ending)
        path = self.path / where
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"cannot write {path}: {error}") from error
        write_whole(path, lambda partial: partial.write_bytes(picture))
        return where


@contextlib.contextmanager
def opened_folder(path: Path, facts: Mapping[str, Any]) -> Iterator[Folder]:
    """Have the folder at ``path`` for the time of a block; it is made if it is not there, and gone again if nothing came into it.

    Parameters
    ----------
    path
        The folder.
    facts
        What all of its contents are made with, as JSON has it: names, and what they are.

    Raises
    ------
    OutputError
        It cannot be made or written; another run has it; it is somebody else's, or was made with other facts.
    """
    real, facts = check_place(path), {"format": _FORMAT, **facts}
    new = not real.exists()
    try:
        real.mkdir(exist_ok=True)
    except OSError as error:
        what = "it is no folder" if real.exists() else str(error)
        raise OutputError(f"cannot write {path}: {what}; name another folder") from error
    if not os.access(real, os.W_OK | os.X_OK):
        raise OutputError(f"cannot write {path}: no permission; name another folder")
    with held_alone(real) as mine:
        if not mine:
            raise OutputError(f"cannot write {path}: another run writes there now; wait for it, or name another folder")
        _check_facts(path, real, facts)
        try:
            yield Folder(real, facts)
        finally:
            if new:
                with contextlib.suppress(OSError):  # there is something in it
                    real.rmdir()


def _check_facts(path: Path, real: Path, wanted: Mapping[str, Any]) -> None:
    """Refuse a folder that was made with other facts, or is not of this command."""
    file = real / BULK
    if not file.exists():
        other = next((one.name for one in real.iterdir() if f".{PARTIAL}" not in one.name), None)
        if other is not None:
            raise OutputError(
                f"cannot write {path}: it has {shown(other)} in it and no {BULK}, so it is not of this command; name a new folder"
            )
        return
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise OutputError(f"cannot go on in {path}: {BULK} cannot be read ({error}); name another folder") from error
    if not isinstance(found, dict):
        raise OutputError(f"cannot go on in {path}: {BULK} is no object; name another folder")
    for name in [*wanted, *(name for name in found if name not in wanted)]:
        if found.get(name) != wanted.get(name):
            raise OutputError(
                f"cannot go on in {path}: {name} was {_said(found.get(name))} and is {_said(wanted.get(name))} now; give the same "
                "model and settings, or name another folder"
            )


def _said(value: Any) -> str:
    return "not set" if value is None else shown(value)

"""The record: parquet files with a row for every sequence, written in parts that appear whole."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from coupled_sampling.bundles.files import write_whole
from coupled_sampling.bundles.uninterrupted import uninterrupted
from coupled_sampling.errors import MissingDependency, OutputError
from coupled_sampling.serving.bulk.folder import RECORD, Folder
from coupled_sampling.serving.bulk.making import Made

__all__ = ["Record", "require_pyarrow", "schema"]

_PART = re.compile(r"part-(\d{8})\.parquet")

_SECONDS = 60.0
"""After which a part is written with the next sequence, however few it has: a kill loses no more than that."""


def require_pyarrow() -> Any:
    """The package ``pyarrow``, with ``pyarrow.parquet``.

    Raises
    ------
    MissingDependency
        It is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingDependency(
            "the record of many prompts needs pyarrow, which is not installed: pip install 'coupled-sampling[bulk]'"
        ) from error
    return pyarrow


def schema() -> Any:
    """The columns, as a ``pyarrow.Schema``; each says in its metadata what it is."""
    arrow = require_pyarrow()
    tokens, numbers = arrow.list_(arrow.int64()), arrow.list_(arrow.float64())
    columns = (
        ("id", arrow.string(), "what the line called it"),
        ("prompt", tokens, "tokens that it begins with"),
        ("tokens", tokens, "tokens that were generated"),
        ("text", arrow.string(), "their text, of a model that reads text"),
        ("picture", arrow.string(), "path of their picture or clip in this folder"),
        ("seed", arrow.uint64(), "key of its noise"),
        ("sequence", arrow.uint64(), "key of its noise, by default the first 8 bytes of SHA-256 of the id"),
        ("method", arrow.string(), "how it was decoded"),
        ("window", arrow.int64(), "slots per pass; null where it was chosen while decoding"),
        ("passes", arrow.int64(), "forward passes"),
        ("tokens_per_pass", arrow.float64(), "tokens over passes"),
        ("finish_reason", arrow.string(), "length, stop or error"),
        ("error", arrow.string(), "what went wrong, where that is the reason"),
        ("logprobs", numbers, "of the tokens under their target laws, where they were asked for"),
        ("model", arrow.string(), "name of the model"),
        ("fingerprint", arrow.string(), "SHA-256 of all of the model that tokens depend on"),
        ("asked", arrow.uint64(), "a number of all that was asked but the id"),
    )
    return arrow.schema([arrow.field(name, kind, metadata={"description": what}) for name, kind, what in columns])


class Record:
    """The record in a folder.

    Parameters
    ----------
    folder
        The folder, which this run has.
    model, fingerprint
        What is written into every row.
    part_rows
        Most rows of a part.
    picture_ending
        How the names of pictures or clips end.
    """

    def __init__(self, folder: Folder, model: str, fingerprint: str, part_rows: int, picture_ending: str) -> None:
        self._folder, self._model, self._fingerprint, self._part_rows = folder, model, fingerprint, part_rows
        self._picture_ending = picture_ending
        self._arrow = require_pyarrow()
        self._parts = sorted(path for path in (folder.path / RECORD).iterdir() if _PART.fullmatch(path.name))
        self._rows: list[Mapping[str, Any]] = []
        self._written = time.monotonic()

    def done(self) -> Iterator[tuple[list[str], list[int], int]]:
        """Ids, numbers of what was asked, and how many ended in an error, of all that is in the record, part by part.

        Raises
        ------
        OutputError
            A part is damaged.
        """
        for part in self._parts:
            try:
                table = self._arrow.parquet.read_table(part, columns=["id", "asked", "error"])
            except (OSError, self._arrow.ArrowException) as error:
                said = " ".join(str(error).split())[:200]
                raise OutputError(
                    f"cannot go on in {self._folder.path}: {RECORD}/{part.name} cannot be read ({said}); remove it, and its "
                    "sequences are made again"
                ) from error
            errors = len(table) - table.column("error").null_count
            yield table.column("id").to_pylist(), table.column("asked").to_pylist(), errors

    def add(self, made: Made) -> None:
        """Take ``made``; its picture or clip is written now, and its row with its part.

        Raises
        ------
        OutputError
            It cannot be written.
        """
        picture = None
        if made.picture is not None:
            picture = self._folder.write_picture(made.asked.id, made.picture, self._picture_ending)
        self._rows.append(self._row(made, picture))
        if len(self._rows) >= self._part_rows or time.monotonic() - self._written >= _SECONDS:
            self.write()

    def write(self) -> None:
        """Write a part of what was taken since the last one; whoever is interrupted meanwhile is so afterwards.

        Raises
        ------
        OutputError
            It cannot be written; what was taken is still here.
        """
        if self._rows:
            # What is written and what is not must agree, even where Ctrl-C falls between the two.
            uninterrupted(self._write)

    def _write(self) -> None:
        table = self._arrow.Table.from_pylist(self._rows, schema=schema())
        number = 1 + (int(_PART.fullmatch(self._parts[-1].name)[1]) if self._parts else -1)  # type: ignore[index]
        part = self._folder.path / RECORD / f"part-{number:08d}.parquet"

        def write(partial: Path) -> None:
            with partial.open("wb") as file:
                self._arrow.parquet.write_table(table, file, compression="zstd")
                file.flush()
                os.fsync(file.fileno())  # or a machine that goes down may leave a name without contents

        write_whole(part, write)
        self._parts.append(part)
        self._rows.clear()
        self._written = time.monotonic()

    def _row(self, made: Made, picture: str | None) -> dict[str, Any]:
        job = made.asked.job
        return {
            "id": made.asked.id,
            "prompt": job.prompt,
            "tokens": made.tokens,
            "text": made.text,
            "picture": picture,
            "seed": job.seed,
            "sequence": job.sequence,
            "method": made.method,
            "window": made.window if isinstance(made.window, int) else None,
            "passes": made.passes,
            "tokens_per_pass": len(made.tokens) / made.passes if made.passes else None,
            "finish_reason": made.reason,
            "error": made.error,
            "logprobs": made.logprobs,
            "model": self._model,
            "fingerprint": self._fingerprint,
            "asked": made.asked.digest,
        }

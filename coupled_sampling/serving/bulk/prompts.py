"""The prompts' file: read once to check all of it, and once more, lazily, to do it. Of each sequence 17 bytes are kept between.

Ten million lines do not lie in memory; what does are two numbers for each: one of its id, one of what it asks, and whether it is
done. So an id that comes twice, and one that was done with another prompt, are found before anything runs.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
import tempfile
from array import array
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.arguments import shown
from coupled_sampling.errors import InvalidArgument
from coupled_sampling.serving.bulk.rows import Asked, RowReader, number_of

__all__ = ["Prompts", "prompts_file", "remaining"]

_MOST = 1 << 24
"""Bytes of a line."""

_TOLD = 1000
"""Lines after which progress is told."""


@contextlib.contextmanager
def prompts_file(path: str) -> Iterator[Path]:
    """The file at ``path``, which can be read twice; of "-", standard input, a copy for the time of the block.

    Raises
    ------
    InvalidArgument
        It is a folder, or is not there.
    OSError
        It cannot be read.
    """
    if path == "-":
        with tempfile.NamedTemporaryFile(prefix="coupled-sampling-", suffix=".jsonl") as kept:
            shutil.copyfileobj(sys.stdin.buffer, kept)
            kept.flush()
            yield Path(kept.name)
        return
    if not Path(path).is_file():
        found = "a folder" if Path(path).is_dir() else "not there"
        raise InvalidArgument(
            f"the prompts' file {path} is {found}, expected a file with a JSON object on every line, or -"
        )
    yield Path(path).absolute()


class Prompts:
    """The sequences that a file asks for; all of its lines are checked when it is made.

    Parameters
    ----------
    path
        The file, in UTF-8. Empty lines are left out, and counted.
    reader
        Makes sequences of them.
    told
        Called with how many lines were read, once in a while.

    Raises
    ------
    InvalidArgument
        A line is wrong, or an id comes twice; the message says which line.
    """

    def __init__(self, path: Path, reader: RowReader, told: Callable[[int], object] = lambda count: None) -> None:
        self.path, self._reader = path, reader
        numbers, digests = array("Q"), array("Q")
        for count, (number, line) in enumerate(_lines(path)):
            for asked in reader.read(number, line):
                numbers.append(number_of(asked.id))
                digests.append(asked.digest)
            if count % _TOLD == 0:
                told(count)
        self._numbers: NDArray[np.uint64] = np.frombuffer(numbers, np.uint64) if numbers else np.zeros(0, np.uint64)
        self.digests: NDArray[np.uint64] = np.frombuffer(digests, np.uint64) if digests else np.zeros(0, np.uint64)
        """A number of what each of them asks."""
        self._order = np.argsort(self._numbers, kind="stable")
        self._sorted = self._numbers[self._order]
        self.done = np.zeros(len(numbers), bool)
        """Which of them are done."""
        twice = np.flatnonzero(self._sorted[1:] == self._sorted[:-1])
        if len(twice):
            self._refuse_twice(int(self._order[twice[0]]), int(self._order[twice[0] + 1]))

    def __len__(self) -> int:
        return len(self.done)

    def mark_done(self, ids: Iterable[str], digests: Iterable[int]) -> None:
        """Leave out what is in the record. Ids that are not asked for are no matter.

        Raises
        ------
        InvalidArgument
            One was done, but something else was asked for.
        """
        names = list(ids)
        numbers = np.array([number_of(name) for name in names], np.uint64)
        found = np.searchsorted(self._sorted, numbers)
        known = found < len(self._sorted)
        known[known] = self._sorted[found[known]] == numbers[known]
        index = self._order[found[known]]
        other = np.flatnonzero(self.digests[index] != np.array(list(digests), np.uint64)[known])
        if len(other):
            name = names[int(np.flatnonzero(known)[other[0]])]
            raise InvalidArgument(
                f"the sequence {shown(name)} was made with another prompt, seed or settings than it has now; give it another id, "
                "or name another folder"
            )
        self.done[index] = True

    def remaining(self) -> Iterator[Asked]:
        """What is not done, see `remaining`."""
        return remaining(self.path, self._reader.unchecked, self.digests, self.done)

    def _refuse_twice(self, first: int, second: int) -> None:
        """Raise for two sequences with the same number: where they are and what they are called is looked up."""
        found = []
        index = 0
        for number, line in _lines(self.path):
            for asked in self._reader.unchecked.read(number, line):
                if index in (first, second):
                    found.append((asked.id, number))
                index += 1
        (one, line_of_one), (other, line_of_other) = found
        if one != other:
            raise InvalidArgument(
                f"lines {line_of_one} and {line_of_other}: the ids {shown(one)} and {shown(other)} have the same first 8 bytes of "
                "SHA-256, so that they would draw with the same noise; rename one of them"
            )
        where = f"lines {line_of_one} and {line_of_other}" if line_of_one != line_of_other else f"line {line_of_one}"
        raise InvalidArgument(f"{where}: the id {shown(one)} comes twice, expected every one once; rename one of them")


def remaining(path: Path, reader: RowReader, digests: NDArray[np.uint64], done: NDArray[np.bool_]) -> Iterator[Asked]:
    """What is not done of a file that was checked, in the order of the file, which is read anew.

    Parameters
    ----------
    path, reader, digests, done
        The file, and of each sequence that it asks for a number of what it asks, and whether it is done: as in `Prompts`.

    Raises
    ------
    InvalidArgument
        The file was changed since it was checked.
    """
    index = 0
    for number, line in _lines(path):
        for asked in reader.read(number, line):
            if index >= len(done) or asked.digest != digests[index]:
                raise InvalidArgument(f"line {number} was changed while the prompts were read; run it again")
            if not done[index]:
                yield asked
            index += 1
    if index < len(done):
        raise InvalidArgument("the prompts became fewer while they were read; run it again")


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines that are not empty, with their numbers."""
    number = 0
    with path.open("rb") as file:
        while raw := file.readline(_MOST + 1):
            number += 1
            if len(raw) > _MOST:
                raise InvalidArgument(
                    f"line {number} has more than {_MOST} bytes, expected a JSON object of at most these"
                )
            if not raw.strip():
                continue
            try:
                yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise InvalidArgument(f"line {number} is no text in UTF-8: {error.reason}; convert the file") from error

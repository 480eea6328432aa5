"""The working folder of a fit: a file for every sample that was decoded, and one that says of what fit they are.

A sample takes as long as a picture or a text, and a fit wants some hundreds. So each is kept as soon as it is there, whole or not
at all, and a fit that was stopped, or killed, goes on from those. A folder is one fit's: of the same model, settings and prompts.
Two runs do not work in it at the same time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.bundles.files import write_whole
from coupled_sampling.bundles.hidden import find_leftovers, held_alone
from coupled_sampling.contracts import Integers
from coupled_sampling.errors import OutputError
from coupled_sampling.fitting.pairs import Pairs

__all__ = ["Sample", "WorkFolder", "remove_work"]

_NAME = "fit.json"
"""What a working folder is of."""

MOST_SAMPLES = 100_000
"""Of a stage: names have five digits."""


class Sample(NamedTuple):
    """What one decoded sample leaves."""

    pairs: Pairs
    neighbours: Integers
    """(n, K) of the committed positions, and their log-laws (n, M); empty where no averages are kept."""
    laws: NDArray[np.floating]
    passes: int
    tokens: int


class WorkFolder:
    """The samples of one fit.

    Parameters
    ----------
    folder
        Where; see `opened`.
    lags, size
        K and M of its pairs: a file of others is damaged.
    """

    def __init__(self, folder: Path, lags: int, size: int) -> None:
        self.folder, self._lags, self._size = folder, lags, size

    @contextlib.contextmanager
    def opened(self, identity: str) -> Iterator[None]:
        """Make the folder, or see that it is of the fit that ``identity`` tells, and keep others out of it until the block ends.

        Raises
        ------
        OutputError
            It cannot be used, holds something else, or another run is using it.
        """
        path = self.folder / _NAME
        try:
            told = path.read_text() if path.exists() else None
            self.folder.mkdir(parents=True, exist_ok=True)
            others = told is None and {*self.folder.iterdir()} > {*find_leftovers(path)}
        except (OSError, UnicodeDecodeError) as error:
            raise OutputError(f"cannot use {self.folder} as a working folder: {error}; name another") from error
        if others:
            raise OutputError(f"{self.folder} is there and holds no fit; name another folder")
        if told not in (None, identity):
            raise OutputError(
                f"{self.folder} holds another fit, of other settings or another model; name another folder, or remove it"
            )
        if told is None:
            write_whole(path, lambda partial: partial.write_text(identity))
        with held_alone(path) as alone:
            if not alone:
                raise OutputError(f"another run is fitting in {self.folder}; wait for it, or name another folder")
            _remove_half_written(self.folder)
            yield

    def read(self, stage: int, index: int) -> Sample | None:
        """A sample; None where it was not decoded yet, or its file is damaged."""
        path = self._path(stage, index)
        if not path.exists():
            return None
        try:
            with np.load(path, allow_pickle=False) as found:
                pairs = Pairs(*(found[name] for name in Pairs._fields))
                passes, tokens = found["counts"].tolist()
                sample = Sample(pairs, found["neighbours"], found["laws"], passes, tokens)
        except Exception:  # damaged bytes: anything may come of them, and the sample is decoded again
            return None
        whole = all(part.shape[1:] == (self._lags,) for part in (pairs.old, pairs.new, sample.neighbours)) and all(
            part.shape[1:] == (self._size,) for part in (pairs.before, pairs.after, sample.laws)
        )
        return sample if whole and len({len(part) for part in pairs}) == 1 else None

    def write(self, stage: int, index: int, sample: Sample) -> None:
        """Keep a sample.

        Raises
        ------
        OutputError
            It cannot be written.
        """
        arrays = {**sample.pairs._asdict(), "neighbours": sample.neighbours, "laws": sample.laws}
        counts = np.array([sample.passes, sample.tokens], np.int64)

        def write(partial: Path) -> None:
            with partial.open("wb") as file:
                np.savez(file, counts=counts, **arrays)

        write_whole(self._path(stage, index), write)

    def _path(self, stage: int, index: int) -> Path:
        return self.folder / f"sample-{stage}-{index:05}.npz"


def remove_work(work: Path) -> None:
    """Remove the working folder of a fit that is done: our own files, and the folder if nothing else is in it."""
    if (work / _NAME).exists():
        for path in (*work.glob("sample-?-?????.npz"), work / _NAME):
            path.unlink(missing_ok=True)
        if not any(work.iterdir()):
            # Where it is a link to a folder, both stay.
            with contextlib.suppress(OSError):
                work.rmdir()


def _remove_half_written(folder: Path) -> None:
    """Remove what a run that was killed was writing."""
    for path in folder.glob(".sample-*"):
        name = path.name[1:].partition(".npz")[0] + ".npz"
        if path in find_leftovers(folder / name):
            path.unlink(missing_ok=True)

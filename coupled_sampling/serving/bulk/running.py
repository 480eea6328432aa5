"""A bulk run: check the prompts, see what is done already, make the rest, and write it down.

What ends a run early, a signal or an error, leaves everything in the record that was made before it. A kill loses what was made
since the last part, and the next run makes it again, the same.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.arguments import check_count
from coupled_sampling.bundles.opening import Bundle
from coupled_sampling.serving.bulk.folder import opened_folder
from coupled_sampling.serving.bulk.local import made_here
from coupled_sampling.serving.bulk.making import Made, Maker, picture_ending
from coupled_sampling.serving.bulk.prompts import Prompts, prompts_file, remaining
from coupled_sampling.serving.bulk.ray_data import RaySettings, made_by_ray
from coupled_sampling.serving.bulk.record import Record, require_pyarrow
from coupled_sampling.serving.bulk.rows import Asked, RowReader
from coupled_sampling.serving.fingerprints import fingerprint
from coupled_sampling.serving.lanes import Lanes, LaneSettings
from coupled_sampling.serving.ways import JobCheck

__all__ = ["BulkSettings", "Tally", "run_bulk"]


@dataclass(frozen=True)
class BulkSettings:
    """What is made of the prompts.

    Parameters
    ----------
    seed
        Of lines that say none.
    samples
        Sequences of lines that do not say how many.
    part_rows
        Most sequences of a part of the record.
    ray
        Make them by Ray; None makes them in this process.

    Raises
    ------
    InvalidArgument
        A number cannot work.
    """

    seed: int = 0
    samples: int = 1
    part_rows: int = 1000
    ray: RaySettings | None = None

    def __post_init__(self) -> None:
        check_count("seed", self.seed, 0, 2**64 - 1)
        check_count("samples", self.samples)
        check_count("part-rows", self.part_rows)


@dataclass
class Tally:
    """What a run has done so far."""

    total: int = 0
    """Sequences that the prompts ask for."""
    before: int = 0
    """Of them, how many were in the record already."""
    made: int = 0
    errors: int = 0
    """Of those in the record now, how many ended in an error; earlier runs' are counted, too."""
    tokens: int = 0
    passes: int = 0
    began: float = field(default_factory=time.perf_counter)
    """When the model was there."""
    ended: float | None = None

    def add(self, made: Made) -> None:
        """One more was made."""
        self.made += 1
        self.errors += made.error is not None
        self.tokens += len(made.tokens)
        self.passes += made.passes

    @property
    def seconds(self) -> float:
        """Seconds of work, without opening the model."""
        return (self.ended or time.perf_counter()) - self.began

    @property
    def tokens_per_pass(self) -> float:
        """Of this run's sequences."""
        return self.tokens / self.passes if self.passes else 0.0

    @property
    def sequences_per_second(self) -> float:
        """Of this run's."""
        return self.made / self.seconds if self.made else 0.0


def facts_of(bundle: Bundle, lanes: LaneSettings, settings: BulkSettings) -> dict[str, Any]:
    """What everything in a folder is made with, as it is written there: where the model runs is no part of it."""
    decoding = bundle.settings(**lanes.defaults)
    sampling = decoding.sampling
    return {
        "model": bundle.manifest.name,
        "fingerprint": fingerprint(bundle),
        "seed": settings.seed,
        "samples": settings.samples,
        "method": decoding.method,
        "window": decoding.window,
        "branches": decoding.branches,
        "drafting": repr(decoding.drafting),
        "guidance": decoding.guidance,
        **({} if decoding.guidance_interval is None else {"guidance_interval": decoding.guidance_interval}),
        "length": decoding.length,
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p,
        "corrections": decoding.corrections,
    }


def run_bulk(
    prompts: str,
    out: Path,
    opened: Callable[[], Bundle],
    lanes: LaneSettings,
    settings: BulkSettings,
    *,
    checked: Callable[[int], object] = lambda count: None,
    report: Callable[[Tally], object] = lambda tally: None,
) -> Tally:
    """Make everything that a file of prompts asks for and that is not in the record yet.

    Parameters
    ----------
    prompts
        Path of the file; "-" is standard input.
    out
        The folder of the results.
    opened
        Opens the model; with Ray it is called on other machines, so that it must be possible to send it there.
    lanes
        How it is decoded, and where.
    settings
        What is made.
    checked
        Told how many lines were checked, once in a while.
    report
        Told the tally, when work begins and after each sequence.

    Raises
    ------
    InvalidArgument
        A line is wrong; nothing was made.
    OutputError
        The folder cannot be used, or not any more.
    BundleError, MissingDependency, ProviderError, ServingError
        The model cannot be opened, or does not work any more.
    """
    require_pyarrow()
    bundle = opened()
    ending = picture_ending(bundle.manifest)
    tokenizer = bundle.tokenizer()
    check = JobCheck(bundle, tokenizer, lanes.place, lanes.rows, lanes.step, lanes.defaults)
    reader = RowReader(bundle, tokenizer, seed=settings.seed, samples=settings.samples, check=check)
    facts = facts_of(bundle, lanes, settings)
    with opened_folder(out, facts) as folder, prompts_file(prompts) as file:
        asked = Prompts(file, reader, checked)
        folder.begin()
        record = Record(folder, facts["model"], facts["fingerprint"], settings.part_rows, ending)
        tally = Tally(total=len(asked))
        for ids, digests, errors in record.done():
            tally.errors += errors
            asked.mark_done(ids, digests)
        tally.before = int(asked.done.sum())
        if tally.before < tally.total:
            with _making(bundle, opened, lanes, settings, asked) as results:
                _write_down(results, record, tally, report)
    return tally


@contextlib.contextmanager
def _making(
    bundle: Bundle, opened: Callable[[], Bundle], lanes: LaneSettings, settings: BulkSettings, asked: Prompts
) -> Iterator[Generator[Made, None, None]]:
    """What is made of the rest of ``asked``, here or elsewhere; given up at the end of the block."""
    if settings.ray is not None:
        elsewhere = functools.partial(_read_elsewhere, opened, settings, asked.path, asked.digests, asked.done)
        with contextlib.closing(made_by_ray(opened, fingerprint(bundle), lanes, settings.ray, elsewhere)) as results:
            yield results
        return
    with Lanes(opened, lanes) as source:
        maker = Maker(source.bundle, source, dict(lanes.defaults))
        with contextlib.closing(made_here(maker, asked.remaining(), lanes.rows)) as results:
            yield results


def _read_elsewhere(
    opened: Callable[[], Bundle],
    settings: BulkSettings,
    path: Path,
    digests: NDArray[np.uint64],
    done: NDArray[np.bool_],
) -> Iterator[Asked]:
    """What is not done, in another process: lines that were checked, and are held against what they were."""
    bundle = opened()
    reader = RowReader(bundle, bundle.tokenizer(), seed=settings.seed, samples=settings.samples, check=lambda job: None)
    return remaining(path, reader, digests, done)


def _write_down(results: Iterator[Made], record: Record, tally: Tally, report: Callable[[Tally], object]) -> None:
    tally.began = time.perf_counter()
    report(tally)
    try:
        for made in results:
            record.add(made)
            tally.add(made)
            report(tally)
    finally:  # at Ctrl-C and errors, too
        tally.ended = time.perf_counter()
        record.write()

"""One damaged input through the command line, in a process of its own kind: forked, limited and watched.

A worker takes inputs one after the other and says what came of each; when it dies or takes too long, the input it was at is the
culprit, and another worker goes on behind it. What is right: exit code 0, or 2 with one line on standard error; no traceback, no
death, at most `SECONDS` of processor time and `MEMORY` beyond what was there before.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import multiprocessing
import os
import resource
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import readers as bases
from readers import READERS

from coupled_sampling.cli import main

__all__ = ["MEMORY", "SECONDS", "Outcome", "run_inputs", "summary"]

SECONDS, MEMORY = 10, 2**30
_PATIENCE = 60
"""Seconds on the clock until a worker is given up: another program may have the processor."""


class Outcome(NamedTuple):
    """What came of an input."""

    number: int
    kind: str
    """``refused``, ``accepted``, or what is wrong: ``traceback``, ``lines``, ``code``, ``slow``, ``memory``, ``died``."""
    said: str = ""

    @property
    def is_right(self) -> bool:
        """Whether it is as promised."""
        return self.kind in ("refused", "accepted")


def run_inputs(reader: str, numbers: Iterable[int], seed: int = 0) -> Iterator[Outcome]:
    """The outcomes of the inputs with these ``numbers``, each of which depends on nothing but reader, seed and number."""
    left = list(numbers)
    context = multiprocessing.get_context("fork")
    home = Path(_home().name)
    READERS[reader](Random(0), _empty(home / "warm"))  # what is made once is made here, not in every worker
    while left:
        here, there = context.Pipe(duplex=False)
        worker = context.Process(target=_work, args=(reader, left, seed, home, here, there))
        worker.start()
        there.close()
        done = 0
        with contextlib.suppress(EOFError):
            while done < len(left):
                if not here.poll(_PATIENCE):
                    worker.kill()
                    break
                yield here.recv()
                done += 1
        worker.join()
        if done < len(left):
            kind = "slow" if worker.exitcode == -9 else "died"
            yield Outcome(left[done], kind, f"exit code {worker.exitcode}")
            done += 1
        left = left[done:]


@functools.cache
def _home() -> tempfile.TemporaryDirectory[str]:
    """Where inputs lie, and what is made once for all of them; it goes when the process ends."""
    home = tempfile.TemporaryDirectory(prefix="fuzz-")
    bases.BASES.append(Path(home.name))
    return home


def summary(reader: str, outcomes: Iterable[Outcome]) -> str:
    """A line for people."""
    counts = Counter(outcome.kind for outcome in outcomes)
    total = sum(counts.values())
    return f"{reader:<12}{total:>7} inputs: " + ", ".join(f"{count} {kind}" for kind, count in counts.most_common())


def _empty(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _work(reader: str, numbers: list[int], seed: int, home: Path, other: Any, connection: Any) -> None:
    """What a worker does: every input, then an end without the parent's clean-up."""
    other.close()  # else a worker whose parent was killed would wait for ever to be read
    gc.freeze()  # what the parent holds is not looked through again and again
    held = _held()
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (held + 6 * MEMORY, held + 6 * MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for number in numbers:
        folder = _empty(home / f"input-{os.getpid()}")
        random = Random(f"{seed} {reader} {number}")
        connection.send(Outcome(number, *_outcome(READERS[reader](random, folder))))
        shutil.rmtree(folder, ignore_errors=True)
    os._exit(0)


def _held() -> int:
    """Bytes of address space that this process has."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except OSError:
        return 2 * MEMORY


def _outcome(commands: list[list[str]]) -> tuple[str, str]:
    for n, command in enumerate(commands):
        before, began = resource.getrusage(resource.RUSAGE_SELF), time.monotonic()
        resident = _resident()
        code, said, raised = _run(command)
        after = resource.getrusage(resource.RUSAGE_SELF)
        grown = (after.ru_maxrss - resident) * 1024 if after.ru_maxrss > before.ru_maxrss else 0
        seconds = min(time.monotonic() - began, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        shown = f"{' '.join(command)}\n{said[-3000:]}"
        lines = said.strip().splitlines()
        if raised or "Traceback" in said:
            return "traceback", f"{shown}{raised}"
        if code == 2 and (len(lines) != 1 or not lines[0].startswith("coupled-sampling: error: ")):
            return "lines", shown
        if code not in (0, 2) or (code == 0 and "Warning" in said):
            return "code", f"exit code {code}: {shown}"
        if seconds > SECONDS:
            return "slow", f"{seconds:.1f} s: {shown}"
        if grown > MEMORY:
            return "memory", f"{grown / 2**30:.1f} GiB: {shown}"
        if code == 2:
            return "refused", f"{n} {lines[0]}"
    return "accepted", ""


def _resident() -> int:
    """Kilobytes in memory now."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() // 1024
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _run(command: list[str]) -> tuple[int, str, str]:
    """Exit code, what went to standard error, by native code as well, and a traceback."""
    raised, code = "", -1
    with tempfile.TemporaryFile() as error, tempfile.TemporaryFile() as output, _standard(output, error):
        try:
            code = main(command)
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        except BaseException:
            raised = traceback.format_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        error.seek(0)
        return code, error.read().decode("utf-8", "replace"), raised


@contextlib.contextmanager
def _standard(output: Any, error: Any) -> Iterator[None]:
    """Standard output and error are these files, for Python and for everybody else in the process."""
    kept, streams = (os.dup(1), os.dup(2)), (sys.stdout, sys.stderr)
    os.dup2(output.fileno(), 1)
    os.dup2(error.fileno(), 2)
    sys.stdout = open(1, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
    try:
        yield
    finally:
        sys.stdout, sys.stderr = streams
        os.dup2(kept[0], 1)
        os.dup2(kept[1], 2)
        for one in kept:
            os.close(one)

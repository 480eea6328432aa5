"""Do the tests see? Plant realistic bugs, one at a time, and see the tests fail.

    python tests/mutants/run.py [--list] [--only NAME ...] [--jobs N] [--timeout SECONDS]

Every bug is planted into a copy of the checkout in a temporary folder; the working tree is only read. The bug's own
test files run first, and the whole suite if those let it pass. A bug is killed by a failing test or by exceeding the
time limit. Before that, the copy without any bug must pass the same tests: else a failure would say nothing.

Exit status: 0 if every bug was killed, 1 if one survived or the copy without bugs fails, 2 if something could not be
run.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from types import FrameType

from bugs import BUGS
from planting import Bug

ROOT = Path(__file__).resolve().parents[2]
NOT_COPIED = (
    ".venv", ".git", "build", "dist", "node_modules", "__pycache__",
    ".mypy_cache", ".ruff_cache", ".pytest_cache", ".hypothesis", "*.egg-info"
)  # fmt: skip
NO_JUDGE = "test_mutants.py"
"""It fails wherever a bug is planted, because the right code is gone: it would kill all of them, and mean nothing."""
BUILDS = "COUPLED_SAMPLING_TEST_BUILDS"
"""The variable that names the folder of what tests compile, see ``standins/builds.py``."""
PASSED, FAILED = 0, 1
FAILURE = re.compile(r"^(?:FAILED|ERROR) (\S+::.+?)(?: - .*)?$", re.MULTILINE)


class CannotRunError(Exception):
    """Pytest neither passed nor failed, or the list does not fit: nothing was learnt."""

    status = 2


class UnhealthyError(CannotRunError):
    """The copy without a bug fails."""

    status = 1


@dataclass(frozen=True)
class Verdict:
    """What became of one bug."""

    bug: Bug
    killed_by: str | None
    """The test that failed, or a sentence about the time limit; None for a survivor."""
    whole_suite: bool
    """Whether all tests were run, because the bug's own test files had let it pass."""
    seconds: float


class Suite:
    """Runs pytest in copies of the checkout, and stops every run when it is closed."""

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self._running: set[subprocess.Popen[str]] = set()
        self._lock = threading.Lock()
        self._closed = False

    def first_failure(self, copy: Path, tests: Sequence[Path], limit: float, workers: int = 1) -> str | None:
        """The first failing test among ``tests`` in ``copy``, or what else ended the run; None if all pass.

        ``tests`` are test files from the root of the checkout; none means the whole suite. ``workers`` run them side by side.

        Raises
        ------
        CannotRunError
            Pytest could not collect or run the tests.
        """
        command = [sys.executable, "-m", "pytest", "-x", "-q", "--tb=line", "-p", "no:cacheprovider"]
        command += ["-p", "hypothesis_for_mutants", f"--ignore-glob=*/{NO_JUDGE}", *map(str, tests)]
        command += ["-n", str(workers), "--dist", "worksteal"] if workers > 1 else []
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
        environment["PYTHONPATH"] = os.pathsep.join([str(copy), str(copy / "tests" / "mutants")])
        # A bug may leave a file's size and second unchanged, which is all that compiled code is checked by.
        environment["PYTHONDONTWRITEBYTECODE"] = "1"
        environment["COUPLED_SAMPLING_ALL_CASES"] = "1"  # every case of the tests, as in a long run
        # What the tests compile is the same for most bugs; a bug in what is compiled makes a build of its own.
        environment[BUILDS] = str(copy.parent / BUILDS)
        (copy.parent / BUILDS).mkdir(exist_ok=True)
        with self._lock:
            if self._closed:
                raise CannotRunError("stopped")
            process = subprocess.Popen(
                command, cwd=copy, env=environment, text=True, start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )  # fmt: skip
            self._running.add(process)
        try:
            output, _ = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            return f"time limit of {limit:.0f} s"
        finally:
            _kill(process)
            self._running.discard(process)
        if process.returncode == PASSED:
            return None
        found = FAILURE.search(output)
        if process.returncode == FAILED and found:
            return found[1]
        raise CannotRunError(f"pytest ended with status {process.returncode}:\n{output[-3000:]}")

    def close(self) -> None:
        """Stop what is running, and start nothing more."""
        with self._lock:
            self._closed = True
            for process in list(self._running):
                _kill(process)


def _kill(process: subprocess.Popen[str]) -> None:
    """End the process and its children, if they still run."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):  # it may end by itself just now
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def examine(bug: Bug, copy: Path, suite: Suite, whole_suite: bool) -> Verdict:
    """Plant ``bug`` in ``copy``, run its own test files or the whole suite, and put the source back."""
    began = time.perf_counter()
    tests, limit = ([], 10 * suite.limit) if whole_suite else (bug.test_paths(copy), suite.limit)
    change = bug.plant(copy)
    try:
        killed_by = suite.first_failure(copy, tests, limit)
        return Verdict(bug, killed_by, whole_suite, time.perf_counter() - began)
    finally:
        change.undo()


def line(verdict: Verdict) -> str:
    """One row of the table."""
    fate = "killed" if verdict.killed_by else "SURVIVED" if verdict.whole_suite else "elusive"
    late = "  (its own test files let it pass)" if verdict.whole_suite and verdict.killed_by else ""
    return f"{verdict.bug.name:<48} {fate:<8} {verdict.seconds:6.1f} s  {verdict.killed_by or verdict.bug.breaks}{late}"


def hunt(bugs: Sequence[Bug], folder: Path, jobs: int, suite: Suite) -> list[Verdict]:
    """Examine ``bugs`` in ``jobs`` copies inside ``folder``, printing each verdict as it comes.

    All own test files come first; the whole suite, which must pass without a bug, is only for bugs that they let pass.

    Raises
    ------
    UnhealthyError
        The copy without a bug does not pass.
    CannotRunError
        Pytest could not run.
    """
    copies: SimpleQueue[Path] = SimpleQueue()
    for number in range(jobs):
        copy = folder / f"copy-{number}"
        shutil.copytree(ROOT, copy, symlinks=True, ignore=shutil.ignore_patterns(*NOT_COPIED))
        copies.put(copy)
    healthy(sorted({path for bug in bugs for path in bug.test_paths(ROOT)}), folder / "copy-0", suite, jobs)
    verdicts = _examine_all(bugs, copies, jobs, suite, whole_suite=False)
    elusive = [verdict.bug for verdict in verdicts if verdict.killed_by is None]
    if not elusive:
        return verdicts
    healthy([], folder / "copy-0", suite, jobs)
    last = {verdict.bug: verdict for verdict in _examine_all(elusive, copies, jobs, suite, whole_suite=True)}
    return [last.get(verdict.bug, verdict) for verdict in verdicts]


def _examine_all(
    bugs: Sequence[Bug], copies: SimpleQueue[Path], jobs: int, suite: Suite, whole_suite: bool
) -> list[Verdict]:
    """`examine` each of ``bugs`` in whichever of the ``copies`` is free."""

    def examine_somewhere(bug: Bug) -> Verdict:
        copy = copies.get()
        try:
            verdict = examine(bug, copy, suite, whole_suite)
        finally:
            copies.put(copy)
        print(line(verdict), flush=True)
        return verdict

    with ThreadPoolExecutor(jobs) as pool:
        try:
            return list(pool.map(examine_somewhere, bugs))
        except BaseException:
            suite.close()
            pool.shutdown(cancel_futures=True)
            raise


def healthy(tests: Sequence[Path], copy: Path, suite: Suite, workers: int) -> None:
    """Refuse to go on if ``tests`` (none for all) fail without a bug."""
    began = time.perf_counter()
    failure = suite.first_failure(copy, tests, 10 * suite.limit, workers)
    if failure is not None:
        raise UnhealthyError(f"without any bug, the tests fail: {failure}")
    name = f"{len(tests)} test files" if tests else "the whole suite"
    print(f"without any bug, {name}: passed, {time.perf_counter() - began:.1f} s", flush=True)


def chosen(names: Sequence[str]) -> list[Bug]:
    """The bugs called ``names``; all if there are none."""
    known = {bug.name: bug for bug in BUGS}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise CannotRunError(f"--only {' '.join(unknown)}: there is no such bug; --list names them all")
    return [known[name] for name in names] if names else list(BUGS)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="Plant bugs one at a time and see the tests fail.")
    parser.add_argument("--list", action="store_true", help="name all bugs and what they break, run nothing")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="plant only these")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, metavar="N",
                        help="runs at the same time (default: the number of cores)")  # fmt: skip
    parser.add_argument("--timeout", type=float, default=120, metavar="SECONDS",
                        help="limit for a bug's own test files; the whole suite gets ten times as long (default 120)")  # fmt: skip
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, _interrupt)
    suite, began = Suite(options.timeout), time.perf_counter()
    try:
        bugs = chosen(options.only)
        misfits = [f"{bug.name}: {reason}" for bug in bugs if (reason := bug.misfit(ROOT)) is not None]
        if misfits:
            raise CannotRunError("the list does not fit the code:\n" + "\n".join(misfits))
        if options.list:
            print("\n".join(f"{bug.name:<48} {bug.within:<32} {bug.breaks}" for bug in bugs))
            return 0
        with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
            verdicts = hunt(bugs, Path(folder), max(1, options.jobs), suite)
    except CannotRunError as reason:
        print(reason, file=sys.stderr)
        return reason.status
    except KeyboardInterrupt:
        return 130
    finally:
        suite.close()
    survivors = [verdict for verdict in verdicts if verdict.killed_by is None]
    late = sum(verdict.whole_suite and verdict.killed_by is not None for verdict in verdicts)
    print(
        f"{len(verdicts) - len(survivors)} of {len(verdicts)} bugs killed ({late} of them only by the whole suite) in "
        f"{time.perf_counter() - began:.0f} s"
    )
    return 1 if survivors else 0


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())

"""How parts of a benchmark are run: each in a process of its own, its figures kept as they come.

Only Python's own library is used here, so that nothing that a part lacks can end the whole.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

SKIPPED = 3
"""Exit code of a part that this machine cannot run."""
ENVIRONMENT = {
    "NVIDIA_TF32_OVERRIDE": "0",  # no library rounds float32 products to fewer bits, which would be another model
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # else JAX takes three quarters of the GPU, whoever uses it beside
    "OMP_NUM_THREADS": "1",  # the host's products are small: threads would only wait for each other
    "PYTHONUNBUFFERED": "1",
}
"""What every part's environment has, unless the caller's says otherwise."""
VENDORED = ("sklearn/externals", "scipy/_external", "scipy/_lib")
"""Where packages that are often there keep a copy of array-api-compat, which the library needs and a CUDA image may lack."""
LOG_LINES = 12

Figure = tuple[str, Any]
"""Where a figure belongs in the result, and what it is."""


class Part(NamedTuple):
    """Something to measure."""

    name: str
    seconds: float
    """That it may take, whatever is left of the whole."""
    module: str = ""
    """A module without which it is skipped: looking for it saves a process."""
    needs: str = ""
    """A figure without which it is skipped."""
    reason: str = ""
    """What is said then."""

    def obstacle(self, result: Mapping[str, Any]) -> str | None:
        """Why it cannot run, as far as that is known without trying."""
        if self.module and importlib.util.find_spec(self.module) is None:
            return f"the module {self.module} is not installed"
        return self.reason if self.needs and not result.get(self.needs) else None


class Report:
    """What was measured so far, written again after every figure.

    Parameters
    ----------
    path
        From a result to a JSON file with a list of earlier results, to which this one is added; None writes nothing.
    settings
        What was asked for.
    lists
        Names of figures of which there may be several.
    """

    def __init__(
        self, path: Callable[[dict[str, Any]], Path | None], settings: dict[str, Any], lists: Sequence[str]
    ) -> None:
        self._path, self._lists = path, lists
        self.path: Path | None = None
        self.earlier: list[Any] = []
        self.result: dict[str, Any] = {**settings, "complete": False, **{name: [] for name in lists}}

    def add(self, name: str, value: Any) -> None:
        if name in self._lists:
            self.result[name].append(value)
        else:
            self.result[name] = value
        if self.path is None:
            self.path = self._path(self.result)
            if self.path is None:
                return
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.earlier = json.loads(self.path.read_text()) if self.path.exists() else []
        # By way of another file: the one that is there is whole, whatever ends the run.
        partial = self.path.with_name(f".{self.path.name}.partial")
        partial.write_text(json.dumps([*self.earlier, self.result], indent=2) + "\n")
        partial.replace(self.path)


def environment(folder: Path, root: Path) -> dict[str, str]:
    """What a part finds: this repository on its path, and ``array_api_compat`` through ``folder`` if it is not installed."""
    paths = [str(root), *filter(None, [os.environ.get("PYTHONPATH")])]
    if importlib.util.find_spec("array_api_compat") is None:
        for copy in _copies():
            folder.mkdir(exist_ok=True)
            (folder / "array_api_compat").symlink_to(copy)
            paths.append(str(folder))
            break
    return {**ENVIRONMENT, **os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def _copies() -> Iterator[Path]:
    for place in VENDORED:
        package, _, inside = place.partition("/")
        found = importlib.util.find_spec(package)  # without importing it
        for folder in found.submodule_search_locations or () if found else ():
            for name in ("array_api_compat", "array_api_compat/array_api_compat"):
                copy = Path(folder) / inside / name
                if (copy / "numpy" / "__init__.py").is_file():
                    yield copy


def figures(part: str, command: list[str], seconds: float, environment: Mapping[str, str]) -> Iterator[Figure]:
    """Run ``part`` as a process, for ``seconds`` at most: its figures as they come, then what went wrong, if anything did."""
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            [*command, "--part", part], stdout=subprocess.PIPE, stderr=errors, text=True, env=dict(environment)
        )
        is_late = threading.Event()

        def stop() -> None:
            is_late.set()
            process.kill()

        timer = threading.Timer(seconds, stop)
        timer.start()
        try:
            assert process.stdout is not None
            for line in process.stdout:
                with contextlib.suppress(ValueError):  # what libraries print
                    found = json.loads(line)
                    if isinstance(found, dict):
                        yield from found.items()
            code = process.wait()
        finally:
            timer.cancel()
            process.kill()
            process.wait()
        if code:
            errors.seek(0)
            said = errors.read().strip().splitlines()[-LOG_LINES:] or [f"exit code {code}"]
            reason = f"not done after {seconds:.0f} seconds" if is_late.is_set() else said[-1]
            kind = "skipped" if code == SKIPPED else "failed"
            yield "problems", {"part": part, kind: reason, **({} if code == SKIPPED else {"code": code, "log": said})}


def run(parts: Sequence[Part], end: float, command: list[str], environment: Mapping[str, str], report: Report) -> None:
    """All parts, one after the other, until they are done or `time.monotonic` is at ``end``."""
    for part in parts:
        left, obstacle = end - time.monotonic(), part.obstacle(report.result)
        if obstacle is not None:
            report.add("problems", {"part": part.name, "skipped": obstacle})
        elif left < 5:
            report.add("problems", {"part": part.name, "skipped": "the time of --seconds is over"})
        else:
            began, count = time.monotonic(), 0
            for name, value in figures(part.name, command, min(left, part.seconds), environment):
                report.add(name, value)
                count += name != "problems"
            took = time.monotonic() - began
            report.add("seconds_by_part", {**report.result.get("seconds_by_part", {}), part.name: round(took, 1)})
            print(f"{part.name}: {count} figures in {took:.1f} s", file=sys.stderr)


def reason(problem: dict[str, Any]) -> str:
    return str(problem.get("skipped") or problem.get("failed"))


def give(figure: Figure) -> None:
    print(json.dumps(dict([figure])), flush=True)

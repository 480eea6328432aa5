"""Kernels, steps and decoding on a GPU: one table, and the same as JSON.

    python benchmarks/gpu.py [--json FILE] [--seconds 540] [--no-model] [--backends cuda,step-graph] [--steps 50] [--device 0]

- Bandwidth: a copy within the GPU's memory, bytes read and written.
- Kernels: the four kernels of a step at B = 1, W = 64 (AR: 1), V = 65,536, float32, by the device's own clock, beside the memory
  floor: the time in which the logits are read once, and where the method keeps laws these are written once, at that bandwidth.
  ``kernels`` is of a CUDA graph of them; ``launched`` is of kernels launched one by one from Python, gaps included. Logits are read
  at addresses in turn, more than a cache holds; laws are written over those of the step before.
  With the number of blocks that share a slot as `blocks_per_slot` has it, and with others for comparison.
- Step: a whole `KernelStep` over logits that are there already, always at one address, by the host's clock, and what it costs
  beyond its kernels.
- Decoding: a random Llama-shaped model of 1.1 billion parameters made on the spot, tokens per second of AR and SCD, each alone,
  by every back end. Random weights accept as they do; how many tokens a step makes is in the table, and of a trained model it is
  another number. ``cuda`` computes in float32, ``tensorrt`` in float16.

Every part runs in a process of its own. One that fails, crashes or takes too long is noted with its reason, as is one that this
machine cannot run, and the next one begins. The JSON is written again after every figure, so whatever ends the run leaves what was
measured. All figures are medians, but for tokens per second. Written, never run on a GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gpu_parts import BACKENDS, METHODS, run_part

from coupled_sampling.bundles.files import check_writable, write_whole
from coupled_sampling.errors import CoupledSamplingError, MissingDependency

LISTS = ("decisions", "decoding", "problems")
MOST_SECONDS = {"machine": 60, "kernels": 90, "model": 240, "decoding": 240}
"""That a part of this kind may take, whatever is left of the whole."""
PLAIN_FLOAT32 = {"NVIDIA_TF32_OVERRIDE": "0"}
"""Environment of every part: no library rounds float32 products to fewer bits, which would be another model."""
SKIPPED = 3
"""Exit code of a part that this machine cannot run."""


class Report:
    """What was measured so far, written again after every figure.

    Parameters
    ----------
    path
        A JSON file with a list of earlier results, to which this one is added; None writes nothing.
    settings
        What was asked for.
    """

    def __init__(self, path: Path | None, settings: dict[str, Any]) -> None:
        self.path = path
        if path is not None:
            check_writable(path)
        self.earlier = json.loads(path.read_text()) if path is not None and path.exists() else []
        self.result: dict[str, Any] = {**settings, "complete": False, **{name: [] for name in LISTS}}

    def add(self, name: str, value: Any) -> None:
        if name in LISTS:
            self.result[name].append(value)
        else:
            self.result[name] = value
        if self.path is not None:
            text = json.dumps([*self.earlier, self.result], indent=2) + "\n"
            write_whole(self.path, lambda partial: partial.write_text(text))


def figures(part: str, command: list[str], seconds: float) -> Iterator[tuple[str, Any]]:
    """Run ``part`` as a process, for ``seconds`` at most: its figures as they come, then what went wrong, if anything did."""
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            [*command, "--part", part],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**os.environ, **PLAIN_FLOAT32},
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
            said = errors.read().strip().splitlines()[-12:] or [f"exit code {code}"]
            reason = f"not done after {seconds:.0f} seconds" if is_late.is_set() else said[-1]
            kind = "skipped" if code == SKIPPED else "failed"
            yield "problems", {"part": part, kind: reason, **({} if code == SKIPPED else {"code": code, "log": said})}


def run(arguments: argparse.Namespace, command: list[str], report: Report) -> None:
    """All parts, one after the other, until they are done or the time is."""
    end = time.monotonic() + arguments.seconds
    parts = ["machine", *(f"kernels:{method}" for method in METHODS)]
    parts += ["model", *(f"decoding:{backend}" for backend in arguments.backends)] if arguments.model else []
    for part in parts:
        kind, left = part.partition(":")[0], end - time.monotonic()
        if kind == "decoding" and "parameters" not in report.result:
            report.add("problems", {"part": part, "skipped": "there is no model"})
        elif left < 5:
            report.add("problems", {"part": part, "skipped": f"the {arguments.seconds} seconds of --seconds are over"})
        else:
            began, count = time.monotonic(), 0
            for name, value in figures(part, command, min(left, MOST_SECONDS[kind])):
                report.add(name, value)
                count += name != "problems"
            print(f"{part}: {count} figures in {time.monotonic() - began:.1f} s", file=sys.stderr)
            if part == "machine" and "machine" not in report.result:
                raise SystemExit(f"this benchmark needs an NVIDIA GPU: {_reason(report.result['problems'][-1])}")
    report.add("complete", True)


def _reason(problem: dict[str, Any]) -> str:
    return str(problem.get("skipped") or problem.get("failed"))


def print_result(result: dict[str, Any]) -> None:
    machine, bandwidth = result["machine"], result.get("bandwidth")
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    print(f"{machine['gpu']} ({machine['compute_capability']}), driver for CUDA {machine['driver']}; {packages}")
    print(f"copy within the GPU: {bandwidth / 1e9:.0f} GB/s" if bandwidth else "copy within the GPU: not measured")
    print(f"\nB = 1, W = {result['width']}, V = {result['vocab_size']}; ms; * blocks per slot as chosen")
    columns = ("kernels", "floor", "ratio", "launched", "step", "overhead")
    print(f"{'method':<12}{'sampling':<24}{'blocks':>8}" + "".join(f"{name:>10}" for name in columns))
    for row in result["decisions"]:
        floor = 1e3 * row["floor_bytes"] / bandwidth if bandwidth else float("nan")
        times = (
            row["kernels_ms"],
            floor,
            row["kernels_ms"] / floor,
            row["launched_ms"],
            row["step_ms"],
            row["overhead_ms"],
        )
        print(
            f"{row['method']:<12}{row['sampling']:<24}{row['blocks_per_slot']:>7}{' *'[row['chosen']]}"
            + "".join(f"{value:>10.3f}" for value in times)
        )
    if result["decoding"]:
        print(f"\n{result['parameters'] / 1e9:.2f} billion random parameters, one sequence")
        print(
            f"{'back end':<14}{'method':<12}{'decided by':<12}{'window':>7}{'tokens/s':>10}{'tokens/step':>13}{'over AR':>9}"
        )
        ar = {row["backend"]: row["tokens_per_second"] for row in result["decoding"] if row["method"] == "ar"}
        for row in result["decoding"]:
            ratio = row["tokens_per_second"] / ar.get(row["backend"], float("nan"))
            print(
                f"{row['backend']:<14}{row['method']:<12}{row['decided_by']:<12}{row['window']:>7}"
                f"{row['tokens_per_second']:>10.1f}{row['tokens_per_step']:>13.2f}{ratio:>9.2f}"
            )
    for problem in result["problems"]:
        print(f"\n{problem['part']} {'was skipped' if 'skipped' in problem else 'failed'}: {_reason(problem)}")


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--steps", type=int, default=50, help="steps of which medians are taken")
    made.add_argument("--width", type=int, default=64, help="W of the kernels' table")
    made.add_argument("--vocab-size", type=int, default=65536, help="V of the kernels' table")
    made.add_argument("--length", type=int, default=256, help="tokens to decode with the model")
    made.add_argument("--window", type=int, default=32, help="window of the model's decoding")
    made.add_argument("--layers", type=int, default=16, help="16 are 1.1 billion parameters")
    made.add_argument("--device", type=int, default=0, help="which GPU")
    made.add_argument(
        "--seconds", type=float, default=540, help="after which no part begins and the running one is ended"
    )
    made.add_argument(
        "--backends",
        type=lambda text: [name.strip() for name in text.split(",")],
        default=list(BACKENDS),
        help=f"what decodes with the model, of {','.join(BACKENDS)} (default: all, one after the other)",
    )
    made.add_argument(
        "--model", action=argparse.BooleanOptionalAction, default=True, help="whether to decode with a model"
    )
    made.add_argument("--json", type=Path, help="add the result to this file, a list")
    made.add_argument("--copied", type=int, default=2**30, help=argparse.SUPPRESS)
    made.add_argument("--spread", type=int, default=2**28, help=argparse.SUPPRESS)
    made.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    made.add_argument("--part", help=argparse.SUPPRESS)
    return made


def give(figure: tuple[str, Any]) -> None:
    print(json.dumps(dict([figure])), flush=True)


def command_of(folder: str) -> list[str]:
    """What measures a part, once its name is added."""
    return [sys.executable, __file__, *sys.argv[1:], "--folder", folder]


def main() -> int:
    arguments = parser().parse_args()
    unknown = sorted(set(arguments.backends) - set(BACKENDS))
    if unknown:
        raise SystemExit(f"backends has {', '.join(unknown)}, expected some of {','.join(BACKENDS)}")
    if arguments.part:
        try:
            run_part(arguments.part, arguments, give)
        except MissingDependency as error:
            print(error, file=sys.stderr)
            return SKIPPED
        return 0
    # A run that is ended from outside ends its part, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    settings = ("steps", "width", "vocab_size", "length", "window")
    try:
        report = Report(arguments.json, {name: getattr(arguments, name) for name in settings})
        with tempfile.TemporaryDirectory() as folder:
            try:
                run(arguments, command_of(folder), report)
            finally:
                if "machine" in report.result:
                    print_result(report.result)
    except CoupledSamplingError as error:
        raise SystemExit(str(error)) from None
    return 1 if any("failed" in problem for problem in report.result["problems"]) else 0


if __name__ == "__main__":
    sys.exit(main())

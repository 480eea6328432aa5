"""Everything there is to measure on a GPU, by one command, in nine minutes at most: one table, and the same as JSON.

    python benchmarks/first_light_gpu.py [--seconds 540] [--only noise,jax:1b] [--json FILE] [--device 0]
    python benchmarks/first_light_gpu.py --rehearse      # small sizes, on whatever is here

It needs no network, and this repository need not be installed. What is missing is noted, and costs one part:

| part | needs | measures |
|---|---|---|
| `machine` | `cuda-python` | card, driver, packages, load; a copy within the GPU's memory, bytes read and written |
| `noise`, `tokens:METHOD` | `cuda-python` | are the kernels' noise and decisions the library's? (`gpu_tokens.py`) |
| `kernels:METHOD`, `blocks:METHOD` | `cuda-python` | kernels and whole steps without a model; other numbers of blocks |
| `jax:1b`, `jax:3b`, `jax:embedded` | JAX with CUDA | decoding as one jitted loop (`gpu_jax.py`) |
| `arrays:LIBRARY` | torch or CuPy | `HostStep` on arrays on the GPU (`gpu_arrays.py`) |
| `runtimes:BACKEND` | `onnxruntime-gpu` or TensorRT | the embedded model, opened by that back end |
| `model`, `decoding:BACKEND` | and `onnx`, `ml_dtypes`, `safetensors` | a random model of 1.1 billion, float16, made on the spot |

Kernels at B = 1, W = 64 (AR: 1), V = 65,536, float32 are timed by the device's own clock, beside the memory floor: the time in
which the logits are read once, and where the method keeps laws these are written once, at the copy's bandwidth. ``kernels_ms`` is
of a CUDA graph of them; ``launched_ms`` is of kernels launched one by one from Python, gaps included. Logits are read at addresses
in turn, more than a cache holds; laws are written over those of the step before. ``step_ms`` is of a whole `KernelStep` over logits
that are there already, always at one address, by the host's clock; ``overhead_ms`` is what it costs beyond its kernels.

What is wanted most comes first. Every part runs in a process of its own, with a limit of its own. One that fails, crashes or takes
too long is noted with its reason, and the next one begins. The JSON, a list to which each run adds one result, is written again
after every figure, so whatever ends the run leaves what was measured. All figures are medians, but for tokens per second.
Rehearsed without a GPU; never run on one.
"""

from __future__ import annotations

import argparse
import importlib
import re
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from gpu_frame import SKIPPED, Part, Report, environment, give, reason, run
from gpu_table import LISTS, print_table

ROOT = Path(__file__).resolve().parents[1]
METHODS = ("scd-match", "scd-maximal", "scd-gumbel", "sjd", "ar")
BACKENDS = ("cuda", "cuda-graphs", "step-graph", "tensorrt", "tensorrt-rtx")
RUNTIMES = {"cuda": "onnxruntime", "cuda-graphs": "onnxruntime", "tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
"""Back ends of the embedded model, and the module that each needs."""
MEASURES = {
    "machine": "gpu_machine", "noise": "gpu_tokens", "tokens": "gpu_tokens", "kernels": "gpu_parts", "blocks": "gpu_parts",
    "jax": "gpu_jax", "arrays": "gpu_arrays", "runtimes": "gpu_arrays", "model": "gpu_parts", "decoding": "gpu_parts",
}  # fmt: skip
"""In which module ``of_KIND`` measures parts of a kind; it is imported by the part's process only."""
REHEARSED: dict[str, Any] = {
    "steps": 3, "width": 4, "vocab_size": 300, "length": 12, "window": 4, "layers": 1, "copied": 10**6, "spread": 20000,
    "compared_steps": 12, "compared_width": 4, "forced_length": 24, "windows": [4, 6], "per_pass": [2, 3], "repeats": 1,
    "pictures": 1, "picture_length": 30,
}  # fmt: skip
"""Sizes of a rehearsal."""


def all_parts(arguments: argparse.Namespace) -> list[Part]:
    """What is wanted most first."""
    first, second, *others = METHODS
    parts = [
        Part("machine", 60),
        Part("noise", 60),
        Part(f"tokens:{first}", 90),
        *(Part(f"kernels:{method}", 60) for method in (first, second)),
        Part("jax:1b", 200, "jax"),
        Part("jax:embedded", 90, "jax"),
        Part("arrays:torch", 75, "torch"),
        Part("arrays:cupy", 75, "cupy"),
        *(Part(f"kernels:{method}", 45) for method in others),
        *(Part(f"runtimes:{name}", 60, RUNTIMES[name]) for name in RUNTIMES),
        Part("jax:3b", 200, "jax"),
        *(Part(f"tokens:{method}", 75) for method in (second, *others)),
        *(Part(f"blocks:{method}", 45) for method in (first, second)),
    ]
    if arguments.rehearse:  # before the model, which is made where a runtime ran
        parts.append(Part("runtimes:cpu", 60, "onnxruntime"))
    if arguments.model:
        parts.append(Part("model", 240, "onnx", "runtimes", "no part of runtimes: gave a figure"))
        parts += [Part(f"decoding:{name}", 240, "", "parameters", "there is no model") for name in arguments.backends]
    if not arguments.only:
        return parts
    return [part for part in parts if {part.name, part.name.partition(":")[0]} & {"machine", *arguments.only}]


def written_to(arguments: argparse.Namespace, result: dict[str, Any]) -> Path | None:
    """Where the result belongs: where it was asked for, or by the card's name, once that is known."""
    if arguments.json is not None or arguments.rehearse:
        return arguments.json
    card = result.get("machine", {}).get("gpu")
    if card is None:
        return None
    return ROOT / "benchmarks" / "results" / f"gpu-{re.sub(r'[^a-z0-9]+', '-', card.lower()).strip('-')}.json"


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)

    def names(text: str) -> list[str]:
        return [name.strip() for name in text.split(",") if name.strip()]

    def numbers(text: str) -> list[int]:
        return [int(number) for number in names(text)]

    made.add_argument("--only", type=names, help="some of the parts, or kinds of them (default: all)")
    made.add_argument("--rehearse", action="store_true", help="small sizes; JAX and torch may compute on the CPU")
    made.add_argument(
        "--seconds", type=float, default=540, help="after which no part begins and the running one is ended"
    )
    made.add_argument("--json", type=Path, help="a list to add the result to (default: results/gpu-CARD.json)")
    made.add_argument("--device", type=int, default=0, help="which GPU, of the parts over cuda-python")
    made.add_argument("--steps", type=int, default=50, help="steps of the kernels, of which medians are taken")
    made.add_argument("--width", type=int, default=64, help="W of the kernels")
    made.add_argument("--vocab-size", type=int, default=65536, help="V of the kernels")
    made.add_argument(
        "--compared-steps", type=int, default=200, help="steps whose decisions are compared with HostStep's"
    )
    made.add_argument("--compared-width", type=int, default=16, help="and their W: judging takes the host its time")
    made.add_argument("--forced-length", type=int, default=240, help="tokens of a jitted loop")
    made.add_argument(
        "--windows", type=numbers, default=[16, 32, 64], help="W of jitted loops and passes (default 16,32,64)"
    )
    made.add_argument(
        "--per-pass", type=numbers, default=[4, 6, 8], help="tokens per pass that are set (default 4,6,8)"
    )
    made.add_argument("--repeats", type=int, default=5, help="runs of a jitted loop, of which medians are taken")
    made.add_argument("--pictures", type=int, default=3, help="pictures of the embedded model")
    made.add_argument("--picture-length", type=int, default=196, help="and their tokens")
    made.add_argument("--length", type=int, default=256, help="tokens to decode with the exported model")
    made.add_argument("--window", type=int, default=32, help="window of its decoding")
    made.add_argument("--layers", type=int, default=16, help="of the exported model: 16 are 1.1 billion parameters")
    made.add_argument(
        "--compute", default="float16", choices=("float16", "bfloat16", "float32"), help="in which it computes"
    )
    made.add_argument(
        "--backends", type=names, default=list(BACKENDS), help=f"what decodes with it, of {','.join(BACKENDS)}"
    )
    made.add_argument(
        "--model", action=argparse.BooleanOptionalAction, default=True, help="whether to export it at all"
    )
    for name, default in (("--copied", 2**30), ("--spread", 2**28)):
        made.add_argument(name, type=int, default=default, help=argparse.SUPPRESS)
    made.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    made.add_argument("--part", help=argparse.SUPPRESS)
    return made


def parsed(options: list[str] | None = None) -> argparse.Namespace:
    made = parser()
    if made.parse_known_args(options)[0].rehearse:
        made.set_defaults(**REHEARSED)
    arguments = made.parse_args(options)
    unknown = sorted(set(arguments.backends) - set(BACKENDS))
    if unknown:
        made.error(f"--backends has {', '.join(unknown)}, expected some of {','.join(BACKENDS)}")
    if min(arguments.pictures, arguments.repeats, arguments.steps, arguments.compared_steps) < 1:
        made.error("--pictures, --repeats, --steps and --compared-steps are numbers from 1 on")
    known = {name for part in all_parts(argparse.Namespace(**{**vars(arguments), "only": None}))
             for name in (part.name, part.name.partition(":")[0])}  # fmt: skip
    unknown = sorted(set(arguments.only or ()) - known)
    if unknown:
        made.error(f"--only has {', '.join(unknown)}, expected some of {','.join(sorted(known))}")
    return arguments


def run_part(part: str, arguments: argparse.Namespace) -> int:
    """Measure ``part`` and give each figure as soon as it is there; the exit code."""
    from coupled_sampling.errors import MissingDependency

    kind, _, name = part.partition(":")
    try:
        for figure in getattr(importlib.import_module(MEASURES[kind]), f"of_{kind}")(arguments, name):
            give(figure)
    except MissingDependency as error:
        print(error, file=sys.stderr)
        return SKIPPED
    return 0


def command_of(folder: str) -> list[str]:
    """What measures a part, once its name is added."""
    return [sys.executable, __file__, *sys.argv[1:], "--folder", folder]


def main() -> int:
    arguments = parsed()
    if arguments.part:
        return run_part(arguments.part, arguments)
    # A run that is ended from outside ends its part, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    shown = {name: value for name, value in vars(arguments).items() if name not in ("json", "part", "folder")}
    began, end = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime()), time.monotonic() + arguments.seconds
    report = Report(lambda result: written_to(arguments, result), {"began": began, **shown}, (*LISTS, "problems"))
    with tempfile.TemporaryDirectory() as folder:
        try:
            around = environment(Path(folder) / "packages", ROOT)
            first, *others = all_parts(arguments)
            run([first], end, command_of(folder), around, report)
            if "gpu" not in report.result.get("machine", {}) and not arguments.rehearse:
                raise SystemExit(f"this benchmark needs an NVIDIA GPU: {reason(report.result['problems'][-1])}")
            run(others, end, command_of(folder), around, report)
            report.add("complete", True)
        finally:
            if "machine" in report.result:
                print_table(report.result)
                print(f"\nwritten to {report.path}" if report.path else "\nwritten to no file")
    return 1 if any("failed" in problem for problem in report.result["problems"]) else 0


if __name__ == "__main__":
    sys.exit(main())

"""The command line's options that a `coupled_sampling.cli.job.Job` reads: which model, how to sample, and where to run.

Each function makes a parser to be named in ``parents`` by the commands that take these options.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from coupled_sampling.backends.opening import BACKENDS
from coupled_sampling.bundles.opening import embedded_names

__all__ = ["STEPS", "model_arguments", "running_arguments", "sampling_arguments"]

STEPS = ("auto", "host", "graph", "kernels")
"""Where steps are decided."""


def model_arguments() -> argparse.ArgumentParser:
    """Which model."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument(
        "model",
        nargs="?",
        default="fashion",
        help=f"a bundle's folder, or an embedded model: {', '.join(embedded_names())}",
    )
    return parser


def sampling_arguments() -> argparse.ArgumentParser:
    """What to sample, and how."""
    parser = argparse.ArgumentParser(add_help=False)
    add = parser.add_argument
    add(
        "--prompt",
        help="names from `inspect`, separated by commas (default: all in turn); a text, for models that read text",
    )
    add("--length", type=int, help="most tokens per sequence, for models that read text")
    add("--window", type=_window, help="most tokens forwarded per step; auto finds the fastest")
    add("--drafting", help="first guesses: random, repeat, copy:LAG, ngram:N")
    add("--temperature", type=float, help="0 is greedy")
    add("--top-k", type=int)
    add("--top-p", type=float)
    add("--min-p", type=float)
    add("--guidance", type=float, help="classifier-free guidance scale; 1 is none")
    add("--seed", type=int, default=0)
    return parser


def running_arguments() -> argparse.ArgumentParser:
    """Where to run, and what to print about it."""
    parser = argparse.ArgumentParser(add_help=False)
    add = parser.add_argument
    add("--batch-size", type=int, help="sequences decoded together (default 1; verify: 16)")
    add(
        "--backend",
        choices=BACKENDS,
        default="cpu",
        help="what runs the model: ONNX Runtime on the CPU (default), on CUDA, with TensorRT's execution provider; or TensorRT, "
        "TensorRT-RTX. All but cpu were never run on a GPU",
    )
    add("--device", type=int, metavar="N", help="which GPU, as `nvidia-smi -L` counts (default 0)")
    add(
        "--cuda-graphs",
        action=argparse.BooleanOptionalAction,
        help="launch windows of a shape seen before as CUDA graphs, or not (default: tensorrt and tensorrt-rtx do, cuda does not)",
    )
    add(
        "--step",
        choices=STEPS,
        default="auto",
        help="where steps are decided: by the library, in a step graph (the bundle's: cpu, cuda; of scd-match: "
        "tensorrt, tensorrt-rtx), or by CUDA kernels (all but cpu). auto: on the CPU graph if the bundle has one, on a GPU kernels",
    )
    add(
        "--engines",
        type=Path,
        metavar="FOLDER",
        help="where TensorRT's engines are kept (default: beside the bundle's folder)",
    )
    add("--threads", type=int, help="threads within an operator (default: ONNX Runtime's choice)")
    add("--json", action="store_true", help="print figures as JSON")
    return parser


def _window(text: str) -> int | str:
    if text == "auto" or text.lstrip("-").isdigit():
        return text if text == "auto" else int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is no window, expected a number of tokens or auto")

"""Options that several commands share: which model, how to sample, and where to run.

Every help text ends with the option's default. What a value is, its metavar says; `coupled_sampling.cli.completion` goes by it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from coupled_sampling.bundles.opening import embedded_names
from coupled_sampling.bundles.settings import CORRECTIONS
from coupled_sampling.cli.models import BACKENDS, PROVIDERS, STEPS
from coupled_sampling.methods import METHODS

__all__ = [
    "METHOD_NAMES",
    "add_foreign",
    "add_model",
    "add_output",
    "add_place",
    "add_running",
    "add_sampling",
    "add_where",
    "names",
    "window",
]

METHOD_NAMES = ", ".join(METHODS)
"""For help texts."""


def names(text: str) -> tuple[str, ...]:
    """Names separated by commas, as the type of an option."""
    return tuple(name.strip() for name in text.split(","))


def add_model(parser: argparse.ArgumentParser, *, foreign: bool = True) -> None:
    """Which model; not ``foreign`` takes bundles only."""
    embedded = ", ".join(embedded_names())
    parser.add_argument(
        "model",
        metavar="MODEL",
        nargs="?",
        default="fashion",
        help=(
            "an ONNX file or its folder, as Optimum, transformers.js or ONNX Runtime GenAI write them; "
            if foreign
            else ""
        )
        + f"a bundle's folder, or the name of an embedded model: {embedded} (default: %(default)s)",
    )
    if foreign:
        add_foreign(parser)


def add_foreign(parser: argparse.ArgumentParser) -> None:
    """What can be said of ONNX files of other people."""
    parser.add_argument(
        "--widen",
        action="store_true",
        help="let products take floats in an ONNX file that quantises activations; it is refused otherwise, since drafts would "
        "change the tokens before them",
    )
    parser.add_argument(
        "--max-length",
        type=int,
        metavar="N",
        help="positions per sequence of an ONNX file (default: what the configuration beside it says)",
    )


def add_sampling(parser: argparse.ArgumentParser, *, fits: bool = False, prompts: bool = True) -> None:
    """What to sample, and how; ``fits`` is for the command that fits what corrects laws, and leaves out the choice of it.

    Not ``prompts`` is for a command that has them elsewhere.
    """
    if prompts:
        _add_prompt(parser)
    add = parser.add_argument_group("sampling").add_argument
    add(
        "--length",
        type=int,
        metavar="N",
        help="most tokens per sequence; pictures and clips have their own (default: the bundle's, or what fits behind the prompt)",
    )
    add(
        "--temperature",
        type=float,
        metavar="T",
        help="below 1 likely tokens become likelier; 0 is greedy: always the likeliest (default: the bundle's)",
    )
    add("--top-k", type=int, metavar="K", help="draw from the K likeliest tokens only (default: the bundle's)")
    add(
        "--top-p",
        type=float,
        metavar="P",
        help="draw from the likeliest tokens that together have probability P; 1 keeps all (default: the bundle's)",
    )
    add(
        "--min-p",
        type=float,
        metavar="P",
        help="drop tokens less likely than P times the likeliest; 0 keeps all (default: the bundle's)",
    )
    add(
        "--guidance",
        type=float,
        metavar="SCALE",
        help="classifier-free guidance: how strongly the prompt counts; 1 is none (default: the bundle's)",
    )
    add(
        "--guidance-interval",
        metavar="FIRST:END",
        help="guide the generated tokens FIRST, ..., END - 1 only, counted from 0; others are drawn as without guidance, and "
        "either number may be left out (default: the bundle's)",
    )
    add("--seed", type=int, default=0, metavar="N", help="the same seed gives the same tokens (default: %(default)s)")
    add(
        "--window",
        type=window,
        metavar="W",
        help="most tokens in one forward pass"
        + (
            " (default: 32, or what the model takes)"
            if fits
            else "; auto finds the fastest while it decodes (default: the bundle's)"
        ),
    )
    if not fits:
        add(
            "--branches",
            type=int,
            metavar="N",
            help="how many slots of the window are for other guesses beside the first ones, for scd-match and speculative-match, "
            "whose tokens they never change; a window may then be wider than a sequence is long (default: the bundle's)",
        )
    add(
        "--drafting",
        metavar="RULE",
        help="first guesses: random, repeat, copy:LAG or ngram:N; they change the speed, never the law (default: the bundle's)",
    )
    if not fits:
        add(
            "--corrections",
            choices=CORRECTIONS,
            default="auto",
            help="redraw guesses from what their laws become when a neighbour has changed: by the table or the network fitted to "
            "the model, by plain averages learned on the way, or not at all; they change the speed, never the law. auto: fitted, "
            "where the bundle has a table and the step can use it; network, where it has one, a pass is dear enough, and "
            "drafts are accepted by match (default: auto)",
        )


def _add_prompt(parser: argparse.ArgumentParser) -> None:
    """What to begin with."""
    add = parser.add_argument_group("what to begin with").add_argument
    add(
        "--prompt",
        metavar="TEXT",
        help="names that `coupled-sampling inspect` lists, separated by commas; for a language model, a text, which must be given; "
        "- reads standard input (default: all names in turn)",
    )
    add(
        "--prompt-file",
        metavar="FILE",
        help="a file with the prompt, - for standard input; one newline at its end is left out (default: none)",
    )
    add("--tokens", metavar="IDS", help="tokens as numbers, separated by commas, instead of a text (default: none)")
    add(
        "--tokens-file",
        metavar="FILE",
        help="a file with tokens: numbers, a prompt a line; or NumPy's .npy, a prompt a row, or a single one such as the frames "
        "of a clip (default: none)",
    )
    add(
        "--raw",
        action="store_true",
        help="take the text as it stands, without the special tokens that the tokenizer puts before one",
    )
    add("--chat", action="store_true", help="the prompt is a message, put as the model's chat template has it")
    add("--system", metavar="TEXT", help="with --chat, what the conversation begins with (default: the template's own)")


def add_running(parser: argparse.ArgumentParser, batch_size: int = 1, more_steps: Sequence[str] = ()) -> None:
    """Where to run; ``batch_size`` is the default, and ``more_steps`` are what else --step may be, by name or ``name: help``."""
    add = parser.add_argument_group("where it runs").add_argument
    add(
        "--batch-size",
        type=int,
        default=batch_size,
        metavar="N",
        help="most sequences decoded together (default: %(default)s)",
    )
    _add_step(add, more_steps)
    _add_place(add)


def add_place(parser: argparse.ArgumentParser) -> None:
    """Where to run, for a command that has its own way to decode: one sequence at a time, by the library."""
    _add_place(parser.add_argument_group("where it runs").add_argument)
    parser.set_defaults(batch_size=1, step="host")


def add_where(parser: argparse.ArgumentParser) -> None:
    """Where to run, for a command that says elsewhere how many sequences are decoded together."""
    add = parser.add_argument_group("where it runs").add_argument
    _add_step(add, ())
    _add_place(add)


def _add_place(add: Callable[..., object]) -> None:
    add(
        "--backend",
        choices=BACKENDS,
        default="cpu",
        help="what runs the model: cpu and cuda are ONNX Runtime, tensorrt and tensorrt-rtx an engine of TensorRT's own, openvino "
        "is OpenVINO on the CPU, ort is ONNX Runtime with the plugin that --provider names. Those "
        "for GPUs were never run on one (default: %(default)s)",
    )
    add("--provider", choices=PROVIDERS, help="the plugin of ONNX Runtime, for --backend ort (default: none)")
    add(
        "--device",
        type=int,
        metavar="N",
        help="which GPU, as `nvidia-smi -L` counts, or which of a plugin's devices (default: 0, the first)",
    )
    add(
        "--cuda-graphs",
        action=argparse.BooleanOptionalAction,
        help="launch windows of a shape seen before as CUDA graphs, or not (default: tensorrt and tensorrt-rtx do, cuda does not)",
    )
    add(
        "--engines",
        type=Path,
        metavar="FOLDER",
        help="where TensorRT's engines are kept (default: the bundle's folder with .engines behind its name)",
    )
    add("--threads", type=int, metavar="N", help="threads within an operator (default: the runtime's choice)")


def _add_step(add: Callable[..., object], more_steps: Sequence[str]) -> None:
    add(
        "--step",
        choices=(*STEPS, *(step.split(":")[0] for step in more_steps)),
        default="auto",
        help="where drafts are accepted and redrawn. host: by the library. graph: in one graph with the model (the bundle's own on "
        "cpu and cuda, one made for scd-match on tensorrt and tensorrt-rtx). kernels: by CUDA kernels, on a GPU. auto: on "
        "the CPU in a graph if the bundle and the back end have one, on a GPU by kernels"
        + "".join(f". {step}" for step in more_steps)
        + " (default: %(default)s)",
    )


def add_output(parser: argparse.ArgumentParser) -> None:
    """What is printed."""
    parser.add_argument("--json", action="store_true", help="print JSON for programs instead of text for people")


def window(text: str) -> int | str:
    """A number of slots or "auto", as the type of an option."""
    if text == "auto" or text.lstrip("-").isdigit():
        return text if text == "auto" else int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is no window, expected a number of tokens or auto")

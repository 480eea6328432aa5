"""``coupled-sampling export``: a checkpoint into a bundle."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from coupled_sampling.cli.arguments import add_output, names
from coupled_sampling.cli.models import open_on_cpu
from coupled_sampling.cli.output import say, say_json, tell
from coupled_sampling.cli.outputs import add_clean, mention_leftovers
from coupled_sampling.cli.progress import byte_bar
from coupled_sampling.cli.step_graphs import named_methods
from coupled_sampling.errors import InvalidArgument

if TYPE_CHECKING:
    from coupled_sampling.export.bundles import ExportSettings

__all__ = ["DESCRIPTION", "EXAMPLES", "SUMMARY", "add_arguments", "run"]

SUMMARY = "make a bundle from a checkpoint"
DESCRIPTION = """\
Make a bundle, the folder that all other commands work on, from a checkpoint: a
folder of Hugging Face, a .safetensors file with config.json beside it, a .gguf
file, or an archive of PyTorch (.pt, .bin), of which nothing is run. Nothing is
downloaded, PyTorch is not needed, and a bundle appears whole or not at all."""
EXAMPLES = """\
  # a folder of Hugging Face, and a look at whether the logits are right
  coupled-sampling export CHECKPOINT OUT --check
  # a file of llama.cpp
  coupled-sampling export model.gguf OUT --max-length 512
  # with the tokenizer of another folder
  coupled-sampling export model.gguf OUT --tokenizer CHECKPOINT
  # with whole steps as graphs
  coupled-sampling export CHECKPOINT OUT --step-graphs all"""

_TYPES = ("float32", "float16", "bfloat16")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``export``."""
    add = parser.add_argument
    add(
        "source",
        metavar="CHECKPOINT",
        type=Path,
        help="a Hugging Face folder, a .safetensors file with config.json beside it, a .gguf file, or PyTorch's .pt and .bin",
    )
    add("out", metavar="OUT", type=Path, help="the bundle's folder, to be made")
    add(
        "--family",
        default="auto",
        metavar="NAME",
        help="what the checkpoint is; auto goes by its configuration (default: %(default)s)",
    )
    _add_storage(parser)
    add(
        "--window",
        default="1,16,32",
        metavar="WINDOWS",
        help="widths to record beside that of prompts; the largest is the most tokens in one forward pass (default: %(default)s)",
    )
    add("--max-length", type=int, metavar="N", help="positions per sequence (default: the checkpoint's)")
    add("--length", type=int, metavar="N", help="tokens per generation (default: the family's)")
    add(
        "--prompt-frames",
        type=int,
        metavar="N",
        help="latent frames that a prompt holds, where a model goes on from the first frames of a clip: Cosmos (default: the "
        "family's)",
    )
    add(
        "--vq",
        type=Path,
        metavar="PATH",
        help="a folder, .safetensors file or archive of PyTorch with the decoder of pictures or clips, where the model's own has "
        "none: LlamaGen, Chameleon, Emu3, Cosmos (default: the checkpoint's own, if it has one)",
    )
    add(
        "--tokenizer",
        metavar="PATH",
        help="a tokenizer.json, a tokenizer.model of SentencePiece, or the folder of one, to take instead of the checkpoint's own; "
        "none to do without (default: the checkpoint's)",
    )
    add(
        "--step-graphs",
        type=names,
        metavar="METHODS",
        help="also write step graphs, for methods separated by commas, or all (default: none)",
    )
    add("--name", metavar="NAME", help="name of the bundle (default: that of the checkpoint)")
    add("--licence", metavar="ID", help="SPDX identifier of the weights' licence (default: NOASSERTION)")
    add(
        "--check",
        action="store_true",
        help="compare a few logits with a float64 reference, and turn a few texts into tokens and back",
    )
    add("--force", action="store_true", help="replace a bundle that is there")
    add_clean(parser)
    add_output(parser)


def _add_storage(parser: argparse.ArgumentParser) -> None:
    """How weights are kept."""
    add = parser.add_argument
    add(
        "--dtype",
        choices=_TYPES,
        help="the type that weights are stored in (default: that of --compute)",
    )
    add(
        "--compute",
        default="float32",
        choices=_TYPES,
        help="the type of caches and of everything between embeddings and logits: float16 and bfloat16 are for GPUs, with weights "
        "of the same type or --quantize (default: %(default)s)",
    )
    add(
        "--quantize",
        choices=("int8", "int4"),
        help="store matrices as integers with one scale per block of inputs (default: none)",
    )
    add("--block", type=int, default=32, metavar="N", help="inputs that share a scale (default: %(default)s)")
    add(
        "--form",
        default="auto",
        choices=("auto", "nbits", "standard"),
        help="how products with integers are written: nbits by ONNX Runtime's own MatMulNBits, which keeps memory near the "
        "file's size; standard by ONNX's DequantizeLinear, for TensorRT and other runtimes; auto is nbits (default: %(default)s)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Export, and say what was done."""
    from coupled_sampling.export.bundles import export_checkpoint

    settings = _settings(arguments)
    mention_leftovers(arguments, arguments.out)
    with byte_bar("reading") as report:
        check = open_on_cpu if arguments.check else None
        done = export_checkpoint(arguments.source, arguments.out, settings, report, check=check)
    for note in done.notes:
        tell(f"coupled-sampling: note: {note}")
    if arguments.json:
        text = None if done.text is None else done.text._asdict()
        say_json({**done._asdict(), "folder": str(done.folder), "text": text})
        return 0
    say(
        f"wrote {done.folder}: {done.family}, {done.parameters / 1e6:.1f} million parameters, {done.bytes / 1e6:.1f} MB"
    )
    if done.largest_difference is not None:
        say(
            f"checked: logits differ from the float64 reference of the unrounded weights by at most "
            f"{done.largest_difference:.2g} standard deviations of a position's logits"
        )
    if done.text is not None:
        before = f"after {' '.join(done.text.before)}" if done.text.before else "with nothing before it"
        say(
            f"checked: {done.text.unchanged} of {done.text.texts} texts come back from their tokens as they were, and a prompt "
            f"begins {before}"
        )
    return 0


def _settings(arguments: argparse.Namespace) -> ExportSettings:
    """What was asked for, as the exporter takes it."""
    from coupled_sampling.export.bundles import ExportSettings
    from coupled_sampling.export.graphs.storage import Storage

    if arguments.quantize and arguments.dtype not in (None, "float32"):
        raise InvalidArgument(f"quantize is {arguments.quantize} and dtype {arguments.dtype}; give one of them")
    if arguments.check and arguments.compute == "bfloat16":
        raise InvalidArgument(
            "check is given and compute bfloat16, for which ONNX Runtime has too few kernels on the CPU, where logits are "
            "compared; leave out --check, or check an export with --dtype bfloat16 alone, which has the same weights"
        )
    return ExportSettings(
        family=arguments.family,
        storage=Storage(
            arguments.quantize or arguments.dtype or arguments.compute,
            arguments.compute,
            arguments.block,
            arguments.form,
        ),
        max_length=arguments.max_length,
        windows=_integers("window", arguments.window),
        length=arguments.length,
        prompt_frames=arguments.prompt_frames,
        vq=arguments.vq,
        tokenizer=arguments.tokenizer,
        step_graphs=() if arguments.step_graphs is None else named_methods(arguments.step_graphs),
        name=arguments.name,
        licence=arguments.licence,
        force=arguments.force,
    )


def _integers(name: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise InvalidArgument(f"{name} is {text!r}, expected integers separated by commas, such as 1,16,32") from error

"""``coupled-sampling export`` and ``step-graphs``: a checkpoint into a bundle, and step graphs into a bundle."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from coupled_sampling.bundles.opening import Bundle
from coupled_sampling.cli.pictures import require_pictures
from coupled_sampling.contracts import LogitsProvider
from coupled_sampling.errors import InvalidArgument

__all__ = ["add_export_arguments", "add_step_graphs_arguments", "run_export", "run_step_graphs"]

_TYPES = ("float32", "float16", "bfloat16")


def add_export_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``export``."""
    add = parser.add_argument
    add(
        "source",
        type=Path,
        help="a Hugging Face folder, a .safetensors file with config.json beside it, or a .gguf file",
    )
    add("out", type=Path, help="the bundle's folder, to be made")
    add("--family", default="auto", help="what the checkpoint is; default: told by its configuration")
    add("--dtype", default="float32", choices=_TYPES, help="type the weights are stored in (default float32)")
    add("--quantize", choices=("int8", "int4"), help="store matrices as integers with one scale per block of inputs")
    add("--block", type=int, default=32, help="inputs that share a scale (default 32)")
    add(
        "--window",
        default="1,16,32",
        help="windows to record; the largest is the most slots in one call (default 1,16,32)",
    )
    add("--max-length", type=int, help="positions per sequence (default: the checkpoint's)")
    add("--length", type=int, help="tokens per generation (default: the family's)")
    add(
        "--vq",
        type=Path,
        help="a folder or .safetensors file with the picture decoder, where the model's own has none (LlamaGen, Chameleon, Emu3)",
    )
    add("--step-graphs", metavar="METHODS", help="also write step graphs: methods separated by commas, or all")
    add("--name", help="name of the bundle (default: that of the source)")
    add("--licence", help="SPDX identifier of the weights' licence")
    add("--check", action="store_true", help="compare a few logits with a float64 reference")
    add("--force", action="store_true", help="replace a bundle that is there")
    add("--json", action="store_true", help="print what was done as JSON")


def run_export(arguments: argparse.Namespace) -> int:
    """Export with a progress bar over the checkpoint's bytes, and say what was done."""
    from coupled_sampling.export.bundles import ExportSettings, export_checkpoint
    from coupled_sampling.export.graphs.storage import Storage

    if arguments.quantize and arguments.dtype != "float32":
        raise InvalidArgument(f"quantize is {arguments.quantize} and dtype {arguments.dtype}; give one of them")
    settings = ExportSettings(
        family=arguments.family,
        storage=Storage(arguments.quantize or arguments.dtype, block=arguments.block),
        max_length=arguments.max_length,
        windows=_integers("window", arguments.window),
        length=arguments.length,
        vq=arguments.vq,
        step_graphs=() if arguments.step_graphs is None else _methods(arguments.step_graphs),
        name=arguments.name,
        licence=arguments.licence,
        force=arguments.force,
    )
    tqdm = require_pictures("tqdm").tqdm
    with tqdm(unit="B", unit_scale=True, desc="reading", file=sys.stderr, disable=None) as bar:

        def report(count: int, total: int) -> None:
            bar.total = max(total, bar.n + count)
            bar.update(count)

        check = _opened if arguments.check else None
        done = export_checkpoint(arguments.source, arguments.out, settings, report, check=check)
    if arguments.json:
        print(json.dumps({**done._asdict(), "folder": str(done.folder)}, indent=2))
        return 0
    print(
        f"wrote {done.folder}: {done.family}, {done.parameters / 1e6:.1f} million parameters, {done.bytes / 1e6:.1f} MB"
    )
    if done.largest_difference is not None:
        print(
            f"checked: logits differ from the float64 reference of the unrounded weights by at most "
            f"{done.largest_difference:.2g} standard deviations of a position's logits"
        )
    return 0


def _opened(bundle: Bundle, *, rows: int) -> LogitsProvider:
    """The bundle on the CPU, to be checked."""
    from coupled_sampling.backends import OrtProvider

    return OrtProvider.open(bundle, rows)


def add_step_graphs_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``step-graphs``, beside the model."""
    parser.add_argument("out", type=Path, help="the new bundle's folder")
    parser.add_argument("--methods", default="all", help="methods separated by commas (default: all that can be)")
    parser.add_argument("--force", action="store_true", help="replace a bundle that is there, the model itself, too")


def run_step_graphs(arguments: argparse.Namespace) -> int:
    """Add step graphs to a bundle, and say which."""
    from coupled_sampling.export.step_bundle import add_step_graphs

    made = add_step_graphs(arguments.model, arguments.out, _methods(arguments.methods), force=arguments.force)
    print(f"wrote {made.folder}: step graphs {', '.join(graph.file for graph in made.manifest.step_graphs)}")
    return 0


def _methods(text: str) -> tuple[str, ...]:
    from coupled_sampling.export.graphs.decision import STEP_METHODS

    chosen = STEP_METHODS if text == "all" else tuple(part.strip() for part in text.split(","))
    for name in chosen:
        if name not in STEP_METHODS:
            raise InvalidArgument(
                f"step graphs are asked for {name!r}, expected all, or some of {', '.join(STEP_METHODS)}"
            )
    return chosen


def _integers(name: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise InvalidArgument(f"{name} is {text!r}, expected integers separated by commas, such as 1,16,32") from error

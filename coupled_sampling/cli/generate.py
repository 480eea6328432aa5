"""``coupled-sampling generate``: pictures, clips or texts by one method."""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from coupled_sampling.animations import CLIPS, FPS, check_fps, check_size, require_kind
from coupled_sampling.bundles.files import write_whole
from coupled_sampling.cli.arguments import METHOD_NAMES, add_model, add_output, add_running, add_sampling
from coupled_sampling.cli.clips import FrameFiles, check_new_folder, write_clips
from coupled_sampling.cli.comparison import MethodResult
from coupled_sampling.cli.conditions import add_condition
from coupled_sampling.cli.models import PixelDecoder, open_pixels
from coupled_sampling.cli.output import say, say_json
from coupled_sampling.cli.outputs import add_clean, check_output, ending, same_file
from coupled_sampling.cli.pictures import PICTURES, require_pictures, sheet_size, write_grid
from coupled_sampling.cli.progress import counting, token_bars
from coupled_sampling.cli.settings import TO_LOOK_AT
from coupled_sampling.cli.task import Task, prepare
from coupled_sampling.cli.texts import Texts
from coupled_sampling.decoding import Commit
from coupled_sampling.errors import InvalidArgument
from coupled_sampling.methods import find_method

__all__ = ["DESCRIPTION", "EXAMPLES", "SUMMARY", "add_arguments", "run"]

SUMMARY = "make pictures, clips or texts"
DESCRIPTION = """\
Make pictures, clips or texts with a model, several tokens in every forward pass.
What comes out has exactly the law of ordinary sampling, one token at a time: only
the number of passes differs. A picture model writes a PNG, a video model a GIF,
and a language model prints its text while it makes it."""
EXAMPLES = """\
  # 16 pictures by fashion, the embedded model of pictures, in grid.png
  coupled-sampling generate
  # four shoes and four bags
  coupled-sampling generate --prompt shoe,bag --count 8
  # the very pictures that one token at a time gives, and how much sooner
  coupled-sampling generate --method scd-match --beside-ar
  # clips, and every frame as soon as it is decided
  coupled-sampling generate moving --out clips.webp --stream frames
  # a picture of a text, by a model that looks at the vectors of the text's encoder
  coupled-sampling generate FOLDER --condition vectors.npy --count 4
  # a text, by a language model that `coupled-sampling export` made a bundle of
  coupled-sampling generate FOLDER --prompt "Once upon a time"
  # a text by an ONNX file that somebody else exported and quantised
  coupled-sampling generate package --widen --prompt "Once upon a time"
  # a reply to a message, which ends before the word END
  coupled-sampling generate FOLDER --chat --prompt "Once upon a time" --stop END"""

_SHEET, _CLIPS = Path("grid.png"), Path("clips.gif")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``generate``."""
    add_model(parser)
    add = parser.add_argument
    add("--count", type=int, metavar="N", help=f"sequences to make (default: {TO_LOOK_AT})")
    add("--method", metavar="METHOD", help=f"how to decode: {METHOD_NAMES} (default: the bundle's)")
    add(
        "--out",
        type=Path,
        metavar="FILE",
        help="what to write, of the kind that its ending says: .png or .jpg where the model makes pictures; .gif, .webp, .png or "
        ".apng (both an animated PNG), or .mp4, which is lossy, where it makes clips "
        f"(default: {_SHEET} for pictures, {_CLIPS} for clips)",
    )
    add(
        "--fps",
        type=float,
        metavar="RATE",
        help=f"frames of a clip that are shown in a second (default: {FPS:g})",
    )
    add(
        "--stream",
        type=Path,
        metavar="FOLDER",
        help="new folder for the frames of clips, as clip-00-frame-00.png and so on: each is written, in its own size, once its "
        "tokens are committed (default: none)",
    )
    add(
        "--trace",
        type=Path,
        metavar="FILE",
        help="JSON to write: the tokens of every sequence and the steps that made them (default: none)",
    )
    add(
        "--stop",
        action="append",
        metavar="TEXT",
        help="end a text before this one; can be given several times (default: none but the bundle's stop tokens)",
    )
    add("--beside-ar", action="store_true", help="also decode the same prompts one token at a time, and print both")
    add_condition(parser)
    add_clean(parser)
    add_output(parser)
    add_sampling(parser)
    add_running(parser)


def run(arguments: argparse.Namespace) -> int:
    """Decode, write the picture or print the texts, and say how fast it was."""
    if arguments.trace:
        check_output(arguments, arguments.trace)
    methods = () if arguments.method is None else (arguments.method,)
    count = TO_LOOK_AT if arguments.count is None else arguments.count
    task = prepare(arguments, count=count, methods=methods, stop=arguments.stop or ())
    manifest = task.bundle.manifest
    if not manifest.makes_clips:
        _refuse_what_is_for_clips(arguments, manifest.name)
    if manifest.makes_pictures:
        arguments.out = arguments.out or (_CLIPS if manifest.makes_clips else _SHEET)
        results = (_clips if manifest.makes_clips else _pictures)(task, arguments)
        made: dict[str, Any] = {"out": str(arguments.out)}
        if arguments.stream:
            made["stream"] = str(arguments.stream)
    else:
        if arguments.out:
            raise InvalidArgument(
                f"out is {str(arguments.out)!r}, but the model {manifest.name} makes no pictures; leave it out, or "
                "write tokens with --trace FILE"
            )
        results, texts = _texts(task, arguments)
        made = {"texts": texts} if task.tokenizer is not None else {"tokens": results[-1].generation.tokens}
    if arguments.trace:
        trace = json.dumps(_trace(task, results[-1]))
        write_whole(arguments.trace, lambda partial: partial.write_text(trace))
    figures = _figures(task, results, beside_ar=arguments.beside_ar)
    if arguments.json:
        say_json({**made, "methods": figures}, default=np.ndarray.tolist)
        return 0
    for row, result in zip(figures, results, strict=True):
        searched = task.settings.decoding.window == "auto" and find_method(str(row["method"])).drafts
        say(
            f"{row['method']}: {row['sequences']} sequences, NFE {row['nfe_mean']:.1f}, "
            f"{row['tokens_per_step']:.2f} tokens per step, {row['seconds']:.2f} s, {task.ran[str(row['method'])]}"
            + (f", window auto ended at {row['last_window']}" if searched else "")
            + (f", {result.has_branches}" if result.branches else "")
        )
    for name in ("out", "stream"):
        if name in made:
            say(f"wrote {made[name]}")
    return 0


def _refuse_what_is_for_clips(arguments: argparse.Namespace, model: str) -> None:
    for name in ("fps", "stream"):
        given = getattr(arguments, name)
        if given is not None:
            raise InvalidArgument(f"{name} is {given}, but the model {model} makes no clips; leave it out")


def _pictures(task: Task, arguments: argparse.Namespace) -> list[MethodResult]:
    """Decode, and write the sheet of pictures."""
    kind = PICTURES[ending("out", arguments.out, PICTURES, f", since {task.bundle.manifest.name} makes pictures")]
    # Whatever the back end, pictures come from ONNX Runtime: said before the work if it is missing.
    pixels = _open_pixels(task, arguments)
    _check_sheet(task, pixels, kind)
    results = _decode(task, arguments)
    write_grid(pixels(task.picture_tokens(results[-1])), arguments.out)
    return results


def _clips(task: Task, arguments: argparse.Namespace) -> list[MethodResult]:
    """Decode, and write the sheet of clips; frames on the way, where they are wanted."""
    out, stream = arguments.out, arguments.stream
    kind = CLIPS[ending("out", out, CLIPS, f", since {task.bundle.manifest.name} makes clips")]
    fps = check_fps(FPS if arguments.fps is None else arguments.fps, kind)
    require_kind(kind)
    pixels = _open_pixels(task, arguments)
    _check_sheet(task, pixels, kind)
    frames = None
    if stream:
        check_new_folder(stream)
        frames = FrameFiles(stream, pixels, task.prompts, task.settings.methods[-1])
    results = _decode(task, arguments, frames)
    write_clips(pixels(task.picture_tokens(results[-1])), out, kind, fps)
    return results


def _check_sheet(task: Task, pixels: PixelDecoder, kind: str) -> None:
    """Refuse more sequences than one file of that kind can show, before they are made."""
    height, width, _ = pixels.shape[-3:]
    try:
        check_size(*sheet_size(len(task.prompts), height, width), kind)
    except InvalidArgument as error:
        raise InvalidArgument(f"count is {len(task.prompts)}, but {error}") from error


def _decode(task: Task, arguments: argparse.Namespace, frames: FrameFiles | None = None) -> list[MethodResult]:
    with token_bars(len(task.prompts) * task.settings.decoding.length) as report:
        count = counting(report)

        def watch(method: str, commit: Commit) -> None:
            count(method, commit)
            if frames is not None:
                frames.watch(method, commit)

        return task.compare(task.settings.methods, against_ar=arguments.beside_ar, watch=watch)


def _texts(task: Task, arguments: argparse.Namespace) -> tuple[list[MethodResult], list[str]]:
    """Decode, and print the texts while they are made."""
    texts = Texts(task, task.settings.methods[-1], None if arguments.json else sys.stdout)
    # A first pass for the clock alone would keep a reader waiting; where methods are compared, it is fair.
    beside_ar = arguments.beside_ar
    results = task.compare(task.settings.methods, against_ar=beside_ar, warm_up=beside_ar, watch=texts.watch)
    return results, texts.texts


def _open_pixels(task: Task, arguments: argparse.Namespace) -> PixelDecoder:
    """What makes pixels of tokens, once it is known that there will be a file."""
    check_output(arguments, arguments.out)
    places = {name: place for name in ("out", "trace", "stream") if (place := getattr(arguments, name))}
    for (one, place), (other, another) in itertools.combinations(places.items(), 2):
        if same_file(place, another):
            raise InvalidArgument(f"{one} and {other} are both {place}; name two files")
    require_pictures("PIL.Image")
    manifest = task.bundle.manifest
    if manifest.pixel_graph is None:
        raise InvalidArgument(f"the bundle {manifest.name} has no token-to-pixel graph, so it makes no pictures")
    return open_pixels(task.bundle, task.settings.place)


def _figures(task: Task, results: Sequence[MethodResult], *, beside_ar: bool) -> list[dict[str, Any]]:
    """What ``--json`` says about methods: without `ar` beside them, nothing that compares."""
    figures = [{**result.figures(), **task.ran[result.method].record()} for result in results]
    if not beside_ar:
        for name in ("speedup_nfe", "speedup_seconds", "identical_to_ar"):
            figures[0].pop(name)
    return figures


def _trace(task: Task, result: MethodResult) -> dict[str, Any]:
    sequences = [
        {
            "prompt": list(prompt),
            "tokens": tokens.tolist(),
            "committed_per_step": trace.committed_per_step,
            "step_of_token": trace.step_of_token.tolist(),
            "branch_tokens": trace.branch_tokens,
            "seconds": trace.seconds,
        }
        for prompt, tokens, trace in zip(task.prompts, *result.generation, strict=True)
    ]
    settings = task.settings
    return {
        "method": result.method,
        "seed": settings.seed,
        "window": settings.decoding.window,
        "branches": result.branches,
        "sequences": sequences,
    }

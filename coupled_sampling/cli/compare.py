"""``coupled-sampling compare``: methods side by side, in one run on one machine."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from coupled_sampling.cli.arguments import METHOD_NAMES, add_model, add_output, add_running, add_sampling, names
from coupled_sampling.cli.comparison import MethodResult
from coupled_sampling.cli.models import PixelDecoder, describe_runs, open_pixels
from coupled_sampling.cli.output import printable, say, say_json
from coupled_sampling.cli.outputs import add_clean, check_output, ending
from coupled_sampling.cli.pictures import CHARTS, draw_comparison, require_pictures
from coupled_sampling.cli.progress import counting, token_bars
from coupled_sampling.cli.settings import UsualCount
from coupled_sampling.cli.task import Task, prepare

__all__ = ["DESCRIPTION", "EXAMPLES", "SUMMARY", "add_arguments", "run"]

SUMMARY = "measure methods side by side"
DESCRIPTION = """\
Decode the same prompts by several methods, one after the other, and print what
each of them took. ar, one token per forward pass, always runs first: the others
are measured against it."""
EXAMPLES = """\
  # a table of five methods on fashion, the embedded model of pictures
  coupled-sampling compare
  # one method beside ar; it promises the same tokens
  coupled-sampling compare --methods scd-match --count 10
  # wide windows, most of whose slots are for other guesses beside the first ones
  coupled-sampling compare --methods scd-match --window 64 --branches 24
  # with a chart
  coupled-sampling compare --window 32 --plot compare.png"""

TO_MEASURE = UsualCount(pictures=40, clips=4, texts=4)
"""Enough for standard errors of some percent; a clip is long, and ar makes it one token at a time."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``compare``."""
    add_model(parser)
    add = parser.add_argument
    add(
        "--methods",
        type=names,
        default="ar,sjd,scd-maximal,scd-gumbel,scd-match",
        metavar="METHODS",
        help=f"some of {METHOD_NAMES}, separated by commas (default: %(default)s)",
    )
    add("--count", type=int, metavar="N", help=f"sequences to make by each (default: {TO_MEASURE})")
    add(
        "--plot",
        type=Path,
        metavar="FILE",
        help="chart to write, of the kind that its ending says: .png, .jpg, .pdf or .svg (default: none)",
    )
    add_clean(parser)
    add_output(parser)
    add_sampling(parser)
    add_running(parser)


def run(arguments: argparse.Namespace) -> int:
    """Decode by every method, print the figures, and draw the chart."""
    if arguments.plot:
        ending("plot", arguments.plot, CHARTS)
        check_output(arguments, arguments.plot)
        require_pictures("matplotlib")
    count = TO_MEASURE if arguments.count is None else arguments.count
    task = prepare(arguments, count=count, methods=arguments.methods)
    # Said before the work if something is missing.
    pixels = open_pixels(task.bundle, task.settings.place) if arguments.plot and _has_pictures(task) else None
    with token_bars(len(task.prompts) * task.settings.decoding.length) as report:
        results = task.compare(task.settings.methods, against_ar=True, watch=counting(report))
    if arguments.plot:
        _draw(task, results, pixels, arguments.plot)
    figures = [{**result.figures(), **task.ran[result.method].record()} for result in results]
    if arguments.json:
        say_json(figures)
        return 0
    branching = [f"{result.method}: {result.has_branches}" for result in results if result.branches]
    say("\n".join([_table(figures), *branching, describe_runs(task.ran)]))
    if arguments.plot:
        say(f"wrote {arguments.plot}")
    return 0


def _has_pictures(task: Task) -> bool:
    return task.bundle.manifest.pixel_graph is not None


def _draw(task: Task, results: Sequence[MethodResult], pixels: PixelDecoder | None, path: Path) -> None:
    manifest = task.bundle.manifest
    grid = manifest.grid
    images = None if pixels is None else pixels(np.stack([task.picture_tokens(result)[0] for result in results]))
    if images is not None and grid is not None and manifest.makes_clips:
        # A frame of tokens may make several of pixels: the last one of each is shown.
        ends = [manifest.free_position((i + 1) * grid.rows * grid.columns - 1) + 1 for i in range(grid.frames)]
        images = images[:, [max(0, manifest.frames_of(end) - 1) for end in ends]]
    draw_comparison(results, path, grid=grid, images=images)


def _table(figures: Sequence[dict[str, Any]]) -> str:
    """Figures for people."""
    lines = [f"{'method':<18}{'NFE':>14}{'tokens/step':>13}{'seconds':>10}{'tokens/s':>10}{'speed-up NFE':>14}"
             f"{'time':>7}  same tokens as ar"]  # fmt: skip
    for row in figures:
        nfe = printable(f"{row['nfe_mean']:.1f} ± {row['nfe_sem']:.1f}")  # before its width counts
        lines.append(
            f"{row['method']:<18}{nfe:>14}{row['tokens_per_step']:>13.2f}{row['seconds']:>10.2f}"
            f"{row['tokens_per_second']:>10.0f}{row['speedup_nfe']:>13.2f}x{row['speedup_seconds']:>6.2f}x  "
            f"{'yes' if row['identical_to_ar'] else 'no'}"
        )
    return "\n".join(lines)

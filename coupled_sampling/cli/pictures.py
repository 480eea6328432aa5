"""Pictures for people: the grid of generated images, and the chart of a comparison. Needs the extra [pictures]."""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.bundles.files import write_whole
from coupled_sampling.bundles.records import Grid
from coupled_sampling.cli.comparison import MethodResult
from coupled_sampling.cli.outputs import ending
from coupled_sampling.errors import MissingDependency
from coupled_sampling.trace import Trace

__all__ = [
    "CHARTS",
    "PICTURES",
    "draw_comparison",
    "require_pictures",
    "sheet",
    "sheet_size",
    "write_grid",
    "write_picture",
]

PICTURES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}
"""What Pillow calls the kinds of pictures, by the ending of a file; a file without one is the first of them."""
CHARTS = (".png", ".jpg", ".jpeg", ".pdf", ".svg")
"""The same for charts, which matplotlib calls by their endings."""
_QUALITY = 95
"""Of JPEG; Pillow's own 75 shows."""


def require_pictures(module: str) -> Any:
    """Import ``module``, one of those of the extra [pictures].

    Raises
    ------
    MissingDependency
        It is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingDependency(
            f"this needs {module.partition('.')[0]}, which is not installed: pip install 'coupled-sampling[pictures]'"
        ) from error


def write_grid(images: NDArray[np.uint8], path: Path, *, zoom: int | None = None, gap: int = 2) -> None:
    """Write the `sheet` of ``images``.

    Raises
    ------
    MissingDependency, OutputError
        Pillow is not installed; the file cannot be written.
    """
    write_picture(sheet(images, zoom=zoom, gap=gap), path)


def write_picture(pixels: NDArray[np.uint8], path: Path) -> None:
    """Write ``pixels`` uint8 (H, W, C) as one of the `PICTURES`. Raises as `write_grid` does."""
    picture = require_pictures("PIL.Image").fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    kind = PICTURES[ending("out", path, PICTURES)]
    settings = {"quality": _QUALITY} if kind == "JPEG" else {}
    write_whole(path, lambda partial: picture.save(partial, format=kind, **settings))


def sheet(images: NDArray[np.uint8], *, zoom: int | None = None, gap: int = 2) -> NDArray[np.uint8]:
    """``images`` uint8 (N, H, W, C), C 1 or 3, as one picture: a grid as square as can be, row by row.

    ``zoom`` repeats pixels; by default pictures of less than 128 pixels become three times as large.
    """
    count, height, width, channels = images.shape
    zoom, rows, columns = _arranged(count, height, width, zoom)
    sheet = np.full((rows * (height + gap) + gap, columns * (width + gap) + gap, channels), 255, np.uint8)
    for i, image in enumerate(images):
        top, left = gap + (i // columns) * (height + gap), gap + (i % columns) * (width + gap)
        sheet[top : top + height, left : left + width] = image
    return sheet.repeat(zoom, axis=0).repeat(zoom, axis=1)


def sheet_size(count: int, height: int, width: int, gap: int = 2) -> tuple[int, int]:
    """Height and width of the `sheet` of ``count`` pictures (height, width)."""
    zoom, rows, columns = _arranged(count, height, width, None)
    return zoom * (rows * (height + gap) + gap), zoom * (columns * (width + gap) + gap)


def _arranged(count: int, height: int, width: int, zoom: int | None) -> tuple[int, int, int]:
    """How often pixels are repeated, rows and columns."""
    columns = next(
        (c for c in (10, 8, 6, 5, 4) if count % c == 0 and count > c), min(count, math.ceil(math.sqrt(count)))
    )
    return zoom or (3 if max(height, width) < 128 else 1), math.ceil(count / columns), columns


def draw_comparison(
    results: Sequence[MethodResult], path: Path, *, grid: Grid | None, images: NDArray[np.uint8] | None
) -> None:
    """Draw ``results`` as one chart.

    Tokens per step by method with every sequence as a dot; how many tokens each step committed; and, for models with a
    ``grid``, the first sequence's image beside its tokens coloured by the step that committed them. Of a clip, these are rows of
    frames: one of its frames, and one of its tokens for every method that drafts. Where windows had branches, the part of the
    tokens per step that these guessed is hatched, and their tokens have a dot.

    Parameters
    ----------
    results
        From `coupled_sampling.cli.comparison.compare`.
    path
        Where to write the chart; its ending says its kind, one of `CHARTS`.
    grid
        How the tokens lie, or None.
    images
        uint8 (methods, H, W, C): each method's first image, or None; of clips (methods, grid.frames, H, W, C).
    """
    matplotlib = require_pictures("matplotlib")
    matplotlib.use("Agg")
    pyplot = require_pictures("matplotlib.pyplot")
    chosen = max(range(len(results)), key=lambda i: (results[i].summary.tokens_per_step, results[i].branches))
    if grid is not None and results[chosen].generation.traces[0].tokens != grid.count:
        grid = None
    image = None if images is None else images[chosen]
    if grid is None:
        figure, axes = pyplot.subplots(1, 2, figsize=(10, 4.4), layout="tight")
    elif grid.frames:
        figure, axes = _draw_frames(pyplot, results, results[chosen], grid, image)
    else:
        figure, axes = pyplot.subplots(1, 4, figsize=(17, 4.4), layout="tight")
        _draw_steps(figure, axes[2], axes[3], results[chosen], grid, image)
    colours = pyplot.get_cmap("tab10").colors
    _draw_speed(axes[0], results, colours)
    _draw_histogram(axes[1], results, colours)
    kind = ending("plot", path, CHARTS)[1:]
    try:
        write_whole(path, lambda partial: figure.savefig(partial, dpi=110, format=kind))
    finally:
        pyplot.close(figure)


def _draw_speed(axis: Any, results: Sequence[MethodResult], colours: Sequence[Any]) -> None:
    jitter = np.random.default_rng(0)
    for i, result in enumerate(results):
        each = result.tokens_per_step
        per_step, branches = result.summary.tokens_per_step, result.branch_tokens_per_step
        axis.bar(i, per_step, color=colours[i % len(colours)], alpha=0.75)
        if branches:
            axis.bar(i, branches, bottom=per_step - branches, fill=False, hatch="///", linewidth=0)
            axis.text(i, per_step - branches, f"{branches:.2f} by\nbranches", ha="center", va="top", fontsize="small")
        axis.scatter(i + jitter.uniform(-0.2, 0.2, each.size), each, s=7, color="black", alpha=0.45, zorder=3)
        axis.text(i, each.max() + 0.12, f"{result.summary.tokens_per_step:.2f}", ha="center", fontweight="bold")
    axis.margins(y=0.12)
    axis.set_xticks(range(len(results)), [result.method for result in results], rotation=20)
    axis.set_ylabel("tokens per forward pass")
    axis.set_title("Tokens per step (a dot is one sequence)")


def _draw_histogram(axis: Any, results: Sequence[MethodResult], colours: Sequence[Any]) -> None:
    for i, result in enumerate(results):
        if result.method == "ar":
            continue
        histogram = result.summary.committed_histogram
        share = 100 * histogram / histogram.sum()
        axis.plot(range(len(share)), share, marker="o", ms=3, color=colours[i % len(colours)], label=result.method)
    if len(results) > 1:
        axis.legend()
    axis.set_xlabel("tokens committed by one step")
    axis.set_ylabel("% of steps")
    axis.set_title("How much each step commits (ar: always 1)")


def _draw_steps(
    figure: Any, picture: Any, steps: Any, result: MethodResult, grid: Grid, image: NDArray[np.uint8] | None
) -> None:
    trace = result.generation.traces[0]
    if image is None:
        picture.set_axis_off()
    else:
        _show(picture, image)
        picture.set_title(f"First image by {result.method}")
    coloured = _show(steps, trace.step_of_token.reshape(grid.rows, grid.columns, 1))
    _dot_branches(steps, trace, grid)
    steps.set_title(f"Step that committed each token\n({trace.tokens} tokens in {trace.nfe} steps)")
    figure.colorbar(coloured, ax=steps, fraction=0.046)


def _draw_frames(
    pyplot: Any, results: Sequence[MethodResult], shown: MethodResult, grid: Grid, image: NDArray[np.uint8] | None
) -> tuple[Any, Sequence[Any]]:
    """A figure with rows of frames under two places for panels; gives it and these."""
    drafting = [result for result in results if result.method != "ar"] or results
    width = 14.0
    height = max(0.4, 0.85 * width * grid.rows / (grid.frames * (grid.columns + 1))) + 0.4  # of a row with its title
    count = len(drafting) + (image is not None)
    figure = pyplot.figure(figsize=(width, 4.4 + count * height), layout="constrained")
    places = figure.add_gridspec(1 + count, 3, height_ratios=[4.4, *[height] * count], width_ratios=[1, 1, 0.03])
    axes = [figure.add_subplot(places[1 + i, :2]) for i in range(count)]
    if image is not None:
        picture = axes.pop(0)
        _show(picture, _side_by_side(image, image.shape[2] // grid.columns, 255))
        picture.set_title(f"First clip by {shown.method}")
    # One scale for all of them: a method that needs fewer steps ends with earlier colours.
    last = max(result.generation.traces[0].nfe for result in drafting) - 1
    for axis, result in zip(axes, drafting, strict=True):
        trace = result.generation.traces[0]
        steps = trace.step_of_token.reshape(grid.frames, grid.rows, grid.columns, 1).astype(np.float64)
        coloured = _show(axis, _side_by_side(steps, 1, np.nan), last)
        _dot_branches(axis, trace, grid)
        axis.set_title(f"Step that committed each token: {result.method}, {trace.tokens} tokens in {trace.nfe} steps")
    figure.colorbar(coloured, cax=figure.add_subplot(places[count + 1 - len(drafting) :, 2]))
    return figure, [figure.add_subplot(places[0, 0]), figure.add_subplot(places[0, 1:])]


def _side_by_side(frames: NDArray[Any], gap: int, between: float) -> NDArray[Any]:
    """(frames, H, W, C) as one picture (H, ..., C), from left to right, with ``gap`` columns of a value between two."""
    padded = np.pad(frames, ((0, 0), (0, 0), (0, max(1, gap)), (0, 0)), constant_values=between)
    return np.concatenate(list(padded), axis=1)[:, : -max(1, gap)]


def _show(axis: Any, picture: NDArray[Any], most: int | None = None) -> Any:
    """Show (H, W, C): bytes as a picture, other numbers as colours, up to ``most``."""
    plain = picture[..., 0] if picture.shape[-1] == 1 else picture
    axis.set_xticks([])
    axis.set_yticks([])
    if picture.dtype == np.uint8:
        return axis.imshow(plain, cmap="gray", vmin=0, vmax=255)
    return axis.imshow(plain, cmap="viridis", vmin=0, vmax=most)


def _dot_branches(axis: Any, trace: Trace, grid: Grid) -> None:
    """Red dots on the tokens that branches guessed, frames being side by side."""
    if not trace.branch_tokens:
        return
    frames, places = np.divmod(trace.branch_tokens, grid.rows * grid.columns)
    rows, columns = np.divmod(places, grid.columns)
    axis.scatter(frames * (grid.columns + 1) + columns, rows, s=9, color="red")
    axis.set_xlabel("red: guessed by a branch")

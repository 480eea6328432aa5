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
from coupled_sampling.cli.comparison import MethodResult
from coupled_sampling.cli.outputs import ending
from coupled_sampling.errors import MissingDependency

__all__ = ["CHARTS", "PICTURES", "draw_comparison", "require_pictures", "write_grid"]

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
    """Write ``images`` uint8 (N, H, W, C), C 1 or 3, as one picture: a grid as square as can be, row by row.

    ``zoom`` repeats pixels; by default pictures of less than 128 pixels become three times as large.

    Raises
    ------
    MissingDependency, OutputError
        Pillow is not installed; the file cannot be written.
    """
    count, height, width, channels = images.shape
    zoom = zoom or (3 if max(height, width) < 128 else 1)
    columns = next(
        (c for c in (10, 8, 6, 5, 4) if count % c == 0 and count > c), min(count, math.ceil(math.sqrt(count)))
    )
    rows = math.ceil(count / columns)
    sheet = np.full((rows * (height + gap) + gap, columns * (width + gap) + gap, channels), 255, np.uint8)
    for i, image in enumerate(images):
        top, left = gap + (i // columns) * (height + gap), gap + (i % columns) * (width + gap)
        sheet[top : top + height, left : left + width] = image
    sheet = sheet.repeat(zoom, axis=0).repeat(zoom, axis=1)
    picture = require_pictures("PIL.Image").fromarray(sheet[..., 0] if channels == 1 else sheet)
    kind = PICTURES[ending("out", path, PICTURES)]
    settings = {"quality": _QUALITY} if kind == "JPEG" else {}
    write_whole(path, lambda partial: picture.save(partial, format=kind, **settings))


def draw_comparison(
    results: Sequence[MethodResult], path: Path, *, grid: tuple[int, int] | None, images: NDArray[np.uint8] | None
) -> None:
    """Draw ``results`` as one chart of three panels.

    Tokens per step by method with every sequence as a dot; how many tokens each step committed; and, for models with a
    ``grid`` (rows, columns), the first sequence's image beside its tokens coloured by the step that committed them. Where windows
    had branches, the part of the tokens per step that these guessed is hatched, and their tokens have a dot.

    Parameters
    ----------
    results
        From `coupled_sampling.cli.comparison.compare`.
    path
        Where to write the chart; its ending says its kind, one of `CHARTS`.
    grid
        Rows and columns of tokens, or None.
    images
        uint8 (methods, H, W, C): each method's first image, or None.
    """
    matplotlib = require_pictures("matplotlib")
    matplotlib.use("Agg")
    pyplot = require_pictures("matplotlib.pyplot")
    chosen = max(range(len(results)), key=lambda i: (results[i].summary.tokens_per_step, results[i].branches))
    shows_steps = grid is not None and results[chosen].generation.traces[0].tokens == math.prod(grid)
    figure, axes = pyplot.subplots(1, 4 if shows_steps else 2, figsize=(17 if shows_steps else 10, 4.4))
    colours = pyplot.get_cmap("tab10").colors
    _draw_speed(axes[0], results, colours)
    _draw_histogram(axes[1], results, colours)
    if shows_steps and grid is not None:
        _draw_steps(figure, axes[2], axes[3], results[chosen], grid, None if images is None else images[chosen])
    figure.tight_layout()
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
    figure: Any, picture: Any, steps: Any, result: MethodResult, grid: tuple[int, int], image: NDArray[np.uint8] | None
) -> None:
    trace = result.generation.traces[0]
    if image is None:
        picture.set_axis_off()
    else:
        picture.imshow(image[..., 0] if image.shape[-1] == 1 else image, cmap="gray")
        picture.set_xticks([])
        picture.set_yticks([])
        picture.set_title(f"First image by {result.method}")
    coloured = steps.imshow(trace.step_of_token.reshape(grid), cmap="viridis")
    if trace.branch_tokens:
        rows, columns = np.divmod(trace.branch_tokens, grid[1])
        steps.scatter(columns, rows, s=9, color="red")
        steps.set_xlabel("red: guessed by a branch")
    steps.set_xticks([])
    steps.set_yticks([])
    steps.set_title(f"Step that committed each token\n({trace.tokens} tokens in {trace.nfe} steps)")
    figure.colorbar(coloured, ax=steps, fraction=0.046)

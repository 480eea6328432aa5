"""The pixel graph of a codebook: tokens to a picture, or to a clip.

A picture is cut into a grid of patches, row by row; a token is the index of a patch in a codebook (van den Oord et al.,
arXiv 1711.00937). Gather looks them up and one transposition puts them in their places. A token outside the codebook is
an error of the runtime, never a picture: negative ones, which Gather would count from the end, are moved out of range. Frames of a
clip are pictures, one after the other.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.arguments import check_count
from coupled_sampling.errors import InvalidArgument
from coupled_sampling.export.graphs.builder import GraphBuilder
from coupled_sampling.fields import check_is

__all__ = ["pixel_graph"]


def pixel_graph(codebook: NDArray[np.uint8], rows: int, columns: int, frames: int = 0) -> Any:
    """The graph from ``tokens`` int64 (B, rows * columns) to ``pixels`` uint8 (B, height, width, channels).

    Of clips, tokens are (B, frames * rows * columns) and pixels (B, frames, height, width, channels).

    Parameters
    ----------
    codebook
        uint8 (entries, patch height, patch width, channels).
    rows, columns
        The grid of patches.
    frames
        Of a clip; 0 for a picture.

    Returns
    -------
    onnx.ModelProto
        Not yet checked: `coupled_sampling.export.save_graph` does.

    Raises
    ------
    InvalidArgument
        The codebook has another type or shape, or the grid is empty.
    MissingDependency
        ``onnx`` is not installed.

    Examples
    --------
    >>> import numpy as np
    >>> from coupled_sampling.export import pixel_graph
    >>> model = pixel_graph(np.zeros((16, 2, 2, 1), np.uint8), rows=4, columns=4)  # 16 patches of 2 by 2
    >>> [size.dim_value or size.dim_param for size in model.graph.output[0].type.tensor_type.shape.dim]
    ['B', 8, 8, 1]
    """
    check_is("codebook", codebook, np.ndarray)
    for name, value in (("rows", rows), ("columns", columns)):
        check_count(name, value, most=2**15)
    check_count("frames", frames, 0, 2**15)
    if codebook.dtype != np.uint8 or codebook.ndim != 4 or 0 in codebook.shape:
        raise InvalidArgument(
            f"codebook is {codebook.dtype} of shape {codebook.shape}, expected uint8 (entries, height, width, channels)"
        )
    entries, height, width, channels = codebook.shape
    graph = GraphBuilder()
    tokens = graph.input("tokens", "int64", ["B", max(1, frames) * rows * columns])
    shape = (*((frames,) if frames else ()), rows * height, columns * width, channels)
    pixels = graph.output("pixels", "uint8", ["B", *shape])
    negative = graph.op("Less", tokens, graph.integers(0))
    index = graph.op("Where", negative, graph.integers(entries), tokens)
    patches = graph.op("Gather", graph.constant("codebook", codebook), index)
    cut = graph.op("Reshape", patches, graph.integers(-1, rows, columns, height, width, channels))
    placed = graph.op("Transpose", cut, perm=[0, 1, 3, 2, 4, 5])
    graph.op("Reshape", placed, graph.integers(-1, *shape), name=pixels)
    return graph.build(
        "pixel_graph",
        "Tokens to a picture, by a codebook. See docs/bundle-format.md of coupled-sampling.",
        {"format": "coupled-sampling pixel graph", "entries": str(entries)},
    )

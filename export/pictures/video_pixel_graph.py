"""The pixel graph of a causal tokenizer of videos: tokens to frames, as `CausalVideoDescription` says, in standard operators.

As in `coupled_sampling.export.pictures.pixel_graph` everything is computed in float32, and the value ``picture`` inside, float32
(B * frames, channels, height, width), is what the decoder returns before pixels are made of it. Norms reach over whole frames, so
that a clip is not decoded in parts: memory is a few times the largest value, the first one of the last stage's width.
"""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.export.graphs.builder import write_graph
from coupled_sampling.export.graphs.storage import Storage, TensorFile
from coupled_sampling.export.graphs.weights import WeightReader, WeightSource
from coupled_sampling.export.pictures.parts import PICTURE, PictureParts, check_tokens
from coupled_sampling.export.pictures.picture_tokens import PictureTokens
from coupled_sampling.export.pictures.video_description import HAAR, CausalVideoDescription

__all__ = ["VideoParts", "haar_signs", "video_pixel_graph", "write_video_pixel_graph"]


def video_pixel_graph(
    description: CausalVideoDescription,
    weights: WeightSource,
    tokens: PictureTokens,
    storage: Storage | None = None,
    tensors: TensorFile | None = None,
) -> Any:
    """The graph from ``tokens`` int64 (B, tokens.length) to ``pixels`` uint8 (B, pixel_frames, height, width, channels).

    Parameters
    ----------
    description
        The tokenizer.
    weights, tensors
        As for `coupled_sampling.export.graphs.decoder.decoder_graph`, by the names of ``description.weight_shapes()``.
    tokens
        Which tokens are codes.
    storage
        As for `coupled_sampling.export.pictures.pixel_graph.vq_pixel_graph`.

    Returns
    -------
    onnx.ModelProto
        Not yet checked; `write_video_pixel_graph` checks and writes it.

    Raises
    ------
    InvalidArgument
        A weight is missing, unknown, has another shape, is not finite, or cannot be stored as asked; or ``tokens`` do not
        fit the grid or the codes.
    MissingDependency
        ``onnx`` is not installed.
    """
    check_tokens(tokens, description.rows, description.columns, description.frames, description.codes)
    return _Writer(description, weights, (storage or Storage()).embeddings, tensors).write(tokens)


def write_video_pixel_graph(
    description: CausalVideoDescription,
    weights: WeightSource,
    tokens: PictureTokens,
    path: str | Path,
    storage: Storage | None = None,
    inline: bool | None = None,
) -> tuple[Path, ...]:
    """Write and check the pixel graph of a tokenizer of videos, in about the memory of its largest weight.

    Parameters
    ----------
    description, weights, tokens, storage
        As for `video_pixel_graph`.
    path, inline
        As for `coupled_sampling.export.graphs.builder.write_graph`.

    Returns
    -------
    tuple of Path
        The files written: ``path``, and ``<path>.data`` if there is one.

    Raises
    ------
    InvalidArgument
        As for `video_pixel_graph`.
    OutputError
        A file cannot be written.

    Examples
    --------
    >>> import numpy as np
    >>> from coupled_sampling.export.pictures import CausalVideoDescription, PictureTokens, VideoStage, write_video_pixel_graph
    >>> stages = (VideoStage(width=4, blocks=1, space=True, time=True),)
    >>> video = CausalVideoDescription(frames=2, rows=2, columns=3, stages=stages, levels=(4, 3), latent=4, transforms=1)
    >>> random = np.random.default_rng(0)
    >>> weights = {name: random.normal(size=shape) for name, shape in video.weight_shapes().items()}
    >>> [path.name for path in write_video_pixel_graph(video, weights, PictureTokens(12, 0, 12), "pixels.onnx")]
    ['pixels.onnx']
    """
    stored = storage or Storage()
    size = sum(stored.bytes_of(shape, matrix=False) for shape in description.weight_shapes().values())
    return write_graph(
        path, lambda tensors: video_pixel_graph(description, weights, tokens, stored, tensors), size, inline
    )


def haar_signs() -> NDArray[np.float32]:
    """(8, 8): the share of coefficient k in value v of a block of 2 frames, rows and columns, both numbered time, row, column."""
    bits = np.array(list(itertools.product((0, 1), repeat=3)))
    return np.asarray((-1.0) ** (bits @ bits.T), np.float32)


class VideoParts(PictureParts):
    """What decoder and encoder of a tokenizer of videos have in common."""

    def pair(self, name: str, x: str) -> str:
        """A convolution in space, and then one in time."""
        return self.convolution(f"{name}.time", self.convolution(f"{name}.space", x))

    def block(self, name: str, x: str) -> str:
        """A residual block."""
        inner = self.pair(f"{name}.conv1", self.swish(self.norm(f"{name}.norm1", x)))
        inner = self.pair(f"{name}.conv2", self.swish(self.norm(f"{name}.norm2", inner)))
        if f"{name}.shortcut.weight" in self.weights.shapes:
            x = self.convolution(f"{name}.shortcut", x)
        return self.graph.op("Add", x, inner)

    def middle(self, x: str) -> str:
        """What the coarsest grid goes through."""
        x = self.attention("mid.attention.space", self.block("mid.block_1", x))
        return self.block("mid.block_2", self.attention_in_time("mid.attention.time", x))

    def attention_in_time(self, name: str, x: str) -> str:
        """A residual attention of every place to itself in the frames before."""
        graph = self.graph
        width = self.weights.shapes[f"{name}.query.weight"][0]
        normed = self.norm(f"{name}.norm", x)
        clips = graph.integers(-1, self.frames, width, self.rows * self.columns)
        query, key, value = (
            graph.op("Reshape", self.convolution(f"{name}.{part}", normed), clips) for part in ("query", "key", "value")
        )
        query, value = (graph.op("Transpose", part, perm=[0, 3, 1, 2]) for part in (query, value))
        key = graph.op("Transpose", key, perm=[0, 3, 2, 1])
        scale = graph.constant(f"{name}.scale", np.array(1 / math.sqrt(width), np.float32))
        later = np.triu(np.full((self.frames, self.frames), -np.inf, np.float32), 1)
        scores = graph.op("MatMul", graph.op("Mul", query, scale), key)
        scores = graph.op("Add", scores, graph.constant("later", later))
        mixed = graph.op("MatMul", graph.op("Softmax", scores, axis=-1), value)
        mixed = graph.op("Transpose", mixed, perm=[0, 2, 3, 1])
        mixed = graph.op("Reshape", mixed, graph.integers(-1, width, self.rows, self.columns))
        return graph.op("Add", x, self.convolution(f"{name}.output", mixed))


class _Writer(VideoParts):
    """Writes the graph from its input to its output, once."""

    def __init__(
        self, description: CausalVideoDescription, weights: WeightSource, stored: str, tensors: TensorFile | None
    ) -> None:
        reader = WeightReader(description.weight_shapes(), weights)
        grid = (description.frames, description.rows, description.columns)
        super().__init__(reader, grid, 1, description.epsilon, stored, tensors, first_again=True)
        self.description = description

    def write(self, chosen: PictureTokens) -> Any:
        """The finished model."""
        description, graph = self.description, self.graph
        shape = (description.pixel_frames, description.height, description.width, description.channels)
        tokens = graph.input("tokens", "int64", ["B", chosen.length])
        pixels = graph.output("pixels", "uint8", ["B", *shape])
        x = self.vectors(self.codes(tokens, chosen, description.codes), description.codebook())
        x = self.middle(self.pair("conv_in", self.convolution("post_quant", x)))
        for i, stage in enumerate(description.stages):
            for j in range(stage.blocks):
                x = self.block(f"stages.{i}.block.{j}", x)
            x = self.doubled(f"stages.{i}.upsample", x, stage.width, space=stage.space, time=stage.time)
        x = self.pair("conv_out", self.swish(self.norm("norm_out", x)))
        for level in reversed(range(description.transforms)):
            x = self.inverse_haar(x, description.channels * HAAR**level)
        # The first frame was put in front of itself until the transforms came out even.
        first = 2**description.transforms - 1
        x = self.with_frames(x, list(range(first, self.frames)), description.channels, output=PICTURE)
        self.pixels(x, pixels, shape, nearest=description.rounding == "nearest")
        return graph.build(
            "pixel_graph",
            "Tokens to frames, by a causal decoder of videos. See docs/bundle-format.md of coupled-sampling.",
            {"format": "coupled-sampling pixel graph", "entries": str(description.codes)},
        )

    def doubled(self, name: str, x: str, width: int, *, space: bool, time: bool) -> str:
        """Twice as many frames, but for one, and twice as many rows and columns, each smoothed."""
        graph = self.graph
        if time:
            # Of the first frame one copy is left, and it goes before the convolution does.
            x = self.with_frames(x, [(number + 1) // 2 for number in range(2 * self.frames - 1)], width)
            x = graph.op("Add", x, self.convolution(f"{name}.time", x))
        if space:
            x = self.repeated(x, 1)
            self.rows, self.columns = 2 * self.rows, 2 * self.columns
            x = graph.op("Add", x, self.convolution(f"{name}.space", x))
        return self.convolution(f"{name}.mix", x) if space or time else x

    def inverse_haar(self, x: str, width: int) -> str:
        """From 8 * ``width`` coefficients to ``width`` channels of twice as many frames, rows and columns."""
        graph, places = self.graph, (width, self.rows, self.columns)
        coefficients = graph.op("Reshape", x, graph.integers(-1, HAAR, math.prod(places)))
        blocks = graph.op("MatMul", graph.constant("haar", haar_signs()), coefficients)
        blocks = graph.op("Reshape", blocks, graph.integers(-1, 2, 2, 2, *places))
        blocks = graph.op("Transpose", blocks, perm=[0, 1, 4, 5, 2, 6, 3])
        self.frames, self.rows, self.columns = 2 * self.frames, 2 * self.rows, 2 * self.columns
        return graph.op("Reshape", blocks, graph.integers(-1, width, self.rows, self.columns))

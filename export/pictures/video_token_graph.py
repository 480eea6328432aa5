"""The token graph of a causal tokenizer of videos: frames to tokens, the way back of `video_pixel_graph`, in standard operators.

Models whose prompts are the beginning of a video (Cosmos) take these tokens. Everything is computed in float32; a coefficient
halfway between two digits may fall to either side.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from coupled_sampling.export.graphs.builder import write_graph
from coupled_sampling.export.graphs.storage import Storage, TensorFile
from coupled_sampling.export.graphs.weights import WeightReader, WeightSource
from coupled_sampling.export.pictures.parts import FLOAT32, INT64
from coupled_sampling.export.pictures.video_description import HAAR, MARGIN, CausalVideoDescription, VideoStage
from coupled_sampling.export.pictures.video_pixel_graph import VideoParts, haar_signs

__all__ = ["DIGITS", "video_token_graph", "write_video_token_graph"]

DIGITS = "digits"
"""Name of the value that holds the digits before they are rounded, float32 (B * frames, digits, rows, columns)."""


def video_token_graph(
    description: CausalVideoDescription,
    weights: WeightSource,
    first: int = 0,
    storage: Storage | None = None,
    tensors: TensorFile | None = None,
) -> Any:
    """The graph from ``pixels`` uint8 (B, pixel_frames, height, width, channels) to ``tokens`` int64 (B, grid_tokens).

    Parameters
    ----------
    description
        The tokenizer. A prompt of few frames is one with a smaller grid: frames of codes 1, 2, ... are of 1, 9, ... frames.
    weights, tensors
        As for `coupled_sampling.export.graphs.decoder.decoder_graph`, by the names of ``description.encoder_shapes()``.
    first
        The token of code 0.
    storage
        As for `coupled_sampling.export.pictures.pixel_graph.vq_pixel_graph`.

    Returns
    -------
    onnx.ModelProto
        Not yet checked; `write_video_token_graph` checks and writes it.

    Raises
    ------
    InvalidArgument
        A weight is missing, unknown, has another shape, is not finite, or cannot be stored as asked; or the description has
        no encoder.
    MissingDependency
        ``onnx`` is not installed.
    """
    return _Writer(description, weights, (storage or Storage()).embeddings, tensors).write(first)


def write_video_token_graph(
    description: CausalVideoDescription,
    weights: WeightSource,
    path: str | Path,
    first: int = 0,
    storage: Storage | None = None,
    inline: bool | None = None,
) -> tuple[Path, ...]:
    """Write and check the token graph of a tokenizer of videos, in about the memory of its largest weight.

    Parameters
    ----------
    description, weights, first, storage
        As for `video_token_graph`.
    path, inline
        As for `coupled_sampling.export.graphs.builder.write_graph`.

    Returns
    -------
    tuple of Path
        The files written: ``path``, and ``<path>.data`` if there is one.

    Raises
    ------
    InvalidArgument
        As for `video_token_graph`.
    OutputError
        A file cannot be written.

    Examples
    --------
    >>> import numpy as np
    >>> import onnxruntime
    >>> from coupled_sampling.export.pictures import CausalVideoDescription, VideoStage, write_video_token_graph
    >>> stages = (VideoStage(width=4, blocks=2, space=True, time=True), VideoStage(width=4, blocks=2))
    >>> video = CausalVideoDescription(
    ...     frames=2, rows=1, columns=2, stages=stages, levels=(4, 3), latent=4, transforms=1, base=4
    ... )
    >>> random = np.random.default_rng(0)
    >>> weights = {name: random.normal(size=shape) for name, shape in video.encoder_shapes().items()}
    >>> (path,) = write_video_token_graph(video, weights, "tokens.onnx")
    >>> pixels = random.integers(0, 256, (1, 5, 4, 8, 3)).astype(np.uint8)
    >>> session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    >>> session.run(["tokens"], {"pixels": pixels})[0].shape
    (1, 4)
    """
    stored = storage or Storage()
    size = sum(stored.bytes_of(shape, matrix=False) for shape in description.encoder_shapes().values())
    return write_graph(
        path, lambda tensors: video_token_graph(description, weights, first, stored, tensors), size, inline
    )


class _Writer(VideoParts):
    """Writes the graph from its input to its output, once."""

    def __init__(
        self, description: CausalVideoDescription, weights: WeightSource, stored: str, tensors: TensorFile | None
    ) -> None:
        reader = WeightReader(description.encoder_shapes(), weights)
        grid = (description.pixel_frames, description.height, description.width)
        super().__init__(reader, grid, 1, description.epsilon, stored, tensors, first_again=True)
        self.description = description

    def write(self, first: int) -> Any:
        """The finished model."""
        description, graph = self.description, self.graph
        shape = (description.height, description.width, description.channels)
        pixels = graph.input("pixels", "uint8", ["B", description.pixel_frames, *shape])
        tokens = graph.output("tokens", "int64", ["B", description.grid_tokens])
        x = graph.op("Transpose", graph.op("Reshape", pixels, graph.integers(-1, *shape)), perm=[0, 3, 1, 2])
        x = graph.op("Div", graph.op("Cast", x, to=FLOAT32), self.number(255))
        x = graph.op("Sub", graph.op("Mul", x, self.number(2)), self.number(1))
        # The first frame stands in front of itself until the transforms come out even.
        again = [0] * (2**description.transforms - 1)
        x = self.with_frames(x, again + list(range(self.frames)), description.channels)
        for level in range(description.transforms):
            x = self.haar(x, description.channels * HAAR**level)
        x = self.pair("conv_in", x)
        for i, stage in enumerate(description.encoder_stages):
            for j in range(stage.blocks):
                x = self.block(f"stages.{i}.block.{j}", x)
            x = self.halved(f"stages.{i}.downsample", x, stage)
        x = self.pair("conv_out", self.swish(self.norm("norm_out", self.middle(x))))
        self.tokens(self.convolution("quant", x), first, tokens)
        return graph.build(
            "token_graph",
            "Frames to tokens, by a causal encoder of videos. See docs/families-visual.md of coupled-sampling.",
            {"format": "coupled-sampling token graph", "entries": str(description.codes)},
        )

    def haar(self, x: str, width: int) -> str:
        """From ``width`` channels to 8 * ``width`` coefficients of half as many frames, rows and columns."""
        graph = self.graph
        self.frames, self.rows, self.columns = self.frames // 2, self.rows // 2, self.columns // 2
        blocks = graph.op("Reshape", x, graph.integers(-1, 2, width, self.rows, 2, self.columns, 2))
        blocks = graph.op("Transpose", blocks, perm=[0, 1, 4, 6, 2, 3, 5])
        blocks = graph.op("Reshape", blocks, graph.integers(-1, HAAR, width * self.rows * self.columns))
        coefficients = graph.op("MatMul", graph.constant("haar", haar_signs() / HAAR), blocks)
        return graph.op("Reshape", coefficients, graph.integers(-1, HAAR * width, self.rows, self.columns))

    def halved(self, name: str, x: str, stage: VideoStage) -> str:
        """Half as many rows and columns, and half as many frames and one, each a convolution and a mean."""
        graph = self.graph
        if stage.space:
            # One row and column of zeros at the end; the mean of an even number of them does not reach there.
            smoothed = self.convolution(f"{name}.space", x, strides=[2, 2], pads=[0, 0, 1, 1])
            mean = graph.op("AveragePool", x, kernel_shape=[2, 2], strides=[2, 2])
            x = graph.op("Add", smoothed, mean)
            self.rows, self.columns = self.rows // 2, self.columns // 2
        if stage.time:
            frames, count = self.frames, self.frames // 2 + 1
            smoothed = self.convolution(f"{name}.time", x)
            parts = []
            for value, before in ((smoothed, 0), (x, 0), (x, 1)):
                self.frames = frames
                order = [max(0, 2 * number - before) for number in range(count)]
                parts.append(self.with_frames(value, order, stage.width))
            mean = graph.op("Mul", graph.op("Add", parts[1], parts[2]), self.number(0.5))
            x = graph.op("Add", parts[0], mean)
        return self.convolution(f"{name}.mix", x) if stage.space or stage.time else x

    def tokens(self, x: str, first: int, output: str) -> None:
        """From coefficients (B * frames, digits, rows, columns) to tokens (B, grid_tokens)."""
        graph, description = self.graph, self.description
        levels = np.array(description.levels)
        # A digit's range is a little wider than its values, so that all of them can be reached.
        width = (levels - 1) * (1 + MARGIN) / 2
        offset = np.where(levels % 2 == 0, 0.5, 0)
        places = np.cumprod([1, *description.levels[:-1]])

        def column(name: str, value: Any, dtype: type) -> str:
            return graph.constant(f"quant.{name}", np.asarray(value, dtype)[:, None, None])

        bounded = graph.op("Tanh", graph.op("Add", x, column("shift", np.arctanh(offset / width), np.float32)))
        scaled = graph.op("Mul", bounded, column("width", width, np.float32))
        digits = graph.op("Sub", scaled, column("offset", offset, np.float32), name=DIGITS)
        whole = graph.op("Cast", graph.op("Round", digits), to=INT64)
        whole = graph.op("Add", whole, column("half", levels // 2, np.int64))
        placed = graph.op("Mul", whole, column("places", places, np.int64))
        codes = graph.op("ReduceSum", placed, graph.integers(1), keepdims=0)
        codes = graph.op("Reshape", codes, graph.integers(-1, math.prod((self.frames, self.rows, self.columns))))
        graph.op("Add", codes, graph.integers(first), name=output)

"""What graphs of picture decoders are made of: codes of tokens, convolutions, norms, attentions, and the pixels at the end.

Frames of a clip count as pictures: values are float32 (B * frames, channels, height, width) everywhere. A convolution in time is
then one of pictures, of every frame with the frames before it as further channels (`PictureParts.convolution`).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.errors import InvalidArgument
from coupled_sampling.export.graphs.builder import GraphBuilder
from coupled_sampling.export.graphs.storage import TensorFile, converted
from coupled_sampling.export.graphs.weights import WeightReader
from coupled_sampling.export.pictures.picture_tokens import PictureTokens

__all__ = ["PICTURE", "PictureParts", "check_tokens"]

PICTURE = "picture"
"""Name of the value that holds a decoder's output before it is made pixels."""

FLOAT32, UINT8, INT64 = 1, 2, 7
"""ONNX's numbers of these types."""


def check_tokens(tokens: PictureTokens, rows: int, columns: int, frames: int, codes: int) -> None:
    """Refuse tokens that are not those of a grid, or of another codebook.

    Raises
    ------
    InvalidArgument
        They are not.
    """
    if tokens.size != max(1, frames) * rows * columns:
        of_frames = f"{frames} frames of " * bool(frames)
        raise InvalidArgument(
            f"tokens has {tokens.size} codes in a picture, expected {of_frames}{rows} rows of {columns}"
        )
    most = max(tokens.codes, default=tokens.count - 1)
    if most >= codes or min(tokens.codes, default=0) < 0:
        raise InvalidArgument(f"tokens has codes up to {most}, expected codes in [0, {codes})")


class PictureParts:
    """A graph of a picture decoder under construction, and where it has come to.

    Parameters
    ----------
    weights
        Of the decoder.
    grid
        Frames, rows and columns that it begins with; frames are 1 for pictures. They change as the graph does.
    groups, epsilon
        Of its norms.
    stored
        The type that kernels are stored in.
    tensors
        As for `coupled_sampling.export.graphs.builder.GraphBuilder`.
    first_again
        What a convolution in time finds before the first frame: the first frame itself, or zeros.
    """

    def __init__(
        self,
        weights: WeightReader,
        grid: tuple[int, int, int],
        groups: int,
        epsilon: float,
        stored: str,
        tensors: TensorFile | None,
        *,
        first_again: bool = False,
    ) -> None:
        self.weights = weights
        self.frames, self.rows, self.columns = grid
        self.groups = groups
        self.epsilon = epsilon
        self.stored = stored
        self.graph = GraphBuilder(tensors)
        self.first_again = first_again

    def codes(self, tokens: str, chosen: PictureTokens, codes: int) -> str:
        """Codes (B, size) of the tokens of a generation; what is no code becomes a number out of range."""
        graph = self.graph
        if chosen.positions:
            positions = graph.constant("positions", np.array(chosen.positions, np.int64))
            tokens = graph.op("Gather", tokens, positions, axis=1)
        index = graph.op("Sub", tokens, graph.integers(chosen.first))
        # Gather would count negative ones from the end, and a codebook may have more rows than there are tokens.
        below, above = (
            graph.op(kind, index, graph.integers(n)) for kind, n in (("Less", 0), ("GreaterOrEqual", chosen.count))
        )
        outside = graph.op("Or", below, above)
        index = graph.op("Where", outside, graph.integers(max(chosen.count, codes)), index)
        if chosen.codes:
            index = graph.op("Gather", graph.constant("codes", np.array(chosen.codes, np.int64)), index)
        return index

    def vectors(self, codes: str, codebook: NDArray[Any]) -> str:
        """Code vectors (B * frames, size, rows, columns), rows of ``codebook``."""
        graph = self.graph
        rows = graph.op("Gather", graph.weight("codebook", converted("codebook", codebook, "float32")), codes)
        cut = graph.op("Reshape", rows, graph.integers(-1, self.rows, self.columns, codebook.shape[1]))
        return graph.op("Transpose", cut, perm=[0, 3, 1, 2])

    def pixels(self, picture: str, output: str, shape: tuple[int, ...], *, nearest: bool) -> None:
        """From values in [-1, 1] and beyond to bytes of ``shape``, (height, width, channels), after frames if it is a clip."""
        graph, number = self.graph, self.number
        x = graph.op("Mul", graph.op("Add", picture, number(1)), number(0.5))
        x = graph.op("Mul", x, number(255))
        if nearest:
            x = graph.op("Add", x, number(0.5))
        x = graph.op("Clip", x, number(0), number(255))
        cast, clip = graph.op("Cast", x, to=UINT8), len(shape) == 4
        last = graph.op("Transpose", cast, perm=[0, 2, 3, 1], name=None if clip else output)
        if clip:
            graph.op("Reshape", last, graph.integers(-1, *shape), name=output)

    def number(self, value: float) -> str:
        """A constant float32."""
        return self.graph.constant(f"number.{value:g}", np.array(value, np.float32))

    def norm(self, name: str, x: str) -> str:
        """A group norm of each frame, scaled and shifted per channel."""
        graph = self.graph
        (width,) = self.weights.shapes[f"{name}.weight"]
        ones, zeros = (graph.constant(f"groups.{v}", np.full(self.groups, v, np.float32)) for v in (1, 0))
        cut = graph.op("Reshape", x, graph.integers(0, self.groups, -1))
        normed = graph.op("InstanceNormalization", cut, ones, zeros, epsilon=self.epsilon)
        x = graph.op("Reshape", normed, self.grid(width))
        for kind, part in (("Mul", "weight"), ("Add", "bias")):
            x = graph.op(kind, x, self.vector(f"{name}.{part}", (width, 1, 1)))
        return x

    def attention(self, name: str, x: str) -> str:
        """A residual attention over all positions of a frame."""
        graph = self.graph
        width = self.weights.shapes[f"{name}.query.weight"][0]
        normed = self.norm(f"{name}.norm", x)
        flat = graph.integers(0, width, -1)
        query, key, value = (
            graph.op("Reshape", self.convolution(f"{name}.{part}", normed), flat) for part in ("query", "key", "value")
        )
        scale = graph.constant(f"{name}.scale", np.array(1 / math.sqrt(width), np.float32))
        query, value = (graph.op("Transpose", part, perm=[0, 2, 1]) for part in (query, value))
        scores = graph.op("MatMul", graph.op("Mul", query, scale), key)
        mixed = graph.op("MatMul", graph.op("Softmax", scores, axis=-1), value)
        mixed = graph.op("Reshape", graph.op("Transpose", mixed, perm=[0, 2, 1]), self.grid(width))
        return graph.op("Add", x, self.convolution(f"{name}.output", mixed))

    def swish(self, x: str) -> str:
        return self.graph.op("Mul", x, self.graph.op("Sigmoid", x))

    def repeated(self, x: str, doublings: int) -> str:
        """Every position 2^doublings times in each direction."""
        if not doublings:
            return x
        factor = 2.0**doublings
        scales = self.graph.constant(f"scales.{doublings}", np.array([1, 1, factor, factor], np.float32))
        choices = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        return self.graph.op("Resize", x, "", scales, mode="nearest", **choices)

    def with_frames(self, x: str, order: list[int], width: int, output: str | None = None) -> str:
        """Frames ``order`` of every clip, instead of all in their order; there are so many from then on."""
        clips = self.graph.op("Gather", self.clips(x, width), self.graph.integers(*order), axis=1)
        self.frames = len(order)
        shape = self.graph.integers(-1, width, self.rows, self.columns)
        return self.graph.op("Reshape", clips, shape, name=output)

    def clips(self, x: str, width: int) -> str:
        """``x`` as (B, frames, width * height * width of the picture)."""
        return self.graph.op("Reshape", x, self.graph.integers(-1, self.frames, width * self.rows * self.columns))

    def grid(self, width: int) -> str:
        """The shape (B * frames, width, height, width) at the present resolution; B is that of the input."""
        return self.graph.integers(0, width, self.rows, self.columns)

    def convolution(self, name: str, x: str, output: str | None = None, **attributes: Any) -> str:
        """A convolution by the kernel called ``name``; kernels of five axes have taps in time, the third.

        It keeps the size, unless ``attributes`` of the operator say otherwise.
        """
        kernel = self.weights[f"{name}.weight"]
        if kernel.ndim == 5:
            outputs, inputs, taps, *size = kernel.shape
            kernel = kernel.swapaxes(1, 2).reshape(outputs, taps * inputs, *size)
            x = self.with_past(x, taps, inputs)
        attributes = {"pads": [kernel.shape[-1] // 2] * 4} | attributes
        weight = self.widened(self.graph.weight(f"{name}.weight", converted(f"{name}.weight", kernel, self.stored)))
        return self.graph.op("Conv", x, weight, self.vector(f"{name}.bias"), name=output, **attributes)

    def with_past(self, x: str, taps: int, width: int) -> str:
        """Every frame of ``width`` channels below the ``taps - 1`` frames before it, as channels."""
        if taps == 1:
            return x
        graph, clips = self.graph, self.clips(x, width)
        if self.first_again:
            first = graph.op("Slice", clips, graph.integers(0), graph.integers(1), graph.integers(1))
            padded = graph.op("Concat", *[first] * (taps - 1), clips, axis=1)
        else:
            padded = graph.op("Pad", clips, graph.integers(0, taps - 1, 0, 0, 0, 0))
        shifted = (
            graph.op("Slice", padded, graph.integers(i), graph.integers(i + self.frames), graph.integers(1))
            for i in range(taps)
        )
        stacked = graph.op("Concat", *shifted, axis=2)
        return graph.op("Reshape", stacked, graph.integers(-1, taps * width, self.rows, self.columns))

    def vector(self, name: str, shape: tuple[int, ...] = (-1,)) -> str:
        """A small weight, in float32."""
        return self.graph.constant(name, converted(name, self.weights[name].reshape(shape), "float32"))

    def widened(self, value: str) -> str:
        return value if self.stored == "float32" else self.graph.op("Cast", value, to=FLOAT32)

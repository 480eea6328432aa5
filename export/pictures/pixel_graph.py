"""The pixel graph of a VQGAN decoder: tokens to a picture, as `VqDescription` says, in standard operators.

Everything is computed in float32, whatever type weights are stored in, and a group norm is an InstanceNormalization of the
groups: ONNX Runtime computes GroupNormalization from its definition in parts, three times as slowly and ten times less exactly.
As in `coupled_sampling.export.graphs.codebook_pixels`, a token without pixels is an error of the runtime. The value ``picture``
inside, float32 (B, channels, height, width), is what the published decoders return before pixels are made of it.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.errors import InvalidArgument
from coupled_sampling.export.graphs.builder import GraphBuilder, write_graph
from coupled_sampling.export.graphs.storage import Storage, TensorFile, converted
from coupled_sampling.export.graphs.weights import WeightReader, WeightSource
from coupled_sampling.export.pictures.description import VqDescription
from coupled_sampling.export.pictures.picture_tokens import PictureTokens

__all__ = ["PICTURE", "vq_pixel_graph", "write_vq_pixel_graph"]

PICTURE = "picture"
"""Name of the value that holds the decoder's output before it is made pixels."""

_FLOAT32, _UINT8 = 1, 2
_SHORTEST = 1e-12
"""Code vectors shorter than this are divided by it instead of by their length, as torch does."""


def vq_pixel_graph(
    description: VqDescription,
    weights: WeightSource,
    tokens: PictureTokens,
    storage: Storage | None = None,
    tensors: TensorFile | None = None,
) -> Any:
    """The graph from ``tokens`` int64 (B, tokens.length) to ``pixels`` uint8 (B, height, width, channels).

    Of a clip, pixels are (B, frames, height, width, channels).

    Parameters
    ----------
    description
        The decoder.
    weights, tensors
        As for `coupled_sampling.export.graphs.decoder.decoder_graph`.
    tokens
        Which tokens are codes.
    storage
        Convolutions are stored in its type of embeddings, None means float32; all else, which is small, in float32.

    Returns
    -------
    onnx.ModelProto
        Not yet checked; `write_vq_pixel_graph` checks and writes it.

    Raises
    ------
    InvalidArgument
        A weight is missing, unknown, has another shape, is not finite, or cannot be stored as asked; or ``tokens`` do not
        fit the grid or the codebook.
    MissingDependency
        ``onnx`` is not installed.
    """
    if tokens.size != description.grid_tokens:
        frames = f"{description.frames} frames of " * bool(description.frames)
        raise InvalidArgument(
            f"tokens has {tokens.size} codes in a picture, expected {frames}{description.rows} rows of {description.columns}"
        )
    most = max(tokens.codes, default=tokens.count - 1)
    if most >= description.codes or min(tokens.codes, default=0) < 0:
        raise InvalidArgument(f"tokens has codes up to {most}, expected codes in [0, {description.codes})")
    return _Writer(description, weights, tokens, (storage or Storage()).embeddings, tensors).write()


def write_vq_pixel_graph(
    description: VqDescription,
    weights: WeightSource,
    tokens: PictureTokens,
    path: str | Path,
    storage: Storage | None = None,
    inline: bool | None = None,
) -> tuple[Path, ...]:
    """Write and check the pixel graph of a decoder, in about the memory of its largest weight.

    Parameters
    ----------
    description, weights, tokens, storage
        As for `vq_pixel_graph`.
    path, inline
        As for `coupled_sampling.export.graphs.builder.write_graph`.

    Returns
    -------
    tuple of Path
        The files written: ``path``, and ``<path>.data`` if there is one.

    Raises
    ------
    InvalidArgument
        As for `vq_pixel_graph`.
    OutputError
        A file cannot be written.

    Examples
    --------
    >>> import numpy as np
    >>> from coupled_sampling.export.pictures import PictureTokens, Stage, VqDescription, write_vq_pixel_graph
    >>> stages = (Stage(width=4, blocks=1),)
    >>> description = VqDescription(codes=16, code_size=4, latent=4, stages=stages, rows=2, columns=2, groups=2)
    >>> random = np.random.default_rng(0)
    >>> weights = {name: random.normal(size=shape) for name, shape in description.weight_shapes().items()}
    >>> [path.name for path in write_vq_pixel_graph(description, weights, PictureTokens(4, 0, 16), "pixels.onnx")]
    ['pixels.onnx']
    """
    stored = storage or Storage()
    size = sum(stored.bytes_of(shape, matrix=False) for shape in description.weight_shapes().values())
    return write_graph(
        path, lambda tensors: vq_pixel_graph(description, weights, tokens, stored, tensors), size, inline
    )


class _Writer:
    """Writes the graph from its input to its output, once."""

    def __init__(
        self,
        description: VqDescription,
        weights: WeightSource,
        tokens: PictureTokens,
        stored: str,
        tensors: TensorFile | None,
    ) -> None:
        self.description = description
        self.tokens = tokens
        self.stored = stored
        self.weights = WeightReader(description.weight_shapes(), weights)
        self.graph = GraphBuilder(tensors)
        self.doublings = 0
        self.condition: str | None = None

    def write(self) -> Any:
        """The finished model."""
        description, graph = self.description, self.graph
        frames = [description.frames] if description.frames else []
        shape: list[str | int] = ["B", *frames, description.height, description.width, description.channels]
        tokens = graph.input("tokens", "int64", ["B", self.tokens.length])
        pixels = graph.output("pixels", "uint8", shape)
        x = self.latent(self.vectors(self.codes(tokens)))
        x = self.convolution("conv_in", x)
        x = self.block("mid.block_1", x)
        x = self.attention("mid.attention", x, description.stages[0].width)
        x = self.block("mid.block_2", x)
        for i, stage in enumerate(description.stages):
            for j in range(stage.blocks):
                x = self.block(f"stages.{i}.block.{j}", x)
                if stage.attention:
                    x = self.attention(f"stages.{i}.attention.{j}", x, stage.width)
            if i + 1 < len(description.stages):
                x = self.convolution(f"stages.{i}.upsample", self.repeated(x, 1))
                self.doublings += 1
        x = self.swish(self.norm("norm_out", x))
        self.pixels(self.convolution("conv_out", x, output=PICTURE), pixels)
        return graph.build(
            "pixel_graph",
            "Tokens to a picture, by a VQGAN decoder. See docs/bundle-format.md of coupled-sampling.",
            {"format": "coupled-sampling pixel graph", "entries": str(description.codes)},
        )

    def codes(self, tokens: str) -> str:
        """Codes (B, rows * columns) of the tokens of a generation; what is no code becomes a number out of range."""
        graph, chosen = self.graph, self.tokens
        if chosen.positions:
            positions = graph.constant("positions", np.array(chosen.positions, np.int64))
            tokens = graph.op("Gather", tokens, positions, axis=1)
        index = graph.op("Sub", tokens, graph.integers(chosen.first))
        # Gather would count negative ones from the end, and a codebook may have more rows than there are tokens.
        below, above = (
            graph.op(kind, index, graph.integers(n)) for kind, n in (("Less", 0), ("GreaterOrEqual", chosen.count))
        )
        outside = graph.op("Or", below, above)
        index = graph.op("Where", outside, graph.integers(max(chosen.count, self.description.codes)), index)
        if chosen.codes:
            index = graph.op("Gather", graph.constant("codes", np.array(chosen.codes, np.int64)), index)
        return index

    def vectors(self, codes: str) -> str:
        """Code vectors, float32 (B, code_size, rows, columns); frames of clips count as pictures from here to the pixels."""
        description, graph = self.description, self.graph
        codebook = self.weights["codebook"]
        book = _normalised(codebook) if description.normalised_codes else codebook
        rows = graph.op("Gather", graph.weight("codebook", converted("codebook", book, "float32")), codes)
        cut = graph.op(
            "Reshape", rows, graph.integers(-1, description.rows, description.columns, description.code_size)
        )
        return graph.op("Transpose", cut, perm=[0, 3, 1, 2])

    def latent(self, vectors: str) -> str:
        """What ``conv_in`` takes; with a frame, also what conditions the norms."""
        x, frame = self.convolution("post_quant", vectors), self.description.frame
        if frame is None:
            return x
        # Both halves go through the same weights, so they are one batch for a while.
        both = self.graph.op("Concat", x, vectors, axis=0)
        for i in range(frame.blocks):
            inner = both
            for half in ("1", "2"):
                name = f"frame.block.{i}"
                parts = [self.vector(f"{name}.norm{half}.{part}") for part in ("weight", "bias", "mean", "variance")]
                inner = self.graph.op("BatchNormalization", inner, *parts, epsilon=frame.epsilon)
                inner = self.convolution(f"{name}.conv{half}", self.swish(inner))
            both = self.graph.op("Add", both, inner)
        for i in range(frame.convolutions):
            both = self.swish(self.convolution(f"frame.convolution.{i}", both))
        x, self.condition = self.graph.ops("Split", both, names=(None, None), axis=0, num_outputs=2)
        return x

    def pixels(self, picture: str, output: str) -> None:
        """From values in [-1, 1] and beyond to bytes, with the picture's channels last."""
        graph = self.graph

        def number(value: float) -> str:
            return graph.constant(f"number.{value:g}", np.array(value, np.float32))

        x = graph.op("Mul", graph.op("Add", picture, number(1)), number(0.5))
        x = graph.op("Mul", x, number(255))
        if self.description.rounding == "nearest":
            x = graph.op("Add", x, number(0.5))
        x = graph.op("Clip", x, number(0), number(255))
        cast, frames = graph.op("Cast", x, to=_UINT8), self.description.frames
        last = graph.op("Transpose", cast, perm=[0, 2, 3, 1], name=None if frames else output)
        if frames:
            shape = graph.integers(
                -1, frames, self.description.height, self.description.width, self.description.channels
            )
            graph.op("Reshape", last, shape, name=output)

    def block(self, name: str, x: str) -> str:
        """A residual block."""
        inner = self.convolution(f"{name}.conv1", self.swish(self.norm(f"{name}.norm1", x)))
        inner = self.convolution(f"{name}.conv2", self.swish(self.norm(f"{name}.norm2", inner)))
        if f"{name}.shortcut.weight" in self.weights.shapes:
            x = self.convolution(f"{name}.shortcut", x)
        return self.graph.op("Add", x, inner)

    def attention(self, name: str, x: str, width: int) -> str:
        """A residual attention over all positions."""
        graph = self.graph
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

    def norm(self, name: str, x: str) -> str:
        """A group norm, scaled and shifted per channel, and by the condition if there is one."""
        graph, description = self.graph, self.description
        (width,) = self.weights.shapes[f"{name}.weight"]
        groups = description.groups
        ones, zeros = (graph.constant(f"groups.{v}", np.full(groups, v, np.float32)) for v in (1, 0))
        cut = graph.op("Reshape", x, graph.integers(0, groups, -1))
        normed = graph.op("InstanceNormalization", cut, ones, zeros, epsilon=description.epsilon)
        x = graph.op("Reshape", normed, self.grid(width))
        for kind, part in (("Mul", "weight"), ("Add", "bias")):
            x = graph.op(kind, x, self.vector(f"{name}.{part}", (width, 1, 1)))
        if self.condition is not None:
            for kind, part in (("Mul", "scale"), ("Add", "shift")):
                # A 1x1 convolution of repeated values is the repetition of its results, which are fewer.
                small = self.convolution(f"{name}.{part}", self.condition)
                x = graph.op(kind, x, self.repeated(small, self.doublings))
        return x

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

    def grid(self, width: int) -> str:
        """The shape (B, width, height, width) at the present resolution; B is that of the input."""
        factor = 2**self.doublings
        return self.graph.integers(0, width, self.description.rows * factor, self.description.columns * factor)

    def convolution(self, name: str, x: str, output: str | None = None) -> str:
        """A convolution that keeps the size, by the kernel called ``name``."""
        size = self.weights.shapes[f"{name}.weight"][-1]
        kernel = converted(f"{name}.weight", self.weights[f"{name}.weight"], self.stored)
        weight = self.widened(self.graph.weight(f"{name}.weight", kernel))
        pads = [size // 2] * 4
        return self.graph.op("Conv", x, weight, self.vector(f"{name}.bias"), pads=pads, name=output)

    def vector(self, name: str, shape: tuple[int, ...] = (-1,)) -> str:
        """A small weight, in float32."""
        return self.graph.constant(name, converted(name, self.weights[name].reshape(shape), "float32"))

    def widened(self, value: str) -> str:
        return value if self.stored == "float32" else self.graph.op("Cast", value, to=_FLOAT32)


def _normalised(codebook: NDArray[Any]) -> NDArray[np.float64]:
    """Rows of ``codebook`` at length 1."""
    rows = codebook.astype(np.float64)
    scaled: NDArray[np.float64] = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), _SHORTEST)
    return scaled

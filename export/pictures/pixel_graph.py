"""The pixel graph of a VQGAN decoder: tokens to a picture, as `VqDescription` says, in standard operators.

Everything is computed in float32, whatever type weights are stored in, and a group norm is an InstanceNormalization of the
groups: ONNX Runtime computes GroupNormalization from its definition in parts, three times as slowly and ten times less exactly.
As in `coupled_sampling.export.graphs.codebook_pixels`, a token without pixels is an error of the runtime. The value ``picture``
inside, float32 (B, channels, height, width), is what the published decoders return before pixels are made of it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.export.graphs.builder import write_graph
from coupled_sampling.export.graphs.storage import Storage, TensorFile
from coupled_sampling.export.graphs.weights import WeightReader, WeightSource
from coupled_sampling.export.pictures.description import VqDescription
from coupled_sampling.export.pictures.parts import PICTURE, PictureParts, check_tokens
from coupled_sampling.export.pictures.picture_tokens import PictureTokens

__all__ = ["PICTURE", "vq_pixel_graph", "write_vq_pixel_graph"]

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
    check_tokens(tokens, description.rows, description.columns, description.frames, description.codes)
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


class _Writer(PictureParts):
    """Writes the graph from its input to its output, once."""

    def __init__(
        self,
        description: VqDescription,
        weights: WeightSource,
        tokens: PictureTokens,
        stored: str,
        tensors: TensorFile | None,
    ) -> None:
        reader = WeightReader(description.weight_shapes(), weights)
        grid = (max(1, description.frames), description.rows, description.columns)
        super().__init__(reader, grid, description.groups, description.epsilon, stored, tensors)
        self.description = description
        self.tokens = tokens
        self.doublings = 0
        self.condition: str | None = None

    def write(self) -> Any:
        """The finished model."""
        description, graph = self.description, self.graph
        frames = (description.pixel_frames,) if description.frames else ()
        shape = (*frames, description.height, description.width, description.channels)
        tokens = graph.input("tokens", "int64", ["B", self.tokens.length])
        pixels = graph.output("pixels", "uint8", ["B", *shape])
        book = self.weights["codebook"]
        book = _normalised(book) if description.normalised_codes else book
        x = self.latent(self.vectors(self.codes(tokens, self.tokens, description.codes), book))
        x = self.convolution("conv_in", x)
        x = self.block("mid.block_1", x)
        x = self.attention("mid.attention", x)
        x = self.block("mid.block_2", x)
        for i, stage in enumerate(description.stages):
            for j in range(stage.blocks):
                x = self.block(f"stages.{i}.block.{j}", x)
                if stage.attention:
                    x = self.attention(f"stages.{i}.attention.{j}", x)
            if i + 1 < len(description.stages):
                x = self.convolution(f"stages.{i}.upsample", self.repeated(x, 1))
                self.doublings += 1
                self.rows, self.columns = 2 * self.rows, 2 * self.columns
        x = self.convolution("conv_out", self.swish(self.norm("norm_out", x)), output=PICTURE)
        self.pixels(x, pixels, shape, nearest=description.rounding == "nearest")
        return graph.build(
            "pixel_graph",
            "Tokens to a picture, by a VQGAN decoder. See docs/bundle-format.md of coupled-sampling.",
            {"format": "coupled-sampling pixel graph", "entries": str(description.codes)},
        )

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
            if self.description.in_time:
                twice = [number // 2 for number in range(2 * self.frames)]
                both = self.with_frames(both, twice, self.description.latent)
            both = self.swish(self.convolution(f"frame.convolution.{i}", both))
        x, self.condition = self.graph.ops("Split", both, names=(None, None), axis=0, num_outputs=2)
        return x

    def block(self, name: str, x: str) -> str:
        """A residual block."""
        inner = self.convolution(f"{name}.conv1", self.swish(self.norm(f"{name}.norm1", x)))
        inner = self.convolution(f"{name}.conv2", self.swish(self.norm(f"{name}.norm2", inner)))
        if f"{name}.shortcut.weight" in self.weights.shapes:
            x = self.convolution(f"{name}.shortcut", x)
        return self.graph.op("Add", x, inner)

    def norm(self, name: str, x: str) -> str:
        """A group norm, scaled and shifted per channel, and by the condition if there is one."""
        x = super().norm(name, x)
        if self.condition is not None:
            for kind, part in (("Mul", "scale"), ("Add", "shift")):
                # A 1x1 convolution of repeated values is the repetition of its results, which are fewer.
                small = self.convolution(f"{name}.{part}", self.condition)
                x = self.graph.op(kind, x, self.repeated(small, self.doublings))
        return x


def _normalised(codebook: NDArray[Any]) -> NDArray[np.float64]:
    """Rows of ``codebook`` at length 1."""
    rows = codebook.astype(np.float64)
    scaled: NDArray[np.float64] = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), _SHORTEST)
    return scaled

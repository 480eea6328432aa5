"""A VQGAN decoder in numpy and float64: what its graph is checked against, and readable as its definition.

It is slow, and it shares nothing with the graph but the description and the weights.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.export.graphs.weights import WeightReader, WeightSource
from coupled_sampling.export.pictures.description import VqDescription
from coupled_sampling.export.pictures.picture_tokens import PictureTokens

__all__ = ["reference_picture", "reference_pixels", "values_to_pixels"]

Floats = NDArray[np.float64]


def reference_pixels(
    description: VqDescription, weights: WeightSource, tokens: PictureTokens, generated: NDArray[np.int64]
) -> NDArray[np.uint8]:
    """Pixels uint8 (B, height, width, channels) of the tokens int64 (B, tokens.length) of generations; clips have frames behind B.

    Examples
    --------
    >>> import numpy as np
    >>> from coupled_sampling.export.pictures import PictureTokens, Stage, VqDescription, reference_pixels
    >>> stages = (Stage(width=4, blocks=1),)
    >>> description = VqDescription(codes=16, code_size=4, latent=4, stages=stages, rows=2, columns=2, groups=2)
    >>> random = np.random.default_rng(0)
    >>> weights = {name: random.normal(size=shape) for name, shape in description.weight_shapes().items()}
    >>> reference_pixels(description, weights, PictureTokens(4, 0, 16), np.array([[3, 0, 15, 7]])).shape
    (1, 2, 2, 3)
    """
    codes = tokens.codes_of(generated)
    picture = reference_picture(description, weights, codes.reshape(-1, description.rows * description.columns))
    pixels = np.asarray(np.floor(values_to_pixels(description, picture)), np.uint8)
    return pixels.reshape(len(codes), description.pixel_frames, *pixels.shape[1:]) if description.frames else pixels


def values_to_pixels(description: VqDescription, picture: Floats) -> Floats:
    """What pixels are before the fraction is cut off, float64 (B, height, width, channels), in [0, 255]."""
    half = 0.5 if description.rounding == "nearest" else 0.0
    return np.clip((picture + 1) / 2 * 255 + half, 0, 255).transpose(0, 2, 3, 1)


def reference_picture(description: VqDescription, weights: WeightSource, codes: NDArray[np.int64]) -> Floats:
    """The decoder's output, float64 (B, channels, height, width), about in [-1, 1].

    Parameters
    ----------
    description, weights
        As for `coupled_sampling.export.pictures.pixel_graph.vq_pixel_graph`.
    codes
        int64 (B, rows * columns); of clips, frame by frame, (B * frames, rows * columns), and so is what comes back.

    Raises
    ------
    InvalidArgument
        As for `coupled_sampling.export.pictures.pixel_graph.vq_pixel_graph`.
    """
    return _Decoder(description, weights).picture(codes)


class _Decoder:
    """The decoder's parts, each by the name of its weights."""

    def __init__(self, description: VqDescription, weights: WeightSource) -> None:
        self.description = description
        self.weights = WeightReader(description.weight_shapes(), weights)
        self.condition: Floats | None = None
        self.frames = description.frames

    def picture(self, codes: NDArray[np.int64]) -> Floats:
        description = self.description
        book = self.weights["codebook"].astype(np.float64)
        if description.normalised_codes:
            book = book / np.sqrt((book**2).sum(axis=1, keepdims=True))
        grid = book[codes].reshape(-1, description.rows, description.columns, description.code_size)
        x = self.latent(grid.transpose(0, 3, 1, 2))
        x = self.block("mid.block_1", self.convolution("conv_in", x))
        x = self.block("mid.block_2", self.attention("mid.attention", x))
        for i, stage in enumerate(description.stages):
            for j in range(stage.blocks):
                x = self.block(f"stages.{i}.block.{j}", x)
                x = self.attention(f"stages.{i}.attention.{j}", x) if stage.attention else x
            if i + 1 < len(description.stages):
                x = self.convolution(f"stages.{i}.upsample", _repeated(x, 2))
        return self.convolution("conv_out", _swish(self.norm("norm_out", x)))

    def latent(self, vectors: Floats) -> Floats:
        x, frame = self.convolution("post_quant", vectors), self.description.frame
        if frame is None:
            return x
        halves, frames = [], self.frames
        for half in (x, vectors):
            self.frames = frames
            for i in range(frame.blocks):
                inner = half
                for part in ("1", "2"):
                    inner = self.batch_norm(f"frame.block.{i}.norm{part}", inner, frame.epsilon)
                    inner = self.convolution(f"frame.block.{i}.conv{part}", _swish(inner))
                half = half + inner
            for i in range(frame.convolutions):
                if self.description.in_time:
                    half, self.frames = half.repeat(2, axis=0), 2 * self.frames
                half = _swish(self.convolution(f"frame.convolution.{i}", half))
            halves.append(half)
        x, self.condition = halves
        return x

    def block(self, name: str, x: Floats) -> Floats:
        inner = self.convolution(f"{name}.conv1", _swish(self.norm(f"{name}.norm1", x)))
        inner = self.convolution(f"{name}.conv2", _swish(self.norm(f"{name}.norm2", inner)))
        return (self.convolution(f"{name}.shortcut", x) if inner.shape != x.shape else x) + inner

    def attention(self, name: str, x: Floats) -> Floats:
        normed = self.norm(f"{name}.norm", x)
        query, key, value = (self.convolution(f"{name}.{part}", normed) for part in ("query", "key", "value"))
        scores = np.einsum("bcij,bckl->bijkl", query, key, optimize=True) / np.sqrt(x.shape[1])
        shares = np.exp(scores - scores.max((3, 4), keepdims=True))
        shares /= shares.sum((3, 4), keepdims=True)
        return x + self.convolution(f"{name}.output", np.einsum("bijkl,bckl->bcij", shares, value, optimize=True))

    def norm(self, name: str, x: Floats) -> Floats:
        groups = x.reshape(len(x), self.description.groups, -1)
        centred = groups - groups.mean(-1, keepdims=True)
        scaled = centred / np.sqrt(groups.var(-1, keepdims=True) + self.description.epsilon)
        x = scaled.reshape(x.shape) * self.column(f"{name}.weight") + self.column(f"{name}.bias")
        if self.condition is None:
            return x
        condition = _repeated(self.condition, x.shape[2] // self.condition.shape[2])
        return x * self.convolution(f"{name}.scale", condition) + self.convolution(f"{name}.shift", condition)

    def batch_norm(self, name: str, x: Floats, epsilon: float) -> Floats:
        weight, bias, mean, variance = (
            self.column(f"{name}.{part}") for part in ("weight", "bias", "mean", "variance")
        )
        return (x - mean) / np.sqrt(variance + epsilon) * weight + bias

    def convolution(self, name: str, x: Floats) -> Floats:
        kernel = self.weights[f"{name}.weight"].astype(np.float64)
        if kernel.ndim == 4:
            return _convolved(kernel, x) + self.column(f"{name}.bias")
        clips = x.reshape(-1, self.frames, *x.shape[1:])
        out = np.zeros((*clips.shape[:2], len(kernel), *x.shape[2:]))
        for frame in range(self.frames):
            for tap in range(kernel.shape[2]):
                seen = frame - (kernel.shape[2] - 1 - tap)
                if seen >= 0:
                    out[:, frame] += _convolved(kernel[:, :, tap], clips[:, seen])
        return out.reshape(-1, *out.shape[2:]) + self.column(f"{name}.bias")

    def column(self, name: str) -> Floats:
        return self.weights[name].astype(np.float64)[:, None, None]


def _convolved(kernel: Floats, x: Floats) -> Floats:
    """A convolution of pictures that keeps the size, without a bias."""
    height, width, edge = x.shape[2], x.shape[3], kernel.shape[-1] // 2
    padded = np.pad(x, ((0, 0), (0, 0), (edge, edge), (edge, edge)))
    out = np.zeros((len(x), len(kernel), height, width))
    for i in range(kernel.shape[2]):
        for j in range(kernel.shape[3]):
            part = padded[:, :, i : i + height, j : j + width]
            out += np.einsum("oc,bchw->bohw", kernel[:, :, i, j], part, optimize=True)
    return out


def _swish(x: Floats) -> Floats:
    return np.asarray(x / (1 + np.exp(-x)), np.float64)


def _repeated(x: Floats, times: int) -> Floats:
    return x.repeat(times, axis=2).repeat(times, axis=3)

"""A causal tokenizer of videos in numpy and float64: what its graph is checked against, and readable as its definition.

It is slow, and it shares nothing with the graph but the description and the weights. Values are
(B, channels, frames, rows, columns).
"""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.export.graphs.weights import WeightReader, WeightSource
from coupled_sampling.export.pictures.picture_tokens import PictureTokens
from coupled_sampling.export.pictures.video_description import MARGIN, CausalVideoDescription

__all__ = ["reference_digits", "reference_video", "reference_video_pixels", "video_values_to_pixels"]

Floats = NDArray[np.float64]


def reference_video_pixels(
    description: CausalVideoDescription, weights: WeightSource, tokens: PictureTokens, generated: NDArray[np.int64]
) -> NDArray[np.uint8]:
    """Pixels uint8 (B, pixel_frames, height, width, channels) of the tokens int64 (B, tokens.length) of generations.

    Examples
    --------
    >>> import numpy as np
    >>> from coupled_sampling.export.pictures import CausalVideoDescription, PictureTokens, VideoStage, reference_video_pixels
    >>> stages = (VideoStage(width=4, blocks=1, space=True, time=True),)
    >>> video = CausalVideoDescription(frames=2, rows=1, columns=2, stages=stages, levels=(4, 3), latent=4, transforms=1)
    >>> random = np.random.default_rng(0)
    >>> weights = {name: random.normal(size=shape) for name, shape in video.weight_shapes().items()}
    >>> reference_video_pixels(video, weights, PictureTokens(4, 0, 12), np.array([[3, 0, 11, 7]])).shape
    (1, 5, 4, 8, 3)
    """
    video = reference_video(description, weights, tokens.codes_of(generated))
    return np.asarray(np.floor(video_values_to_pixels(description, video)), np.uint8)


def video_values_to_pixels(description: CausalVideoDescription, video: Floats) -> Floats:
    """What pixels are before the fraction is cut off, float64 (B, frames, height, width, channels), in [0, 255]."""
    half = 0.5 if description.rounding == "nearest" else 0.0
    return np.clip((video / 2 + 0.5) * 255 + half, 0, 255).transpose(0, 2, 3, 4, 1)


def reference_video(description: CausalVideoDescription, weights: WeightSource, codes: NDArray[np.int64]) -> Floats:
    """The decoder's output, float64 (B, channels, pixel_frames, height, width), about in [-1, 1].

    Parameters
    ----------
    description, weights
        As for `coupled_sampling.export.pictures.video_pixel_graph.video_pixel_graph`.
    codes
        int64 (B, frames * rows * columns).

    Raises
    ------
    InvalidArgument
        As for `coupled_sampling.export.pictures.video_pixel_graph.video_pixel_graph`.
    """
    parts = _Parts(WeightReader(description.weight_shapes(), weights), description.epsilon)
    grid = codes.reshape(-1, description.frames, description.rows, description.columns)
    x = parts.pair("conv_in", parts.convolution("post_quant", _digits(description, grid)))
    x = parts.middle(x)
    for i, stage in enumerate(description.stages):
        name = f"stages.{i}.upsample"
        for j in range(stage.blocks):
            x = parts.block(f"stages.{i}.block.{j}", x)
        if stage.time:
            x = x.repeat(2, axis=2)[:, :, 1:]
            x = x + parts.convolution(f"{name}.time", x)
        if stage.space:
            x = x.repeat(2, axis=3).repeat(2, axis=4)
            x = x + parts.convolution(f"{name}.space", x)
        if stage.time or stage.space:
            x = parts.convolution(f"{name}.mix", x)
    x = parts.pair("conv_out", _swish(parts.norm("norm_out", x)))
    for _ in range(description.transforms):
        x = _inverse_haar(x)
    return x[:, :, 2**description.transforms - 1 :]


def reference_digits(description: CausalVideoDescription, weights: WeightSource, pixels: NDArray[np.uint8]) -> Floats:
    """Digits before they are rounded and counted from 0, float64 (B, digits, frames, rows, columns).

    Parameters
    ----------
    description, weights, pixels
        As for `coupled_sampling.export.pictures.video_token_graph.video_token_graph`.
    """
    parts = _Parts(WeightReader(description.encoder_shapes(), weights), description.epsilon)
    x = pixels.astype(np.float64).transpose(0, 4, 1, 2, 3) / 255 * 2 - 1
    x = _later(x, 2**description.transforms - 1)
    for _ in range(description.transforms):
        x = _haar(x)
    x = parts.pair("conv_in", x)
    for i, stage in enumerate(description.encoder_stages):
        name = f"stages.{i}.downsample"
        for j in range(stage.blocks):
            x = parts.block(f"stages.{i}.block.{j}", x)
        if stage.space:
            padded = np.pad(x, ((0, 0),) * 3 + ((0, 1),) * 2)
            mean = sum(x[:, :, :, a::2, b::2] for a in (0, 1) for b in (0, 1)) / 4
            # A kernel that keeps the size looks at a place and its neighbours, and this one at a place and what follows.
            x = parts.convolution(f"{name}.space", padded)[:, :, :, 1::2, 1::2] + mean
        if stage.time:
            doubled = _later(x, 1)
            mean = (doubled[:, :, ::2] + doubled[:, :, 1::2]) / 2
            x = parts.convolution(f"{name}.time", x)[:, :, ::2] + mean
        if stage.space or stage.time:
            x = parts.convolution(f"{name}.mix", x)
    x = parts.pair("conv_out", _swish(parts.norm("norm_out", parts.middle(x))))
    x = parts.convolution("quant", x)
    digits = []
    for level, one in zip(description.levels, x.swapaxes(0, 1), strict=True):
        width, offset = (level - 1) * (1 + MARGIN) / 2, 0.0 if level % 2 else 0.5
        digits.append(np.tanh(one + np.arctanh(offset / width)) * width - offset + level // 2)
    return np.stack(digits, axis=1)


def _later(x: Floats, frames: int) -> Floats:
    """``x`` with its first frame ``frames`` more times in front."""
    return np.concatenate([x[:, :, :1]] * frames + [x], axis=2)


def _haar(x: Floats) -> Floats:
    """Eight times the channels of half as many frames, rows and columns."""
    blocks = []
    for i, j, k in itertools.product((0, 1), repeat=3):
        total = np.zeros_like(x[:, :, ::2, ::2, ::2])
        for a, b, c in itertools.product((0, 1), repeat=3):
            total += (-1) ** (a * i + b * j + c * k) * x[:, :, a::2, b::2, c::2] / 8
        blocks.append(total)
    return np.concatenate(blocks, axis=1)


def _digits(description: CausalVideoDescription, codes: NDArray[np.int64]) -> Floats:
    """Code vectors (B, digits, ...) of codes (B, ...), digit by digit, the first one varying fastest."""
    vectors = []
    for level in description.levels:
        codes, digit = np.divmod(codes, level)
        vectors.append((digit - level // 2) / (level // 2))
    return np.stack(vectors, axis=1)


def _inverse_haar(x: Floats) -> Floats:
    """Twice as many frames, rows and columns of an eighth of the channels."""
    batch, channels, *sizes = x.shape
    blocks = x.reshape(batch, 8, channels // 8, *sizes)
    out = np.zeros((batch, channels // 8, *(2 * size for size in sizes)))
    for a, b, c in itertools.product((0, 1), repeat=3):
        for i, j, k in itertools.product((0, 1), repeat=3):
            out[:, :, a::2, b::2, c::2] += (-1) ** (a * i + b * j + c * k) * blocks[:, 4 * i + 2 * j + k]
    return out


class _Parts:
    """The tokenizer's parts, each by the name of its weights."""

    def __init__(self, weights: WeightReader, epsilon: float) -> None:
        self.weights = weights
        self.epsilon = epsilon

    def pair(self, name: str, x: Floats) -> Floats:
        return self.convolution(f"{name}.time", self.convolution(f"{name}.space", x))

    def block(self, name: str, x: Floats) -> Floats:
        inner = self.pair(f"{name}.conv1", _swish(self.norm(f"{name}.norm1", x)))
        inner = self.pair(f"{name}.conv2", _swish(self.norm(f"{name}.norm2", inner)))
        return (self.convolution(f"{name}.shortcut", x) if inner.shape != x.shape else x) + inner

    def middle(self, x: Floats) -> Floats:
        x = self.block("mid.block_1", x)
        for axis, letters in (("space", "bctij,bctkl->btijkl"), ("time", "bctij,bcsij->btijs")):
            name = f"mid.attention.{axis}"
            normed = self.norm(f"{name}.norm", x)
            query, key, value = (self.convolution(f"{name}.{part}", normed) for part in ("query", "key", "value"))
            scores = np.einsum(letters, query, key, optimize=True) / np.sqrt(x.shape[1])
            if axis == "space":
                mixed = np.einsum("btijkl,bctkl->bctij", _shares(scores, (4, 5)), value, optimize=True)
            else:
                for frame in range(scores.shape[1]):
                    scores[:, frame, ..., frame + 1 :] = -np.inf
                mixed = np.einsum("btijs,bcsij->bctij", _shares(scores, (4,)), value, optimize=True)
            x = x + self.convolution(f"{name}.output", mixed)
        return self.block("mid.block_2", x)

    def norm(self, name: str, x: Floats) -> Floats:
        axes = (1, 3, 4)
        centred = x - x.mean(axes, keepdims=True)
        scaled: Floats = centred / np.sqrt(x.var(axes, keepdims=True) + self.epsilon)
        return scaled * self.column(f"{name}.weight") + self.column(f"{name}.bias")

    def convolution(self, name: str, x: Floats) -> Floats:
        kernel = self.weights[f"{name}.weight"].astype(np.float64)
        _, _, taps, size, _ = kernel.shape
        before = np.repeat(x[:, :, :1], taps - 1, axis=2)
        edge = size // 2
        padded = np.pad(np.concatenate([before, x], axis=2), ((0, 0),) * 3 + ((edge, edge),) * 2)
        frames, rows, columns = x.shape[2:]
        out = np.zeros((len(x), len(kernel), frames, rows, columns)) + self.column(f"{name}.bias")
        for t, i, j in itertools.product(range(taps), range(size), range(size)):
            part = padded[:, :, t : t + frames, i : i + rows, j : j + columns]
            out += np.einsum("oc,bcthw->bothw", kernel[:, :, t, i, j], part, optimize=True)
        return out

    def column(self, name: str) -> Floats:
        return self.weights[name].astype(np.float64)[:, None, None, None]


def _shares(scores: Floats, axes: tuple[int, ...]) -> Floats:
    shares = np.exp(scores - scores.max(axes, keepdims=True))
    return np.asarray(shares / shares.sum(axes, keepdims=True), np.float64)


def _swish(x: Floats) -> Floats:
    return np.asarray(x / (1 + np.exp(-x)), np.float64)

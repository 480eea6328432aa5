"""What a causal tokenizer of videos is (Cosmos' DV8x16x16): its stages and the names of its weights, independent of any checkpoint.

A code is a number whose digits are the channels of a small vector (finite scalar quantisation, Mentzer et al., arXiv 2309.15505).
Convolutions in space and then in time, residual blocks and one pair of attentions turn a grid of such vectors into a finer one of
wavelet coefficients, which Haar's transform turns into frames.

    digits -> post_quant -> conv_in -> mid: block, attention in space, attention in time, block
           -> stages: blocks, then doubling in time, in space or both
           -> norm_out, swish, conv_out -> inverse Haar transforms -> frames

The encoder is the same backwards, with `CausalVideoDescription.encoder_shapes`. Time is causal: no convolution and no attention
sees a later frame, and before the first frame stands the first frame again. Frames of codes 0, ..., m thus decide the first
1 + time_scale * m frames of pixels. Norms are over all channels and places of one frame.

Source: nvidia-cosmos/cosmos-predict1 at 4ed35fa, ``cosmos_predict1/autoregressive/tokenizer`` (modules, patching, quantizers).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.errors import InvalidArgument
from coupled_sampling.export.pictures.description import TAPS, Shapes
from coupled_sampling.fields import check_fields

__all__ = ["CausalVideoDescription", "VideoStage"]

HAAR = 8
"""Channels that a wavelet transform of one level makes of one: low and high in time, row and column."""

MARGIN = 1e-3
"""What the encoder's range of a digit exceeds its values by, as a share."""

_LEAST = ("frames", "rows", "columns", "latent", "channels", "base")


@dataclass(frozen=True)
class VideoStage:
    """Blocks at one resolution of a decoder of videos.

    Parameters
    ----------
    width
        Channels that the blocks give.
    blocks
        How many there are.
    space, time
        Whether rows and columns, and frames, are doubled afterwards.

    Examples
    --------
    >>> from coupled_sampling.export.pictures import CausalVideoDescription, VideoStage
    >>> stages = (VideoStage(width=8, blocks=3, space=True), VideoStage(width=4, blocks=3))
    >>> video = CausalVideoDescription(frames=2, rows=4, columns=4, stages=stages)
    >>> video.time_scale, video.scale
    (4, 8)
    """

    width: int
    blocks: int
    space: bool = False
    time: bool = False

    def __post_init__(self) -> None:
        check_fields(self)


DV8X16X16 = (VideoStage(512, 3, space=True), VideoStage(512, 3, space=True, time=True), VideoStage(256, 3))
"""Stages of Cosmos' tokenizer of 8 frames and 16 by 16 pixels to a code."""


@dataclass(frozen=True)
class CausalVideoDescription:
    """A causal tokenizer of videos; without a change, Cosmos' DV8x16x16.

    Parameters
    ----------
    frames, rows, columns
        The grid of codes.
    stages
        Of the decoder, in the order in which they run.
    levels
        How many values each digit of a code has; the first digit is the one that varies fastest.
    latent
        Channels between ``post_quant`` and ``conv_in``.
    transforms
        Levels of Haar's transform.
    channels
        Of a frame of pixels.
    rounding
        "floor" or "nearest": how a pixel's value becomes an integer.
    epsilon
        Of the norms.
    base
        Channels that the encoder begins with.

    Raises
    ------
    InvalidArgument
        A size is not positive, or ``rounding`` is unknown.

    Examples
    --------
    >>> from coupled_sampling.export.pictures import CausalVideoDescription
    >>> video = CausalVideoDescription(frames=5, rows=40, columns=64)
    >>> video.codes, video.grid_tokens, (video.pixel_frames, video.height, video.width)
    (64000, 12800, (33, 640, 1024))
    >>> video.weight_shapes()["conv_in.time.weight"]
    (512, 512, 3, 1, 1)
    """

    frames: int
    rows: int
    columns: int
    stages: tuple[VideoStage, ...] = DV8X16X16
    levels: tuple[int, ...] = (8, 8, 8, 5, 5, 5)
    latent: int = 16
    transforms: int = 2
    channels: int = 3
    rounding: str = "floor"
    epsilon: float = 1e-6
    base: int = 128

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.stages or not self.levels:
            raise InvalidArgument("stages or levels is empty, expected at least one stage and one level")
        sizes = {name: (getattr(self, name), 1) for name in _LEAST} | {"transforms": (self.transforms, 0)}
        sizes |= {f"levels[{i}]": (level, 2) for i, level in enumerate(self.levels)}
        for i, stage in enumerate(self.stages):
            sizes |= {f"stages[{i}].width": (stage.width, 1), f"stages[{i}].blocks": (stage.blocks, 1)}
        for name, (value, least) in sizes.items():
            if value < least:
                raise InvalidArgument(f"{name} is {value}, expected an integer >= {least}")
        if not (math.isfinite(self.epsilon) and self.epsilon > 0):
            raise InvalidArgument(f"epsilon is {self.epsilon}, expected a number > 0")
        if self.rounding not in ("floor", "nearest"):
            raise InvalidArgument(f"rounding is {self.rounding!r}, expected 'floor' or 'nearest'")

    @property
    def codes(self) -> int:
        """How many codes there are."""
        return math.prod(self.levels)

    @property
    def grid_tokens(self) -> int:
        """Codes of a clip."""
        return self.frames * self.rows * self.columns

    @property
    def time_scale(self) -> int:
        """Frames of pixels of a frame of codes, but for the first, which has one."""
        return int(2 ** (self.transforms + sum(stage.time for stage in self.stages)))

    @property
    def scale(self) -> int:
        """Pixels of a code in each direction."""
        return int(2 ** (self.transforms + sum(stage.space for stage in self.stages)))

    @property
    def pixel_frames(self) -> int:
        """Frames of pixels of a clip."""
        return 1 + self.time_scale * (self.frames - 1)

    @property
    def height(self) -> int:
        """Rows of pixels."""
        return self.rows * self.scale

    @property
    def width(self) -> int:
        """Columns of pixels."""
        return self.columns * self.scale

    @property
    def encoder_stages(self) -> tuple[VideoStage, ...]:
        """Stages of the encoder, in the order in which they run; ``space`` and ``time`` say what is halved afterwards.

        They are the decoder's backwards with a block less each, and halve what the decoder's stage before doubles.

        Raises
        ------
        InvalidArgument
            The decoder has no such counterpart: its last stage doubles something, or a stage has one block only.
        """
        last = self.stages[-1]
        if last.space or last.time or min(stage.blocks for stage in self.stages) < 2:
            raise InvalidArgument(
                f"stages is {self.stages}, expected two blocks or more in each, and a last one that doubles nothing, for an encoder"
            )
        backwards = self.stages[::-1]
        following = (*backwards[1:], VideoStage(1, 1))
        return tuple(
            VideoStage(stage.width, stage.blocks - 1, space=after.space, time=after.time)
            for stage, after in zip(backwards, following, strict=True)
        )

    def codebook(self) -> NDArray[np.float32]:
        """The vector of every code, (codes, digits): digit d of L levels is (d - L // 2) / (L // 2).

        Examples
        --------
        >>> from coupled_sampling.export.pictures import CausalVideoDescription
        >>> CausalVideoDescription(5, 40, 64).codebook()[[0, 1, 63999]]
        array([[-1.  , -1.  , -1.  , -1.  , -1.  , -1.  ],
               [-0.75, -1.  , -1.  , -1.  , -1.  , -1.  ],
               [ 0.75,  0.75,  0.75,  1.  ,  1.  ,  1.  ]], dtype=float32)
        """
        levels = np.array(self.levels)
        places = np.cumprod([1, *self.levels[:-1]])
        half = levels // 2
        digits = np.arange(self.codes)[:, None] // places % levels
        return np.asarray((digits - half) / half, np.float32)

    def encoder_shapes(self) -> Shapes:
        """Names and shapes of the encoder's weights, in the order in which they are used.

        Raises
        ------
        InvalidArgument
            As for `encoder_stages`.
        """
        inner, stages = self.base, self.encoder_stages
        shapes = _pair("conv_in", inner, self.channels * HAAR**self.transforms)
        for i, stage in enumerate(stages):
            for j in range(stage.blocks):
                shapes |= _block(f"stages.{i}.block.{j}", stage.width, inner)
                inner = stage.width
            shapes |= _resampling(f"stages.{i}.downsample", inner, space=stage.space, time=stage.time)
        shapes |= _middle(inner) | _norm("norm_out", inner) | _pair("conv_out", self.latent, inner)
        return shapes | _kernel("quant", len(self.levels), self.latent)

    def weight_shapes(self) -> Shapes:
        """Names and shapes of the decoder's weights, in the order in which they are used.

        Convolutions are (outputs, inputs, time, height, width); maps of an attention are convolutions of one place.
        """
        inner = self.stages[0].width
        shapes = _kernel("post_quant", self.latent, len(self.levels)) | _pair("conv_in", inner, self.latent)
        shapes |= _middle(inner)
        for i, stage in enumerate(self.stages):
            for j in range(stage.blocks):
                shapes |= _block(f"stages.{i}.block.{j}", stage.width, inner)
                inner = stage.width
            shapes |= _resampling(f"stages.{i}.upsample", inner, space=stage.space, time=stage.time)
        return shapes | _norm("norm_out", inner) | _pair("conv_out", self.channels * HAAR**self.transforms, inner)


def _kernel(name: str, outputs: int, inputs: int, time: int = 1, space: int = 1) -> Shapes:
    return {f"{name}.weight": (outputs, inputs, time, space, space), f"{name}.bias": (outputs,)}


def _pair(name: str, outputs: int, inputs: int) -> Shapes:
    """A convolution in space and one in time."""
    return _kernel(f"{name}.space", outputs, inputs, space=3) | _kernel(f"{name}.time", outputs, outputs, time=TAPS)


def _norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _block(name: str, outputs: int, inputs: int) -> Shapes:
    shapes = _norm(f"{name}.norm1", inputs) | _pair(f"{name}.conv1", outputs, inputs)
    shapes |= _norm(f"{name}.norm2", outputs) | _pair(f"{name}.conv2", outputs, outputs)
    return shapes | (_kernel(f"{name}.shortcut", outputs, inputs) if outputs != inputs else {})


def _middle(width: int) -> Shapes:
    shapes = _block("mid.block_1", width, width)
    for axis in ("space", "time"):
        shapes |= _norm(f"mid.attention.{axis}.norm", width)
        for part in ("query", "key", "value", "output"):
            shapes |= _kernel(f"mid.attention.{axis}.{part}", width, width)
    return shapes | _block("mid.block_2", width, width)


def _resampling(name: str, width: int, *, space: bool, time: bool) -> Shapes:
    """Between two stages: what is done in time, what is done in space, and a map of both."""
    shapes = _kernel(f"{name}.time", width, width, time=TAPS) if time else {}
    shapes |= _kernel(f"{name}.space", width, width, space=3) if space else {}
    return shapes | (_kernel(f"{name}.mix", width, width) if time or space else {})

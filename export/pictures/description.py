"""What a VQGAN decoder is: sizes, stages and the names of its weights, independent of any checkpoint.

A picture's codes are looked up in a codebook, and convolutions with residual blocks turn the small grid of vectors into a
large one of colours, doubling it between stages (Esser et al., arXiv 2012.09841). Per pixel of the result x,
pixel = 255 (x + 1) / 2, clipped to [0, 255].

    codebook -> post_quant (1x1) -> [frame] -> conv_in -> mid: block, attention, block
             -> stages: blocks (each with attention, or none), then doubling and a convolution, but for the last
             -> norm_out, swish, conv_out

A block is x + conv2(swish(norm2(conv1(swish(norm1(x)))))), with a 1x1 shortcut where the width changes; an attention is
x + output(softmax(q k / sqrt(width)) v) on norm(x), over all positions with one head. All 3x3 convolutions are padded by
one. Encoders are not described.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from coupled_sampling.errors import InvalidArgument
from coupled_sampling.fields import check_fields

__all__ = ["CausalFrames", "FirstFrame", "Stage", "VqDescription"]

Shapes = dict[str, tuple[int, ...]]

TAPS = 3
"""Of kernels in time."""


@dataclass(frozen=True)
class Stage:
    """Blocks at one resolution.

    Parameters
    ----------
    width
        Channels that the blocks give.
    blocks
        How many there are.
    attention
        Whether each is followed by an attention.

    Examples
    --------
    A decoder of two stages: 4 by 4 codes become 8 by 8 pixels.

    >>> from coupled_sampling.export.pictures import Stage, VqDescription
    >>> stages = (Stage(width=8, blocks=1, attention=True), Stage(width=4, blocks=1))
    >>> VqDescription(codes=16, code_size=4, latent=4, stages=stages, rows=4, columns=4, groups=2).height
    8
    """

    width: int
    blocks: int
    attention: bool = False

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class FirstFrame:
    """What a decoder of videos does to its first frame (Emu3), written without time.

    Its convolutions are causal: before the first frame there are zeros, so that of a kernel's taps in time only the last one
    meets a frame, and what is left are convolutions of a picture. The code vectors z and the output of ``post_quant`` both
    pass through ``blocks`` residual blocks with batch norms and ``convolutions`` convolutions with swish, by the same
    weights; what becomes of z then scales and shifts the result of every group norm: norm(x) * scale(z) + shift(z), 1x1
    convolutions of z, repeated to the size of x.

    Parameters
    ----------
    blocks, convolutions
        How many there are of each.
    epsilon
        Of the batch norms.

    Examples
    --------
    >>> from coupled_sampling.export.pictures import FirstFrame, Stage, VqDescription
    >>> frame = FirstFrame(blocks=1, convolutions=1)
    >>> stages = (Stage(width=4, blocks=1),)
    >>> description = VqDescription(16, 4, latent=4, stages=stages, rows=2, columns=2, groups=2, frame=frame)
    >>> sum(name.startswith("frame.") for name in description.weight_shapes())
    14
    """

    blocks: int
    convolutions: int
    epsilon: float = 1e-5

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class CausalFrames(FirstFrame):
    """What a decoder of videos does to all its frames (Emu3); the first one of each clip is that of `FirstFrame`.

    Its convolutions have three taps in time: of two frames before, of the one before and of the frame itself. Before the first
    frame there are zeros. In front of each of ``convolutions`` all frames are doubled, so that a frame of codes becomes
    2^convolutions frames of pixels. What follows, from ``conv_in`` on, is a decoder of pictures, frame by frame.

    Examples
    --------
    >>> from coupled_sampling.export.pictures import CausalFrames, Stage, VqDescription
    >>> frame = CausalFrames(blocks=1, convolutions=2)
    >>> stages = (Stage(width=4, blocks=1),)
    >>> description = VqDescription(16, 4, latent=4, stages=stages, rows=2, columns=2, groups=2, frame=frame, frames=3)
    >>> description.pixel_frames, description.weight_shapes()["frame.convolution.1.weight"]
    (12, (4, 4, 3, 3, 3))
    """


@dataclass(frozen=True)
class VqDescription:
    """A VQGAN decoder.

    Parameters
    ----------
    codes, code_size
        Rows and columns of the codebook.
    latent
        Channels between ``post_quant`` and ``conv_in``.
    stages
        In the order in which they run, the coarsest first; the middle has the width of the first.
    rows, columns
        The grid of codes.
    channels
        Of the picture.
    normalised_codes
        Whether code vectors are scaled to length 1 when they are looked up.
    rounding
        "floor" or "nearest": how a pixel's value becomes an integer.
    groups, epsilon
        Of the group norms.
    frame
        For decoders of videos, see `FirstFrame` and `CausalFrames`; None for those of pictures.
    frames
        Of codes, in a clip, each decoded as a picture of its own, but for `CausalFrames`; 0 for a picture.

    Raises
    ------
    InvalidArgument
        A size is not positive, a width is no multiple of ``groups``, or ``rounding`` is unknown.

    Examples
    --------
    >>> from coupled_sampling.export.pictures import Stage, VqDescription
    >>> stages = (Stage(width=8, blocks=1), Stage(width=4, blocks=1))
    >>> description = VqDescription(codes=16, code_size=4, latent=4, stages=stages, rows=4, columns=4, groups=2)
    >>> description.scale, description.height, description.width, description.channels
    (2, 8, 8, 3)
    >>> description.weight_shapes()["codebook"]
    (16, 4)
    """

    codes: int
    code_size: int
    latent: int
    stages: tuple[Stage, ...]
    rows: int
    columns: int
    channels: int = 3
    normalised_codes: bool = False
    rounding: str = "floor"
    groups: int = 32
    epsilon: float = 1e-6
    frame: FirstFrame | None = None
    frames: int = 0

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.stages:
            raise InvalidArgument("stages is empty, expected at least one stage")
        for name in ("codes", "code_size", "latent", "rows", "columns", "channels", "groups"):
            _at_least(name, getattr(self, name), 1)
        for i, stage in enumerate(self.stages):
            _at_least(f"stages[{i}].blocks", stage.blocks, 1)
            _at_least(f"stages[{i}].width", stage.width, 1)
            if stage.width % self.groups:
                raise InvalidArgument(
                    f"stages[{i}].width is {stage.width}, expected a multiple of groups, {self.groups}"
                )
        _at_least("frames", self.frames, 0)
        if not (math.isfinite(self.epsilon) and self.epsilon > 0):
            raise InvalidArgument(f"epsilon is {self.epsilon}, expected a number > 0")
        if self.rounding not in ("floor", "nearest"):
            raise InvalidArgument(f"rounding is {self.rounding!r}, expected 'floor' or 'nearest'")
        if self.frame is not None:
            _at_least("frame.blocks", self.frame.blocks, 0)
            _at_least("frame.convolutions", self.frame.convolutions, 0)
            if self.latent != self.code_size:
                raise InvalidArgument(f"latent is {self.latent}, expected code_size, {self.code_size}, with a frame")
        if self.in_time and not self.frames:
            raise InvalidArgument("frames is 0, expected an integer >= 1 with CausalFrames; FirstFrame is for pictures")

    @property
    def grid_tokens(self) -> int:
        """Codes of a picture, or of a clip."""
        return max(1, self.frames) * self.rows * self.columns

    @property
    def in_time(self) -> bool:
        """Whether frames depend on those before."""
        return isinstance(self.frame, CausalFrames)

    @property
    def pixel_frames(self) -> int:
        """Frames of pixels of a clip; 0 for a picture."""
        doublings = self.frame.convolutions if isinstance(self.frame, CausalFrames) else 0
        return int(self.frames * 2**doublings)

    @property
    def scale(self) -> int:
        """Pixels of a code in each direction."""
        return int(2 ** (len(self.stages) - 1))

    @property
    def height(self) -> int:
        """Rows of pixels."""
        return self.rows * self.scale

    @property
    def width(self) -> int:
        """Columns of pixels."""
        return self.columns * self.scale

    def weight_shapes(self) -> Shapes:
        """Names and shapes of all weights, in the order in which they are used.

        Convolutions are (outputs, inputs, height, width), those in time (outputs, inputs, time, height, width); maps of an
        attention are 1x1 convolutions.
        """
        inner = self.stages[0].width
        shapes: Shapes = {"codebook": (self.codes, self.code_size)}
        shapes |= self._in_time(_convolution("post_quant", self.latent, self.code_size, 1))
        shapes |= self._frame_shapes()
        shapes |= _convolution("conv_in", inner, self.latent)
        shapes |= self._block_shapes("mid.block_1", inner, inner)
        shapes |= self._attention_shapes("mid.attention", inner)
        shapes |= self._block_shapes("mid.block_2", inner, inner)
        for i, stage in enumerate(self.stages):
            for j in range(stage.blocks):
                shapes |= self._block_shapes(f"stages.{i}.block.{j}", stage.width, inner)
                inner = stage.width
                if stage.attention:
                    shapes |= self._attention_shapes(f"stages.{i}.attention.{j}", inner)
            if i + 1 < len(self.stages):
                shapes |= _convolution(f"stages.{i}.upsample", inner, inner)
        shapes |= self._norm_shapes("norm_out", inner)
        return shapes | _convolution("conv_out", self.channels, inner)

    def _norm_shapes(self, name: str, width: int) -> Shapes:
        shapes: Shapes = {f"{name}.weight": (width,), f"{name}.bias": (width,)}
        if self.frame is None:
            return shapes
        for part in ("scale", "shift"):
            shapes |= _convolution(f"{name}.{part}", width, self.code_size, 1)
        return shapes

    def _block_shapes(self, name: str, outputs: int, inputs: int) -> Shapes:
        shapes = self._norm_shapes(f"{name}.norm1", inputs) | _convolution(f"{name}.conv1", outputs, inputs)
        shapes |= self._norm_shapes(f"{name}.norm2", outputs) | _convolution(f"{name}.conv2", outputs, outputs)
        return shapes | (_convolution(f"{name}.shortcut", outputs, inputs, 1) if outputs != inputs else {})

    def _attention_shapes(self, name: str, width: int) -> Shapes:
        shapes = self._norm_shapes(f"{name}.norm", width)
        for part in ("query", "key", "value", "output"):
            shapes |= _convolution(f"{name}.{part}", width, width, 1)
        return shapes

    def _frame_shapes(self) -> Shapes:
        shapes: Shapes = {}
        if self.frame is None:
            return shapes
        for i in range(self.frame.blocks):
            for half in ("1", "2"):
                norm = f"frame.block.{i}.norm{half}"
                shapes |= {f"{norm}.{part}": (self.latent,) for part in ("weight", "bias", "mean", "variance")}
                shapes |= _convolution(f"frame.block.{i}.conv{half}", self.latent, self.latent)
        for i in range(self.frame.convolutions):
            shapes |= _convolution(f"frame.convolution.{i}", self.latent, self.latent)
        return self._in_time(shapes)

    def _in_time(self, shapes: Shapes) -> Shapes:
        """``shapes`` with kernels that have taps in time, if there is time."""
        if not self.in_time:
            return shapes
        return {name: (*shape[:2], TAPS, *shape[2:]) if len(shape) == 4 else shape for name, shape in shapes.items()}


def _convolution(name: str, outputs: int, inputs: int, size: int = 3) -> Shapes:
    return {f"{name}.weight": (outputs, inputs, size, size), f"{name}.bias": (outputs,)}


def _at_least(name: str, value: int, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InvalidArgument(f"{name} is {value!r}, expected an integer >= {least}")

"""Cosmos' discrete tokenizer of videos, DV8x16x16: from archives of its halves to graphs.

The decoder is published as ``decoder.jit``, an archive of tensors without a configuration, the encoder as ``encoder.jit``, and
``autoencoder.jit`` has both. Sizes are read off the tensors; the levels of the codes are in no tensor that must be there.

Sources: nvidia-cosmos/cosmos-predict1 at 4ed35fa, ``cosmos_predict1/autoregressive/tokenizer`` and
``configs/base/tokenizer.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numpy.typing import NDArray

from coupled_sampling.bundles.manifest import Grid
from coupled_sampling.errors import CheckpointError, InvalidArgument
from coupled_sampling.export.checkpoints.contract import Checkpoint
from coupled_sampling.export.checkpoints.places import read_places
from coupled_sampling.export.pictures.contract import PictureDecoder
from coupled_sampling.export.pictures.picture_tokens import PictureTokens
from coupled_sampling.export.pictures.video_description import CausalVideoDescription, VideoStage
from coupled_sampling.export.pictures.video_names import read_video_stages, video_places

__all__ = ["cosmos_picture_decoder", "cosmos_video_encoder"]

LEVELS = (8, 8, 8, 5, 5, 5)
_TABLES = ("quantizer.", "inv_quant.", "decoder.unpatcher3d.", "encoder.patcher3d.")
"""Beginnings of tables that follow from the sizes."""


def cosmos_picture_decoder(
    checkpoint: Checkpoint, grid: Grid, first: int = 0, rounding: str = "floor"
) -> PictureDecoder:
    """The decoder in ``checkpoint`` for clips whose codes make ``grid``.

    Parameters
    ----------
    checkpoint
        An archive of the decoder, or of encoder and decoder.
    grid
        Frames, rows and columns of codes: 5, 40 and 64 for 33 frames of 640 by 1024 pixels.
    first
        The token that is code 0.
    rounding
        "floor", as the authors' pipeline of generated videos makes pixels, or "nearest", as their tokenizer's own tool does.

    Raises
    ------
    CheckpointError
        A tensor is missing, left over or of another shape, or the decoder is one of those whose frames are doubled before their
        rows are (``legacy_mode``).
    InvalidArgument
        The grid has no frames.

    Examples
    --------
    A narrow tokenizer of the same kind, without its weights' values:

    >>> import numpy as np
    >>> from pathlib import Path
    >>> from safetensors.numpy import save_file
    >>> from coupled_sampling.bundles import Grid
    >>> from coupled_sampling.export import open_checkpoint
    >>> stages = (VideoStage(4, 2, space=True), VideoStage(4, 2, space=True, time=True), VideoStage(4, 2))
    >>> places = video_places(CausalVideoDescription(3, 2, 4, stages))
    >>> Path("tokenizer").mkdir()
    >>> _ = Path("tokenizer/config.json").write_text("{}")
    >>> tensors = {place.tensor: np.zeros(place.shape, np.float32) for place in places.values()}
    >>> save_file(tensors, "tokenizer/model.safetensors")
    >>> with open_checkpoint("tokenizer") as checkpoint:
    ...     video = cosmos_picture_decoder(checkpoint, Grid(2, 4, 3)).description
    >>> video.pixel_frames, video.height, video.width
    (17, 32, 64)
    """
    if grid.frames < 1:
        raise InvalidArgument(f"grid is {grid}, expected one with frames")
    stages = read_video_stages(checkpoint)
    _refuse_legacy(checkpoint, stages)
    latent = _latent(checkpoint, "post_quant_conv.conv3d.weight", 1)
    description = _described(checkpoint, grid, stages, latent=latent, rounding=rounding)
    read = read_places(checkpoint, video_places(description), _left(checkpoint, "encoder.", "quant_conv."))
    tokens = PictureTokens(description.grid_tokens, first, description.codes)
    return PictureDecoder(description, read, tokens, checkpoint.path)


def cosmos_video_encoder(
    checkpoint: Checkpoint, grid: Grid
) -> tuple[CausalVideoDescription, Callable[[str], NDArray[Any]]]:
    """The encoder in ``checkpoint`` for clips whose codes make ``grid``: what `write_video_token_graph` takes.

    Parameters
    ----------
    checkpoint
        An archive of the encoder, or of encoder and decoder.
    grid
        Frames, rows and columns of codes: 1 and 2 frames are those of prompts of 1 and 9 frames of pixels.

    Raises
    ------
    CheckpointError
        A tensor is missing, left over or of another shape.
    InvalidArgument
        The grid has no frames.

    Examples
    --------
    A narrow tokenizer of the same kind, without its weights' values:

    >>> import numpy as np
    >>> from pathlib import Path
    >>> from safetensors.numpy import save_file
    >>> from coupled_sampling.bundles import Grid
    >>> from coupled_sampling.export import open_checkpoint
    >>> stages = (VideoStage(4, 2, space=True), VideoStage(4, 2, space=True, time=True), VideoStage(4, 2))
    >>> places = video_places(CausalVideoDescription(3, 2, 4, stages), encoder=True)
    >>> Path("tokenizer").mkdir()
    >>> _ = Path("tokenizer/config.json").write_text("{}")
    >>> tensors = {place.tensor: np.zeros(place.shape, np.float32) for place in places.values()}
    >>> save_file(tensors, "tokenizer/model.safetensors")
    >>> with open_checkpoint("tokenizer") as checkpoint:
    ...     video, weights = cosmos_video_encoder(checkpoint, Grid(2, 4, 1))
    >>> video.pixel_frames, video.encoder_stages[0].width
    (1, 4)
    """
    if grid.frames < 1:
        raise InvalidArgument(f"grid is {grid}, expected one with frames")
    stages = read_video_stages(checkpoint, encoder=True)
    latent = _latent(checkpoint, "quant_conv.conv3d.weight", 0)
    base = checkpoint.info("encoder.conv_in.0.conv3d.weight").shape[0]
    description = _described(checkpoint, grid, stages, latent=latent, base=base)
    left = _left(checkpoint, "decoder.", "post_quant_conv.")
    return description, read_places(checkpoint, video_places(description, encoder=True), left)


def _latent(checkpoint: Checkpoint, name: str, axis: int) -> int:
    """Channels on the other side of the kernel ``name`` than the digits of a code, which are its ``axis``."""
    shape = checkpoint.info(name).shape
    if len(shape) != 5 or shape[axis] != len(LEVELS):
        raise CheckpointError(
            f"{checkpoint.path}: tensor {name!r} has shape {shape}, expected 5 axes and {len(LEVELS)} entries in axis {axis}, one "
            "for each digit of a code; this tokenizer is not of the discrete kind"
        )
    return shape[1 - axis]


def _described(
    checkpoint: Checkpoint, grid: Grid, stages: tuple[VideoStage, ...], **sizes: Any
) -> CausalVideoDescription:
    try:
        return CausalVideoDescription(grid.frames, grid.rows, grid.columns, stages, LEVELS, **sizes)
    except InvalidArgument as error:
        raise CheckpointError(f"{checkpoint.path} makes no tokenizer of videos: {error}") from error


def _left(checkpoint: Checkpoint, *other: str) -> list[str]:
    """Names of tensors that one half does not need: those of the ``other`` half, and tables."""
    return [name for name in checkpoint.names() if name.startswith((*other, *_TABLES))]


def _refuse_legacy(checkpoint: Checkpoint, stages: tuple[VideoStage, ...]) -> None:
    """The level that doubles frames is the only one with ``upsample.conv1``, and must be the last that doubles anything."""
    doubling = [stage.time for stage in stages if stage.time or stage.space]
    if doubling != sorted(doubling):
        raise CheckpointError(
            f"{checkpoint.path} doubles frames before rows and columns (decoder.up.{len(stages) - 1 - doubling.index(True)}."
            "upsample.conv1), as tokenizers made with legacy_mode do, which nothing here was compared with; expected "
            "the published DV8x16x16 of Cosmos-Tokenize1"
        )

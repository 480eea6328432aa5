"""Cosmos' discrete tokenizer of videos, DV8x16x16: from an archive of its decoder to a `PictureDecoder`.

The decoder is published as ``decoder.jit``, an archive of tensors without a configuration, and ``autoencoder.jit`` has it beside
the encoder. Sizes are read off the tensors; the levels of the codes are in no tensor that must be there.

Sources: nvidia-cosmos/cosmos-predict1 at 4ed35fa, ``cosmos_predict1/autoregressive/tokenizer`` and
``configs/base/tokenizer.py``.
"""

from __future__ import annotations

from coupled_sampling.bundles.manifest import Grid
from coupled_sampling.errors import CheckpointError, InvalidArgument
from coupled_sampling.export.checkpoints.contract import Checkpoint
from coupled_sampling.export.checkpoints.places import read_places
from coupled_sampling.export.pictures.contract import PictureDecoder
from coupled_sampling.export.pictures.picture_tokens import PictureTokens
from coupled_sampling.export.pictures.video_description import CausalVideoDescription, VideoStage
from coupled_sampling.export.pictures.video_names import read_video_stages, video_places

__all__ = ["cosmos_picture_decoder"]

LEVELS = (8, 8, 8, 5, 5, 5)
_OTHERS = ("encoder.", "quant_conv.", "quantizer.", "inv_quant.", "decoder.unpatcher3d.")
"""Beginnings of tensors that decoding does not need: the encoder, and tables that follow from the levels."""

_LATENT = "post_quant_conv.conv3d.weight"


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
    """
    if grid.frames < 1:
        raise InvalidArgument(f"grid is {grid}, expected one with frames")
    stages = read_video_stages(checkpoint)
    _refuse_legacy(checkpoint, stages)
    shape = checkpoint.info(_LATENT).shape
    if len(shape) != 5 or shape[1] != len(LEVELS):
        raise CheckpointError(
            f"{checkpoint.path}: tensor {_LATENT!r} has shape {shape}, expected 5 axes and {len(LEVELS)} inputs, one for each "
            "digit of a code; this tokenizer is not of the discrete kind"
        )
    try:
        description = CausalVideoDescription(
            grid.frames, grid.rows, grid.columns, stages, LEVELS, latent=shape[0], rounding=rounding
        )
    except InvalidArgument as error:
        raise CheckpointError(f"{checkpoint.path} makes no decoder of videos: {error}") from error
    left = [name for name in checkpoint.names() if name.startswith(_OTHERS)]
    read = read_places(checkpoint, video_places(description), left)
    tokens = PictureTokens(description.grid_tokens, first, description.codes)
    return PictureDecoder(description, read, tokens, checkpoint.path)


def _refuse_legacy(checkpoint: Checkpoint, stages: tuple[VideoStage, ...]) -> None:
    """The level that doubles frames is the only one with ``upsample.conv1``, and must be the last that doubles anything."""
    doubling = [stage.time for stage in stages if stage.time or stage.space]
    if doubling != sorted(doubling):
        raise CheckpointError(
            f"{checkpoint.path} doubles frames before rows and columns (decoder.up.{len(stages) - 1 - doubling.index(True)}."
            "upsample.conv1), as tokenizers made with legacy_mode do, which nothing here was compared with; expected "
            "the published DV8x16x16 of Cosmos-Tokenize1"
        )

"""Emu3's clips: all frames of the decoder whose first frame is a picture.

The authors have not published how a video lies in tokens, what stands between its frames and what its prompt is, so bundles of
Emu3 are of pictures, and whoever has a video's codes says where they are.

Sources: baaivision/Emu3, ``emu3/tokenizer/modeling_emu3visionvq.py`` and ``autoencode.py``; ``Emu3VQVAE`` of transformers.
"""

from __future__ import annotations

from coupled_sampling.bundles.manifest import Grid
from coupled_sampling.errors import InvalidArgument
from coupled_sampling.export.checkpoints.contract import Checkpoint
from coupled_sampling.export.families.emu3 import inner_vq_choices, own_vq_choices, vq_prefixes
from coupled_sampling.export.families.vqgan import UNUSED, described
from coupled_sampling.export.pictures.contract import PictureDecoder
from coupled_sampling.export.pictures.description import CausalFrames, FirstFrame
from coupled_sampling.export.pictures.names import TAMING, TRANSFORMERS_EMU3, weights
from coupled_sampling.export.pictures.picture_tokens import PictureTokens

__all__ = ["emu3_video_decoder"]


def emu3_video_decoder(checkpoint: Checkpoint, grid: Grid, tokens: PictureTokens | None = None) -> PictureDecoder:
    """The decoder of clips in ``checkpoint``; each frame of codes becomes four of pixels.

    Parameters
    ----------
    checkpoint
        transformers' Emu3, or BAAI's Emu3-VisionTokenizer.
    grid
        Frames, rows and columns of codes. The authors' own ``autoencode.py`` decodes clips of one frame of codes each.
    tokens
        Where the codes are among the tokens; None takes codes and nothing else, frame by frame and row by row.

    Raises
    ------
    CheckpointError
        A key of the configuration is unknown or has a value that is not supported, or a tensor is missing, has another shape,
        or is left over.
    InvalidArgument
        The grid has no frames.

    Examples
    --------
    Where codes stand if rows end with a token, and frames with another one, as rows of pictures do:

    >>> from coupled_sampling.export.pictures import PictureTokens
    >>> frames, rows, columns = 2, 2, 3
    >>> row, frame = columns + 1, rows * (columns + 1) + 1
    >>> codes = tuple(f * frame + r * row + c for f in range(frames) for r in range(rows) for c in range(columns))
    >>> PictureTokens(length=frames * frame, first=151854, count=32768, positions=codes).positions
    (0, 1, 2, 4, 5, 6, 9, 10, 11, 13, 14, 15)
    """
    if grid.frames < 1:
        raise InvalidArgument(f"grid is {grid}, expected one with frames")
    prefixes = vq_prefixes(checkpoint)
    choices = inner_vq_choices(checkpoint) if prefixes else own_vq_choices(checkpoint)
    first: FirstFrame = choices["frame"]
    choices["frame"] = CausalFrames(first.blocks, first.convolutions, first.epsilon)
    naming = TRANSFORMERS_EMU3 if prefixes else TAMING
    description = described(checkpoint, grid, choices)
    read = weights(checkpoint, description, naming, prefixes[0] if prefixes else "", UNUSED)
    plain = PictureTokens(description.grid_tokens, 0, description.codes)
    return PictureDecoder(description, read, plain if tokens is None else tokens, checkpoint.path)

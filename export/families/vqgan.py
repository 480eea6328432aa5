"""What families with a picture decoder share: where it is, what its configuration says, and which tokens are its codes.

A picture decoder lies in the model's own checkpoint or in one that is named beside it; `open_picture_decoder` asks the family
which. The family reads the configuration and names the tensors, `picture_decoder` checks both against the model's tokens.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from coupled_sampling.bundles.manifest import Grid
from coupled_sampling.errors import CheckpointError, InvalidArgument
from coupled_sampling.export.checkpoints.contract import Checkpoint
from coupled_sampling.export.checkpoints.opening import open_checkpoint
from coupled_sampling.export.families.contract import Exportable, Family, PictureFamily
from coupled_sampling.export.pictures.contract import PictureDecoder
from coupled_sampling.export.pictures.description import Stage, VqDescription
from coupled_sampling.export.pictures.names import Naming, read_stages, weights
from coupled_sampling.export.pictures.picture_tokens import PictureTokens

__all__ = ["UNUSED", "described", "open_picture_decoder", "picture_decoder", "read_sizes", "stages"]

UNUSED = ("encoder.", "quant_conv.", "loss.", "quantize.codebook_used")
"""Beginnings of tensors that decoding does not need: the encoder, the training's discriminator and statistics."""


@contextmanager
def open_picture_decoder(
    family: Family, model: Exportable, checkpoint: Checkpoint, vq: str | Path | None = None
) -> Iterator[PictureDecoder | None]:
    """The picture decoder of ``model``, checked by its headers; open while the context is.

    Parameters
    ----------
    family, model, checkpoint
        The decoder of tokens, the family that understood it, and where it came from.
    vq
        A checkpoint of the picture decoder, as `coupled_sampling.export.open_checkpoint` takes it, for families that keep it
        apart; None looks into ``checkpoint`` only.

    Yields
    ------
    PictureDecoder or None
        None if there is none, or no room for a picture.

    Raises
    ------
    CheckpointError
        A key of the configuration is unknown or has a value that is not supported, or a tensor is missing, has another shape,
        or is left over.
    InvalidArgument
        ``vq`` is given for a model that has no use for it.
    """
    if vq is not None and not isinstance(family, PictureFamily):
        raise InvalidArgument(
            f"vq is {str(vq)!r}, but models of the family {family.name} have no picture decoder of this kind; leave vq out"
        )
    if vq is not None and model.decoding.grid is None:
        raise InvalidArgument(
            f"vq is {str(vq)!r}, but {model.description.positions} positions have no room for a picture; leave max_length at what "
            "the model was trained for"
        )
    if not isinstance(family, PictureFamily) or model.decoding.grid is None:
        yield None
    elif vq is None:
        yield family.pictures(model, checkpoint, None)
    else:
        with open_checkpoint(vq) as separate:
            yield family.pictures(model, checkpoint, separate)


def picture_decoder(
    model: Exportable,
    checkpoint: Checkpoint,
    naming: Naming,
    choices: Mapping[str, Any],
    *,
    prefix: str = "",
    codes: Mapping[int, int] | None = None,
) -> PictureDecoder:
    """The decoder in ``checkpoint`` for the pictures of ``model``, which has a grid.

    Parameters
    ----------
    naming, prefix
        Names of its tensors.
    choices
        Parameters of `VqDescription` but for the grid.
    codes
        From picture tokens to codes; None if they are in order.

    Raises
    ------
    CheckpointError
        The choices make no decoder, a tensor is missing, left over or of another shape, or the codebook has more or fewer
        codes than there are picture tokens.
    """
    grid = model.decoding.grid
    if grid is None:
        raise InvalidArgument("model has no grid, expected one that makes pictures")
    description = described(checkpoint, grid, choices)
    tokens = _picture_tokens(model, codes)
    if tokens.count != description.codes:
        raise CheckpointError(
            f"{checkpoint.path} has {description.codes} codes, expected one for each of the {tokens.count} picture tokens of the "
            "model; it belongs to another one"
        )
    read = weights(checkpoint, description, naming, prefix, UNUSED)
    return PictureDecoder(description, read, tokens, checkpoint.path)


def described(checkpoint: Checkpoint, grid: Grid, choices: Mapping[str, Any]) -> VqDescription:
    """The decoder of ``grid`` that ``choices`` make, as for `picture_decoder`.

    Raises
    ------
    CheckpointError
        They make none, or one that cannot be in ``checkpoint``.
    """
    tensors = len(checkpoint.names())
    if sum(stage.blocks for stage in choices["stages"]) > tensors:  # before anything is made for each
        raise CheckpointError(
            f"the configuration of {checkpoint.path} asks for more blocks than there are tensors, {tensors}; configuration and "
            "weights are not of the same model, or one of them is damaged"
        )
    try:
        return VqDescription(rows=grid.rows, columns=grid.columns, frames=grid.frames, **choices)
    except (InvalidArgument, TypeError) as error:
        raise CheckpointError(f"the configuration of {checkpoint.path} makes no picture decoder: {error}") from error


def _picture_tokens(model: Exportable, codes: Mapping[int, int] | None = None) -> PictureTokens:
    """Which tokens of a generation are codes: all, or those that the layout leaves free."""
    decoding, description = model.decoding, model.description
    first, count, positions = description.generated_first, description.generated, ()
    if decoding.layout is not None:
        free = [(span.first, span.count) for span in decoding.layout.spans if span.count > 1]
        first, count = free[0]
        positions = tuple(decoding.layout.free().tolist())
    order = _code_order(codes, first, count) if codes is not None else ()
    return PictureTokens(decoding.length, first, count, order, positions)


def _code_order(codes: Mapping[int, int], first: int, count: int) -> tuple[int, ...]:
    """The code of each of the tokens from ``first`` on, empty if they are 0, 1, 2, ...

    Raises
    ------
    CheckpointError
        A code is missing or occurs twice.
    """
    order = tuple(codes.get(token, -1) for token in range(first, first + count))
    if sorted(order) != list(range(count)):
        raise CheckpointError(
            f"vocabulary_map gives the tokens {first} to {first + count - 1} the codes {min(order)} to {max(order)}, which their "
            f"names spell; expected each of 0 to {count - 1} once"
        )
    return () if order == tuple(range(count)) else order


def stages(width: int, multipliers: Sequence[int], blocks: int, attended: Collection[int] = ()) -> tuple[Stage, ...]:
    """Stages in the order in which they run, as configurations of this kind say them.

    Parameters
    ----------
    width, multipliers
        Stage k from the end has ``width * multipliers[k]`` channels.
    blocks
        Blocks of a stage of the encoder; the decoder has one more.
    attended
        Stages with attention, counted from the end.
    """
    return tuple(Stage(width * multipliers[k], blocks + 1, k in attended) for k in reversed(range(len(multipliers))))


def read_sizes(checkpoint: Checkpoint, naming: Naming, prefix: str = "") -> dict[str, Any]:
    """``codes``, ``code_size``, ``latent`` and ``stages``, read off the tensors of checkpoints that say them nowhere else.

    Raises
    ------
    CheckpointError
        A tensor is missing or has another number of axes.
    """
    names = (f"{prefix}quantize.embedding.weight", f"{prefix}post_quant_conv.weight")
    codebook, latent = (checkpoint.info(name).shape for name in names)
    if len(codebook) != 2 or len(latent) != 4:
        raise CheckpointError(
            f"{checkpoint.path}: {' and '.join(names)} have the shapes {codebook} and {latent}, expected 2 and 4 axes"
        )
    return {
        "codes": codebook[0],
        "code_size": codebook[1],
        "latent": latent[0],
        "stages": read_stages(checkpoint, naming, prefix),
    }

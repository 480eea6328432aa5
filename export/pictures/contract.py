"""What a family gives the exporter for its pictures: a described decoder, its weights, and which tokens are its codes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from coupled_sampling.errors import CheckpointError, InvalidArgument
from coupled_sampling.export.checkpoints.contract import Checkpoint
from coupled_sampling.export.families.contract import Exportable
from coupled_sampling.export.pictures.description import Stage, VqDescription
from coupled_sampling.export.pictures.names import Naming, weights
from coupled_sampling.export.pictures.picture_tokens import PictureTokens

__all__ = ["PictureDecoder", "code_order", "picture_decoder", "picture_tokens", "stages"]

_UNUSED = ("encoder.", "quant_conv.", "loss.", "quantize.codebook_used")
"""Beginnings of tensors that decoding does not need: the encoder, the training's discriminator and statistics."""


@dataclass(frozen=True)
class PictureDecoder:
    """A decoder of pictures, understood.

    Parameters
    ----------
    description
        The decoder.
    weights
        From a name of ``description.weight_shapes()`` to the array, read from the checkpoint when it is called.
    tokens
        Which tokens of a generation are codes.
    source
        The checkpoint that holds it.
    """

    description: VqDescription
    weights: Callable[[str], NDArray[Any]]
    tokens: PictureTokens
    source: Path


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
    try:
        description = VqDescription(rows=grid.rows, columns=grid.columns, **choices)
    except (InvalidArgument, TypeError) as error:
        raise CheckpointError(f"the configuration of {checkpoint.path} makes no picture decoder: {error}") from error
    tokens = picture_tokens(model, codes)
    if tokens.count != description.codes:
        raise CheckpointError(
            f"{checkpoint.path} has {description.codes} codes, expected one for each of the {tokens.count} picture tokens of the "
            "model; it belongs to another one"
        )
    read = weights(checkpoint, description, naming, prefix, _UNUSED)
    return PictureDecoder(description, read, tokens, checkpoint.path)


def picture_tokens(model: Exportable, codes: Mapping[int, int] | None = None) -> PictureTokens:
    """Which tokens of a generation are codes: all, or those that the layout leaves free."""
    decoding, description = model.decoding, model.description
    first, count, positions = description.generated_first, description.generated, ()
    if decoding.layout is not None:
        free = [(span.first, span.count) for span in decoding.layout.spans if span.count > 1]
        first, count = free[0]
        positions = tuple(decoding.layout.free().tolist())
    order = code_order(codes, first, count) if codes is not None else ()
    return PictureTokens(decoding.length, first, count, order, positions)


def code_order(codes: Mapping[int, int], first: int, count: int) -> tuple[int, ...]:
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

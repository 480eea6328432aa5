"""Finding the picture decoder of a model: in its own checkpoint, or in one that is named beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from coupled_sampling.errors import InvalidArgument
from coupled_sampling.export.checkpoints.contract import Checkpoint
from coupled_sampling.export.checkpoints.opening import open_checkpoint
from coupled_sampling.export.families.contract import Exportable
from coupled_sampling.export.pictures.chameleon import chameleon_pictures
from coupled_sampling.export.pictures.contract import PictureDecoder
from coupled_sampling.export.pictures.emu3 import emu3_pictures
from coupled_sampling.export.pictures.janus import janus_pictures
from coupled_sampling.export.pictures.llamagen import llamagen_pictures

__all__ = ["open_picture_decoder"]

_FAMILIES: dict[str, Callable[[Exportable, Checkpoint, Checkpoint | None], PictureDecoder | None]] = {
    "janus": janus_pictures,
    "llamagen": llamagen_pictures,
    "chameleon": chameleon_pictures,
    "emu3": emu3_pictures,
}


@contextmanager
def open_picture_decoder(
    model: Exportable, checkpoint: Checkpoint, vq: str | Path | None = None
) -> Iterator[PictureDecoder | None]:
    """The picture decoder of ``model``, checked by its headers; open while the context is.

    Parameters
    ----------
    model, checkpoint
        The decoder of tokens, and where it came from.
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
    find = _FAMILIES.get(model.family)
    if vq is not None and find is None:
        raise InvalidArgument(
            f"vq is {str(vq)!r}, but models of the family {model.family} have no picture decoder of this kind; leave vq out"
        )
    if vq is not None and model.decoding.grid is None:
        raise InvalidArgument(
            f"vq is {str(vq)!r}, but {model.description.positions} positions have no room for a picture; leave max_length at what "
            "the model was trained for"
        )
    if find is None or model.decoding.grid is None:
        yield None
    elif vq is None:
        yield find(model, checkpoint, None)
    else:
        with open_checkpoint(vq) as separate:
            yield find(model, checkpoint, separate)

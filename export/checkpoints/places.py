"""Where each weight of a description is in a checkpoint: names and shapes checked by headers, arrays read when asked for.

A `Place` is a stored tensor and a function of it: nothing, a transpose, a slice. All places are compared with the headers
before any weight is read, so that a checkpoint of another model is refused in a second and not after a gigabyte.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.export.checkpoints.contract import Checkpoint, CheckpointError

__all__ = ["Place", "layer_name", "read_places", "require_tied_head"]


def _as_stored(array: NDArray[Any]) -> NDArray[Any]:
    return array


@dataclass(frozen=True)
class Place:
    """Where a weight is.

    Parameters
    ----------
    tensor
        Name in the checkpoint.
    shape
        Its shape there.
    weight
        From the tensor to the weight.
    """

    tensor: str
    shape: tuple[int, ...]
    weight: Callable[[NDArray[Any]], NDArray[Any]] = _as_stored


def layer_name(name: str) -> tuple[int, str]:
    """Number of the layer and the rest of a canonical name.

    >>> layer_name("layers.3.attention.query.bias")
    (3, 'attention.query.bias')
    """
    _, number, rest = name.split(".", 2)
    return int(number), rest


def read_places(
    checkpoint: Checkpoint, places: Mapping[str, Place], harmless: Collection[str] = ()
) -> Callable[[str], NDArray[Any]]:
    """Check that all places are there and nothing else is; what comes back reads a weight by its canonical name.

    Parameters
    ----------
    places
        By canonical name.
    harmless
        Endings of the names of tensors that may be left over.

    Raises
    ------
    CheckpointError
        A tensor is missing, left over, or has another shape.
    """
    _require_tensors(checkpoint, dict.fromkeys(place.tensor for place in places.values()), harmless)
    for name, place in places.items():
        found = checkpoint.info(place.tensor).shape
        if found != place.shape:
            raise CheckpointError(
                f"{checkpoint.path}: tensor {place.tensor!r} has shape {found}, expected {place.shape} for {name}; "
                "its configuration and its weights are not of the same model, or the family is another one"
            )

    def read(name: str) -> NDArray[Any]:
        place = places[name]
        return place.weight(checkpoint.read(place.tensor, place.shape))

    return read


def _require_tensors(checkpoint: Checkpoint, wanted: Collection[str], harmless: Collection[str] = ()) -> None:
    """Refuse a checkpoint that lacks a tensor of ``wanted`` or has others than these.

    Parameters
    ----------
    harmless
        Endings of the names of tensors that may be left over, such as ``rotary_emb.inv_freq``.

    Raises
    ------
    CheckpointError
        A tensor is missing or left over.
    """
    for name in wanted:
        checkpoint.info(name)  # refuses a missing one, naming it and its neighbours
    known = set(wanted)
    left = [name for name in checkpoint.names() if name not in known and not name.endswith(tuple(harmless))]
    if left:
        listed = ", ".join(left[:4]) + (" ..." if len(left) > 4 else "")
        raise CheckpointError(
            f"{checkpoint.path} has {len(left)} tensors that this family does not use: {listed}; they may change the "
            "numbers, so the export stops here. Is the family right?"
        )


def require_tied_head(checkpoint: Checkpoint, embedding: str, head: str) -> None:
    """Refuse a checkpoint that says its head is the embedding and stores another one beside it.

    Loaders disagree on what that means: some tie, some take the stored head. A stored copy is harmless.

    Raises
    ------
    CheckpointError
        Both are stored and differ.
    """
    if head in checkpoint and not np.array_equal(checkpoint.read(embedding), checkpoint.read(head)):
        raise CheckpointError(
            f"{checkpoint.path}: tie_word_embeddings is true and {head!r} differs from {embedding!r}, expected equal tensors or "
            "only the embedding; set tie_word_embeddings to false in the configuration if the stored head is the right one"
        )

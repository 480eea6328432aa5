"""Weights by name, read one at a time and checked as they are read.

A checkpoint may be larger than memory: nothing here holds a weight longer than its reader does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.arguments import shown
from coupled_sampling.errors import InvalidArgument

__all__ = ["WeightReader", "WeightSource"]

WeightSource = Mapping[str, NDArray[Any]] | Callable[[str], NDArray[Any]]
"""Weights by the names of ``weight_shapes()``, of any float type; the function or mapping may read them when asked."""


class WeightReader:
    """Weights of a description, each checked whenever it is read.

    Parameters
    ----------
    shapes
        ``description.weight_shapes()`` of any kind of description.
    source
        Where they come from.

    Raises
    ------
    InvalidArgument
        A mapping's names are not exactly those of the description.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], source: WeightSource) -> None:
        if not callable(source) and not isinstance(source, Mapping):
            raise InvalidArgument(
                f"weights is {shown(source)}, expected a mapping of arrays, or a function of their names"
            )
        self.shapes = shapes
        self._read = source if callable(source) else source.__getitem__
        if isinstance(source, Mapping):
            wrong = sorted(set(source) ^ set(self.shapes))
            if wrong:
                state = "is missing" if wrong[0] in self.shapes else "is unknown"
                raise InvalidArgument(f"weight {wrong[0]!r} {state}; expected exactly the names of weight_shapes()")

    def __getitem__(self, name: str) -> NDArray[Any]:
        """The weight, of the type it is stored in.

        Raises
        ------
        InvalidArgument
            It has another shape, is not finite, or is no array of floats.
        """
        value = np.asarray(self._read(name))
        if value.shape != self.shapes[name]:
            raise InvalidArgument(f"weight {name!r} has shape {value.shape}, expected {self.shapes[name]}")
        try:
            finite = bool(np.isfinite(value).all())
        except TypeError as error:
            raise InvalidArgument(f"weight {name!r} is {value.dtype}, expected floats") from error
        if not finite:
            raise InvalidArgument(f"weight {name!r} has NaN or infinite entries; is the checkpoint whole?")
        return value

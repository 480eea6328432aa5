"""Which of the generated tokens are a picture's codes, and which code each of them is.

A decoder of tokens writes more than codes: tokens that end a row or the picture stand between them, and codes are tokens
from some number on, in their own order or in the order of a vocabulary's names (Chameleon). `PictureTokens` says both in
the terms that a graph needs: the positions to take, the first token, and a table from the token to the code.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.errors import InvalidArgument

__all__ = ["PictureTokens"]


@dataclass(frozen=True)
class PictureTokens:
    """From the tokens of a generation to codes.

    Parameters
    ----------
    length
        Tokens of a generation.
    first, count
        Tokens ``first``, ..., ``first + count - 1`` are codes.
    codes
        The code of each of them; empty if token ``first + i`` is code i.
    positions
        Where they stand, row by row; empty if everywhere.

    Raises
    ------
    InvalidArgument
        A number is out of range, or a code occurs twice.

    Examples
    --------
    Tokens from 100 on are codes, and every third token ends a row:

    >>> import numpy as np
    >>> from coupled_sampling.export.pictures import PictureTokens
    >>> tokens = PictureTokens(length=6, first=100, count=16, positions=(0, 1, 3, 4))
    >>> tokens.codes_of(np.array([[100, 107, 9, 115, 101, 9]]))
    array([[ 0,  7, 15,  1]])
    """

    length: int
    first: int
    count: int
    codes: tuple[int, ...] = ()
    positions: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name, least in (("length", 1), ("first", 0), ("count", 1)):
            if getattr(self, name) < least:
                raise InvalidArgument(f"{name} is {getattr(self, name)}, expected an integer >= {least}")
        if self.codes and len(self.codes) != self.count:
            raise InvalidArgument(f"codes has {len(self.codes)} entries, expected count, {self.count}, or none")
        if len(set(self.codes)) != len(self.codes):
            raise InvalidArgument("codes has an entry twice, expected a different code for every token")
        if self.positions and not 0 <= min(self.positions) <= max(self.positions) < self.length:
            raise InvalidArgument(
                f"positions are {min(self.positions)} to {max(self.positions)}, expected positions in [0, {self.length})"
            )

    @property
    def size(self) -> int:
        """How many codes make the picture."""
        return len(self.positions) or self.length

    def codes_of(self, tokens: NDArray[np.int64]) -> NDArray[np.int64]:
        """Codes int64 (B, size) of tokens int64 (B, length).

        Raises
        ------
        InvalidArgument
            The shape is another one, or a token that stands in the picture is no code.
        """
        if tokens.ndim != 2 or tokens.shape[1] != self.length:
            raise InvalidArgument(f"tokens has shape {tokens.shape}, expected (pictures, {self.length})")
        index = (tokens[:, self.positions] if self.positions else tokens) - self.first
        outside = np.argwhere((index < 0) | (index >= self.count))
        if len(outside):
            row, column = outside[0]
            raise InvalidArgument(
                f"picture {row}, code {column} is token {index[row, column] + self.first}, expected tokens in "
                f"[{self.first}, {self.first + self.count})"
            )
        return np.array(self.codes, np.int64)[index] if self.codes else index

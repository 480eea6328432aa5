"""Windows that are trees: several guesses for a position, side by side in one pass.

A tree is told by the parent of every slot, ``parents`` int64 (B, W): the slot that stands right before it, -1 where that is the
state below ``start``. A parent comes before its children. A slot's *depth* is the number of slots before it on its path, so that
its token sits at position ``start + depth``; its context is the state below ``start``, the slots on its path and itself, and
nothing else. A window without branches is the tree whose slots each follow the one before: `chain`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.errors import InvalidArgument

__all__ = ["Tree", "chain", "check_parents"]


def chain(rows: int, width: int) -> NDArray[np.int64]:
    """The parents (rows, width) of windows without branches.

    Examples
    --------
    >>> from coupled_sampling.trees import chain
    >>> chain(1, 4).tolist()
    [[-1, 0, 1, 2]]
    """
    return np.tile(np.arange(-1, width - 1, dtype=np.int64), (rows, 1))


class Tree(NamedTuple):
    """What follows from the parents of a window's slots, of B rows of W.

    Examples
    --------
    Three slots in a row, and two more that follow the first of them:

    >>> import numpy as np
    >>> from coupled_sampling.trees import Tree
    >>> tree = Tree.of(np.array([[-1, 0, 1, 0, 3]]))
    >>> tree.depth.tolist(), tree.sees[0, 4].tolist()
    ([[0, 1, 2, 1, 2]], [True, False, False, True, True])
    >>> tree.path(0, 4).tolist(), tree.leading().tolist()
    ([0, 3, 4], [3])
    """

    parents: NDArray[np.int64]
    """(B, W)."""
    depth: NDArray[np.int64]
    """(B, W) slots before each on its path."""
    sees: NDArray[np.bool_]
    """(B, W, W) whether slot [b, j] sees slot [b, k]: the slots of its path, and itself."""

    @classmethod
    def of(cls, parents: NDArray[np.int64]) -> Tree:
        """The tree of ``parents``, which are not checked: `check_parents` does."""
        rows, width = parents.shape
        # By doubling: from what a slot sees within m steps of its path, and its m-th ancestor, to twice as many. The last column
        # stands for the state below ``start``, which is its own ancestor and sees no slot.
        above = np.concatenate([np.where(parents < 0, width, parents), np.full((rows, 1), width)], axis=1)
        sees = np.zeros((rows, width + 1, width), np.bool_)
        sees[:, np.arange(width), np.arange(width)] = True
        row = np.arange(rows)[:, None]
        while (above[:, :width] < width).any():
            sees |= sees[row, above]
            above = above[row, above]
        sees = sees[:, :width]
        return cls(parents, sees.sum(axis=-1, dtype=np.int64) - 1, sees)

    def path(self, row: int, slot: int) -> NDArray[np.int64]:
        """The slots on the path of ``slot``, from depth 0 to its own."""
        return np.flatnonzero(self.sees[row, slot])

    def tips(self) -> NDArray[np.int64]:
        """(B, W) where one comes from each slot by going on to its first child as long as there is one.

        Examples
        --------
        >>> import numpy as np
        >>> Tree.of(np.array([[-1, 0, 1, 0, 3]])).tips().tolist()
        [[2, 2, 2, 4, 4]]
        """
        rows, width = self.parents.shape
        ahead = np.tile(np.arange(width + 1), (rows, 1))
        row, child = np.arange(rows)[:, None], np.arange(width - 1, -1, -1)
        # Written from the last to the first, so that the first child stays; the last column is for slots without a parent.
        ahead[row, np.where(self.parents < 0, width, self.parents)[:, ::-1]] = child
        ahead[:, width] = width
        while True:
            further = ahead[row, ahead]
            if (further == ahead).all():
                return ahead[:, :width]
            ahead = further

    def leading(self) -> NDArray[np.int64]:
        """(B,) how many slots from slot 0 on follow one another: their positions' state is valid after the pass."""
        width = self.parents.shape[1]
        follows = self.parents == np.arange(-1, width - 1)
        leading: NDArray[np.int64] = np.where(follows.all(axis=1), width, np.argmin(follows, axis=1))
        return leading


def check_parents(parents: object, shape: tuple[int, int], start: NDArray[np.int64], positions: int) -> None:
    """Refuse ``parents`` that make no tree of windows of that ``shape``, or one that leaves the model's ``positions``.

    Raises
    ------
    InvalidArgument
        It names the row and the slot.

    Examples
    --------
    >>> import numpy as np
    >>> from coupled_sampling.trees import check_parents
    >>> check_parents(np.array([[-1, 0, 0]]), (1, 3), np.array([5]), positions=7)
    >>> check_parents(np.array([[-1, 0, 2]]), (1, 3), np.array([5]), positions=7)
    Traceback (most recent call last):
    coupled_sampling.errors.InvalidArgument: parent of row 0, slot 2 is 2, expected -1 or a slot before it
    """
    if not isinstance(parents, np.ndarray) or parents.dtype != np.int64 or parents.shape != shape:
        found = f"{parents.dtype} {parents.shape}" if isinstance(parents, np.ndarray) else type(parents).__name__
        raise InvalidArgument(f"parents is {found}, expected a numpy int64 array of shape {shape}, as tokens has")
    wrong = (parents < -1) | (parents >= np.arange(shape[1]))
    if wrong.any():
        row, slot = np.argwhere(wrong)[0]
        raise InvalidArgument(
            f"parent of row {row}, slot {slot} is {parents[row, slot]}, expected -1 or a slot before it"
        )
    deepest = start + _depths(parents).max(axis=1)
    if (deepest >= positions).any():
        row = int((deepest >= positions).argmax())
        raise InvalidArgument(
            f"row {row} has a slot at position {deepest[row]}, expected positions in [0, {positions}), which the model holds"
        )


def _depths(parents: NDArray[np.int64]) -> NDArray[np.int64]:
    """(B, W) slots before each on its path: by doubling, as `Tree.of`, without what they see."""
    rows, width = parents.shape
    row = np.arange(rows)[:, None]
    above = np.concatenate([np.where(parents < 0, width, parents), np.full((rows, 1), width)], axis=1)
    depth: NDArray[np.int64] = (above < width).astype(np.int64)
    while True:
        further: NDArray[np.int64] = depth[row, above]
        if not further.any():
            return depth[:, :width]
        depth += further
        above = above[row, above]

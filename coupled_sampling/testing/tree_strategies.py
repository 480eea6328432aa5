"""A Hypothesis strategy of windows that are trees, beside those of `coupled_sampling.testing.strategies`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from coupled_sampling.testing.arguments import check_count
from coupled_sampling.testing.strategies import windows

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

__all__ = ["trees"]


def trees(max_slots: int = 6) -> SearchStrategy[tuple[int, ...]]:
    """Windows of 1 to ``max_slots`` slots that are trees of any shape: each slot's parent, see `coupled_sampling.trees`.

    They shrink to a chain, and then to a short one.

    Examples
    --------
    >>> from hypothesis import find
    >>> from coupled_sampling.testing.tree_strategies import trees
    >>> find(trees(), lambda parents: parents.count(0) > 1)
    (-1, 0, 0)
    """
    sizes = windows(check_count("max_slots", max_slots))
    from hypothesis import strategies as st  # which is there, or the line before says what to install

    def of_size(slots: int) -> SearchStrategy[tuple[int, ...]]:
        # As the distance to the parent, so that the simplest tree is a chain.
        return st.tuples(*(st.integers(0, slot).map(lambda back, slot=slot: slot - 1 - back) for slot in range(slots)))

    return sizes.flatmap(of_size)

"""Trees of slots: what follows from their parents, against a walk along them, and which parents are refused."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coupled_sampling.errors import InvalidArgument
from coupled_sampling.trees import Tree, chain, check_parents


@st.composite
def parents_of(draw, rows=3, most=12):
    width = draw(st.integers(1, most))
    return np.array([[draw(st.integers(-1, j - 1)) for j in range(width)] for _ in range(draw(st.integers(1, rows)))])


def walk(parents, slot):
    """The slots on the path of ``slot``, by going up."""
    path = []
    while slot >= 0:
        path.append(slot)
        slot = int(parents[slot])
    return path[::-1]


@settings(derandomize=True, deadline=None, max_examples=50)
@given(parents_of())
def test_a_tree_is_what_a_walk_along_the_parents_finds(parents):
    tree = Tree.of(parents)
    assert tree.depth.dtype == np.int64
    for b, j in np.ndindex(parents.shape):
        path = walk(parents[b], j)
        assert tree.path(b, j).tolist() == path
        assert tree.depth[b, j] == len(path) - 1
        assert np.flatnonzero(tree.sees[b, j]).tolist() == path
    follows = [[int(parent) == j - 1 for j, parent in enumerate(row)] for row in parents]
    assert tree.leading().tolist() == [row.index(False) if False in row else len(row) for row in follows]


@pytest.mark.parametrize("width", [1, 2, 3, 8, 33])
def test_a_chain_sees_all_before_it(width):
    tree = Tree.of(chain(2, width))
    assert (tree.sees == np.tri(width, dtype=bool)).all()
    assert tree.leading().tolist() == [width, width]
    assert tree.depth[1].tolist() == list(range(width))


@settings(derandomize=True, deadline=None, max_examples=50)
@given(parents_of(), st.integers(0, 20))
def test_parents_are_taken_as_long_as_the_deepest_slot_has_a_position(parents, first):
    start = np.arange(first, first + len(parents))
    needed = max(int(start[b]) + len(walk(row, j)) for b, row in enumerate(parents) for j in range(len(row)))
    check_parents(parents, parents.shape, start, positions=needed)
    with pytest.raises(
        InvalidArgument, match=rf"slot at position {needed - 1}, expected positions in \[0, {needed - 1}\)"
    ):
        check_parents(parents, parents.shape, start, positions=needed - 1)


@pytest.mark.parametrize(
    ("parents", "words"),
    [
        ([[-1, 0, 0]], "parents is list"),
        (np.array([[-1, 0, 0]], np.int32), "parents is int32 (1, 3)"),
        (np.array([[-1, 0, 0, 1]]), "parents is int64 (1, 4)"),
        (np.array([-1, 0, 0]), "parents is int64 (3,)"),
        (np.array([[0, 0, 0]]), "parent of row 0, slot 0 is 0"),
        (np.array([[-1, 0, 2]]), "parent of row 0, slot 2 is 2"),
        (np.array([[-1, 2, 0]]), "parent of row 0, slot 1 is 2"),
        (np.array([[-1, -2, 0]]), "parent of row 0, slot 1 is -2"),
    ],
)
def test_what_makes_no_tree_is_refused_by_name(parents, words):
    with pytest.raises(InvalidArgument, match=re.escape(words)):
        check_parents(parents, (1, 3), np.array([0]), positions=9)


def test_of_several_rows_the_wrong_one_is_named():
    parents = np.array([[-1, 0, 0], [-1, 0, 1], [-1, 0, 5]])
    with pytest.raises(InvalidArgument, match="row 2, slot 2 is 5"):
        check_parents(parents, (3, 3), np.zeros(3, int), positions=9)
    with pytest.raises(InvalidArgument, match="row 1 has a slot at position 9"):
        check_parents(np.maximum(parents, -1)[:2], (2, 3), np.array([7, 7]), positions=9)

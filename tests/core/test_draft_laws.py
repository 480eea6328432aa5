"""Draft laws in pieces: the same numbers as one array of all of them, and memory that is never taken while it is held."""

import numpy as np
import pytest

from coupled_sampling.arrays import to_host
from coupled_sampling.draft_laws import DraftLaws, KeptLaws, Run
from coupled_sampling.errors import InvalidArgument

array_api_strict = pytest.importorskip("array_api_strict")

V = 6
DRAFT = np.array([[0, 3, 1, 5, 0], [2, 4, 0, 0, 0], [1, 0, 0, 0, 0]])
ROWS, SLOTS = (axis.ravel() for axis in np.indices(DRAFT.shape))
LIBRARIES = pytest.mark.parametrize("convert", [np.array, array_api_strict.asarray])


def world(convert):
    """Targets (3, 5, V); the draft laws of a row with recycled and fresh drafts, one with fresh ones, an idle one; all by hand."""
    target, kept = np.random.default_rng(0).dirichlet(np.ones(V), (2, 3, 5))
    target[..., -1] = 0  # a forbidden token, the last
    target /= target.sum(axis=-1, keepdims=True)
    kept[0, 2] = target[0, 2] * (1 + 1e-9)  # the target exceeds it nowhere, as rounding may have it
    runs = [[Run(1, 3, convert(kept[0, 1:3])), Run(3, 4, None)], [Run(0, 2, None)], []]
    dense = np.zeros_like(target)
    dense[0, 1:3] = kept[0, 1:3]
    for row, slot in [(0, 3), (1, 0), (1, 1)]:
        dense[row, slot, DRAFT[row, slot]] = 1
    return target, DraftLaws(DRAFT, runs), dense


@LIBRARIES
def test_pieces_are_the_same_as_the_whole(convert):
    target, laws, dense = world(convert)
    like = convert(target)
    np.testing.assert_array_equal(to_host(laws.dense(like)), dense)
    of_drafts = np.take_along_axis(dense, DRAFT[..., None], axis=-1)[..., 0]
    np.testing.assert_array_equal(to_host(laws.of_drafts(like)), of_drafts)


@LIBRARIES
def test_residuals_are_what_the_target_exceeds_and_never_empty(convert):
    target, laws, dense = world(convert)
    left = np.maximum(target - dense, 0)
    assert not left[0, 2].any()
    left[0, 2] = target[0, 2]
    like = convert(target)
    np.testing.assert_array_equal(to_host(laws.residuals(like, ROWS, SLOTS)).reshape(left.shape), left)
    np.testing.assert_array_equal(to_host(like), target)  # it was not written into


def test_room_is_memory_that_no_kept_law_lies_in():
    kept = KeptLaws()
    like, held = np.zeros((2, 3, 4)), {}
    for round_ in range(6):
        room = kept.room(like)
        assert room.shape == like.shape
        room[:] = round_
        for row in range(2):
            kept.keep(row, round_, 7, room[row])
        held = {then: value for then, value in held.items() if then == round_ - 1} | {round_: float(round_)}
        for then, value in held.items():
            for row in range(2):
                assert (kept.recall(row, then, 7, 3) == value).all()


def test_laws_are_recalled_by_round_and_position():
    kept = KeptLaws()
    first, second = np.arange(5.0)[:, None], np.arange(10.0, 14.0)[:, None]
    kept.keep(0, 3, 20, first)
    kept.keep(0, 4, 22, second)
    assert kept.recall(0, 3, 22, 2).tolist() == [[2.0], [3.0]]
    assert kept.recall(0, 4, 22, 4).tolist() == second.tolist()
    for row, round_, position, count in [(0, 2, 22, 1), (0, 4, 21, 1), (0, 4, 23, 4), (1, 4, 22, 1)]:
        with pytest.raises(InvalidArgument, match="round before"):
            kept.recall(row, round_, position, count)
    kept.forget(0)
    with pytest.raises(InvalidArgument, match="no laws"):
        kept.recall(0, 4, 22, 1)

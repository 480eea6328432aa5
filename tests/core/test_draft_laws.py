"""Draft laws in pieces: the same numbers as one array of all of them, and memory that is never taken while it is held."""

import numpy as np
import pytest

from coupled_sampling.arrays import to_host
from coupled_sampling.contracts import Sites
from coupled_sampling.couplings import gumbel, independent, maximal
from coupled_sampling.draft_laws import DraftLaws, KeptLaws, Run
from coupled_sampling.draws import Asked, Purpose
from coupled_sampling.errors import InvalidArgument
from coupled_sampling.noise import CounterNoise

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
    np.testing.assert_array_equal(laws.drafted, dense.any(axis=-1))


@LIBRARIES
def test_residuals_are_what_the_target_exceeds_and_never_empty(convert):
    target, laws, dense = world(convert)
    left = np.maximum(target - dense, 0)
    assert not left[0, 2].any()
    left[0, 2] = target[0, 2]
    like = convert(target)
    np.testing.assert_array_equal(to_host(laws.residuals(like, ROWS, SLOTS)).reshape(left.shape), left)
    np.testing.assert_array_equal(to_host(like), target)  # it was not written into


def test_room_is_memory_in_which_nothing_lies_that_may_still_be_asked_for():
    """Ragged rows: one steps in every round, one loses some outcomes and repeats the round, one comes late."""
    generator = np.random.default_rng(0)
    kept = KeptLaws()
    like, rounds, wanted = np.zeros((3, 3, 4)), [0, 0, 0], {}
    for step in range(200):
        active = [row for row in range(3) if row < 2 or step > 50]
        for row, round_ in wanted:
            if round_ == rounds[row] - 1:
                assert (kept.recall(row, round_, 7, 3) == wanted[row, round_]).all()
        room = kept.room(like, {row: rounds[row] for row in active})
        assert room.shape == like.shape
        room[:] = step + 1
        for row in active:
            if rounds[row]:  # what this step's drafts are tested with, while it writes
                assert (kept.recall(row, rounds[row] - 1, 7, 3) == wanted[row, rounds[row] - 1]).all()
        for row in active:
            kept.keep(row, rounds[row], 7, room[row])
            wanted[row, rounds[row]] = step + 1
            rounds[row] += row != 1 or generator.random() < 0.7


def test_two_blocks_of_memory_are_enough_where_no_outcome_is_lost():
    kept, like, seen = KeptLaws(), np.zeros((2, 3, 4)), set()
    for round_ in range(20):
        room = kept.room(like, {0: round_, 1: round_})
        seen.add(room.__array_interface__["data"][0])
        for row in range(2):
            kept.keep(row, round_, 7, room[row])
    assert len(seen) == 2


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


def test_pieces_are_for_the_loop_and_say_so():
    target, laws, _ = world(np.array)
    with pytest.raises(InvalidArgument, match="residual_uniform is a ndarray, expected a Draw"):
        maximal(DRAFT, laws, target, np.zeros(DRAFT.shape), np.zeros(DRAFT.shape))


def test_a_draw_is_for_all_sites_unless_some_are_named():
    """`independent` and `gumbel` with a step's noise and no ``where``."""
    one = np.arange(2).astype(np.uint64)
    sites = Sites(one, one, np.zeros(2, int), np.array([[3, 4], [7, 8]]), np.ones((2, 2), bool))
    law = np.random.default_rng(0).dirichlet(np.ones(V), (2, 2))
    asked = Asked(CounterNoise(), sites, Purpose.REDRAFT)
    for coupling in (independent, gumbel):
        np.testing.assert_array_equal(coupling(law, asked), coupling(law, asked, where=sites.valid))

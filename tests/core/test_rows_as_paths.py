"""Trees by rows of a batch against the table itself: every slot has the law of its path, and what is left is the row's own."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coupled_sampling import Decoder, Guidance, Request, RowsAsPaths, generate
from coupled_sampling.contracts import RequestObserver, RowRanges, Trees, max_window, prompt_chunk, what_runs
from coupled_sampling.errors import InvalidArgument
from coupled_sampling.testing import TableProvider, check_provider, random_table
from coupled_sampling.testing.tree_strategies import trees
from coupled_sampling.trees import Tree, chain
from standins.treeless import Treeless, TreelessByRows, TreelessNarrow, TreelessTold, TreelessUnforked

V, TABLE, LENGTH = 4, random_table(5, 4), 24
KINDS = [Treeless, TreelessByRows, TreelessNarrow, TreelessUnforked]


def tree_of(*parents):
    return np.array([parents])


@st.composite
def passes(draw, rows):
    """Windows of ``rows`` rows, one after the other: chains and trees, each at or a little below where its row is."""
    found = []
    for _ in range(draw(st.integers(2, 6))):
        taking = draw(st.integers(1, rows))
        own = draw(st.lists(trees(6), min_size=taking, max_size=taking))
        found.append((draw(st.lists(st.integers(0, 3), min_size=taking, max_size=taking)), own, draw(st.booleans())))
    return found


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.sampled_from(KINDS), st.integers(1, 4), passes(2), st.randoms())
def test_what_is_seen_is_what_a_provider_of_trees_shows(kind, each, passes, random):
    model, oracle = RowsAsPaths(kind(TABLE, V, 2 * each, LENGTH), 2), TableProvider(TABLE, V, 2, LENGTH)
    held = np.zeros(2, np.int64)
    for lower, shapes, plain in passes:
        rows = range(len(shapes))
        width = 3 if plain else max(map(len, shapes))
        start = np.minimum(np.maximum(held[: len(rows)] - lower, 0), LENGTH - width)
        tokens = np.array([[random.randrange(V) for _ in range(width)] for _ in rows])
        if plain:
            found, expected = model.forward(tokens, start), oracle.forward(tokens, start)
            held[: len(rows)] = start + width
        else:
            parents = np.array([[*own, *[-1] * (width - len(own))] for own in shapes])
            window = tokens, start, parents, rows
            found, expected = model.forward_tree(*window), oracle.forward_tree(*window)
            held[: len(rows)] = start + Tree.of(parents).leading()
        np.testing.assert_array_equal(found, expected)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.sampled_from(KINDS), st.integers(2, 3), st.integers(1, 5), st.integers(0, 99))
def test_branches_leave_the_tokens(kind, each, branches, seed):
    prompts, how = [[1], [0, 2, 3, 1, 1, 2, 0], [3, 3]], {"length": [9, 12, 5], "seed": seed}
    wanted = generate(TableProvider(TABLE, V, 2, LENGTH), prompts, method="ar", **how).tokens
    model = RowsAsPaths(kind(TABLE, V, 2 * each, LENGTH), 2)
    # Wider than some of the models take, by branches only.
    found = generate(model, prompts, method="scd-match", window=branches + 2, branches=branches, **how).tokens
    for own, other in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(own, other)


@pytest.mark.parametrize("kind", [*KINDS, TreelessTold])
@pytest.mark.parametrize("each", [1, 3])
def test_it_keeps_the_contract(kind, each):
    names = {result.name for result in check_provider(RowsAsPaths(kind(TABLE, V, 2 * each, LENGTH), 2)).results}
    assert ("row-ranges" in names) is (kind is TreelessByRows)
    assert ("begin" in names) is (kind is TreelessTold)
    assert ("fork" in names) is (kind in (Treeless, TreelessTold))
    assert {"takes", "prompt-chunk"} <= names


class TestCalls:
    """How many, and what of."""

    parents = tree_of(-1, 0, 1, 0, 3, 0)
    """Three paths."""
    tokens = np.array([[0, 1, 2, 2, 3, 3]])

    def model(self, kind, each, shown=(1, 2, 3)):
        inner = kind(TABLE, V, each, LENGTH)
        model = RowsAsPaths(inner, 1)
        model.forward(np.array([shown]), np.array([0]))
        inner.asked.clear()
        return inner, model

    @pytest.mark.parametrize(("each", "calls"), [(1, 3), (2, 2), (3, 1), (4, 1)])
    def test_more_paths_than_rows_are_more_calls(self, each, calls):
        inner, model = self.model(TreelessUnforked, each)
        model.forward_tree(self.tokens, np.array([3]), self.parents, range(1))
        assert inner.calls == calls

    def test_a_path_that_another_one_begins_with_takes_no_row(self):
        """By their tokens, as padding of the same token is one path."""
        inner, model = self.model(TreelessUnforked, 2)
        parents = tree_of(-1, 0, -1, -1, -1, 2)
        model.forward_tree(np.array([[1, 2, 0, 0, 0, 3]]), np.array([3]), parents, range(1))
        assert inner.calls == 1

    def test_rows_that_hold_the_same_begin_where_the_window_does(self):
        inner, model = self.model(TreelessUnforked, 3)
        model.forward_tree(self.tokens, np.array([3]), self.parents, range(1))
        assert inner.asked == [([3, 3, 2], 3)]  # the last path is shorter, and has a known token in front

    def test_a_spare_row_catches_up_in_the_same_call(self):
        inner, model = self.model(TreelessUnforked, 2)
        model.forward_tree(np.array([[0, 1, 2, 3]]), np.array([3]), tree_of(-1, 0, 0, 2), range(1))
        inner.asked.clear()
        # The sequence goes on behind 0, 1. The spare row holds 0, 2, 3, so that it lacks a token.
        model.forward_tree(np.array([[2, 3]]), np.array([5]), tree_of(-1, -1), range(1))
        assert inner.asked == [([4, 4], 2)]

    @pytest.mark.parametrize(
        ("tree", "asked"), [(True, [([6, 3], 3), ([6, 6], 3)]), (False, [([8, 3], 3)])], ids=["tree", "chain"]
    )
    def test_a_long_way_behind_is_several_calls_no_wider_than_the_model_takes(self, tree, asked):
        """Windows without branches have one call, in which a spare row comes as far as it does."""
        inner, model = self.model(TreelessNarrow, 2)
        model.forward_tree(np.array([[0, 1, 2, 3, 1, 2]]), np.array([3]), tree_of(-1, 0, 1, 2, 3, -1), range(1))
        inner.asked.clear()
        if tree:
            model.forward_tree(np.array([[2, 3]]), np.array([8]), tree_of(-1, -1), range(1))
        else:
            model.forward(np.array([[2, 3, 0]]), np.array([8]))
        assert inner.asked == asked

    def test_a_provider_that_forks_copies_instead(self):
        inner, model = self.model(Treeless, 3)
        window = np.array([[0, 1, 2]]), np.array([3]), tree_of(-1, 0, 0), range(1)
        model.forward_tree(*window)
        assert inner.forked == []
        inner.asked.clear()
        model.forward_tree(np.array([[3, 1, 2]]), np.array([5]), tree_of(-1, 0, 0), range(1))
        assert len(inner.forked) == 1
        source, _, length = inner.forked[0]
        assert (source, length) == (0, 5)
        assert [start for start, _ in inner.asked] == [[5, 5, 5]]

    def test_a_call_that_fails_changes_no_row(self):
        inner, model = self.model(TreelessUnforked, 2)
        window = self.tokens, np.array([3]), self.parents, range(1)
        expected = TableProvider(TABLE, V, 1, LENGTH)
        expected.forward(np.array([[1, 2, 3]]), np.array([0]))
        forward, left = inner.forward, [1]

        def failing(tokens, start):
            logits = forward(tokens, start)
            if not left.pop():
                raise OSError("gone")
            left.append(0)
            return logits

        inner.forward = failing
        with pytest.raises(OSError, match="gone"):
            model.forward_tree(*window)
        inner.forward = forward
        np.testing.assert_array_equal(model.forward_tree(*window), expected.forward_tree(*window))


class TestOffers:
    def test_only_what_the_provider_offers(self):
        for kind, told, ranges in (
            (Treeless, False, False),
            (TreelessTold, True, False),
            (TreelessByRows, False, True),
        ):
            model = RowsAsPaths(kind(TABLE, V, 4, LENGTH), 2)
            assert (isinstance(model, RequestObserver), isinstance(model, RowRanges)) == (told, ranges)
            assert isinstance(model, Trees)
            assert isinstance(model, RowsAsPaths)

    def test_sizes_are_the_providers(self):
        model = RowsAsPaths(TreelessNarrow(TABLE, V, 7, LENGTH), 2)
        assert (model.batch_size, model.vocab_size, model.max_length) == (2, V, LENGTH)
        assert (max_window(model), prompt_chunk(model)) == (3, 3)
        assert what_runs(model).execution_provider == "TreelessNarrow"

    def test_every_row_of_a_sequence_is_told_its_request_and_forgets(self):
        inner = TreelessTold(TABLE, V, 6, LENGTH)
        model = RowsAsPaths(inner, 2)
        window = np.array([[1, 2, 3], [1, 2, 3]]), np.zeros(2, np.int64), np.tile(tree_of(-1, 0, 0), (2, 1)), range(2)
        model.forward_tree(*window)
        model.begin(1, Request([1], 4, condition=3))
        assert inner.conditions == [0, 0, 0, 3, 3, 3]
        found, plain = model.forward_tree(*window), TableProvider(TABLE, V, 2, LENGTH).forward_tree(*window)
        for row, token in enumerate((0, 3)):
            np.testing.assert_allclose(found[row], plain[row] + np.eye(V)[token])

    def test_a_copy_behind_another_request_is_not_mixed_with_what_was_there(self):
        """The spare rows held the same tokens, but under the request before."""
        inner = TreelessTold(TABLE, V, 6, LENGTH)
        model, expected = RowsAsPaths(inner, 2), TableProvider(TABLE, V, 2, LENGTH)
        known, start, rows = np.array([[1, 2], [1, 2]]), np.zeros(2, np.int64), range(2)
        model.forward(known, start)
        expected.forward(known, start)
        model.begin(1, Request([1, 2, 3], 4))
        model.fork(0, [1], 2)
        window = np.array([[3, 1, 2], [3, 1, 2]]), start + 2, np.tile(tree_of(-1, 0, 0), (2, 1)), rows
        found = model.forward_tree(*window)
        np.testing.assert_allclose(found, expected.forward_tree(*window) + np.eye(V)[0])

    def test_a_range_of_rows_touches_no_other(self):
        inner = TreelessByRows(TABLE, V, 4, LENGTH)
        model = RowsAsPaths(inner, 2)
        model.forward(np.array([[1, 2], [3, 0]]), np.zeros(2, np.int64))
        before = inner._table._held.copy()
        model.forward_tree(np.array([[1, 2, 3]]), np.array([1]), tree_of(-1, 0, 0), range(1, 2))
        np.testing.assert_array_equal(inner._table._held[:2], before[:2])
        plain = RowsAsPaths(TreelessUnforked(TABLE, V, 4, LENGTH), 2)
        with pytest.raises(InvalidArgument, match="expected rows from 0 on: the provider cannot forward others alone"):
            plain.forward_tree(np.array([[1]]), np.array([0]), chain(1, 1), range(1, 2))

    def test_what_cannot_be_asked_is_refused(self):
        inner = TreelessUnforked(TABLE, V, 4, LENGTH)
        for rows in (0, 5, 1.5, True):
            with pytest.raises(InvalidArgument, match="rows is"):
                RowsAsPaths(inner, rows)
        model = RowsAsPaths(inner, 2)
        with pytest.raises(InvalidArgument, match="TreelessUnforked cannot fork"):
            model.fork(0, [1], 1)
        with pytest.raises(InvalidArgument, match="GuidedProvider"):
            Decoder(model).check(Request([0], 3, guidance=Guidance(scale=2.0)))
        with pytest.raises(InvalidArgument, match="no begin"):
            Decoder(model).check(Request([0], 3, condition=1))

    def test_it_closes_the_provider(self):
        inner = TreelessUnforked(TABLE, V, 4, LENGTH)
        closed = []
        inner.close = lambda: closed.append(1)
        with RowsAsPaths(inner, 2):
            assert closed == []
        assert closed == [1]

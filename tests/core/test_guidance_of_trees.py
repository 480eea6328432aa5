"""Guided logits of windows that are trees against two full evaluations of every path; the rest of guidance is beside."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coupled_sampling import Guidance, GuidedProvider, Request, RowsAsPaths, generate
from coupled_sampling.contracts import RowRanges, Trees
from coupled_sampling.testing import TableProvider, random_table
from coupled_sampling.testing.tree_strategies import trees
from coupled_sampling.trees import Tree, chain
from standins.ranged import Ranged
from standins.treeless import Treeless

V, TABLE, LENGTH, SCALE = 4, random_table(13, 4), 12, 2.5


class Crowded(TableProvider):
    """Has no more columns than positions."""

    @property
    def max_columns(self):
        return self.max_length


class CrowdedRanges(Crowded, Ranged):
    """The same, by ranges of rows."""


def expected(prompt, unconditional, path):
    """Guided logits behind ``path``, the row's tokens from position 0 on; the scale grows from token to token."""
    own = np.log(TABLE(tuple(path)))
    shift = len(unconditional) - len(prompt)
    last = len(path) - 1 + shift
    if last < 0:
        return own
    if last >= LENGTH:
        return np.full(V, np.nan)
    beside = unconditional[: last + 1] if last < len(unconditional) else [*unconditional, *path[len(prompt) :]]
    scale = SCALE + max(0, len(path) - len(prompt))
    return (1 - scale) * np.log(TABLE(tuple(beside))) + scale * own


@st.composite
def rows(draw):
    """A prompt, an unconditional prompt, and the passes of a row: how much lower it starts, and a tree."""
    token = st.integers(0, V - 1)
    prompt, beside = (draw(st.lists(token, min_size=1, max_size=6)) for _ in range(2))
    return prompt, beside, draw(st.lists(st.tuples(st.integers(0, 3), trees(6)), min_size=1, max_size=4))


def window(prompts, start, parents, random):
    """Tokens for a window: those of the prompts where there are such, and random ones."""
    tree = Tree.of(parents)
    tokens = np.array([[random.randrange(V) for _ in own] for own in parents])
    for b, prompt in enumerate(prompts):
        position = start[b] + tree.depth[b]
        tokens[b] = np.where(
            position < len(prompt), np.array([*prompt, 0])[np.minimum(position, len(prompt))], tokens[b]
        )
    return tokens, tree


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.lists(rows(), min_size=1, max_size=2),
    st.sampled_from([CrowdedRanges, Crowded, Ranged, TableProvider]),
    st.sampled_from([LENGTH - 2, 1, LENGTH - 5, 3]),
    st.randoms(),
)
def test_every_slot_has_the_guided_law_of_its_path(rows, kind, ahead, random):
    """Trees on trees, behind a run of ``ahead`` tokens: what each pass leaves is what the next one stands on."""
    guided = GuidedProvider(kind(TABLE, V, 2 * len(rows), LENGTH), SCALE, lambda prompt: [0])
    prompts = [prompt for prompt, _, _ in rows]
    for b, (prompt, beside, _) in enumerate(rows):
        own = Guidance(lambda index: SCALE + index, beside)
        guided.begin(b, Request(prompt, LENGTH + 1 - len(beside), guidance=own))
    start = np.zeros(len(rows), np.int64)
    held, _ = window(prompts, start, chain(len(rows), ahead), random)
    guided.forward(held, start)
    held = held.tolist()
    for passes in zip(*(each[2] for each in rows), strict=False):
        width = max(len(parents) for _, parents in passes)
        latest = LENGTH - width
        start = np.array([max(0, min(len(own) - back, latest)) for own, (back, _) in zip(held, passes, strict=True)])
        parents = np.array([[*own, *[-1] * (width - len(own))] for _, own in passes])
        tokens, tree = window(prompts, start, parents, random)
        found = guided.forward_tree(tokens, start, parents, range(len(rows)))
        for b, (prompt, beside, _) in enumerate(rows):
            for slot in range(width):
                path = [*held[b][: start[b]], *tokens[b, tree.path(b, slot)].tolist()]
                np.testing.assert_allclose(found[b, slot], expected(prompt, beside, path), atol=1e-9)
            held[b] = [*held[b][: start[b]], *tokens[b, : tree.leading()[b]].tolist()]


def test_trees_are_offered_where_the_provider_offers_them():
    for kind, offers in ((TableProvider, (True, False)), (Ranged, (True, True)), (Treeless, (False, False))):
        guided = GuidedProvider(kind(TABLE, V, 4, LENGTH), SCALE, [0, 1, 2])
        assert (isinstance(guided, Trees), isinstance(guided, RowRanges)) == offers
        assert isinstance(guided, GuidedProvider)
    crowded = GuidedProvider(Crowded(TABLE, V, 4, LENGTH), SCALE, [0, 1, 2])
    assert crowded.max_columns == crowded.max_length == LENGTH - 2


@pytest.mark.parametrize(("kind", "calls"), [(TableProvider, 1), (Crowded, 2), (CrowdedRanges, 2)])
def test_one_call_is_enough_but_where_columns_are_short(kind, calls):
    """The unconditional row has three columns left for the four slots, of which two paths are no longer than two."""
    prompt, beside = [1], [2] * 9
    guided = GuidedProvider(kind(TABLE, V, 2, LENGTH), SCALE, [0])
    guided.begin(0, Request(prompt, 3, guidance=Guidance(lambda index: SCALE + index, beside)))
    guided.forward(np.array([prompt]), np.array([0]))
    before = guided.provider.calls
    found = guided.forward_tree(np.array([[0, 1, 2, 3]]), np.array([1]), np.array([[-1, 0, 0, -1]]), range(1))
    assert guided.provider.calls - before == calls
    for slot, path in enumerate([[1, 0], [1, 0, 1], [1, 0, 2], [1, 3]]):
        np.testing.assert_allclose(found[0, slot], expected(prompt, beside, path), atol=1e-9)
    again = guided.forward(np.array([[2]]), np.array([2]))  # behind the first slot, whose state has stayed
    np.testing.assert_allclose(again[0, 0], expected(prompt, beside, [1, 0, 2]), atol=1e-9)


def test_a_range_of_rows_touches_no_other():
    inner = Ranged(TABLE, V, 6, LENGTH)
    guided = GuidedProvider(inner, SCALE, [0, 1])
    before = inner._held.copy()
    tokens, start, parents = np.array([[2, 1, 3]]), np.zeros(1, np.int64), np.array([[-1, 0, 0]])
    found = guided.forward_tree(tokens, start, parents, range(2, 3))
    np.testing.assert_array_equal(inner._held[:4], before[:4])
    alone = GuidedProvider(TableProvider(TABLE, V, 2, LENGTH), SCALE, [0, 1])
    np.testing.assert_array_equal(found, alone.forward_tree(tokens, start, parents, range(1)))


@pytest.mark.parametrize("unconditional", [[3], [2, 0, 1, 3, 3, 1], lambda prompt: [*prompt[::-1], 1]])
@pytest.mark.parametrize("kind", ["trees", "ranges", "paths within", "paths around"])
def test_branches_leave_the_tokens_of_a_guided_model(kind, unconditional):
    prompts, settings = [[1], [0, 2, 3, 1, 1], [3, 3]], {"length": 9, "seed": 3}
    plain = GuidedProvider(TableProvider(TABLE, V, 4, 2 * LENGTH), SCALE, unconditional)
    wanted = generate(plain, prompts, method="ar", **settings).tokens
    model = {
        "trees": lambda: GuidedProvider(TableProvider(TABLE, V, 4, 2 * LENGTH), SCALE, unconditional),
        "ranges": lambda: GuidedProvider(Ranged(TABLE, V, 4, 2 * LENGTH), SCALE, unconditional),
        "paths within": lambda: GuidedProvider(
            RowsAsPaths(Treeless(TABLE, V, 12, 2 * LENGTH), 4), SCALE, unconditional
        ),
        "paths around": lambda: RowsAsPaths(
            GuidedProvider(Treeless(TABLE, V, 12, 2 * LENGTH), SCALE, unconditional), 2
        ),
    }[kind]()
    found = generate(model, prompts, method="scd-match", window=7, branches=4, **settings).tokens
    for own, other in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(own, other)

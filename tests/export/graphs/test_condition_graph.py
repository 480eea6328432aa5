"""Decoders that take a request's vectors: window graph and condition graph together against the numpy reference.

What the reference shares with the graphs, the tables of the layers' positions, is checked here against a formula of its own; its
reading of Cosmos' structure beside PyTorch's in ``tests/export/families/test_conditioned_clips_torch.py``.
"""

import dataclasses
import math

import numpy as np
import pytest

from coupled_sampling.errors import InvalidArgument
from coupled_sampling.export import (
    CrossAttention,
    LayerPositions,
    Norm,
    PrefixVectors,
    QueryKeyNorm,
    Storage,
    reference_logits,
    step_graph,
    tree_window,
    write_condition_graph,
)
from coupled_sampling.export.graphs.condition_graph import condition_graph
from coupled_sampling.export.graphs.decoder import decoder_graph
from coupled_sampling.export.graphs.rounded import rounded_model
from coupled_sampling.trees import Tree
from standins.conditioned import (
    CONTEXT,
    COSMOS,
    CROSS,
    LENGTH,
    PLACED,
    PLAIN,
    PREFIX,
    VECTORS,
    ConditionedRun,
    some_tokens,
    some_vectors,
)
from standins.tree_windows import TreeRun, random_weights

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

DESCRIPTIONS = {
    "cross attention": CROSS,
    "one head of keys": dataclasses.replace(CROSS, kv_heads=1, head_size=4, attention_softcap=1.5, attention_scale=0.4),
    "norms of outputs and of each head": dataclasses.replace(
        CROSS, norm=Norm("layer"), norm_placement="both", query_key_norm=QueryKeyNorm(Norm("layer"), per_head=True)
    ),
    "cosmos": COSMOS,
    "vectors first": VECTORS,
    "vectors first, a sliding window": dataclasses.replace(
        VECTORS, rotary=None, learned_positions=True, attention_window=6
    ),
}
SCHEDULE = (([0, 0, 0], 6), ([6, 5, 6], 4), ([9, 1, 8], 1), ([3, 2, 9], 7), ([10, 9, 11], 7), ([0, 12, 2], 6))
"""Starts of three rows and the width: ragged windows, and windows that go back over other tokens, into the prefix too."""


def furthest(found, expected):
    finite = np.isfinite(expected)
    np.testing.assert_array_equal(found[~finite], expected[~finite])
    return np.abs(found[finite] - expected[finite]).max()


def furthest_of_windows(run, description, weights, conditions):
    tokens, worst = some_tokens(description, 3, LENGTH), 0.0
    for row, vectors in enumerate(conditions):
        run.begin(row, vectors)
    for step, (starts, width) in enumerate(SCHEDULE):
        drawn = some_tokens(description, 3, LENGTH, seed=step)
        for row, start in enumerate(starts):
            tokens[row, start:] = drawn[row, start:]
        found = run(np.stack([tokens[row, start : start + width] for row, start in enumerate(starts)]), starts)
        for row, start in enumerate(starts):
            expected = reference_logits(description, weights, tokens[row, : start + width], condition=conditions[row])
            worst = max(worst, furthest(found[row], expected[start:]))
    return worst


def graphs_of(description, weights, storage=None):
    return decoder_graph(description, weights, storage), condition_graph(description, weights, storage)


@pytest.mark.parametrize("name", DESCRIPTIONS)
def test_windows_of_rows_with_other_conditions_give_the_references_logits(name):
    """Three rows: all vectors that there is room for, one less, and one alone."""
    description = DESCRIPTIONS[name]
    weights, most = random_weights(description), description.condition.length
    conditions = [some_vectors(most), some_vectors(most - 1, seed=1), some_vectors(1, seed=2)]
    run = ConditionedRun(*graphs_of(description, weights), 3)
    assert furthest_of_windows(run, description, weights, conditions) <= 2e-5


@pytest.mark.parametrize("description", [CROSS, VECTORS], ids=["cross attention", "vectors first"])
def test_the_reference_depends_on_every_vector(description):
    """Negative control: the same sequence with another vector, and with one less."""
    weights, tokens = random_weights(description), some_tokens(description, 12)
    tokens[: description.condition.length] = description.condition.token or 3
    vectors = some_vectors(description.condition.length)
    whole = reference_logits(description, weights, tokens, condition=vectors)[-1]
    for i in range(len(vectors)):
        other = vectors.copy()
        other[i] += 1
        assert furthest(reference_logits(description, weights, tokens, condition=other)[-1], whole) > 1e-3
    assert furthest(reference_logits(description, weights, tokens, condition=vectors[1:])[-1], whole) > 1e-3


def test_layers_positions_give_the_references_logits():
    weights, run = random_weights(PLACED), TreeRun(decoder_graph(PLACED, random_weights(PLACED)), 1)
    tokens = some_tokens(PLACED, LENGTH)
    expected = reference_logits(PLACED, weights, tokens)
    for start, end in ((0, 5), (3, 4), (4, LENGTH)):
        assert furthest(run(tokens[None, start:end], [start])[0], expected[start:end]) <= 2e-5
    without = reference_logits(dataclasses.replace(PLACED, layer_positions=None), weights, tokens)
    assert furthest(without[:1], expected[:1]) == 0 < furthest(without[1:], expected[1:])  # the prefix has none


def test_what_layers_add_by_its_formula():
    """Width 16: 8 entries for the frame, 4 for the row, 4 for the column; sines before cosines."""
    positions = LayerPositions(frames=2, rows=2, columns=3, prefix=1)
    rows = positions.rows_of(16, 15)
    for position, (frame, row, column) in (
        (1, (0, 0, 0)),
        (6, (0, 1, 2)),
        (7, (1, 0, 0)),
        (11, (1, 1, 1)),
        (12, (1, 1, 2)),
    ):
        expected = []
        for index, part in ((frame, 8), (row, 4), (column, 4)):
            angles = [index * 10000 ** (-k / (part / 2)) for k in range(part // 2)]
            expected += [*map(math.sin, angles), *map(math.cos, angles)]
        np.testing.assert_allclose(rows[position], expected, atol=1e-12)
    assert not rows[[0, 13, 14]].any()


@pytest.mark.parametrize("name", ["cosmos", "vectors first, a sliding window"])
def test_every_path_of_a_tree_has_the_references_logits(name):
    description = DESCRIPTIONS[name]
    weights, vectors = random_weights(description), some_vectors(3)
    window, condition = graphs_of(description, weights)
    run = ConditionedRun(tree_window(window, 34), condition, 1)
    run.begin(0, vectors)
    known = some_tokens(description, 7)
    run(known[None], [0])
    parents = np.array([[-1, 0, 1, 0, 3, 3, 5, -1, 7]])
    tokens, tree = some_tokens(PLAIN, 1, 9, seed=3), Tree.of(parents)
    found = run(tokens, [7], parents)
    for leaf in (2, 4, 6, 8):
        path = tree.path(0, leaf)
        sequence = np.concatenate([known, tokens[0, path]])
        expected = reference_logits(description, weights, sequence, condition=vectors)[len(known) :]
        assert furthest(found[0, path], expected) <= 2e-5


@pytest.mark.parametrize("description", [COSMOS, VECTORS], ids=["cosmos", "vectors first"])
def test_rounded_weights_and_half_precision(description):
    """int4 gives the logits of the rounded weights; float16 is near the model's own."""
    weights, conditions = random_weights(description), [some_vectors(n, seed=n) for n in (5, 4, 2)]
    storage = Storage("int4", block=16)
    wide = dataclasses.replace(
        description,
        width=32,
        mlp_width=32,
        head_size=16,
        condition=dataclasses.replace(description.condition, size=16, **({"hidden": 16} if description.prefix else {})),
    )
    weights = random_weights(wide)
    run = ConditionedRun(*graphs_of(wide, weights, storage), 3)
    conditions = [some_vectors(n, 16, seed=n) for n in (5, 4, 2)]
    assert furthest_of_windows(run, *rounded_model(wide, weights, storage), conditions) <= 5e-5
    half = ConditionedRun(*graphs_of(wide, weights, Storage("float16", compute="float16")), 3)
    assert furthest_of_windows(half, wide, weights, conditions) <= 5e-2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"condition": lambda: CrossAttention(0, 4)}, "length of the condition is 0"),
        ({"condition": lambda: PrefixVectors(2, 0, 4, 22)}, "size of the condition is 0"),
        ({"condition": lambda: PrefixVectors(2, 4, 0, 22)}, "hidden of the prefix vectors is 0"),
        (
            {"condition": lambda: dataclasses.replace(PREFIX, token=23)},
            "token of the prefix vectors is 23, expected one of",
        ),
        ({"condition": lambda: dataclasses.replace(PREFIX, token=21)}, "that is never generated"),
        ({"condition": lambda: dataclasses.replace(PREFIX, length=LENGTH)}, "expected fewer than 18 positions"),
        ({"condition": lambda: CONTEXT, "query_key_norm": QueryKeyNorm(whole=True)}, "expected one of each head"),
        (
            {"width": 27, "head_size": 4, "layer_positions": LayerPositions(2, 2, 3)},
            "width is 27, expected an even number",
        ),
    ],
)
def test_what_cannot_be(changes, message):
    with pytest.raises(InvalidArgument, match=message):
        dataclasses.replace(PLAIN, **{name: one() if callable(one) else one for name, one in changes.items()})


@pytest.mark.parametrize("sizes", [(0, 2, 2), (2, 0, 2), (2, 2, 0)])
def test_positions_of_no_clip(sizes):
    with pytest.raises(InvalidArgument, match="of the layers' positions is 0"):
        LayerPositions(*sizes)


@pytest.mark.parametrize("shape", [None, (8, 10), (0, 10), (3, 9), (10,), (1, 3, 10)])
def test_the_reference_refuses_a_condition_that_does_not_fit(shape):
    vectors = None if shape is None else np.zeros(shape)
    with pytest.raises(InvalidArgument, match=r"condition has the shape .*, expected \(n, 10\) with n up to 7"):
        reference_logits(CROSS, random_weights(CROSS), np.array([1]), condition=vectors)
    with pytest.raises(InvalidArgument, match="expected None: the description takes none"):
        reference_logits(PLAIN, random_weights(PLAIN), np.array([1]), condition=np.zeros((1, 10)))


def test_the_reference_refuses_a_vector_where_none_can_stand():
    with pytest.raises(InvalidArgument, match="22 at position 6"):
        reference_logits(VECTORS, random_weights(VECTORS), np.array([1, 1, 1, 1, 1, 1, 22]), condition=some_vectors(5))


def test_graphs_that_are_not_made(tmp_path):
    with pytest.raises(InvalidArgument, match="description has no condition"):
        write_condition_graph(PLAIN, random_weights(PLAIN), tmp_path / "condition.onnx")
    with pytest.raises(InvalidArgument, match=r"window_model takes 'condition.0.key'.* a step cannot be told"):
        step_graph(decoder_graph(CROSS, random_weights(CROSS)), "scd-match")

"""Windows that are trees on somebody else's graphs, which must be told of every slot what it sees and where it stands.

The oracle is the same kind of graph with a mask of 2 axes, one path after the other.
"""

import json

import numpy as np
import pytest

from coupled_sampling import generate
from coupled_sampling.backends import check_model, open_model, open_onnx
from coupled_sampling.backends.foreign.provider import ConcatenatedProvider
from coupled_sampling.contracts import Trees
from coupled_sampling.errors import BundleError, InvalidArgument, ProviderError
from coupled_sampling.testing import check_provider
from standins.grown_cache_graphs import LENGTH, VOCABULARY, genai, optimum
from standins.random_trees import by_paths, random_parents

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

ROWS = 3
KINDS = {
    "plain": {},
    "slots": {"mask": "slots"},
    "added": {"mask": "added"},
    "half": {"mask": "added", "dtype": np.float16},
    "without positions": {"mask": "slots", "positions": "columns"},
    "positions unused": {"mask": "slots", "positions": "unused"},
    "last slot's mask": {"mask": "last slot's"},
}


@pytest.fixture(scope="module")
def graphs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("graphs")
    (folder / "config.json").write_text(json.dumps({"max_position_embeddings": LENGTH}))
    return {kind: optimum(folder / f"{i}.onnx", **settings) for i, (kind, settings) in enumerate(KINDS.items())}


def some_tokens(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, VOCABULARY, shape)


def starts(*values):
    return np.array(values, np.int64)


@pytest.mark.parametrize("kind", ["slots", "added"])
def test_a_mask_by_slot_changes_nothing_without_trees(graphs, kind):
    model = ConcatenatedProvider.open(graphs[kind], ROWS, threads=1)
    assert model.batching == "padded"
    assert not isinstance(model, Trees)
    oracle = ConcatenatedProvider.open(graphs["plain"], threads=1)
    check_provider(model, reference=lambda tokens: oracle.forward(tokens[None], starts(0))[0])


@pytest.mark.parametrize("batching", ["padded", "one by one"])
@pytest.mark.parametrize("kind", ["slots", "added", "half"])
def test_slots_see_their_paths_and_the_leading_ones_leave_their_state(graphs, kind, batching):
    model, oracle = (
        ConcatenatedProvider.open(graphs[kind], ROWS, trees=True),
        ConcatenatedProvider.open(graphs["plain"], ROWS),
    )
    assert isinstance(model, Trees)
    model.batching = batching
    tolerance = 0.1 if kind == "half" else 1e-4
    before, start = some_tokens(ROWS, 20), starts(2, 15, 9)
    for one in (model, oracle):
        one.forward(before, starts(0, 0, 0))
    window, parents, rows = some_tokens(2, 8, seed=1), random_parents(2, 8, seed=4, leading=3), range(1, 3)
    found = model.forward_tree(window, start[1:], parents, rows).copy()
    for i, row in enumerate(rows):
        alone = by_paths(oracle, window[i : i + 1], start[row : row + 1], parents[i : i + 1], row)
        np.testing.assert_allclose(found[i], alone, atol=tolerance)
    oracle.forward_rows(window[:, :3], start[1:], rows)
    then, after = some_tokens(ROWS, 2, seed=2), start + starts(0, 3, 3)
    np.testing.assert_allclose(model.forward(then, after), oracle.forward(then, after), atol=tolerance)


def test_slots_side_by_side_may_go_on_behind_the_last_position(graphs):
    model, oracle = ConcatenatedProvider.open(graphs["slots"], trees=True), ConcatenatedProvider.open(graphs["plain"])
    assert model.max_columns == 2 * LENGTH
    before, width = some_tokens(1, LENGTH - 1), LENGTH + 1
    for one in (model, oracle):
        one.forward(before, starts(0))
    tokens, parents = some_tokens(1, width, seed=1), np.full((1, width), -1)
    found = model.forward_tree(tokens, starts(LENGTH - 1), parents, range(1)).copy()
    for slot in (0, width - 1):
        expected = oracle.forward(tokens[:, slot : slot + 1], starts(LENGTH - 1))
        np.testing.assert_allclose(found[:, slot], expected[:, 0], atol=1e-4)
    with pytest.raises(InvalidArgument, match=f"within the {2 * LENGTH} columns"):
        model.forward_tree(some_tokens(1, width + 1), starts(LENGTH - 1), np.full((1, width + 1), -1), range(1))
    with pytest.raises(InvalidArgument, match="parent of row 0, slot 1 is 1"):
        model.forward_tree(tokens[:, :2], starts(0), np.array([[-1, 1]]), range(1))
    with pytest.raises(InvalidArgument, match="rows is range"):
        model.forward_tree(tokens[:, :2], starts(0), np.array([[-1, 0]]), range(1, 2))


@pytest.mark.parametrize("kind", ["plain", "without positions"])
def test_graphs_that_cannot_be_told_of_slots_are_refused(graphs, kind, tmp_path):
    words = "expected position_ids and an attention_mask of 4 axes"
    with pytest.raises(BundleError, match=words):
        ConcatenatedProvider.open(graphs[kind], trees=True)
    bundle = open_onnx(graphs[kind])
    assert bundle.manifest.tree_graph is None
    for method in (None, "scd-match"):
        with pytest.raises(InvalidArgument, match="without position_ids, or without an attention_mask of 4 axes"):
            check_model(bundle, method=method, trees=True)
    with pytest.raises(BundleError, match=words):
        ConcatenatedProvider.open(genai(tmp_path / "genai.onnx"), max_length=LENGTH, trees=True)


@pytest.mark.parametrize("kind", ["positions unused", "last slot's mask"])
def test_graphs_that_do_not_do_as_they_are_told_are_refused(graphs, kind):
    assert ConcatenatedProvider.open(graphs[kind]).graph.takes_trees, "it seems to"
    with pytest.raises(
        ProviderError, match=r"a slot of a tree is not scored like its path alone.*open it without trees"
    ):
        ConcatenatedProvider.open(graphs[kind], trees=True)


@pytest.mark.parametrize(
    ("type_", "shape"),
    [
        ("INT64", ["batch", 1, "window", "total"]),
        ("BOOL", ["batch", 2, "window", "total"]),
        ("BOOL", ["batch", 1, 4, "total"]),
    ],
    ids=str,
)
def test_masks_of_four_axes_that_could_mean_anything_are_refused(graphs, tmp_path, type_, shape):
    import onnx

    model = onnx.load(graphs["slots"])
    mask = next(value for value in model.graph.input if value.name == "attention_mask")
    mask.CopyFrom(onnx.helper.make_tensor_value_info("attention_mask", getattr(onnx.TensorProto, type_), shape))
    if type_ == "INT64":
        cast = onnx.helper.make_node("Cast", ["attention_mask"], ["truth"], to=onnx.TensorProto.BOOL)
        for node in model.graph.node:
            node.input[:] = ["truth" if name == "attention_mask" else name for name in node.input]
        model.graph.node.insert(0, cast)
    onnx.save(model, tmp_path / "wrong.onnx")
    with pytest.raises(
        BundleError, match=r"attention_mask' is tensor.*expected tensor\(bool\).*of the shape \(batch, 1, window"
    ):
        ConcatenatedProvider.open(tmp_path / "wrong.onnx", max_length=LENGTH)


def test_decoding_with_branches_gives_the_tokens_of_ar(graphs):
    bundle = open_onnx(graphs["added"])
    prompts, settings = [[3], [5, 1, 4], list(range(12))], {"length": 20, "seed": 2}
    with open_model(bundle, rows=2) as model:
        expected = [row.tolist() for row in generate(model, prompts, method="ar", **settings).tokens]
    decoding = bundle.settings(method="scd-match", window=64, branches=50)
    with open_model(bundle, rows=2, **decoding.model) as model:
        generation = generate(model, prompts, **settings, window=64, branches=50)
    assert [row.tolist() for row in generation.tokens] == expected
    assert sum(len(trace.branch_tokens) for trace in generation.traces), "no branch was ever right"

"""Window graphs rewritten for trees: every slot has the logits of its path alone, whatever lies beside it.

The oracle of paths is the numpy reference, which knows no caches and no windows; that of chains is the window graph itself.
"""

import numpy as np
import pytest

from coupled_sampling.errors import InvalidArgument
from coupled_sampling.export import (
    GridRotary,
    LayerKind,
    Norm,
    PicturePositions,
    Rotary,
    Storage,
    save_graph,
    step_graph,
)
from coupled_sampling.export.graphs.decoder import decoder_graph
from coupled_sampling.export.graphs.tree_window import TREE_FORMAT, tree_window
from coupled_sampling.trees import Tree
from standins.toy_bundles import toy_gpt
from standins.tree_windows import TreeRun, furthest_of_trees, random_parents, random_weights

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

POSITIONS, COLUMNS = 20, 34
GPT = toy_gpt(POSITIONS)
PICTURES = PicturePositions(begin=4, grids=((2, 2), (2, 3)), sections=(1, 1, 0))
NEAR, FAR = LayerKind(4, Rotary(base=100.0)), LayerKind(0, Rotary(base=1e4))


def turned(rotary=None, **changes):
    return toy_gpt(POSITIONS, learned_positions=False, rotary=rotary, norm=Norm(), **changes)


DESCRIPTIONS = {
    "learned positions": GPT,
    "columns to spare": toy_gpt(POSITIONS, cache_length=25, position_offset=2),
    "no positions": turned(),
    "rotary": turned(Rotary("interleaved"), heads=4, kv_heads=2),
    "grid": turned(Rotary("interleaved", grid=GridRotary(3, 5, 2))),
    "pictures": turned(Rotary(base=100.0, pictures=PICTURES)),
    "pictures and a sliding window": turned(Rotary(base=100.0, pictures=PICTURES), attention_window=5),
    "sliding window": turned(Rotary(base=100.0), attention_window=4),
    "window of one": toy_gpt(POSITIONS, attention_window=1),
    "near and far layers": turned(layers=4, layer_kinds=(NEAR, LayerKind(), FAR, LayerKind(2, FAR.rotary))),
}


def graph_of(description=GPT, storage=None):
    return decoder_graph(description, random_weights(description), storage)


@pytest.fixture(scope="module")
def window():
    return graph_of()


@pytest.fixture(scope="module")
def tree(window):
    return tree_window(window, COLUMNS)


@pytest.mark.parametrize("name", DESCRIPTIONS)
def test_every_path_has_the_references_logits(name):
    begin = 4 if "pictures" in name else None
    assert furthest_of_trees(DESCRIPTIONS[name], passes=6, begin=begin) <= 2e-5


def test_a_mark_beside_a_path_begins_no_picture_on_it():
    """Two branches, one with the token that begins pictures and one without, and both below a token that begins them."""
    description = DESCRIPTIONS["pictures"]
    run = TreeRun(tree_window(graph_of(description), COLUMNS), 1)
    paths = TreeRun(graph_of(description), 1)
    for tokens in ([1, 4, 5, 7, 2, 6, 3, 5, 1], [4, 4, 5, 7, 2, 6, 3, 5, 1]):
        window = np.array([tokens])
        found = run(window, [0], [[-1, 0, 1, 2, 0, 4, 5, 6, 7]])
        for path in ([0, 1, 2, 3], [0, 4, 5, 6, 7, 8]):
            np.testing.assert_allclose(found[0, path], paths(window[:, path], [0])[0], atol=1e-5)


def test_a_chain_has_the_window_graphs_logits(window, tree):
    random = np.random.default_rng(3)
    one, other = TreeRun(window, 3), TreeRun(tree, 3)
    for starts, width in (([0, 0, 0], 7), ([7, 3, 5], 4), ([11, 2, 9], 9), ([5, 19, 0], 1)):
        tokens = random.integers(0, 11, (3, width))
        np.testing.assert_allclose(other(tokens, starts), one(tokens, starts), atol=1e-6)


def test_what_a_slot_does_not_see_changes_nothing_of_it(tree):
    """To the bit: another token changes the slots behind it on their paths, and no others."""
    random = np.random.default_rng(5)
    parents = random_parents(random, 1, 12)
    sees, tokens = Tree.of(parents).sees[0], random.integers(0, 11, (1, 12))
    prompt = random.integers(0, 11, (1, 5))

    def logits(tokens):
        run = TreeRun(tree, 1)
        run(prompt, [0])
        return run(tokens, [5], parents)[0]

    before = logits(tokens)
    for slot in range(12):
        changed = tokens.copy()
        changed[0, slot] = (changed[0, slot] + 1) % 11
        differs = (logits(changed) != before).any(axis=-1)
        np.testing.assert_array_equal(differs, sees[:, slot])


def test_rows_do_not_meet(tree):
    random = np.random.default_rng(7)
    parents, tokens = random_parents(random, 3, 8), random.integers(0, 11, (3, 8))
    together = TreeRun(tree, 3)(tokens, [0, 0, 0], parents)
    for row in range(3):
        alone = TreeRun(tree, 1)(tokens[row : row + 1], [0], parents[row : row + 1])
        np.testing.assert_allclose(together[row], alone[0], atol=1e-6)


def test_more_slots_than_positions_that_are_left(window, tree):
    """A window of 14 slots that all guess the last position, beyond what the window graph could take."""
    random = np.random.default_rng(11)
    tokens, guesses = random.integers(0, 11, (1, POSITIONS)), np.arange(14)[None] % 11
    run, one = TreeRun(tree, 1), TreeRun(window, 1)
    run(tokens, [0])
    one(tokens, [0])
    found = run(guesses, [POSITIONS - 1], np.full((1, 14), -1))
    for slot in range(14):
        expected = one(guesses[:, slot : slot + 1], [POSITIONS - 1])[0, 0]
        np.testing.assert_allclose(found[0, slot], expected, atol=1e-5)


def test_the_longest_path_is_seen_whole():
    """As many slots as there are positions, one behind the other in no order of their columns' neighbours."""
    description = toy_gpt(33)
    tree = TreeRun(tree_window(graph_of(description), 70), 1)
    tokens = np.random.default_rng(13).integers(0, 11, (1, 66))
    # Every slot has a twin beside it that nobody follows.
    parents = np.repeat(np.arange(-2, 64, 2), 2)[None]
    parents[parents < 0] = -1
    found = tree(tokens, [0], parents)
    expected = TreeRun(graph_of(description), 1)(tokens[:, ::2], [0])
    np.testing.assert_allclose(found[:, ::2], expected, atol=1e-5)


def test_half_precision_stays_what_it_was():
    tree = tree_window(graph_of(storage=Storage(weights="float16", compute="float16")), COLUMNS)
    kinds = {value.type.tensor_type.elem_type for value in tree.graph.input if value.name.startswith("past")}
    assert kinds == {onnx.TensorProto.FLOAT16}
    assert np.isfinite(TreeRun(tree, 1)(np.array([[1, 2, 3]]), [0], [[-1, 0, 0]])[..., :8]).all()


def test_the_graph_keeps_the_documented_interface(tmp_path, window):
    before = window.SerializeToString()
    tree = tree_window(window, COLUMNS)
    assert window.SerializeToString() == before
    save_graph(tree, tmp_path / "tree.onnx")
    names = [value.name for value in tree.graph.input]
    assert names == ["input_ids", "start", "kv_length", "parents", *names[4:]]
    assert [value.name for value in tree.graph.output] == [value.name for value in window.graph.output]
    caches = [value for value in (*tree.graph.input, *tree.graph.output) if "." in value.name]
    assert {value.type.tensor_type.shape.dim[2].dim_value for value in caches} == {COLUMNS}
    metadata = {entry.key: entry.value for entry in tree.metadata_props}
    assert metadata == {"format": TREE_FORMAT, "max_length": str(POSITIONS)}
    assert {(entry.domain, entry.version) for entry in tree.opset_import} == {("", 24)}
    used = {name for node in tree.graph.node for name in node.input} | {value.name for value in tree.graph.output}
    assert {tensor.name for tensor in tree.graph.initializer} <= used
    assert all(set(node.output) & used for node in tree.graph.node)


def test_a_step_graph_can_be_made_of_it(tmp_path, tree):
    for warped in (False, True):
        step = step_graph(tree, "scd-match", warped=warped, tree=True)
        save_graph(step, tmp_path / "step.onnx")
        (parents,) = (value for value in step.graph.input if value.name == "parents")
        assert parents.type.tensor_type.shape.dim[0].dim_param == "B"
    with pytest.raises(InvalidArgument, match="takes trees"):
        step_graph(tree, "scd-match")


def spoiled(change):
    model = onnx.ModelProto()
    model.CopyFrom(graph_of(turned(Rotary(base=100.0, pictures=PICTURES), attention_window=5)))
    change(model)
    return model


def node_of(model, kind, index=0):
    return [node for node in model.graph.node if node.op_type == kind][index]


def renamed(kind, other, index=0):
    def change(model):
        node_of(model, kind, index).op_type = other

    return change


def with_node(kind, *inputs):
    def change(model):
        model.graph.node.append(onnx.helper.make_node(kind, inputs, ["more"], name="more"))
        model.graph.output.append(onnx.helper.make_tensor_value_info("more", onnx.TensorProto.INT64, None))

    return change


REFUSED = {
    "no metadata": (lambda model: model.ClearField("metadata_props"), "has the format None"),
    "no start": (lambda model: setattr(model.graph.input[1], "name", "begin"), "expected a window graph that this"),
    "an old operator set": (lambda model: setattr(model.opset_import[0], "version", 23), "operator set 23"),
    "a mask by another rule": (renamed("LessOrEqual", "Less"), "is made in another way"),
    "a window by another rule": (renamed("Greater", "GreaterOrEqual"), "is made in another way"),
    "no mask": (lambda model: node_of(model, "Attention").input.pop(), "its attention has no mask"),
    "positions by another rule": (renamed("Add", "Sub"), "0 values are the positions of slots"),
    "another use of start": (with_node("Neg", "start"), "'more' uses 'start'"),
    "another use of kv_length": (with_node("Neg", "kv_length"), "'more' uses 'kv_length'"),
    "no order": (lambda model: model.graph.node.reverse(), "not in the order"),
    "another use of marks": (with_node("Neg", "first mark"), "is used in another way"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_rewritten_is_refused(case):
    change, message = REFUSED[case]

    def named(model):
        first = node_of(model, "ReduceMin")
        for node in model.graph.node:
            for i, name in enumerate(node.input):
                if name == first.output[0]:
                    node.input[i] = "first mark"
        first.output[0] = "first mark"
        change(model)

    model = spoiled(named)
    with pytest.raises(InvalidArgument, match=message):
        tree_window(model, COLUMNS)


def test_arguments_that_cannot_be(window, tree):
    with pytest.raises(InvalidArgument, match="window_model is 3, expected"):
        tree_window(3, COLUMNS)
    with pytest.raises(InvalidArgument, match="columns is 19, expected at least the 20 positions"):
        tree_window(window, POSITIONS - 1)
    with pytest.raises(InvalidArgument, match="has the format 'coupled-sampling tree window graph'"):
        tree_window(tree, COLUMNS)

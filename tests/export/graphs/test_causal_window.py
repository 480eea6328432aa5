"""Window graphs rewritten without masks: the logits of the graph with masks, and of the numpy reference, which knows neither."""

import numpy as np
import pytest

from coupled_sampling.errors import InvalidArgument
from coupled_sampling.export import (
    LayerKind,
    Norm,
    PicturePositions,
    Rotary,
    Storage,
    causal_window,
    reference_logits,
    save_graph,
    step_graph,
    tree_window,
)
from coupled_sampling.export.graphs.causal_window import CAUSAL_FORMAT, query_heads
from coupled_sampling.export.graphs.conditions import CrossAttention
from coupled_sampling.export.graphs.decoder import decoder_graph
from standins.causal_windows import furthest_of_writings, upper_left
from standins.toy_bundles import toy_gpt
from standins.tree_windows import TreeRun, random_weights

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

POSITIONS = 20
GPT = toy_gpt(POSITIONS)


def turned(rotary=None, **changes):
    return toy_gpt(POSITIONS, learned_positions=False, rotary=rotary, norm=Norm(), **changes)


DESCRIPTIONS = {
    "learned positions": GPT,
    "columns to spare": toy_gpt(POSITIONS, cache_length=25, position_offset=2),
    "no positions": turned(),
    "grouped heads": turned(Rotary("interleaved"), heads=4, kv_heads=2),
    "a softcap": turned(Rotary(), attention_softcap=1.5),
    "layers that turn differently": turned(layer_kinds=(LayerKind(0, Rotary(base=100.0)), LayerKind())),
}


def graph_of(description=GPT, storage=None):
    return decoder_graph(description, random_weights(description), storage)


@pytest.fixture(scope="module")
def window():
    return graph_of()


@pytest.mark.parametrize("name", DESCRIPTIONS)
def test_ragged_windows_have_the_logits_of_the_graph_with_masks(name):
    window = graph_of(DESCRIPTIONS[name])
    assert furthest_of_writings(window, causal_window(window), 11) <= 1e-5


def test_windows_have_the_references_logits():
    description = DESCRIPTIONS["grouped heads"]
    weights, tokens = random_weights(description), np.random.default_rng(1).integers(0, 11, (2, 14))
    run = TreeRun(causal_window(decoder_graph(description, weights)), 2)
    run(tokens[:, :9], [0, 0])
    found = run(np.stack([tokens[0, 9:14], tokens[1, 4:9]]), [9, 4])
    for row, start in ((0, 9), (1, 4)):
        expected = reference_logits(description, weights, tokens[row, : start + 5])[start:]
        np.testing.assert_allclose(found[row], expected, atol=2e-5)


def test_without_a_length_for_each_row_windows_would_begin_with_the_first_column(window):
    """The control for those above."""
    wrong = causal_window(window)
    upper_left(wrong)
    assert furthest_of_writings(window, wrong, 11) > 0.1


def test_the_graph_keeps_the_documented_interface(tmp_path, window):
    before = window.SerializeToString()
    model = causal_window(window)
    assert window.SerializeToString() == before
    save_graph(model, tmp_path / "causal.onnx")
    names = [[value.name for value in one.graph.input] for one in (model, window)]
    assert names[0] == [name for name in names[1] if name != "kv_length"]
    assert [value.name for value in model.graph.output] == [value.name for value in window.graph.output]
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert metadata == {"format": CAUSAL_FORMAT, "max_length": str(POSITIONS)}
    used = {name for node in model.graph.node for name in node.input} | {value.name for value in model.graph.output}
    assert {tensor.name for tensor in model.graph.initializer} <= used
    assert all(set(node.output) & used for node in model.graph.node)
    read = {node.input[1] for node in model.graph.node if node.op_type == "Attention"}
    assert read == {"present.0.key", "present.1.key"}, "the caches themselves, and no copies of their beginnings"


def test_half_precision_stays_what_it_was():
    model = causal_window(graph_of(storage=Storage(weights="float16", compute="float16")))
    kinds = {value.type.tensor_type.elem_type for value in model.graph.input if value.name.startswith("past")}
    assert kinds == {onnx.TensorProto.FLOAT16}
    onnx.checker.check_model(model, full_check=True)


def test_a_step_graph_can_be_made_of_it(tmp_path, window):
    save_graph(step_graph(causal_window(window), "scd-match"), tmp_path / "step.onnx")


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_heads_of_queries_are_counted(kv_heads):
    window = graph_of(turned(heads=4, kv_heads=kv_heads))
    assert query_heads(window) == query_heads(causal_window(window)) == 4
    nodes = [node for node in window.graph.node if node.op_type == "Transpose"]
    nodes[-1].op_type = "Identity"
    del nodes[-1].attribute[:]
    for node in window.graph.node:
        node.op_type = "Flatten" if node.op_type == "Reshape" else node.op_type
    with pytest.raises(InvalidArgument, match=r"layers of \[0\] heads"):
        query_heads(window)


PICTURES = PicturePositions(begin=4, grids=((2, 2), (2, 3)), sections=(1, 1, 0))
NEEDS_MASKS = {
    "a sliding window": (turned(Rotary(), attention_window=4), "a sliding window, of 4 positions"),
    "one layer with a sliding window": (
        turned(layer_kinds=(LayerKind(), LayerKind(3, Rotary()))),
        "a sliding window, of 3 positions",
    ),
    "pictures": (turned(Rotary(base=100.0, pictures=PICTURES)), "looks for pictures in its context"),
    "a condition": (toy_gpt(POSITIONS, condition=CrossAttention(5, 6)), "takes 'condition.*request's condition"),
}


@pytest.mark.parametrize("name", NEEDS_MASKS)
def test_what_needs_a_mask_is_refused_by_name(name):
    description, said = NEEDS_MASKS[name]
    with pytest.raises(InvalidArgument, match=f"{said}.*needs a mask"):
        causal_window(graph_of(description))


def test_what_was_written_otherwise_is_refused(window):
    with pytest.raises(InvalidArgument, match="has the format"):
        causal_window(tree_window(window, 30))
    with pytest.raises(InvalidArgument, match="has the format"):
        causal_window(causal_window(window))
    for kind, change, said in (
        ("Slice", lambda node: node.input.__setitem__(2, "start"), "reads its caches in another way"),
        ("Gemm", lambda node: node.input.__setitem__(2, "kv_length"), "uses 'kv_length'"),
    ):
        model = onnx.ModelProto()
        model.CopyFrom(window)
        change([node for node in model.graph.node if node.op_type == kind][-1])
        with pytest.raises(InvalidArgument, match=said):
            causal_window(model)

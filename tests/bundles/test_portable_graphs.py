"""Graphs rewritten with operators that more runtimes have: the same logits and tokens, and no operator that was to go."""

from collections import Counter

import numpy as np
import pytest

from coupled_sampling import generate, open_bundle
from coupled_sampling.backends import OrtStep
from coupled_sampling.backends.ort.session import open_session
from coupled_sampling.bundles.portable_graphs import PORTABLE_OPSET, REPLACED, portable_graph
from coupled_sampling.errors import InvalidArgument
from coupled_sampling.export import Rotary, Storage, write_decoder_graph
from coupled_sampling.export.graphs.builder import load_graph
from standins.toy_bundles import toy_gpt, toy_weights

onnx = pytest.importorskip("onnx")

S = 16
ROTARY = {"learned_positions": False, "rotary": Rotary()}
DESCRIPTIONS = {
    "plain": toy_gpt(S),
    "shared keys, soft cap": toy_gpt(S, heads=4, kv_heads=2, head_size=4, attention_softcap=3.0, attention_scale=0.7),
    "rotated": toy_gpt(S, **ROTARY),
    "rotated in part, interleaved": toy_gpt(S, **ROTARY | {"rotary": Rotary(size=2, pairs="interleaved")}, head_size=8),
    "rotated in part": toy_gpt(S, **ROTARY | {"rotary": Rotary(size=4)}, head_size=8),
    "rotated, interleaved": toy_gpt(S, **ROTARY | {"rotary": Rotary(pairs="interleaved")}),
}


def operators(model):
    return Counter(node.op_type for node in model.graph.node)


def windows(session, feeds, dtype=np.float32):
    """Logits of calls one after the other, each of which gets the caches of the one before."""
    names = [value.name for value in session.get_outputs()]
    past = {
        value.name: np.zeros([2, *value.shape[1:]], dtype)
        for value in session.get_inputs()
        if value.name.startswith("past")
    }
    for feed in feeds:
        made = dict(zip(names, session.run(names, {**feed, **past}), strict=True))
        past = {name: made[name.replace("past_key_values", "present")] for name in past}
        yield made["logits"]


@pytest.mark.parametrize("name", DESCRIPTIONS)
def test_logits_are_those_of_the_original(tmp_path, name):
    description = DESCRIPTIONS[name]
    write_decoder_graph(description, toy_weights(description), tmp_path / "window.onnx")
    model = load_graph(tmp_path / "window.onnx")
    rewritten = portable_graph(model)
    assert not set(REPLACED) & set(operators(rewritten))
    assert rewritten.opset_import[0].version == PORTABLE_OPSET
    onnx.checker.check_model(rewritten, full_check=True)
    random = np.random.default_rng(0)
    feeds = [
        {"input_ids": random.integers(0, 8, (2, width)), "start": np.array(start), "kv_length": np.array([14])}
        for start, width in (([0, 0], 5), ([3, 1], 4), ([7, 2], 1), ([5, 3], 7))
    ]
    sessions = open_session(model.SerializeToString()), open_session(rewritten.SerializeToString())
    for expected, found in zip(*(windows(session, feeds) for session in sessions), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("name", ["shared keys, soft cap", "rotated in part, interleaved"])
@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_graphs_in_half_precision_stay_so(tmp_path, kind, name):
    """Constants are of the types of what they meet; float16 is run, for bfloat16 the CPU has no kernels."""
    description = DESCRIPTIONS[name]
    write_decoder_graph(description, toy_weights(description), tmp_path / "window.onnx", Storage(kind, kind))
    model = load_graph(tmp_path / "window.onnx")
    rewritten = portable_graph(model)
    assert not set(REPLACED) & set(operators(rewritten))
    onnx.shape_inference.infer_shapes(rewritten, check_type=True, strict_mode=True, data_prop=True)
    if kind == "bfloat16":
        return
    random = np.random.default_rng(0)
    feeds = [
        {"input_ids": random.integers(0, 8, (2, width)), "start": np.array(start), "kv_length": np.array([14])}
        for start, width in (([0, 0], 5), ([3, 1], 4))
    ]
    sessions = open_session(model.SerializeToString()), open_session(rewritten.SerializeToString())
    for expected, found in zip(*(windows(session, feeds, np.float16) for session in sessions), strict=True):
        np.testing.assert_allclose(found, expected, atol=4e-3)


@pytest.mark.parametrize("name", ["window.onnx", "window-tree.onnx", "step-scd-match.onnx"])
def test_shipped_graphs_can_be_rewritten_and_keep_their_weights_outside(name):
    model = load_graph(open_bundle("moving").folder / name)
    kept = operators(model)
    rewritten = portable_graph(model, keep=["RotaryEmbedding"])
    found = operators(rewritten)
    assert (found["RotaryEmbedding"], found["ScatterElements"]) == (6, kept["TensorScatter"] + kept["ScatterElements"])
    assert operators(model) == kept
    for part in ("input", "output"):
        assert list(getattr(rewritten.graph, part)) == list(getattr(model.graph, part))
    outside = [tensor for tensor in rewritten.graph.initializer if tensor.data_location]
    assert outside == [tensor for tensor in model.graph.initializer if tensor.data_location]
    shared = [node for node in rewritten.graph.node if node.op_type == "Expand" and node.name.startswith("portable.")]
    assert len(shared) == 1 + ("step" in name)  # the columns of all layers, and those of the ring of noise


@pytest.mark.parametrize(
    "method",
    [
        "ar",
        "scd-match",
        pytest.param("scd-maximal", marks=pytest.mark.long),
        pytest.param("scd-match-warped", marks=pytest.mark.long),
        pytest.param("scd-match-tree", marks=pytest.mark.long),
    ],
)
def test_step_graphs_give_the_same_tokens(method):
    bundle = open_bundle("fashion")
    path = bundle.folder / f"step-{method}.onnx"
    content = portable_graph(load_graph(path)).SerializeToString()
    sessions = open_session(path, 1), open_session(content, 1, beside=bundle.folder)
    tokens = [
        generate(OrtStep(session), [[258]], length=20, window=1 if method == "ar" else 6, seed=1).tokens[0].tolist()
        for session in sessions
    ]
    assert tokens[0] == tokens[1]


def run(node, *inputs, to):
    """What the rewritten node makes of arrays."""
    kinds = [onnx.helper.np_dtype_to_tensor_dtype(values.dtype) for values in inputs]
    declared = [
        onnx.helper.make_tensor_value_info(name, kind, values.shape)
        for name, kind, values in zip(node.input, kinds, inputs, strict=True)
    ]
    made = onnx.helper.make_tensor_value_info("y", onnx.helper.np_dtype_to_tensor_dtype(np.dtype(to)), None)
    graph = onnx.helper.make_graph([node], "one", declared, [made])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 24)], ir_version=10)
    rewritten = portable_graph(model)
    assert [one.op_type for one in rewritten.graph.node] != [node.op_type]
    session = open_session(rewritten.SerializeToString(), 1)
    return session.run(None, dict(zip(node.input, inputs, strict=True)))[0]


NUMBERS = np.array([-np.inf, -3.4e38, -1, 0, 2, 3.4e38, np.inf, np.nan], np.float32)
TRUTH = np.array([[True, True], [False, False]]), np.array([[True, False], [True, False]])


@pytest.mark.parametrize(
    ("kind", "inputs", "expected", "attributes"),
    [
        ("IsNaN", [NUMBERS], np.isnan(NUMBERS), {}),
        ("IsInf", [NUMBERS], np.isinf(NUMBERS), {}),
        ("IsInf", [NUMBERS], np.isposinf(NUMBERS), {"detect_negative": 0}),
        ("IsInf", [NUMBERS], np.isneginf(NUMBERS), {"detect_positive": 0}),
        ("Or", TRUTH, TRUTH[0] | TRUTH[1], {}),
        ("Mod", [np.array([0, 7, 12]), np.array([5])], np.array([0, 2, 2]), {}),
        ("Size", [np.zeros((2, 3, 4), np.float32)], np.array(24), {}),
        ("GatherElements", [TRUTH[0], np.array([[1, 0]])], np.array([[False, True]]), {"axis": 0}),
        ("ReduceMax", [np.array([[3, 9]]), np.array([1])], np.array([9]), {"keepdims": 0}),
        (
            "TensorScatter",
            [np.zeros((1, 3, 2), np.float32), np.ones((1, 2, 2), np.float32), np.array([2])],
            np.array([[[1, 1], [0, 0], [1, 1]]], np.float32),
            {"mode": "circular"},
        ),
    ],
)
def test_an_operator_is_written_in_others_that_do_the_same(kind, inputs, expected, attributes):
    node = onnx.helper.make_node(kind, [f"x{i}" for i in range(len(inputs))], ["y"], name="one", **attributes)
    found = run(node, *inputs, to=expected.dtype)
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("kind", "attribute", "value", "words"),
    [
        ("Attention", "is_causal", 1, "Attention with 4 inputs and the attributes is_causal, scale"),
        ("TensorScatter", "axis", 1, "TensorScatter with axis 1 of 4 axes, mode linear"),
    ],
)
def test_what_the_exporter_does_not_write_is_refused(tmp_path, kind, attribute, value, words):
    write_decoder_graph(toy_gpt(S), toy_weights(toy_gpt(S)), tmp_path / "window.onnx")
    model = load_graph(tmp_path / "window.onnx")
    node = next(node for node in model.graph.node if node.op_type == kind)
    kept = [one for one in node.attribute if one.name != attribute]
    del node.attribute[:]
    node.attribute.extend([*kept, onnx.helper.make_attribute(attribute, value)])
    with pytest.raises(InvalidArgument, match=words):
        portable_graph(model)


def test_a_slot_that_is_not_finite_leaves_those_before_it_alone(tmp_path):
    """Its column is behind the mask of theirs; what lies there must not be NaN, since 0 times NaN is NaN."""
    write_decoder_graph(toy_gpt(S), toy_weights(toy_gpt(S)), tmp_path / "window.onnx")
    model = load_graph(tmp_path / "window.onnx")
    [table] = [tensor for tensor in model.graph.initializer if list(tensor.dims) == [11, 8]]
    values = onnx.numpy_helper.to_array(table).copy()
    values[7] = np.nan
    table.raw_data = values.tobytes()
    session = open_session(portable_graph(model).SerializeToString(), 1)
    feed = {"input_ids": np.array([[1, 2, 7, 3]] * 2), "start": np.array([0, 0]), "kv_length": np.array([8])}
    [logits] = windows(session, [feed])
    assert np.isfinite(logits[:, :2, :8]).all()
    assert np.isnan(logits[:, 2, :8]).all()

"""Quantised graphs rewritten so that nothing of a window is rounded with a scale of the window's own.

The graphs are quantised by ONNX Runtime's own tools. The oracle is the graph before it was quantised, with weights that are
dequantised here, by the formula: it knows nothing of how a graph is rewritten.
"""

import builtins

import numpy as np
import pytest

from coupled_sampling import generate
from coupled_sampling.backends import ConcatenatedProvider
from coupled_sampling.backends.foreign.rewriting import load_graph, raise_accuracy, roundings, serialise
from coupled_sampling.backends.foreign.widening import widen
from coupled_sampling.errors import BundleError, InvalidArgument, MissingDependency, ProviderError
from coupled_sampling.testing.contracts.providers import check_provider
from standins.grown_cache_graphs import HEADS, LENGTH, SIZE, VOCABULARY, Writer, genai, optimum
from standins.quantised_graphs import fused_by_onnxruntime, quantised, with_dequantised_weights

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
quantization = pytest.importorskip("onnxruntime.quantization")

KINDS = {
    "plain": {},
    "columns": {"per_channel": True},
    "unsigned": {"weight_type": quantization.QuantType.QUInt8},
    "unsigned columns": {"per_channel": True, "weight_type": quantization.QuantType.QUInt8},
    "seven bits": {"reduce_range": True},
    "both operands": {"extra_options": {"MatMulConstBOnly": False}},
}


def run(graph, **feeds):
    """The first output of a graph, a path or content."""
    session = onnxruntime.InferenceSession(
        graph if isinstance(graph, bytes) else str(graph), providers=["CPUExecutionProvider"]
    )
    return session.run(None, feeds)[0]


def window_of(width=9, seed=0):
    random = np.random.default_rng(seed)
    feeds = {"input_ids": random.integers(0, VOCABULARY, (2, width)), "attention_mask": np.ones((2, width), np.int64)}
    feeds["position_ids"] = np.arange(width)[None].repeat(2, 0)
    names = [f"past_key_values.{layer}.{part}" for layer in range(2) for part in ("key", "value")]
    return feeds | {name: np.zeros((2, HEADS, 0, SIZE), np.float32) for name in names}


def widened(path):
    model = load_graph(path, "a test")
    count = widen(model)
    onnx.checker.check_model(model)
    assert not roundings(model)
    return serialise(model, path), count


@pytest.mark.parametrize("kind", KINDS)
def test_a_widened_graph_is_the_float_graph_with_the_quantised_weights(tmp_path, kind):
    plain = optimum(tmp_path / "float.onnx")
    path = quantised(plain, tmp_path / "quantised.onnx", **KINDS[kind])
    assert roundings(load_graph(path, "a test"))["DynamicQuantizeLinear"] > 0
    made, count = widened(path)
    expected = with_dequantised_weights(plain, path)
    assert count == (
        13 if kind == "both operands" else 9
    )  # 8 projections and the head; and 2 layers' scores and values
    np.testing.assert_allclose(run(made, **window_of()), run(expected, **window_of()), atol=1e-4)
    # The oracle is no idle one: the quantised graph itself, and the float weights, are further away.
    for other in (path, plain):
        assert np.abs(run(other, **window_of()) - run(expected, **window_of())).max() > 1e-3


@pytest.mark.parametrize("kind", ["plain", "unsigned columns"])
@pytest.mark.parametrize("operator", ["MatMulIntegerToFloat", "DynamicQuantizeMatMul"])
def test_what_onnxruntime_fuses_is_widened_too(tmp_path, kind, operator):
    plain = optimum(tmp_path / "float.onnx")
    path = quantised(plain, tmp_path / "quantised.onnx", **KINDS[kind])
    fused = fused_by_onnxruntime(path, tmp_path / "fused.onnx", operator)
    made, count = widened(fused)
    assert count == 9
    np.testing.assert_allclose(
        run(made, **window_of()), run(with_dequantised_weights(plain, path), **window_of()), atol=1e-4
    )


def product(g, x, weights, zero, out, taken_off="z", kind=onnx.TensorProto.FLOAT, scales=("s", "scale")):
    """x quantised per call, times stored integers less their zero point, as the quantiser writes it."""
    g.op("DynamicQuantizeLinear", x, outputs=["q", "s", "z"])
    g.op("MatMulInteger", "q", weights, taken_off, zero, outputs=["whole"])
    cast = g.op("Cast", "whole", to=kind, outputs=["cast"])
    if kind != onnx.TensorProto.FLOAT:
        cast = g.op("Cast", cast, to=onnx.TensorProto.FLOAT)
    return g.op("Mul", cast, g.op("Mul", *scales, outputs=["both"]), outputs=[out])


def branch(name, make):
    g = Writer(18)
    make(g)
    return onnx.helper.make_graph(
        g.nodes, name, [], [onnx.helper.make_tensor_value_info(f"{name}.y", 1, None)], g.constants
    )


def two_branches():
    """A graph that multiplies by one matrix, or its negative by another; both branches use the same names inside."""
    random, g = np.random.default_rng(0), Writer(18)
    stored = {name: random.integers(-90, 90, (6, 4)).astype(np.int8) for name in ("first", "second")}
    stored |= {"zero": np.array(3, np.int8), "scale": np.array(0.02, np.float32)}
    g.constants += [onnx.numpy_helper.from_array(value, name) for name, value in stored.items()]
    branches = [
        branch(name, lambda inner, name=name, x=x: product(inner, x, name, "zero", f"{name}.y"))
        for name, x in (("first", "x"), ("second", "minus"))
    ]
    g.op("Neg", "x", outputs=["minus"])
    g.op("If", "which", then_branch=branches[0], else_branch=branches[1], outputs=["y"])
    return g, stored


@pytest.mark.parametrize("which", [True, False])
def test_branches_are_widened_with_the_weights_of_the_graph_around_them(tmp_path, which):
    g, stored = two_branches()
    path = g.save(tmp_path / "m.onnx", [("x", 1, ["b", 6]), ("which", 9, [])], [("y", 1, ["b", 4])])
    made, count = widened(path)
    x = np.random.default_rng(1).normal(size=(5, 6)).astype(np.float32)
    weights = 0.02 * (stored["first"] - 3.0 if which else 3.0 - stored["second"])
    np.testing.assert_allclose(run(made, x=x, which=np.array(which)), x @ weights, atol=1e-4)
    assert count == 2


def test_integers_that_are_only_moved_are_followed(tmp_path):
    """As for a head that is tied to the embedding: the stored matrix is transposed, and the window reshaped."""
    random, g = np.random.default_rng(0), Writer(18)
    matrix = random.integers(0, 200, (4, 6)).astype(np.uint8)
    g.constants += [
        onnx.numpy_helper.from_array(value, name) for name, value in (("matrix", matrix), ("scale", np.float32(0.5)))
    ]
    g.op("DynamicQuantizeLinear", "x", outputs=["q", "s", "z"])
    rows = g.op("Reshape", "q", g.constant([-1, 6]))
    g.op(
        "MatMulInteger",
        rows,
        g.op("Transpose", "matrix", perm=[1, 0]),
        "z",
        g.constant(100, np.uint8),
        outputs=["whole"],
    )
    g.op("Mul", g.op("Cast", "whole", to=1), g.op("Mul", "s", "scale"), outputs=["y"])
    made, count = widened(g.save(tmp_path / "m.onnx", [("x", 1, ["b", 2, 6])], [("y", 1, ["n", 4])]))
    x = random.normal(size=(3, 2, 6)).astype(np.float32)
    np.testing.assert_allclose(run(made, x=x), x.reshape(-1, 6) @ (0.5 * (matrix.T - 100.0)), atol=1e-4)
    assert count == 1


@pytest.mark.parametrize("per_channel", [False, True])
def test_convolutions_are_widened(tmp_path, per_channel):
    random, g = np.random.default_rng(0), Writer(18)
    weights = random.normal(size=(3, 2, 5)).astype(np.float32)
    g.constants.append(onnx.numpy_helper.from_array(weights, "w"))
    g.op("Conv", "x", "w", pads=[2, 2], outputs=["y"])
    plain = g.save(tmp_path / "float.onnx", [("x", 1, ["b", 2, "t"])], [("y", 1, ["b", 3, "t"])])
    settings = {"per_channel": per_channel, "weight_type": quantization.QuantType.QUInt8}
    path = quantised(plain, tmp_path / "q.onnx", op_types_to_quantize=["Conv"], **settings)
    made, count = widened(path)
    x = random.normal(size=(1, 2, 9)).astype(np.float32)
    np.testing.assert_allclose(run(made, x=x), run(with_dequantised_weights(plain, path), x=x), atol=1e-4)
    assert count == 1


def given_out(g):
    g.op("Identity", "q", outputs=["seen"])
    return [("seen", 2, None)]


def added_as_integers(g):
    g.op("Add", "whole", g.constant(np.ones(4), np.int32), outputs=["seen"])
    return [("seen", 6, None)]


def one_product(**settings):
    g = Writer(18)
    stored = {"m": np.arange(24).reshape(6, 4).astype(np.int8), "zero": np.array(3, np.int8), "scale": np.float32(0.1)}
    g.constants += [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in stored.items()]
    product(g, "x", "m", "zero", "y", **settings)
    return g


@pytest.mark.parametrize("scales", [("s", "scale"), ("scale", "s")])
def test_onnxruntime_may_write_the_scales_of_a_product_in_either_order(tmp_path, scales):
    path = one_product(scales=scales).save(tmp_path / "m.onnx", [("x", 1, ["b", 6])], [("y", 1, ["b", 4])])
    fused = fused_by_onnxruntime(path, tmp_path / "fused.onnx", "MatMulIntegerToFloat")
    (node,) = (node for node in onnx.load(fused).graph.node if node.op_type == "MatMulIntegerToFloat")
    assert tuple(node.input[2:4]) == scales
    made, count = widened(fused)
    x = np.random.default_rng(1).normal(size=(5, 6)).astype(np.float32)
    np.testing.assert_allclose(run(made, x=x), x @ (0.1 * (np.arange(24).reshape(6, 4) - 3.0)), atol=1e-4)
    assert count == 1


def other_scale(g):
    g.op("DequantizeLinear", "q", "scale", "z", outputs=["seen"])
    return [("seen", 1, None)]


STAY = {
    "given out": ({}, given_out),
    "added as integers": ({}, added_as_integers),
    "dequantised by another scale": ({}, other_scale),
    "their zero point not taken off": ({"taken_off": ""}, lambda g: []),
    "cut off behind the point": ({"kind": onnx.TensorProto.INT64}, lambda g: []),
}


@pytest.mark.parametrize("why", STAY)
def test_integers_that_floats_cannot_stand_for_stay(tmp_path, why):
    """A scale that was set to 1 for one node would be wrong for another; what is no product of floats is left."""
    settings, also = STAY[why]
    g = one_product(**settings)
    path = g.save(tmp_path / "m.onnx", [("x", 1, ["b", 6])], [("y", 1, ["b", 4]), *also(g)])
    model = load_graph(path, "a test")
    assert widen(model) == 0
    assert roundings(model) == {"DynamicQuantizeLinear": 1}
    x = np.random.default_rng(1).normal(size=(5, 6)).astype(np.float32)
    np.testing.assert_array_equal(run(serialise(model, path), x=x), run(path, x=x))


def test_types_that_were_noted_for_integers_are_struck_out(tmp_path):
    path = quantised(optimum(tmp_path / "float.onnx"), tmp_path / "q.onnx")
    onnx.save(onnx.shape_inference.infer_shapes(onnx.load(path)), path)
    assert any(value.type.tensor_type.elem_type == 6 for value in onnx.load(path).graph.value_info)
    made, _ = widened(path)
    assert np.isfinite(run(made, **window_of())).all()


# As a model.


def test_a_quantised_graph_is_refused_with_its_cause_and_decodes_when_it_is_widened(tmp_path):
    plain = optimum(tmp_path / "float.onnx")
    path = quantised(plain, tmp_path / "quantised.onnx")
    many = r"logits differ by .* the cause is DynamicQuantizeLinear \(5 of them\).*add --widen \(in Python widen=True\)"
    with pytest.raises(ProviderError, match=many):
        ConcatenatedProvider.open(path, max_length=LENGTH, threads=1)
    with ConcatenatedProvider.open(path, 3, LENGTH, threads=1, widen=True) as model:
        assert str(model.runs).endswith(", 9 quantised products widened to float32")
        assert model.batching == "padded"
        check_provider(model, tolerance=1e-4)
        prompts, settings = [[1], [2, 3, 4], [5, 6], [7]], {"length": 20, "seed": 3}
        expected = generate(model, prompts, method="ar", **settings).tokens
        found = generate(model, prompts, method="scd-match", window=6, **settings).tokens
        assert [one.tolist() for one in found] == [one.tolist() for one in expected]


def test_floats_that_are_only_rounded_and_back_are_floats_again(tmp_path):
    plain = optimum(tmp_path / "float.onnx")
    path = optimum(tmp_path / "rounded.onnx", activations="quantised per call")
    with ConcatenatedProvider.open(path, max_length=LENGTH, threads=1, widen=True) as model:
        assert model.runs.changes == "1 quantised products widened to float32"
        feeds = window_of()
        found = model.forward(feeds["input_ids"][:1], np.zeros(1, np.int64))
        np.testing.assert_allclose(found, run(plain, **feeds)[:1], atol=1e-5)


def test_weights_stay_in_their_own_file(tmp_path):
    path = quantised(optimum(tmp_path / "float.onnx"), tmp_path / "whole.onnx")
    whole, _ = widened(path)
    (tmp_path / "apart").mkdir()
    apart = tmp_path / "apart" / "model.onnx"
    onnx.save(onnx.load(path), apart, save_as_external_data=True, location="model.onnx_data", size_threshold=100)
    before = {file.name: file.read_bytes() for file in apart.parent.iterdir()}
    with ConcatenatedProvider.open(apart, max_length=LENGTH, threads=1, widen=True) as model:
        feeds = window_of()
        found = model.forward(feeds["input_ids"][:1], np.zeros(1, np.int64))
        np.testing.assert_allclose(found, run(whole, **feeds)[:1], atol=1e-4)
    assert {file.name: file.read_bytes() for file in apart.parent.iterdir()} == before
    (apart.parent / "model.onnx_data").unlink()
    with pytest.raises(BundleError, match=r"model\.onnx_data.*beside the graph"):
        ConcatenatedProvider.open(apart, max_length=LENGTH, widen=True)


def test_there_must_be_something_to_widen(tmp_path):
    with pytest.raises(InvalidArgument, match=r"widen is True, but .*no activations that are quantised per call"):
        ConcatenatedProvider.open(optimum(tmp_path / "float.onnx"), max_length=LENGTH, widen=True)


def with_accuracy(path, level):
    model = onnx.load(genai(path, four_bits=True))
    for node in model.graph.node:
        if node.op_type == "MatMulNBits":
            node.attribute.append(onnx.helper.make_attribute("accuracy_level", level))
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("level", [0, 1, 2, 3, 4])
def test_products_of_few_bits_compute_with_float32(tmp_path, level):
    model = onnx.load(with_accuracy(tmp_path / "model.onnx", level))
    count = sum(node.op_type == "MatMulNBits" for node in model.graph.node)
    assert raise_accuracy(model) == ({} if level < 2 else {level: count})
    levels = {a.i for node in model.graph.node for a in node.attribute if a.name == "accuracy_level"}
    assert levels == {min(level, 1)}


def test_that_the_accuracy_was_raised_is_said(tmp_path):
    opened = {
        level: ConcatenatedProvider.open(with_accuracy(tmp_path / f"{level}.onnx", level), max_length=LENGTH, threads=1)
        for level in (1, 4)
    }
    assert opened[1].runs.changes == ""
    assert opened[4].runs.changes == "9 MatMulNBits at accuracy level 1 instead of 4"
    tokens, start = np.arange(8)[None] % VOCABULARY, np.zeros(1, np.int64)
    found = [model.forward(tokens, start).copy() for model in opened.values()]
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize(("kind", "widening"), [("quantised", True), ("accuracy", False)])
def test_without_onnx_it_is_said_what_to_install(tmp_path, monkeypatch, kind, widening):
    path = tmp_path / "model.onnx"
    if kind == "accuracy":
        with_accuracy(path, 4)
    else:
        quantised(optimum(tmp_path / "float.onnx"), path)
    _without_onnx(monkeypatch)
    with pytest.raises(MissingDependency, match=r"pip install 'coupled-sampling\[export\]'"):
        ConcatenatedProvider.open(path, max_length=LENGTH, widen=widening)


def test_without_onnx_the_cause_is_named_all_the_same(tmp_path, monkeypatch):
    path = quantised(optimum(tmp_path / "float.onnx"), tmp_path / "model.onnx")
    _without_onnx(monkeypatch)
    with pytest.raises(ProviderError, match=r"DynamicQuantizeLinear \(some of them\).*--widen"):
        ConcatenatedProvider.open(path, max_length=LENGTH)


def _without_onnx(monkeypatch):
    real = builtins.__import__

    def missing(name, *arguments, **keywords):
        if name == "onnx":
            raise ImportError(name)
        return real(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", missing)


def test_names_that_are_no_text_are_one_line(tmp_path, capfd):
    path = quantised(optimum(tmp_path / "float.onnx"), tmp_path / "model.onnx")
    content = path.read_bytes()
    name = next(
        node.input[0] for node in onnx.load(path).graph.node if node.op_type == "DynamicQuantizeLinear"
    ).encode()
    for text, message in ((name, "has names that are no text"), (b"Tanh", "cannot load")):
        path.write_bytes(content.replace(text, b"\xff" * len(text)))
        with pytest.raises(BundleError, match=message):
            ConcatenatedProvider.open(path, max_length=LENGTH, widen=True)
    path.write_bytes(content.replace(b"total", b"\xff" * 5))  # the name of an axis
    with pytest.raises(BundleError, match="has names that are no text"):
        ConcatenatedProvider.open(path, max_length=LENGTH, widen=True)
    assert capfd.readouterr().out == ""  # ONNX Runtime would print the second there, and try it once more


def test_a_damaged_file_is_one_line(tmp_path):
    path = quantised(optimum(tmp_path / "float.onnx"), tmp_path / "model.onnx")
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(BundleError, match=r"model\.onnx cannot be read as ONNX"):
        ConcatenatedProvider.open(path, max_length=LENGTH, widen=True)


@pytest.mark.parametrize("kind", ["DynamicQuantizeLinear", "MatMulInteger", "Reshape"])
def test_nodes_that_lack_inputs_or_outputs_are_refused(tmp_path, kind):
    g = Writer(18)
    g.constants.append(onnx.numpy_helper.from_array(np.ones((6, 4), np.int8), "m"))
    g.op("DynamicQuantizeLinear", "x", outputs=["q"] if kind == "DynamicQuantizeLinear" else ["q", "s", "z"])
    g.op(
        "MatMulInteger", g.op("Reshape", *["q"][kind == "Reshape" :]), *["m"][kind == "MatMulInteger" :], outputs=["y"]
    )
    path = g.save(tmp_path / "m.onnx", [("x", 1, ["b", 6])], [("y", 1, None)])
    with pytest.raises(BundleError, match=f"is a {kind} of . inputs and . outputs: the graph is damaged"):
        widen(load_graph(path, "a test"))


def test_a_graph_that_goes_round_is_left(tmp_path):
    g = Writer(18)
    g.constants.append(onnx.numpy_helper.from_array(np.ones((6, 4), np.int8), "m"))
    g.op("DynamicQuantizeLinear", "x", outputs=["q", "s", "z"])
    g.op("Identity", "a", outputs=["b"])
    g.op("Identity", "b", outputs=["a"])
    g.op("MatMulInteger", "q", "a", "z", outputs=["whole"])
    g.op("Cast", "whole", to=1, outputs=["y"])
    path = g.save(tmp_path / "m.onnx", [("x", 1, ["b", 6])], [("y", 1, None)])
    with pytest.raises(BundleError, match="ONNX Runtime cannot load"):
        ConcatenatedProvider.open(path, max_length=LENGTH, widen=True)

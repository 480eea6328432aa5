"""What the OpenVINO back end refuses: graphs that its attention would get wrong, bundles of other kinds, wrong settings.

Skipped where OpenVINO is not installed: ``make test-openvino`` installs it.
"""

import dataclasses

import numpy as np
import pytest

from coupled_sampling.backends import Place, open_model
from coupled_sampling.bundles.opening import open_bundle
from coupled_sampling.errors import BundleError, InvalidArgument, MissingDependency
from standins.toy_bundles import toy_gpt, write_toy_bundle

openvino = pytest.importorskip("openvino", reason="openvino is not installed: make test-openvino installs it")
onnx = pytest.importorskip("onnx")

from coupled_sampling.backends.openvino import OpenVinoProvider  # noqa: E402 - it is skipped without openvino

LENGTH = 80
GPT = toy_gpt(LENGTH)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_toy_bundle(tmp_path_factory.mktemp("openvino-refusals") / "toy", GPT, max_window=70)


def test_an_openvino_whose_attention_takes_other_inputs_is_named(folder, monkeypatch):
    whole = openvino.op._PagedAttentionExtension
    monkeypatch.setattr(openvino.op, "_PagedAttentionExtension", lambda inputs: whole(inputs[:25]))
    with pytest.raises(MissingDependency, match=r"(?s)another attention over blocks than 2026\.4.*28"):
        OpenVinoProvider.open(folder, threads=1)


@pytest.mark.parametrize("batch_size", [0, -1, 1.5, True])
def test_a_batch_size_that_cannot_be_is_refused(folder, batch_size):
    with pytest.raises(InvalidArgument, match="batch_size is"):
        OpenVinoProvider.open(folder, batch_size=batch_size)


def test_a_graph_that_is_no_graph_is_a_bundle_error(folder, tmp_path):
    (tmp_path / "window.onnx").write_bytes(b"not a graph")
    with pytest.raises(BundleError, match=r"cannot read .*window\.onnx"):
        OpenVinoProvider.open(dataclasses.replace(open_bundle(folder), folder=tmp_path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": 3}, r"'past_key_values\.2\.key' is missing"),
        ({"layers": 1}, r"'past_key_values\.1\.key' is .*promises none of that name"),
        ({"head_size": 5}, r"'past_key_values\.0\.key' is .*80, 4\).*80, 5\)"),
        ({"has_kv_length": False}, "'kv_length' is .*none of that name"),
        ({"dtype": "float16"}, "dtype is 'float16', expected 'float32' on OpenVINO"),
    ],
)
def test_a_graph_that_is_not_what_the_manifest_promises_is_refused(folder, change, message):
    bundle = open_bundle(folder)
    graph = dataclasses.replace(bundle.manifest.window_graph, **change)
    manifest = dataclasses.replace(bundle.manifest, window_graph=graph)
    with pytest.raises(BundleError, match=message):
        OpenVinoProvider.open(dataclasses.replace(bundle, manifest=manifest))


def test_a_bundle_that_computes_in_float16_is_refused_before_it_is_opened(folder):
    bundle = open_bundle(folder)
    graph = dataclasses.replace(bundle.manifest.window_graph, dtype="float16")
    with pytest.raises(InvalidArgument, match="dtype is 'float16', expected 'float32' on OpenVINO"):
        open_model(
            dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, window_graph=graph)),
            Place("openvino"),
        )


def not_causal(model):
    """Slots see no column of their own."""
    (node,) = [node for node in model.graph.node if node.op_type == "LessOrEqual" and "columns" not in node.input[1]][
        :1
    ]
    node.op_type = "Less"


def by_token(model):
    """A slot of one token sees nothing: no window of other tokens shows it."""
    nodes, five = [], onnx.numpy_helper.from_array(np.array(5), "five")
    model.graph.initializer.append(five)
    asked = (("Equal", ["input_ids", "five"], "is"), ("Not", ["is"], "other"), ("Unsqueeze", ["other", "axes"], "open"))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1, 3]), "axes"))
    nodes += [onnx.helper.make_node(kind, inputs, [output]) for kind, inputs, output in asked]
    for node in model.graph.node:
        if node.op_type == "Attention":
            nodes.append(onnx.helper.make_node("And", [node.input[3], "open"], [f"{node.output[0]}.mask"]))
            node.input[3] = nodes[-1].output[0]
        nodes.append(node)
    made = onnx.GraphProto(node=nodes)
    del model.graph.node[:]
    model.graph.node.extend(made.node)


def with_softcap(model):
    for node in model.graph.node:
        if node.op_type == "Attention":
            del node.attribute[:]
            node.attribute.append(onnx.helper.make_attribute("softcap", 2.0))


def without_mask(model):
    for node in model.graph.node:
        if node.op_type == "Attention":
            del node.input[3:]


def over_the_window_alone(model):
    """Keys are not read from the cache."""
    updates = {node.output[0]: node.input[1] for node in model.graph.node if node.op_type == "TensorScatter"}
    slices = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "Slice"}
    for node in model.graph.node:
        if node.op_type == "Attention":
            node.input[1] = updates[slices[node.input[1]]]


def from_the_second_column(model):
    """The first position is forgotten."""
    one = onnx.numpy_helper.from_array(np.ones(1, np.int64), "one")
    model.graph.initializer.append(one)
    for node in model.graph.node:
        if node.op_type == "Slice" and node.input[0].startswith("present."):
            node.input[1] = one.name


def around_the_end(model):
    for node in model.graph.node:
        if node.op_type == "TensorScatter":
            del node.attribute[:]
            node.attribute.append(onnx.helper.make_attribute("mode", "circular"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (not_causal, "a mask lets slots attend to other columns than the last so many up to their own"),
        (by_token, "a mask depends on what the tokens are"),
        (with_softcap, r"an Attention has 4 inputs and \{'softcap': 2.0\}"),
        (without_mask, "an Attention has 3 inputs and no attributes"),
        (from_the_second_column, "something else than the first kv_length columns of a cache"),
        (over_the_window_alone, "something else than the first kv_length columns of a cache"),
        (around_the_end, "TensorScatter along axis -2 or around the end"),
    ],
)
def test_a_graph_that_attention_over_blocks_would_get_wrong_is_refused(tmp_path, change, message):
    folder = write_toy_bundle(tmp_path / "toy", GPT, max_window=70, change=change)
    with pytest.raises(BundleError, match=message):
        OpenVinoProvider.open(folder, threads=1)

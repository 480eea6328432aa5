"""The real plugins, where they are installed (``make test-plugins``): logits, the conformance suite and tokens against the CPU's.

WebGPU's runs on a GPU, or on a Vulkan driver in software; OpenVINO's on a CPU, Intel's or not (`standins.plugin_devices`).
"""

import importlib.metadata
import json
import os

import numpy as np
import pytest

from coupled_sampling import generate
from coupled_sampling.backends import Place, open_model
from coupled_sampling.backends.ort.plugin_session import open_plugin_session
from coupled_sampling.backends.ort.plugins import PLUGINS
from coupled_sampling.errors import ProviderError
from coupled_sampling.export import Storage, add_step_graphs
from coupled_sampling.testing import check_provider
from standins.plugin_devices import why_not
from standins.plugin_placement import RECORD, placement
from standins.toy_bundles import toy_gpt, write_toy_bundle
from standins.trt_bundles import write_bundle

AGAIN = "write the record again: python tests/standins/plugin_placement.py"


@pytest.fixture(scope="module", params=["webgpu", "openvino", "nv-tensorrt-rtx"])
def plugin(request):
    reason = why_not(request.param)
    if reason is not None:
        pytest.skip(reason)
    return request.param


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plugins")
    write_toy_bundle(folder / "toy", toy_gpt(24), max_window=8)
    return add_step_graphs(folder / "toy", folder / "steps", ["ar", "scd-match"])


def place(plugin):
    return Place("ort", provider=plugin)


@pytest.mark.parametrize("rows", [1, 2])
def test_logits_are_those_of_the_cpu(plugin, bundle, rows):
    random = np.random.default_rng(0)
    with open_model(bundle, place(plugin), rows) as model, open_model(bundle, rows=rows) as reference:
        assert model.runs.execution_provider != "CPUExecutionProvider"
        for start, width in ((0, 3), (3, 5), (5, 1), (4, 6), (10, 3)):
            window, at = random.integers(0, 8, (rows, width)), np.arange(rows) + start
            expected, found = reference.forward(window, at), np.asarray(model.forward(window, at))
            np.testing.assert_allclose(found, expected, atol=1e-5)


def test_it_keeps_the_contract(plugin, bundle):
    with open_model(bundle, place(plugin), rows=1 if plugin == "webgpu" else 2) as model:
        check_provider(model, length=16, tolerance=1e-4)


@pytest.mark.parametrize("step", ["host", "graph"])
@pytest.mark.parametrize("method", ["ar", "scd-match"])
def test_tokens_are_those_of_the_cpu(plugin, bundle, step, method):
    if step == "graph" and not PLUGINS[plugin].steps:
        pytest.skip(f"{plugin} decides no steps in graphs")
    settings = {"length": 20, "window": 4, "seed": 5}
    with open_model(bundle, method="ar") as reference:
        expected = generate(reference, [[8]], **settings).tokens[0]
    with open_model(bundle, place(plugin), method=method, step=step) as model:
        assert model.runs.step == step
        np.testing.assert_array_equal(generate(model, [[8]], **settings).tokens[0], expected)


def test_trees_run_too(plugin, bundle):
    window, parents = np.array([[8, 1, 2, 3]]), np.array([[-1, 0, 0, 2]])
    with open_model(bundle, place(plugin), trees=True) as model, open_model(bundle, trees=True) as reference:
        arguments = window, np.array([0]), parents, range(1)
        np.testing.assert_allclose(model.forward_tree(*arguments), reference.forward_tree(*arguments), atol=1e-5)


def test_a_whole_picture_of_openvino_is_that_of_the_cpu(plugin):
    if plugin != "openvino":
        pytest.skip("minutes on a GPU in software")
    found = []
    for where in (Place(), place(plugin)):
        with open_model("fashion", where, method="scd-match", step="host") as model:
            found.append(generate(model, [[258]], length=196, seed=2).tokens[0])
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_half_precision_runs_on_openvino(plugin, tmp_path, kind):
    if plugin != "openvino":
        pytest.skip("see the test below")
    folder = write_bundle(tmp_path / kind, steps=["scd-match"], storage=Storage(kind, kind))
    settings = {"length": 20, "window": 5, "drafting": "repeat", "seed": 1}
    window, start = np.array([[8, 1, 2, 3]]), np.array([0])
    with open_model(folder, place(plugin)) as model, open_model(write_bundle(tmp_path / "wide")) as reference:
        found, exact = (one.forward(window, start)[..., :8] for one in (model, reference))
        assert 1e-5 < np.abs(found - exact).max() < {"float16": 4e-3, "bfloat16": 0.05}[kind]
        expected = generate(model, [[8]], method="ar", length=20, seed=1).tokens[0]
    for step, rows in (("host", 1), ("host", 2), ("graph", 1)):
        with open_model(folder, place(plugin), rows, method="scd-match", step=step) as model:
            np.testing.assert_array_equal(generate(model, [[8]], **settings).tokens[0], expected)


@pytest.mark.parametrize(
    ("kind", "said"), [("float16", r"no shaders \(shader-f16\)"), ("bfloat16", "has a kernel for a node")]
)
def test_half_precision_is_refused_by_a_gpu_in_software(plugin, tmp_path, kind, said):
    if plugin != "webgpu" or "VK_ICD_FILENAMES" not in os.environ:
        pytest.skip("a real GPU may have it")
    folder = write_bundle(tmp_path / kind, storage=Storage(kind, kind))
    with pytest.raises(ProviderError, match=said):
        open_model(folder, place(plugin)).forward(np.array([[8]]), np.array([0]))


def test_the_record_is_what_the_plugin_does(plugin):
    version = importlib.metadata.version(PLUGINS[plugin].package)
    known = json.loads(RECORD.read_text()).get(plugin, {})
    if known.get("version") != version:
        pytest.skip(f"the record is of version {known.get('version')}, installed is {version}: {AGAIN}")
    assert {"version": version, **placement(plugin)[1]} == known, AGAIN


@pytest.mark.parametrize(("kind", "expected"), [("IsNaN", np.isnan), ("IsInf", np.isinf)])
def test_numbers_that_are_none_are_noticed(plugin, tmp_path, kind, expected):
    onnx = pytest.importorskip("onnx")
    nodes = [onnx.helper.make_node(kind, ["x"], ["b"], name="one"), onnx.helper.make_node("Cast", ["b"], ["y"], to=1)]
    ends = [[onnx.helper.make_tensor_value_info(name, 1, [8])] for name in "xy"]
    graph = onnx.helper.make_graph(nodes, "one", *ends)
    opset = onnx.helper.make_opsetid("", 24)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=10), tmp_path / "one.onnx")
    opened = open_plugin_session(tmp_path / "one.onnx", PLUGINS[plugin])
    assert not opened.on_cpu
    values = np.array([-np.inf, -3.4e38, -1, 0, 2, 3.4e38, np.inf, np.nan], np.float32)
    np.testing.assert_array_equal(opened.session.run(None, {"x": values})[0], expected(values))

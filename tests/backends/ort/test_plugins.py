"""The back end ``ort``: which device of a plugin is picked, what is refused, and how memory is bound. The plugin is a stand-in;
real ones are in ``test_real_plugins.py``."""

import sys

import numpy as np
import pytest

from coupled_sampling import generate, open_bundle
from coupled_sampling.backends import Place, check_model, open_model
from coupled_sampling.backends.ort import plugins
from coupled_sampling.errors import InvalidArgument, MissingDependency, ProviderError
from standins import fake_plugins
from standins.fake_plugins import PROVIDER, FakePlugins, hardware, plugin_module
from standins.toy_bundles import toy_gpt, write_toy_bundle

WEBGPU, OPENVINO, RTX = (Place("ort", provider=name) for name in ("webgpu", "openvino", "nv-tensorrt-rtx"))
SETTINGS = {"length": 14, "window": 4, "seed": 3}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plugins")
    return write_toy_bundle(folder, toy_gpt(16), max_window=8)


@pytest.fixture
def machine(monkeypatch):
    """Makes an ``onnxruntime`` with plugins of it."""

    def make(*arguments, **settings):
        runtime = FakePlugins(*arguments, **settings)
        monkeypatch.setattr(plugins, "require_onnxruntime", lambda install: runtime)
        for plugin in plugins.PLUGINS.values():
            monkeypatch.setitem(sys.modules, plugin.module, plugin_module())
        return runtime

    return make


def tokens(bundle, place, method, **settings):
    with open_model(bundle, place, method=method, **settings) as step:
        return generate(step, [[258]], **SETTINGS).tokens[0].tolist()


def compare(model, bundle):
    """Logits of a model against those of the CPU, where rows are written again and forwarded alone."""
    random, rows = np.random.default_rng(0), model.batch_size
    with open_model(bundle, rows=rows) as reference:
        for start, width in ((0, 3), (3, 5), (5, 1), (4, 6)):
            window, at = random.integers(0, 8, (rows, width)), np.full(rows, start)
            np.testing.assert_allclose(model.forward(window, at), reference.forward(window, at), atol=1e-5)
        last = range(rows - 1, rows)
        alone = random.integers(0, 8, (1, 2)), np.array([9]), last
        np.testing.assert_allclose(model.forward_rows(*alone), reference.forward_rows(*alone), atol=1e-5)


def test_a_place_names_its_plugin():
    with pytest.raises(InvalidArgument, match="provider is None, expected one of webgpu, openvino, nv-tensorrt-rtx"):
        Place("ort")
    with pytest.raises(InvalidArgument, match="provider is 'cuda', expected one of webgpu"):
        Place("ort", provider="cuda")
    with pytest.raises(
        InvalidArgument,
        match="provider is 'webgpu', but backend 'cpu' has no plugins; leave it out, or choose one of ort",
    ):
        Place("cpu", provider="webgpu")


@pytest.mark.parametrize("place", [WEBGPU, OPENVINO, RTX])
def test_a_model_runs_with_its_caches_where_they_can_be(bundle, machine, place):
    runtime = machine()
    with open_model(bundle, place) as model:
        on_device = place.provider == "webgpu"
        caches = "on the device" if on_device else "on the host"
        assert str(model.runs) == f"on {PROVIDER} (GPU 0), step: host, operators replaced, caches {caches}"
        assert (len(runtime.memory) == 4) == on_device
        compare(model, bundle)
    [options] = runtime.opened
    assert options.added[0][0][0].device.device_id == 3


def test_rows_share_memory_of_the_host(bundle, machine):
    runtime = machine()
    with open_model(bundle, WEBGPU, rows=3) as model:
        compare(model, bundle)
    assert not runtime.memory


@pytest.mark.parametrize("place", [WEBGPU, OPENVINO])
def test_tokens_are_those_of_the_cpu(machine, place):
    machine()
    fashion = open_bundle("fashion")
    expected = tokens(fashion, Place(), "ar")
    assert tokens(fashion, place, "scd-match", step="graph") == expected
    assert tokens(fashion, place, "scd-match") == expected


def test_a_library_is_loaded_once(bundle, machine):
    runtime = machine()
    for _ in range(2):
        open_model(bundle, WEBGPU).close()
    assert runtime.registered == [("coupled-sampling.webgpu", "/there/plugin.so")]


def test_devices_are_numbered_and_virtual_ones_are_none(bundle, machine):
    devices = hardware("GPU", "Maker", 1, is_virtual="1"), hardware("GPU", "Maker", 2), hardware("NPU", "", 5)
    runtime = machine(devices)
    open_model(bundle, Place("ort", provider="webgpu", device=1)).close()
    assert runtime.opened[0].added[0][0][0].device is devices[2]
    words = r"device is 2, but provider 'webgpu' has these devices: 0: GPU \(Maker, 0x0002\); 1: NPU \(vendor 0x0007, 0x0005\)"
    with pytest.raises(InvalidArgument, match=words):
        open_model(bundle, Place("ort", provider="webgpu", device=2))
    runtime = machine(devices)
    runtime.registered.append(("webgpu.virtual", "/there/plugin.so"))  # by somebody else, for devices that compile only
    runtime.devices = devices[:1]
    with pytest.raises(ProviderError, match="finds no device"):
        open_model(bundle, WEBGPU)
    assert [name for name, _ in runtime.registered] == ["webgpu.virtual", "coupled-sampling.webgpu"]
    machine(devices[:1])
    with pytest.raises(
        ProviderError, match=r"finds no device it can use; ONNX Runtime sees CPU \(Maker, 0x0000\).*needs a GPU"
    ):
        open_model(bundle, WEBGPU)


def test_a_processor_has_no_number(bundle, machine):
    machine([hardware("CPU", "Maker")])
    with open_model(bundle, OPENVINO) as model:
        assert model.runs.device is None


def test_what_is_missing_is_named(bundle, machine, monkeypatch):
    runtime = machine()
    monkeypatch.setitem(sys.modules, "onnxruntime_ep_webgpu", None)
    with pytest.raises(
        MissingDependency, match=r"package onnxruntime-ep-webgpu.*pip install 'coupled-sampling\[webgpu\]'"
    ):
        open_model(bundle, WEBGPU)
    monkeypatch.setattr(runtime, "__version__", "1.31.9", raising=False)
    with pytest.raises(MissingDependency, match=r"onnxruntime is 1.31.9, expected 1.32 or more.*\[openvino-plugin\]"):
        open_model(bundle, OPENVINO)


def test_what_fails_is_told(bundle, machine):
    machine(loads="libcuda.so.1: no such file")
    with pytest.raises(ProviderError, match=r"cannot load the library of onnxruntime-ep-nv.*libcuda.*`nvidia-smi`"):
        open_model(bundle, RTX)
    machine(fails="no adapter")
    with pytest.raises(ProviderError, match=r"provider 'webgpu' cannot open .*window.onnx: no adapter.*Vulkan"):
        open_model(bundle, WEBGPU)


def test_what_a_device_lacks_for_half_precision_is_said_with_what_to_do(bundle, machine, monkeypatch):
    """What ONNX Runtime says of bfloat16 where nobody has a kernel, and WebGPU's plugin of float16 in its first run."""
    machine(fails="memcpy.cc:253 was false. Provider type for Add node with name 'Add.11' is not set.")
    with pytest.raises(
        ProviderError, match=r"neither provider 'webgpu' nor the CPU has a kernel.*Add \('Add.11'\).*--compute"
    ):
        open_model(bundle, WEBGPU)

    def run(session, binding):
        raise RuntimeError("Program Gather requires f16 but the device does not support it.")

    monkeypatch.setattr(fake_plugins.Session, "run_with_iobinding", run)
    machine()
    for rows in (1, 2):
        with (
            open_model(bundle, WEBGPU, rows) as model,
            pytest.raises(ProviderError, match=r"no shaders.*--dtype float32"),
        ):
            model.forward(np.array([[1]] * rows), np.zeros(rows, np.int64))


def test_nodes_on_the_cpu_are_refused_but_for_arithmetic_on_shapes(bundle, machine):
    machine(on_cpu=("Shape", "Slice", "Softmax"))
    with pytest.raises(
        ProviderError, match=r"no kernel for 2 nodes of .*: Softmax \(2\); install a newer onnxruntime-ep"
    ):
        open_model(bundle, WEBGPU)


def test_a_plugin_that_takes_nothing_is_refused(bundle, machine):
    machine(on_cpu=_Everything())
    with pytest.raises(ProviderError, match="takes no node of"):
        open_model(bundle, WEBGPU)


class _Everything:
    def __contains__(self, operator):
        return True


@pytest.mark.parametrize(
    ("place", "method", "settings", "words"),
    [
        (WEBGPU, "scd-maximal", {}, "that of scd-maximal needs float64, plugins run those of ar and scd-match"),
        (WEBGPU, "scd-match", {"warped": True}, "plugins run plain ones only, and warped is given"),
        (RTX, "scd-match", {}, "provider 'nv-tensorrt-rtx' was tried with none"),
    ],
)
def test_step_graphs_that_need_what_plugins_lack_are_refused(place, method, settings, words):
    with pytest.raises(InvalidArgument, match=words):
        check_model("fashion", place, method=method, step="graph", **settings)
    assert check_model("fashion", place, method=method, **settings) == "host"


def test_the_library_decides_unless_it_is_told_otherwise():
    fashion = open_bundle("fashion")
    assert check_model(fashion, WEBGPU, method="scd-match", trees=True) == "host"
    assert check_model(fashion, WEBGPU, method="scd-match", step="graph") == "graph"


def test_openvino_computes_in_float32(bundle, machine):
    runtime = machine()
    open_model(bundle, Place("ort", provider="openvino", threads=2)).close()
    [(_, options)] = runtime.opened[0].added
    assert '"INFERENCE_PRECISION_HINT": "f32"' in options["load_config"]
    assert '"INFERENCE_NUM_THREADS": 2' in options["load_config"]

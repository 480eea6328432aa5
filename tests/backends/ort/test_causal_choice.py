"""Which writing of the window graph the back end ``cuda`` runs, on a stand-in for the package that computes on the CPU.

The graph without masks is taken where its logits are those of the one with masks; else that one is, whatever is wrong.
Nothing ran on a GPU.
"""

import dataclasses
import re

import numpy as np
import pytest

from coupled_sampling import generate
from coupled_sampling.backends import OrtProvider, Place, open_model
from coupled_sampling.backends.cuda.pointers import DevicePointer
from coupled_sampling.backends.ort import causal_choice, cuda_session
from coupled_sampling.backends.ort.causal_choice import skips_empty_columns
from coupled_sampling.backends.ort.provider import graph_path
from coupled_sampling.backends.ort.session import open_session
from coupled_sampling.backends.window_tensors import causal_window_graph
from coupled_sampling.bundles.manifest_file import file_record, write_manifest
from coupled_sampling.bundles.opening import embedded_names, open_bundle
from coupled_sampling.contracts import Runs
from coupled_sampling.errors import BundleError
from coupled_sampling.export import Storage
from coupled_sampling.export.step_bundle import write_other_writings
from standins.causal_windows import upper_left
from standins.fake_onnxruntime import CUDA, FakeRuntime, Session
from standins.on_a_gpu import opened
from standins.on_cuda import cuda_provider
from standins.toy_bundles import toy_gpt, write_toy_bundle
from standins.tree_windows import TreeRun

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

POSITIONS = 40
SIZES = {"heads of 4": {}, "grouped heads": {"head_size": 8, "kv_heads": 1}}


def write(path, change=None, storage=None, **changes):
    """A toy with its other writings; ``change`` may spoil the one without masks."""
    write_toy_bundle(path, toy_gpt(POSITIONS, **changes), max_window=POSITIONS, storage=storage)
    manifest = write_other_writings(path, open_bundle(path).manifest)
    if change is not None:
        graph = path / manifest.causal_graph.file
        model = onnx.load(graph, load_external_data=False)
        change(model)
        onnx.save(model, graph)
        files = {**manifest.files, graph.name: file_record(graph)}
        write_manifest(path, dataclasses.replace(manifest, files=files))
    return open_bundle(path)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return write(tmp_path_factory.mktemp("causal") / "toy", head_size=8)


@pytest.fixture
def runtime(monkeypatch):
    """A GPU with ``onnxruntime``, on which nothing was compared yet."""
    fake = FakeRuntime()
    monkeypatch.setattr(cuda_session, "require_onnxruntime", lambda install: fake)
    monkeypatch.setattr(causal_choice, "_FOUND", {})
    return fake


def inputs_of(session):
    return {value.name for value in session.get_inputs()}


def tokens_of(provider):
    settings = {"length": 24, "method": "scd-match", "window": 6, "drafting": "repeat", "seed": 1}
    return [row.tolist() for row in generate(provider, [[8], [3, 1]], **settings).tokens]


def test_the_graph_without_masks_runs_where_its_logits_are_right(bundle, runtime):
    with cuda_provider(bundle, 2) as provider:
        assert provider.runs.window_graph == "causal"
        assert "kv_length" not in inputs_of(runtime.sessions[-1])
        assert tokens_of(provider) == tokens_of(OrtProvider.open(bundle, 2, threads=1))
    assert ["kv_length" in inputs_of(session) for session in runtime.sessions] == [True, False, False]


@pytest.mark.parametrize("kind", [pytest.param("float16", marks=pytest.mark.long), "bfloat16"])
def test_in_half_precision_it_runs_with_grouped_heads_too(tmp_path, runtime, kind):
    """Captured as well; the graph without masks, the one with masks and that for trees give the same tokens."""
    made = write(tmp_path / "half", storage=Storage(kind, kind), head_size=8, kv_heads=1)
    found = []
    for settings in ({}, {"cuda_graphs": True}, {"cuda_graphs": True, "column_buckets": (32,)}, {"trees": True}):
        with cuda_provider(made, 2, **settings) as provider:
            masked = "trees" in settings or "column_buckets" in settings
            assert provider.runs.window_graph == ("" if masked else "causal")
            found.append(tokens_of(provider))
    assert found == found[:1] * 4


def test_what_was_compared_is_not_compared_again(bundle, runtime):
    for sessions in (3, 4):
        cuda_provider(bundle).close()
        assert len(runtime.sessions) == sessions
    cuda_provider(bundle, cuda_graphs=True).close()  # what is captured is
    assert len(runtime.sessions) == 7
    runtime.__version__ = "1.32.0"  # another version is
    cuda_provider(bundle).close()
    assert len(runtime.sessions) == 10


def test_nothing_of_the_comparison_stays_on_the_gpu(bundle, runtime):
    cuda_provider(bundle, 2).close()
    assert runtime.memory == {}


def test_a_captured_graph_belongs_to_rows_and_slots_alone(bundle, runtime):
    with cuda_provider(bundle, 2, cuda_graphs=True) as provider:
        assert provider.runs.window_graph == "causal"
        assert tokens_of(provider) == tokens_of(OrtProvider.open(bundle, 2, threads=1))
        assert provider.binding.captured
        assert {columns for _, _, columns in provider.binding.captured} == {0}


def test_logits_stay_on_the_device_but_for_the_comparison(bundle, runtime):
    with cuda_provider(bundle, on_device=True) as provider:
        assert provider.runs.window_graph == "causal"
        assert isinstance(provider.forward(np.array([[1]]), np.array([0])), DevicePointer)


def not_a_graph_of_it(model):
    model.graph.input[0].name = "tokens"
    for node in model.graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = "tokens" if name == "input_ids" else name


def not_finite(model):
    last = next(node for node in model.graph.node if "logits" in node.output)
    last.output[0] = "right"
    model.graph.node.append(onnx.helper.make_node("Log", ["right"], ["logits"], name="log"))


WRONG = {
    "every window from the first column": (upper_left, "logits are off by"),
    "logits that are not finite": (not_finite, "logits are off by inf"),
    "another interface": (not_a_graph_of_it, "cannot be run to compare them: .*'input_ids'"),
}


@pytest.mark.parametrize("name", WRONG)
def test_whatever_is_wrong_with_it_the_graph_with_masks_runs(tmp_path, runtime, name):
    change, said = WRONG[name]
    wrong = write(tmp_path / "wrong", change, head_size=8)
    with cuda_provider(wrong, 2) as provider:
        assert provider.runs.window_graph.startswith("masked, the causal one")
        assert re.search(said, provider.runs.window_graph)
        assert "kv_length" in inputs_of(runtime.sessions[-1])
    assert runtime.memory == {}
    cuda_provider(wrong).close()
    assert len(runtime.sessions) == 4, "known by now"


def test_a_comparison_that_finds_no_memory_stops_nobody(bundle, runtime, monkeypatch):
    """It runs two rows, where one may be asked for, whose caches are half as large."""
    right = Session.compute

    def scarce(session, binding):
        if len(binding.inputs["start"]) > 1:
            raise RuntimeError("Failed to allocate memory for requested buffer")
        return right(session, binding)

    monkeypatch.setattr(Session, "compute", scarce)
    with cuda_provider(bundle) as provider:
        assert provider.runs.window_graph.startswith(
            "masked, the masked one cannot be run to compare them: ONNX Runtime failed"
        )
        assert provider.forward(np.array([[1]]), np.array([0])).shape == (1, 1, provider.vocab_size)


WRONGLY = {
    "windows of several slots": lambda slots, start: slots > 1 and start.any(),
    "windows of one slot": lambda slots, start: slots == 1,
    "rows that do not begin together": lambda slots, start: slots > 1 and start[0] != start[1],
}
"""Which windows a runtime gets wrong: ONNX Runtime 1.27 does the first kind on the CPU."""


@pytest.mark.parametrize("kind", WRONGLY)
def test_a_runtime_that_reads_a_right_graph_wrongly_is_noticed(bundle, runtime, monkeypatch, kind):
    right = Session.compute

    def wrong(session, binding):
        tokens, start = (binding.inputs[name] for name in ("input_ids", "start"))
        if "kv_length" not in binding.inputs and WRONGLY[kind](tokens.shape[1], start):
            binding.inputs["input_ids"] = (tokens + 1) % 11
        return right(session, binding)

    monkeypatch.setattr(Session, "compute", wrong)
    with cuda_provider(bundle, 2) as provider:
        assert provider.runs.window_graph.startswith("masked, the causal one's logits are off by")


@pytest.mark.long
@pytest.mark.parametrize("name", embedded_names())
def test_shipped_graphs_have_the_logits_of_those_with_masks(name):
    """And the comparison notices the upper left, on models that were trained."""
    bundle = open_bundle(name)
    found = {}
    for causal in (False, True):
        session = open_session(graph_path(bundle, causal=causal), 1)
        with OrtProvider(bundle, session, 2, causal=causal) as provider:
            windows = causal_choice._compared_windows(bundle.manifest.window_graph, provider.vocab_size)
            found[causal] = [provider.forward(tokens, start).copy() for tokens, start in windows]
    for one, other in zip(found[False], found[True], strict=True):
        np.testing.assert_allclose(other, one, atol=1e-5)
    model = onnx.load(bundle.causal_graph)
    upper_left(model)
    wrong = TreeRun(model, 2)
    windows = causal_choice._compared_windows(bundle.manifest.window_graph, bundle.manifest.vocab_size)
    for dtype in ("float32", "float16"):
        assert causal_choice._difference(found[False], found[True], dtype) == ""
    read = [wrong(tokens, start) for tokens, start in windows]
    assert "off by" in causal_choice._difference(found[False], read, "float16")


@pytest.mark.parametrize("name", SIZES)
def test_it_is_not_tried_where_cuda_has_no_kernel_that_skips_empty_columns(tmp_path, runtime, name):
    made = write(tmp_path / "toy", **SIZES[name])
    assert not skips_empty_columns(made.manifest)
    with cuda_provider(made) as provider:
        assert (provider.runs.window_graph, len(runtime.sessions)) == ("", 1)


def test_trees_and_column_buckets_take_the_graph_with_masks(bundle, runtime):
    for settings in ({"trees": True}, {"cuda_graphs": True, "column_buckets": (32,)}):
        with cuda_provider(bundle, **settings) as provider:
            assert provider.runs.window_graph == ""
            assert "kv_length" in inputs_of(runtime.sessions[-1])
    assert len(runtime.sessions) == 2


def test_the_cpu_compares_nothing(bundle):
    with open_model(bundle, Place("cpu", threads=1)) as provider:
        assert provider.runs == Runs("CPUExecutionProvider")
        assert isinstance(provider, OrtProvider)


def test_it_is_said_to_people(bundle, runtime):
    with open_model(bundle, Place("cuda")) as provider:
        assert str(provider.runs) == f"on {CUDA} (GPU 0), step: host, window graph: causal"


def test_a_bundle_without_one_says_what_to_do(tmp_path):
    plain = open_bundle(write_toy_bundle(tmp_path / "toy", toy_gpt(POSITIONS), max_window=POSITIONS))
    with pytest.raises(BundleError, match="no graph without masks; `coupled-sampling step-graphs`"):
        causal_window_graph(plain.manifest)


@pytest.mark.gpu
def test_on_a_gpu_it_is_right():
    with opened(lambda: cuda_provider("fashion", 2)) as provider:
        assert provider.runs.window_graph == "causal"


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_logits_are_compared_as_far_as_their_type_goes(dtype):
    """Noise of rounding passes, a slot that saw another column does not, nor what is no number."""
    random = np.random.default_rng(0)
    expected = [random.normal(0, 3, (2, width, 50)).astype(np.float32) for width in (4, 1)]
    for logits in expected:
        logits[..., 40:] = -np.inf  # tokens that are never generated
    rounding = {"float32": 1e-5, "float16": 1e-3, "bfloat16": 8e-3}[dtype]
    near = [logits * (1 + rounding * random.normal(size=logits.shape)) for logits in expected]
    assert causal_choice._difference(expected, near, dtype) == ""
    for wrong in (expected[1] + random.normal(0, 1, (2, 1, 50)), expected[1] * np.nan):
        assert causal_choice._difference(expected, [expected[0], wrong], dtype) != ""
    nothing = [logits * np.nan for logits in expected]
    assert "not finite, so that they show nothing" in causal_choice._difference(nothing, nothing, dtype)

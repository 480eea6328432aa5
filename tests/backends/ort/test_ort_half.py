"""Graphs that compute in float16 and bfloat16, with caches of these types: `OrtProvider` and `OrtStep` on the CPU, and on the
stand-in for CUDA, which has bfloat16 from ``onnx``'s reference implementation.

Nothing ran on a GPU; where real releases of ``onnxruntime-gpu`` place these graphs is in `test_cuda_placement`.
"""

import dataclasses

import numpy as np
import pytest

from coupled_sampling import generate
from coupled_sampling.backends import OrtProvider, OrtStep, Place, open_model
from coupled_sampling.backends.ort import cuda_session
from coupled_sampling.backends.ort.binding import HostBinding
from coupled_sampling.backends.ort.plugin_binding import HostMemoryBinding
from coupled_sampling.backends.ort.session import open_session
from coupled_sampling.bundles.manifest_file import write_manifest
from coupled_sampling.bundles.opening import open_bundle
from coupled_sampling.errors import BundleError, ProviderError
from coupled_sampling.export import Storage
from coupled_sampling.export.step_bundle import write_step_graphs
from coupled_sampling.testing import check_provider
from standins.fake_cuda import RuleBroken
from standins.trt_bundles import write_bundle

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")
fake_onnxruntime = pytest.importorskip("standins.fake_onnxruntime")

HALVES = ("float16", "bfloat16")
FURTHEST = {"float16": 4e-3, "bfloat16": 0.05}
"""How far logits, whose standard deviation is 0.6, may be from those of float32; 1.4e-3 and 0.018 were measured."""
PROMPTS = [[8], [3, 1]]
METHODS = {"float32": (), "float16": ("ar", "scd-match", "scd-gumbel"), "bfloat16": ("scd-match",)}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    """One model in three types, with step graphs."""
    folder = tmp_path_factory.mktemp("half")
    return {
        kind: open_bundle(write_bundle(folder / kind, steps=steps, storage=Storage(kind, kind)))
        for kind, steps in METHODS.items()
    }


@pytest.fixture
def cuda(monkeypatch):
    fake = fake_onnxruntime.FakeRuntime()
    monkeypatch.setattr(cuda_session, "require_onnxruntime", lambda install: fake)
    return fake


def drawn(model, method, **settings):
    settings = {"length": 20, "window": 1 if method == "ar" else 6, "drafting": "repeat", "seed": 1, **settings}
    return [row.tolist() for row in generate(model, PROMPTS, method=method, **settings).tokens]


def on_the_cpu(bundle, method, rows=2, **settings):
    return open_model(bundle, Place("cpu", threads=1), rows, method=method, **settings)


def some_windows(model):
    """Logits of the tokens that can be drawn, (2, 9, 8), in two windows."""
    tokens = np.random.default_rng(0).integers(0, 11, (2, 9))
    parts = [model.forward(tokens[:, i:j], np.full(2, i)).copy() for i, j in ((0, 5), (5, 9))]
    return np.concatenate(parts, axis=1)[..., :8]


@pytest.mark.parametrize("method", ["scd-match", pytest.param("scd-gumbel", marks=pytest.mark.long)])
def test_float16_on_the_cpu_gives_one_law_by_the_window_graph_and_the_step_graph(bundles, method):
    bundle = bundles["float16"]
    by_host = drawn(on_the_cpu(bundle, method, step="host"), method)
    assert drawn(on_the_cpu(bundle, method, step="graph"), method) == by_host
    if method == "scd-match":
        assert by_host == drawn(on_the_cpu(bundle, "ar", step="host"), "ar")
        assert by_host == drawn(on_the_cpu(bundle, "ar", step="graph"), "ar")


def test_float16_logits_are_near_those_of_float32(bundles):
    found, exact = (some_windows(OrtProvider.open(bundles[kind], 2, threads=1)) for kind in ("float16", "float32"))
    assert found.dtype == np.float32
    assert 1e-5 < np.abs(found - exact).max() < FURTHEST["float16"]  # the same to the last bit would be float32 again


@pytest.mark.parametrize("kind", HALVES)
def test_on_cuda_logits_are_near_those_of_float32_and_caches_take_half(bundles, cuda, kind):
    exact = some_windows(OrtProvider.open(bundles["float32"], 2, threads=1))
    provider = open_model(bundles[kind], Place("cuda"), 2)
    assert 1e-5 < np.abs(some_windows(provider) - exact).max() < FURTHEST[kind]
    graph = bundles[kind].manifest.window_graph
    sizes = {cuda.memory[kept.address].nbytes for kept in provider._caches.kept.values()}
    assert sizes == {2 * 2 * graph.kv_heads * graph.cache_length * graph.head_size}


@pytest.mark.parametrize("kind", [pytest.param("float16", marks=pytest.mark.long), "bfloat16"])
def test_on_cuda_a_window_graph_and_a_step_graph_give_the_tokens_of_ar(bundles, cuda, kind):
    bundle = bundles[kind]
    expected = drawn(open_model(bundle, Place("cuda"), 2), "ar")
    assert drawn(open_model(bundle, Place("cuda"), 2), "scd-match") == expected
    assert drawn(open_model(bundle, Place("cuda", cuda_graphs=True), 2), "scd-match") == expected
    assert sum(session.replays for session in cuda.sessions) > 0
    step = open_model(bundle, Place("cuda"), 2, method="scd-match", step="graph")
    assert isinstance(step, OrtStep)
    assert drawn(step, "scd-match") == expected


DEAD = 10


def with_a_dead_token(model):
    """A change of a graph: the embedding of a token is infinite."""
    import onnx

    table = next(one for one in model.graph.initializer if one.name == "embedding.weight")
    numbers = onnx.numpy_helper.to_array(table).copy()
    numbers[DEAD] = np.inf
    table.CopyFrom(onnx.numpy_helper.from_array(numbers, table.name))


@pytest.mark.parametrize("kind", HALVES)
def test_a_token_that_cannot_be_computed_says_so_and_disturbs_nobody(bundles, cuda, tmp_path, kind):
    """Also where numbers are compared in another type than they are kept in."""
    tokens = np.random.default_rng(2).integers(0, DEAD, (2, 9))
    expected = open_model(bundles[kind], Place("cuda"), 2).forward(tokens, np.zeros(2, np.int64))[..., :8].copy()
    spoilt = write_bundle(tmp_path / "dead", change=with_a_dead_token, storage=Storage(kind, kind))
    model, dead = open_model(spoilt, Place("cuda"), 2), tokens.copy()
    dead[0, 6] = DEAD
    with np.errstate(invalid="ignore"):
        found = model.forward(dead, np.zeros(2, np.int64))[..., :8].copy()
    assert np.isnan(found[0, 6]).all()
    others = np.ones((2, 9), bool)
    others[0, 6:] = False
    np.testing.assert_allclose(found[others], expected[others], atol=FURTHEST[kind])
    again = model.forward(tokens[:, 3:5], np.full(2, 3))[..., :8]  # beside columns that it wrote
    np.testing.assert_allclose(again, expected[:, 3:5], atol=FURTHEST[kind])


@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_memory_is_bound_as_what_it_holds(bundles, cuda, monkeypatch, cuda_graphs):
    """The control: bfloat16 caches lie in memory of numpy's uint16, and a binding that says so is refused."""
    build = HostBinding.__init__

    def forgetful(binding, session):
        build(binding, session)
        binding._told = {}

    monkeypatch.setattr(HostBinding, "__init__", forgetful)
    with pytest.raises((RuleBroken, ProviderError), match=r"bound as .*uint16.*expected 16"):
        some_windows(open_model(bundles["bfloat16"], Place("cuda", cuda_graphs=cuda_graphs), 2))


@pytest.mark.parametrize("make_binding", [HostBinding, HostMemoryBinding])
def test_the_package_itself_takes_bfloat16_by_its_number(tmp_path, make_binding):
    """The real bindings of the CPU, and those beside a plugin: TensorScatter's past and present are one memory."""
    onnx = pytest.importorskip("onnx")
    kind, shape = onnx.TensorProto.BFLOAT16, ["B", 1, 6, 2]
    make = onnx.helper.make_tensor_value_info
    inputs = [make("past_key_values.0.key", kind, shape), make("start", 7, ["B"]), make("update", 1, ["B", 1, "W", 2])]
    nodes = [
        onnx.helper.make_node("Cast", ["update"], ["narrow"], to=kind),
        onnx.helper.make_node("TensorScatter", [inputs[0].name, "narrow", "start"], ["present.0.key"], axis=-2),
    ]
    graph = onnx.helper.make_graph(nodes, "scatter", inputs, [make("present.0.key", kind, shape)])
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 24)]), tmp_path / "s.onnx")
    binding = make_binding(open_session(tmp_path / "s.onnx", 1))
    cache = binding.keep(np.zeros((1, 1, 6, 2), np.uint16))
    for name in ("past_key_values.0.key", "present.0.key"):
        binding.bind_kept(name, cache, (1, 1, 6, 2))
    start, update = np.array([2]), np.array([[[[1.0, -2.0]]]], np.float32)
    binding.bind_input("start", start)
    binding.bind_input("update", update)
    binding.run()
    assert cache.memory[0, 0, 2].tolist() == [0x3F80, 0xC000]
    assert not cache.memory[0, 0, [0, 1, 3, 4, 5]].any()


@pytest.mark.parametrize("graph", ["window", "step"])
def test_bfloat16_on_the_cpu_names_the_node_that_has_no_kernel_and_what_to_do(bundles, graph):
    settings = {"step": "graph"} if graph == "step" else {"step": "host"}
    with pytest.raises(
        BundleError, match=r"no kernel on the CPU for a node of .*: Add \('Add\.\d+'\).*--compute float32.*cuda"
    ):
        on_the_cpu(bundles["bfloat16"], "scd-match", **settings)


@pytest.mark.parametrize(
    "said",
    [
        "[ONNXRuntimeError] : 1 : FAIL : Exception during initialization: transformer_memcpy.cc:253 IsNodeCompatibleWithProvider "
        "!node_provider_type.empty() was false. Provider type for DequantizeLinear node with name 'layers.0.X.12' is not set.",
        "[ONNXRuntimeError] : 9 : NOT_IMPLEMENTED : Could not find an implementation for DequantizeLinear(24) node with name "
        "'layers.0.X.12'",
    ],
)
def test_on_cuda_a_node_without_a_kernel_is_named(bundles, monkeypatch, said):
    """What onnxruntime-gpu 1.31.1 says of codes with scales of bfloat16, and what others say."""
    fake = fake_onnxruntime.FakeRuntime(fails=said)
    monkeypatch.setattr(cuda_session, "require_onnxruntime", lambda install: fake)
    with pytest.raises(
        ProviderError, match=r"no kernel for a node of .*DequantizeLinear \('layers\.0\.X\.12'\).*--form nbits"
    ):
        open_model(bundles["bfloat16"], Place("cuda"))


@pytest.mark.parametrize(
    ("promised", "message"), [("bfloat16", r"tensor\(float16\).*tensor\(bfloat16\)"), ("int8", "'int8'")]
)
def test_graphs_whose_caches_are_of_another_type_than_promised_are_refused(bundles, promised, message):
    bundle = bundles["float16"]
    graph = dataclasses.replace(bundle.manifest.window_graph, dtype=promised)
    wrong = dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, window_graph=graph))
    with pytest.raises(BundleError, match=message):
        OrtProvider.open(wrong)
    with pytest.raises(BundleError, match=r"caches of tensor\(float16\)"):
        on_the_cpu(wrong, "scd-match", step="graph")


def test_rows_are_copied_in_the_type_of_the_caches(bundles):
    """What was computed for a row is what its copies go on with."""
    model = OrtProvider.open(bundles["float16"], 3, threads=1)
    tokens = np.random.default_rng(1).integers(0, 11, (3, 7))
    tokens[1:, :5] = tokens[0, :5]
    model.forward_rows(tokens[:1, :5], np.zeros(1, np.int64), range(1))
    model.fork(0, [1, 2], 5)
    found = model.forward(tokens[:, 5:], np.full(3, 5)).copy()
    oracle = OrtProvider.open(bundles["float16"], 3, threads=1)
    np.testing.assert_allclose(found, oracle.forward(tokens, np.zeros(3, np.int64))[:, 5:], atol=2e-3)
    assert {kept.memory.dtype for kept in model._caches.kept.values()} == {np.dtype(np.float16)}


def test_trees_in_float16_give_the_tokens_of_ar(bundles):
    bundle, settings = bundles["float16"], {"length": 20, "seed": 5}
    expected = generate(OrtProvider.open(bundle, threads=1), [[8]], method="ar", **settings).tokens
    for step in ("host", "graph"):
        model = on_the_cpu(bundle, "scd-match", 1, step=step, trees=True)
        found = generate(model, [[8]], method="scd-match", window=6, branches=4, **settings).tokens
        assert [row.tolist() for row in found] == [row.tolist() for row in expected]


@pytest.mark.long
@pytest.mark.parametrize("kind", HALVES)
def test_half_precision_passes_the_conformance_suite(bundles, cuda, kind):
    provider = open_model(bundles[kind], Place("cuda"), 3)
    reference = open_model(bundles[kind], Place("cuda"), 1)
    check_provider(
        provider,
        tolerance=FURTHEST[kind],
        reference=lambda tokens: np.array(reference.forward(tokens[None], np.zeros(1, np.int64))[0]),
    )


@pytest.mark.long
def test_guidance_in_float16_gives_the_tokens_of_the_host(tmp_path):
    folder = write_bundle(tmp_path / "guided", storage=Storage("float16", "float16"))
    manifest = dataclasses.replace(open_bundle(folder).manifest, unconditional_prompt=(9,))
    write_manifest(folder, manifest)
    write_step_graphs(folder, ("scd-match",))
    bundle = open_bundle(folder)
    found = [
        drawn(on_the_cpu(bundle, "scd-match", step=step, guidance=1.5, warped=True), "scd-match")
        for step in ("host", "graph")
    ]
    assert found[0] == found[1]

"""OrtStep on `fashion`: the tokens and traces of HostStep over whole generations."""

import dataclasses
import shutil

import numpy as np
import pytest

from coupled_sampling import Decoder, GuidedProvider, HostStep, Request, Sampling, generate
from coupled_sampling.backends import OrtProvider, OrtStep, Place, open_model
from coupled_sampling.backends.ort.session import open_session
from coupled_sampling.bundles.manifest import StepGraph
from coupled_sampling.bundles.manifest_file import write_manifest
from coupled_sampling.bundles.opening import open_bundle
from coupled_sampling.errors import BundleError, InvalidArgument
from coupled_sampling.export.graphs.decision import STEP_METHODS
from standins.loud_sessions import let_sessions_warn

pytest.importorskip("onnxruntime")

PROMPTS = [[256], [258], [260]]
WARPED = [Sampling(0.8, top_p=0.9), Sampling(top_k=20, min_p=0.02), Sampling(0)]


@pytest.fixture(scope="module")
def bundle():
    return open_bundle("fashion")


@pytest.mark.cases(6)
@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("warped", [False, True])
@pytest.mark.parametrize("method", STEP_METHODS)
def test_tokens_and_traces_are_those_of_host_step(bundle, method, warped, batch_size):
    settings = {"length": [110, 40, 70], "window": 16, "drafting": "copy:14", "seed": 3}
    settings |= {"sampling": WARPED if warped else Sampling()}
    ours = generate(of_bundle(bundle, method, batch_size, warped=warped), PROMPTS, **settings)
    host = generate(HostStep(OrtProvider.open(bundle, batch_size, threads=1), method), PROMPTS, **settings)
    assert_same(ours, host)


def of_bundle(bundle, method, rows=1, **settings):
    return open_model(
        bundle, Place(threads=1), rows, **{"method": method, "step": "graph", "corrections": "none", **settings}
    )


def assert_same(ours, host):
    for found, expected in zip(ours.tokens, host.tokens, strict=True):
        np.testing.assert_array_equal(found, expected)
    for found, expected in zip(ours.traces, host.traces, strict=True):
        assert found.committed_per_step == expected.committed_per_step


@pytest.mark.cases(3)
@pytest.mark.parametrize(
    ("method", "scale"), [*((name, 2.0) for name in STEP_METHODS), ("ar", 0.0), ("scd-match", -0.5)]
)
def test_guided_tokens_and_traces_are_those_of_a_guided_provider(bundle, method, scale):
    """The unconditional prompt is as long as the prompt, then longer, then shorter."""
    null = bundle.manifest.unconditional_prompt
    prompts, settings = [[256], [258], [260, 7, 9, 11]], {"length": [60, 30, 40], "window": 12, "seed": 5}
    settings |= {"drafting": "copy:14", "sampling": [Sampling(0.8, top_k=50), Sampling(), Sampling(top_p=0.9)]}
    graph = bundle.step_graph(method, guided=True)
    for unconditional in (null, (*null, 3, 5), lambda prompt: null * max(1, 5 - len(prompt))):
        step = OrtStep(open_session(graph, 1), 2, guidance=scale, unconditional=unconditional)
        inner = OrtProvider.open(bundle, 4, threads=1)
        host = HostStep(GuidedProvider(inner, scale, unconditional), method)
        assert step.max_length == host.max_length
        assert_same(generate(step, prompts, **settings), generate(host, prompts, **settings))


def decoded(step, arrivals, window):
    """Tokens of requests that arrive after so many steps each."""
    decoder, tokens, handles = Decoder(step, window=window, drafting="copy:14"), {}, []
    for count in range(400):
        for when, prompt, length, sampling in arrivals:
            if when == count:
                handles.append(decoder.add(Request(prompt, length, sequence=when, sampling=sampling)))
        for commit in decoder.step():
            tokens.setdefault(commit.handle, []).extend(commit.tokens.tolist())
        if count > 12 and not decoder.active:
            return [tokens[handle] for handle in handles]
    raise AssertionError("it does not end")


@pytest.mark.cases(3)
@pytest.mark.parametrize("warped", [False, True])
@pytest.mark.parametrize("method", STEP_METHODS)
def test_sequences_that_join_others_under_way(bundle, method, warped):
    """More rows need more memory, and what the rows before had in it must survive."""
    cut = Sampling(0.9, top_k=60) if warped else Sampling()
    arrivals = [
        (0, [256], 60, cut),
        (3, [258], 40, Sampling()),
        (6, [260, 4, 5], 50, cut),
        (11, [257], 30, Sampling(0.7)),
    ]
    for window in (5, 16):
        ours = decoded(of_bundle(bundle, method, 3, warped=warped), arrivals, window)
        host = decoded(HostStep(OrtProvider.open(bundle, 3, threads=1), method), arrivals, window)
        assert ours == host


@pytest.mark.parametrize("method", STEP_METHODS)
def test_windows_of_changing_width(bundle, method):
    class Erratic:
        largest = 24

        def __init__(self):
            self.steps = 0

        def width(self, rows):
            return 1 + 7 * self.steps % 24

        def record(self, rows, width, tokens, seconds):
            self.steps += 1

    arrivals = [(0, [256], 80, Sampling()), (2, [259], 60, Sampling())]
    ours = decoded(of_bundle(bundle, method, 2), arrivals, Erratic())
    host = decoded(HostStep(OrtProvider.open(bundle, 2, threads=1), method), arrivals, Erratic())
    assert ours == host


def test_guidance_of_the_bundle(bundle):
    settings = {"length": 40, "window": 8, "seed": 1, "drafting": "repeat"}
    ours = generate(of_bundle(bundle, "scd-gumbel", guidance=1.5), [[257]], **settings)
    inner = OrtProvider.open(bundle, 2, threads=1)
    host = HostStep(GuidedProvider(inner, 1.5, bundle.manifest.unconditional_prompt), "scd-gumbel")
    assert_same(ours, generate(host, [[257]], **settings))


def test_another_seed_gives_other_tokens(bundle):
    """Equality would be hollow if the noise did not reach the graph."""
    step = of_bundle(bundle, "scd-gumbel")
    one, other = (generate(step, [[256]], length=30, window=8, seed=seed).tokens[0] for seed in (3, 4))
    assert one.tolist() != other.tolist()


def test_nothing_large_is_allocated_after_warm_up(bundle):
    step = of_bundle(bundle, "scd-gumbel")
    generate(step, [[256]], length=60, window=16, drafting="copy:14", seed=1)

    def addresses():
        kept = (*step._laws.buffers, step._ring.memory, *step._caches.kept.values())
        staged = [buffer.memory.ctypes.data for buffer in step._tensors._buffers.values()]
        return [*staged, *(memory.address for memory in kept)]

    before = addresses()
    generate(step, [[258]], length=100, window=16, drafting="copy:14", seed=2)
    assert addresses() == before


def test_caches_and_noise_are_written_in_place(bundle, capfd, monkeypatch):
    let_sessions_warn(monkeypatch)
    step = of_bundle(bundle, "scd-gumbel")
    generate(step, [[256]], length=40, window=8)
    assert "in-place optimization not activated" not in capfd.readouterr().err


@pytest.fixture
def copied(bundle, tmp_path):
    """A bundle that may be damaged; ``change(**fields)`` writes another manifest over it."""
    shutil.copytree(bundle.folder, tmp_path / "b")

    def change(**fields):
        write_manifest(tmp_path / "b", dataclasses.replace(open_bundle(tmp_path / "b").manifest, **fields))
        return tmp_path / "b"

    return change


def test_a_method_without_a_graph_is_refused_with_the_command_that_makes_it(copied):
    folder = copied(step_graphs=(StepGraph("step-sjd.onnx", "sjd"),))
    command = f"coupled-sampling step-graphs {folder} b-steps --methods ar"
    with pytest.raises(InvalidArgument, match=f"no step graph for ar, it has sjd; make one with `{command}`"):
        of_bundle(folder, "ar")
    with pytest.raises(InvalidArgument, match="no step graph for sjd warped"):
        of_bundle(folder, "sjd", warped=True)
    with pytest.raises(InvalidArgument, match="no step graph for scd-gumbel guided, it has none"):
        of_bundle(copied(step_graphs=()), "scd-gumbel", guidance=2.0)


def test_a_graph_of_another_method_than_the_manifest_says_is_refused(copied):
    folder = copied(step_graphs=(StepGraph("step-sjd.onnx", "scd-gumbel"),))
    with pytest.raises(BundleError, match=r"method 'sjd', the manifest promises 'scd-gumbel'"):
        of_bundle(folder, "scd-gumbel")


def test_a_graph_whose_shapes_are_not_the_manifests_is_refused(bundle, copied):
    graph = bundle.manifest.window_graph
    with pytest.raises(BundleError, match="vocab_size 267, the manifest promises 268"):
        of_bundle(copied(vocab_size=268), "sjd")
    fewer_heads = dataclasses.replace(graph, kv_heads=3)
    with pytest.raises(
        BundleError,
        match=r"12 caches of tensor\(float\) \[6, 196, 32\], .* promises 12 of tensor\(float\) \[3, 196, 32\]",
    ):
        of_bundle(copied(vocab_size=267, window_graph=fewer_heads), "sjd")
    shorter = dataclasses.replace(graph, max_length=195, max_window=9)
    with pytest.raises(BundleError, match="max_length 196, the manifest promises 195"):
        of_bundle(copied(window_graph=shorter, length=190, grid=None), "sjd")


def test_a_graph_of_another_variant_than_the_manifest_says_is_refused(copied):
    with pytest.raises(BundleError, match="warped True, the manifest promises False"):
        of_bundle(copied(step_graphs=(StepGraph("step-sjd-warped.onnx", "sjd"),)), "sjd")
    with pytest.raises(BundleError, match="guided True, the manifest promises False"):
        of_bundle(copied(step_graphs=(StepGraph("step-sjd-warped-guided.onnx", "sjd", True),)), "sjd")


def test_a_newer_graph_and_one_with_a_missing_output_are_refused(bundle, tmp_path):
    onnx = pytest.importorskip("onnx")
    shutil.copytree(bundle.folder, tmp_path / "b")
    path = tmp_path / "b" / "step-scd-gumbel.onnx"
    model = onnx.load(path, load_external_data=False)
    newer = onnx.ModelProto()
    newer.CopyFrom(model)
    onnx.helper.set_model_props(newer, {p.key: p.value for p in model.metadata_props} | {"format_version": "3"})
    onnx.save(newer, path)
    with pytest.raises(BundleError, match="format version 3, this library runs up to 2; upgrade"):
        OrtStep(open_session(path))
    del model.graph.output[[value.name for value in model.graph.output].index("laws")]
    onnx.save(model, path)
    with pytest.raises(
        BundleError, match=r"'laws' is missing, a step graph of scd-gumbel has \('float', \(None, None, 267\)\)"
    ):
        OrtStep(open_session(path))


def test_a_window_graph_is_no_step_graph(bundle):
    with pytest.raises(
        BundleError, match="has format 'coupled-sampling window graph', expected 'coupled-sampling step graph'"
    ):
        OrtStep(open_session(bundle.window_graph))


def test_guidance_must_go_with_the_graph(bundle):
    with pytest.raises(InvalidArgument, match="not guided and takes neither"):
        OrtStep(open_session(bundle.step_graph("sjd")), guidance=2.0, unconditional=[266])
    with pytest.raises(InvalidArgument, match="guided and needs both"):
        OrtStep(open_session(bundle.step_graph("sjd", guided=True)), guidance=2.0)

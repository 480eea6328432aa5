"""OrtStep on the embedded model: the tokens and traces of HostStep over whole generations."""

import numpy as np
import pytest

from coupled_sampling import HostStep, Sampling, generate
from coupled_sampling.backends import OrtProvider
from coupled_sampling.backends.ort_step import OrtStep
from coupled_sampling.bundle import open_bundle
from coupled_sampling.export.decision_graph import STEP_METHODS
from coupled_sampling.export.graph import save_graph
from coupled_sampling.export.step_graph import step_graph

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

PROMPTS = [[256], [258], [260]]
WARPED = [Sampling(0.8, top_p=0.9), Sampling(top_k=20, min_p=0.02), Sampling(0)]


@pytest.fixture(scope="module")
def bundle():
    return open_bundle("fashion")


@pytest.fixture(scope="module")
def graphs(bundle, tmp_path_factory):
    folder, window = tmp_path_factory.mktemp("steps"), onnx.load(bundle.window_graph)
    return {
        (method, warped): save_graph(step_graph(window, method, warped=warped), folder / f"{method}-{warped}.onnx")
        for method in STEP_METHODS
        for warped in (False, True)
    }


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("warped", [False, True])
@pytest.mark.parametrize("method", STEP_METHODS)
def test_tokens_and_traces_are_those_of_host_step(bundle, graphs, method, warped, batch_size):
    settings = {"length": [196, 60, 110], "window": 16, "drafting": "copy:14", "seed": 3}
    settings |= {"sampling": WARPED if warped else Sampling()}
    ours = generate(OrtStep.open(graphs[method, warped], batch_size, threads=1), PROMPTS, **settings)
    host = generate(HostStep(OrtProvider.open(bundle, batch_size, threads=1), method), PROMPTS, **settings)
    for found, expected in zip(ours.tokens, host.tokens, strict=True):
        np.testing.assert_array_equal(found, expected)
    for found, expected in zip(ours.traces, host.traces, strict=True):
        assert found.committed_per_step == expected.committed_per_step


def test_another_seed_gives_other_tokens(bundle, graphs):
    """Equality would be hollow if the noise did not reach the graph."""
    step = OrtStep.open(graphs["scd-gumbel", False], threads=1)
    one, other = (generate(step, [[256]], length=30, window=8, seed=seed).tokens[0] for seed in (3, 4))
    assert one.tolist() != other.tolist()


def test_nothing_large_is_allocated_after_warm_up(graphs):
    step = OrtStep.open(graphs["scd-gumbel", False], threads=1)
    generate(step, [[256]], length=60, window=16, drafting="copy:14", seed=1)

    def addresses():
        memory = [buffer.memory for buffer in (*step._buffers.values(), *step._laws.buffers)]
        return [array.ctypes.data for array in (*memory, step._ring, *step._caches.values())]

    before = addresses()
    generate(step, [[258]], length=100, window=16, drafting="copy:14", seed=2)
    assert addresses() == before


def test_caches_and_noise_are_written_in_place(graphs, capfd):
    step = OrtStep.open(graphs["scd-gumbel", False], threads=1)
    generate(step, [[256]], length=40, window=8)
    assert "in-place optimization not activated" not in capfd.readouterr().err

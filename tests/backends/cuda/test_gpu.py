"""On a real GPU: memory, streams and graphs, the kernels behind `PinnedLauncher`, and whole steps over ONNX Runtime.

The tests of each back end have their own; these are of what joins them.
"""

from dataclasses import replace

import numpy as np
import pytest

from coupled_sampling import generate
from coupled_sampling.backends import OrtProvider, Place, open_model
from coupled_sampling.backends.cuda.pinned_launcher import PinnedLauncher
from coupled_sampling.backends.cuda.streams import Stream
from coupled_sampling.contracts import Runs
from standins.cuda_emulation.comparison import Float32Table, NormalWorld, compare_on, exact_correction
from standins.cuda_emulation.trees import AnyShape, TreeWorld, compare_trees_on
from standins.on_a_gpu import gpu, opened

pytestmark = pytest.mark.gpu

METHODS = ["ar", "sjd", "scd-maximal", "scd-gumbel", "scd-match"]


@pytest.fixture
def stream():
    return Stream(gpu())


def test_copies_and_events(stream):
    device, count = stream.device, 2**24
    there, back, buffer = (
        device.pinned((count,), np.float32),
        device.pinned((count,), np.float32),
        device.allocate(4 * count),
    )
    there.values[:] = np.arange(count) % 1000
    began = stream.record()
    stream.upload(buffer, there)
    stream.download(back, buffer)
    ended = stream.record()
    stream.synchronize()
    np.testing.assert_array_equal(back.values, there.values)
    assert 0 < ended.milliseconds_since(began) < 1000
    stream.clear(buffer)
    stream.download(back, buffer)
    stream.synchronize()
    assert not back.values.any()


def test_a_captured_graph_reads_what_is_there_when_it_is_launched(stream):
    device = stream.device
    there, back, buffer = device.pinned((1000,), np.int64), device.pinned((1000,), np.int64), device.allocate(8000)
    with stream.capture() as graph:
        stream.upload(buffer, there)
        stream.download(back, buffer)
    for value in (1, 2, 3):
        there.values[:] = value
        stream.launch(graph)
        stream.synchronize()
        assert (back.values == value).all()
    graph.free()


def test_memory_comes_back(stream):
    device = stream.device
    free, total = device.memory()
    buffer = device.allocate(2**30)
    assert free - device.memory()[0] >= 2**30
    buffer.free()
    assert device.memory()[0] >= free - 2**24
    assert total >= free


@pytest.mark.parametrize("cuda_graphs", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_steps_on_a_stream_of_ours_give_the_tokens_of_host_step(stream, method, cuda_graphs):
    """But for ties of floats, which one table has and the other may have."""
    launcher = opened(lambda: PinnedLauncher(stream, cuda_graphs=cuda_graphs))
    assert compare_on(launcher, lambda: Float32Table(300), method).differences == []
    large = compare_on(launcher, lambda: NormalWorld(9001), method, steps=25)
    print(f"\n{method}: {len(large.differences)} of {large.draws} draws differ: {large.differences}")
    assert len(large.differences) <= 0.02 * large.draws
    launcher.close()


def test_windows_with_branches_give_the_tokens_and_candidates_of_host_step(stream):
    launcher, corrections = opened(lambda: PinnedLauncher(stream)), exact_correction(40, (1, 4))
    settings = {"branches": AnyShape(7), "corrections": corrections}
    both = compare_trees_on(launcher, lambda: TreeWorld(40, dead=0.02), **settings)
    assert both.differences == []
    assert both.trees > 10
    launcher.close()


def same_beginnings(found, expected):
    """How many tokens of each row are equal before the first that is not: near ties may fall otherwise."""
    return [int((np.asarray(a) == np.asarray(b)).cumprod().sum()) for a, b in zip(found, expected, strict=True)]


@pytest.mark.parametrize("cuda_graphs", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_kernels_over_onnx_runtime_give_the_tokens_of_the_cpu(method, cuda_graphs):
    settings = {"length": 196, "window": 16, "drafting": "copy:14", "seed": 0}
    prompts = [[258], [259], [261]]
    place = Place("cuda", cuda_graphs=cuda_graphs)
    with opened(lambda: open_model("fashion", place, 2, method=method)) as step:
        assert replace(step.runs, window_graph="") == Runs("CUDAExecutionProvider", 0, cuda_graphs, "kernels")
        found = generate(step, prompts, **settings).tokens
    expected = generate(OrtProvider.open("fashion", 2), prompts, method=method, **settings).tokens
    same = same_beginnings(found, expected)
    print(f"\n{method}: {same} of 196 tokens are the same at the beginning")
    assert max(same) > 100


def test_host_steps_over_onnx_runtime_give_the_tokens_of_the_cpu():
    settings = {"length": 196, "window": 16, "drafting": "copy:14", "seed": 0, "method": "scd-match"}
    found = generate(opened(lambda: open_model("fashion", Place("cuda"), 2)), [[258], [259]], **settings).tokens
    expected = generate(OrtProvider.open("fashion", 2), [[258], [259]], **settings).tokens
    assert max(same_beginnings(found, expected)) > 100

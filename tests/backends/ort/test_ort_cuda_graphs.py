"""CUDA graphs of ONNX Runtime, on a stand-in that replays what it captured and refuses what a replay would get wrong in silence.

Nothing ran on a GPU. That ONNX Runtime takes these sessions and bindings, captures and replays, is in `test_cuda_placement`.
"""

import numpy as np
import pytest

from coupled_sampling import generate
from coupled_sampling.backends import OrtProvider
from coupled_sampling.backends.cuda.pointers import DevicePointer
from coupled_sampling.backends.ort import cuda, cuda_session
from coupled_sampling.backends.ort.device_binding import DeviceBinding
from coupled_sampling.errors import InvalidArgument, ProviderError
from coupled_sampling.testing import check_provider
from standins.fake_onnxruntime import FakeRuntime
from standins.on_a_gpu import opened
from standins.on_cuda import cuda_provider
from standins.trt_bundles import LENGTH, write_bundle

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return write_bundle(tmp_path_factory.mktemp("graphs") / "toy")


@pytest.fixture
def runtime(monkeypatch):
    fake = FakeRuntime()
    monkeypatch.setattr(cuda_session, "require_onnxruntime", lambda install: fake)
    return fake


def starts(*values):
    return np.array(values, np.int64)


def some_tokens(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 11, shape)


def close(found, expected):
    np.testing.assert_allclose(found, expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("columns", [(), (8, 20)])
def test_it_passes_the_conformance_suite(bundle, runtime, columns):
    provider = cuda_provider(bundle, 3, cuda_graphs=True, column_buckets=columns)
    reference = OrtProvider.open(bundle, threads=1)
    check_provider(provider, reference=lambda tokens: reference.forward(tokens[None], starts(0))[0])
    assert runtime.sessions[0].replays > 5


@pytest.mark.parametrize("method", ["ar", "sjd", "scd-maximal", "scd-gumbel", "scd-match"])
def test_it_gives_the_tokens_of_the_cpu(bundle, runtime, method):
    settings = {"length": 24, "method": method, "window": 1 if method == "ar" else 6, "drafting": "repeat", "seed": 1}
    provider = cuda_provider(bundle, 2, cuda_graphs=True, column_buckets=(16,))
    found = generate(provider, [[8], [3, 1]], **settings)
    expected = generate(OrtProvider.open(bundle, batch_size=2, threads=1), [[8], [3, 1]], **settings)
    for one, other in zip(found.tokens, expected.tokens, strict=True):
        assert one.tolist() == other.tolist()
    assert runtime.sessions[0].replays > 0


def test_a_shape_runs_plainly_is_captured_and_is_replayed_from_then_on(bundle, runtime):
    provider, oracle = cuda_provider(bundle, cuda_graphs=True), OrtProvider.open(bundle, threads=1)
    (session,) = runtime.sessions
    assert session.settings["CUDAExecutionProvider"]["enable_cuda_graph"] == "1"
    counts = []
    for seed in range(4):
        tokens = some_tokens(1, 3, seed=seed)
        close(provider.forward(tokens, starts(0)), oracle.forward(tokens, starts(0)))
        counts.append((session.runs, session.replays, len(session.captured)))
    assert counts == [(1, 0, 0), (4, 0, 1), (5, 1, 1), (6, 2, 1)]
    assert provider.binding.captured == [(1, 3, 44)]
    provider.forward(some_tokens(1, 2), starts(0))
    provider.forward(some_tokens(1, 2), starts(2))
    assert list(session.captured) == [1, 2]
    assert provider.binding.captured == [(1, 3, 44), (1, 2, 44)]


def test_columns_are_part_of_a_graph(bundle, runtime):
    """A call attends to the smallest bucket; one number for all of them would replay a wrong one."""
    provider = cuda_provider(bundle, cuda_graphs=True, column_buckets=(4, 10))
    oracle = OrtProvider.open(bundle, threads=1)
    tokens = some_tokens(1, LENGTH)
    for _ in range(3):
        for first in range(0, 16, 2):
            window = tokens[:, first : first + 2]
            close(provider.forward(window, starts(first)), oracle.forward(window, starts(first)))
    assert provider.binding.captured == [(1, 2, 4), (1, 2, 10), (1, 2, 44)]


def test_one_number_for_two_shapes_is_caught(bundle, runtime, monkeypatch):
    """The control for the test above."""
    provider = cuda_provider(bundle, cuda_graphs=True, column_buckets=(4,))
    real = provider.binding._bound_anew
    monkeypatch.setattr(provider.binding, "_bound_anew", lambda number: real(min(number, 1)))
    for _ in range(2):
        provider.forward(some_tokens(1, 2), starts(0))
    provider.forward(some_tokens(1, 2), starts(5))
    with pytest.raises(ProviderError, match="graph 1 was captured with other shapes, addresses or host values"):
        provider.forward(some_tokens(1, 2), starts(5))


def test_bindings_of_plain_sessions_are_caught_where_graphs_are_captured(bundle, runtime, monkeypatch):
    """The control of the stand-in: what `DeviceBinding` binds without graphs would never reach a replay."""
    monkeypatch.setattr(cuda, "GraphBinding", DeviceBinding)
    provider = cuda_provider(bundle, on_device=True, cuda_graphs=True)
    with pytest.raises(ProviderError, match="is bound from the host, and a replay would not copy it"):
        provider.forward(some_tokens(1, 2), starts(0))


def test_tokens_are_copied_before_every_replay(bundle, runtime, monkeypatch):
    provider, oracle = cuda_provider(bundle, cuda_graphs=True), OrtProvider.open(bundle, threads=1)
    first, second = some_tokens(1, 4), some_tokens(1, 4, seed=1)
    for _ in range(3):
        provider.forward(first, starts(0))
    close(provider.forward(second, starts(0)), oracle.forward(second, starts(0)))
    monkeypatch.setattr(provider.binding._there["input_ids"].memory, "update_inplace", lambda values: None)
    stale = provider.forward(first, starts(0))
    assert np.abs(stale[..., :8] - oracle.forward(first, starts(0))[..., :8]).max() > 1e-3


def test_logits_can_stay_on_the_device(bundle, runtime):
    provider = cuda_provider(bundle, 2, on_device=True, cuda_graphs=True)
    oracle = OrtProvider.open(bundle, batch_size=2, threads=1)
    for seed in range(4):
        tokens = some_tokens(2, 5, seed=seed)
        logits = provider.forward(tokens, starts(0, 0))
        assert isinstance(logits, DevicePointer)
        close(runtime.at(logits.pointer, logits.shape, np.float32), oracle.forward(tokens, starts(0, 0)))


def test_a_placement_that_cannot_be_captured_is_refused(bundle, runtime):
    runtime.on_cpu = ("Slice", "Gelu")
    with pytest.raises(
        ProviderError, match=r"cannot capture .*window.onnx as CUDA graphs.*not been partitioned.*cuda_graphs=False"
    ):
        cuda_provider(bundle, cuda_graphs=True, cpu_nodes="any")
    assert cuda_provider(bundle, cpu_nodes="any").binding.on_cpu["Gelu"] == 2


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"cuda_graphs": 1}, "cuda_graphs is 1, expected True or False"),
        ({"column_buckets": (8,)}, "they need cuda_graphs"),
        ({"cuda_graphs": True, "column_buckets": (0,)}, r"column_buckets is \(0,\), expected integers from 1 to 44"),
        ({"cuda_graphs": True, "column_buckets": (45,)}, r"from 1 to 44, the columns of the caches"),
        ({"cuda_graphs": True, "column_buckets": (True,)}, r"column_buckets is \(True,\)"),
    ],
)
def test_arguments_that_cannot_work_are_refused(bundle, runtime, settings, match):
    with pytest.raises(InvalidArgument, match=match):
        cuda_provider(bundle, **settings)
    assert runtime.sessions == []


@pytest.mark.gpu
@pytest.mark.parametrize("columns", [(), (20,)])
def test_on_a_gpu_graphs_give_the_logits_of_plain_runs(bundle, columns):
    plain = opened(lambda: cuda_provider(bundle, 2))
    provider = cuda_provider(bundle, 2, cuda_graphs=True, column_buckets=columns)
    tokens = some_tokens(2, 40)
    for first in range(0, 36, 4):  # the first call of a shape is plain, the second is captured, later ones are replays
        window, start = tokens[:, first : first + 4], starts(first, first)
        np.testing.assert_allclose(provider.forward(window, start), plain.forward(window, start), atol=2e-3)
    assert provider.binding.captured

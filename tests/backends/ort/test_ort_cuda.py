"""The CUDA provider on a stand-in for ``onnxruntime`` that keeps the rules of bindings, and its refusals with the real package.

Nothing ran on a GPU; the tests marked ``gpu`` do, where there is one.
"""

import numpy as np
import pytest

from coupled_sampling import generate
from coupled_sampling.backends import OrtProvider, Place, open_model
from coupled_sampling.backends.cuda.pointers import DevicePointer, device_pointer
from coupled_sampling.backends.ort import cuda_session
from coupled_sampling.backends.ort.device_binding import DeviceBinding
from coupled_sampling.contracts import LogitsProvider, Runs
from coupled_sampling.errors import BundleError, InvalidArgument, MissingDependency, ProviderError
from coupled_sampling.testing import check_provider
from standins.fake_onnxruntime import CUDA, FakeRuntime
from standins.on_a_gpu import opened
from standins.on_cuda import cuda_provider
from standins.trt_bundles import write_bundle

pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return write_bundle(tmp_path_factory.mktemp("cuda") / "toy")


@pytest.fixture
def runtime(monkeypatch):
    """What puts a `FakeRuntime` where the provider imports its own."""

    def install(**settings):
        fake = FakeRuntime(**settings)
        monkeypatch.setattr(cuda_session, "require_onnxruntime", lambda install: fake)
        return fake

    return install


def starts(*values):
    return np.array(values, np.int64)


def some_tokens(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 11, shape)


def test_it_passes_the_conformance_suite(bundle, runtime):
    fake = runtime()
    provider = open_model(bundle, Place("cuda"), 3)
    assert isinstance(provider, LogitsProvider)
    assert provider.runs == Runs(CUDA, 0)
    reference = OrtProvider.open(bundle, threads=1)
    check_provider(provider, reference=lambda tokens: reference.forward(tokens[None], starts(0))[0])
    assert fake.sessions[0].runs > 10


def test_it_gives_the_tokens_of_the_cpu(bundle, runtime):
    runtime()
    settings = {"length": 20, "method": "scd-gumbel", "window": 6, "drafting": "repeat", "seed": 1}
    found = generate(open_model(bundle, Place("cuda"), 2), [[8], [3, 1]], **settings)
    expected = generate(OrtProvider.open(bundle, batch_size=2, threads=1), [[8], [3, 1]], **settings)
    for one, other in zip(found.tokens, expected.tokens, strict=True):
        assert one.tolist() == other.tolist()


def test_tokens_are_bound_anew_in_every_call(bundle, runtime, monkeypatch):
    """The control for the test above: bound once, as on the CPU, the second call would see the first one's tokens."""
    runtime()
    provider, oracle = cuda_provider(bundle), OrtProvider.open(bundle, threads=1)
    first, second = some_tokens(1, 4), some_tokens(1, 4, seed=1)
    provider.forward(first, starts(0))
    np.testing.assert_allclose(provider.forward(second, starts(0)), oracle.forward(second, starts(0)), atol=2e-5)
    monkeypatch.setattr(DeviceBinding, "bind_input", lambda binding, name, values: None)
    stale = provider.forward(first, starts(0)).copy()
    assert np.abs(stale[..., :8] - oracle.forward(first, starts(0))[..., :8]).max() > 1e-3


def test_logits_can_stay_on_the_device(bundle, runtime):
    fake = runtime()
    provider = cuda_provider(bundle, 2, on_device=True)
    oracle = OrtProvider.open(bundle, batch_size=2, threads=1)
    tokens = some_tokens(2, 9)
    for first, end in ((0, 5), (5, 9)):
        logits = provider.forward(tokens[:, first:end], starts(first, first))
        assert isinstance(logits, DevicePointer)
        assert device_pointer(logits) is logits
        assert (logits.shape, logits.dtype, logits.stream) == ((2, end - first, 11), "float32", None)
        expected = oracle.forward(tokens[:, first:end], starts(first, first))
        np.testing.assert_allclose(fake.at(logits.pointer, logits.shape, np.float32), expected, atol=2e-5)


def test_the_session_is_what_it_must_be(bundle, runtime):
    fake = runtime()
    provider = cuda_provider(bundle, threads=2)
    (session,) = fake.sessions
    assert session.providers == [(CUDA, {"device_id": "0", "use_tf32": "0"})]
    assert session.enable_fallback == 0
    assert session.options.intra_op_num_threads == 2
    assert "session.disable_cpu_ep_fallback" not in session.options.entries
    assert set(provider.binding.on_cpu) == {"Slice", "Concat"}
    assert fake.preloaded == 1


def test_memory_beyond_a_buffer_is_caught(bundle, runtime):
    runtime()
    provider = cuda_provider(bundle)
    with pytest.raises(ProviderError, match=r"past_key_values\.0\.key of shape .* does not fit in"):
        provider._caches.choose(range(2))


def test_nodes_on_the_cpu_are_refused(bundle, runtime):
    runtime(on_cpu=("Slice", "Attention", "Transpose"))
    with pytest.raises(
        ProviderError, match=r"no CUDA kernel for \d+ nodes .* Attention \(2\), Transpose \(\d+\); install"
    ):
        cuda_provider(bundle)
    assert cuda_provider(bundle, cpu_nodes="any").binding.on_cpu["Attention"] == 2
    with pytest.raises(ProviderError, match="cpu_nodes='none' forbids"):
        cuda_provider(bundle, cpu_nodes="none")
    fake = runtime(on_cpu=())
    cuda_provider(bundle, cpu_nodes="none")
    assert fake.sessions[0].options.entries["session.disable_cpu_ep_fallback"] == "1"


def test_running_on_the_cpu_instead_is_refused(bundle, runtime):
    runtime(used="CPUExecutionProvider")
    with pytest.raises(ProviderError, match="on CPUExecutionProvider, expected CUDAExecutionProvider"):
        cuda_provider(bundle)


@pytest.mark.parametrize(
    ("message", "kind", "match"),
    [
        ("CUDA failure 100: no CUDA-capable device is detected", ProviderError, "cannot use GPU 0.*nvidia-smi"),
        (
            "Load model failed: protobuf parsing failed",
            BundleError,
            "cannot load .*window.onnx.*export the bundle again",
        ),
    ],
)
def test_failures_of_the_session_are_told_apart(bundle, runtime, message, kind, match):
    runtime(fails=message)
    with pytest.raises(kind, match=match):
        cuda_provider(bundle)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"device": -1}, "device is -1"),
        ({"device": True}, "device is True"),
        ({"cpu_nodes": "all"}, "cpu_nodes is 'all'"),
        ({"threads": 0}, "threads is 0"),
    ],
)
def test_arguments_that_cannot_work_are_refused(bundle, runtime, settings, match):
    fake = runtime()
    with pytest.raises(InvalidArgument, match=match):
        cuda_provider(bundle, **settings)
    assert fake.sessions == []


def test_a_package_without_cuda_is_refused(bundle):
    """With the real package, where it is the one for the CPU."""
    if CUDA in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime was built with CUDA")
    with pytest.raises(MissingDependency, match=r"built without CUDA.*coupled-sampling\[gpu\].*exclude each other"):
        open_model(bundle, Place("cuda"))


@pytest.fixture
def on_a_gpu(bundle):
    """What opens providers on a GPU, or skips."""

    def open_(**settings):
        return opened(lambda: cuda_provider(bundle, **settings))

    return open_


@pytest.mark.gpu
def test_on_a_gpu_it_passes_the_conformance_suite(bundle, on_a_gpu):
    reference = OrtProvider.open(bundle)
    check_provider(
        on_a_gpu(rows=3), tolerance=2e-3, reference=lambda tokens: reference.forward(tokens[None], starts(0))[0]
    )


@pytest.mark.gpu
def test_on_a_gpu_it_says_what_runs_on_the_cpu(on_a_gpu):
    provider = on_a_gpu(cpu_nodes="any")
    print(dict(provider.binding.on_cpu))
    assert provider.runs.execution_provider == CUDA
    assert set(provider.binding.on_cpu) <= cuda_session.SHAPE_OPERATORS

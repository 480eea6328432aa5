"""The CUDA provider on a stand-in for ``onnxruntime`` that keeps the rules of bindings, and its refusals with the real package.

The stand-in has device memory at addresses of its own, copies an input from the host when it is bound and not again, and
computes the graph on the CPU. Nothing ran on a GPU; the tests marked ``gpu`` do, where there is one.
"""

import ctypes
from types import SimpleNamespace

import numpy as np
import pytest
from fake_cuda import RuleBroken
from trt_bundles import write_bundle

from coupled_sampling import generate
from coupled_sampling.backends import OrtProvider, ort_cuda
from coupled_sampling.backends.cuda.pointers import DevicePointer, device_pointer
from coupled_sampling.backends.ort_cuda import OrtCudaProvider
from coupled_sampling.contracts import LogitsProvider
from coupled_sampling.errors import BundleError, CoupledSamplingError, InvalidArgument, MissingDependency, ProviderError
from coupled_sampling.testing import check_provider

pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

CUDA = "CUDAExecutionProvider"


class FakeRuntime:
    """The module ``onnxruntime`` of a machine with one GPU; ``on_cpu`` are operators that have no CUDA kernel."""

    __version__ = "1.31.1"
    available = (CUDA, "CPUExecutionProvider")

    def __init__(self, *, on_cpu=("Slice", "Concat"), used=CUDA, fails=None):
        self.on_cpu, self.used, self.fails = on_cpu, used, fails
        self.memory, self.next, self.sessions = {}, 0x7F0000000000, []
        self.OrtValue = SimpleNamespace(ortvalue_from_numpy=self.on_the_device)
        self.SessionOptions = Options
        self.InferenceSession = self.open

    def get_available_providers(self):
        return list(self.available)

    def on_the_device(self, values, kind, device):
        assert (kind, device) == ("cuda", 0)
        address, content = self.next, values.copy()
        self.next += -(-content.nbytes // 256) * 256 + 4096
        self.memory[address] = content
        return SimpleNamespace(data_ptr=lambda: address, shape=lambda: list(values.shape))

    def at(self, address, shape):
        """The memory at ``address``, which must be a whole allocation's beginning and hold ``shape``."""
        if address not in self.memory:
            raise RuleBroken(f"{address:#x} is not device memory")
        content, size = self.memory[address].reshape(-1), int(np.prod(shape))
        if size > content.size:
            raise RuleBroken(f"{shape} at {address:#x} runs beyond the allocation")
        return content[:size].reshape(shape)

    def open(self, path, options, providers, enable_fallback):
        if self.fails is not None:
            raise RuntimeError(self.fails)
        if options.entries.get("session.disable_cpu_ep_fallback") == "1" and self.on_cpu:
            raise RuntimeError(
                "This session contains graph nodes that are assigned to the default CPU EP, but fallback to CPU EP has been "
                "explicitly disabled by the user."
            )
        session = Session(self, path, options, providers, enable_fallback)
        self.sessions.append(session)
        return session


class Options:
    def __init__(self):
        self.entries, self.intra_op_num_threads, self.enable_mem_pattern = {}, None, True

    def add_session_config_entry(self, key, value):
        self.entries[key] = value


class Session:
    def __init__(self, runtime, path, options, providers, enable_fallback):
        self.runtime, self.options, self.providers = runtime, options, providers
        self.enable_fallback, self.runs = enable_fallback, 0
        plain = onnxruntime.SessionOptions()
        plain.intra_op_num_threads, plain.log_severity_level = 1, 3
        plain.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        self.real = onnxruntime.InferenceSession(path, plain, providers=["CPUExecutionProvider"])
        self.get_inputs, self.get_outputs = self.real.get_inputs, self.real.get_outputs

    def get_providers(self):
        return [self.runtime.used, "CPUExecutionProvider"]

    def get_provider_graph_assignment_info(self):
        assert self.options.entries["session.record_ep_graph_assignment_info"] == "1"
        nodes = [node for part in self.real.get_provider_graph_assignment_info() for node in part.get_nodes()]
        places = {CUDA: [], "CPUExecutionProvider": []}
        for node in nodes:
            places["CPUExecutionProvider" if node.op_type in self.runtime.on_cpu else CUDA].append(node)
        return [SimpleNamespace(ep_name=name, get_nodes=lambda found=found: found) for name, found in places.items()]

    def io_binding(self):
        return Binding(self.runtime)

    def run_with_iobinding(self, binding):
        self.runs += 1
        names = [value.name for value in self.get_outputs()]
        missing = {value.name for value in self.get_inputs()} - set(binding.inputs) | set(names) - set(binding.outputs)
        if missing:
            raise RuleBroken(f"{', '.join(sorted(missing))} is not bound")
        for name in names:
            past = name.replace("present.", "past_key_values.")
            if past != name and binding.inputs[past].ctypes.data != binding.outputs[name].ctypes.data:
                raise RuleBroken(f"{name} is not at the address of {past}")
        for name, value in zip(names, self.real.run(names, binding.inputs), strict=True):
            binding.outputs[name][...] = value


class Binding:
    def __init__(self, runtime):
        self.runtime, self.inputs, self.outputs = runtime, {}, {}

    def bind_cpu_input(self, name, values):
        self.inputs[name] = values.copy()  # as ONNX Runtime does: later changes of the array are not seen

    def bind_input(self, name, kind, device, dtype, shape, address):
        assert (device, dtype) == (0, np.float32)
        if kind != "cuda":
            raise RuleBroken(f"{name} is bound from the host and would be copied once, at binding")
        self.inputs[name] = self.runtime.at(address, shape)

    def bind_output(self, name, kind, device, dtype, shape, address):
        assert (device, dtype) == (0, np.float32)
        if kind == "cuda":
            self.outputs[name] = self.runtime.at(address, shape)
        else:
            if address in self.runtime.memory:
                raise RuleBroken(f"{name} is bound as host memory, but lies on the device")
            raw = (ctypes.c_uint8 * (4 * int(np.prod(shape)))).from_address(address)
            self.outputs[name] = np.frombuffer(raw, np.float32).reshape(shape)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return write_bundle(tmp_path_factory.mktemp("cuda") / "toy")


@pytest.fixture
def runtime(monkeypatch):
    """What puts a `FakeRuntime` where the provider imports its own."""

    def install(**settings):
        fake = FakeRuntime(**settings)
        monkeypatch.setattr(ort_cuda, "require_onnxruntime", lambda install: fake)
        return fake

    return install


def starts(*values):
    return np.array(values, np.int64)


def some_tokens(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 11, shape)


def test_it_passes_the_conformance_suite(bundle, runtime):
    fake = runtime()
    provider = OrtProvider.open(bundle, batch_size=3, device="cuda")
    assert isinstance(provider, OrtCudaProvider)
    assert isinstance(provider, LogitsProvider)
    assert provider.execution_provider == CUDA
    reference = OrtProvider.open(bundle, threads=1)
    check_provider(provider, reference=lambda tokens: reference.forward(tokens[None], starts(0))[0])
    assert fake.sessions[0].runs > 10


def test_it_gives_the_tokens_of_the_cpu(bundle, runtime):
    runtime()
    settings = {"length": 20, "method": "scd-gumbel", "window": 6, "drafting": "repeat", "seed": 1}
    found = generate(OrtProvider.open(bundle, batch_size=2, device="cuda"), [[8], [3, 1]], **settings)
    expected = generate(OrtProvider.open(bundle, batch_size=2, threads=1), [[8], [3, 1]], **settings)
    for one, other in zip(found.tokens, expected.tokens, strict=True):
        assert one.tolist() == other.tolist()


def test_tokens_are_bound_anew_in_every_call(bundle, runtime, monkeypatch):
    """The control for the test above: bound once, as on the CPU, the second call would see the first one's tokens."""
    runtime()
    provider, oracle = OrtCudaProvider.open_on_gpu(bundle), OrtProvider.open(bundle, threads=1)
    first, second = some_tokens(1, 4), some_tokens(1, 4, seed=1)
    provider.forward(first, starts(0))
    np.testing.assert_allclose(provider.forward(second, starts(0)), oracle.forward(second, starts(0)), atol=2e-5)
    monkeypatch.setattr(provider, "_binding", lambda rows, width: provider._bindings[rows, width])
    stale = provider.forward(first, starts(0)).copy()
    assert np.abs(stale[..., :8] - oracle.forward(first, starts(0))[..., :8]).max() > 1e-3


def test_logits_can_stay_on_the_device(bundle, runtime):
    fake = runtime()
    provider = OrtCudaProvider.open_on_gpu(bundle, batch_size=2, on_device=True)
    oracle = OrtProvider.open(bundle, batch_size=2, threads=1)
    tokens = some_tokens(2, 9)
    for first, end in ((0, 5), (5, 9)):
        logits = provider.forward(tokens[:, first:end], starts(first, first))
        assert isinstance(logits, DevicePointer)
        assert device_pointer(logits) is logits
        assert (logits.shape, logits.dtype, logits.stream) == ((2, end - first, 11), "float32", None)
        expected = oracle.forward(tokens[:, first:end], starts(first, first))
        np.testing.assert_allclose(fake.at(logits.pointer, logits.shape), expected, atol=2e-5)


def test_the_session_is_what_it_must_be(bundle, runtime):
    fake = runtime()
    provider = OrtCudaProvider.open_on_gpu(bundle, threads=2)
    (session,) = fake.sessions
    assert session.providers == [(CUDA, {"device_id": "0", "use_tf32": "0"})]
    assert session.enable_fallback == 0
    assert session.options.intra_op_num_threads == 2
    assert "session.disable_cpu_ep_fallback" not in session.options.entries
    assert set(provider.on_cpu) == {"Slice", "Concat"}


def test_memory_beyond_a_buffer_is_caught(bundle, runtime):
    runtime()
    provider = OrtCudaProvider.open_on_gpu(bundle)
    with pytest.raises(RuleBroken, match="beyond the allocation"):
        provider._bind_what_stays(2, 4)


def test_nodes_on_the_cpu_are_refused(bundle, runtime):
    runtime(on_cpu=("Slice", "Attention", "Transpose"))
    with pytest.raises(
        ProviderError, match=r"no CUDA kernel for \d+ nodes .* Attention \(2\), Transpose \(\d+\); install"
    ):
        OrtCudaProvider.open_on_gpu(bundle)
    assert OrtCudaProvider.open_on_gpu(bundle, cpu_nodes="any").on_cpu["Attention"] == 2
    with pytest.raises(ProviderError, match="cpu_nodes='none' forbids"):
        OrtCudaProvider.open_on_gpu(bundle, cpu_nodes="none")
    fake = runtime(on_cpu=())
    OrtCudaProvider.open_on_gpu(bundle, cpu_nodes="none")
    assert fake.sessions[0].options.entries["session.disable_cpu_ep_fallback"] == "1"


def test_running_on_the_cpu_instead_is_refused(bundle, runtime):
    runtime(used="CPUExecutionProvider")
    with pytest.raises(ProviderError, match="on CPUExecutionProvider, expected CUDAExecutionProvider"):
        OrtCudaProvider.open_on_gpu(bundle)


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
        OrtCudaProvider.open_on_gpu(bundle)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"device": -1}, "device is -1"),
        ({"device": True}, "device is True"),
        ({"cpu_nodes": "all"}, "cpu_nodes is 'all'"),
        ({"threads": 0}, "threads is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_arguments_that_cannot_work_are_refused(bundle, runtime, settings, match):
    fake = runtime()
    with pytest.raises(InvalidArgument, match=match):
        OrtCudaProvider.open_on_gpu(bundle, **settings)
    assert fake.sessions == []


def test_there_is_no_third_device(bundle):
    with pytest.raises(InvalidArgument, match="device is 'gpu', expected 'cpu' or 'cuda'"):
        OrtProvider.open(bundle, device="gpu")


def test_a_package_without_cuda_is_refused(bundle):
    """With the real package, where it is the one for the CPU."""
    if CUDA in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime was built with CUDA")
    with pytest.raises(MissingDependency, match=r"built without CUDA.*coupled-sampling\[gpu\].*exclude each other"):
        OrtProvider.open(bundle, device="cuda")


@pytest.fixture
def on_a_gpu(bundle):
    """What opens providers on a GPU, or skips."""

    def open_(**settings):
        try:
            return OrtCudaProvider.open_on_gpu(bundle, **settings)
        except CoupledSamplingError as error:
            pytest.skip(f"{type(error).__name__}: {error}")

    return open_


@pytest.mark.gpu
def test_on_a_gpu_it_passes_the_conformance_suite(bundle, on_a_gpu):
    reference = OrtProvider.open(bundle)
    check_provider(
        on_a_gpu(batch_size=3), tolerance=2e-3, reference=lambda tokens: reference.forward(tokens[None], starts(0))[0]
    )


@pytest.mark.gpu
def test_on_a_gpu_it_says_what_runs_on_the_cpu(on_a_gpu):
    provider = on_a_gpu(cpu_nodes="any")
    print(dict(provider.on_cpu))
    assert provider.execution_provider == CUDA
    assert set(provider.on_cpu) <= ort_cuda.SHAPE_OPERATORS

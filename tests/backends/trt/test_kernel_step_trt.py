"""KernelStep over a TensorRT provider whose logits stay on the device: both on stand-ins, the kernels emulated on the CPU.

CUDA's rules are enforced by `fake_cuda` and `fake_kernels`, TensorRT's by `fake_tensorrt`. A launched kernel runs in the emulator
when the stream gets there, on copies of the fake device's memory. Nothing ran on a GPU.
"""

import numpy as np
import pytest

from coupled_sampling import Request, Sampling, generate
from coupled_sampling.backends import OrtProvider, Place, open_model
from coupled_sampling.backends.cuda import pinned_launcher
from coupled_sampling.backends.cuda.device import Device
from coupled_sampling.backends.cuda.kernel_step import KernelStep
from coupled_sampling.backends.cuda.pinned_launcher import PinnedLauncher
from coupled_sampling.backends.cuda.streams import DeviceArray, Stream
from coupled_sampling.backends.trt import find_flavour
from coupled_sampling.contracts import RowInfo, Window
from coupled_sampling.errors import InvalidArgument, ProviderError
from standins.cuda_emulation.emulation import PLAIN, EmulationLauncher
from standins.fake_cuda import RuleBroken
from standins.fake_kernels import EmulatedCuda
from standins.on_a_gpu import opened
from standins.trt_bundles import Machine, write_bundle

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

PROMPTS = [[8], [8, 1, 2], [3, 0]]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return write_bundle(tmp_path_factory.mktemp("kernels") / "toy")


@pytest.fixture
def emulator():
    with EmulationLauncher(PLAIN) as launcher:
        yield launcher


@pytest.fixture
def with_kernels(emulator, monkeypatch):
    """What gives kernels to a fake GPU."""
    pytest.importorskip("cuda.bindings")

    def install(cuda):
        cuda.emulator = emulator
        monkeypatch.setattr(
            pinned_launcher, "compile_kernels", lambda capability, threads, *_: f"{capability} {threads}".encode()
        )

    return install


@pytest.fixture
def launcher_of(with_kernels):
    """What makes a launcher on the stream of a fake device."""

    def make(cuda=None):
        device = Device(bindings=cuda or EmulatedCuda())
        with_kernels(device.bindings)
        return PinnedLauncher(Stream(device))

    return make


def expect_the_tokens_of_host_step(bundle, launcher, provider, method="scd-gumbel", sampling=None):
    settings = {"length": 20, "window": 6, "seed": 3, "drafting": "repeat", "sampling": sampling or Sampling()}
    step = KernelStep(provider, method, launcher)
    found = generate(step, PROMPTS, **settings)
    expected = generate(OrtProvider.open(bundle, batch_size=3, threads=1), PROMPTS, method=method, **settings)
    for one, other in zip(found.tokens, expected.tokens, strict=True):
        assert one.tolist() == other.tolist()
    for one, other in zip(found.traces, expected.traces, strict=True):
        assert one.committed_per_step == other.committed_per_step
    return step


@pytest.mark.parametrize("method", ["ar", "sjd", "scd-maximal", "scd-gumbel", "scd-match"])
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0.8, top_k=5, top_p=0.9)], ids=["plain", "warped"])
def test_generation_gives_the_tokens_of_host_step(bundle, with_kernels, method, sampling):
    machine = Machine()
    with_kernels(machine.cuda)
    provider = machine.open(bundle, on_device=True)
    launcher = PinnedLauncher(provider.stream)
    step = expect_the_tokens_of_host_step(bundle, launcher, provider, method, sampling)
    assert machine.cuda.waits == []
    assert len(provider.captured) > 1
    step.close()
    assert machine.cuda.live() == [], "the step closes the launcher and the provider"
    for one in (step, launcher, provider):
        one.close()  # twice does no harm


def test_another_stream_waits_for_the_logits(bundle, with_kernels):
    machine = Machine()
    with_kernels(machine.cuda)
    provider = machine.open(bundle, on_device=True)
    launcher = PinnedLauncher(Stream(provider.device))
    expect_the_tokens_of_host_step(bundle, launcher, provider)
    assert set(machine.cuda.waits) == {(launcher.stream, provider.stream.handle)}


def test_a_launcher_that_does_not_wait_is_caught(bundle, with_kernels):
    machine = Machine()
    with_kernels(machine.cuda)
    provider = machine.open(bundle, on_device=True)
    launcher = PinnedLauncher(Stream(provider.device))
    launcher.wait = lambda stream: None
    with pytest.raises(RuleBroken, match="wrong stream"):
        generate(KernelStep(provider, "ar", launcher), PROMPTS, length=3, window=4)


def warm_step(provider, launcher):
    """A step that has seen its only shape, and a window of that shape."""
    step = KernelStep(provider, "scd-gumbel", launcher)
    step.begin(0, Request([1], 1))
    one, info = np.array([1]), RowInfo(3, 0, Sampling())

    def window(round_):
        return Window(
            np.array([[1, 2, 3, 4]]), 0 * one, one, 0 * one, 3 * one, one == 1, round_ * one, [info], [one], [None]
        )

    for round_ in range(2):
        step.step(window(round_))
    return step, window


def test_a_warm_step_is_two_graphs_and_one_wait(bundle, with_kernels):
    """The model's and the decision's: nothing is allocated, copied or launched one by one."""
    machine = Machine()
    with_kernels(machine.cuda)
    provider = machine.open(bundle, on_device=True)
    step, window = warm_step(provider, PinnedLauncher(provider.stream))
    machine.cuda.calls.clear()
    found = step.step(window(2))
    assert machine.cuda.calls.count("cuGraphLaunch") == 2
    assert set(machine.cuda.calls) <= {"cuCtxSetCurrent", "cuGraphLaunch", "cuStreamSynchronize"}
    assert 1 <= found.committed[0] <= 4


def test_without_cuda_graphs_every_launch_is_its_own(bundle, with_kernels):
    machine = Machine()
    with_kernels(machine.cuda)
    provider = machine.open(bundle, on_device=True)
    expect_the_tokens_of_host_step(bundle, PinnedLauncher(provider.stream, cuda_graphs=False), provider)
    step, window = warm_step(provider, PinnedLauncher(provider.stream, cuda_graphs=False))
    machine.cuda.calls.clear()
    step.step(window(2))
    assert machine.cuda.calls.count("cuLaunchKernel") == 4
    assert machine.cuda.calls.count("cuGraphLaunch") == 1, "the model's"


def test_a_step_that_was_broken_off_can_be_done_again(bundle, with_kernels):
    """While it was waited for; what it had queued may still be reading what the next one will write."""
    machine = Machine()
    with_kernels(machine.cuda)
    provider = machine.open(bundle, on_device=True)
    step, window = warm_step(provider, PinnedLauncher(provider.stream))
    expected = step.step(window(2))
    step, window = warm_step(provider, PinnedLauncher(provider.stream))
    provider.stream.synchronize()
    real, waits = provider.stream.synchronize, []

    def breaking():
        waits.append(1)
        if len(waits) == 2:  # the first is the provider's, before it writes its tokens
            raise KeyboardInterrupt
        real()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(provider.stream, "synchronize", breaking)
        with pytest.raises(KeyboardInterrupt):
            step.step(window(2))
    found = step.step(window(2))
    assert found.tokens.tolist() == expected.tokens.tolist()
    assert found.committed.tolist() == expected.committed.tolist()


def test_wider_windows_take_larger_memory_and_new_graphs(bundle, with_kernels):
    machine = Machine()
    with_kernels(machine.cuda)
    provider = machine.open(bundle, on_device=True)
    step, window = warm_step(provider, PinnedLauncher(provider.stream))
    narrow = step.step(window(2))
    wide = window(3)._replace(tokens=np.arange(8)[None], fresh=np.array([7]))
    for round_ in (3, 4, 5):
        step.step(wide._replace(round=np.array([round_])))
    again = step.step(window(2))
    assert again.tokens.tolist() == narrow.tokens.tolist()
    step.close()


def test_logits_that_lie_elsewhere_every_time_take_no_more_memory(bundle, with_kernels):
    """Nor are they captured: a graph would be of no use again."""

    class Moving:
        def __init__(self, inner, stream):
            self.inner, self.stream, self.kept = inner, stream, []
            self.vocab_size, self.batch_size, self.max_length = inner.vocab_size, inner.batch_size, inner.max_length
            self.max_window = inner.max_window

        def forward(self, tokens, start):
            found = self.inner.forward(tokens, start)
            size = 4 * int(np.prod(found.shape))
            self.kept.append(self.stream.device.allocate(size))
            self.stream.device.call("cuMemcpyDtoDAsync", self.kept[-1].address, found.address, size, self.stream.handle)
            return DeviceArray(self.kept[-1].address, found.shape, np.float32, self.stream)

    machine = Machine()
    with_kernels(machine.cuda)
    provider = machine.open(bundle, on_device=True)
    launcher = PinnedLauncher(provider.stream)
    step, window = warm_step(Moving(provider, provider.stream), launcher)
    before = sum(block.pinned for block in machine.cuda.live())
    machine.cuda.calls.clear()
    for round_ in range(2, 12):
        step.step(window(round_))
    assert sum(block.pinned for block in machine.cuda.live()) == before
    assert machine.cuda.calls.count("cuLaunchKernel") == 40
    step.close()
    assert not machine.cuda.calls.count("cuStreamBeginCapture")


def test_logits_on_the_host_are_refused(bundle, with_kernels):
    machine = Machine()
    with_kernels(machine.cuda)
    provider = machine.open(bundle)
    launcher = PinnedLauncher(provider.stream)
    with pytest.raises(ProviderError, match="use HostStep"):
        generate(KernelStep(provider, "ar", launcher), PROMPTS, length=3, window=4)


def test_an_upload_may_be_changed_at_once_and_is_not_waited_for(launcher_of):
    cuda = EmulatedCuda()
    launcher = launcher_of(cuda)
    memory = launcher.allocate(64)
    cuda.calls.clear()
    values = np.arange(4)
    for offset in (0, 32):
        launcher.upload(memory + offset, values)
        values += 10
    assert "cuStreamSynchronize" not in cuda.calls
    found = np.zeros(8, np.int64)
    launcher.download(memory, found)
    assert found.tolist() == [0, 1, 2, 3, 10, 11, 12, 13]


def test_page_locked_memory_is_used_again(launcher_of):
    cuda = EmulatedCuda()
    launcher = launcher_of(cuda)
    memory = launcher.allocate(8000)
    for size in (10, 100, 1000, 900, 20) * 5:
        launcher.upload(memory, np.ones(size))
        found = np.zeros(size)
        launcher.download(memory, found)
        assert (found == 1).all()
    assert sum(block.pinned for block in cuda.live()) <= 3


def test_addresses_that_are_not_the_launchers_are_refused(launcher_of):
    launcher = launcher_of()
    memory = launcher.allocate(16)
    with pytest.raises(InvalidArgument, match="at most 8"):
        launcher.upload(memory + 8, np.zeros(2))
    launcher.release(memory)
    for call in (lambda: launcher.release(memory), lambda: launcher.upload(memory, np.zeros(1))):
        with pytest.raises(InvalidArgument, match=f"pointer is {memory:#x}"):
            call()


@pytest.mark.gpu
@pytest.mark.parametrize("method", ["sjd", "scd-gumbel"])
def test_on_a_gpu_the_kernels_give_the_tokens_of_host_step(bundle, tmp_path, method):
    place, settings = Place(find_flavour().name, engines=tmp_path), {"length": 20, "window": 6, "seed": 3}
    with opened(lambda: open_model(bundle, place, 3, method=method, step="kernels")) as step:
        found = generate(step, PROMPTS, drafting="repeat", **settings)
    with open_model(bundle, place, 3, method=method, step="host") as step:
        expected = generate(step, PROMPTS, drafting="repeat", **settings)
    # Near ties may fall otherwise on the device, and all that follows with them.
    same = [
        int((np.asarray(a) == np.asarray(b)).cumprod().sum())
        for a, b in zip(found.tokens, expected.tokens, strict=True)
    ]
    assert max(same) == 20

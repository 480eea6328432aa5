"""What `test_cuda_bindings` runs in a process whose libcuda is the stand-in: the real cuda-python and the real NVRTC."""

import ctypes
import gc
import threading

import numpy as np
import pytest

from coupled_sampling.backends.cuda import pinned_launcher
from coupled_sampling.backends.cuda.compile import compile_kernels
from coupled_sampling.backends.cuda.device import CudaError, Device
from coupled_sampling.backends.cuda.kernels import DRAWS
from coupled_sampling.backends.cuda.pinned_launcher import PinnedLauncher
from coupled_sampling.backends.cuda.streams import Stream
from coupled_sampling.noise import race_weights
from standins.cuda_emulation.comparison import Float32Table, NormalWorld, compare_on, exact_correction


@pytest.fixture
def library():
    return ctypes.CDLL("libcuda.so.1")


@pytest.fixture
def device():
    return Device()


@pytest.fixture
def stream(device):
    return Stream(device)


def draws(position, weights, vocab_size=500):
    """The argument of the kernel ``noise`` for seed 3, sequence 4."""
    return np.array((3, 4, position, 0, vocab_size, 0, 0, weights), DRAWS)


def test_a_device_says_what_it_is(device):
    found = device.name, device.compute_capability, device.attribute("MULTIPROCESSOR_COUNT"), device.memory()
    assert found == ("stand-in for a GPU", (9, 0), 132, (2**36, 2**36))


def test_too_much_memory_and_a_missing_gpu_are_refused(device):
    with pytest.raises(
        CudaError, match=r"cuMemAlloc failed: CUDA_ERROR_OUT_OF_MEMORY \(2\), said .*1099511627776 bytes"
    ):
        device.allocate(2**40)
    with pytest.raises(CudaError, match="there are 1 GPUs, number 1 was asked"):
        Device(1)


def test_copies_go_there_and_back_when_the_stream_is_waited_for(device, stream):
    there, back, buffer = device.pinned((2, 3), np.int64), device.pinned((2, 3), np.int64), device.allocate(48)
    there.values[:] = np.arange(6).reshape(2, 3)
    first = stream.record()
    stream.upload(buffer, there)
    stream.download(back, buffer)
    second = stream.record()
    stream.synchronize()
    assert back.values.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert second.milliseconds_since(first) == 1
    stream.clear(buffer)
    stream.download(back, buffer)
    stream.synchronize()
    assert not back.values.any()


def test_what_is_lost_is_given_back_from_a_thread_that_never_called_cuda(library, device):
    gc.collect()
    before = library.stand_in_live(0), library.stand_in_live(1)
    lost = [device.allocate(8), device.pinned((4,), np.int32), Stream(device)]
    assert (library.stand_in_live(0), library.stand_in_live(1)) == (before[0] + 1, before[1] + 1)
    worker = threading.Thread(target=lost.clear)
    worker.start()
    worker.join()
    gc.collect()
    assert (library.stand_in_live(0), library.stand_in_live(1)) == before


def test_a_captured_kernel_is_replayed(library, device, stream):
    launcher, weights, found = PinnedLauncher(stream), device.allocate(2000), device.pinned((500,), np.float32)
    before = library.stand_in_launches(), library.stand_in_graphs()
    with stream.capture() as graph:
        stream.clear(weights)
        launcher.launch("noise", (2, 1), draws(7, weights.address))
        stream.download(found, weights)
    stream.synchronize()
    assert (library.stand_in_launches(), library.stand_in_graphs()) == (before[0], before[1] + 1), "nothing has run yet"
    for _ in range(2):
        found.values[:] = 0
        stream.launch(graph)
        stream.synchronize()
        np.testing.assert_array_max_ulp(found.values, race_weights(3, 4, 7, 500).astype(np.float32), 1)
    assert library.stand_in_launches() == before[0] + 2
    graph.free()
    assert library.stand_in_graphs() == before[1]


def test_a_capture_that_fails_leaves_the_stream_usable(device, stream):
    buffer, found = device.allocate(8), device.pinned((2,), np.int32)
    with pytest.raises(CudaError, match="CUDA_ERROR_INVALID_VALUE"), stream.capture():
        device.call("cuMemsetD8Async", 4096, 0, 8, stream.handle)
    stream.clear(buffer)
    stream.download(found, buffer)
    stream.synchronize()
    assert found.values.tolist() == [0, 0]


@pytest.mark.parametrize("method", ["ar", "sjd", "scd-gumbel", "scd-match"])
def test_steps_give_the_tokens_of_host_step(library, stream, method):
    gc.collect()
    before, launched = library.stand_in_live(0), library.stand_in_launches()
    launcher = PinnedLauncher(stream)
    assert compare_on(launcher, lambda: Float32Table(300), method).differences == []
    assert compare_on(launcher, lambda: NormalWorld(9001), method, steps=25).differences == []
    launcher.close()
    assert library.stand_in_live(0) == before
    assert library.stand_in_launches() > launched + 20


def test_steps_with_corrections_give_the_tokens_of_host_step(library, stream):
    gc.collect()
    before = library.stand_in_live(0)
    launcher, corrections = PinnedLauncher(stream), exact_correction(300, (1, 4))
    assert compare_on(launcher, lambda: Float32Table(300), "scd-maximal", corrections=corrections).differences == []
    launcher.close()
    assert library.stand_in_live(0) == before


def test_a_launcher_waits_for_another_stream(device, stream):
    other, weights, found = Stream(device), device.allocate(2000), device.pinned((500,), np.float32)
    PinnedLauncher(other).launch("noise", (2, 1), draws(9, weights.address))
    waiting = PinnedLauncher(stream)
    waiting.wait(other.handle)
    stream.download(found, weights)
    stream.synchronize()
    assert np.isfinite(found.values).all(), "the stream did not wait"


def test_kernels_for_another_gpu_are_refused(stream, monkeypatch):
    monkeypatch.setattr(pinned_launcher, "compile_kernels", lambda architecture, threads: compile_kernels(80, threads))
    with pytest.raises(CudaError, match=r"CUDA_ERROR_NO_BINARY_FOR_GPU \(209\).*build it again on this machine"):
        PinnedLauncher(stream)

"""Buffers, streams and graphs, against a stand-in that keeps CUDA's rules; and that stand-in against breaches of them."""

import gc
import sys
import threading

import numpy as np
import pytest

from coupled_sampling.backends.cuda.device import CudaError, Device
from coupled_sampling.backends.cuda.driver import Driver
from coupled_sampling.backends.cuda.streams import DeviceArray, Stream
from coupled_sampling.errors import InvalidArgument, MissingDependency, ProviderError
from standins import fake_cuda
from standins.fake_cuda import Code, FakeCuda, RuleBroken


@pytest.fixture
def cuda():
    return FakeCuda()


@pytest.fixture
def device(cuda):
    return Device(bindings=cuda)


@pytest.fixture
def stream(device):
    return Stream(device)


def test_a_device_says_what_it_is(device):
    assert (device.name, device.compute_capability, device.memory()) == ("Fake GPU", (8, 0), (2**30, 2**30))


def test_what_is_copied_to_the_device_comes_back(device, stream):
    there, back, buffer = device.pinned((2, 3), np.int64), device.pinned((2, 3), np.int64), device.allocate(48)
    there.values[:] = np.arange(6).reshape(2, 3)
    stream.upload(buffer, there)
    stream.download(back, buffer)
    stream.synchronize()
    np.testing.assert_array_equal(back.values, [[0, 1, 2], [3, 4, 5]])


def test_pinned_arrays_begin_with_zeros_and_buffers_can_be_cleared(device, stream):
    pinned, buffer = device.pinned((4,), np.int32), device.allocate(16)
    assert not pinned.values.any()
    pinned.values[:] = 7
    stream.clear(buffer)
    stream.download(pinned, buffer)
    stream.synchronize()
    assert not pinned.values.any()


@pytest.mark.parametrize("way", ["upload", "download"])
def test_an_array_with_a_copy_under_way_cannot_be_touched(device, stream, way):
    pinned, buffer = device.pinned((4,), np.int32), device.allocate(16)
    stream.clear(buffer)
    stream.upload(buffer, pinned) if way == "upload" else stream.download(pinned, buffer)
    with pytest.raises(ProviderError, match="synchronise its stream first"):
        pinned.values  # noqa: B018
    stream.synchronize()
    assert not pinned.values.any()


def test_a_graph_does_its_work_again_with_what_the_memories_hold_then(device, stream):
    there, back, buffer = device.pinned((2,), np.int64), device.pinned((2,), np.int64), device.allocate(16)
    with stream.capture() as graph:
        stream.upload(buffer, there)
        stream.download(back, buffer)
    assert not back.values.any()
    for values in ([1, 2], [3, 4]):
        there.values[:] = values
        stream.launch(graph)
        with pytest.raises(ProviderError, match="synchronise"):
            back.values  # noqa: B018
        stream.synchronize()
        assert back.values.tolist() == values


def test_a_graph_whose_memory_was_freed_is_not_launched(device, stream):
    there, buffer = device.pinned((2,), np.int64), device.allocate(16)
    with stream.capture() as graph:
        stream.upload(buffer, there)
    buffer.free()
    with pytest.raises(ProviderError, match="was freed; capture it again"):
        stream.launch(graph)
    graph.free()
    with pytest.raises(ProviderError, match="never captured to its end, or was freed"):
        stream.launch(graph)


@pytest.mark.parametrize("what", ["synchronize", "allocate", "pinned", "free", "stream", "capture"])
def test_nothing_waits_or_allocates_during_a_capture(device, stream, what):
    buffer = device.allocate(16)
    actions = {
        "synchronize": stream.synchronize,
        "allocate": lambda: device.allocate(1),
        "pinned": lambda: device.pinned((1,), np.int8),
        "free": buffer.free,
        "stream": lambda: Stream(device),
        "capture": lambda: stream.capture().__enter__(),
    }
    with pytest.raises(ProviderError, match="finish the capture first"), stream.capture():
        actions[what]()
    stream.synchronize()  # the stream can be used again
    buffer.free()


def test_a_capture_that_fails_leaves_a_usable_stream(device, stream, cuda):
    cuda.fail("cuStreamEndCapture", Code.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED)
    with (
        pytest.raises(CudaError, match=r"cuStreamEndCapture failed: CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED \(900\)"),
        stream.capture(),
    ):
        pass
    with stream.capture() as graph:
        pass
    stream.launch(graph)


def test_memory_is_given_back_when_asked_and_when_forgotten(device, cuda):
    kept, forgotten = device.allocate(10), device.pinned((10,), np.int8)
    assert len(cuda.live()) == 2
    del forgotten
    assert len(cuda.live()) == 1
    kept.free()
    kept.free()
    assert not cuda.live()
    with pytest.raises(ProviderError, match="was freed"):
        kept.address  # noqa: B018


def test_memory_in_a_cycle_is_not_collected_during_a_capture(device, stream, cuda):
    class Owner:
        def __init__(self):
            self.itself, self.buffer = self, device.allocate(10)

    owner = Owner()
    before = gc.get_threshold()
    try:
        with stream.capture():
            gc.set_threshold(1)
            del owner
            assert len([[] for _ in range(1000)]) == 1000
            assert len(cuda.live()) == 1
    finally:
        gc.set_threshold(*before)
    assert gc.isenabled()
    gc.collect()
    assert not cuda.live()


def test_a_freed_pinned_array_cannot_be_read(device):
    pinned = device.pinned((3,), np.int8)
    pinned.free()
    with pytest.raises(ProviderError, match="was freed"):
        pinned.values  # noqa: B018


def test_a_copy_beyond_a_memory_is_refused(device, stream):
    with pytest.raises(InvalidArgument, match="size is 16, expected at most 8"):
        stream.upload(device.allocate(8), device.pinned((2,), np.int64))


def test_events_measure_time_on_the_device(device, stream):
    first, buffer = stream.record(), device.allocate(8)
    stream.clear(buffer)
    second = stream.record()
    second.synchronize()
    assert second.milliseconds_since(first) > 0


def test_an_array_on_the_device_says_where_it_lies(stream):
    array = DeviceArray(4096, (2, 3), np.float32, stream)
    described = array.__cuda_array_interface__
    assert (array.ndim, described["shape"], described["typestr"], described["data"]) == (
        2,
        (2, 3),
        "<f4",
        (4096, False),
    )
    assert described["stream"] == stream.handle


def test_no_driver_and_no_gpu_are_told_apart(cuda):
    cuda.fail("cuInit", RuntimeError("no libcuda"))
    with pytest.raises(MissingDependency, match=r"there is no NVIDIA driver \(no libcuda\): install the driver"):
        Device(bindings=cuda)
    cuda.fail("cuInit", Code.CUDA_ERROR_NO_DEVICE)
    with pytest.raises(CudaError, match=r"cuInit failed: CUDA_ERROR_NO_DEVICE \(100\).*CUDA_VISIBLE_DEVICES") as caught:
        Device(bindings=cuda)
    assert (caught.value.call, caught.value.code) == ("cuInit", 100)


@pytest.mark.parametrize(("version", "release"), [(12090, "12.9"), (12080, "12.8")])
def test_an_old_driver_is_refused(cuda, version, release):
    cuda.version = version
    with pytest.raises(
        MissingDependency, match=f"knows CUDA {release}, expected 13.0 or newer: update the driver to 580"
    ):
        Device(bindings=cuda)


def test_every_thread_gets_the_context(device, cuda):
    device.use()
    found = []
    worker = threading.Thread(target=lambda: found.append(device.allocate(8).size))
    worker.start()
    worker.join()
    assert found == [8]
    assert cuda.cuMemAlloc(8)[0] == Code.CUDA_SUCCESS, "the context of this thread was taken away"


def test_what_is_lost_is_given_back_from_a_thread_without_a_context(device, cuda):
    lost = [device.allocate(8)]
    worker = threading.Thread(target=lost.clear)
    worker.start()
    worker.join()
    gc.collect()
    assert cuda.live() == []


def test_nothing_is_done_without_a_context(cuda):
    """Negative control of the two above."""
    assert cuda.cuMemGetInfo()[0] == Code.CUDA_ERROR_NOT_INITIALIZED
    Driver(cuda)
    assert cuda.cuMemGetInfo()[0] == Code.CUDA_ERROR_INVALID_CONTEXT


def test_a_gpu_that_does_not_exist_is_refused(cuda):
    with pytest.raises(CudaError, match="there are 1 GPUs, number 1 was asked"):
        Device(1, cuda)
    with pytest.raises(InvalidArgument, match="index is -1"):
        Device(-1, cuda)


def test_too_little_memory_says_how_much_was_asked():
    device = Device(bindings=FakeCuda(memory=100))
    with pytest.raises(CudaError, match=r"cuMemAlloc failed: .*101 bytes were asked; to do: free GPU memory"):
        device.allocate(101)


def test_errors_of_queued_work_surface_when_waiting(stream, cuda):
    cuda.fail("cuStreamSynchronize", Code.CUDA_ERROR_ILLEGAL_ADDRESS)
    with pytest.raises(CudaError, match=r"cuStreamSynchronize failed: CUDA_ERROR_ILLEGAL_ADDRESS \(700\)"):
        stream.synchronize()


def test_missing_bindings_name_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", None)
    with pytest.raises(MissingDependency, match=r"pip install 'coupled-sampling\[gpu\]'"):
        Device()


class TestTheStandInKeepsTheRules:
    """Negative controls: each rule, broken behind the back of the code above."""

    def pieces(self, cuda):
        Device(bindings=cuda).use()
        (_, device), (_, host), (_, stream) = (
            cuda.cuMemAlloc(16),
            cuda.cuMemAllocHost(16),
            cuda.cuStreamCreate(1),
        )
        return device, host, stream

    def test_use_after_free(self, cuda):
        device, host, stream = self.pieces(cuda)
        cuda.cuMemFree(device)
        with pytest.raises(RuleBroken, match="use after free"):
            cuda.cuMemcpyHtoDAsync(device, host, 16, stream)

    def test_beyond_an_allocation(self, cuda):
        device, host, stream = self.pieces(cuda)
        with pytest.raises(RuleBroken, match="beyond the allocation"):
            cuda.cuMemcpyHtoDAsync(device, host, 17, stream)

    def test_host_memory_that_is_not_pinned(self, cuda):
        device, _, stream = self.pieces(cuda)
        with pytest.raises(RuleBroken, match="never allocated"):
            cuda.cuMemcpyHtoDAsync(device, np.zeros(16, np.uint8).ctypes.data, 16, stream)

    def test_two_streams_without_waiting(self, cuda):
        device, host, stream = self.pieces(cuda)
        _, other = cuda.cuStreamCreate(1)
        cuda.cuMemsetD8Async(device, 0, 16, stream)
        with pytest.raises(RuleBroken, match="wrong stream"):
            cuda.cuMemcpyDtoHAsync(host, device, 16, other)

    def test_the_default_stream(self, cuda):
        device, _, _ = self.pieces(cuda)
        with pytest.raises(RuleBroken, match="default stream"):
            cuda.cuMemsetD8Async(device, 0, 16, 0)

    def test_waiting_and_allocating_during_a_capture(self, cuda):
        _, _, stream = self.pieces(cuda)
        cuda.cuStreamBeginCapture(stream, 1)
        with pytest.raises(RuleBroken, match="cuStreamSynchronize while"):
            cuda.cuStreamSynchronize(stream)
        with pytest.raises(RuleBroken, match="cuMemAlloc while"):
            cuda.cuMemAlloc(1)

    def test_a_replayed_graph_whose_memory_is_gone(self, cuda):
        device, _, stream = self.pieces(cuda)
        cuda.cuStreamBeginCapture(stream, 1)
        cuda.cuMemsetD8Async(device, 0, 16, stream)
        _, graph = cuda.cuStreamEndCapture(stream)
        cuda.cuMemFree(device)
        with pytest.raises(RuleBroken, match="memory that was freed"):
            cuda.cuGraphLaunch(graph, stream)

    def test_reading_on_the_host_before_waiting_finds_rubbish(self, cuda):
        device, host, stream = self.pieces(cuda)
        cuda.cuMemsetD8Async(device, 0, 16, stream)
        cuda.cuMemcpyDtoHAsync(host, device, 16, stream)
        assert (cuda.blocks[host].content == fake_cuda.RUBBISH).all()
        cuda.cuStreamSynchronize(stream)
        assert not cuda.blocks[host].content.any()

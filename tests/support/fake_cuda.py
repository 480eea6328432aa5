# ruff: noqa: N802, N815, N818 - names are those of CUDA
"""A stand-in for ``cuda.bindings.runtime`` that keeps CUDA's rules and does the work, as late as it may.

Device memory has made-up addresses, so that nothing on the host can read it by accident. Whatever is queued on a stream is done
when the stream is synchronised and not before; until then the target of a copy to the host holds rubbish. A rule whose breach
would be undefined behaviour or a race on a GPU raises `RuleBroken`. What CUDA reports, it reports as CUDA does: as a code.
"""

import ctypes
import enum
from types import SimpleNamespace

import numpy as np

RUBBISH = 0xFF  # NaN in every floating type
LEGACY_STREAM = 0


class RuleBroken(AssertionError):
    """The code under test did what is undefined on a real GPU."""


class Code(enum.IntEnum):
    cudaSuccess = 0
    cudaErrorMemoryAllocation = 2
    cudaErrorInsufficientDriver = 35
    cudaErrorNoDevice = 100
    cudaErrorIllegalAddress = 700
    cudaErrorStreamCaptureUnsupported = 900


class Block:
    """An allocation."""

    def __init__(self, address, content, *, pinned):
        self.address, self.content, self.pinned = address, content, pinned
        self.freed = False
        self.writer = None  # the stream with work queued that writes it


class FakeStream:
    def __init__(self, number):
        self.number, self.queue, self.recording, self.destroyed = number, [], None, False

    def __int__(self):
        return self.number


class FakeGraph:
    def __init__(self, works):
        self.works, self.destroyed = works, False

    def __int__(self):
        return 1


class Work:
    """Something queued: what it does, the blocks it reads and writes, and what must hold whenever it is launched."""

    def __init__(self, run, reads, writes, valid=lambda: None):
        self.run, self.reads, self.writes, self.valid = run, reads, writes, valid


class FakeCuda:
    """``cuda.bindings.runtime`` with one GPU of ``memory`` bytes."""

    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)

    def __init__(self, *, memory=2**30, name="Fake GPU", capability=(8, 0), devices=1):
        self.total, self.name, self.capability, self.devices = memory, name, capability, devices
        self.blocks, self.streams, self.failing, self.calls = {}, {}, {}, []
        self._next, self._clock = 0x7F0000000000, 0

    def fail(self, function, code):
        """Let the next call of ``function`` return ``code``."""
        self.failing[function] = code

    def __getattribute__(self, name):
        value = object.__getattribute__(self, name)
        if not name.startswith("cuda") or not callable(value):
            return value

        def called(*arguments):
            self.calls.append(name)
            if name in self.failing:
                return (self.failing.pop(name), None)
            return value(*arguments)

        return called

    # What is alive, for tests.

    def live(self):
        return [block for block in self.blocks.values() if not block.freed]

    def used(self):
        return sum(len(block.content) for block in self.live() if not block.pinned)

    def find(self, address, size, doing):
        """(block, offset) of ``size`` bytes at ``address``."""
        for block in self.blocks.values():
            if block.address <= address < block.address + len(block.content):
                if block.freed:
                    raise RuleBroken(f"{doing}: use after free at {address:#x}")
                if address + size > block.address + len(block.content):
                    raise RuleBroken(f"{doing}: {size} bytes at {address:#x} run beyond the allocation")
                return block, address - block.address
        raise RuleBroken(f"{doing}: {address:#x} was never allocated")

    def stream(self, handle, doing):
        number = int(handle)
        if number == LEGACY_STREAM:
            raise RuleBroken(f"{doing} on the default stream")
        if number not in self.streams or self.streams[number].destroyed:
            raise RuleBroken(f"{doing} on a stream that does not exist")
        return self.streams[number]

    def _not_capturing(self, doing):
        if any(stream.recording is not None for stream in self.streams.values()):
            raise RuleBroken(f"{doing} while a stream is captured")

    def queue(self, stream, work):
        """Queue or record ``work``."""
        if stream.recording is not None:
            stream.recording.append(work)
            return
        work.valid()
        for block in (*work.reads, *work.writes):
            if block.freed:
                raise RuleBroken("queued work uses memory that was freed")
            if block.writer not in (None, stream):
                raise RuleBroken("memory is used on one stream while another may still write it: wrong stream")
        for block in work.writes:
            block.writer = stream
            if block.pinned:
                block.content[:] = RUBBISH
        stream.queue.append(work)

    # The runtime's functions.

    def cudaGetDeviceCount(self):
        return Code.cudaSuccess, self.devices

    def cudaSetDevice(self, index):
        return (Code.cudaSuccess,)

    def cudaGetDeviceProperties(self, index):
        major, minor = self.capability
        return Code.cudaSuccess, SimpleNamespace(name=self.name.encode(), major=major, minor=minor)

    def cudaGetErrorName(self, code):
        return Code.cudaSuccess, Code(code).name.encode()

    def cudaGetErrorString(self, code):
        return Code.cudaSuccess, b"what CUDA says"

    def cudaMemGetInfo(self):
        return Code.cudaSuccess, self.total - self.used(), self.total

    def cudaMalloc(self, size):
        self._not_capturing("cudaMalloc")
        if self.used() + size > self.total:
            return Code.cudaErrorMemoryAllocation, None
        address = self._next
        self._next += -(-size // 256) * 256 + 4096
        return Code.cudaSuccess, self._add(address, np.full(size, RUBBISH, np.uint8), pinned=False)

    def cudaMallocHost(self, size):
        self._not_capturing("cudaMallocHost")
        content = np.full(size, RUBBISH, np.uint8)
        return Code.cudaSuccess, self._add(content.ctypes.data, content, pinned=True)

    def _add(self, address, content, *, pinned):
        self.blocks[address] = Block(address, content, pinned=pinned)
        return address

    def _release(self, address, doing, *, pinned):
        self._not_capturing(doing)
        block = self.blocks.get(int(address))
        if block is None or block.freed or block.pinned != pinned:
            raise RuleBroken(f"{doing} of {address:#x}, which is not allocated that way")
        for stream in self.streams.values():  # freeing waits for the whole device
            self._finish(stream)
        block.freed = True
        return (Code.cudaSuccess,)

    def cudaFree(self, address):
        return self._release(address, "cudaFree", pinned=False)

    def cudaFreeHost(self, address):
        return self._release(address, "cudaFreeHost", pinned=True)

    def cudaStreamCreateWithFlags(self, flags):
        assert flags == 1, "a blocking stream waits for the default stream"
        number = len(self.streams) + 1
        self.streams[number] = FakeStream(number)
        return Code.cudaSuccess, self.streams[number]

    def cudaStreamDestroy(self, handle):
        self.stream(handle, "cudaStreamDestroy").destroyed = True
        return (Code.cudaSuccess,)

    def cudaMemcpyAsync(self, target, source, size, kind, handle):
        stream = self.stream(handle, "cudaMemcpyAsync")
        to, at = self.find(target, size, "cudaMemcpyAsync")
        of, off = self.find(source, size, "cudaMemcpyAsync")
        if (to.pinned, of.pinned) != ((False, True) if kind == 1 else (True, False)):
            raise RuleBroken("cudaMemcpyAsync: the direction is not that of the memories")

        def run():
            to.content[at : at + size] = of.content[off : off + size]

        self.queue(stream, Work(run, [of], [to]))
        return (Code.cudaSuccess,)

    def cudaMemsetAsync(self, target, value, size, handle):
        block, at = self.find(target, size, "cudaMemsetAsync")

        def run():
            block.content[at : at + size] = value

        self.queue(self.stream(handle, "cudaMemsetAsync"), Work(run, [], [block]))
        return (Code.cudaSuccess,)

    def cudaStreamSynchronize(self, handle):
        stream = self.stream(handle, "cudaStreamSynchronize")
        self._not_capturing("cudaStreamSynchronize")
        self._finish(stream)
        return (Code.cudaSuccess,)

    def _finish(self, stream):
        queue, stream.queue = stream.queue, []
        for work in queue:
            work.run()
        for block in self.blocks.values():
            if block.writer is stream:
                block.writer = None

    def cudaStreamBeginCapture(self, handle, mode):
        self._not_capturing("cudaStreamBeginCapture")
        self.stream(handle, "cudaStreamBeginCapture").recording = []
        return (Code.cudaSuccess,)

    def cudaStreamEndCapture(self, handle):
        stream = self.stream(handle, "cudaStreamEndCapture")
        if stream.recording is None:
            raise RuleBroken("cudaStreamEndCapture without a capture")
        works, stream.recording = stream.recording, None
        return Code.cudaSuccess, FakeGraph(works)

    def cudaGraphInstantiate(self, graph, flags):
        return Code.cudaSuccess, FakeGraph(list(graph.works))

    def cudaGraphLaunch(self, graph, handle):
        if graph.destroyed:
            raise RuleBroken("cudaGraphLaunch of a graph that was destroyed")
        for work in graph.works:
            self.queue(self.stream(handle, "cudaGraphLaunch"), work)
        return (Code.cudaSuccess,)

    def cudaGraphDestroy(self, graph):
        graph.destroyed = True
        return (Code.cudaSuccess,)

    cudaGraphExecDestroy = cudaGraphDestroy

    def cudaEventCreateWithFlags(self, flags):
        return Code.cudaSuccess, SimpleNamespace(stream=None, time=None)

    def cudaEventDestroy(self, event):
        return (Code.cudaSuccess,)

    def cudaEventRecord(self, event, handle):
        event.stream = self.stream(handle, "cudaEventRecord")

        def run():
            self._clock += 1
            event.time = self._clock

        self.queue(event.stream, Work(run, [], []))
        return (Code.cudaSuccess,)

    def cudaEventSynchronize(self, event):
        return self.cudaStreamSynchronize(event.stream)

    def cudaEventElapsedTime(self, start, end):
        if start.time is None or end.time is None:
            raise RuleBroken("cudaEventElapsedTime of an event that was not reached")
        return Code.cudaSuccess, float(end.time - start.time)


def host_value(address, dtype):
    """The number at ``address`` on the host."""
    return np.ndarray((1,), dtype, (ctypes.c_uint8 * np.dtype(dtype).itemsize).from_address(address))[0]

# ruff: noqa: N802, N815, N818 - names are those of CUDA
"""A stand-in for ``cuda.bindings.driver`` that keeps CUDA's rules and does the work, as late as it may.

Device memory has made-up addresses, so that nothing on the host can read it by accident. Whatever is queued on a stream is done
when the stream is synchronised and not before; until then the target of a copy to the host holds rubbish. A rule whose breach
would be undefined behaviour or a race on a GPU raises `RuleBroken`. What CUDA reports, it reports as CUDA does: as a code.
Kernels are left to `fake_kernels`.
"""

import ctypes
import enum
import threading
from types import SimpleNamespace

import numpy as np

RUBBISH = 0xFF  # NaN in every floating type
LEGACY_STREAM = 0
ANYWHERE = {
    *("cuDriverGetVersion", "cuDeviceGetCount", "cuDeviceGet", "cuDeviceGetName", "cuDeviceGetAttribute"),
    *("cuDevicePrimaryCtxRetain", "cuCtxSetCurrent", "cuCtxPushCurrent"),
}
"""What may be called without a current context."""


class RuleBroken(AssertionError):
    """The code under test did what is undefined on a real GPU."""


class Code(enum.IntEnum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_OUT_OF_MEMORY = 2
    CUDA_ERROR_NOT_INITIALIZED = 3
    CUDA_ERROR_NO_DEVICE = 100
    CUDA_ERROR_INVALID_CONTEXT = 201
    CUDA_ERROR_ILLEGAL_ADDRESS = 700
    CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED = 900


SUCCESS = Code.CUDA_SUCCESS


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
    """``cuda.bindings.driver`` with GPUs of ``memory`` bytes, of which the first is used."""

    CUdevice_attribute = enum.IntEnum(
        "CUdevice_attribute",
        {
            "CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT": 16,
            "CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR": 75,
            "CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR": 76,
        },
    )
    CUevent_flags = SimpleNamespace(CU_EVENT_DISABLE_TIMING=2)
    CUstreamCaptureMode = SimpleNamespace(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL=1)

    def __init__(self, *, memory=2**30, name="Fake GPU", capability=(8, 0), devices=1):
        self.total, self.name, self.capability, self.devices = memory, name, capability, devices
        self.blocks, self.streams, self.failing, self.calls = {}, {}, {}, []
        self.version, self.started, self.contexts = 13000, False, threading.local()
        self._next, self._clock = 0x7F0000000000, 0

    def fail(self, function, code):
        """Let the next call of ``function`` return ``code``, or raise it if it is an exception."""
        self.failing[function] = code

    def __getattribute__(self, name):
        value = object.__getattribute__(self, name)
        if not (name.startswith("cu") and name[2:3].isupper()):
            return value

        def called(*arguments):
            self.calls.append(name)
            if name in self.failing:
                failure = self.failing.pop(name)
                if isinstance(failure, Exception):
                    raise failure
                if name == "cuStreamEndCapture":  # ends it, whatever it says
                    value(*arguments)
                return failure, None
            if not (self.started or name == "cuInit" or name.startswith("cuGetError")):
                return Code.CUDA_ERROR_NOT_INITIALIZED, None
            if not (self.current() or name == "cuInit" or name.startswith("cuGetError") or name in ANYWHERE):
                return Code.CUDA_ERROR_INVALID_CONTEXT, None
            return value(*arguments)

        return called

    def current(self):
        """The thread's contexts; the last is the current one."""
        if not hasattr(self.contexts, "stack"):
            self.contexts.stack = []
        return self.contexts.stack

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

    # The driver's functions.

    def cuInit(self, flags):
        self.started = True
        return (SUCCESS,)

    def cuDriverGetVersion(self):
        return SUCCESS, self.version

    def cuDeviceGetCount(self):
        return SUCCESS, self.devices

    def cuDeviceGet(self, index):
        return SUCCESS, index

    def cuDeviceGetName(self, size, device):
        return SUCCESS, (self.name.encode()[: size - 1] + b"\0").ljust(size, b" ")  # as cuda-python does

    def cuDeviceGetAttribute(self, attribute, device):
        names = dict(zip(self.CUdevice_attribute, (132, *self.capability), strict=True))
        return SUCCESS, names[attribute]

    def cuDevicePrimaryCtxRetain(self, device):
        return SUCCESS, SimpleNamespace(device=device)

    def cuCtxSetCurrent(self, context):
        self.current()[-1:] = [context]
        return (SUCCESS,)

    def cuCtxPushCurrent(self, context):
        self.current().append(context)
        return (SUCCESS,)

    def cuCtxPopCurrent(self):
        return SUCCESS, self.current().pop()

    def cuCtxGetDevice(self):
        return SUCCESS, self.current()[-1].device

    def cuGetErrorName(self, code):
        return SUCCESS, Code(code).name.encode()

    def cuGetErrorString(self, code):
        return SUCCESS, b"what CUDA says"

    def cuMemGetInfo(self):
        return SUCCESS, self.total - self.used(), self.total

    def cuMemAlloc(self, size):
        self._not_capturing("cuMemAlloc")
        if self.used() + size > self.total:
            return Code.CUDA_ERROR_OUT_OF_MEMORY, None
        return SUCCESS, self.take(size)

    def take(self, size):
        """The address of new memory on the device, for other stand-ins, too."""
        address = self._next
        self._next += -(-size // 256) * 256 + 4096
        return self._add(address, np.full(size, RUBBISH, np.uint8), pinned=False)

    def cuMemAllocHost(self, size):
        self._not_capturing("cuMemAllocHost")
        content = np.full(size, RUBBISH, np.uint8)
        return SUCCESS, self._add(content.ctypes.data, content, pinned=True)

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
        return (SUCCESS,)

    def cuMemFree(self, address):
        return self._release(address, "cuMemFree", pinned=False)

    def cuMemFreeHost(self, address):
        return self._release(address, "cuMemFreeHost", pinned=True)

    def cuStreamCreate(self, flags):
        assert flags == 1, "a blocking stream waits for the default stream"
        number = len(self.streams) + 1
        self.streams[number] = FakeStream(number)
        return SUCCESS, self.streams[number]

    def cuStreamDestroy(self, handle):
        self.stream(handle, "cuStreamDestroy").destroyed = True
        return (SUCCESS,)

    def cuMemcpyHtoDAsync(self, target, source, size, handle):
        return self._copy("cuMemcpyHtoDAsync", target, source, size, handle, pinned=(False, True))

    def cuMemcpyDtoHAsync(self, target, source, size, handle):
        return self._copy("cuMemcpyDtoHAsync", target, source, size, handle, pinned=(True, False))

    def cuMemcpyDtoDAsync(self, target, source, size, handle):
        return self._copy("cuMemcpyDtoDAsync", target, source, size, handle, pinned=(False, False))

    def _copy(self, name, target, source, size, handle, *, pinned):
        stream = self.stream(handle, name)
        to, at = self.find(target, size, name)
        of, off = self.find(source, size, name)
        if (to.pinned, of.pinned) != pinned:
            raise RuleBroken(f"{name}: the direction is not that of the memories")

        def run():
            to.content[at : at + size] = of.content[off : off + size]

        self.queue(stream, Work(run, [of], [to]))
        return (SUCCESS,)

    def cuMemsetD8Async(self, target, value, size, handle):
        block, at = self.find(target, size, "cuMemsetD8Async")

        def run():
            block.content[at : at + size] = value

        self.queue(self.stream(handle, "cuMemsetD8Async"), Work(run, [], [block]))
        return (SUCCESS,)

    def cuStreamSynchronize(self, handle):
        stream = self.stream(handle, "cuStreamSynchronize")
        self._not_capturing("cuStreamSynchronize")
        self._finish(stream)
        return (SUCCESS,)

    def _finish(self, stream):
        queue, stream.queue = stream.queue, []
        for work in queue:
            work.run()
        for block in self.blocks.values():
            if block.writer is stream:
                block.writer = None

    def cuStreamBeginCapture(self, handle, mode):
        self._not_capturing("cuStreamBeginCapture")
        self.stream(handle, "cuStreamBeginCapture").recording = []
        return (SUCCESS,)

    def cuStreamEndCapture(self, handle):
        stream = self.stream(handle, "cuStreamEndCapture")
        if stream.recording is None:
            raise RuleBroken("cuStreamEndCapture without a capture")
        works, stream.recording = stream.recording, None
        return SUCCESS, FakeGraph(works)

    def cuGraphInstantiate(self, graph, flags):
        return SUCCESS, FakeGraph(list(graph.works))

    def cuGraphLaunch(self, graph, handle):
        if graph.destroyed:
            raise RuleBroken("cuGraphLaunch of a graph that was destroyed")
        for work in graph.works:
            self.queue(self.stream(handle, "cuGraphLaunch"), work)
        return (SUCCESS,)

    def cuGraphDestroy(self, graph):
        graph.destroyed = True
        return (SUCCESS,)

    cuGraphExecDestroy = cuGraphDestroy

    def cuEventCreate(self, flags):
        return SUCCESS, SimpleNamespace(stream=None, time=None)

    def cuEventDestroy(self, event):
        return (SUCCESS,)

    def cuEventRecord(self, event, handle):
        event.stream = self.stream(handle, "cuEventRecord")

        def run():
            self._clock += 1
            event.time = self._clock

        self.queue(event.stream, Work(run, [], []))
        return (SUCCESS,)

    def cuEventSynchronize(self, event):
        return self.cuStreamSynchronize(event.stream)

    def cuEventElapsedTime(self, start, end):
        if start.time is None or end.time is None:
            raise RuleBroken("cuEventElapsedTime of an event that was not reached")
        return SUCCESS, float(end.time - start.time)


def host_value(address, dtype):
    """The number at ``address`` on the host."""
    return np.ndarray((1,), dtype, (ctypes.c_uint8 * np.dtype(dtype).itemsize).from_address(address))[0]

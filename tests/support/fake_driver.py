# ruff: noqa: N802 - names are those of CUDA
"""A stand-in for ``cuda.bindings.driver`` over a `FakeCuda`: what `DriverLauncher` needs, with the emulated kernels.

A launched kernel runs when its stream gets there, on copies of the fake device's memory in the emulator's.
"""

import ctypes
from types import SimpleNamespace

import numpy as np
from fake_cuda import Work

from coupled_sampling.backends.cuda.kernels import DECISION, ROW

THREADS = {"measure": 256, "settle": 1024, "target_laws": 256, "decide": 1024}
READ = ("logits", "rows", "tokens_in")
WRITTEN = ("tokens", "committed", "highest_logits", "scratch")


class FakeDriver:
    """``cuda.bindings.driver`` as far as `DriverLauncher` uses it, over a `FakeCuda` and the emulated kernels."""

    CUresult = SimpleNamespace(CUDA_SUCCESS=0)
    CUdevice_attribute = SimpleNamespace(
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR=0,
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR=1,
        CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT=2,
    )
    CUevent_flags = SimpleNamespace(CU_EVENT_DISABLE_TIMING=2)

    def __init__(self, cuda, emulator):
        self.cuda, self.emulator, self.waits = cuda, emulator, []

    def cuInit(self, flags):
        return (0,)

    def cuCtxGetDevice(self):
        assert "cudaSetDevice" in self.cuda.calls, "there is no current context"
        return 0, 0

    def cuDeviceGetAttribute(self, attribute, device):
        return 0, (*self.cuda.capability, 132)[attribute]

    def cuModuleLoadData(self, image):
        return 0, image

    def cuModuleGetFunction(self, module, name):
        return 0, name.decode()

    def cuEventCreate(self, flags):
        assert flags == 2
        return 0, SimpleNamespace(stream=None)

    def cuEventRecord(self, event, stream):
        event.stream = self.cuda.stream(stream, "cuEventRecord")
        return (0,)

    def cuStreamWaitEvent(self, stream, event, flags):
        """In order from here on: what was queued there is done first, and is this stream's to use."""
        self.waits.append((int(stream), event.stream.number))
        for block in self.cuda.blocks.values():
            if block.writer is event.stream:
                block.writer = None
        self.cuda.queue(
            self.cuda.stream(stream, "cuStreamWaitEvent"), Work(lambda: self.cuda._finish(event.stream), [], [])
        )
        return (0,)

    def cuEventDestroy(self, event):
        return (0,)

    def cuLaunchKernel(self, kernel, *launch):
        *grid_and_block, shared, stream, addresses, extra = launch
        columns, rows, depth, threads, *ones = grid_and_block
        assert (depth, threads, ones, shared, extra) == (1, THREADS[kernel], [1, 1], 0, 0)
        argument = ctypes.c_uint64.from_address(addresses).value
        parameters = np.frombuffer(ctypes.string_at(argument, DECISION.itemsize), DECISION).copy()[0]
        found = {name: self.cuda.find(int(parameters[name]), 1, kernel) for name in (*READ, *WRITTEN)}
        work = Work(
            lambda: self._run(kernel, (columns, rows), parameters),
            [found[name][0] for name in READ],
            [found[name][0] for name in WRITTEN],
        )
        self.cuda.queue(self.cuda.stream(stream, "cuLaunchKernel"), work)
        return (0,)

    def _run(self, kernel, grid, parameters):
        """Copy what the kernel can reach to the emulator, run it, and copy it back."""
        mirrors = {}

        def moved(address):
            block, offset = self.cuda.find(int(address), 1, kernel)
            if block.address not in mirrors:
                mirrors[block.address] = (block, self.emulator.allocate(len(block.content)))
            return mirrors[block.address][1] + offset

        block, offset = self.cuda.find(int(parameters["rows"]), ROW.itemsize * grid[1], kernel)
        here = block.content[offset : offset + ROW.itemsize * grid[1]]
        table = here.view(ROW)
        original = table.copy()
        for name in ("laws", "draft_laws"):
            for b in range(grid[1]):
                table[name][b] = moved(table[name][b]) if table[name][b] else 0
        for name in (*READ, *WRITTEN):
            parameters[name] = moved(parameters[name])
        for block, address in mirrors.values():
            self.emulator.upload(address, block.content)
        self.emulator.launch(kernel, grid, np.array(parameters, DECISION))
        for block, address in mirrors.values():
            self.emulator.download(address, block.content)
            self.emulator.release(address)
        table[...] = original

# ruff: noqa: N802 - names are those of CUDA
"""`FakeCuda` with the kernels: they are loaded and launched as CUDA does, and done by the emulator.

A launched kernel runs when its stream gets there, on copies of the fake device's memory in the emulator's.
"""

import ctypes

import numpy as np

from coupled_sampling.backends.cuda.kernels import DECISION, ROW, WINDOW_DRAWS
from standins.fake_cuda import SUCCESS, FakeCuda, Work

SHARING, ALONE = ("measure", "target_laws"), ("settle", "decide", "sweep", "walk", "rank", "window_noise")
THREADS = {**dict.fromkeys(SHARING, 256), **dict.fromkeys(ALONE, 1024)}
READ = ("logits", "rows", "tokens_in", "corrections", "parents", "depth")
WRITTEN = ("tokens", "committed", "highest_logits", "scratch", "candidate_tokens", "candidate_scores")
DECIDES = (DECISION, READ, WRITTEN)
NOISE = (WINDOW_DRAWS, ("rows",), ("weights",))
"""A kernel's argument, and which of its fields are addresses that it reads and writes, where they are not 0."""


class EmulatedCuda(FakeCuda):
    """``cuda.bindings.driver`` with kernels, once ``emulator`` is set."""

    def __init__(self, **options):
        super().__init__(**options)
        self.emulator, self.waits = None, []

    def cuModuleLoadData(self, image):
        return SUCCESS, image

    def cuModuleGetFunction(self, module, name):
        return SUCCESS, name.decode()

    def cuStreamWaitEvent(self, stream, event, flags):
        """In order from here on: what was queued there is done first, and is this stream's to use."""
        self.waits.append((int(stream), event.stream.number))
        for block in self.blocks.values():
            if block.writer is event.stream:
                block.writer = None
        self.queue(self.stream(stream, "cuStreamWaitEvent"), Work(lambda: self._finish(event.stream), [], []))
        return (SUCCESS,)

    def cuLaunchKernel(self, kernel, *launch):
        *grid_and_block, shared, stream, addresses, extra = launch
        columns, rows, depth, threads, *ones = grid_and_block
        assert (depth, threads, ones, shared, extra) == (1, THREADS[kernel], [1, 1], 0, 0)
        argument = ctypes.c_uint64.from_address(addresses).value
        table, read, written = NOISE if kernel == "window_noise" else DECIDES
        parameters = np.frombuffer(ctypes.string_at(argument, table.itemsize), table).copy()[0]
        read, written = ([name for name in names if parameters[name]] for names in (read, written))
        found = {name: self.find(int(parameters[name]), 1, kernel) for name in (*read, *written)}
        work = Work(
            lambda: self._run(kernel, (columns, rows), parameters, (*read, *written)),
            [found[name][0] for name in read],
            [found[name][0] for name in written],
        )
        self.queue(self.stream(stream, "cuLaunchKernel"), work)
        return (SUCCESS,)

    def _run(self, kernel, grid, parameters, addresses):
        """Copy what the kernel can reach to the emulator, run it, and copy it back."""
        mirrors, parameters = {}, parameters.copy()  # a graph launches with the same ones again

        def moved(address):
            block, offset = self.find(int(address), 1, kernel)
            if block.address not in mirrors:
                mirrors[block.address] = (block, self.emulator.allocate(len(block.content)))
            return mirrors[block.address][1] + offset

        block, offset = self.find(int(parameters["rows"]), ROW.itemsize * grid[1], kernel)
        here = block.content[offset : offset + ROW.itemsize * grid[1]]
        table = here.view(ROW)
        original = table.copy()
        for name in ("laws", "draft_laws"):
            for b in range(grid[1]):
                table[name][b] = moved(table[name][b]) if table[name][b] else 0
        for name in addresses:
            parameters[name] = moved(parameters[name])
        for block, address in mirrors.values():
            self.emulator.upload(address, block.content)
        self.emulator.launch(kernel, grid, np.array(parameters))
        for block, address in mirrors.values():
            self.emulator.download(address, block.content)
            self.emulator.release(address)
        table[...] = original

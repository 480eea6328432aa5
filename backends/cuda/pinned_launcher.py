"""`PinnedLauncher`: kernels and copies on a stream of ours, over cuda-python, for `KernelStep` and for loops of one's own.

Copies go through page-locked memory: CUDA copies pageable memory through a buffer of its own, and may wait for the stream first.
Here an upload is queued and the host goes on; only a download waits. On the stream of a `TrtProvider` nothing has to be waited for
between model and decision: one stream orders both. What a step does between its logits and its outcome is one CUDA graph, once it
has been done before.

Memory and copies are those of `coupled_sampling.backends.cuda.device`, with its refusals of freed memory and of copies
under way. Executed on stand-ins for CUDA only, never on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.backends.cuda.compile import PART_THREADS, SOURCES, compile_kernels
from coupled_sampling.backends.cuda.device import DeviceBuffer, PinnedArray
from coupled_sampling.backends.cuda.kernels import SHARING, Span
from coupled_sampling.backends.cuda.streams import CapturedGraph, Stream
from coupled_sampling.errors import InvalidArgument

__all__ = ["CapturedRoundTrip", "PinnedLauncher"]

_MAIN = next(iter(SOURCES))


class PinnedLauncher:
    """A `coupled_sampling.backends.cuda.kernels.Launcher` on a `coupled_sampling.backends.cuda.streams.Stream`.

    Parameters
    ----------
    stream
        Where copies and kernels are queued, best the provider's own (`TrtProvider.stream`). It must live as long as this.
    threads
        Threads of a block that has a slot for itself.
    cuda_graphs
        Whether a `round_trip` is captured as a CUDA graph when it is run again.

    Attributes
    ----------
    processors, stream
        As in the contract; ``stream`` is the handle.

    Raises
    ------
    CudaError
        Loading the kernels failed.
    MissingDependency
        NVRTC is not installed.

    Examples
    --------
    >>> import numpy as np
    >>> from coupled_sampling.backends.cuda import ROW, Device, PinnedLauncher, Stream
    >>> rows = np.zeros(2, ROW)

    Not run here, since it needs a GPU:

    >>> launcher = PinnedLauncher(Stream(Device()))  # doctest: +SKIP
    >>> pointer = launcher.allocate(rows.nbytes)  # doctest: +SKIP
    >>> launcher.upload(pointer, rows)  # doctest: +SKIP
    >>> launcher.close()  # doctest: +SKIP
    """

    def __init__(self, stream: Stream, threads: int = 1024, *, cuda_graphs: bool = True) -> None:
        device = stream.device
        device.use()  # in whose context kernels are loaded
        self.processors = device.attribute("MULTIPROCESSOR_COUNT")
        self.stream = stream.handle
        self._queue, self._threads, self._cuda_graphs = stream, threads, cuda_graphs
        major, minor = device.compute_capability
        self._architecture = 10 * major + minor
        self._modules: list[Any] = []
        self._kernels: dict[str, Any] = {}
        self._load(compile_kernels(self._architecture, threads), SOURCES[_MAIN])
        self._buffers: dict[int, DeviceBuffer] = {}
        self._pinned: list[PinnedArray] = []
        self._pairs: dict[tuple[int, int], tuple[PinnedArray, PinnedArray]] = {}

    def allocate(self, size: int) -> int:
        """See `Launcher.allocate`."""
        buffer = self._queue.device.allocate(max(size, 1))
        self._buffers[buffer.address] = buffer
        return buffer.address

    def release(self, pointer: int) -> None:
        """See `Launcher.release`."""
        if pointer not in self._buffers:
            raise InvalidArgument(
                f"pointer is {pointer:#x}, expected an address that allocate gave and release did not"
            )
        self._queue.synchronize()
        self._buffers.pop(pointer).free()
        self._pairs = {key: pair for key, pair in self._pairs.items() if pointer not in key}

    def upload(self, pointer: int, values: NDArray[Any]) -> None:
        """See `Launcher.upload`. Returns while the copy is under way, from memory of its own."""
        if values.nbytes:
            source = self._page_locked(values.nbytes)
            source.values[: values.nbytes] = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
            self._queue.upload(self._part(pointer), source, values.nbytes)

    def download(self, pointer: int, into: NDArray[Any]) -> None:
        """See `Launcher.download`."""
        if into.nbytes:
            target = self._page_locked(into.nbytes)
            self._queue.download(target, self._part(pointer), into.nbytes)
            self._queue.synchronize()
            into.reshape(-1).view(np.uint8)[:] = target.values[: into.nbytes]

    def wait(self, stream: int) -> None:
        """See `Launcher.wait`."""
        if stream == self.stream:
            return
        call = self._queue.device.call
        event = call("cuEventCreate", self._queue.device.bindings.CUevent_flags.CU_EVENT_DISABLE_TIMING)
        call("cuEventRecord", event, stream)
        call("cuStreamWaitEvent", self.stream, event, 0)
        call("cuEventDestroy", event)

    def launch(self, kernel: str, grid: tuple[int, int], parameters: NDArray[Any]) -> None:
        """See `Launcher.launch`. What few steps need (`SOURCES`) is compiled when it is first launched, for some seconds."""
        if kernel not in self._kernels:
            source = next((source for source, names in SOURCES.items() if kernel in names), None)
            if source is None:
                known = ", ".join(name for names in SOURCES.values() for name in names)
                raise InvalidArgument(f"kernel is {kernel!r}, expected one of {known}")
            self._load(compile_kernels(self._architecture, self._threads, source), SOURCES[source])
        addresses = np.array([parameters.ctypes.data], np.uint64)
        block, shared = (PART_THREADS if kernel in SHARING else self._threads, 1, 1), 0
        self._queue.device.call(
            "cuLaunchKernel", self._kernels[kernel], *grid, 1, *block, shared, self.stream, addresses.ctypes.data, 0
        )

    def round_trip(self, given: Span, made: Span, launch: Callable[[], None]) -> CapturedRoundTrip:
        """See `Launcher.round_trip`. From the second time on, all of it is one CUDA graph.

        Parameters
        ----------
        given, made
            Memory that `allocate` gave, or parts of it.
        launch
            Calls `launch`, with the same arguments every time.

        Raises
        ------
        InvalidArgument
            The memory is not this launcher's.
        """
        device, host = (self._part(given.pointer), self._part(made.pointer)), self._pair(given, made)
        return CapturedRoundTrip(self._queue, device, host, (given.size, made.size), launch, capture=self._cuda_graphs)

    def _load(self, cubin: bytes, names: Sequence[str]) -> None:
        call = self._queue.device.call
        module = call("cuModuleLoadData", cubin)
        self._modules.append(module)
        self._kernels |= {name: call("cuModuleGetFunction", module, name.encode()) for name in names}

    def _pair(self, given: Span, made: Span) -> tuple[PinnedArray, PinnedArray]:
        """Page-locked memory for round trips through ``given`` and ``made``: one pair for all, since each is waited for."""
        key = given.pointer, made.pointer
        pair = self._pairs.get(key)
        if pair is None or pair[0].size < given.size or pair[1].size < made.size:
            pinned = self._queue.device.pinned
            pair = pinned((max(1024, 2 * given.size),), np.uint8), pinned((max(1024, 2 * made.size),), np.uint8)
            self._pairs[key] = pair  # earlier round trips keep the smaller one
        return pair

    def close(self) -> None:
        """Give all memory back; the launcher cannot be used afterwards. Twice does no harm."""
        memories = [
            *self._buffers.values(),
            *self._pinned,
            *(pinned for pair in self._pairs.values() for pinned in pair),
        ]
        if memories:
            self._queue.synchronize()
        for memory in memories:
            memory.free()
        self._buffers.clear()
        self._pinned.clear()
        self._pairs.clear()

    def _page_locked(self, size: int) -> PinnedArray:
        """At least ``size`` bytes that no copy is using; as many arrays as are uploaded between two downloads."""
        idle = [pinned for pinned in self._pinned if pinned.pending is None]
        for pinned in idle:
            if pinned.size >= size:
                return pinned
        for pinned in idle[:1]:  # too small: a larger one takes its place
            self._pinned.remove(pinned)
            pinned.free()
        # Windows differ in width from step to step; doubling keeps new arrays few.
        made = self._queue.device.pinned((max(1024, 2 * size),), np.uint8)
        self._pinned.append(made)
        return made

    def _part(self, pointer: int) -> DeviceBuffer:
        for buffer in self._buffers.values():
            if buffer.address <= pointer < buffer.address + buffer.size:
                return buffer if pointer == buffer.address else _Part(buffer, pointer - buffer.address)
        raise InvalidArgument(f"pointer is {pointer:#x}, expected an address in memory that this launcher allocated")


class CapturedRoundTrip:
    """A `coupled_sampling.backends.cuda.kernels.RoundTrip` over page-locked memory, captured when it is run again."""

    def __init__(
        self,
        stream: Stream,
        device: tuple[DeviceBuffer, DeviceBuffer],
        host: tuple[PinnedArray, PinnedArray],
        sizes: tuple[int, int],
        launch: Callable[[], None],
        *,
        capture: bool,
    ) -> None:
        self._queue, self._launch, self._capture = stream, launch, capture
        self._there, self._back = device
        self._given, self._made = host
        self._sizes = sizes
        self._has_run = False
        self.graph: CapturedGraph | None = None

    @property
    def given(self) -> NDArray[np.uint8]:
        """See `RoundTrip.given`. Waits for a run that was interrupted."""
        if self._given.pending is not None:
            self._queue.synchronize()
        return self._given.values[: self._sizes[0]]

    @property
    def made(self) -> NDArray[np.uint8]:
        """See `RoundTrip.made`. Waits for a run that was interrupted."""
        if self._made.pending is not None:
            self._queue.synchronize()
        return self._made.values[: self._sizes[1]]

    def run(self) -> None:
        """See `RoundTrip.run`. The first time nothing is captured: kernels are loaded then, which a capture may not hold."""
        if self.graph is None and self._has_run and self._capture:
            with self._queue.capture() as graph:
                self._work()
            self.graph = graph
        if self.graph is None:
            self._work()
        else:
            self._queue.launch(self.graph)
        self._has_run = True
        self._queue.synchronize()

    def _work(self) -> None:
        self._queue.upload(self._there, self._given, self._sizes[0])
        self._launch()
        self._queue.download(self._made, self._back, self._sizes[1])


class _Part(DeviceBuffer):
    """The end of a buffer, from ``offset`` on; the buffer owns the memory."""

    def __init__(self, whole: DeviceBuffer, offset: int) -> None:
        self._whole, self._offset = whole, offset
        self.device, self.size = whole.device, whole.size - offset

    @property
    def address(self) -> int:
        return self._whole.address + self._offset

    @property
    def is_freed(self) -> bool:
        return self._whole.is_freed

    def free(self) -> None:
        self._whole.free()

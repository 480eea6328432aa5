"""Work on a GPU in order: streams, events, and graphs of work that are captured once and launched again.

A captured graph holds addresses, not buffers: whatever it used must stay where it is. `CapturedGraph` remembers its
memories, so that launching it after one of them was freed is an error here and not one of the GPU's. See
`coupled_sampling.backends.cuda.device`.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterable, Iterator
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import DTypeLike

from coupled_sampling.backends.cuda.device import Device, DeviceBuffer, Memory, PinnedArray
from coupled_sampling.errors import InvalidArgument, ProviderError

__all__ = ["CapturedGraph", "DeviceArray", "Event", "OnStream", "Stream"]

_NON_BLOCKING = 1


class Stream:
    """A queue of work on a device. The default stream, which waits for others unasked, is never used.

    Attributes
    ----------
    device
        Where it is.
    handle
        Its number for other libraries.

    Examples
    --------
    >>> from coupled_sampling.backends.cuda import Device, Stream

    Not run here, since it needs a GPU:

    >>> stream = Stream(Device())  # doctest: +SKIP
    >>> stream.synchronize()  # doctest: +SKIP
    """

    def __init__(self, device: Device) -> None:
        device.refuse_while_capturing("a stream was asked")
        self.device = device
        self._handle = device.call("cuStreamCreate", _NON_BLOCKING)
        self.handle = int(self._handle)
        self._pending: list[PinnedArray] = []
        self._captured: CapturedGraph | None = None
        self._finalizer = device.give_back_with(self, "cuStreamDestroy", self._handle)

    @property
    def _stream(self) -> Any:
        if not self._finalizer.alive:
            raise ProviderError("the stream was freed and cannot be used any more")
        return self._handle

    def upload(self, buffer: DeviceBuffer, source: PinnedArray, size: int | None = None) -> None:
        """Queue a copy of the first ``size`` bytes of ``source`` (None: all) to ``buffer``."""
        self._copy(buffer, source, source, size, "cuMemcpyHtoDAsync")

    def download(self, target: PinnedArray, buffer: DeviceBuffer, size: int | None = None) -> None:
        """Queue a copy of the first ``size`` bytes of ``buffer`` to ``target`` (None: as much as that holds)."""
        self._copy(target, buffer, target, size, "cuMemcpyDtoHAsync")

    def _copy(self, target: Memory, source: Memory, pinned: PinnedArray, size: int | None, copy: str) -> None:
        count = pinned.size if size is None else size
        if count > min(target.size, source.size):
            raise InvalidArgument(
                f"size is {count}, expected at most {min(target.size, source.size)}, what both memories hold"
            )
        self.device.call(copy, target.address, source.address, count, self._stream)
        self._note(target, source)

    def clear(self, buffer: DeviceBuffer) -> None:
        """Queue filling ``buffer`` with zero bytes."""
        self.device.call("cuMemsetD8Async", buffer.address, 0, buffer.size, self._stream)
        self._note(buffer)

    def _note(self, *memories: Memory) -> None:
        if self._captured is not None:
            self._captured.memories.extend(memories)
        else:
            self._mark(memories)

    def _mark(self, memories: Iterable[Memory]) -> None:
        for memory in memories:
            if isinstance(memory, PinnedArray):
                memory.pending = self
                self._pending.append(memory)

    def synchronize(self) -> None:
        """Wait for all queued work. Errors of that work surface here."""
        self.device.refuse_while_capturing("cuStreamSynchronize was asked")
        self.device.call("cuStreamSynchronize", self._stream)
        for pinned in self._pending:
            if pinned.pending is self:
                pinned.pending = None
        self._pending.clear()

    def record(self) -> Event:
        """An event that is done when all work queued so far is."""
        return Event(self)

    @contextlib.contextmanager
    def capture(self) -> Iterator[CapturedGraph]:
        """Record what the block queues instead of doing it; the graph can be launched once the block has ended.

        Raises
        ------
        CudaError
            Something in the block cannot be captured. What the block queued is lost; the stream can be used again.
        """
        device = self.device
        device.refuse_while_capturing("a second capture was asked")
        mode = device.bindings.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        with _no_collection():
            device.call("cuStreamBeginCapture", self._stream, mode)
            graph = self._captured = CapturedGraph(self)
            device.capturing = self
            try:
                yield graph
            except BaseException:
                self._end_capture()
                code, *abandoned = device.bindings.cuStreamEndCapture(self._stream)
                if int(code) == 0 and int(abandoned[0]):
                    device.bindings.cuGraphDestroy(abandoned[0])
                raise
            self._end_capture()
            captured = device.call("cuStreamEndCapture", self._stream)
        graph._instantiate(captured)

    def _end_capture(self) -> None:
        self._captured = self.device.capturing = None

    def launch(self, graph: CapturedGraph) -> None:
        """Queue everything ``graph`` recorded.

        Raises
        ------
        ProviderError
            It was not captured to its end, was freed, or memory it uses was.
        """
        if graph.executable is None:
            raise ProviderError("the graph was never captured to its end, or was freed; capture it again")
        if any(memory.is_freed for memory in graph.memories):
            raise ProviderError(
                "memory that the graph was captured with was freed; capture it again with what took its place"
            )
        self.device.call("cuGraphLaunch", graph.executable, self._stream)
        self._mark(graph.memories)

    def free(self) -> None:
        """Give it back when its work is done; twice does no harm."""
        if self._finalizer.detach():
            self.device.call("cuStreamDestroy", self._handle)


@runtime_checkable
class OnStream(Protocol):
    """What a provider offers whose work is queued on a stream that others may queue on, too."""

    @property
    def stream(self) -> Stream: ...


class CapturedGraph:
    """Work that was recorded once and can be queued again at little cost; addresses are part of it.

    Attributes
    ----------
    memories
        What it copies from, to and between. Add whatever else its work uses.
    executable
        CUDA's own handle, None before the capture has ended and after `free`.
    """

    def __init__(self, stream: Stream) -> None:
        self.device = stream.device
        self.memories: list[Memory] = []
        self.executable: Any = None

    def _instantiate(self, graph: Any) -> None:
        try:
            self.executable = self.device.call("cuGraphInstantiate", graph, 0)
        finally:
            self.device.call("cuGraphDestroy", graph)
        self._finalizer = self.device.give_back_with(self, "cuGraphExecDestroy", self.executable)

    def free(self) -> None:
        """Give it back; twice does no harm."""
        if self.executable is not None:
            self._finalizer.detach()
            executable, self.executable = self.executable, None
            self.device.call("cuGraphExecDestroy", executable)


class Event:
    """A point in a stream's queue. Make one with `Stream.record`."""

    def __init__(self, stream: Stream) -> None:
        self.device = stream.device
        self._event = self.device.call("cuEventCreate", 0)
        self._finalizer = self.device.give_back_with(self, "cuEventDestroy", self._event)
        self.device.call("cuEventRecord", self._event, stream._stream)

    def synchronize(self) -> None:
        """Wait until it is reached. Does not release pinned arrays: `Stream.synchronize` does."""
        self.device.refuse_while_capturing("cuEventSynchronize was asked")
        self.device.call("cuEventSynchronize", self._event)

    def milliseconds_since(self, earlier: Event) -> float:
        """Time on the device between ``earlier`` and this event; both must have been reached."""
        return float(self.device.call("cuEventElapsedTime", earlier._event, self._event))


class DeviceArray:
    """A contiguous array in device memory, for whoever reads ``__cuda_array_interface__`` (CuPy, torch, Numba, own kernels).

    Attributes
    ----------
    address, shape, dtype
        Where it is, and what.
    stream
        On which its content is being made; readers on another stream must wait for this one.
    """

    def __init__(self, address: int, shape: tuple[int, ...], dtype: DTypeLike, stream: Stream) -> None:
        self.address = address
        self.shape = shape
        self.dtype = np.dtype(dtype)
        self.stream = stream

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.address, False),
            "version": 3,
            "strides": None,
            "stream": self.stream.handle,
        }


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Keep the garbage collector still: memory that it found would be freed now, which breaks a capture."""
    was_collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_collecting:
            gc.enable()

"""A GPU and its memory: the one place, with `coupled_sampling.backends.cuda.streams`, that allocates, copies and captures.

Every call goes through `Driver.call`, which checks the code that came back and raises a `CudaError` with the call's name and
the remedy. Work is queued on streams and done later; what a host may touch meanwhile is where such code goes wrong in silence,
so it is refused here: a `PinnedArray` with a copy under way cannot be read or written before its stream was synchronised,
memory that was freed cannot be copied or replayed, and nothing may wait or allocate while a stream is captured.

No torch, no CuPy. Nothing here has been run on a GPU by the tests of this library unless they say so: those marked ``gpu`` do.
"""

from __future__ import annotations

import ctypes
import threading
import weakref
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from coupled_sampling.backends.cuda.driver import CudaError, Driver
from coupled_sampling.errors import InvalidArgument, ProviderError

if TYPE_CHECKING:
    from coupled_sampling.backends.cuda.streams import Stream

__all__ = ["CudaError", "Device", "DeviceBuffer", "Memory", "PinnedArray"]

_NAME_BYTES = 256


class Device:
    """A GPU.

    Parameters
    ----------
    index
        Its number, as `nvidia-smi -L` counts.
    bindings
        What has the functions of ``cuda.bindings.driver``; None imports it.

    Attributes
    ----------
    index, name, compute_capability
        Its number, its name, and its (major, minor) compute capability.

    Raises
    ------
    CudaError
        There is no such GPU.
    InvalidArgument
        ``index`` is no number >= 0.
    MissingDependency
        ``cuda-python`` is not installed, or there is no driver, or it is too old.

    Examples
    --------
    >>> from coupled_sampling.backends.cuda import Device
    >>> Device(-1)
    Traceback (most recent call last):
    coupled_sampling.errors.InvalidArgument: index is -1, expected the number of a GPU, from 0

    Not run here, since it needs a GPU:

    >>> Device().compute_capability  # doctest: +SKIP
    (9, 0)
    """

    def __init__(self, index: int = 0, bindings: Any = None) -> None:
        if isinstance(index, bool) or not isinstance(index, int) or index < 0:
            raise InvalidArgument(f"index is {index!r}, expected the number of a GPU, from 0")
        self.driver = Driver(bindings)
        self.bindings = self.driver.bindings
        self.index = index
        self.capturing: Stream | None = None
        """The stream that is being captured."""
        count = int(self.driver.call("cuDeviceGetCount"))
        if index >= count:
            raise CudaError(
                "cuDeviceGet", 101, "CUDA_ERROR_INVALID_DEVICE", f"there are {count} GPUs, number {index} was asked"
            )
        self._handle = self.driver.call("cuDeviceGet", index)
        # The context that everybody shares. It stays until the process ends, as for users of CUDA's runtime.
        self.context = self.driver.call("cuDevicePrimaryCtxRetain", self._handle)
        self._current = threading.local()
        name = self.driver.call("cuDeviceGetName", _NAME_BYTES, self._handle)
        self.name = name.split(b"\0")[0].decode()
        self.compute_capability = self.attribute("COMPUTE_CAPABILITY_MAJOR"), self.attribute("COMPUTE_CAPABILITY_MINOR")

    def attribute(self, name: str) -> int:
        """What the driver says of ``CU_DEVICE_ATTRIBUTE_`` ``name``."""
        number = getattr(self.bindings.CUdevice_attribute, f"CU_DEVICE_ATTRIBUTE_{name}")
        return int(self.driver.call("cuDeviceGetAttribute", number, self._handle))

    def call(self, function: str, *arguments: Any, note: str = "") -> Any:
        """`Driver.call`, in this GPU's context if the thread calls for the first time.

        Raises
        ------
        CudaError
            It returned an error.
        """
        if not getattr(self._current, "used", False):
            self.use()
        return self.driver.call(function, *arguments, note=note)

    def use(self) -> None:
        """Make this the calling thread's GPU. Wanted where other code of the thread uses another one."""
        self.driver.call("cuCtxSetCurrent", self.context)
        self._current.used = True

    def give_back_with(self, owner: Any, function: str, handle: Any) -> weakref.finalize[Any, Any]:
        """Call ``function`` with ``handle`` once nothing refers to ``owner``, from whatever thread that is found in."""
        finalizer = weakref.finalize(owner, _give_back, self.bindings, self.context, function, handle)
        # At exit the driver takes everything back, and may be gone before this would run.
        finalizer.atexit = False
        return finalizer

    def memory(self) -> tuple[int, int]:
        """Bytes (free, total)."""
        free, total = self.call("cuMemGetInfo")
        return int(free), int(total)

    def allocate(self, size: int) -> DeviceBuffer:
        """Device memory of ``size`` bytes, aligned to 256; its content is arbitrary."""
        return DeviceBuffer(self, size)

    def pinned(self, shape: tuple[int, ...], dtype: DTypeLike) -> PinnedArray:
        """Page-locked host memory as an array of zeros, the only kind that is copied while the host goes on."""
        return PinnedArray(self, shape, dtype)

    def refuse_while_capturing(self, what: str) -> None:
        """Raise if a stream of this device is being captured."""
        if self.capturing is not None:
            raise ProviderError(f"{what} while a stream is captured; finish the capture first")


class Memory:
    """What both kinds of memory share: an address until it is freed, at the latest when nothing refers to it."""

    def __init__(self, device: Device, allocate: str, free: str, size: int) -> None:
        device.refuse_while_capturing(f"{allocate} was asked")
        free_bytes = f"{size} bytes were asked"
        self.device = device
        self.size = size
        self._release = free
        self._address: int | None = int(device.call(allocate, max(size, 1), note=free_bytes))
        self._finalizer = device.give_back_with(self, free, self._address)

    @property
    def address(self) -> int:
        """Where it is.

        Raises
        ------
        ProviderError
            It has been freed.
        """
        if self._address is None:
            raise ProviderError(f"{type(self).__name__} of {self.size} bytes was freed and cannot be used any more")
        return self._address

    @property
    def is_freed(self) -> bool:
        """Whether it has been freed."""
        return self._address is None

    def free(self) -> None:
        """Give it back; twice does no harm. Views of it must not be used afterwards."""
        if self._address is not None:
            self.device.refuse_while_capturing(f"{self._release} was asked")
            address, self._address = self._address, None
            self._finalizer.detach()
            self.device.call(self._release, address)


class DeviceBuffer(Memory):
    """Device memory. Make one with `Device.allocate`."""

    def __init__(self, device: Device, size: int) -> None:
        super().__init__(device, "cuMemAlloc", "cuMemFree", size)


class PinnedArray(Memory):
    """Page-locked host memory as a numpy array. Make one with `Device.pinned`."""

    def __init__(self, device: Device, shape: tuple[int, ...], dtype: DTypeLike) -> None:
        kind = np.dtype(dtype)
        super().__init__(device, "cuMemAllocHost", "cuMemFreeHost", int(np.prod(shape, dtype=np.int64)) * kind.itemsize)
        raw = (ctypes.c_uint8 * self.size).from_address(self.address)
        self._values: NDArray[Any] = np.ndarray(shape, kind, buffer=memoryview(raw))
        self._values[...] = 0
        self.pending: Stream | None = None

    @property
    def values(self) -> NDArray[Any]:
        """The array.

        Raises
        ------
        ProviderError
            It has been freed, or a copy from or to it is under way.
        """
        if self.is_freed:
            raise ProviderError(f"PinnedArray of {self.size} bytes was freed and cannot be used any more")
        if self.pending is not None:
            raise ProviderError("a copy from or to this array may be under way; synchronise its stream first")
        return self._values


def _give_back(bindings: Any, context: Any, function: str, handle: Any) -> None:
    """Nobody is there to be told of an error."""
    bindings.cuCtxPushCurrent(context)
    getattr(bindings, function)(handle)
    bindings.cuCtxPopCurrent()

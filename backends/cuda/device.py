"""A GPU and its memory: the one place, with `coupled_sampling.backends.cuda.streams`, that talks to CUDA's runtime.

Every call goes through `Device.call`, which checks the code that came back and raises a `CudaError` with the call's name and
the remedy. Work is queued on streams and done later; what a host may touch meanwhile is where such code goes wrong in silence,
so it is refused here: a `PinnedArray` with a copy under way cannot be read or written before its stream was synchronised,
memory that was freed cannot be copied or replayed, and nothing may wait or allocate while a stream is captured.

The bindings are those of NVIDIA's package ``cuda-python`` (``cuda.bindings.runtime``), imported when a device is opened.
Anything with the same functions can stand in. No torch, no CuPy. Nothing here has been run on a GPU by the tests of this
library unless they say so: those marked ``gpu`` do.
"""

from __future__ import annotations

import ctypes
import importlib
import weakref
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from coupled_sampling.errors import InvalidArgument, MissingDependency, ProviderError

if TYPE_CHECKING:
    from coupled_sampling.backends.cuda.streams import Stream

__all__ = ["CudaError", "Device", "DeviceBuffer", "Memory", "PinnedArray"]

INSTALL = "pip install 'coupled-sampling[gpu]'"
_REMEDIES = {
    2: "free GPU memory: close other programs (nvidia-smi lists them), or use fewer rows, a smaller model or narrower precision",
    35: "the NVIDIA driver is missing or older than the CUDA runtime: install or update the driver (`nvidia-smi` must work)",
    46: "the GPU is used exclusively by another program: stop it, or choose another GPU",
    100: "no NVIDIA GPU is visible: check `nvidia-smi`, CUDA_VISIBLE_DEVICES, and a container's --gpus option",
    101: "there is no GPU of that number: `nvidia-smi -L` lists them, counted from 0",
    209: "what was built does not fit this GPU: build it again on this machine",
    700: "memory was used that is not ours or no longer is; the process must be started again, please report it",
    719: "a kernel failed; the process must be started again, and CUDA_LAUNCH_BLOCKING=1 shows which",
    802: "the system is still starting its GPUs (fabric manager): wait and try again",
    803: "the driver and the CUDA libraries disagree: update the driver, or reboot after a driver update",
    804: "this GPU cannot run a CUDA newer than its driver: update the driver",
    900: "nothing may wait, allocate or free while a stream is captured; please report it",
    901: "an earlier call broke the capture of a stream; please report it",
    999: "the driver failed: reboot, or reload the kernel module nvidia_uvm (usual after the machine slept)",
}
_GENERAL = "look the code up in NVIDIA's list of cudaError_t"


class CudaError(ProviderError):
    """A call to CUDA failed.

    Attributes
    ----------
    call
        Name of the function.
    code
        Its ``cudaError_t`` as a number.
    """

    def __init__(self, call: str, code: int, name: str, text: str, note: str = "") -> None:
        super().__init__(
            f"{call} failed: {name} ({code}), {text}{'; ' if note else ''}{note}; to do: {_REMEDIES.get(code, _GENERAL)}"
        )
        self.call = call
        self.code = code


class Device:
    """A GPU.

    Parameters
    ----------
    index
        Its number, as `nvidia-smi -L` counts.
    bindings
        What has the functions of ``cuda.bindings.runtime``; None imports it.

    Attributes
    ----------
    index, name, compute_capability
        Its number, its name, and its (major, minor) compute capability.

    Raises
    ------
    CudaError
        There is no driver or no such GPU.
    InvalidArgument
        ``index`` is no number >= 0.
    MissingDependency
        ``cuda-python`` is not installed.
    """

    def __init__(self, index: int = 0, bindings: Any = None) -> None:
        if isinstance(index, bool) or not isinstance(index, int) or index < 0:
            raise InvalidArgument(f"index is {index!r}, expected the number of a GPU, from 0")
        self.bindings = _require_bindings() if bindings is None else bindings
        self.index = index
        self.capturing: Stream | None = None
        """The stream that is being captured."""
        count = int(self.call("cudaGetDeviceCount"))
        if index >= count:
            raise CudaError(
                "cudaGetDeviceCount", 101, "cudaErrorInvalidDevice", f"there are {count} GPUs, number {index} was asked"
            )
        self.use()
        properties = self.call("cudaGetDeviceProperties", index)
        name = properties.name
        self.name = (name.decode() if isinstance(name, bytes) else str(name)).rstrip("\0")
        self.compute_capability = (int(properties.major), int(properties.minor))

    def call(self, function: str, *arguments: Any, note: str = "") -> Any:
        """Call ``function`` of the runtime and return its result: None, one value, or a tuple of several.

        Raises
        ------
        CudaError
            It returned an error.
        """
        code, *results = getattr(self.bindings, function)(*arguments)
        if int(code) != 0:
            raise CudaError(function, int(code), *self._described(code), note)
        return results[0] if len(results) == 1 else tuple(results) or None

    def _described(self, code: Any) -> tuple[str, str]:
        answers = (getattr(self.bindings, name)(code)[1] for name in ("cudaGetErrorName", "cudaGetErrorString"))
        name, text = (answer.decode() if isinstance(answer, bytes) else str(answer) for answer in answers)
        return name, text

    def use(self) -> None:
        """Make this the calling thread's GPU."""
        self.call("cudaSetDevice", self.index)

    def memory(self) -> tuple[int, int]:
        """Bytes (free, total)."""
        free, total = self.call("cudaMemGetInfo")
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
        # At exit the driver takes everything back, and may be gone before this would run.
        self._finalizer = weakref.finalize(self, getattr(device.bindings, free), self._address)
        self._finalizer.atexit = False

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
        super().__init__(device, "cudaMalloc", "cudaFree", size)


class PinnedArray(Memory):
    """Page-locked host memory as a numpy array. Make one with `Device.pinned`."""

    def __init__(self, device: Device, shape: tuple[int, ...], dtype: DTypeLike) -> None:
        kind = np.dtype(dtype)
        super().__init__(device, "cudaMallocHost", "cudaFreeHost", int(np.prod(shape, dtype=np.int64)) * kind.itemsize)
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


def _require_bindings() -> Any:
    try:
        return importlib.import_module("cuda.bindings.runtime")
    except ImportError as error:
        raise MissingDependency(
            f"GPUs are reached through the package cuda-python, which is not installed: {INSTALL}"
        ) from error

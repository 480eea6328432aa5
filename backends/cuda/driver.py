"""Calls to CUDA's driver: each is checked, and one that failed says its name, what CUDA says of it, and what to do.

The functions are those of NVIDIA's package ``cuda-python`` (``cuda.bindings.driver``), imported when they are first wanted.
Anything with the same functions can stand in. CUDA's runtime (``cudaMalloc`` and so on) is not used beside it: both would be one
more thing to keep in step, and the kernels are loaded by the driver anyway. Libraries that use the runtime share the device's
primary context with what is made here.
"""

from __future__ import annotations

import importlib
from typing import Any

from coupled_sampling.errors import MissingDependency, ProviderError

__all__ = ["CAPTURE_CODES", "INSTALL", "OLDEST_DRIVER", "CudaError", "Driver"]

INSTALL = "pip install 'coupled-sampling[gpu]'"

OLDEST_DRIVER = 13000
"""What ``cuDriverGetVersion`` gives at least: NVRTC and TensorRT are those of CUDA 13."""

CAPTURE_CODES = range(900, 910)
"""Codes of ``CUresult`` that say that work cannot be captured: CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED and those after it."""

_REMEDIES = {
    2: "free GPU memory: close other programs (nvidia-smi lists them), or use fewer rows, a smaller model or narrower precision",
    34: "the libcuda that was found is the stub for linking: remove its folder from LD_LIBRARY_PATH",
    46: "the GPU is used exclusively by another program: stop it, or choose another GPU",
    100: "no NVIDIA GPU is visible: check `nvidia-smi`, CUDA_VISIBLE_DEVICES, and a container's --gpus option",
    101: "there is no GPU of that number: `nvidia-smi -L` lists them, counted from 0",
    201: "the thread has no CUDA context: whoever has arrays on the device has one, and `Device(0).use()` makes one",
    209: "what was built does not fit this GPU: build it again on this machine",
    700: "memory was used that is not ours or no longer is; the process must be started again, please report it",
    701: "the kernel needs more registers or threads than the GPU has left: fewer threads",
    719: "a kernel failed; the process must be started again, and CUDA_LAUNCH_BLOCKING=1 shows which",
    802: "the system is still starting its GPUs (fabric manager): wait and try again",
    803: "the driver and the CUDA libraries disagree: update the driver, or reboot after a driver update",
    804: "this GPU cannot run a CUDA newer than its driver: update the driver",
    900: "nothing may wait, allocate or free while a stream is captured; please report it",
    901: "an earlier call broke the capture of a stream; please report it",
    999: "the driver failed: reboot, or reload the kernel module nvidia_uvm (usual after the machine slept)",
}
_GENERAL = "look the code up in NVIDIA's list of CUresult"


class CudaError(ProviderError):
    """A call to CUDA failed.

    Attributes
    ----------
    call
        Name of the function.
    code
        Its ``CUresult`` as a number.
    """

    def __init__(self, call: str, code: int, name: str, text: str, note: str = "") -> None:
        super().__init__(
            f"{call} failed: {name} ({code}), {text}{'; ' if note else ''}{note}; to do: {_REMEDIES.get(code, _GENERAL)}"
        )
        self.call = call
        self.code = code


class Driver:
    """CUDA's driver, started.

    Parameters
    ----------
    bindings
        What has the functions of ``cuda.bindings.driver``; None imports it.

    Raises
    ------
    CudaError
        It cannot be started, for want of a GPU for one.
    MissingDependency
        ``cuda-python`` is not installed, or there is no driver, or it is too old.
    """

    def __init__(self, bindings: Any = None) -> None:
        self.bindings = _require_bindings() if bindings is None else bindings
        try:
            self.call("cuInit", 0)
        except RuntimeError as error:  # of the bindings, which find no libcuda
            raise MissingDependency(
                f"there is no NVIDIA driver ({error}): install the driver; `nvidia-smi` must work"
            ) from error
        version = int(self.call("cuDriverGetVersion"))
        if version < OLDEST_DRIVER:
            raise MissingDependency(
                f"the NVIDIA driver knows CUDA {_release(version)}, expected {_release(OLDEST_DRIVER)} or newer: update the "
                "driver to 580 or newer"
            )

    def call(self, function: str, *arguments: Any, note: str = "") -> Any:
        """Call ``function`` and return its result: None, one value, or a tuple of several.

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
        answers = (getattr(self.bindings, name)(code)[1] for name in ("cuGetErrorName", "cuGetErrorString"))
        name, text = (answer.decode() if isinstance(answer, bytes) else str(answer) for answer in answers)
        return name, text


def _release(version: int) -> str:
    return f"{version // 1000}.{version % 1000 // 10}"


def _require_bindings() -> Any:
    try:
        return importlib.import_module("cuda.bindings.driver")
    except ImportError as error:
        raise MissingDependency(
            f"GPUs are reached through the package cuda-python, which is not installed: {INSTALL}"
        ) from error

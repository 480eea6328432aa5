"""A step's decisions as CUDA kernels, compiled by NVRTC when they are first used. Importing this package loads no CUDA.

- `KernelStep` is a coupled step over any model whose logits lie on a GPU, `PinnedLauncher` what it launches with, on a `Stream`
  of a `Device`;
- the rest is for a loop of your own: `decide` and what fills its argument, any `Launcher`, and `device_pointer`, which says
  where an array lies.

Kernels here are compiled for real devices and executed in an emulation on the CPU; they have never run on a GPU.
"""

from coupled_sampling.backends.cuda.device import Device
from coupled_sampling.backends.cuda.kernel_step import KernelStep
from coupled_sampling.backends.cuda.kernels import (
    DECISION,
    DRAWS,
    ROW,
    WINDOW_DRAWS,
    Launcher,
    decide,
    method_codes,
    scratch_bytes,
    window_noise,
)
from coupled_sampling.backends.cuda.pinned_launcher import PinnedLauncher
from coupled_sampling.backends.cuda.pointers import LOGITS_TYPES, DevicePointer, device_pointer
from coupled_sampling.backends.cuda.streams import Stream

__all__ = [
    "DECISION",
    "DRAWS",
    "LOGITS_TYPES",
    "ROW",
    "WINDOW_DRAWS",
    "Device",
    "DevicePointer",
    "KernelStep",
    "Launcher",
    "PinnedLauncher",
    "Stream",
    "decide",
    "device_pointer",
    "method_codes",
    "scratch_bytes",
    "window_noise",
]

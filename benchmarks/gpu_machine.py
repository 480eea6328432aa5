"""The machine of ``first_light_gpu.py``: which GPU there is, with which driver and packages, and how fast it copies."""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import os
import platform
import statistics
import subprocess
from collections.abc import Iterator
from typing import Any

from gpu_frame import Figure

from coupled_sampling.backends.cuda.device import CudaError, Device
from coupled_sampling.backends.cuda.streams import Stream
from coupled_sampling.errors import MissingDependency

PACKAGES = (
    "coupled-sampling",
    "cuda-python",
    "cuda-bindings",
    "nvidia-cuda-nvrtc",
    "jax",
    "jaxlib",
    "torch",
    "cupy-cuda13x",
    "cupy-cuda12x",
    "onnxruntime",
    "onnxruntime-gpu",
    "tensorrt",
    "tensorrt-rtx",
    "numpy",
    "array-api-compat",
)


def opened(arguments: argparse.Namespace) -> Device:
    """The GPU that was asked for.

    Raises
    ------
    MissingDependency
        There is no GPU, driver or package, or not one that is supported.
    """
    try:
        return Device(arguments.device)
    except CudaError as error:
        raise MissingDependency(str(error)) from error


def bandwidth(stream: Stream, size: int = 2**30, repeats: int = 10) -> float:
    """Bytes per second that a copy within the device reads and writes."""
    device, seconds = stream.device, []
    one, other = device.allocate(size), device.allocate(size)
    stream.clear(one)
    for _ in range(repeats + 2):
        began = stream.record()
        device.call("cuMemcpyDtoDAsync", other.address, one.address, size, stream.handle)
        ended = stream.record()
        stream.synchronize()
        seconds.append(ended.milliseconds_since(began) / 1e3)
    one.free()
    other.free()
    return 2 * size / statistics.median(seconds[2:])


def versions() -> dict[str, str]:
    """Of the packages that are here."""
    found = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def driver_says(device: int) -> dict[str, str]:
    """The card and its driver's version as ``nvidia-smi`` has them; nothing where it is not there."""
    command = ["nvidia-smi", f"--id={device}", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    name, _, version = said.strip().partition(", ")
    return {"gpu": name, "driver_version": version}


def of_machine(arguments: argparse.Namespace, name: str = "") -> Iterator[Figure]:
    machine: dict[str, Any] = {
        "python": platform.python_version(), "cores": os.cpu_count(), "load": os.getloadavg()[0],
        "packages": versions(), **driver_says(arguments.device),
    }  # fmt: skip
    yield "machine", machine  # whatever the library makes of this GPU
    device = opened(arguments)
    major, minor = device.compute_capability
    told = {
        "gpu": device.name, "compute_capability": f"{major}.{minor}", "memory_bytes": device.memory()[1],
        "cuda_of_driver": int(device.call("cuDriverGetVersion")),
    }  # fmt: skip
    yield "machine", {**machine, **told}
    yield "bandwidth", bandwidth(Stream(device), arguments.copied)

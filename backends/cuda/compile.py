"""CUDA C++ to cubin with NVRTC, which comes as a wheel: no toolkit, no compiler and no GPU are needed to compile.

`--fmad=false` keeps products and sums apart, as the CPU emulation of the tests computes them; nothing here is bound by
arithmetic. Cubins are kept for the life of the process.

The kernels are compiled and emulated; never run on a GPU.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from functools import lru_cache
from importlib.resources import files
from typing import Any

from coupled_sampling.errors import CoupledSamplingError, InvalidArgument, MissingDependency

__all__ = ["SOURCES", "CompilationFailed", "compile_kernels", "kernel_sources", "require_nvrtc"]

SOURCES = {
    "decision.cu": ("measure", "settle", "target_laws", "decide", "noise", "window_noise"),
    "sweep.cu": ("sweep",),
    "tree.cu": ("walk", "rank"),
}
"""The files to compile, which include the others, and their kernels. Every step needs the first one; the second is for corrections,
the third for branches and candidates."""

OLDEST_ARCHITECTURE = 80

CHUNK = 4096
"""Tokens that are summed by themselves, whichever block does it: sums do not depend on how many blocks share a slot."""

PART_THREADS = 256
"""Threads of a block that shares a slot with others."""


class CompilationFailed(CoupledSamplingError):  # noqa: N818 - reads as what it is
    """NVRTC refused the source; the message holds its log."""


def kernel_sources() -> dict[str, str]:
    """Every source file of the kernels by name."""
    folder = files("coupled_sampling.backends.cuda") / "kernels"
    found = sorted(folder.iterdir(), key=lambda file: file.name)
    return {file.name: file.read_text("utf-8") for file in found if file.name.endswith((".cu", ".cuh"))}


def require_nvrtc() -> Any:
    """The module ``cuda.bindings.nvrtc``, whose library can be loaded.

    Raises
    ------
    MissingDependency
        The bindings or the NVRTC library are missing.
    """
    install = "pip install 'coupled-sampling[gpu]'"
    try:
        nvrtc = importlib.import_module("cuda.bindings.nvrtc")
    except ImportError as error:
        raise MissingDependency(
            f"CUDA kernels need the package cuda-bindings, which is not installed: {install}"
        ) from error
    try:
        nvrtc.nvrtcVersion()
    except RuntimeError as error:
        raise MissingDependency(f"CUDA kernels need the NVRTC library, {error}: {install}") from error
    return nvrtc


@lru_cache(maxsize=16)
def compile_kernels(architecture: int, threads: int = 1024, source: str = "decision.cu") -> bytes:
    """The kernels of ``source`` as a cubin.

    Parameters
    ----------
    architecture
        Compute capability without the dot: 80, 90, 120.
    threads
        Threads of a block that has a slot for itself: a multiple of 32 from 64 to 1024.
    source
        One of `SOURCES`.

    Returns
    -------
    bytes
        Load it with ``cuModuleLoadData`` or any tool that takes cubins; `SOURCES` has the kernels' names.

    Raises
    ------
    CompilationFailed
        NVRTC refused the source.
    InvalidArgument
        The architecture is older than 80, or one that this NVRTC does not know; or ``threads`` is no number of threads.
    MissingDependency
        NVRTC is not installed.
    """
    if threads % 32 or not 64 <= threads <= 1024:
        raise InvalidArgument(f"threads is {threads}, expected a multiple of 32 from 64 to 1024")
    nvrtc = require_nvrtc()
    known = _value(nvrtc, nvrtc.nvrtcGetSupportedArchs())
    if architecture < OLDEST_ARCHITECTURE or architecture not in known:
        raise InvalidArgument(
            f"architecture is {architecture}, expected one of {[a for a in known if a >= OLDEST_ARCHITECTURE]}: a compute "
            "capability without its dot that this NVRTC knows; install a newer nvidia-cuda-nvrtc for newer devices"
        )
    options = [
        f"--gpu-architecture=sm_{architecture}",
        "--std=c++17",
        "--fmad=false",
        f"--define-macro=THREADS={threads}",
        f"--define-macro=PART_THREADS={PART_THREADS}",
        f"--define-macro=CHUNK={CHUNK}",
    ]
    return _compile(nvrtc, kernel_sources(), options, source)


def _compile(nvrtc: Any, sources: dict[str, str], options: Sequence[str], source: str = "decision.cu") -> bytes:
    headers = {name.encode(): text.encode() for name, text in sources.items() if name not in SOURCES}
    program = _value(
        nvrtc,
        nvrtc.nvrtcCreateProgram(
            sources[source].encode(), source.encode(), len(headers), list(headers.values()), list(headers)
        ),
    )
    try:
        encoded = [option.encode() for option in options]
        status = nvrtc.nvrtcCompileProgram(program, len(encoded), encoded)[0]
        if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            log = bytearray(_value(nvrtc, nvrtc.nvrtcGetProgramLogSize(program)))
            _value(nvrtc, nvrtc.nvrtcGetProgramLog(program, log))
            raise CompilationFailed(
                f"NVRTC with {' '.join(options)} gave {status.name}:\n{log.decode().rstrip(chr(0))}"
            )
        cubin = bytearray(_value(nvrtc, nvrtc.nvrtcGetCUBINSize(program)))
        _value(nvrtc, nvrtc.nvrtcGetCUBIN(program, cubin))
        return bytes(cubin)
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def _value(nvrtc: Any, answer: Sequence[Any]) -> Any:
    """The value of an NVRTC call that gives (status, value) or (status,)."""
    status, *values = answer
    if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise CompilationFailed(f"NVRTC gave {status.name}, expected success")
    return values[0] if values else None

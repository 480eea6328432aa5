"""Sessions of ``onnxruntime-gpu``, in which nothing runs elsewhere in silence.

ONNX Runtime leaves the execution provider that was asked for in four ways, and each is closed here: a session that is made again
without it after a failure (``enable_fallback=0``); an execution provider that cannot be loaded and is left out with a line in the
log (its name is checked); one that is there and takes no node (the placement that ONNX Runtime reports is read); and single nodes
on the CPU. Of these it puts some there on purpose, the arithmetic on shapes, so that to forbid them all
(``session.disable_cpu_ep_fallback``) forbids every window graph; by default anything but shape arithmetic is refused.
"""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from coupled_sampling.backends.ort.session import check_threads, require_onnxruntime
from coupled_sampling.errors import BundleError, InvalidArgument, MissingDependency, ProviderError

__all__ = [
    "CPU_NODES",
    "CUDA",
    "INSTALL",
    "SHAPE_OPERATORS",
    "TENSORRT",
    "check_gpu_arguments",
    "nodes_on_cpu",
    "open_cuda_session",
    "open_gpu_session",
    "placement",
    "refuse_nodes_on_the_cpu",
    "require_gpu",
]

CUDA, TENSORRT = "CUDAExecutionProvider", "TensorrtExecutionProvider"
INSTALL = "pip install 'coupled-sampling[gpu]'"

CPU_NODES = ("none", "shapes", "any")
"""Which nodes may run on the CPU."""

SHAPE_OPERATORS = frozenset(
    ("Shape", "Size", "Slice", "Concat", "Gather", "Squeeze", "Unsqueeze", "Add", "Sub", "Mul", "Div", "Min", "Max")
)
"""Operators of arithmetic on shapes, which ONNX Runtime computes on the CPU by preference."""

_TENSORRT_LIBRARIES = (
    "it could not load TensorRT, and its error log says which library is missing. onnxruntime-gpu 1.28 to 1.31 want "
    "libnvinfer.so.10 and libnvonnxparser.so.10, so TensorRT 10 and not 11: "
    "pip install --extra-index-url https://pypi.nvidia.com 'tensorrt-cu13==10.*', and put its folder tensorrt_libs into "
    "LD_LIBRARY_PATH before Python starts; or use the backend 'cuda' or 'tensorrt-rtx'"
)


def check_gpu_arguments(device: int, cpu_nodes: str, threads: int | None) -> None:
    """Raise `InvalidArgument` if one of them is none of the values it can have."""
    check_threads(threads)
    if cpu_nodes not in CPU_NODES:
        raise InvalidArgument(f"cpu_nodes is {cpu_nodes!r}, expected one of {', '.join(CPU_NODES)}")
    if isinstance(device, bool) or not isinstance(device, int) or device < 0:
        raise InvalidArgument(f"device is {device!r}, expected the number of a GPU, from 0")


def require_gpu(provider: str) -> Any:
    """The module ``onnxruntime``, built with the execution provider of that name.

    Raises
    ------
    MissingDependency
        It is missing, too old, or built without it.
    """
    onnxruntime = require_onnxruntime(INSTALL)
    available = onnxruntime.get_available_providers()
    if provider not in available:
        built = {CUDA: "CUDA", TENSORRT: "TensorRT"}[provider]
        raise MissingDependency(
            f"onnxruntime {onnxruntime.__version__} was built without {built}, it has {', '.join(available)}: uninstall the "
            f"package onnxruntime, then {INSTALL}; [cpu] and [gpu] exclude each other, both are the module onnxruntime"
        )
    # CUDA and cuDNN may be packages, too, where the loader does not look. What this cannot load it says on standard output.
    with contextlib.redirect_stdout(sys.stderr):
        onnxruntime.preload_dlls()
    return onnxruntime


def open_gpu_session(
    onnxruntime: Any,
    graph: Path,
    providers: Sequence[tuple[str, Mapping[str, str]]],
    *,
    threads: int | None,
    cpu_nodes: str,
) -> Any:
    """An ``InferenceSession`` of ``graph`` on the first of ``providers``, whose nodes may fall to the ones after it.

    Raises
    ------
    BundleError
        ONNX Runtime cannot load the file.
    MissingDependency
        TensorRT is asked for and its libraries are not there.
    ProviderError
        It cannot use the GPU, or CUDA graphs where they are asked for.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.enable_mem_pattern = False
    # The same reasons as on the CPU, see `coupled_sampling.backends.ort.session.open_session`.
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if cpu_nodes == "none":
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    given = [(name, dict(settings)) for name, settings in providers]
    device = given[0][1]["device_id"]
    try:
        session = onnxruntime.InferenceSession(str(graph), options, providers=given, enable_fallback=0)
    except Exception as error:
        # Its exceptions share no base class but Exception.
        raise _explained(error, onnxruntime, graph, device, cpu_nodes) from error
    used, wanted = session.get_providers(), [name for name, _ in given]
    if used[: len(wanted)] == wanted:
        return session
    why = (
        f"it could not use GPU {device}. Its warning says why, mostly a missing driver (`nvidia-smi` must work) or missing CUDA or "
        "cuDNN libraries (pip install 'onnxruntime-gpu[cuda,cudnn]')"
    )
    if wanted[0] == TENSORRT and used[0] == CUDA:
        raise MissingDependency(f"ONNX Runtime runs {graph} on {CUDA}, expected {TENSORRT}: {_TENSORRT_LIBRARIES}")
    raise ProviderError(f"ONNX Runtime runs {graph} on {used[0]}, expected {wanted[0]}: {why}")


def open_cuda_session(graph: Path, device: int, threads: int | None, cpu_nodes: str) -> tuple[Any, Any, Counter[str]]:
    """The module ``onnxruntime``, a session of ``graph`` on GPU ``device``, and the operators it has on the CPU.

    Raises
    ------
    BundleError
        ONNX Runtime cannot load the file.
    InvalidArgument
        An argument is none of the values it can have.
    MissingDependency
        ``onnxruntime`` is missing, too old, or built without CUDA.
    ProviderError
        It cannot use the GPU, or would run nodes on the CPU that ``cpu_nodes`` forbids.
    """
    check_gpu_arguments(device, cpu_nodes, threads)
    onnxruntime = require_gpu(CUDA)
    settings = {"device_id": str(device), "use_tf32": "0"}
    session = open_gpu_session(onnxruntime, graph, [(CUDA, settings)], threads=threads, cpu_nodes=cpu_nodes)
    on_cpu = nodes_on_cpu(placement(session))
    refuse_nodes_on_the_cpu(on_cpu, graph, cpu_nodes, str(onnxruntime.__version__))
    return onnxruntime, session, on_cpu


def _explained(error: Exception, onnxruntime: Any, graph: Path, device: str, cpu_nodes: str) -> Exception:
    """``error``, of a session that could not be made, as one of ours."""
    said, version = str(error), f"ONNX Runtime {onnxruntime.__version__}"
    if cpu_nodes == "none" and "fallback to CPU EP" in said:
        return ProviderError(
            f"{version} would run nodes of {graph} on the CPU, which cpu_nodes='none' forbids; "
            f"it does so with arithmetic on shapes, on purpose, and with all nodes where it cannot use GPU {device}, which its "
            "warnings say: use cpu_nodes='shapes'"
        )
    if "graph capture" in said:
        return ProviderError(
            f"{version} cannot capture {graph} as CUDA graphs: {said}; it must copy between the CPU and GPU {device} in the middle "
            "of the graph, or the graph has control flow: use cuda_graphs=False"
        )
    if "install TensorRT" in said:
        return MissingDependency(f"{version} cannot run {graph} with TensorRT ({said.strip()}): {_TENSORRT_LIBRARIES}")
    if "TensorRT" in said:
        return ProviderError(f"{version} cannot run {graph} with TensorRT: {said.strip()}; use the backend 'cuda'")
    if "CUDA" in said or "CUDNN" in said:
        return ProviderError(f"{version} cannot use GPU {device}: {said}; check `nvidia-smi` and its CUDA version")
    return BundleError(f"{version} cannot load {graph}: {said}; export the bundle again")


def placement(session: Any) -> dict[str, Counter[str]]:
    """Operators by execution provider and how many nodes of each, as ONNX Runtime reports its placement."""
    found: dict[str, Counter[str]] = {}
    for part in session.get_provider_graph_assignment_info():
        operators = [node.op_type for node in part.get_nodes()]
        if operators:
            found.setdefault(part.ep_name, Counter()).update(operators)
    return found


def nodes_on_cpu(placed: Mapping[str, Counter[str]]) -> Counter[str]:
    """Operators that are on neither CUDA nor TensorRT."""
    return sum((found for name, found in placed.items() if name not in (CUDA, TENSORRT)), Counter())


def refuse_nodes_on_the_cpu(on_cpu: Counter[str], graph: Path, cpu_nodes: str, version: str) -> None:
    """Raise `ProviderError` if nodes are on the CPU that ``cpu_nodes`` forbids."""
    refused = {} if cpu_nodes == "any" else {op: n for op, n in on_cpu.items() if op not in SHAPE_OPERATORS}
    if refused:
        listed = ", ".join(f"{operator} ({count})" for operator, count in sorted(refused.items()))
        raise ProviderError(
            f"onnxruntime {version} has no CUDA kernel for {sum(refused.values())} nodes of "
            f"{graph} and would run them on the CPU: {listed}; install a newer onnxruntime-gpu, use TensorRT, "
            "or allow it with cpu_nodes='any'"
        )

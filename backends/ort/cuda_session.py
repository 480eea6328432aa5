"""Sessions of ``onnxruntime-gpu``, in which nothing runs elsewhere in silence: the one place where CUDA is opened in ONNX Runtime.

ONNX Runtime leaves the execution provider that was asked for in four ways, and each is closed here: a session that is made again
without it after a failure (``enable_fallback=0``); an execution provider that cannot be loaded and is left out with a line in the
log (its name is checked); one that is there and takes no node (the placement that ONNX Runtime reports is read); and single nodes
on the CPU. Of these it puts some there on purpose, the arithmetic on shapes, so that to forbid them all
(``session.disable_cpu_ep_fallback``) forbids every window graph; by default anything but shape arithmetic is refused.

TF32, on by default there, is off: it rounds products to 10 bits of mantissa.
"""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coupled_sampling.backends.ort.session import check_threads, missing_kernel, require_onnxruntime, session_options
from coupled_sampling.errors import BundleError, InvalidArgument, MissingDependency, ProviderError

__all__ = [
    "CPU_NODES",
    "CUDA",
    "SHAPE_OPERATORS",
    "CudaSession",
    "cuda_version",
    "open_cuda_session",
    "placement_of",
]

CUDA = "CUDAExecutionProvider"
_INSTALL = "pip install 'coupled-sampling[gpu]'"

CPU_NODES = ("none", "shapes", "any")
"""Which nodes may run on the CPU."""

SHAPE_OPERATORS = frozenset(
    ("Shape", "Size", "Slice", "Concat", "Gather", "Squeeze", "Unsqueeze", "Add", "Sub", "Mul", "Div", "Min", "Max")
)
"""Operators of arithmetic on shapes, which ONNX Runtime computes on the CPU by preference."""


@dataclass(frozen=True)
class CudaSession:
    """A graph opened on a GPU.

    Parameters
    ----------
    onnxruntime, session
        The module, and its ``InferenceSession``.
    device
        Number of the GPU.
    placement
        Operators by execution provider, and how many nodes of each.
    """

    onnxruntime: Any
    session: Any
    device: int
    placement: Mapping[str, Counter[str]]

    @property
    def on_cpu(self) -> Counter[str]:
        """Operators that ONNX Runtime placed on the CPU, and how many nodes of each."""
        return sum((found for name, found in self.placement.items() if name != CUDA), Counter())


def cuda_version() -> str:
    """The version of ``onnxruntime``.

    Raises
    ------
    MissingDependency
        It is missing or too old.
    """
    return str(require_onnxruntime(_INSTALL).__version__)


def open_cuda_session(
    graph: Path,
    device: int = 0,
    threads: int | None = None,
    *,
    cpu_nodes: str = "shapes",
    cuda_graphs: bool = False,
) -> CudaSession:
    """Open ``graph`` on a GPU.

    Parameters
    ----------
    graph
        Path of an ONNX file.
    device
        Number of the GPU, from 0.
    threads
        Threads within an operator, for nodes on the CPU.
    cpu_nodes
        Which nodes may run on the CPU: "none", "shapes" for arithmetic on shapes only, or "any", which copies tensors back
        and forth.
    cuda_graphs
        Whether runs can be captured as CUDA graphs. Needs a placement without copies between CPU and GPU.

    Raises
    ------
    BundleError
        ONNX Runtime cannot load the file.
    InvalidArgument
        An argument is none of the values it can have.
    MissingDependency
        ``onnxruntime`` is missing, too old, or built without CUDA.
    ProviderError
        It cannot use the GPU, would run nodes on the CPU that ``cpu_nodes`` forbids, or cannot capture.
    """
    check_threads(threads)
    if cpu_nodes not in CPU_NODES:
        raise InvalidArgument(f"cpu_nodes is {cpu_nodes!r}, expected one of {', '.join(CPU_NODES)}")
    onnxruntime = _require_cuda()
    settings = {"device_id": str(device), "use_tf32": "0"}
    if cuda_graphs:
        settings["enable_cuda_graph"] = "1"
    options = session_options(onnxruntime, threads)
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if cpu_nodes == "none":
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    try:
        session = onnxruntime.InferenceSession(str(graph), options, providers=[(CUDA, settings)], enable_fallback=0)
    except Exception as error:
        # Its exceptions share no base class but Exception.
        raise _explained(error, onnxruntime, graph, device, cpu_nodes) from error
    used = session.get_providers()[0]
    if used != CUDA:
        raise ProviderError(
            f"ONNX Runtime runs {graph} on {used}, expected {CUDA}: it could not use GPU {device}. Its warning says why, mostly a "
            "missing driver (`nvidia-smi` must work) or missing CUDA or cuDNN libraries (pip install 'onnxruntime-gpu[cuda,cudnn]')"
        )
    opened = CudaSession(onnxruntime, session, device, placement_of(session))
    _refuse_nodes_on_the_cpu(opened.on_cpu, graph, cpu_nodes, str(onnxruntime.__version__))
    return opened


def _require_cuda() -> Any:
    """The module ``onnxruntime``, built with CUDA."""
    onnxruntime = require_onnxruntime(_INSTALL)
    available = onnxruntime.get_available_providers()
    if CUDA not in available:
        raise MissingDependency(
            f"onnxruntime {onnxruntime.__version__} was built without CUDA, it has {', '.join(available)}: uninstall the "
            f"package onnxruntime, then {_INSTALL}; [cpu] and [gpu] exclude each other, both are the module onnxruntime"
        )
    # CUDA and cuDNN may be packages, too, where the loader does not look. What this cannot load it says on standard output.
    with contextlib.redirect_stdout(sys.stderr):
        onnxruntime.preload_dlls()
    return onnxruntime


def _explained(error: Exception, onnxruntime: Any, graph: Path, device: int, cpu_nodes: str) -> Exception:
    """``error``, of a session that could not be made, as one of ours."""
    said, version = str(error), f"ONNX Runtime {onnxruntime.__version__}"
    missing = missing_kernel(said)
    if missing is not None:
        return ProviderError(
            f"{version} has no kernel for a node of {graph}, neither on CUDA nor on the CPU: {missing}, with the types that it has "
            "there; install a newer onnxruntime-gpu, or export with --compute float16 or float32, integers with --form nbits"
        )
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
    if "CUDA" in said or "CUDNN" in said:
        return ProviderError(f"{version} cannot use GPU {device}: {said}; check `nvidia-smi` and its CUDA version")
    return BundleError(f"{version} cannot load {graph}: {said}; export the bundle again")


def placement_of(session: Any) -> dict[str, Counter[str]]:
    """Operators by execution provider and how many nodes of each, as ONNX Runtime reports its placement."""
    found: dict[str, Counter[str]] = {}
    for part in session.get_provider_graph_assignment_info():
        operators = [node.op_type for node in part.get_nodes()]
        if operators:
            found.setdefault(part.ep_name, Counter()).update(operators)
    return found


def _refuse_nodes_on_the_cpu(on_cpu: Counter[str], graph: Path, cpu_nodes: str, version: str) -> None:
    refused = {} if cpu_nodes == "any" else {op: n for op, n in on_cpu.items() if op not in SHAPE_OPERATORS}
    if refused:
        listed = ", ".join(f"{operator} ({count})" for operator, count in sorted(refused.items()))
        raise ProviderError(
            f"onnxruntime {version} has no CUDA kernel for {sum(refused.values())} nodes of "
            f"{graph} and would run them on the CPU: {listed}; install a newer onnxruntime-gpu, use TensorRT, "
            "or allow it with cpu_nodes='any'"
        )

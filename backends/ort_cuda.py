"""`OrtCudaProvider`: a bundle's window graph as a logits provider, run by ONNX Runtime's CUDA execution provider.

**Written, never run on a GPU.** The tests run it on a stand-in for the package ``onnxruntime`` that computes on the CPU and keeps
the rules of bindings: device memory has addresses of its own, and an input from the host is copied when it is bound and not again.
``onnxruntime-gpu`` 1.28.0 and 1.31.1 open the shipped model and take the bindings, with CUDA's libraries replaced by ones
that do nothing (``tests/test_cuda_placement.py``); what their kernels compute was never seen.

Caches live in device memory bound as past *and* present. Tokens, starts and ``kv_length`` are bound anew in every call; logits are
copied to the host by ONNX Runtime, or with ``on_device`` stay on the GPU for `KernelStep`. A run ends when its work is done.

Nothing runs on the CPU in silence. ONNX Runtime falls back to the CPU in three ways, and each is closed: a session that is made
again without CUDA after a failure (``enable_fallback=0``), an execution provider that is left out (its name is checked), and
single nodes. Of these ONNX Runtime puts some on the CPU on purpose, the arithmetic on shapes, so that to forbid them all
(``session.disable_cpu_ep_fallback``) forbids every window graph. By default the placement that ONNX Runtime reports is
read, and anything but shape arithmetic is refused. TF32, on by default there, is off: it rounds products to 10 bits of mantissa.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, Self

import numpy as np

from coupled_sampling.backends.cuda.pointers import DevicePointer
from coupled_sampling.backends.ort import OrtProvider
from coupled_sampling.backends.session import check_threads, require_onnxruntime
from coupled_sampling.bounds import check_positive
from coupled_sampling.bundle import Bundle, open_bundle
from coupled_sampling.errors import BundleError, InvalidArgument, MissingDependency, ProviderError

__all__ = ["CPU_NODES", "SHAPE_OPERATORS", "OrtCudaProvider", "open_cuda_session"]

CUDA = "CUDAExecutionProvider"
INSTALL = "pip install 'coupled-sampling[gpu]'"

CPU_NODES = ("none", "shapes", "any")
"""Which nodes may run on the CPU."""

SHAPE_OPERATORS = frozenset(
    ("Shape", "Size", "Slice", "Concat", "Gather", "Squeeze", "Unsqueeze", "Add", "Sub", "Mul", "Div", "Min", "Max")
)
"""Operators of arithmetic on shapes, which ONNX Runtime computes on the CPU by preference."""


class OrtCudaProvider(OrtProvider):
    """An `OrtProvider` on a GPU. Make one with `open_on_gpu`.

    Attributes
    ----------
    on_device
        Whether `forward` returns a `coupled_sampling.backends.cuda.pointers.DevicePointer` instead of a numpy array.
    on_cpu
        Operators that ONNX Runtime placed on the CPU, and how many nodes of each.
    """

    def __init__(
        self,
        bundle: Bundle,
        session: Any,
        batch_size: int,
        *,
        onnxruntime: Any,
        device: int = 0,
        on_device: bool = False,
    ) -> None:
        self._onnxruntime = onnxruntime
        self.device = device
        self.on_device = on_device
        self.on_cpu: Counter[str] = Counter()
        super().__init__(bundle, session, batch_size)

    @classmethod
    def open_on_gpu(
        cls,
        bundle: Bundle | str | Path,
        batch_size: int = 1,
        *,
        device: int = 0,
        on_device: bool = False,
        cpu_nodes: str = "shapes",
        threads: int | None = None,
    ) -> Self:
        """A provider for a bundle.

        Parameters
        ----------
        bundle
            A `Bundle`, or what `coupled_sampling.open_bundle` takes.
        batch_size
            Rows to hold state for.
        device
            Number of the GPU, from 0.
        on_device
            Whether logits stay on the GPU, for steps that run there.
        cpu_nodes
            Which nodes may run on the CPU: "none", "shapes" for arithmetic on shapes only, or "any", which copies tensors back
            and forth. `on_cpu` says which do.
        threads
            Threads within an operator, for nodes on the CPU.

        Raises
        ------
        BundleError
            The bundle cannot be opened, or its graph is not what its manifest promises.
        InvalidArgument
            An argument is none of the values it can have.
        MissingDependency
            ``onnxruntime`` is missing, too old, or built without CUDA.
        ProviderError
            ONNX Runtime cannot use the GPU, or would run nodes on the CPU that ``cpu_nodes`` forbids.
        """
        check_positive("batch_size", batch_size)
        opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
        onnxruntime, session, on_cpu = open_cuda_session(opened.window_graph, device, threads, cpu_nodes)
        provider = cls(opened, session, batch_size, onnxruntime=onnxruntime, device=device, on_device=on_device)
        provider.on_cpu = on_cpu
        return provider

    def _zeros(self, shape: tuple[int, ...]) -> Any:
        return self._onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros(shape, np.float32), "cuda", self.device)

    def _logits_memory(self, size: int) -> Any:
        return self._zeros((size,)) if self.on_device else super()._logits_memory(size)

    def _result(self, rows: int, width: int) -> Any:
        if not self.on_device:
            return super()._result(rows, width)
        shape = (rows, width, self.vocab_size)
        return DevicePointer(self._logits.data_ptr(), shape, "float32", None, self._logits)

    def _binding(self, rows: int, width: int) -> Any:
        """What stays is bound once for a shape; what the host sends is copied when it is bound, so it is bound in every call."""
        if (rows, width) not in self._bindings:
            self._bindings[rows, width] = self._bind_what_stays(rows, width)
        binding = self._bindings[rows, width]
        binding.bind_cpu_input("input_ids", self._tokens[: rows * width].reshape(rows, width))
        binding.bind_cpu_input("start", self._start[:rows])
        if self.bundle.manifest.window_graph.has_kv_length:
            binding.bind_cpu_input("kv_length", self._kv_length)
        return binding

    def _bind_what_stays(self, rows: int, width: int) -> Any:
        binding = self._session.io_binding()
        where = ("cuda", self.device, np.float32)
        for past, (present, cache) in self._caches.items():
            shape = (rows, *cache.shape()[1:])
            binding.bind_input(past, *where, shape, cache.data_ptr())
            binding.bind_output(present, *where, shape, cache.data_ptr())
        shape = (rows, width, self.vocab_size)
        if self.on_device:
            binding.bind_output("logits", *where, shape, self._logits.data_ptr())
        else:
            binding.bind_output("logits", "cpu", 0, np.float32, shape, self._logits.ctypes.data)
        return binding


def open_cuda_session(graph: Path, device: int, threads: int | None, cpu_nodes: str) -> tuple[Any, Any, Counter[str]]:
    """The module ``onnxruntime``, a session of ``graph`` on GPU ``device``, and the operators it has on the CPU.

    Arguments and errors are those of `OrtCudaProvider.open_on_gpu`.
    """
    check_threads(threads)
    if cpu_nodes not in CPU_NODES:
        raise InvalidArgument(f"cpu_nodes is {cpu_nodes!r}, expected one of {', '.join(CPU_NODES)}")
    if isinstance(device, bool) or not isinstance(device, int) or device < 0:
        raise InvalidArgument(f"device is {device!r}, expected the number of a GPU, from 0")
    onnxruntime = _require_cuda()
    session = _open_session(onnxruntime, graph, device, threads, cpu_nodes)
    on_cpu = _nodes_on_cpu(session)
    refused = {} if cpu_nodes == "any" else {op: n for op, n in on_cpu.items() if op not in SHAPE_OPERATORS}
    if refused:
        listed = ", ".join(f"{operator} ({count})" for operator, count in sorted(refused.items()))
        raise ProviderError(
            f"onnxruntime {onnxruntime.__version__} has no CUDA kernel for {sum(refused.values())} nodes of "
            f"{graph} and would run them on the CPU: {listed}; install a newer onnxruntime-gpu, use TensorRT, "
            "or allow it with cpu_nodes='any'"
        )
    return onnxruntime, session, on_cpu


def _require_cuda() -> Any:
    """The module ``onnxruntime``, with the CUDA execution provider in it."""
    onnxruntime = require_onnxruntime(INSTALL)
    available = onnxruntime.get_available_providers()
    if CUDA not in available:
        raise MissingDependency(
            f"onnxruntime {onnxruntime.__version__} was built without CUDA, it has {', '.join(available)}: uninstall the package "
            f"onnxruntime, then {INSTALL}; [cpu] and [gpu] exclude each other, both are the module onnxruntime"
        )
    return onnxruntime


def _open_session(onnxruntime: Any, graph: Path, device: int, threads: int | None, cpu_nodes: str) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.enable_mem_pattern = False
    # The same reasons as on the CPU, see `open_session`.
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if cpu_nodes == "none":
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    providers = [(CUDA, {"device_id": str(device), "use_tf32": "0"})]
    try:
        session = onnxruntime.InferenceSession(str(graph), options, providers=providers, enable_fallback=0)
    except Exception as error:
        # Its exceptions share no base class but Exception.
        if cpu_nodes == "none" and "fallback to CPU EP" in str(error):
            raise ProviderError(
                f"ONNX Runtime {onnxruntime.__version__} would run nodes of {graph} on the CPU, which cpu_nodes='none' forbids; "
                f"it does so with arithmetic on shapes, on purpose, and with all nodes where it cannot use GPU {device}, which its "
                "warnings say: use cpu_nodes='shapes'"
            ) from error
        if "CUDA" in str(error) or "CUDNN" in str(error):
            raise ProviderError(
                f"ONNX Runtime {onnxruntime.__version__} cannot use GPU {device}: {error}; check `nvidia-smi` and its CUDA version"
            ) from error
        raise BundleError(
            f"ONNX Runtime {onnxruntime.__version__} cannot load {graph}: {error}; export the bundle again"
        ) from error
    used = session.get_providers()
    if used[0] != CUDA:
        raise ProviderError(
            f"ONNX Runtime runs {graph} on {used[0]}, expected {CUDA}: it could not use GPU {device}. Its warning says why, "
            "mostly a missing driver (`nvidia-smi` must work) or missing CUDA or cuDNN libraries "
            "(pip install 'onnxruntime-gpu[cuda,cudnn]', and call onnxruntime.preload_dlls() first)"
        )
    return session


def _nodes_on_cpu(session: Any) -> Counter[str]:
    """Operators that are not on CUDA, as ONNX Runtime reports its placement."""
    return Counter(
        node.op_type
        for part in session.get_provider_graph_assignment_info()
        if part.ep_name != CUDA
        for node in part.get_nodes()
    )

"""`OrtCudaStep`: a step graph as a coupled step, run by ONNX Runtime's CUDA execution provider.

**Written, never run on a GPU.** The tests run it on the stand-in that `coupled_sampling.backends.ort.cuda_provider` is run
on, which computes on the CPU and keeps the rules of bindings. ``onnxruntime-gpu`` takes the bindings, with CUDA's
libraries replaced by ones that do nothing (``tests/backends/ort/test_cuda_placement.py``): there what crosses and what is
allocated is counted as ONNX Runtime asks for it. What its kernels compute was never seen.

Caches, draft laws and the noise ring live in device memory; caches and ring are bound as past *and* present. What crosses in a
call: at most 53 bytes for each of the B * W slots, 106 for each row and 16 besides (tokens, starts, counts, settings, uniforms;
back come tokens, counts and largest logits), and the race noise of newly entered positions, 4 V bytes each, to the GPU. All
rows send as many positions as the one with the most of them, at least one; what is not new is padding. Besides, zeros cross when
a window is wider than all before it, and laws after an interruption in the middle of the loop's own bookkeeping.

Inputs are bound anew in every call, since ONNX Runtime copies them when they are bound. Memory for them and for what lies
between operators is taken from ONNX Runtime's own store, which asks CUDA for more only when it has none left. Nothing runs on
the CPU in silence, by the rules of `OrtCudaProvider`. A window that would be written past a cache's end is refused beforehand:
on CUDA TensorScatter moves it to the last columns without an error.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, Self

from numpy.typing import NDArray

from coupled_sampling.backends.ort.gpu_session import open_cuda_session
from coupled_sampling.backends.ort.step import OrtStep
from coupled_sampling.backends.ort.step_binding import HostBinding, Kept
from coupled_sampling.backends.ort.step_checks import find_step_graph
from coupled_sampling.bounds import check_positive
from coupled_sampling.bundles.opening import Bundle, open_bundle
from coupled_sampling.methods import Method

__all__ = ["DeviceBinding", "OrtCudaStep"]


class DeviceBinding(HostBinding):
    """Bindings of a graph that runs on GPU ``device``: kept tensors in its memory, inputs copied to it in every call."""

    def __init__(self, onnxruntime: Any, session: Any, device: int) -> None:
        super().__init__(session)
        self._onnxruntime = onnxruntime
        self._place = ("cuda", device)

    def keep(self, values: NDArray[Any]) -> Kept:
        memory = self._onnxruntime.OrtValue.ortvalue_from_numpy(values, *self._place)
        return Kept(memory, memory.data_ptr(), values.dtype.type, values.size)

    def fetch(self, kept: Kept) -> NDArray[Any]:
        values: NDArray[Any] = kept.memory.numpy().reshape(-1)
        return values

    def bind_input(self, name: str, values: NDArray[Any]) -> None:
        # Copied now, or where the graph reads it on the host (kv_length, candidates) taken as it is.
        self._binding.bind_cpu_input(name, values)


class OrtCudaStep(OrtStep):
    """An `OrtStep` on a GPU. Make one with `open_on_gpu`.

    Attributes
    ----------
    on_cpu
        Operators that ONNX Runtime placed on the CPU, and how many nodes of each.
    device
        Number of the GPU.
    """

    on_cpu: Counter[str]
    device: int

    @classmethod
    def open_on_gpu(
        cls,
        bundle: Bundle | str | Path,
        method: str | Method,
        batch_size: int = 1,
        *,
        warped: bool = False,
        guidance: float = 1.0,
        device: int = 0,
        cpu_nodes: str = "shapes",
        threads: int | None = None,
    ) -> Self:
        """A step for a bundle that has step graphs.

        Parameters
        ----------
        bundle, method, batch_size, warped, guidance
            As in `OrtStep.open`.
        device, cpu_nodes, threads
            As in `coupled_sampling.backends.ort.cuda_provider.OrtCudaProvider.open_on_gpu`.

        Raises
        ------
        BundleError
            The bundle cannot be opened or has no such graph, or the graph is not what the manifest promises.
        InvalidArgument
            An argument is none of the values it can have.
        MissingDependency
            ``onnxruntime`` is missing, too old, or built without CUDA.
        ProviderError
            ONNX Runtime cannot use the GPU, or would run nodes on the CPU that ``cpu_nodes`` forbids.
        """
        check_positive("batch_size", batch_size)
        opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
        graph, record = find_step_graph(opened, method, warped=warped, guided=guidance != 1)
        onnxruntime, session, on_cpu = open_cuda_session(graph, device, threads, cpu_nodes)
        binding = DeviceBinding(onnxruntime, session, device)
        step = cls._of_bundle(opened, record, session, batch_size, guidance, binding)
        step.on_cpu, step.device = on_cpu, device
        return step

"""Opening a bundle by the name of a back end: a provider, or on a GPU a whole step that leaves logits where they are.

| back end | runs the model with | packages |
|---|---|---|
| ``cpu`` | ONNX Runtime on the CPU | ``[cpu]`` |
| ``cuda`` | ONNX Runtime's CUDA execution provider | ``[gpu]`` |
| ``ort-tensorrt`` | its TensorRT execution provider, the rest on CUDA | ``[gpu]`` and TensorRT 10's libraries |
| ``tensorrt``, ``tensorrt-rtx`` | an engine of TensorRT's own | ``[tensorrt]``, ``[tensorrt-rtx]`` |

All but ``cpu`` were written and never run on a GPU.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from coupled_sampling.backends.ort import OrtProvider
from coupled_sampling.bounds import check_positive
from coupled_sampling.bundle import Bundle, open_bundle
from coupled_sampling.contracts import LogitsProvider
from coupled_sampling.errors import InvalidArgument
from coupled_sampling.methods import Method, find_method

if TYPE_CHECKING:
    from coupled_sampling.backends.cuda.device import Device
    from coupled_sampling.backends.cuda.kernel_step import KernelStep
    from coupled_sampling.backends.ort_step import OrtStep
    from coupled_sampling.backends.trt import TrtStep
    from coupled_sampling.backends.trt.options import BuildOptions
    from coupled_sampling.backends.trt.progress import Progress

__all__ = [
    "BACKENDS",
    "ENGINES",
    "STEP_GRAPH_BACKENDS",
    "check_backend",
    "close_provider",
    "execution_provider",
    "open_graph_step",
    "open_kernel_step",
    "open_provider",
    "require_kernels",
]

BACKENDS = ("cpu", "cuda", "ort-tensorrt", "tensorrt", "tensorrt-rtx")
"""Names of back ends."""

ENGINES = ("tensorrt", "tensorrt-rtx")
"""Those with engines of TensorRT's own."""

STEP_GRAPH_BACKENDS = ("cpu", "cuda", *ENGINES)
"""Those that run step graphs: the bundle's own, or with `ENGINES` one of ``scd-match`` that is made from the window graph."""


def open_provider(
    bundle: Bundle | str | Path,
    backend: str = "cpu",
    batch_size: int = 1,
    *,
    threads: int | None = None,
    max_window: int | None = None,
    on_device: bool = False,
    device: int = 0,
    engines: Path | str | None = None,
    progress: Progress | None = None,
) -> LogitsProvider:
    """A logits provider for a bundle. The providers' own `open` functions have more settings.

    Parameters
    ----------
    bundle
        A `Bundle`, or what `coupled_sampling.open_bundle` takes.
    backend
        One of `BACKENDS`.
    batch_size
        Rows to hold state for; with guidance two for each sequence.
    threads
        Threads within an operator, for ONNX Runtime; None lets it choose.
    max_window
        Most slots in a call, which TensorRT's engines are tuned for; None is their own choice. The others take the bundle's.
    on_device
        Whether logits stay on the GPU.
    device
        Number of the GPU, from 0.
    engines
        Folder of TensorRT's engines; None is ``<bundle>.engines`` beside the bundle's folder.
    progress
        Told how far the building of an engine is, by ``tensorrt`` and ``tensorrt-rtx``.

    Raises
    ------
    BundleError, InvalidArgument, MissingDependency, OutputError, ProviderError
        As from the providers: what is missing and which extra to install; no driver or no GPU; a bundle that the back end cannot
        run. Nothing is run elsewhere instead.
    """
    check_backend(backend, threads, engines)
    check_positive("batch_size", batch_size)
    opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
    if max_window is not None:
        check_positive("max_window", max_window)
        max_window = min(max_window, opened.manifest.window_graph.max_window)
    if backend == "cpu":
        if on_device:
            raise InvalidArgument("on_device is True, but backend is 'cpu'; expected a back end on a GPU")
        return OrtProvider.open(opened, batch_size, threads)
    if backend in ENGINES:
        from coupled_sampling.backends.trt import TrtProvider

        options = _engine_options(opened, batch_size, max_window)
        return TrtProvider.open(
            opened,
            flavour=backend,
            device=device,
            options=options,
            engines=engines,
            on_device=on_device,
            progress=progress,
        )
    from coupled_sampling.backends.ort_cuda import OrtCudaProvider
    from coupled_sampling.backends.ort_tensorrt import TensorrtOptions

    tensorrt = TensorrtOptions(engines, max_window=max_window) if backend == "ort-tensorrt" else None
    return OrtCudaProvider.open_on_gpu(
        opened, batch_size, device=device, on_device=on_device, threads=threads, tensorrt=tensorrt
    )


def open_kernel_step(
    bundle: Bundle | str | Path,
    method: str | Method,
    backend: str,
    batch_size: int = 1,
    *,
    guidance: float = 1.0,
    threads: int | None = None,
    max_window: int | None = None,
    device: int = 0,
    engines: Path | str | None = None,
    progress: Progress | None = None,
) -> KernelStep:
    """A coupled step on a GPU: the bundle's model on ``backend``, decided by CUDA kernels where its logits lie.

    Parameters
    ----------
    method
        A name from `coupled_sampling.methods.METHODS`, or a `Method`.
    batch_size
        Sequences decoded together; the model has twice as many rows with ``guidance``.
    guidance
        Classifier-free guidance scale, with the bundle's unconditional prompt; 1 is none.

    Others are those of `open_provider`.

    Raises
    ------
    BundleError, InvalidArgument, MissingDependency, OutputError, ProviderError
        As from `open_provider`; also where ``backend`` is on no GPU, NVRTC is missing, or there is no unconditional prompt. Drivers
        and packages are looked for before an engine is built.
    """
    check_backend(backend, threads, engines)
    check_positive("batch_size", batch_size)
    found = find_method(method)
    if backend == "cpu":
        raise InvalidArgument(
            f"backend is 'cpu', expected one of {', '.join(BACKENDS[1:])}: kernels decide where logits are on a GPU"
        )
    opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
    unconditional = opened.manifest.unconditional_prompt
    if guidance != 1 and unconditional is None:
        raise InvalidArgument(
            f"guidance is {guidance}, but the bundle {opened.manifest.name} has no unconditional prompt; leave it at 1"
        )
    from coupled_sampling.backends.cuda.kernel_step import KernelStep
    from coupled_sampling.backends.cuda.pinned_launcher import PinnedLauncher
    from coupled_sampling.backends.cuda.streams import Stream

    gpu = require_kernels(device)
    rows = batch_size if guidance == 1 else 2 * batch_size
    provider = open_provider(
        opened,
        backend,
        rows,
        threads=threads,
        max_window=max_window,
        on_device=True,
        device=device,
        engines=engines,
        progress=progress,
    )
    # On an engine's own stream nothing has to be waited for between model and decision; runs of ONNX Runtime end when done.
    launcher = PinnedLauncher(getattr(provider, "stream", None) or Stream(gpu))
    if guidance == 1:
        return KernelStep(provider, found, launcher)
    return KernelStep(provider, found, launcher, guidance=guidance, unconditional=unconditional)


def open_graph_step(
    bundle: Bundle | str | Path,
    method: str | Method,
    backend: str = "cpu",
    batch_size: int = 1,
    *,
    warped: bool = False,
    guidance: float = 1.0,
    threads: int | None = None,
    max_window: int | None = None,
    device: int = 0,
    engines: Path | str | None = None,
    progress: Progress | None = None,
) -> OrtStep | TrtStep:
    """A coupled step that is one graph: the bundle's step graph, or with ``tensorrt`` and ``tensorrt-rtx`` one made for them.

    Parameters
    ----------
    method, batch_size, guidance
        As for `open_kernel_step`. TensorRT takes ``scd-match`` without guidance.
    warped
        Whether rows may have top-k, top-p and min-p; not with TensorRT.

    Others are those of `open_provider`.

    Raises
    ------
    BundleError, InvalidArgument, MissingDependency, OutputError, ProviderError
        As from `open_provider`; also where ``backend`` runs no step graphs, or not this one.
    """
    check_backend(backend, threads, engines)
    check_positive("batch_size", batch_size)
    if backend in ENGINES:
        from coupled_sampling.backends.trt import TrtStep
        from coupled_sampling.backends.trt.step_graph import check_step

        found = check_step(method, guidance, warped=warped)
        opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
        if max_window is not None:
            check_positive("max_window", max_window)
            max_window = min(max_window, opened.manifest.window_graph.max_window)
        options = _engine_options(opened, batch_size, max_window)
        return TrtStep.open(
            opened, found, flavour=backend, device=device, options=options, engines=engines, progress=progress
        )
    if backend not in STEP_GRAPH_BACKENDS:
        raise InvalidArgument(
            f"backend is {backend!r}, expected one of {', '.join(STEP_GRAPH_BACKENDS)} for step graphs"
        )
    from coupled_sampling.backends.ort_cuda_step import OrtCudaStep
    from coupled_sampling.backends.ort_step import OrtStep

    settings: dict[str, Any] = {"warped": warped, "guidance": guidance, "threads": threads}
    if backend == "cuda":
        return OrtCudaStep.open_on_gpu(bundle, method, batch_size, device=device, **settings)
    return OrtStep.open(bundle, method, batch_size, **settings)


def require_kernels(device: int = 0) -> Device:
    """The GPU of that number, with what kernels need on it.

    Raises
    ------
    CudaError, InvalidArgument, MissingDependency
        There is no such GPU, or the driver, cuda-python or NVRTC is missing or too old.
    """
    from coupled_sampling.backends.cuda.compile import require_nvrtc
    from coupled_sampling.backends.cuda.device import Device

    gpu = Device(device)
    require_nvrtc()
    return gpu


def execution_provider(model: Any) -> str:
    """What runs the model of a provider or a step that was opened here: an execution provider's name, or TensorRT's version."""
    while not hasattr(model, "execution_provider") and hasattr(model, "provider"):
        model = model.provider
    return str(getattr(model, "execution_provider", type(model).__name__))


def close_provider(provider: Any) -> None:
    """Give back what a provider holds on a GPU, as far as it can be given back before it is forgotten."""
    close = getattr(getattr(provider, "provider", provider), "close", None)
    if close is not None:
        close()


def check_backend(backend: str, threads: int | None = None, engines: Path | str | None = None) -> None:
    """Raise `InvalidArgument` if there is no such back end, or it does not have what is set."""
    if backend not in BACKENDS:
        raise InvalidArgument(f"backend is {backend!r}, expected one of {', '.join(BACKENDS)}")
    if threads is not None and backend in ENGINES:
        raise InvalidArgument(f"threads is {threads}, but backend {backend!r} runs nothing on the CPU; leave it out")
    if engines is not None and "tensorrt" not in backend:
        raise InvalidArgument(f"engines is {str(engines)!r}, but backend {backend!r} builds none; leave it out")


def _engine_options(bundle: Bundle, batch_size: int, max_window: int | None) -> BuildOptions:
    """An engine for the bundle's own precision, tuned for ``max_window`` slots and some fewer."""
    from coupled_sampling.backends.trt import BuildOptions

    windows = BuildOptions().window_buckets
    if max_window is not None:
        windows = (*(bucket for bucket in windows if bucket < max_window), max_window)
    precision = bundle.manifest.window_graph.dtype
    return BuildOptions(row_buckets=(batch_size,), window_buckets=windows, precision=precision)

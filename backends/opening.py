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
from typing import TYPE_CHECKING, Any, NamedTuple

from coupled_sampling.backends.ort.provider import OrtProvider
from coupled_sampling.backends.ort.step import OrtStep
from coupled_sampling.bounds import check_positive
from coupled_sampling.bundles.opening import Bundle, open_bundle
from coupled_sampling.contracts import LogitsProvider
from coupled_sampling.errors import InvalidArgument
from coupled_sampling.methods import Method, find_method

if TYPE_CHECKING:
    from coupled_sampling.backends.cuda.device import Device
    from coupled_sampling.backends.cuda.kernel_step import KernelStep
    from coupled_sampling.backends.ort.step import OrtStep
    from coupled_sampling.backends.trt import TrtStep
    from coupled_sampling.backends.trt.options import BuildOptions
    from coupled_sampling.backends.trt.progress import Progress

__all__ = [
    "BACKENDS",
    "ENGINES",
    "STEP_GRAPH_BACKENDS",
    "Running",
    "check_backend",
    "check_step_graph",
    "close_provider",
    "open_graph_step",
    "open_kernel_step",
    "open_provider",
    "require_kernels",
    "what_runs",
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
    device: int | None = None,
    cuda_graphs: bool | None = None,
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
        Number of the GPU, from 0; None is the first.
    cuda_graphs
        Whether windows of a shape seen before are launched as CUDA graphs. None is the back end's own choice: ``tensorrt`` and
        ``tensorrt-rtx`` do so, ``cuda`` can, ``ort-tensorrt`` cannot.
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
    check_backend(backend, threads, engines, device, cuda_graphs)
    check_positive("batch_size", batch_size)
    opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
    max_window = _fitting(opened, max_window)
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
            device=device or 0,
            options=options,
            engines=engines,
            on_device=on_device,
            cuda_graphs=cuda_graphs is not False,
            progress=progress,
        )
    from coupled_sampling.backends.ort.cuda_provider import OrtCudaProvider
    from coupled_sampling.backends.ort.tensorrt import TensorrtOptions

    tensorrt = TensorrtOptions(engines, max_window=max_window) if backend == "ort-tensorrt" else None
    return OrtCudaProvider.open_on_gpu(
        opened,
        batch_size,
        device=device or 0,
        on_device=on_device,
        threads=threads,
        cuda_graphs=bool(cuda_graphs),
        tensorrt=tensorrt,
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
    device: int | None = None,
    cuda_graphs: bool | None = None,
    engines: Path | str | None = None,
    progress: Progress | None = None,
) -> KernelStep:
    """A coupled step on a GPU: the bundle's model on ``backend``, decided by CUDA kernels where its logits lie.

    Parameters not listed here are those of `open_provider`.

    Parameters
    ----------
    method
        A name from `coupled_sampling.methods.METHODS`, or a `Method`.
    batch_size
        Sequences decoded together; the model has twice as many rows with ``guidance``.
    guidance
        Classifier-free guidance scale, with the bundle's unconditional prompt; 1 is none.
    cuda_graphs
        As in `open_provider`, for the model. What follows it in a step is one CUDA graph unless this is False.

    Raises
    ------
    BundleError, InvalidArgument, MissingDependency, OutputError, ProviderError
        As from `open_provider`; also where ``backend`` is on no GPU, NVRTC is missing, or there is no unconditional prompt. Drivers
        and packages are looked for before an engine is built.
    """
    check_backend(backend, threads, engines, device, cuda_graphs)
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

    gpu = require_kernels(device or 0)
    rows = batch_size if guidance == 1 else 2 * batch_size
    provider = open_provider(
        opened,
        backend,
        rows,
        threads=threads,
        max_window=max_window,
        on_device=True,
        device=device,
        cuda_graphs=cuda_graphs,
        engines=engines,
        progress=progress,
    )
    # On an engine's own stream nothing has to be waited for between model and decision; runs of ONNX Runtime end when done.
    stream = getattr(provider, "stream", None) or Stream(gpu)
    launcher = PinnedLauncher(stream, cuda_graphs=cuda_graphs is not False)
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
    device: int | None = None,
    cuda_graphs: bool | None = None,
    engines: Path | str | None = None,
    progress: Progress | None = None,
) -> OrtStep | TrtStep:
    """A coupled step that is one graph: the bundle's step graph, or with ``tensorrt`` and ``tensorrt-rtx`` one made for them.

    Parameters not listed here are those of `open_provider`.

    Parameters
    ----------
    method, batch_size, guidance
        As for `open_kernel_step`. TensorRT takes ``scd-match`` without guidance.
    warped
        Whether rows may have top-k, top-p and min-p; not with TensorRT.
    cuda_graphs
        As in `open_provider`. The bundle's step graphs are not captured: with ``cuda``, True is refused.

    Raises
    ------
    BundleError, InvalidArgument, MissingDependency, OutputError, ProviderError
        As from `open_provider`; also where ``backend`` runs no step graphs, or not this one.
    """
    check_backend(backend, threads, engines, device, cuda_graphs)
    check_step_graph(backend, cuda_graphs)
    check_positive("batch_size", batch_size)
    if backend in ENGINES:
        from coupled_sampling.backends.trt import TrtStep
        from coupled_sampling.backends.trt.step_graph import check_step

        found = check_step(method, guidance, warped=warped)
        opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
        options = _engine_options(opened, batch_size, _fitting(opened, max_window))
        return TrtStep.open(
            opened,
            found,
            flavour=backend,
            device=device or 0,
            options=options,
            engines=engines,
            cuda_graphs=cuda_graphs is not False,
            progress=progress,
        )
    from coupled_sampling.backends.ort.cuda_step import OrtCudaStep
    from coupled_sampling.backends.ort.step import OrtStep

    settings: dict[str, Any] = {"warped": warped, "guidance": guidance, "threads": threads}
    if backend == "cuda":
        return OrtCudaStep.open_on_gpu(bundle, method, batch_size, device=device or 0, **settings)
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


class Running(NamedTuple):
    """What runs a model: an execution provider's name or TensorRT's version, on which GPU, and whether it launches CUDA graphs."""

    execution_provider: str
    device: int | None
    cuda_graphs: bool


def what_runs(model: Any) -> Running:
    """What runs the model of a provider or a step that was opened here."""
    while not hasattr(model, "execution_provider") and hasattr(model, "provider"):
        model = model.provider
    name = str(getattr(model, "execution_provider", type(model).__name__))
    gpu = getattr(model, "device", None)
    return Running(name, getattr(gpu, "index", gpu), bool(getattr(model, "cuda_graphs", False)))


def close_provider(provider: Any) -> None:
    """Give back what a provider holds on a GPU, as far as it can be given back before it is forgotten."""
    close = getattr(getattr(provider, "provider", provider), "close", None)
    if close is not None:
        close()


def check_step_graph(backend: str, cuda_graphs: bool | None = None) -> None:
    """Raise `InvalidArgument` if ``backend`` runs no step graphs, or should capture them."""
    if backend not in STEP_GRAPH_BACKENDS:
        raise InvalidArgument(
            f"step is 'graph', but backend is {backend!r}, and step graphs run on {', '.join(STEP_GRAPH_BACKENDS)} only; "
            "leave --step at auto"
        )
    if cuda_graphs and backend not in ENGINES:
        raise InvalidArgument(
            "cuda_graphs is True, but step is 'graph', and step graphs of bundles are not captured; leave one of them out"
        )


def check_backend(
    backend: str,
    threads: int | None = None,
    engines: Path | str | None = None,
    device: int | None = None,
    cuda_graphs: bool | None = None,
) -> None:
    """Raise `InvalidArgument` if there is no such back end, or it does not have what is set."""
    if backend not in BACKENDS:
        raise InvalidArgument(f"backend is {backend!r}, expected one of {', '.join(BACKENDS)}")
    if threads is not None and backend in ENGINES:
        raise InvalidArgument(f"threads is {threads}, but backend {backend!r} runs nothing on the CPU; leave it out")
    if engines is not None and "tensorrt" not in backend:
        raise InvalidArgument(f"engines is {str(engines)!r}, but backend {backend!r} builds none; leave it out")
    if device is not None and (isinstance(device, bool) or not isinstance(device, int) or device < 0):
        raise InvalidArgument(f"device is {device!r}, expected the number of a GPU, from 0")
    if not (cuda_graphs is None or isinstance(cuda_graphs, bool)):
        raise InvalidArgument(
            f"cuda_graphs is {cuda_graphs!r}, expected True, False, or None for the back end's choice"
        )
    for name, value in (("device", device), ("cuda_graphs", cuda_graphs)):
        if value is not None and backend == "cpu":
            raise InvalidArgument(
                f"{name} is {value!r}, but backend 'cpu' runs on no GPU; leave it out, or choose one of {', '.join(BACKENDS[1:])}"
            )
    if cuda_graphs and backend == "ort-tensorrt":
        raise InvalidArgument(
            "cuda_graphs is True, but backend 'ort-tensorrt' cannot capture a model that TensorRT and CUDA share; leave it out, "
            "or choose one of cuda, tensorrt, tensorrt-rtx"
        )


def _fitting(bundle: Bundle, max_window: int | None) -> int | None:
    """``max_window``, or what the bundle holds if that is less."""
    if max_window is None:
        return None
    check_positive("max_window", max_window)
    return min(max_window, bundle.manifest.window_graph.max_window)


def _engine_options(bundle: Bundle, batch_size: int, max_window: int | None) -> BuildOptions:
    """An engine for the bundle's own precision, tuned for ``max_window`` slots and some fewer."""
    from coupled_sampling.backends.trt import BuildOptions

    windows = BuildOptions().window_buckets
    if max_window is not None:
        windows = (*(bucket for bucket in windows if bucket < max_window), max_window)
    precision = bundle.manifest.window_graph.dtype
    return BuildOptions(row_buckets=(batch_size,), window_buckets=windows, precision=precision)

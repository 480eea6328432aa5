"""Opening what a method runs on: the only module of the command line that knows the back ends.

A model runs in a `Place`. `check_models` refuses what a place cannot do before anything is built, `open_model` opens a provider or
a whole step there, and `what_ran` says what that turned out to be.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, overload

from coupled_sampling.backends.opening import (
    BACKENDS,
    ENGINES,
    check_backend,
    check_step_graph,
    close_provider,
    open_graph_step,
    open_kernel_step,
    open_provider,
    require_kernels,
    what_runs,
)
from coupled_sampling.backends.ort.pixels import PixelDecoder
from coupled_sampling.backends.trt.progress import Progress, progress_bar
from coupled_sampling.backends.trt.step_graph import check_step
from coupled_sampling.bundles.opening import Bundle
from coupled_sampling.contracts import CoupledStep, LogitsProvider
from coupled_sampling.errors import InvalidArgument
from coupled_sampling.guidance import GuidedProvider

__all__ = [
    "BACKENDS",
    "ENGINES",
    "STEPS",
    "PixelDecoder",
    "Place",
    "Ran",
    "check_models",
    "close_provider",
    "describe_runs",
    "open_model",
    "open_pixels",
    "progress_bar",
    "step_of",
    "what_ran",
]

STEPS = ("auto", "host", "graph", "kernels")
"""Where steps are decided: the back end's choice, by the library, in a graph with the model, by CUDA kernels."""


@dataclass(frozen=True)
class Place:
    """Where a model runs.

    Parameters
    ----------
    backend
        One of `BACKENDS`.
    device
        Number of the GPU, from 0; None is the first.
    threads
        Threads within an operator, for ONNX Runtime; None lets it choose.
    cuda_graphs
        Whether windows of a shape seen before are launched as CUDA graphs; None is the back end's own choice.
    engines
        Folder of TensorRT's engines; None is ``<bundle>.engines`` beside the bundle's folder.
    max_window
        Most slots in a call, which TensorRT's engines are tuned for; None is their own choice.

    Raises
    ------
    InvalidArgument
        There is no such back end, or it does not have what is set.
    """

    backend: str = "cpu"
    device: int | None = None
    threads: int | None = None
    cuda_graphs: bool | None = None
    engines: Path | None = None
    max_window: int | None = None

    def __post_init__(self) -> None:
        check_backend(self.backend, self.threads, self.engines, self.device, self.cuda_graphs)

    def settings(self) -> dict[str, Any]:
        """All but the back end, as the functions take it that open a model."""
        return {name: value for name, value in vars(self).items() if name != "backend"}


def check_models(
    bundle: Bundle, place: Place, methods: Sequence[str], *, step: str, guidance: float, warped: bool
) -> None:
    """Refuse what cannot run at ``place``, before an engine is built for what can.

    Raises
    ------
    InvalidArgument, MissingDependency, ProviderError
        Steps of one of ``methods`` cannot be decided by ``step`` there; what kernels need is missing.
    """
    on_cpu = place.backend == "cpu"
    if step == "kernels" and on_cpu:
        raise InvalidArgument(
            f"step is 'kernels', but backend is 'cpu'; CUDA kernels decide where logits are on a GPU: choose --backend "
            f"{', '.join(BACKENDS[1:])}, or leave --step at auto"
        )
    if step == "graph":
        check_step_graph(place.backend, place.cuda_graphs)
    makes_step_engines = step == "graph" and place.backend in ENGINES
    if makes_step_engines:
        for method in methods:
            check_step(method, guidance, warped=warped)
    if step == "kernels" and bundle.manifest.layout:
        raise InvalidArgument(
            f"step is 'kernels', but the bundle {bundle.manifest.name} has a layout, which needs the host; leave --step at auto"
        )
    # `ar` beside a step engine, which nobody asked to be an engine, is decided by kernels, too.
    may_need_kernels = makes_step_engines or step not in ("host", "graph")
    if may_need_kernels and not on_cpu and not bundle.manifest.layout:
        require_kernels(place.device or 0)
    for method in methods:
        step_of(bundle, place, method, step=step, guidance=guidance, warped=warped)


def step_of(bundle: Bundle, place: Place, method: str, *, step: str, guidance: float, warped: bool) -> str:
    """Where steps of ``method`` are decided if ``step`` is asked for: "host", "graph" or "kernels".

    Raises
    ------
    InvalidArgument
        A graph is asked for, and the bundle has none that can do this.
    """
    layout = bundle.manifest.layout
    if step == "host":
        return "host"
    if step == "kernels" or (step == "auto" and place.backend != "cpu"):
        return "host" if layout else "kernels"
    if place.backend in ENGINES and not layout:
        return "graph"  # made from the window graph, whatever step graphs the bundle has
    graph = bundle.step_graph(method, warped=warped, guided=guidance != 1)
    found = graph is not None and not layout
    if step == "graph" and not found:
        raise InvalidArgument(
            f"step is 'graph', but the bundle {bundle.manifest.name} has no step graph for {method} with these settings"
            f"{' (a layout needs the host)' if layout else ''}; leave --step at auto"
        )
    return "graph" if found else "host"


@overload
def open_model(
    bundle: Bundle,
    place: Place,
    rows: int = 1,
    *,
    method: None = None,
    guidance: float = 1.0,
    progress: Progress | None = None,
) -> LogitsProvider: ...


@overload
def open_model(
    bundle: Bundle,
    place: Place,
    rows: int = 1,
    *,
    method: str,
    step: str = "auto",
    guidance: float = 1.0,
    warped: bool = False,
    progress: Progress | None = None,
) -> LogitsProvider | CoupledStep: ...


def open_model(
    bundle: Bundle,
    place: Place,
    rows: int = 1,
    *,
    method: str | None = None,
    step: str = "auto",
    guidance: float = 1.0,
    warped: bool = False,
    progress: Progress | None = None,
) -> LogitsProvider | CoupledStep:
    """What ``method`` runs on: a provider where the library decides, or without a method; else a whole step.

    Parameters
    ----------
    bundle, place
        Which model, and where it runs.
    rows
        Sequences decoded together. With guidance the model itself has two rows for each.
    method, step
        Whose steps, and where they are decided: one of `STEPS`.
    guidance
        Classifier-free guidance scale, with the bundle's unconditional prompt; 1 is none.
    warped
        Whether rows may have top-k, top-p and min-p.
    progress
        Told how far the building of an engine is.

    Raises
    ------
    BundleError, InvalidArgument, MissingDependency, OutputError, ProviderError
        As from the back end.
    """
    settings = {**place.settings(), "progress": progress}
    where = "host" if method is None else step_of(bundle, place, method, step=step, guidance=guidance, warped=warped)
    if method is not None and where == "graph":
        return open_graph_step(bundle, method, place.backend, rows, warped=warped, guidance=guidance, **settings)
    if method is not None and where == "kernels":
        return open_kernel_step(bundle, method, place.backend, rows, guidance=guidance, **settings)
    unconditional = bundle.manifest.unconditional_prompt
    if guidance == 1 or unconditional is None:
        return open_provider(bundle, place.backend, rows, **settings)
    return GuidedProvider(open_provider(bundle, place.backend, 2 * rows, **settings), guidance, unconditional)


def open_pixels(bundle: Bundle, place: Place) -> PixelDecoder:
    """The decoder of pictures. It runs in ONNX Runtime on the CPU, wherever the model does."""
    return PixelDecoder.open(bundle, place.threads)


@dataclass(frozen=True)
class Ran:
    """What a method really ran on, and where its steps were decided."""

    execution_provider: str
    device: int | None
    cuda_graphs: bool
    step: str

    def record(self) -> dict[str, Any]:
        """For ``--json``."""
        return asdict(self)

    def __str__(self) -> str:
        """For people."""
        gpu = "" if self.device is None else f" (GPU {self.device}{', CUDA graphs' * self.cuda_graphs})"
        return f"on {self.execution_provider}{gpu}, step: {self.step}"


def what_ran(model: LogitsProvider | CoupledStep, step: str) -> Ran:
    """What ``model`` runs on; ``step`` is where its steps are decided."""
    return Ran(*what_runs(model), step)


def describe_runs(ran: Mapping[str, Ran]) -> str:
    """A line for each way in which methods, the keys of ``ran``, ran."""
    ways = dict.fromkeys(ran.values())
    return "\n".join(f"{', '.join(m for m, found in ran.items() if found == way)}: {way}" for way in ways)

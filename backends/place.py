"""Where a model runs (`Place`), what is asked of a back end (`Wanted`), and the one list of back ends.

A back end is a module of its own, named in `_MODULES`, and imported when its name is first used. It has six things:

``SETTINGS``
    Which settings of `Place` it has, besides the name and ``max_window``.
``STEPS``
    Where it can have steps decided, in the order in which ``step="auto"`` prefers them: "graph" in the model's own graph,
    "kernels" by CUDA kernels over logits that it leaves on the GPU, "host" by the library. What comes after "host" is done only if
    asked for.
``KERNELS``
    Which of these launch the library's CUDA kernels, so that a GPU and NVRTC are looked for before anything is opened.
``TREES``
    Which of these can decide windows with branches, over the bundle's graph for trees.
``takes(wanted)``
    None, or in words why this bundle, method and settings cannot be run so. It looks for no driver and opens nothing.
``open(wanted)``
    The step graph's step where ``wanted.step`` is "graph"; else a provider of ``wanted.model_rows`` rows, whose logits stay on the
    GPU where it is "kernels".

To add a back end: its folder, and its line in `_MODULES`.
"""

from __future__ import annotations

import importlib
import shlex
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from coupled_sampling.arguments import check_count
from coupled_sampling.backends.ort.plugins import find_plugin
from coupled_sampling.backends.ort.session import check_threads
from coupled_sampling.bundles.opening import MODELS, Bundle
from coupled_sampling.contracts import OpenProvider, OpenStep
from coupled_sampling.corrections import Corrector
from coupled_sampling.errors import InvalidArgument
from coupled_sampling.fields import check_fields
from coupled_sampling.guidance import GuidedProvider
from coupled_sampling.guided_rows import Scale
from coupled_sampling.methods import Method

if TYPE_CHECKING:
    from coupled_sampling.backends.trt.progress import Progress

__all__ = [
    "BACKENDS",
    "BackEnd",
    "Place",
    "Wanted",
    "back_end",
    "guided_provider",
    "step_graphs_command",
    "unknown_operators",
]

_MODULES = {
    "cpu": "coupled_sampling.backends.ort.cpu",
    "cuda": "coupled_sampling.backends.ort.cuda",
    "tensorrt": "coupled_sampling.backends.trt.opening",
    "tensorrt-rtx": "coupled_sampling.backends.trt.opening",
    "openvino": "coupled_sampling.backends.openvino.opening",
    "ort": "coupled_sampling.backends.ort.plugin",
}

BACKENDS = tuple(_MODULES)
"""Names of back ends: ONNX Runtime on the CPU and with CUDA, engines of TensorRT and of TensorRT for RTX, OpenVINO,
and ONNX Runtime with a plugin, which ``provider`` names."""

_WITHOUT = {
    "threads": "runs nothing on the CPU",
    "engines": "builds none",
    "device": "runs on no GPU",
    "cuda_graphs": "has no CUDA graphs",
    "provider": "has no plugins",
}
"""What a back end that does not have a setting is like."""

_BY_BACKEND = ("device", "cuda_graphs", "provider")
"""Settings that are asked for because of the back ends that have them, which are therefore named."""


@dataclass(frozen=True)
class Place:
    """Where a model runs. It is checked when it is made.

    Parameters
    ----------
    backend
        One of `BACKENDS`.
    device
        Number of the GPU, or of a plugin's device, from 0; None is the first. Not with ``cpu``.
    threads
        Threads within an operator, for ONNX Runtime and OpenVINO; None lets them choose.
    cuda_graphs
        Whether windows of a shape seen before are launched as CUDA graphs. None is the back end's own choice: ``tensorrt`` and
        ``tensorrt-rtx`` do so, ``cuda`` can.
    engines
        Folder of TensorRT's engines; None is ``<bundle>.engines`` beside the bundle's folder.
    provider
        With ``ort``: the plugin, "webgpu", "openvino" or "nv-tensorrt-rtx".
    max_window
        Most slots in a call, which TensorRT's engines are tuned for; None is their own choice. The others take the bundle's.

    Raises
    ------
    InvalidArgument
        There is no such back end, or it does not have what is set.

    Examples
    --------
    >>> Place("tensorrt", device=1).backend
    'tensorrt'
    >>> Place("cpu", device=1)
    Traceback (most recent call last):
    ...
    coupled_sampling.errors.InvalidArgument: device is 1, but backend 'cpu' runs on no GPU; leave it out, or choose one of cuda, \
tensorrt, tensorrt-rtx, ort
    """

    backend: str = "cpu"
    device: int | None = None
    threads: int | None = None
    cuda_graphs: bool | None = None
    engines: Path | str | None = None
    max_window: int | None = None
    provider: str | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        settings = back_end(self.backend).SETTINGS
        device, cuda_graphs = self.device, self.cuda_graphs
        if device is not None and (isinstance(device, bool) or not isinstance(device, int) or device < 0):
            raise InvalidArgument(f"device is {device!r}, expected the number of a GPU, from 0")
        if not (cuda_graphs is None or isinstance(cuda_graphs, bool)):
            raise InvalidArgument(
                f"cuda_graphs is {cuda_graphs!r}, expected True, False, or None for the back end's choice"
            )
        for name, reason in _WITHOUT.items():
            value = getattr(self, name)
            if value is not None and name not in settings:
                said = str(value) if isinstance(value, Path) else value
                others = f", or choose one of {', '.join(_having(name))}" if name in _BY_BACKEND else ""
                raise InvalidArgument(
                    f"{name} is {said!r}, but backend {self.backend!r} {reason}; leave it out{others}"
                )
        if "provider" in settings:
            find_plugin(self.provider)
        check_threads(self.threads)
        if self.max_window is not None:
            check_count("max_window", self.max_window)


@dataclass(frozen=True)
class Wanted:
    """A model that is to be opened: what `coupled_sampling.backends.open_model` was asked for, as a back end is asked for it.

    Parameters
    ----------
    bundle, place, rows, method, guidance, warped, progress, corrections, trees
        As for `coupled_sampling.backends.open_model`, looked up and checked.
    step
        "host", "graph" or "kernels".
    """

    bundle: Bundle
    place: Place
    rows: int
    method: Method | None = None
    step: str = "host"
    guidance: Scale = 1.0
    warped: bool = False
    progress: Progress | None = None
    corrections: Corrector | None = None
    trees: bool = False

    @property
    def guided(self) -> bool:
        """Whether two of the model's rows are joined for each sequence."""
        return self.guidance != 1

    @property
    def varied(self) -> bool:
        """Whether the guidance scale changes with the position."""
        return callable(self.guidance)

    @property
    def model_rows(self) -> int:
        """Rows of the model: two for each sequence with guidance."""
        return 2 * self.rows if self.guided else self.rows


def unknown_operators(wanted: Wanted, runtime: str) -> str | None:
    """Why ``runtime``, which knows ONNX's own operators only, cannot run the bundle; None if it has no others."""
    domains = wanted.bundle.manifest.window_graph.domains
    if not domains:
        return None
    return (
        f"the bundle's graph has operators of {', '.join(domains)}, which {runtime} does not know; export it with "
        "--form standard, or without --quantize"
    )


class BackEnd(Protocol):
    """What a back end's module has; see `coupled_sampling.backends.place`."""

    @property
    def SETTINGS(self) -> Collection[str]: ...  # noqa: N802 - a constant of a module

    @property
    def STEPS(self) -> tuple[str, ...]: ...  # noqa: N802

    @property
    def KERNELS(self) -> tuple[str, ...]: ...  # noqa: N802

    @property
    def TREES(self) -> tuple[str, ...]: ...  # noqa: N802

    def takes(self, wanted: Wanted) -> str | None: ...

    def open(self, wanted: Wanted) -> OpenProvider | OpenStep: ...


def back_end(name: str) -> BackEnd:
    """The module of the back end called ``name``, imported.

    Raises
    ------
    InvalidArgument
        There is none.
    """
    if not isinstance(name, str) or name not in _MODULES:
        raise InvalidArgument(f"backend is {name!r}, expected one of {', '.join(_MODULES)}")
    return cast(BackEnd, importlib.import_module(_MODULES[name]))


def refused_trees(wanted: Wanted) -> str | None:
    """Why windows with branches cannot be decided so, and what to do instead; None where they can."""
    name, bundle, trees = wanted.place.backend, wanted.bundle, back_end(wanted.place.backend).TREES
    if not trees:
        others = ", ".join(other for other in _MODULES if back_end(other).TREES)
        return f"trees is True, but backend {name!r} runs no windows with branches; choose one of {others}, or leave branches out"
    if bundle.manifest.tree_graph is None:
        return f"trees is True, for branches, but {bundle.manifest.why_no_trees}"
    if wanted.step not in trees:
        return (
            f"trees is True, but step is {wanted.step!r}, and backend {name!r} decides windows with branches by "
            f"{' or '.join(trees)}; leave step at 'auto'"
        )
    return None


def step_graphs_command(bundle: Bundle, method: str) -> str:
    """The command that makes a bundle with step graphs for ``method`` of one that has none."""
    folder = bundle.folder
    source = folder.name if folder.parent == MODELS else str(folder)
    return (
        f"coupled-sampling step-graphs {shlex.quote(source)} {shlex.quote(folder.name + '-steps')} --methods {method}"
    )


def _having(setting: str) -> list[str]:
    """The back ends that have a setting of `Place`."""
    return [name for name in _MODULES if setting in back_end(name).SETTINGS]


def guided_provider(model: OpenProvider, wanted: Wanted) -> OpenProvider:
    """``model``, with guidance if that is wanted and the bundle says by which unconditional prompt."""
    manifest, prompt = wanted.bundle.manifest, wanted.bundle.manifest.unconditional_prompt
    if not wanted.guided or not prompt:
        return model
    if isinstance(prompt, tuple) and manifest.shortest_prompt > 1:
        # A fixed one would keep room for prompts of one token; here each prompt is asked whether it fits.
        fixed = prompt
        return GuidedProvider(model, wanted.guidance, lambda _: fixed)
    return GuidedProvider(model, wanted.guidance, prompt)

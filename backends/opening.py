"""The one door: `open_model` opens a bundle anywhere, as a logits provider or as a whole coupled step.

| back end | runs the model with | packages |
|---|---|---|
| ``cpu`` | ONNX Runtime on the CPU | ``[cpu]`` |
| ``cuda`` | ONNX Runtime's CUDA execution provider | ``[gpu]`` |
| ``tensorrt``, ``tensorrt-rtx`` | an engine of TensorRT's own | ``[tensorrt]``, ``[tensorrt-rtx]`` |
| ``openvino`` | OpenVINO on the CPU | ``[openvino]`` |
| ``ort`` | ONNX Runtime with a plugin, by ``provider`` | ``[webgpu]``, ``[openvino-plugin]``, ``[nv-tensorrt-rtx]`` |

Those for GPUs were written and never run on one. What can be known beforehand is refused before anything is opened or an
engine is built: what no back end can do here, what one cannot do by its ``takes`` (`coupled_sampling.backends.place`).
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Hashable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict, Unpack, cast, overload

from coupled_sampling.arguments import check_count, shown
from coupled_sampling.backends.foreign.bundle import open_bundle_or_onnx
from coupled_sampling.backends.network_choice import Candidates, candidates_of
from coupled_sampling.backends.ort.network_correction import NetworkCorrection
from coupled_sampling.backends.place import BACKENDS, BackEnd, Place, Wanted, back_end, guided_provider, refused_trees
from coupled_sampling.bundles.opening import Bundle
from coupled_sampling.contracts import OpenProvider, OpenStep
from coupled_sampling.corrections import Corrector, check_corrector
from coupled_sampling.errors import InvalidArgument
from coupled_sampling.fields import check_is
from coupled_sampling.guided_rows import Scale
from coupled_sampling.host_step import HostStep
from coupled_sampling.methods import Method, find_method

if TYPE_CHECKING:
    from coupled_sampling.backends.cuda.device import Device
    from coupled_sampling.backends.trt.progress import Progress

__all__ = ["BACKENDS", "ModelSettings", "OpeningSettings", "Place", "check_model", "open_model"]

_STEPS = ("auto", "host", "graph", "kernels")
_HERE = Place()


class ModelSettings(TypedDict, total=False):
    """What else `open_model` and `check_model` take, as keywords.

    Examples
    --------
    >>> from coupled_sampling.backends import ModelSettings, check_model
    >>> settings: ModelSettings = {"warped": True, "corrections": "none"}
    >>> check_model("fashion", method="scd-match", **settings)
    'graph'
    """

    warped: bool
    """Whether sequences may have top-k, top-p and min-p. Only step graphs need to know. Default False."""
    corrections: str | Corrector | None
    """What predicts the laws of redrafts whose neighbours changed, see `coupled_sampling.corrections`: "auto", "none", "plain" or
    "fitted", as for `coupled_sampling.bundles.Bundle.corrector`, "network", or a `Corrector` of your own; None is "none". Default
    "auto": the table of the bundle, if it has one and steps can be decided with it where they are decided. On the CPU, where drafts
    are accepted by match, it is the bundle's network instead if a pass, measured, is dear enough, and the library then decides."""
    trees: bool | None
    """Whether windows may have branches (`coupled_sampling.branching`): the bundle's graph for trees is opened, whose passes cost a
    little more. None opens it where method, bundle and back end can have them, for ``window="auto"``. Default False."""


class OpeningSettings(ModelSettings, total=False):
    """What `open_model` takes beside them.

    Examples
    --------
    >>> from coupled_sampling.backends import OpeningSettings, open_model
    >>> settings: OpeningSettings = {"progress": None, "warped": True}
    >>> with open_model("fashion", method="scd-match", **settings) as model:
    ...     model.runs.step
    'graph'
    """

    progress: Progress | None
    """Told how far the building of an engine is. Default None."""


class _Asked(NamedTuple):
    """The arguments of `open_model` that have a parameter of their own."""

    bundle: Bundle | str | Path
    place: Place
    rows: int
    method: str | Method | None
    step: str
    guidance: Scale


@overload
def open_model(
    bundle: Bundle | str | Path,
    place: Place = ...,
    rows: int = ...,
    *,
    method: None = None,
    step: str = ...,
    guidance: Scale = ...,
    **settings: Unpack[OpeningSettings],
) -> OpenProvider: ...


@overload
def open_model(
    bundle: Bundle | str | Path,
    place: Place = ...,
    rows: int = ...,
    *,
    method: str | Method,
    step: str = ...,
    guidance: Scale = ...,
    **settings: Unpack[OpeningSettings],
) -> OpenStep: ...


def open_model(
    bundle: Bundle | str | Path,
    place: Place = _HERE,
    rows: int = 1,
    *,
    method: str | Method | None = None,
    step: str = "auto",
    guidance: Scale = 1.0,
    **settings: Unpack[OpeningSettings],
) -> OpenProvider | OpenStep:
    """Open a bundle: without a ``method`` as a logits provider, with one as a coupled step. Both go to `generate` and `Decoder`.

    Parameters
    ----------
    bundle
        A `Bundle`, or what `coupled_sampling.open_bundle` or `open_onnx` takes.
    place
        Where the model runs; default: on the CPU.
    rows
        Sequences decoded together. With guidance the model runs two rows for each.
    method
        A name from `coupled_sampling.methods.METHODS`, or a `Method`; None opens a provider, which any method can be decoded with.
    step
        Where steps are decided: "host" by the library, "graph" in the model's own graph, "kernels" by CUDA kernels where the logits
        lie. "auto" is on the CPU the bundle's step graph, if it has one that fits, and on a GPU the kernels; else the host.
    guidance
        Classifier-free guidance scale, with the bundle's unconditional prompt; 1 is none. Or a function of the index of the
        generated token, such as `coupled_sampling.Guidance.within` makes: ``Guidance.within(10, 100, 4.0).scale``.
    **settings
        ``warped=False``, ``corrections="auto"``, ``trees=False`` and ``progress=None``, see `OpeningSettings`.

    Returns
    -------
    OpenProvider or OpenStep
        A context manager that closes it. ``runs`` says what it really runs on and where steps are decided.

    Raises
    ------
    BundleError, InvalidArgument, MissingDependency, OutputError, ProviderError
        What is missing and which extra to install; no driver or no GPU; a bundle or a combination that cannot be run. Nothing is
        run elsewhere instead.

    Examples
    --------
    >>> from coupled_sampling import generate
    >>> with open_model("fashion", rows=2, method="scd-match") as model:
    ...     pictures = generate(model, [[258], [259]], length=196, window=32)
    ...     print(model.runs, [len(tokens) for tokens in pictures.tokens])
    on CPUExecutionProvider, step: graph, corrections: LowRank [196, 196]
    """
    wanted = _wanted(_Asked(bundle, place, rows, method, step, guidance), settings)
    found = back_end(wanted.place.backend)
    candidates = _candidates(wanted, step, settings.get("corrections", "auto"))
    if candidates is not None and wanted.step == "graph":
        opened = _opened_by_host(replace(wanted, step="host"), found, candidates, only_if_it_pays=True)
        if opened is not None:
            return opened
        _NOT_WORTH_IT.add(_choice(wanted))
    if wanted.step == "kernels":
        return _with_kernels(wanted, found)
    if wanted.step == "graph":
        return cast(OpenStep, found.open(wanted))
    return cast("OpenProvider | OpenStep", _opened_by_host(wanted, found, candidates))


def _opened_by_host(
    wanted: Wanted, found: BackEnd, candidates: Candidates | None, *, only_if_it_pays: bool = False
) -> OpenProvider | OpenStep | None:
    """A provider, or a step that the library decides, by a network if that pays; or nothing unless it does."""
    with contextlib.ExitStack() as undo:
        model = undo.enter_context(cast(OpenProvider, found.open(wanted)))
        provider = guided_provider(model, wanted)
        pays = candidates is not None and candidates.pays(provider, table_is_free=only_if_it_pays)
        if only_if_it_pays and not pays:
            return None
        corrections = candidates.network if candidates is not None and pays else wanted.corrections
        opened = provider if wanted.method is None else HostStep(provider, wanted.method, corrections=corrections)
        undo.pop_all()  # whoever asked for it closes it now
    return opened


_NOT_WORTH_IT: set[Hashable] = set()
"""Models for which the table in the step graph was the better choice in this process: they are not opened twice again."""


def _choice(wanted: Wanted) -> Hashable:
    """What it depends on whether a network pays."""
    record = wanted.bundle.manifest.corrections
    return (
        record and (record.fingerprint, record.network),
        wanted.method,
        wanted.place,
        wanted.rows,
        wanted.guided,
        wanted.trees,
    )


def _candidates(wanted: Wanted, step: str, corrections: str | Corrector | None) -> Candidates | None:
    """The correctors to choose from, where that is left to us and logits are on the host anyway."""
    left = wanted.method is not None and corrections == "auto" and step in ("auto", "host")
    if not left or back_end(wanted.place.backend).KERNELS:
        return None
    if wanted.step == "graph" and _choice(wanted) in _NOT_WORTH_IT:
        return None
    return candidates_of(wanted.bundle, cast(Method, wanted.method))


def check_model(
    bundle: Bundle | str | Path,
    place: Place = _HERE,
    rows: int = 1,
    *,
    method: str | Method | None = None,
    step: str = "auto",
    guidance: Scale = 1.0,
    **settings: Unpack[ModelSettings],
) -> str:
    """Refuse what `open_model` would refuse with these arguments, as far as that shows before anything is opened.

    Parameters
    ----------
    bundle, place, rows, method, step, guidance
        As for `open_model`.
    **settings
        ``warped=False``, ``corrections="auto"`` and ``trees=False``, see `ModelSettings`.

    Returns
    -------
    str
        Where steps would be decided: "host", "graph" or "kernels".

    Raises
    ------
    BundleError, InvalidArgument, MissingDependency, ProviderError
        As from `open_model`; where kernels are launched, also if the driver, the GPU or NVRTC is missing.

    Examples
    --------
    >>> check_model("fashion", method="scd-match")
    'graph'
    """
    wanted = _wanted(_Asked(bundle, place, rows, method, step, guidance), settings, ModelSettings)
    if wanted.step in back_end(place.backend).KERNELS:
        _require_kernels(place)
    return wanted.step


def _wanted(asked: _Asked, settings: OpeningSettings | ModelSettings, known: type = OpeningSettings) -> Wanted:
    """The arguments of `open_model` looked up and checked, "auto" decided."""
    unknown = sorted(set(settings) - set(known.__annotations__))
    if unknown:
        raise TypeError(f"got an unexpected keyword argument {unknown[0]!r}")
    place, step, guidance, warped = asked.place, asked.step, asked.guidance, settings.get("warped", False)
    trees = settings.get("trees", False)
    if not isinstance(place, Place):
        raise InvalidArgument(f"place is {place!r}, expected a Place, such as Place('cuda', device=0)")
    check_count("rows", asked.rows)
    check_is("step", step, str)
    check_is("warped", warped, bool)
    check_is("trees", trees, bool | None)
    if step not in _STEPS:
        raise InvalidArgument(f"step is {step!r}, expected one of {', '.join(_STEPS)}")
    method = None if asked.method is None else find_method(asked.method)
    if trees and method is not None and method.refuses_branches is not None:
        raise InvalidArgument(f"trees is True, for branches, but {method.refuses_branches}, or leave branches out")
    if method is None and step not in ("auto", "host"):
        raise InvalidArgument(f"step is {step!r}, but method is None; name the method whose steps are to be decided so")
    if not callable(guidance) and not (isinstance(guidance, int | float) and math.isfinite(guidance)):
        raise InvalidArgument(
            f"guidance is {guidance!r}, expected a finite number or a function of the index; 1 is none"
        )
    bundle = asked.bundle if isinstance(asked.bundle, Bundle) else open_bundle_or_onnx(asked.bundle)
    if guidance != 1 and bundle.manifest.unconditional_prompt is None:
        raise InvalidArgument(
            f"guidance is {guidance}, but the bundle {bundle.manifest.name} has no unconditional prompt; leave it at 1"
        )
    correctors = _correctors(bundle, method, settings.get("corrections", "auto"))
    progress = cast("Progress | None", settings.get("progress"))
    steps = ("host",) if method is None else back_end(place.backend).STEPS if step == "auto" else (step,)
    refusals = []
    branching = trees is None and (method is None or method.refuses_branches is None)
    for candidate, has_trees in itertools.product(steps, (True, False) if branching else (bool(trees),)):
        for corrector in correctors:
            wanted = Wanted(
                bundle, place, asked.rows, method, candidate, guidance, warped, progress, corrector, has_trees
            )
            refusal = _refusal(wanted, back_end(place.backend))
            if refusal is None:
                return wanted
            refusals.append(refusal)
    # Of the first step that was tried, and without corrections or trees that nobody asked for.
    raise InvalidArgument(refusals[(2 if branching else 1) * len(correctors) - 1])


def _correctors(bundle: Bundle, method: Method | None, asked: str | Corrector | None) -> Sequence[Corrector | None]:
    """What redrafts may be corrected by, in the order in which it is preferred; the first that a step can have is taken."""
    if method is None:
        if asked in ("auto", "none", None):
            return (None,)
        raise InvalidArgument(
            f"corrections is {shown(asked)}, but method is None: a provider decides no steps; name a method, or give a corrector "
            "to generate or Decoder, such as corrections=bundle.corrector('scd-match')"
        )
    if asked == "network":
        return (NetworkCorrection.open(bundle, method),)
    if asked is None or isinstance(asked, str):
        found = bundle.corrector(method, "none" if asked is None else asked)
        return (found, None) if asked == "auto" and found is not None else (found,)
    check_corrector(asked, bundle.manifest.vocab_size)
    return (asked if method.recycles else None,)


def _refusal(wanted: Wanted, found: BackEnd) -> str | None:
    """Why a back end cannot do what is wanted."""
    step, backend = wanted.step, wanted.place.backend
    if step not in found.STEPS:
        others = [name for name in BACKENDS if step in back_end(name).STEPS]
        return (
            f"step is {step!r}, but backend is {backend!r}, which decides steps by {' or '.join(found.STEPS)}; choose one of "
            f"{', '.join(others)}, or leave step at 'auto'"
        )
    if wanted.trees and (refusal := refused_trees(wanted)) is not None:
        return refusal
    manifest, special, otherwise = wanted.bundle.manifest, "", ""
    if manifest.window_graph.caches == "growing":
        special = "is an ONNX file of somebody else's, whose caches grow"
        otherwise = ", or export the checkpoint that it was made of"
    elif manifest.condition_graph is not None:
        special = "takes a condition"
    if special and (backend, step) != ("cpu", "host"):
        what, instead = ("step", "host") if backend == "cpu" else ("backend", "cpu")
        asked = getattr(wanted, what, backend)
        return f"{what} is {asked!r}, but {manifest.name} {special}: it runs with {instead} only; use that{otherwise}"
    if step == "kernels" and wanted.varied:
        return "step is 'kernels', which have one guidance scale for a row, but it changes with the position; leave step at 'auto'"
    if step != "host" and manifest.layout:
        return (
            f"step is {step!r}, but the bundle {manifest.name} has a layout, which needs the host; leave step at 'auto'"
        )
    return found.takes(wanted)


def _require_kernels(place: Place) -> Device:
    """The GPU, with what kernels need on it: looked for before an engine is built for what can be done without them."""
    from coupled_sampling.backends.cuda.compile import require_nvrtc
    from coupled_sampling.backends.cuda.device import Device

    gpu = Device(place.device or 0)
    require_nvrtc()
    return gpu


def _with_kernels(wanted: Wanted, found: BackEnd) -> OpenStep:
    """A step that CUDA kernels decide where the model leaves its logits."""
    from coupled_sampling.backends.cuda.kernel_step import KernelStep
    from coupled_sampling.backends.cuda.pinned_launcher import PinnedLauncher
    from coupled_sampling.backends.cuda.streams import OnStream, Stream

    gpu = _require_kernels(wanted.place)
    settings: dict[str, Any] = {"corrections": wanted.corrections}
    if wanted.guided:
        settings |= {"guidance": wanted.guidance, "unconditional": wanted.bundle.manifest.unconditional_prompt}
    with contextlib.ExitStack() as undo:
        provider = undo.enter_context(cast(OpenProvider, found.open(wanted)))
        # On an engine's own stream nothing has to be waited for between model and decision; runs of ONNX Runtime end when done.
        stream = provider.stream if isinstance(provider, OnStream) else Stream(gpu)
        launcher = PinnedLauncher(stream, cuda_graphs=wanted.place.cuda_graphs is not False)
        undo.callback(launcher.close)
        step = KernelStep(provider, cast(Method, wanted.method), launcher, **settings)
        undo.pop_all()  # whoever asked for it closes it now
    return step

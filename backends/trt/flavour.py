"""The two packages that share one API: ``tensorrt``, and ``tensorrt_rtx`` for RTX GPUs, which compiles kernels where it runs.

They differ in five things, all of which are decided here: the module's name, the oldest version supported, whether a
build needs a GPU, whether an engine belongs to one GPU, and which cache makes the second time faster (a timing cache of the
builder, or a runtime cache of compiled kernels).
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

from coupled_sampling.backends.cuda.device import Device
from coupled_sampling.backends.versions import check_version
from coupled_sampling.errors import InvalidArgument, MissingDependency

__all__ = ["FLAVOURS", "Flavour", "find_flavour"]

_NAMES = {"tensorrt": ("tensorrt", (10, 16)), "tensorrt-rtx": ("tensorrt_rtx", (1, 7))}
FLAVOURS = tuple(_NAMES)
"""Their names, in the order in which they are looked for."""


@dataclass(frozen=True)
class Flavour:
    """One of the two packages, imported."""

    name: str
    version: str
    module: Any

    @property
    def is_portable(self) -> bool:
        """Whether engines are built without a GPU, and run on any that is supported."""
        return self.name == "tensorrt-rtx"

    def gpu(self, device: Device | None) -> str:
        """What an engine built here belongs to, for its fingerprint.

        Raises
        ------
        InvalidArgument
            ``device`` is None and the flavour builds on a GPU only.
        MissingDependency
            The flavour does not run on ``device``, and the other one is needed.
        """
        if self.is_portable:
            if device is not None and not _runs_rtx(*device.compute_capability):
                major, minor = device.compute_capability
                raise MissingDependency(
                    f"tensorrt-rtx runs on GPUs of compute capability 8.0, 8.6, 8.9 and 12.0 or later, but {device.name} has "
                    f"{major}.{minor}: use tensorrt, pip install 'coupled-sampling[tensorrt]'"
                )
            return "any of compute capability 8.0, 8.6, 8.9, 12.0 or later"
        if device is None:
            raise InvalidArgument(
                "device is None, but tensorrt builds on the GPU it builds for; use tensorrt-rtx to build without one"
            )
        major, minor = device.compute_capability
        return f"{device.name}, compute capability {major}.{minor}"


def _runs_rtx(major: int, minor: int) -> bool:
    """Whether engines of `tensorrt-rtx` run on that compute capability (its ``ComputeCapability`` has no 9.0 and no 10.0)."""
    return (major, minor) in ((8, 0), (8, 6), (8, 9)) or major >= 12


def find_flavour(name: str | None = None) -> Flavour:
    """The flavour called ``name``; None takes the first that is installed.

    Raises
    ------
    InvalidArgument
        There is no flavour of that name.
    MissingDependency
        It is not installed, or too old.

    Examples
    --------
    >>> from coupled_sampling.backends.trt import find_flavour
    >>> find_flavour("rtx")
    Traceback (most recent call last):
    coupled_sampling.errors.InvalidArgument: flavour is 'rtx', expected one of 'tensorrt', 'tensorrt-rtx', or None ...

    Not run here, since it needs one of the two packages:

    >>> find_flavour().name  # doctest: +SKIP
    'tensorrt-rtx'
    """
    if name is not None and name not in _NAMES:
        raise InvalidArgument(
            f"flavour is {name!r}, expected one of {', '.join(map(repr, FLAVOURS))}, or None for what is installed"
        )
    missing: ImportError | None = None
    for candidate in FLAVOURS if name is None else (name,):
        module_name, oldest = _NAMES[candidate]
        try:
            module = importlib.import_module(module_name)
        except ImportError as error:
            missing = error
            continue
        version = str(module.__version__)
        upgrade = f"pip install --upgrade 'coupled-sampling[{candidate}]'"
        check_version(candidate, version, oldest, "are not supported", upgrade)
        return Flavour(candidate, version, module)
    wanted = "neither tensorrt nor tensorrt-rtx could" if name is None else f"{name} could not"
    extra = name or "tensorrt-rtx"
    raise MissingDependency(
        f"this needs NVIDIA TensorRT, and {wanted} be imported ({missing}): pip install 'coupled-sampling[{extra}]'; "
        "docs/tensorrt.md says which wheels come from where"
    ) from missing

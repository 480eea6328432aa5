"""How a model is served in Triton, as parameters of its ``config.pbtxt``: `TritonSettings`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from coupled_sampling.arguments import check_count, check_number
from coupled_sampling.backends import BACKENDS, Place
from coupled_sampling.backends.place import back_end
from coupled_sampling.errors import InvalidArgument

__all__ = ["BUNDLE", "PARAMETERS", "TritonSettings"]

BUNDLE = "bundle"
"""The parameter that says where the bundle is, and the folder of its copy in the version's folder."""


def _window(text: str) -> int | str:
    return text if text == "auto" else int(text)


_DEFAULTS: Mapping[str, Callable[[str], Any]] = {
    "method": str,
    "window": _window,
    "branches": int,
    "drafting": str,
    "corrections": str,
    "guidance": float,
    "guidance_interval": str,
    "temperature": float,
    "top_k": int,
    "top_p": float,
    "min_p": float,
}
"""How requests are decoded that do not say: names of `coupled_sampling.bundles.Bundle.settings`, and how each is read."""

_OWN: Mapping[str, tuple[str, Callable[[str], Any]]] = {
    "backend": ("backend", str),
    "engines": ("engines", str),
    "threads": ("threads", int),
    "step": ("step", str),
    "rows": ("rows", int),
    "max_queue": ("most_waiting", int),
    "lanes": ("lanes", int),
    "drain_seconds": ("drain", float),
}
"""Parameters that are fields of `TritonSettings`: the field of each, and how it is read."""

PARAMETERS = (BUNDLE, *_OWN, *_DEFAULTS)
"""All parameters that ``config.pbtxt`` may have."""


@dataclass(frozen=True)
class TritonSettings:
    """How a model is served.

    Parameters
    ----------
    backend
        What runs it, one of `coupled_sampling.backends.BACKENDS`; None is ``cuda`` where there are ``gpus``, else ``cpu``.
    gpus
        Numbers of the GPUs that have the model, one engine each; where the back end needs one and none is named, it is the first.
    rows
        Sequences that an engine decodes together.
    most_waiting
        Requests that may wait for a row; more are refused.
    lanes
        Ways to decode that are open at once, each with the model in memory.
    step
        Where steps are decided, see `coupled_sampling.backends.open_model`.
    threads, engines
        See `coupled_sampling.backends.Place`.
    drain
        Seconds that requests under way are given when the model is unloaded.
    defaults
        How requests are decoded that do not say: names and values of `coupled_sampling.bundles.Bundle.settings`.

    Raises
    ------
    InvalidArgument
        A value cannot work.

    Examples
    --------
    >>> from coupled_sampling.serving.triton.settings import TritonSettings
    >>> settings = TritonSettings(rows=4, defaults={"window": 8})
    >>> settings.parameters
    {'backend': 'cpu', 'step': 'auto', 'rows': '4', 'max_queue': '64', 'lanes': '2', 'drain_seconds': '30.0', 'window': '8'}
    >>> TritonSettings.read(settings.parameters) == settings
    True
    """

    backend: str | None = None
    gpus: tuple[int, ...] = ()
    rows: int = 8
    most_waiting: int = 64
    lanes: int = 2
    step: str = "auto"
    threads: int | None = None
    engines: str | None = None
    drain: float = 30.0
    defaults: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        backend = self.backend or ("cuda" if self.gpus else "cpu")
        object.__setattr__(self, "backend", backend)
        if "provider" in back_end(backend).SETTINGS:
            others = ", ".join(name for name in BACKENDS if name != backend)
            raise InvalidArgument(f"backend is {backend!r}, expected one of {others}: Triton places no plugins")
        on_gpus = "device" in back_end(backend).SETTINGS
        if self.gpus and not on_gpus:
            raise InvalidArgument(f"gpus is {self.gpus}, but backend {backend!r} runs on no GPU; leave one of them out")
        if len(set(self.gpus)) != len(self.gpus) or any(gpu < 0 for gpu in self.gpus):
            raise InvalidArgument(f"gpus is {self.gpus}, expected numbers of GPUs from 0, each once")
        object.__setattr__(self, "gpus", self.gpus or ((0,) if on_gpus else ()))
        check_count("rows", self.rows)
        check_count("max_queue", self.most_waiting, 0)
        check_count("lanes", self.lanes)
        if check_number("drain_seconds", self.drain, "seconds") < 0:
            raise InvalidArgument(f"drain_seconds is {self.drain}, expected seconds >= 0")
        self.place()

    def place(self, device: int | None = None) -> Place:
        """Where an engine runs, on the GPU ``device`` where there is any."""
        assert self.backend is not None  # __post_init__ has chosen one
        return Place(self.backend, device, self.threads, engines=self.engines)

    @property
    def parameters(self) -> dict[str, str]:
        """What `read` makes the same settings of, but for the GPUs, which are in the server's own configuration."""
        own = {name: getattr(self, attribute) for name, (attribute, _) in _OWN.items()}
        return {name: str(value) for name, value in {**own, **self.defaults}.items() if value is not None}

    @classmethod
    def read(cls, parameters: Mapping[str, str]) -> TritonSettings:
        """Settings from parameters; ``bundle`` among them is skipped.

        Raises
        ------
        InvalidArgument
            There is no such parameter, or its value cannot work.
        """
        own: dict[str, Any] = {}
        defaults: dict[str, Any] = {}
        for name, text in parameters.items():
            if name == BUNDLE:
                continue
            if name not in PARAMETERS:
                raise InvalidArgument(
                    f"config.pbtxt has the parameter {name!r}, expected some of {', '.join(PARAMETERS)}"
                )
            attribute, read = _OWN[name] if name in _OWN else (name, _DEFAULTS[name])
            try:
                value = read(text)
            except ValueError as error:
                raise InvalidArgument(f"the parameter {name} of config.pbtxt is {text!r}, expected a number") from error
            (own if name in _OWN else defaults)[attribute] = value
        return cls(**own, defaults=defaults)

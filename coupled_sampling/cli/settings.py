"""What one run of the command line was asked for: given values over the bundle's defaults, checked once and frozen.

`decoding_settings` says how a bundle's model is decoded. It takes plain values and knows no parser. `run_settings` adds where the
model runs and how much is to be made; it is the only place that reads the options which commands have in common.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from coupled_sampling.bundles.layouts import Layout, Span
from coupled_sampling.bundles.manifest import Manifest
from coupled_sampling.cli.models import STEPS, Place
from coupled_sampling.contracts import Sampling
from coupled_sampling.drafting import Drafting, Random, find_drafting
from coupled_sampling.errors import InvalidArgument
from coupled_sampling.methods import find_method
from coupled_sampling.windows import find_window_rule

__all__ = ["DecodingSettings", "Given", "RunSettings", "decoding_settings", "run_settings"]

_T = TypeVar("_T")


@dataclass(frozen=True)
class Given:
    """Values that a user set, as a user writes them. None leaves a setting to the bundle."""

    method: str | None = None
    window: int | str | None = None
    drafting: str | Drafting | None = None
    guidance: float | None = None
    length: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None


@dataclass(frozen=True)
class DecodingSettings:
    """How a model is decoded.

    Parameters
    ----------
    length
        Tokens per sequence, fewer where a stop token comes.
    method
        Name of a method.
    window
        Slots per pass, or "auto".
    drafting
        Where first guesses come from.
    guidance
        Classifier-free guidance scale; 1 is none.
    sampling
        What shapes the target law, but for the layout.
    layout
        Which tokens may stand at which generated positions; empty if all may everywhere.
    stop
        Tokens that end a sequence.

    Raises
    ------
    InvalidArgument
        There is no such method, or ``guidance`` is not finite.
    """

    length: int
    method: str = "scd-gumbel"
    window: int | str = 16
    drafting: str | Drafting = "random"
    guidance: float = 1.0
    sampling: Sampling = field(default_factory=Sampling)
    layout: tuple[Span, ...] = ()
    stop: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        find_method(self.method)
        if not math.isfinite(self.guidance):
            raise InvalidArgument(f"guidance is {self.guidance}, expected a finite number; 1 is none")

    @property
    def guided(self) -> bool:
        """Whether there is guidance."""
        return self.guidance != 1

    def samplings(self, prompts: Sequence[Sequence[int]]) -> list[Sampling]:
        """What shapes the target law of each prompt's continuation: a layout begins where its prompt ends."""
        if not self.layout:
            return [self.sampling] * len(prompts)
        layout, others = Layout(self.layout), self.sampling.processors
        return [replace(self.sampling, processors=(*others, layout.processor(len(prompt)))) for prompt in prompts]


def decoding_settings(manifest: Manifest, given: Given | None = None) -> DecodingSettings:
    """What was given, over the defaults of a bundle.

    Parameters
    ----------
    manifest
        The bundle's manifest. Drafting ``random`` is over the tokens that its model can generate.
    given
        What the user set; by default nothing.

    Raises
    ------
    InvalidArgument
        A value cannot work, or the model has no place for it: a length of its own, guidance without an unconditional prompt, a
        window that is too wide.
    """
    given, defaults = given or Given(), manifest.defaults
    widest = manifest.window_graph.max_window
    drafting = find_drafting(defaults.drafting if given.drafting is None else given.drafting)
    if drafting == Random():
        drafting = Random(manifest.generated_tokens.first, manifest.generated_tokens.count)
    settings = DecodingSettings(
        length=_or(given.length, manifest.length),
        method=_or(given.method, defaults.method),
        window=min(defaults.window, widest) if given.window is None else given.window,
        drafting=drafting,
        guidance=_or(given.guidance, defaults.guidance),
        sampling=Sampling(
            temperature=_or(given.temperature, defaults.temperature),
            top_k=_or(given.top_k, defaults.top_k),
            top_p=_or(given.top_p, defaults.top_p),
            min_p=_or(given.min_p, defaults.min_p),
        ),
        layout=manifest.layout,
        stop=manifest.stop_tokens,
    )
    find_window_rule(settings.window, widest)
    if settings.length != manifest.length and manifest.tokenizer is None:
        raise InvalidArgument(f"length is {settings.length}, but this model makes exactly {manifest.length} tokens")
    if settings.guided and manifest.unconditional_prompt is None:
        raise InvalidArgument(
            f"guidance is {settings.guidance}, but the bundle {manifest.name} has no unconditional prompt; leave it at 1"
        )
    return settings


def _or(given: _T | None, default: _T) -> _T:
    return default if given is None else given


@dataclass(frozen=True)
class RunSettings:
    """What one command does with a model.

    Parameters
    ----------
    decoding
        How the model is decoded.
    place
        Where it runs.
    methods
        Names of the methods that were asked for.
    step
        Where steps are decided, one of `coupled_sampling.cli.models.STEPS`.
    count
        Sequences to make.
    batch_size
        Most sequences decoded together.
    seed
        Of all noise.

    Raises
    ------
    InvalidArgument
        A value cannot work.
    """

    decoding: DecodingSettings
    place: Place
    methods: tuple[str, ...]
    step: str = "auto"
    count: int = 1
    batch_size: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        for method in self.methods:
            find_method(method)
        if self.step not in STEPS:
            raise InvalidArgument(f"step is {self.step!r}, expected one of {', '.join(STEPS)}")
        for name, value in (("count", self.count), ("batch-size", self.batch_size)):
            if value < 1:
                raise InvalidArgument(f"{name} is {value}, expected at least 1")
        if not 0 <= self.seed < 2**64:
            raise InvalidArgument(f"seed is {self.seed}, expected an integer in [0, 2**64)")

    @property
    def rows(self) -> int:
        """Sequences decoded together: no row is held for nothing."""
        return min(self.batch_size, self.count)


def run_settings(
    arguments: argparse.Namespace, manifest: Manifest, *, count: int, methods: Sequence[str] = ()
) -> RunSettings:
    """The settings of a command that decodes: its ``arguments`` over the defaults of a bundle.

    Parameters
    ----------
    arguments
        With the options of `coupled_sampling.cli.arguments.add_sampling` and `add_running`.
    manifest
        The bundle's manifest.
    count
        Sequences to make.
    methods
        Names of the methods that were asked for; by default the bundle's own.

    Raises
    ------
    InvalidArgument
        A value cannot work.
    """
    given = Given(
        method=methods[0] if methods else None,
        window=arguments.window,
        drafting=arguments.drafting,
        guidance=arguments.guidance,
        length=arguments.length,
        temperature=arguments.temperature,
        top_k=arguments.top_k,
        top_p=arguments.top_p,
        min_p=arguments.min_p,
    )
    decoding = decoding_settings(manifest, given)
    place = Place(
        backend=arguments.backend,
        device=arguments.device,
        threads=arguments.threads,
        cuda_graphs=arguments.cuda_graphs,
        engines=arguments.engines,
        # With "auto" the widest window is not known beforehand.
        max_window=decoding.window if isinstance(decoding.window, int) else None,
    )
    return RunSettings(
        decoding,
        place,
        methods=tuple(methods) or (decoding.method,),
        step=arguments.step,
        count=count,
        batch_size=arguments.batch_size,
        seed=arguments.seed,
    )

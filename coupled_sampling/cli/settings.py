"""What one run of the command line was asked for: how the model is decoded, where it runs and how much is to be made.

How a bundle's model is decoded is the bundle's to say (`coupled_sampling.bundles.settings`). `run_settings` is the only place that
reads the options which commands have in common.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from coupled_sampling.bundles.manifest import Manifest
from coupled_sampling.bundles.settings import DecodingSettings, decoding_settings
from coupled_sampling.cli.models import STEPS, Place
from coupled_sampling.errors import InvalidArgument
from coupled_sampling.methods import find_method

__all__ = ["TO_LOOK_AT", "RunSettings", "UsualCount", "run_settings"]


class UsualCount(NamedTuple):
    """Sequences that a command makes where no number was asked for, by what the model makes."""

    pictures: int
    clips: int
    texts: int

    def of(self, manifest: Manifest) -> int:
        """The number for a bundle; what makes neither pictures nor clips makes texts, or bare tokens."""
        if manifest.makes_clips:
            return self.clips
        return self.pictures if manifest.makes_pictures else self.texts

    def __str__(self) -> str:
        return f"{self.pictures} pictures, {self.clips} clips or {self.texts} text{'s' * (self.texts != 1)}"


TO_LOOK_AT = UsualCount(pictures=16, clips=4, texts=1)
"""As many pictures as fill a sheet, a few clips, or one text."""

_MOST_SEQUENCES = 1_000_000
"""All of them are held until the last is made."""


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
            if value > _MOST_SEQUENCES:
                raise InvalidArgument(f"{name} is {value}, expected at most {_MOST_SEQUENCES}; run it several times")
        if not 0 <= self.seed < 2**64:
            raise InvalidArgument(f"seed is {self.seed}, expected an integer in [0, 2**64)")

    @property
    def rows(self) -> int:
        """Sequences decoded together: no row is held for nothing."""
        return min(self.batch_size, self.count)


def run_settings(
    arguments: argparse.Namespace, manifest: Manifest, *, count: int | UsualCount, methods: Sequence[str] = ()
) -> RunSettings:
    """The settings of a command that decodes: its ``arguments`` over the defaults of a bundle.

    Parameters
    ----------
    arguments
        With the options of `coupled_sampling.cli.arguments.add_sampling` and `add_running`.
    manifest
        The bundle's manifest.
    count
        Sequences to make, or what is usual where nobody gave a number.
    methods
        Names of the methods that were asked for; by default the bundle's own.

    Raises
    ------
    InvalidArgument
        A value cannot work.
    """
    # Branches go to those methods that take them; where none does, the first one says why.
    branching = [name for name in methods if find_method(name).refuses_branches is None]
    chosen = next(iter((*branching, *methods)), None)
    decoding = decoding_settings(
        manifest,
        {
            "method": chosen,
            "window": arguments.window,
            "branches": arguments.branches,
            "drafting": arguments.drafting,
            "guidance": arguments.guidance,
            "guidance_interval": arguments.guidance_interval,
            "length": arguments.length,
            "temperature": arguments.temperature,
            "top_k": arguments.top_k,
            "top_p": arguments.top_p,
            "min_p": arguments.min_p,
            "corrections": arguments.corrections,
        },
    )
    _check_widths(decoding, methods, manifest)
    place = Place(
        backend=arguments.backend,
        device=arguments.device,
        threads=arguments.threads,
        cuda_graphs=arguments.cuda_graphs,
        engines=arguments.engines,
        provider=arguments.provider,
        # With "auto" the widest window is not known beforehand.
        max_window=decoding.window if isinstance(decoding.window, int) else None,
    )
    return RunSettings(
        decoding,
        place,
        methods=tuple(methods) or (decoding.method,),
        step=arguments.step,
        count=count.of(manifest) if isinstance(count, UsualCount) else count,
        batch_size=arguments.batch_size,
        seed=arguments.seed,
    )


def _check_widths(decoding: DecodingSettings, methods: Sequence[str], manifest: Manifest) -> None:
    """Refuse methods without branches in windows that are wide because of them."""
    widest = manifest.window_graph.max_window
    for own in (decoding.by(name, widest) for name in methods):
        if decoding.branches and not own.branches and isinstance(own.window, int) and own.window > widest:
            raise InvalidArgument(
                f"window is {own.window}, but {own.method} takes no branches, and without these at most {widest} slots go into one "
                f"pass; ask for fewer, or leave {own.method} out"
            )

"""What a command that decodes works on: a bundle, the settings and the prompts, and the models that are opened for them."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

from coupled_sampling.bundles.opening import Bundle, open_bundle
from coupled_sampling.bundles.text import Tokenizer
from coupled_sampling.cli.comparison import MethodResult, compare
from coupled_sampling.cli.models import (
    ENGINES,
    Place,
    Ran,
    check_models,
    close_provider,
    open_model,
    progress_bar,
    step_of,
    what_ran,
)
from coupled_sampling.cli.prompts import find_prompts, open_tokenizer
from coupled_sampling.cli.settings import RunSettings, run_settings
from coupled_sampling.contracts import CoupledStep, LogitsProvider
from coupled_sampling.host_step import HostStep
from coupled_sampling.methods import Method

__all__ = ["Task", "prepare"]


class Task:
    """A bundle decoded by some settings.

    Parameters
    ----------
    bundle
        The model.
    settings
        What to do with it.
    tokenizer
        Of a model that reads text, else None.
    prompts
        Tokens of the prompt of every sequence.

    Attributes
    ----------
    ran
        By method, what it ran on, from the moment on that it was opened.
    """

    def __init__(
        self,
        bundle: Bundle,
        settings: RunSettings,
        tokenizer: Tokenizer | None,
        prompts: Sequence[Sequence[int]],
    ) -> None:
        self.bundle, self.settings, self.tokenizer, self.prompts = bundle, settings, tokenizer, prompts
        self.ran: dict[str, Ran] = {}

    def open_model(self, method: str) -> LogitsProvider | CoupledStep:
        """What ``method`` runs on: a provider where the library decides, else a step."""
        step = self._step_asked(method)
        with progress_bar("building the engine") as progress:
            model = open_model(
                *self._place(),
                method=method,
                step=step,
                warped=self._warped,
                guidance=self._guidance,
                progress=progress,
            )
        self.ran[method] = what_ran(model, self._step_of(method))
        return model

    def open_provider(self) -> LogitsProvider:
        """A provider of its own, whatever decides steps."""
        with progress_bar("building the engine") as progress:
            return open_model(*self._place(), guidance=self._guidance, progress=progress)

    def make_step(self, provider: LogitsProvider, method: Method) -> CoupledStep:
        """The step to verify: what `open_model` would give. ``provider`` is used if the library decides; else it is let go."""
        if self._step_of(method.name) == "host":
            self.ran[method.name] = what_ran(provider, "host")
            return HostStep(provider, method)
        # Another model is opened, which leaves its logits where they are, and one of them is enough on a GPU.
        close_provider(provider)
        step = self.open_model(method.name)
        assert not isinstance(step, LogitsProvider)
        return step

    def compare(
        self, methods: Sequence[str], *, against_ar: bool, progress: Callable[[str, int], object]
    ) -> list[MethodResult]:
        """Run ``methods`` on the prompts."""
        settings = self.settings
        return compare(
            self.open_model,
            self.prompts,
            methods,
            settings.decoding,
            seed=settings.seed,
            against_ar=against_ar,
            progress=progress,
        )

    def _step_asked(self, method: str) -> str:
        """Where steps of ``method`` are to be decided."""
        asked, place = self.settings.step, self.settings.place
        if asked == "graph" and place.backend in ENGINES and method not in self.settings.methods:
            return "auto"  # `ar`, which others are measured against: an engine of it would be built, and nobody asked for one
        return asked

    def _step_of(self, method: str) -> str:
        """Where they are decided."""
        return step_of(
            self.bundle,
            self.settings.place,
            method,
            step=self._step_asked(method),
            guidance=self._guidance,
            warped=self._warped,
        )

    def _place(self) -> tuple[Bundle, Place, int]:
        return self.bundle, self.settings.place, self.settings.rows

    @property
    def _guidance(self) -> float:
        return self.settings.decoding.guidance

    @property
    def _warped(self) -> bool:
        return self.settings.decoding.sampling.warps


def prepare(arguments: argparse.Namespace, *, count: int, methods: Sequence[str] = ()) -> Task:
    """Open the bundle that ``arguments`` name, and check everything that can be known before its model is opened.

    ``count`` and ``methods`` are those of `coupled_sampling.cli.settings.run_settings`.

    Raises
    ------
    BundleError, InvalidArgument, MissingDependency, ProviderError
        There is no such bundle, or something that was asked for cannot work.
    """
    bundle = open_bundle(arguments.model)
    settings = run_settings(arguments, bundle.manifest, count=count, methods=methods)
    tokenizer = open_tokenizer(bundle)
    prompts = find_prompts(bundle.manifest, tokenizer, arguments.prompt, count)
    decoding = settings.decoding
    check_models(
        bundle,
        settings.place,
        settings.methods,
        step=settings.step,
        guidance=decoding.guidance,
        warped=decoding.sampling.warps,
    )
    return Task(bundle, settings, tokenizer, prompts)

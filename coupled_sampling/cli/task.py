"""What a command that decodes works on: a bundle, the settings and the prompts, and the models that are opened for them."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.bundles.opening import Bundle
from coupled_sampling.bundles.settings import DecodingSettings
from coupled_sampling.bundles.text import StopStrings, Tokenizer
from coupled_sampling.cli.comparison import MethodResult, compare
from coupled_sampling.cli.conditions import find_condition
from coupled_sampling.cli.models import check_model, host_corrector, open_asked, open_model, progress_bar
from coupled_sampling.cli.prompts import Asked, Prompts, find_prompts
from coupled_sampling.cli.settings import RunSettings, UsualCount, run_settings
from coupled_sampling.contracts import Closeable, CoupledStep, LogitsProvider, OpenProvider, OpenStep, Runs
from coupled_sampling.decoding import Commit
from coupled_sampling.errors import InvalidArgument
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
        What every sequence begins with.
    stop
        Stop strings, of a model that reads text.
    condition
        What every sequence is made for, besides, of a model that takes a condition.

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
        prompts: Prompts,
        stop: Sequence[str] = (),
        condition: NDArray[Any] | None = None,
    ) -> None:
        self.bundle, self.settings, self.tokenizer, self.prompts = bundle, settings, tokenizer, prompts.tokens
        self.stop, self.condition = tuple(stop), condition
        self.after: Sequence[int] = self.prompts[0] if prompts.continued else ()
        """Tokens of the text that goes on; none where it is a text of its own."""
        self.ran: dict[str, Runs] = {}

    def check(self) -> None:
        """Refuse what cannot run so, for every method that was asked for, before the first of them is opened.

        Raises
        ------
        InvalidArgument, MissingDependency, ProviderError
            As from `coupled_sampling.backends.check_model`.
        """
        for method in self.settings.methods:
            self._check(method, self.settings.step)

    def open_model(self, method: str) -> OpenStep:
        """A step of ``method`` of its own."""
        settings, decoding = self.settings, self._own(method)
        with progress_bar("building the engine") as progress:
            step = open_model(
                self.bundle,
                settings.place,
                settings.rows,
                method=method,
                step=self._asked(method),
                guidance=decoding.scale,
                warped=decoding.sampling.warps,
                corrections=decoding.corrections,
                trees=decoding.trees,
                progress=progress,
            )
        self.ran[method] = step.runs
        return step

    def open_provider(self) -> OpenProvider:
        """A provider of its own, guided if asked for, whatever decides steps."""
        settings, decoding = self.settings, self.settings.decoding
        with progress_bar("building the engine") as progress:
            return open_model(
                self.bundle,
                settings.place,
                settings.rows,
                guidance=decoding.scale,
                trees=decoding.trees,
                progress=progress,
            )

    def make_step(self, provider: LogitsProvider, method: Method) -> CoupledStep:
        """The step to verify: what `open_model` would give. ``provider`` is used if the library decides; else it is let go."""
        if self.step_of(method.name) == "host":
            corrector = host_corrector(self.bundle, provider, method, self.settings.decoding.corrections)
            step = HostStep(provider, method, corrections=corrector)
            self.ran[method.name] = step.runs
            return step
        if isinstance(provider, Closeable):
            provider.close()  # another model is opened, and one of them is enough on a GPU
        return self.open_model(method.name)

    def compare(
        self, methods: Sequence[str], *, against_ar: bool, warm_up: bool = True, watch: Callable[[str, Commit], object]
    ) -> list[MethodResult]:
        """Run ``methods`` on the prompts."""
        settings = self.settings
        return compare(
            self.open_model,
            self.prompts,
            methods,
            self.decoding,
            seed=settings.seed,
            against_ar=against_ar,
            warm_up=warm_up,
            watch=watch,
        )

    def picture_tokens(self, result: MethodResult) -> NDArray[np.int64]:
        """What the pixel graph takes for every sequence, int64 (sequences, N)."""
        pairs = zip(self.prompts, result.generation.tokens, strict=True)
        return np.stack([self.bundle.manifest.picture_tokens(prompt, tokens) for prompt, tokens in pairs])

    @property
    def decoding(self) -> DecodingSettings:
        """How sequences are decoded, and where they end."""
        told = replace(self.settings.decoding, condition=self.condition)
        if self.tokenizer is None or not self.stop:
            return told
        return replace(told, stop_rule=StopStrings(self.tokenizer, self.stop, self.after))

    def step_of(self, method: str) -> str:
        """Where steps of ``method`` are decided: "host", "graph" or "kernels"; where the model is, unless a network pays."""
        return self._check(method, self._asked(method))

    def _asked(self, method: str) -> str:
        """Where its steps are to be decided."""
        asked = self.settings.step
        if asked == "graph" and method not in self.settings.methods:
            # `ar`, which others are measured against: nobody asked for a graph of it.
            with contextlib.suppress(InvalidArgument):
                self._check(method, asked)
                return asked
            return "auto"
        return asked

    def _check(self, method: str, step: str) -> str:
        settings, decoding = self.settings, self._own(method)
        return check_model(
            self.bundle,
            settings.place,
            settings.rows,
            method=method,
            step=step,
            guidance=decoding.scale,
            warped=decoding.sampling.warps,
            corrections=decoding.corrections,
            trees=decoding.trees,
        )

    def _own(self, method: str) -> DecodingSettings:
        """How ``method`` decodes."""
        return self.settings.decoding.by(method, self.bundle.manifest.window_graph.max_window)


def prepare(
    arguments: argparse.Namespace, *, count: int | UsualCount, methods: Sequence[str] = (), stop: Sequence[str] = ()
) -> Task:
    """Open the bundle that ``arguments`` name, and check everything that can be known before its model is opened.

    ``count`` and ``methods`` are those of `coupled_sampling.cli.settings.run_settings`, ``stop`` are stop strings.

    Raises
    ------
    BundleError, InvalidArgument, MissingDependency, ProviderError
        There is no such bundle, or something that was asked for cannot work.
    """
    bundle = open_asked(arguments)
    settings = run_settings(arguments, bundle.manifest, count=count, methods=methods)
    tokenizer = bundle.tokenizer()
    prompts = find_prompts(bundle, tokenizer, Asked.of(arguments), settings.count)
    if stop and (tokenizer is None or bundle.manifest.makes_pictures):
        what = "has no tokenizer" if tokenizer is None else "makes pictures"
        raise InvalidArgument(
            f"stop is {stop[0]!r}, a text, but the bundle {bundle.manifest.name} {what}; leave it out"
        )
    condition = find_condition(bundle.manifest, getattr(arguments, "condition", None))
    task = Task(bundle, settings, tokenizer, prompts, stop, condition)
    task.check()
    return task

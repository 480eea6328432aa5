"""What one run of the command line works on: a bundle, with the settings that were given over the bundle's defaults."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.bundle import Bundle, open_bundle
from coupled_sampling.comparison import MethodResult, compare
from coupled_sampling.contracts import CoupledStep, LogitsProvider, Sampling
from coupled_sampling.drafting import Drafting, Random, find_drafting
from coupled_sampling.errors import InvalidArgument
from coupled_sampling.guidance import GuidedProvider
from coupled_sampling.layout import Layout
from coupled_sampling.methods import Method
from coupled_sampling.step import HostStep
from coupled_sampling.text import Tokenizer

__all__ = ["Job"]


class Job:
    """A bundle with the command line's settings over the bundle's defaults."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.bundle: Bundle = open_bundle(arguments.model)
        manifest = self.bundle.manifest
        if arguments.count < 1:
            raise InvalidArgument(f"count is {arguments.count}, expected at least 1")
        if arguments.batch_size is None:
            arguments.batch_size = 16 if arguments.command == "verify" else 1
        if arguments.batch_size < 1:
            raise InvalidArgument(f"batch-size is {arguments.batch_size}, expected at least 1")
        if not 0 <= arguments.seed < 2**64:
            raise InvalidArgument(f"seed is {arguments.seed}, expected an integer in [0, 2**64)")
        defaults = manifest.defaults
        self.sampling = Sampling(
            temperature=self._given("temperature", defaults.temperature),
            top_k=self._given("top_k", defaults.top_k),
            top_p=self._given("top_p", defaults.top_p),
            min_p=self._given("min_p", defaults.min_p),
        )
        self.window: int | str = self._given("window", min(defaults.window, manifest.window_graph.max_window))
        self.guidance = self._given("guidance", defaults.guidance)
        self.drafting = self._drafting(self._given("drafting", defaults.drafting))
        self.length: int = self._given("length", manifest.length)
        if self.length != manifest.length and manifest.tokenizer is None:
            raise InvalidArgument(f"length is {self.length}, but this model makes exactly {manifest.length} tokens")
        self.tokenizer = None if manifest.tokenizer is None else Tokenizer(self.bundle.folder / manifest.tokenizer)
        tokens = self._prompts()
        self.prompts = [tokens[i % len(tokens)] for i in range(arguments.count)]
        if self.guidance != 1 and manifest.unconditional_prompt is None:
            raise InvalidArgument(
                f"guidance is {self.guidance}, but the bundle {manifest.name} has no unconditional prompt; leave it at 1"
            )

    def _given(self, name: str, default: Any) -> Any:
        value = getattr(self.arguments, name)
        return default if value is None else value

    def _prompts(self) -> list[tuple[int, ...]]:
        """The prompts that were asked for: names, or one text for a model that reads text."""
        asked, manifest = self.arguments.prompt, self.bundle.manifest
        if self.tokenizer is not None:
            if asked is None:
                raise InvalidArgument(f"the model {manifest.name} continues text: give one with --prompt")
            return [tuple(self.tokenizer.encode(asked))]
        names = list(manifest.prompts) if asked is None else asked.split(",")
        if not names:
            raise InvalidArgument(
                f"the bundle {manifest.name} has neither prompts nor a tokenizer; decode it from Python, with tokens"
            )
        return [manifest.find_prompt(name.strip()) for name in names]

    @property
    def samplings(self) -> list[Sampling]:
        """The settings of every prompt: those asked for, and the layout the model was trained with."""
        if not self.bundle.manifest.layout:
            return [self.sampling] * len(self.prompts)
        layout = Layout(self.bundle.manifest.layout)
        return [replace(self.sampling, processors=(layout.processor(len(prompt)),)) for prompt in self.prompts]

    def _drafting(self, specification: str) -> Drafting:
        """``random`` is over the tokens that the model can generate."""
        found = find_drafting(specification)
        generated = self.bundle.manifest.generated_tokens
        return Random(generated.first, generated.count) if found == Random() else found

    def open_provider(self) -> LogitsProvider:
        """A provider of its own, guided if asked for."""
        from coupled_sampling.backends.ort import OrtProvider

        rows = min(self.arguments.batch_size, self.arguments.count)
        unconditional = self.bundle.manifest.unconditional_prompt
        if self.guidance == 1 or unconditional is None:
            return OrtProvider.open(self.bundle, batch_size=rows, threads=self.arguments.threads)
        inner = OrtProvider.open(self.bundle, batch_size=2 * rows, threads=self.arguments.threads)
        return GuidedProvider(inner, self.guidance, unconditional)

    def has_step_graph(self, method: str) -> bool:
        """Whether a step graph of the bundle can do what was asked for."""
        if self.arguments.step == "host":
            return False
        graph = self.bundle.step_graph(method, warped=self.sampling.warps, guided=self.guidance != 1)
        found = graph is not None and not self.bundle.manifest.layout
        if self.arguments.step == "graph" and not found:
            raise InvalidArgument(
                f"step is 'graph', but the bundle {self.bundle.manifest.name} has no step graph for {method} with these settings"
                f"{' (a layout needs the host)' if self.bundle.manifest.layout else ''}; leave --step at auto"
            )
        return found

    def open_step(self, method: str) -> CoupledStep:
        """A step graph's step of its own."""
        from coupled_sampling.backends.ort_step import OrtStep

        return OrtStep.open(
            self.bundle,
            method,
            min(self.arguments.batch_size, self.arguments.count),
            self.arguments.threads,
            warped=self.sampling.warps,
            guidance=self.guidance,
        )

    def open_model(self, method: str) -> LogitsProvider | CoupledStep:
        """A step graph's step if there is one for ``method`` and it may be used, else a provider."""
        return self.open_step(method) if self.has_step_graph(method) else self.open_provider()

    def make_step(self, provider: LogitsProvider, method: Method) -> CoupledStep:
        """The step to verify: what `generate` would use. ``provider`` is left alone if that is a step graph."""
        return self.open_step(method.name) if self.has_step_graph(method.name) else HostStep(provider, method)

    def compare(
        self, methods: Sequence[str], *, against_ar: bool, progress: Callable[[str, int], object]
    ) -> list[MethodResult]:
        """Run ``methods`` on the prompts."""
        return compare(
            self.open_model,
            self.prompts,
            methods,
            length=self.length,
            window=self.window,
            drafting=self.drafting,
            seed=self.arguments.seed,
            sampling=self.samplings,
            stop=self.bundle.manifest.stop_tokens,
            against_ar=against_ar,
            progress=progress,
        )

    def images(self, tokens: Sequence[NDArray[np.int64]]) -> NDArray[np.uint8]:
        """Pictures uint8 (N, H, W, C)."""
        from coupled_sampling.backends.pixels import PixelDecoder

        return PixelDecoder.open(self.bundle, self.arguments.threads)(np.stack(tokens))

    def texts(self, tokens: Sequence[NDArray[np.int64]]) -> list[str]:
        """Texts, if that is what the model makes."""
        return [] if self.tokenizer is None else [self.tokenizer.decode(row.tolist()) for row in tokens]

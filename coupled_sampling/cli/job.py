"""What one run of the command line works on: a bundle, with the settings that were given over the bundle's defaults."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.backends import Place, check_model, open_model
from coupled_sampling.backends.ort.pixels import PixelDecoder
from coupled_sampling.backends.trt.progress import progress_bar
from coupled_sampling.bundles.layouts import Layout
from coupled_sampling.bundles.opening import Bundle, open_bundle
from coupled_sampling.bundles.text import Tokenizer
from coupled_sampling.cli.comparison import MethodResult, compare
from coupled_sampling.contracts import Closeable, CoupledStep, LogitsProvider, OpenProvider, OpenStep, Runs, Sampling
from coupled_sampling.drafting import Drafting, Random, find_drafting
from coupled_sampling.errors import InvalidArgument
from coupled_sampling.host_step import HostStep
from coupled_sampling.methods import Method

__all__ = ["Job", "describe_runs"]


def describe_runs(ran: Mapping[str, Runs]) -> str:
    """A line for each way in which methods ran."""
    ways = dict.fromkeys(ran.values())
    return "\n".join(f"{', '.join(m for m, found in ran.items() if found == way)}: {way}" for way in ways)


class Job:
    """A bundle with the command line's settings over the bundle's defaults.

    Attributes
    ----------
    ran
        By method, what it ran on, from the moment on that it was opened.
    """

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
        self._check_place()
        self.ran: dict[str, Runs] = {}
        self._pixels: PixelDecoder | None = None

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

    def _rows(self) -> int:
        return min(int(self.arguments.batch_size), int(self.arguments.count))

    @property
    def _max_window(self) -> int | None:
        return self.window if isinstance(self.window, int) and self.window > 0 else None

    def _check_place(self) -> None:
        """Refuse what cannot run so, for every method, before the first of them is opened."""
        for method in self._asked():
            check_model(**self._wanted(method), step=self.arguments.step)

    def _asked(self) -> list[str]:
        """The methods that were asked for; `compare` may run ``ar`` besides."""
        given = (
            getattr(self.arguments, "methods", None) or self.arguments.method or self.bundle.manifest.defaults.method
        )
        return [name.strip() for name in given.split(",")]

    def _wanted(self, method: str | None) -> dict[str, Any]:
        """What to open, as `coupled_sampling.backends.open_model` takes it."""
        given = self.arguments
        place = Place(given.backend, given.device, given.threads, given.cuda_graphs, given.engines, self._max_window)
        return {
            "bundle": self.bundle, "place": place, "rows": self._rows(), "method": method, "guidance": self.guidance,
            "warped": self.sampling.warps,
        }  # fmt: skip

    def step_of(self, method: str) -> str:
        """Where steps of ``method`` are decided: "host", "graph" or "kernels"."""
        asked = self.arguments.step
        if asked == "graph" and method not in self._asked():
            # What others are measured against: nobody asked it to be a graph.
            with contextlib.suppress(InvalidArgument):
                return check_model(**self._wanted(method), step=asked)
            asked = "auto"
        return check_model(**self._wanted(method), step=asked)

    def open_provider(self) -> OpenProvider:
        """A provider of its own, guided if asked for."""
        with progress_bar("building the engine") as progress:
            return cast(OpenProvider, open_model(**self._wanted(None), progress=progress))

    def open_model(self, method: str) -> OpenStep:
        """A step of ``method`` of its own."""
        with progress_bar("building the engine") as progress:
            step = cast(OpenStep, open_model(**self._wanted(method), step=self.step_of(method), progress=progress))
        self.ran[method] = step.runs
        return step

    def make_step(self, provider: LogitsProvider, method: Method) -> CoupledStep:
        """The step to verify: what `generate` would use. ``provider`` is used if the library decides; else it is let go."""
        if self.step_of(method.name) == "host":
            step = HostStep(provider, method)
            self.ran[method.name] = step.runs
            return step
        if isinstance(provider, Closeable):
            provider.close()  # another model is opened, and one of them is enough on a GPU
        return self.open_model(method.name)

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

    def open_pixels(self) -> PixelDecoder:
        """The decoder of pictures, which is opened once."""
        if self._pixels is None:
            self._pixels = PixelDecoder.open(self.bundle, self.arguments.threads)
        return self._pixels

    def images(self, tokens: Sequence[NDArray[np.int64]]) -> NDArray[np.uint8]:
        """Pictures uint8 (N, H, W, C)."""
        return self.open_pixels()(np.stack(tokens))

    def texts(self, tokens: Sequence[NDArray[np.int64]]) -> list[str]:
        """Texts, if that is what the model makes."""
        return [] if self.tokenizer is None else [self.tokenizer.decode(row.tolist()) for row in tokens]

"""What one run of the command line works on: a bundle, with the settings that were given over the bundle's defaults."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.backends.opening import (
    BACKENDS,
    ENGINES,
    check_backend,
    check_step_graph,
    close_provider,
    open_graph_step,
    open_kernel_step,
    open_provider,
    require_kernels,
    what_runs,
)
from coupled_sampling.backends.ort.pixels import PixelDecoder
from coupled_sampling.backends.trt.progress import progress_bar
from coupled_sampling.backends.trt.step_graph import check_step
from coupled_sampling.bundles.layouts import Layout
from coupled_sampling.bundles.opening import Bundle, open_bundle
from coupled_sampling.bundles.text import Tokenizer
from coupled_sampling.cli.comparison import MethodResult, compare
from coupled_sampling.contracts import CoupledStep, LogitsProvider, Sampling
from coupled_sampling.drafting import Drafting, Random, find_drafting
from coupled_sampling.errors import InvalidArgument
from coupled_sampling.guidance import GuidedProvider
from coupled_sampling.host_step import HostStep
from coupled_sampling.methods import Method

__all__ = ["Job", "Ran", "describe_runs"]


@dataclass(frozen=True)
class Ran:
    """What a method really ran on, and where its steps were decided."""

    execution_provider: str
    device: int | None
    cuda_graphs: bool
    step: str

    def record(self) -> dict[str, Any]:
        """For ``--json``."""
        return asdict(self)

    def __str__(self) -> str:
        """For people."""
        gpu = "" if self.device is None else f" (GPU {self.device}{', CUDA graphs' * self.cuda_graphs})"
        return f"on {self.execution_provider}{gpu}, step: {self.step}"


def describe_runs(ran: Mapping[str, Ran]) -> str:
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
        self.ran: dict[str, Ran] = {}
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
        """Refuse what the back end does not have."""
        backend, step = self.arguments.backend, self.arguments.step
        arguments = self.arguments
        check_backend(backend, arguments.threads, arguments.engines, arguments.device, arguments.cuda_graphs)
        if step == "kernels" and backend == "cpu":
            raise InvalidArgument(
                f"step is 'kernels', but backend is 'cpu'; CUDA kernels decide where logits are on a GPU: choose --backend "
                f"{', '.join(BACKENDS[1:])}, or leave --step at auto"
            )
        if step == "graph":
            check_step_graph(backend, arguments.cuda_graphs)
        if self._makes_step_engines:
            for method in self._asked():  # before an engine is built for the first of them
                check_step(method, self.guidance, warped=self.sampling.warps)
        if step == "kernels" and self.bundle.manifest.layout:
            raise InvalidArgument(
                f"step is 'kernels', but the bundle {self.bundle.manifest.name} has a layout, which needs the host; leave "
                "--step at auto"
            )
        if (
            backend != "cpu"
            and (step not in ("host", "graph") or self._makes_step_engines)
            and not self.bundle.manifest.layout
        ):
            require_kernels(arguments.device or 0)  # before an engine is built for what can be done without them

    @property
    def _makes_step_engines(self) -> bool:
        """Whether steps are to be made by engines of TensorRT's own, whatever step graphs the bundle has."""
        return self.arguments.step == "graph" and self.arguments.backend in ENGINES

    def _asked(self) -> list[str]:
        """The methods that were asked for; `compare` may run ``ar`` besides."""
        given = (
            getattr(self.arguments, "methods", None) or self.arguments.method or self.bundle.manifest.defaults.method
        )
        return [name.strip() for name in given.split(",")]

    def step_of(self, method: str) -> str:
        """Where steps of ``method`` are decided: "host", "graph" or "kernels"."""
        asked = self.arguments.step
        if asked == "host":
            return "host"
        if self.arguments.backend != "cpu" and asked != "graph":
            return "host" if self.bundle.manifest.layout else "kernels"
        if self._makes_step_engines and not self.bundle.manifest.layout:
            # What others are measured against, and nobody asked to be a graph: one token in each pass.
            return "kernels" if method not in self._asked() else "graph"
        graph = self.bundle.step_graph(method, warped=self.sampling.warps, guided=self.guidance != 1)
        found = graph is not None and not self.bundle.manifest.layout
        if asked == "graph" and not found:
            raise InvalidArgument(
                f"step is 'graph', but the bundle {self.bundle.manifest.name} has no step graph for {method} with these settings"
                f"{' (a layout needs the host)' if self.bundle.manifest.layout else ''}; leave --step at auto"
            )
        return "graph" if found else "host"

    def _place(self) -> dict[str, Any]:
        """Where models run and how, as all functions take it that open one."""
        given = {name: getattr(self.arguments, name) for name in ("threads", "device", "cuda_graphs", "engines")}
        return {"max_window": self._max_window, **given}

    def open_provider(self) -> LogitsProvider:
        """A provider of its own, guided if asked for."""
        unconditional = self.bundle.manifest.unconditional_prompt
        guided = self.guidance != 1 and unconditional is not None
        with progress_bar("building the engine") as progress:
            rows = 2 * self._rows() if guided else self._rows()
            provider = open_provider(self.bundle, self.arguments.backend, rows, progress=progress, **self._place())
        return GuidedProvider(provider, self.guidance, unconditional) if guided and unconditional else provider

    def open_step(self, method: str) -> CoupledStep:
        """A step of its own that is not the library's: a step graph's, or of CUDA kernels."""
        what = self.bundle, method, self.arguments.backend, self._rows()
        with progress_bar("building the engine") as progress:
            settings: dict[str, Any] = {"guidance": self.guidance, "progress": progress, **self._place()}
            if self.step_of(method) == "graph":
                return open_graph_step(*what, warped=self.sampling.warps, **settings)
            return open_kernel_step(*what, **settings)

    def open_model(self, method: str) -> LogitsProvider | CoupledStep:
        """What ``method`` runs on: a provider where the library decides, else a step."""
        where = self.step_of(method)
        model = self.open_provider() if where == "host" else self.open_step(method)
        self.ran[method] = Ran(*what_runs(model), where)
        return model

    def make_step(self, provider: LogitsProvider, method: Method) -> CoupledStep:
        """The step to verify: what `generate` would use. ``provider`` is used if the library decides; else it is let go."""
        where = self.step_of(method.name)
        if where != "host":
            # Another model is opened, which leaves its logits where they are, and one of them is enough on a GPU.
            close_provider(provider)
        step = HostStep(provider, method) if where == "host" else self.open_step(method.name)
        self.ran[method.name] = Ran(*what_runs(step), where)
        return step

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

"""`TrtStep`: a whole step of ``scd-match`` as one engine of TensorRT, and from the second step of a shape on as one CUDA graph.

A step is one small upload (the window and whose noise it wants), one kernel that makes the noise where the engine reads it, the
engine, and one small download (tokens, counts and each slot's largest logit). All of that is captured together: what changes from
step to step lies in memory. How an engine is run is in `coupled_sampling.backends.trt.runner`.

The engine is built from the bundle's step graph for TensorRT (``docs/step-graph.md``). Its noise is an input for each slot of the
window, since TensorRT's caches have 4 axes and the ring of other step graphs has 3; and it has no float64, which TensorRT
would narrow without an error. The other methods need one or the other.

Noise is that of `coupled_sampling.noise`, by the kernel ``window_noise``; a position's is made anew in every step that decides it,
so none is ever kept that could belong to another. Tokens are those of `HostStep` over the same logits, save where two floats tie.

Built, run on a stand-in, never executed on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.backends.cuda import compile as compiling
from coupled_sampling.backends.cuda.kernels import ROW, Launcher, window_noise
from coupled_sampling.backends.cuda.pinned_launcher import PinnedLauncher
from coupled_sampling.backends.cuda.streams import Stream
from coupled_sampling.backends.place import Place, step_graphs_command
from coupled_sampling.backends.trt.options import BuildOptions, bucket_of
from coupled_sampling.backends.trt.progress import Progress
from coupled_sampling.backends.trt.runner import Fit, OnEngine, Runner
from coupled_sampling.backends.window_tensors import WindowTensor, window_tensors
from coupled_sampling.bounds import check_window
from coupled_sampling.bundles.manifest import Manifest
from coupled_sampling.bundles.opening import Bundle, open_bundle
from coupled_sampling.contracts import Integers, Outcome, Window
from coupled_sampling.errors import BundleError
from coupled_sampling.methods import find_method
from coupled_sampling.noise import CounterNoise
from coupled_sampling.refusals import Refusals
from coupled_sampling.requests import Request
from coupled_sampling.target import close_rows

__all__ = ["STEP_METHOD", "TrtStep", "missing_step_graph", "step_tensors"]

STEP_METHOD = "scd-match"
"""The method whose steps TensorRT makes."""

_COUNTS = ("known", "recycled", "fresh")
_INPUTS = ("input_ids", "start", *_COUNTS, "draws", "temperature")
_OUTPUTS = ("tokens", "committed", "highest_logits")
_REFUSALS = Refusals(
    "a step in TensorRT",
    logprobs="use HostStep over TrtProvider (--step host)",
    guidance="use HostStep over a GuidedProvider (--step host)",
    processors="they need the logits on the host: use HostStep over TrtProvider (--step host)",
    warps=(
        "warped step graphs sum in float64, which TensorRT narrows: use KernelStep over TrtProvider (--step kernels)"
    ),
)


class TrtStep(OnEngine):
    """A `coupled_sampling.contracts.CoupledStep` over a bundle.

    `coupled_sampling.backends.open_model` makes one; `open` makes one with an engine built by options of its own.

    Attributes
    ----------
    method, vocab_size, batch_size, max_length, max_window
        As in the contract; the method is ``scd-match``, ``batch_size`` and ``max_window`` are the largest buckets.
    noise
        The noise it draws from, as far as the loop and drafting rules are concerned.
    bundle, flavour, device, stream, options, engine
        What runs where. Work is on ``stream``.
    runs
        What runs it.
    fingerprint
        Of the engine in use.
    built_because
        Why the engine was built when this step was opened; "" if it was there.

    Notes
    -----
    Top-k, top-p, min-p and logits processors are refused: use `KernelStep` or `HostStep`. A step that was lost on the way to the
    loop (Ctrl-C) can be done again. One step must not be called from two threads at once.

    Examples
    --------
    The bundle must have the step graph that TensorRT can run:

    >>> from coupled_sampling import generate
    >>> from coupled_sampling.backends import Place
    >>> from coupled_sampling.backends.trt import BuildOptions, TrtStep
    >>> TrtStep.open("fashion", Place("tensorrt"), BuildOptions())
    Traceback (most recent call last):
    coupled_sampling.errors.BundleError: the bundle fashion has no step graph for TensorRT; make one with ...

    Not run here, since it needs a GPU with TensorRT:

    >>> with TrtStep.open("fashion-steps", Place("tensorrt"), BuildOptions()) as step:  # doctest: +SKIP
    ...     pictures = generate(step, [[258]], length=196, window=16)
    """

    def __init__(self, runner: Runner, launcher: Callable[[Stream], Launcher] = PinnedLauncher) -> None:
        super().__init__(runner, "graph")
        self.method = find_method(STEP_METHOD)
        self.noise = CounterNoise()
        self._launcher = launcher(runner.stream)
        self._rows_host = self.device.pinned((self.batch_size,), ROW)
        self._rows = self.device.allocate(self._rows_host.size)

    @classmethod
    def open(
        cls, bundle: Bundle | str | Path, place: Place, options: BuildOptions, *, progress: Progress | None = None
    ) -> Self:
        """A step whose engine is built by ``options``, if there is none that fits.

        Parameters
        ----------
        bundle
            A `Bundle`, or what `coupled_sampling.open_bundle` takes, with a step graph for TensorRT.
        place, options, progress
            As for `coupled_sampling.backends.trt.TrtProvider.open`.

        Raises
        ------
        BundleError
            The bundle has no step graph for TensorRT; names the command that makes it.
        MissingDependency
            NVRTC is missing, which is looked for before an engine is built.
        CudaError, EngineError, InvalidArgument, MissingDependency, OutputError, ProviderError
            As from `coupled_sampling.backends.trt.runner.Runner.open`.
        """
        opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
        graph = opened.step_graph(STEP_METHOD, noise="window")
        if graph is None:
            raise BundleError(missing_step_graph(opened))
        compiling.require_nvrtc()
        tensors, crossing = step_tensors(opened.manifest), {*_INPUTS, *_OUTPUTS}
        return cls(Runner.open(opened, tensors, crossing, place, options, progress, graph.name))

    def takes(self, request: Request) -> str | None:
        """What the engine cannot do. See `coupled_sampling.contracts.CoupledStep.takes`."""
        return _REFUSALS.takes(request)

    def begin(self, row: int, request: Request) -> None:
        """Nothing is kept that belongs to a sequence."""

    def step(self, window: Window) -> Outcome:
        """Forward ``window`` and decide it. See `coupled_sampling.contracts.CoupledStep.step`.

        Raises
        ------
        InvalidArgument
            The window is out of bounds or asks for what the engine does not do; nothing was run.
        ProviderError
            TensorRT or CUDA failed.
        """
        check_window(self, window.tokens, window.start)
        _REFUSALS.check(window)
        runner, width = self._runner, window.tokens.shape[1]
        fit = runner.begin(window.start, width, bucket_of(self.options.window_buckets, width))
        runner.fill(fit, window.tokens)
        for name in _COUNTS:
            runner.value(name, fit)[...] = getattr(window, name)
        runner.value("draws", fit)[...] = self._fill_rows(window)
        runner.value("temperature", fit)[...] = [
            1.0 if info is None else info.sampling.temperature for info in window.rows
        ]
        runner.run(fit, before=lambda: self._make_noise(fit))
        self.stream.synchronize()
        tokens, committed, highest = (runner.value(name, fit) for name in _OUTPUTS)
        return close_rows(window, tokens[:, :width].copy(), committed.copy(), highest[:, :width])

    @property
    def prompt_chunk(self) -> int:
        """The largest window bucket. See `coupled_sampling.contracts.ReadsPrompts`."""
        return self.max_window

    @property
    def touches_all(self) -> bool:
        """An engine runs all rows from the first on. See `coupled_sampling.contracts.PromptReader`."""
        return True

    @property
    def keeps_prefixes(self) -> bool:
        """A row's caches depend on its tokens alone. See `coupled_sampling.contracts.PromptReader`."""
        return True

    def read(self, tokens: Integers, start: Integers, rows: range) -> None:
        """A step that decides nothing. See `coupled_sampling.contracts.PromptReader.read`."""
        zeros, nothing = np.zeros(len(start), np.int64), [None] * len(start)
        draws = np.zeros(len(start), np.bool_)
        self.step(Window(tokens, start, zeros, zeros, zeros, draws, zeros, nothing, list(tokens), nothing))

    def _fill_rows(self, window: Window) -> NDArray[np.int64]:
        """Whose noise is wanted where, for the kernel; returns which rows have some, and so decide."""
        table = self._rows_host.values[: len(window.rows)]
        table[...] = 0
        for name in ("start", *_COUNTS):
            table[name] = getattr(window, name)
        for b, info in enumerate(window.rows):
            if info is not None and window.draws[b]:
                table["draws"][b], table["seed"][b], table["sequence"][b] = 1, info.seed, info.sequence
        return np.asarray(table["draws"])

    def _make_noise(self, fit: Fit) -> None:
        """Queue what makes the engine's noise."""
        rows, width, _ = fit.shape
        self.stream.upload(self._rows, self._rows_host, rows * ROW.itemsize)
        weights = self._runner.memories["noise"].address
        window_noise(self._launcher, self._rows.address, rows, width, self.vocab_size, weights)

    def _run_blank(self, rows: int, width: int) -> None:
        self.read(np.zeros((rows, width), np.int64), np.zeros(rows, np.int64), range(rows))

    def close(self) -> None:
        """See `OnEngine.close`."""
        super().close()
        for memory in (self._rows, self._rows_host):
            memory.free()


def missing_step_graph(bundle: Bundle) -> str | None:
    """That a bundle has no step graph for TensorRT, and the command that makes it; None if it has one."""
    if bundle.step_graph(STEP_METHOD, noise="window") is not None:
        return None
    return (
        f"the bundle {bundle.manifest.name} has no step graph for TensorRT; make one with "
        f"`{step_graphs_command(bundle, STEP_METHOD)}`"
    )


def step_tensors(manifest: Manifest) -> dict[str, WindowTensor]:
    """All inputs and outputs of the step graph by name; ``docs/step-graph.md`` is the reference."""
    tensors = window_tensors(manifest)
    del tensors["logits"]
    rows, sites = ("rows",), ("rows", "slots")
    tensors |= {name: WindowTensor(True, "int64", rows) for name in ("known", "recycled", "fresh")}
    return tensors | {
        "draws": WindowTensor(True, "bool", rows),
        "temperature": WindowTensor(True, "float32", rows),
        "noise": WindowTensor(True, "float32", (*sites, manifest.vocab_size)),
        "tokens": WindowTensor(False, "int64", sites),
        "committed": WindowTensor(False, "int64", rows),
        "highest_logits": WindowTensor(False, "float32", sites),
    }

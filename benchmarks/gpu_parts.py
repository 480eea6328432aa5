"""Kernels, steps and decoding with a model, for ``first_light_gpu.py``: each part gives its figures one by one."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from gpu_frame import Figure
from gpu_machine import opened

from coupled_sampling import Decoder, Request, Sampling, open_bundle
from coupled_sampling.backends import Place, open_model
from coupled_sampling.backends.cuda.compile import CHUNK, require_nvrtc
from coupled_sampling.backends.cuda.device import Device
from coupled_sampling.backends.cuda.kernel_step import KernelStep
from coupled_sampling.backends.cuda.kernels import SHARING, Launcher, decide
from coupled_sampling.backends.cuda.pinned_launcher import PinnedLauncher
from coupled_sampling.backends.cuda.pointers import DevicePointer
from coupled_sampling.backends.cuda.streams import Event, Stream
from coupled_sampling.backends.place import Wanted
from coupled_sampling.contracts import CoupledStep, Integers, LogitsProvider, OpenProvider, Outcome, Runs, Window

METHODS = ("ar", "sjd", "scd-maximal", "scd-gumbel", "scd-match")
DECODED = ("ar", "scd-gumbel", "scd-match")
SAMPLINGS = {"plain": Sampling(), "top-k 2000, top-p 0.95": Sampling(top_k=2000, top_p=0.95)}
BLOCKS_PER_SLOT = (1, 2, 4, 8, 16)
BACKENDS = ("cuda", "cuda-graphs", "step-graph", "tensorrt", "tensorrt-rtx")
"""What decodes with the model: back ends of the library, ``cuda`` also with CUDA graphs, and step graphs on CUDA."""
SPREAD = 2**28
"""Bytes of logits that are read in turn: more than any GPU's cache holds."""


class TimedLauncher(PinnedLauncher):
    """A launcher that knows the last decision, and without graphs marks on the stream where the kernels of each step begin and end.

    ``blocks`` is how many share a slot, 0 for as many as `blocks_per_slot` says.
    """

    def __init__(self, stream: Stream, blocks: int = 0, *, cuda_graphs: bool = False) -> None:
        super().__init__(stream, cuda_graphs=cuda_graphs)
        # A step that is launched as a graph does not pass here.
        self.timed, self.blocks, self.is_marking = stream, blocks, not cuda_graphs
        self.decision: Any = None
        self.marks: list[tuple[Event, Event]] = []

    def launch(self, kernel: str, grid: tuple[int, int], parameters: Any) -> None:
        if self.blocks:
            parameters = parameters.copy()
            parameters["parts"] = self.blocks
            grid = (int(parameters["width"]) * (self.blocks if kernel in SHARING else 1), grid[1])
        self.decision = parameters.copy()
        if kernel == "measure" and self.is_marking:
            self._begun = self.timed.record()
        super().launch(kernel, grid, parameters)
        if kernel == "decide" and self.is_marking:
            self.marks.append((self._begun, self.timed.record()))


class FixedLogits:
    """A provider whose logits lie on the device from the start: slot j's are the same in every call, at addresses in turn."""

    batch_size = 1

    def __init__(self, launcher: TimedLauncher, width: int, vocab_size: int, max_length: int, spread: int) -> None:
        self.vocab_size, self.max_length, self.max_window = vocab_size, max_length, width
        logits = 2.5 * np.random.default_rng(0).standard_normal((1, width, vocab_size), np.float32)
        self.pointers = [launcher.allocate(logits.nbytes) for _ in range(max(1, spread // logits.nbytes))]
        first, *others = self.pointers
        launcher.upload(first, logits)
        for pointer in others:
            launcher.timed.device.call("cuMemcpyDtoDAsync", pointer, first, logits.nbytes, launcher.stream)
        self.calls = 0

    def forward(self, tokens: Integers, start: Integers) -> DevicePointer:
        self.calls += 1
        pointer = self.pointers[self.calls % len(self.pointers)]
        return DevicePointer(pointer, (1, tokens.shape[1], self.vocab_size), "float32")


class TimedStep:
    """A coupled step that notes how long every full window took."""

    def __init__(self, step: KernelStep, width: int) -> None:
        self.step_, self.width, self.method, self.noise = step, width, step.method, step.noise
        self.vocab_size, self.batch_size = step.vocab_size, step.batch_size
        self.max_length, self.max_window = step.max_length, step.max_window
        self.seconds: list[float] = []
        self.full: list[bool] = []

    @property
    def runs(self) -> Runs:
        return self.step_.runs

    def close(self) -> None:
        self.step_.close()

    def takes(self, request: Request) -> str | None:
        return self.step_.takes(request)

    def begin(self, row: int, request: Request) -> None:
        self.step_.begin(row, request)

    def step(self, window: Window) -> Outcome:
        began = time.perf_counter()
        outcome = self.step_.step(window)
        self.seconds.append(time.perf_counter() - began)
        self.full.append(window.tokens.shape[1] == self.width)
        return outcome


def floor_bytes(method: str, width: int, vocab_size: int) -> int:
    """What the kernels must move at least."""
    slots = 1 if method == "ar" else width
    writes_laws = method in ("sjd", "scd-maximal", "scd-gumbel")
    return 4 * slots * vocab_size * (2 if writes_laws else 1)


def replayed(stream: Stream, launcher: TimedLauncher, pointers: list[int], repeats: int) -> float:
    """Milliseconds of the kernels of the launcher's last decision, one row, when nothing waits for the host.

    A CUDA graph decides once for each address of logits. A decision can be made again: it writes nothing that it reads.
    """
    launcher.is_marking, decision = False, launcher.decision.copy()
    with stream.capture() as graph:
        for pointer in pointers:
            decision["logits"] = pointer
            decide(launcher, decision, 1)
    times = []
    for _ in range(repeats + 2):
        began = stream.record()
        stream.launch(graph)
        ended = stream.record()
        stream.synchronize()
        times.append(ended.milliseconds_since(began) / len(pointers))
    graph.free()
    return statistics.median(times[2:])


def run_steps(
    launcher: TimedLauncher, provider: FixedLogits, method: str, sampling: Sampling, steps: int
) -> tuple[KernelStep, list[int], list[float]]:
    """The step, which of its calls had full windows, and how many seconds each of its calls took."""
    used = 1 if method == "ar" else provider.max_window
    step = KernelStep(provider, method, launcher)
    timed = TimedStep(step, used)
    run: CoupledStep = timed
    decoder = Decoder(run, window=used, drafting="repeat")
    sequence = 0
    while sum(timed.full) < steps + 5:
        if not decoder.active + decoder.waiting:
            decoder.add(Request([sequence % provider.vocab_size], 2048, sequence=sequence, sampling=sampling))
            sequence += 1
        decoder.step()
    return step, [i for i, is_full in enumerate(timed.full) if is_full][5:], timed.seconds


def decisions(
    stream: Stream,
    method: str,
    sampling: Sampling,
    steps: int,
    width: int,
    vocab_size: int,
    blocks: int = 0,
    spread: int = SPREAD,
) -> dict[str, Any]:
    """Median times of the kernels and of whole steps, without a model."""
    launcher = TimedLauncher(stream, blocks)
    provider = FixedLogits(launcher, width, vocab_size, 4096, spread)
    step, full, _ = run_steps(launcher, provider, method, sampling, steps)
    stream.synchronize()
    launched = [end.milliseconds_since(begin) for begin, end in launcher.marks]
    shared_by = int(launcher.decision["parts"])
    kernels = replayed(stream, launcher, provider.pointers, max(3, steps // len(provider.pointers)))
    step.close()
    launcher = TimedLauncher(stream, blocks, cuda_graphs=True)
    provider = FixedLogits(launcher, width, vocab_size, 4096, 0)
    step, full_again, seconds = run_steps(launcher, provider, method, sampling, steps)
    step.close()
    whole = statistics.median(1e3 * seconds[i] for i in full_again)
    return {
        "method": method, "blocks_per_slot": shared_by, "chosen": not blocks,
        "kernels_ms": kernels, "launched_ms": statistics.median(launched[i] for i in full),
        "floor_bytes": floor_bytes(method, width, vocab_size), "step_ms": whole, "overhead_ms": whole - kernels,
    }  # fmt: skip


def random_bundle(folder: Path, layers: int, step_graphs: tuple[str, ...], compute: str) -> tuple[Path, int]:
    """The bundle of a random checkpoint, with step graphs for some methods, and how many parameters it has."""
    from coupled_sampling.export import ExportSettings, Storage, export_checkpoint
    from export import POSITIONS, write_checkpoint

    source = folder / "checkpoint"
    source.mkdir()
    parameters, _ = write_checkpoint(source, layers)
    settings = ExportSettings(storage=Storage(compute, compute), max_length=POSITIONS, step_graphs=step_graphs)
    export_checkpoint(str(source), str(folder / "bundle"), settings)
    return folder / "bundle", parameters


def place_of(backend: str, device: int) -> Place:
    """Where the library runs a model for a back end of this benchmark."""
    if backend.startswith("tensorrt"):
        return Place(backend, device)
    return Place("cuda", device, cuda_graphs=True if backend == "cuda-graphs" else None)


def open_provider(backend: str, bundle: Path, window: int, device: Device) -> tuple[OpenProvider, Stream]:
    """A provider that leaves logits on the GPU, and the stream to decide them on."""
    place = place_of(backend, device.index)
    if backend.startswith("tensorrt"):
        from coupled_sampling.backends.trt import TrtProvider

        provider = TrtProvider.open(bundle, place, engine_options(bundle, window), on_device=True)
        return provider, provider.stream
    from coupled_sampling.backends.ort import cuda

    return cuda.open_provider(Wanted(open_bundle(bundle), place, 1, step="kernels")), Stream(device)


def engine_options(bundle: Path | str, window: int) -> Any:
    """Engines in half precision for one row and windows up to ``window``."""
    from coupled_sampling.backends.trt import BuildOptions

    dtype = open_bundle(bundle).manifest.window_graph.dtype
    precision = "float16" if dtype == "float32" else dtype
    return BuildOptions(row_buckets=(1,), window_buckets=(1, window), precision=precision)


def decoding(provider: LogitsProvider, launcher: Launcher, method: str, window: int, length: int) -> dict[str, Any]:
    """Tokens per second of one sequence that `KernelStep` decides."""
    step = KernelStep(provider, method, launcher)
    found = timed_decoding(step, window, length)
    step.release()  # the next method is decoded with the same provider
    return {"decided_by": "kernels", **found}


def decoding_by_step_graph(
    bundle: Path | str, method: str, window: int, length: int, device: int = 0
) -> dict[str, Any]:
    """Tokens per second of one sequence that the step graph of ``bundle`` decides, run by ONNX Runtime on the GPU."""
    with open_model(bundle, place_of("cuda", device), method=method, step="graph") as step:
        return {"decided_by": "step graph", **timed_decoding(step, window, length)}


def decoding_by_step_engine(backend: str, bundle: Path | str, window: int, length: int, device: int) -> dict[str, Any]:
    """Tokens per second of one sequence whose steps, of ``scd-match``, are each one run of an engine of TensorRT."""
    from coupled_sampling.backends.trt import TrtStep

    with TrtStep.open(bundle, place_of(backend, device), engine_options(bundle, window)) as step:
        return {"decided_by": "step engine", **timed_decoding(step, window, length)}


def timed_decoding(step: CoupledStep, window: int, length: int) -> dict[str, Any]:
    """Tokens per second of one sequence, the second of two runs."""
    for sequence in range(2):
        decoder, steps = Decoder(step, window=window, drafting="repeat"), 0
        decoder.add(Request([1], length, sequence=sequence))
        began = time.perf_counter()
        while decoder.active + decoder.waiting:
            decoder.step()
            steps += 1
        seconds = time.perf_counter() - began
    return {
        "method": step.method.name,
        "window": window,
        "tokens_per_second": length / seconds,
        "tokens_per_step": length / steps,
    }


def of_kernels(arguments: argparse.Namespace, method: str, blocks: tuple[int, ...] = (0,)) -> Iterator[Figure]:
    """Times of a method's kernels; ``blocks`` are numbers of blocks for each slot, 0 for as many as the library takes."""
    device = opened(arguments)
    require_nvrtc()
    stream, sizes = Stream(device), (arguments.steps, arguments.width, arguments.vocab_size)
    for name, sampling in SAMPLINGS.items():
        for count in blocks:
            if not count or sampling == Sampling():
                found = decisions(stream, method, sampling, *sizes, count, arguments.spread)
                yield "decisions", {"sampling": name, **found}


def of_blocks(arguments: argparse.Namespace, method: str) -> Iterator[Figure]:
    """The same with other numbers of blocks for each slot."""
    blocks = tuple(n for n in BLOCKS_PER_SLOT if (n - 1) * CHUNK < arguments.vocab_size)
    yield from of_kernels(arguments, method, blocks)


def of_model(arguments: argparse.Namespace, name: str = "") -> Iterator[Figure]:
    engines = any(backend.startswith("tensorrt") for backend in arguments.backends)
    graphs = DECODED if "step-graph" in arguments.backends else ("scd-match",) if engines else ()
    _, parameters = random_bundle(arguments.folder, arguments.layers, graphs, arguments.compute)
    yield "parameters", parameters


def of_decoding(arguments: argparse.Namespace, backend: str) -> Iterator[Figure]:
    device = opened(arguments)
    bundle, window = arguments.folder / "bundle", arguments.window
    wanted = [(method, 1 if method == "ar" else window) for method in DECODED]
    if backend == "step-graph":
        for method, width in wanted:
            found = decoding_by_step_graph(bundle, method, width, arguments.length, device.index)
            yield "decoding", {"backend": backend, **found}
        return
    began = time.perf_counter()
    provider, stream = open_provider(backend, bundle, window, device)
    took = time.perf_counter() - began
    launcher = PinnedLauncher(stream)
    for method, width in wanted:
        found = decoding(provider, launcher, method, width, arguments.length)
        yield "decoding", {"backend": backend, "runs": str(provider.runs), "opened_seconds": took, **found}
    if backend.startswith("tensorrt"):
        launcher.close()
        provider.close()  # its weights, before those of the engine of whole steps
        found = decoding_by_step_engine(backend, bundle, window, arguments.length, device.index)
        yield "decoding", {"backend": backend, **found}

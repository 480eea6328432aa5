"""Kernels, steps and decoding on a GPU: one table, and the same as JSON.

    python benchmarks/gpu.py [--steps 50] [--length 256] [--window 32] [--backend tensorrt] [--no-model] [--json FILE]

- Bandwidth: a copy within the GPU's memory, bytes read and written.
- Kernels: the four kernels of a step at B = 1, W = 64 (AR: 1), V = 65,536, float32, by the device's own clock, beside the memory
  floor: the time in which the logits are read once, and where the method keeps laws these are written once, at that bandwidth.
  With the number of blocks that share a slot as `blocks_per_slot` has it, and with others for comparison. The logits of one step
  and the next are the same memory: where a cache holds them, the floor is not one.
- Step: a whole `KernelStep` over logits that are there already, by the host's clock, and what it costs beyond its kernels.
- Decoding: a random Llama-shaped model of 1.1 billion parameters made on the spot, tokens per second of AR and SCD, each alone;
  with ``--backend onnxruntime`` by its step graphs (`OrtCudaStep`), too, with ``tensorrt`` SCD-match by an engine of whole steps.
  Random weights accept as they do; how many tokens a step makes is in the table, and of a trained model it is another number.

All figures are medians, but for tokens per second. Written, never run on a GPU.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from coupled_sampling import Decoder, Request, Sampling
from coupled_sampling.backends.cuda.compile import CHUNK
from coupled_sampling.backends.cuda.device import Device
from coupled_sampling.backends.cuda.kernel_step import KernelStep
from coupled_sampling.backends.cuda.kernels import SHARING, DriverLauncher
from coupled_sampling.backends.cuda.pinned_launcher import PinnedLauncher
from coupled_sampling.backends.cuda.pointers import DevicePointer
from coupled_sampling.backends.cuda.streams import Event, Stream
from coupled_sampling.contracts import CoupledStep, Integers, LogitsProvider, Outcome, Window
from coupled_sampling.errors import CoupledSamplingError

METHODS = ("ar", "sjd", "scd-maximal", "scd-gumbel", "scd-match")
SAMPLINGS = {"plain": Sampling(), "top-k 2000, top-p 0.95": Sampling(top_k=2000, top_p=0.95)}
BLOCKS_PER_SLOT = (1, 2, 4, 8, 16)
PACKAGES = (
    "coupled-sampling",
    "cuda-python",
    "nvidia-cuda-nvrtc",
    "onnxruntime-gpu",
    "tensorrt",
    "tensorrt-rtx",
    "numpy",
)


class FixedLogits:
    """A provider whose logits lie on the device from the start: slot j's are the same in every call."""

    batch_size = 1

    def __init__(self, launcher: PinnedLauncher, width: int, vocab_size: int, max_length: int) -> None:
        self.vocab_size, self.max_length, self.max_window = vocab_size, max_length, width
        logits = 2.5 * np.random.default_rng(0).standard_normal((1, width, vocab_size), np.float32)
        self.pointer = launcher.allocate(logits.nbytes)
        launcher.upload(self.pointer, logits)

    def forward(self, tokens: Integers, start: Integers) -> DevicePointer:
        return DevicePointer(self.pointer, (1, tokens.shape[1], self.vocab_size), "float32")


class TimedLauncher(PinnedLauncher):
    """A launcher that marks on the stream where the kernels of each step begin and end.

    ``blocks`` is how many share a slot, 0 for as many as `blocks_per_slot` says; ``shared_by`` how many it was at last.
    """

    def __init__(self, stream: Stream, blocks: int = 0) -> None:
        super().__init__(stream, cuda_graphs=False)  # launches of a graph would not pass here
        self.timed, self.blocks, self.shared_by = stream, blocks, 0
        self.marks: list[tuple[Event, Event]] = []

    def launch(self, kernel: str, grid: tuple[int, int], parameters: Any) -> None:
        if self.blocks:
            parameters = parameters.copy()
            parameters["parts"] = self.blocks
            grid = (int(parameters["width"]) * (self.blocks if kernel in SHARING else 1), grid[1])
        self.shared_by = int(parameters["parts"])
        if kernel == "measure":
            self._begun = self.timed.record()
        super().launch(kernel, grid, parameters)
        if kernel == "decide":
            self.marks.append((self._begun, self.timed.record()))


class TimedStep:
    """A coupled step that notes how long every full window took."""

    def __init__(self, step: KernelStep, width: int) -> None:
        self.step_, self.width, self.method, self.noise = step, width, step.method, step.noise
        self.vocab_size, self.batch_size = step.vocab_size, step.batch_size
        self.max_length, self.max_window = step.max_length, step.max_window
        self.seconds: list[float] = []
        self.full: list[bool] = []

    def begin(self, row: int, prompt: Integers) -> None:
        self.step_.begin(row, prompt)

    def step(self, window: Window) -> Outcome:
        began = time.perf_counter()
        outcome = self.step_.step(window)
        self.seconds.append(time.perf_counter() - began)
        self.full.append(window.tokens.shape[1] == self.width)
        return outcome


def bandwidth(stream: Stream, size: int = 2**30, repeats: int = 10) -> float:
    """Bytes per second that a copy within the device reads and writes."""
    device, seconds = stream.device, []
    one, other = device.allocate(size), device.allocate(size)
    for _ in range(repeats + 2):
        began = stream.record()
        device.call("cuMemcpyDtoDAsync", other.address, one.address, size, stream.handle)
        ended = stream.record()
        stream.synchronize()
        seconds.append(ended.milliseconds_since(began) / 1e3)
    one.free()
    other.free()
    return 2 * size / statistics.median(seconds[2:])


def floor_bytes(method: str, width: int, vocab_size: int) -> int:
    """What the kernels must move at least."""
    slots = 1 if method == "ar" else width
    writes_laws = method in ("sjd", "scd-maximal", "scd-gumbel")
    return 4 * slots * vocab_size * (2 if writes_laws else 1)


def decisions(
    stream: Stream,
    method: str,
    sampling: Sampling,
    steps: int,
    width: int,
    vocab_size: int,
    bytes_per_second: float,
    blocks: int = 0,
) -> dict[str, Any]:
    """Median times of the kernels and of whole steps, without a model."""
    launcher = TimedLauncher(stream, blocks)
    provider = FixedLogits(launcher, width, vocab_size, max_length=4096)
    used = 1 if method == "ar" else width
    step = KernelStep(provider, method, launcher)
    timed = TimedStep(step, used)
    run: CoupledStep = timed
    decoder = Decoder(run, window=used, drafting="repeat")
    sequence = 0
    shared_by = 0  # by whom a slot of a full window is shared
    while sum(timed.full) < steps + 5:
        if not decoder.active + decoder.waiting:
            decoder.add(Request([sequence % vocab_size], 2048, sequence=sequence, sampling=sampling))
            sequence += 1
        decoder.step()
        shared_by = launcher.shared_by if timed.full[-1] else shared_by
    stream.synchronize()
    kernels = [end.milliseconds_since(begin) for begin, end in launcher.marks]
    full = [i for i, is_full in enumerate(timed.full) if is_full][5:]
    kernel = statistics.median(kernels[i] for i in full)
    whole = statistics.median(1e3 * timed.seconds[i] for i in full)
    overhead = statistics.median(1e3 * timed.seconds[i] - kernels[i] for i in full)
    floor = 1e3 * floor_bytes(method, width, vocab_size) / bytes_per_second
    step.close()
    launcher.close()
    return {
        "method": method, "blocks_per_slot": shared_by, "chosen": not blocks,
        "kernels_ms": kernel, "floor_ms": floor, "kernels_over_floor": kernel / floor,
        "step_ms": whole, "overhead_ms": overhead,
    }  # fmt: skip


def random_bundle(folder: Path, layers: int, step_graphs: tuple[str, ...] = ()) -> tuple[Path, int]:
    """The bundle of a random checkpoint, with step graphs for some methods, and how many parameters it has."""
    from coupled_sampling.export import ExportSettings, Storage, export_checkpoint
    from export import POSITIONS, write_checkpoint

    source = folder / "checkpoint"
    source.mkdir()
    parameters, _ = write_checkpoint(source, layers)
    settings = ExportSettings(storage=Storage("float32"), max_length=POSITIONS, step_graphs=step_graphs)
    export_checkpoint(str(source), str(folder / "bundle"), settings)
    return folder / "bundle", parameters


def open_provider(backend: str, bundle: Path, window: int, device: Device) -> tuple[LogitsProvider, Stream]:
    """A provider that leaves logits on the GPU, and the stream to decide them on."""
    if backend == "tensorrt":
        from coupled_sampling.backends.trt import TrtProvider

        provider = TrtProvider.open(bundle, device=device, options=_engine_options(window), on_device=True)
        return provider, provider.stream
    from coupled_sampling.backends.ort_cuda import OrtCudaProvider

    return OrtCudaProvider.open_on_gpu(bundle, on_device=True), Stream(device)


def _engine_options(window: int) -> Any:
    from coupled_sampling.backends.trt import BuildOptions

    return BuildOptions(row_buckets=(1,), window_buckets=(1, window), precision="float16")


def decoding(
    provider: LogitsProvider, launcher: DriverLauncher, method: str, window: int, length: int
) -> dict[str, Any]:
    """Tokens per second of one sequence that `KernelStep` decides."""
    step = KernelStep(provider, method, launcher)
    found = timed_decoding(step, window, length)
    step.close()
    return {"decided_by": "kernels", **found}


def decoding_by_step_graph(bundle: Path, method: str, window: int, length: int) -> dict[str, Any]:
    """Tokens per second of one sequence that the step graph of ``bundle`` decides, run by ONNX Runtime on the GPU."""
    from coupled_sampling.backends.ort_cuda_step import OrtCudaStep

    return {"decided_by": "step graph", **timed_decoding(OrtCudaStep.open_on_gpu(bundle, method), window, length)}


def decoding_by_step_engine(bundle: str | Path, window: int, length: int, device: Device) -> dict[str, Any]:
    """Tokens per second of one sequence whose steps, ``scd-match``, are each an engine of TensorRT."""
    from coupled_sampling.backends.trt import TrtStep

    step = TrtStep.open(bundle, device=device, options=_engine_options(window))
    found = timed_decoding(step, window, length)
    step.close()
    return {"decided_by": "step engine", **found}


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


def versions(device: Device) -> dict[str, Any]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    major, minor = device.compute_capability
    return {
        "gpu": device.name, "compute_capability": f"{major}.{minor}", "memory_bytes": device.memory()[1],
        "driver": int(device.call("cuDriverGetVersion")),
        "python": platform.python_version(), "packages": found,
    }  # fmt: skip


def print_result(result: dict[str, Any]) -> None:
    machine = result["machine"]
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    print(f"{machine['gpu']} ({machine['compute_capability']}), driver for CUDA {machine['driver']}; {packages}")
    print(f"copy within the GPU: {result['bandwidth'] / 1e9:.0f} GB/s")
    print(f"\nB = 1, W = {result['width']}, V = {result['vocab_size']}; ms; * blocks per slot as chosen")
    print(
        f"{'method':<12}{'sampling':<24}{'blocks':>8}{'kernels':>9}{'floor':>8}{'ratio':>7}{'step':>9}{'overhead':>10}"
    )
    for row in result["decisions"]:
        print(
            f"{row['method']:<12}{row['sampling']:<24}{row['blocks_per_slot']:>7}{' *'[row['chosen']]}{row['kernels_ms']:>9.3f}"
            f"{row['floor_ms']:>8.3f}{row['kernels_over_floor']:>7.1f}{row['step_ms']:>9.3f}{row['overhead_ms']:>10.3f}"
        )
    if result["decoding"]:
        print(f"\n{result['parameters'] / 1e9:.2f} billion random parameters, {result['backend']}, one sequence")
        print(f"{'method':<12}{'decided by':<12}{'window':>7}{'tokens/s':>10}{'tokens/step':>13}{'over AR':>9}")
        for row in result["decoding"]:
            ratio = row["tokens_per_second"] / result["decoding"][0]["tokens_per_second"]
            print(
                f"{row['method']:<12}{row['decided_by']:<12}{row['window']:>7}{row['tokens_per_second']:>10.1f}"
                f"{row['tokens_per_step']:>13.2f}{ratio:>9.2f}"
            )


def measure(arguments: argparse.Namespace, device: Device) -> dict[str, Any]:
    stream = Stream(device)
    result: dict[str, Any] = {"machine": versions(device), "bandwidth": bandwidth(stream)}
    result |= {"width": arguments.width, "vocab_size": arguments.vocab_size, "decisions": [], "decoding": []}
    for method in METHODS:
        for name, sampling in SAMPLINGS.items():
            sizes = (arguments.steps, arguments.width, arguments.vocab_size)
            others = [n for n in BLOCKS_PER_SLOT if sampling == Sampling() and (n - 1) * CHUNK < arguments.vocab_size]
            for blocks in (0, *others):
                found = decisions(stream, method, sampling, *sizes, result["bandwidth"], blocks)
                result["decisions"].append({"sampling": name, **found})
    if arguments.model:
        with tempfile.TemporaryDirectory() as name:
            wanted = (("ar", 1), ("scd-gumbel", arguments.window), ("scd-match", arguments.window))
            result["backend"] = arguments.backend
            graphs = tuple(method for method, _ in wanted) if arguments.backend == "onnxruntime" else ()
            bundle, result["parameters"] = random_bundle(Path(name), arguments.layers, graphs)
            provider, used = open_provider(arguments.backend, bundle, arguments.window, device)
            launcher = PinnedLauncher(used)
            for method, window in wanted:
                result["decoding"].append(decoding(provider, launcher, method, window, arguments.length))
            launcher.close()
            del provider  # its weights, before a step graph brings its own
            for method, window in wanted if graphs else ():
                result["decoding"].append(decoding_by_step_graph(bundle, method, window, arguments.length))
            if arguments.backend == "tensorrt":
                found = decoding_by_step_engine(bundle, arguments.window, arguments.length, device)
                result["decoding"].append(found)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=50, help="steps of which medians are taken")
    parser.add_argument("--width", type=int, default=64, help="W of the kernels' table")
    parser.add_argument("--vocab-size", type=int, default=65536, help="V of the kernels' table")
    parser.add_argument("--length", type=int, default=256, help="tokens to decode with the model")
    parser.add_argument("--window", type=int, default=32, help="window of the model's decoding")
    parser.add_argument("--layers", type=int, default=16, help="16 are 1.1 billion parameters")
    parser.add_argument("--backend", choices=("tensorrt", "onnxruntime"), default="tensorrt")
    parser.add_argument(
        "--model", action=argparse.BooleanOptionalAction, default=True, help="whether to decode with a model"
    )
    parser.add_argument("--json", type=Path, help="add the result to this file, a list")
    arguments = parser.parse_args()
    try:
        device = Device()
    except CoupledSamplingError as error:
        raise SystemExit(f"this benchmark needs an NVIDIA GPU: {error}") from None
    result = measure(arguments, device)
    print_result(result)
    if arguments.json:
        known = json.loads(arguments.json.read_text()) if arguments.json.exists() else []
        arguments.json.write_text(json.dumps([*known, result], indent=2) + "\n")


if __name__ == "__main__":
    main()

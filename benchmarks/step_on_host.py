"""The host's part of a step that CUDA kernels decide: Python's time, and cuda-python's, with a driver that does nothing.

    python benchmarks/step_on_host.py [--rows 1] [--window 64] [--steps 2000] [--json FILE]

On a GPU the host's part comes on top of the model and the kernels, for they are waited for in every step. Here the driver is the
stand-in of the tests (``tests/standins/libcuda``), built without its kernels. So what is timed is all that Python does:
the decoding loop, `KernelStep` with a provider whose logits are there already, and cuda-python's calls; with the step's
CUDA graph and without. NVIDIA's own time in those calls is missing. Medians over steps, in microseconds. Needs Linux and
g++, no GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from coupled_sampling import Decoder, Request
from coupled_sampling.backends.cuda.compile import CHUNK, PART_THREADS, kernel_sources
from coupled_sampling.backends.cuda.device import Device
from coupled_sampling.backends.cuda.kernel_step import KernelStep
from coupled_sampling.backends.cuda.pinned_launcher import PinnedLauncher
from coupled_sampling.backends.cuda.pointers import DevicePointer
from coupled_sampling.backends.cuda.streams import Stream
from coupled_sampling.contracts import Integers, Outcome, Window

METHODS = ("ar", "sjd", "scd-maximal", "scd-gumbel", "scd-match")
STANDINS = Path(__file__).parents[1] / "tests" / "standins"
VOCAB_SIZE, MAX_LENGTH = 1000, 1 << 20


class FixedLogits:
    """A provider that does nothing: its logits lie on the device."""

    vocab_size, max_length = VOCAB_SIZE, MAX_LENGTH

    def __init__(self, device: Device, rows: int, window: int) -> None:
        self.batch_size, self.max_window = rows, window
        self._memory = device.allocate(4 * rows * window * VOCAB_SIZE)

    def forward(self, tokens: Integers, start: Integers) -> DevicePointer:
        return DevicePointer(self._memory.address, (*tokens.shape, VOCAB_SIZE), "float32")


class TimedStep(KernelStep):
    """Notes how long every step took."""

    seconds = 0.0

    def step(self, window: Window) -> Outcome:
        began = time.perf_counter()
        outcome = super().step(window)
        self.seconds = time.perf_counter() - began
        return outcome


def measured(stream: Stream, method: str, rows: int, window: int, steps: int, *, cuda_graphs: bool) -> dict[str, Any]:
    launcher = PinnedLauncher(stream, cuda_graphs=cuda_graphs)
    step = TimedStep(FixedLogits(stream.device, rows, window), method, launcher)
    decoder = Decoder(step, window=1 if method == "ar" else window, drafting="repeat")
    for sequence in range(rows):
        decoder.add(Request([1], MAX_LENGTH // 2, sequence=sequence))
    loop, inner = [], []
    for _ in range(steps + 20):
        began = time.perf_counter()
        decoder.step()
        loop.append(1e6 * (time.perf_counter() - began - step.seconds))
        inner.append(1e6 * step.seconds)
    step.close()
    return {
        "method": method, "rows": rows, "window": window, "cuda_graphs": cuda_graphs,
        "step_us": statistics.median(inner[20:]), "loop_us": statistics.median(loop[20:]),
    }  # fmt: skip


def with_the_stand_in() -> int:
    """Build the stand-in and run this script again over it."""
    with tempfile.TemporaryDirectory() as name:
        for file, text in kernel_sources().items():
            Path(name, file).write_text(text, "utf-8")
        options = ["-std=c++17", "-O2", "-fPIC", "-shared", "-DWITHOUT_WORK", "-DTHREADS=1024"]
        options += [
            f"-DPART_THREADS={PART_THREADS}",
            f"-DCHUNK={CHUNK}",
            f"-I{name}",
            f"-I{STANDINS / 'cuda_emulation'}",
        ]
        source = STANDINS / "libcuda" / "libcuda.cpp"
        subprocess.run(["g++", *options, str(source), "-o", str(Path(name, "libcuda.so.1"))], check=True)
        environment = {**os.environ, "LD_LIBRARY_PATH": name, "STEP_ON_HOST": name}
        return subprocess.run([sys.executable, *sys.argv], env=environment).returncode


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1, help="sequences at a time")
    parser.add_argument("--window", type=int, default=64)
    parser.add_argument("--steps", type=int, default=2000, help="steps of which medians are taken")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    if "STEP_ON_HOST" not in os.environ:
        raise SystemExit(with_the_stand_in())
    stream = Stream(Device())
    sizes = arguments.rows, arguments.window, arguments.steps
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, ", end=""
    )
    print(f"Python {platform.python_version()}, NumPy {np.__version__}; B = {sizes[0]}, W = {sizes[1]}; microseconds")
    print(f"{'method':<14}{'KernelStep':>12}{'without graph':>15}{'loop':>8}")
    rows = []
    for method in METHODS:
        rows += [measured(stream, method, *sizes, cuda_graphs=graphs) for graphs in (True, False)]
        graph, plain = rows[-2:]
        print(f"{method:<14}{graph['step_us']:>12.0f}{plain['step_us']:>15.0f}{graph['loop_us']:>8.0f}")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()

"""Step graph against the forward pass alone and against forward pass plus HostStep, on the CPU.

    python benchmarks/step_graph.py [--steps 20] [--threads 2]

A small random decoder (width 512, 4 layers) decodes one window after another; every window is timed three ways, in turn: the
window graph alone, HostStep over the window graph, and the step graph. What is printed are medians over steps, and ratios of
them to the forward pass of the same run. The race noise of newly entered positions, made on the host with numpy, is part of
both steps.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx

from coupled_sampling import Decoder, HostStep, Request
from coupled_sampling.backends import OrtProvider
from coupled_sampling.backends.ort_step import OrtStep
from coupled_sampling.backends.session import open_session
from coupled_sampling.bundle import Bundle, Defaults, GeneratedTokens, Manifest, Prompt, file_record
from coupled_sampling.contracts import Integers, Outcome, Window
from coupled_sampling.export import GptDescription, save_graph, window_graph
from coupled_sampling.export.step_graph import step_graph

SIZES = ((1, 32, 8192), (4, 16, 8192), (1, 32, 65536))
METHODS = ("sjd", "scd-maximal", "scd-gumbel", "scd-match")
POSITIONS = 256


def bundle_of(folder: Path, vocab_size: int) -> Bundle:
    """A random decoder whose laws are about as peaked as a trained one's."""
    gpt = GptDescription(vocab_size, vocab_size, POSITIONS, width=512, layers=4, heads=8, mlp_width=2048)
    random = np.random.default_rng(0)
    weights = {}
    for name, shape in gpt.weight_shapes().items():
        scale = 2.5 / 512**0.5 if name == "head.weight" else 0.05
        weights[name] = scale * random.standard_normal(shape, np.float32)
        if "norm.weight" in name:
            weights[name] = np.ones(shape, np.float32)
    file = save_graph(window_graph(gpt, weights), folder / f"window-{vocab_size}.onnx")
    manifest = Manifest(
        name="random",
        description="Random weights.",
        files={file.name: file_record(file)},
        window_graph=gpt.manifest(file.name),
        vocab_size=vocab_size,
        generated_tokens=GeneratedTokens(0, vocab_size),
        length=POSITIONS - 1,
        prompts={"start": Prompt((0,), (), "Start")},
        defaults=Defaults("scd-gumbel", 16, "random"),
        licence="Apache-2.0",
        provenance={},
    )
    return Bundle(folder, manifest)


class Compared:
    """A coupled step that runs every window three ways and keeps the times."""

    def __init__(self, provider: OrtProvider, host: HostStep, fused: OrtStep) -> None:
        self.provider, self.host, self.fused, self.method = provider, host, fused, host.method
        self.vocab_size, self.batch_size, self.max_length = host.vocab_size, host.batch_size, host.max_length
        self.max_window, self.noise = host.max_window, host.noise
        self.seconds: list[tuple[float, float, float]] = []
        self.differences = 0

    def begin(self, row: int, prompt: Integers) -> None:
        self.host.begin(row, prompt)
        self.fused.begin(row, prompt)

    def step(self, window: Window) -> Outcome:
        marks = [time.perf_counter()]
        self.provider.forward(window.tokens, window.start)
        marks.append(time.perf_counter())
        expected = self.host.step(window)
        marks.append(time.perf_counter())
        found = self.fused.step(window)
        marks.append(time.perf_counter())
        self.differences += int((found.committed != expected.committed).sum())
        if window.tokens.shape[1] > 1:
            self.seconds.append(tuple(np.diff(marks).tolist()))
        return expected


def measure(bundle: Bundle, path: Path, method: str, rows: int, window: int, steps: int, threads: int) -> list[float]:
    provider = OrtProvider(bundle, open_session(bundle.window_graph, threads), rows)
    both = Compared(provider, HostStep(provider, method), OrtStep.open_graph(path, rows, threads))
    decoder = Decoder(both, window=window, drafting="repeat")
    sequence = 0
    while len(both.seconds) < steps + 4:
        while decoder.active + decoder.waiting < rows:
            decoder.add(Request([sequence], POSITIONS - window, sequence=sequence))
            sequence += 1
        decoder.step()
    forward, host, fused = 1e3 * np.median(both.seconds[4:], axis=0)
    return [forward, host, fused, host / forward, fused / forward, fused / host, both.differences]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    print(f"{os.cpu_count()} cores, {arguments.threads} threads, load {os.getloadavg()[0]:.1f}; ms, then ratios")
    print(f"{'B':>2}{'W':>4}{'V':>7}  {'method':<12}{'forward':>9}{'+HostStep':>10}{'step graph':>11}", end="")
    print(f"{'host/fwd':>10}{'graph/fwd':>10}{'graph/host':>11}{'differ':>7}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for rows, window, vocab_size in SIZES:
            bundle = bundle_of(folder, vocab_size)
            for method in METHODS:
                path = save_graph(step_graph(onnx.load(bundle.window_graph), method), folder / "step.onnx")
                row = measure(bundle, path, method, rows, window, arguments.steps, arguments.threads)
                print(
                    f"{rows:>2}{window:>4}{vocab_size:>7}  {method:<12}{row[0]:>9.2f}{row[1]:>10.2f}{row[2]:>11.2f}",
                    end="",
                )
                print(f"{row[3]:>10.2f}{row[4]:>10.2f}{row[5]:>11.2f}{row[6]:>7.0f}", flush=True)


if __name__ == "__main__":
    main()

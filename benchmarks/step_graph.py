"""Step graph against the forward pass alone and against forward pass plus HostStep, on the CPU.

    python benchmarks/step_graph.py [--steps 20] [--threads 2]

A small random decoder (width 512, 4 layers) decodes one window after another; every window is timed three ways: the window
graph alone, HostStep over the window graph, and the step graph. Each way has a session of its own, weights included, and the
order rotates from step to step: whoever comes second over the same weights would find them in the processor's cache. What
is printed are medians over steps of times and of ratios within a step. The race noise of newly entered positions, made on the
host with numpy, is part of both steps. Afterwards both decide the same windows, and sites at which they differ are told into float
ties and disagreements (`coupled_sampling.testing.StepComparison`).
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx

from coupled_sampling import Decoder, HostStep, Request
from coupled_sampling.backends import OrtProvider
from coupled_sampling.backends.ort.session import open_session
from coupled_sampling.backends.ort.step import OrtStep
from coupled_sampling.bundles.manifest import Defaults, GeneratedTokens, Manifest, Prompt
from coupled_sampling.bundles.manifest_file import file_record
from coupled_sampling.bundles.opening import Bundle
from coupled_sampling.contracts import CoupledStep, Outcome, Runs, Window
from coupled_sampling.export import DecoderDescription, Norm, Storage, save_graph, write_decoder_graph
from coupled_sampling.export.graphs.step import step_graph
from coupled_sampling.testing import StepComparison, TieReport

SIZES = ((1, 32, 8192), (4, 16, 8192), (1, 32, 65536))
METHODS = ("ar", "sjd", "scd-maximal", "scd-gumbel", "scd-match")
POSITIONS = 256


def bundle_of(folder: Path, vocab_size: int) -> Bundle:
    """A random decoder whose laws are about as peaked as a trained one's."""
    gpt = DecoderDescription(
        vocab_size,
        POSITIONS,
        width=512,
        layers=4,
        heads=8,
        mlp_width=2048,
        norm=Norm("layer"),
        mlp="plain",
        activation="gelu",
        learned_positions=True,
        query_key_value_bias=True,
        attention_output_bias=True,
        mlp_bias=True,
        head_bias=True,
    )
    return random_bundle(folder, gpt)


def random_bundle(folder: Path, description: DecoderDescription, storage: Storage | None = None) -> Bundle:
    """``description`` with random weights, as a bundle in ``folder``."""
    random = np.random.default_rng(0)
    weights = {}
    for name, shape in description.weight_shapes().items():
        scale = 2.5 / 512**0.5 if name == "head.weight" else 0.05
        weights[name] = scale * random.standard_normal(shape, np.float32)
        if "norm.weight" in name:
            weights[name] = np.ones(shape, np.float32)
    path = folder / f"window-{description.vocab_size}.onnx"
    (file,) = write_decoder_graph(description, weights, path, storage=storage, inline=True)
    manifest = Manifest(
        name="random",
        description="Random weights.",
        files={file.name: file_record(file)},
        window_graph=replace(description.manifest(file.name), domains=(storage or Storage()).domains),
        vocab_size=description.vocab_size,
        generated_tokens=GeneratedTokens(0, description.vocab_size),
        length=description.positions - 1,
        prompts={"start": Prompt((0,), (), "Start")},
        defaults=Defaults("scd-gumbel", 16, "random"),
        licence="Apache-2.0",
        provenance={},
    )
    return Bundle(folder, manifest)


class Compared:
    """A coupled step that runs every window three ways and keeps the times."""

    def __init__(self, provider: OrtProvider, host: HostStep, fused: OrtStep, width: int) -> None:
        self.provider, self.host, self.fused, self.method = provider, host, fused, host.method
        self.vocab_size, self.batch_size, self.max_length = host.vocab_size, host.batch_size, host.max_length
        self.max_window, self.noise = host.max_window, host.noise
        self.width, self.steps = width, 0
        self.seconds: list[np.ndarray] = []

    @property
    def runs(self) -> Runs:
        return self.fused.runs

    def close(self) -> None:
        self.fused.close()

    def takes(self, request: Request) -> str | None:
        return self.fused.takes(request)

    def begin(self, row: int, request: Request) -> None:
        self.host.begin(row, request)
        self.fused.begin(row, request)

    def step(self, window: Window) -> Outcome:
        times, outcomes = np.zeros(3), [Outcome(window.tokens, window.known)] * 3
        for turn in range(3):
            way = (turn + self.steps) % 3
            began = time.perf_counter()
            if way == 0:
                self.provider.forward(window.tokens, window.start)
            else:
                outcomes[way] = (self.host, self.fused)[way - 1].step(window)
            times[way] = time.perf_counter() - began
        self.steps += 1
        if window.tokens.shape[1] == self.width:
            self.seconds.append(times)
        return outcomes[1]


def decode(step: CoupledStep, rows: int, window: int, goes_on: Callable[[], bool]) -> None:
    """Keep ``rows`` sequences under way while ``goes_on``."""
    decoder = Decoder(step, window=window, drafting="repeat")
    sequence = 0
    while goes_on():
        while decoder.active + decoder.waiting < rows:
            decoder.add(Request([sequence], POSITIONS - window, sequence=sequence))
            sequence += 1
        decoder.step()


def compare(bundle: Bundle, path: Path, method: str, rows: int, window: int, steps: int, threads: int) -> TieReport:
    """Do step graph and HostStep decide alike? Ties of floats are told from disagreements."""
    provider = OrtProvider(bundle, open_session(bundle.window_graph, threads), rows)
    both = StepComparison(provider, OrtStep(open_session(path, threads), rows))
    left = iter(range(steps))
    decode(both, rows, window, lambda: next(left, None) is not None)
    return both.report()


def measure(bundle: Bundle, path: Path, method: str, rows: int, window: int, steps: int, threads: int) -> list[float]:
    alone, under = (OrtProvider(bundle, open_session(bundle.window_graph, threads), rows) for _ in range(2))
    width = 1 if method == "ar" else window
    both = Compared(alone, HostStep(under, method), OrtStep(open_session(path, threads), rows), width)
    decode(both, rows, window, lambda: len(both.seconds) < steps + 6)
    times = 1e3 * np.array(both.seconds[6:])
    forward, host, fused = times.T
    ratios = [np.median(host / forward), np.median(fused / forward), np.median(fused / host)]
    return [*np.median(times, axis=0), *ratios]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--compared", type=int, default=20, help="steps in which step graph and HostStep are compared")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    print(f"{os.cpu_count()} cores, {arguments.threads} threads, load {os.getloadavg()[0]:.1f}; ms, then ratios")
    print(f"{'B':>2}{'W':>4}{'V':>7}  {'method':<12}{'forward':>9}{'+HostStep':>10}{'step graph':>11}", end="")
    print(f"{'host/fwd':>10}{'graph/fwd':>10}{'graph/host':>11}{'sites':>7}{'ties':>6}{'disagree':>10}")
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
                print(f"{row[3]:>10.2f}{row[4]:>10.2f}{row[5]:>11.2f}", end="")
                seen = compare(bundle, path, method, rows, window, arguments.compared, arguments.threads)
                print(f"{seen.sites:>7}{seen.ties:>6}{seen.disagreements:>10}", flush=True)


if __name__ == "__main__":
    main()

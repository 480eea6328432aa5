"""The automatic window against fixed ones, on the CPU.

    python benchmarks/window.py [--sequences 60] [--smollm2 BUNDLE] [--threads 2]

Tokens per second of whole runs, the search included, as a share of the best fixed width's. All widths decode the same
sequences in turns, one sequence each in an order that changes, so that whatever else the machine does befalls them alike; a
rate is that of all of a width's sequences. Models: the embedded one; a random decoder of width 512 whose passes are bound by
compute; and SmolLM2-135M, if its bundle is given (examples/smollm2 makes it).
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from step_graph import bundle_of

from coupled_sampling import Decoder, Request
from coupled_sampling.backends import OrtProvider
from coupled_sampling.bundles.opening import Bundle, open_bundle
from coupled_sampling.contracts import Sampling

WIDTHS: tuple[int | str, ...] = (1, 2, 4, 8, 12, 16, 24, 32, "auto")


class Run(NamedTuple):
    """What every width decodes."""

    title: str
    bundle: Bundle
    prompts: Sequence[Sequence[int]]
    length: int
    drafting: str
    sampling: Sampling


class Runner:
    """One window, run one sequence at a time; adds up its tokens and its time."""

    def __init__(self, run: Run, window: int | str, threads: int) -> None:
        self.decoder = Decoder(OrtProvider.open(run.bundle, threads=threads), window=window, drafting=run.drafting)
        self.tokens, self.seconds, self.width = 0, 0.0, 0
        self._run = run

    def decode(self, number: int) -> None:
        """Decode one more sequence."""
        run, decoder = self._run, self.decoder
        prompt = run.prompts[number % len(run.prompts)]
        decoder.add(Request(prompt, run.length, sequence=number, sampling=run.sampling))
        began = time.perf_counter()
        while decoder.active or decoder.waiting:
            self.width = decoder.window
            self.tokens += sum(len(commit.tokens) for commit in decoder.step())
        self.seconds += time.perf_counter() - began


def measure(run: Run, sequences: int, threads: int) -> tuple[np.ndarray, int]:
    """Tokens per second of every window, and the width at which the automatic one ended."""
    runners = [Runner(run, window, threads) for window in WIDTHS]
    order = np.random.default_rng(0)
    for number in range(sequences):
        for i in order.permutation(len(runners)):
            runners[i].decode(number)
    return np.array([runner.tokens / runner.seconds for runner in runners]), runners[-1].width


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sequences", type=int, default=60)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--smollm2", type=Path, help="bundle of SmolLM2")
    arguments = parser.parse_args()
    print(f"{os.cpu_count()} cores, {arguments.threads} threads, load {os.getloadavg()[0]:.1f}; scd-gumbel, batch 1")
    print(f"{'model':<18}" + "".join(f"{w!s:>7}" for w in WIDTHS) + "   auto/best fixed, auto's last width")
    with tempfile.TemporaryDirectory() as name:
        fashion = open_bundle("fashion")
        pictures = [prompt.tokens for prompt in fashion.manifest.prompts.values()]
        runs = [Run("embedded", fashion, pictures, 196, "copy:14", Sampling())]
        bound = bundle_of(Path(name), 8192)
        runs.append(Run("compute-bound", bound, [[k] for k in range(12)], 120, "repeat", Sampling()))
        if arguments.smollm2:
            model = open_bundle(arguments.smollm2)
            runs.append(Run("SmolLM2-135M", model, [[1, 504 + k] for k in range(6)], 96, "ngram", Sampling(0.7)))
        for run in runs:
            rates, last = measure(run, arguments.sequences, arguments.threads)
            share = rates[-1] / rates[:-1].max()
            print(f"{run.title:<18}" + "".join(f"{r:>7.0f}" for r in rates) + f"   {share:.2f}, {last}", flush=True)


if __name__ == "__main__":
    main()

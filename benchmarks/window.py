"""The automatic window against fixed ones, on the CPU.

    python benchmarks/window.py [--repeats 3] [--smollm2 BUNDLE] [--threads 2]

Tokens per second of whole runs, the search included, as a share of the best fixed width's in the same repeat; medians over
repeats, in which the order of the widths changes. Models: the embedded one; a random decoder of width 512 whose passes are
bound by compute; and SmolLM2-135M, if its bundle is given (examples/smollm2 makes it).
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from step_graph import bundle_of

from coupled_sampling import Decoder, Request
from coupled_sampling.backends import OrtProvider
from coupled_sampling.bundle import Bundle, open_bundle
from coupled_sampling.contracts import Sampling

WIDTHS: tuple[int | str, ...] = (1, 2, 4, 8, 12, 16, 24, 32, "auto")


def speed(
    bundle: Bundle,
    prompts: Sequence[Sequence[int]],
    length: int,
    window: int | str,
    drafting: str,
    sampling: Sampling,
    threads: int,
) -> tuple[float, int]:
    """Tokens per second, and the width that was used last."""
    decoder = Decoder(OrtProvider.open(bundle, threads=threads), window=window, drafting=drafting)
    for i, prompt in enumerate(prompts):
        decoder.add(Request(prompt, length, sequence=i, sampling=sampling))
    began, width, tokens = time.perf_counter(), 0, 0
    while decoder.active or decoder.waiting:
        width = decoder.window
        tokens += sum(len(commit.tokens) for commit in decoder.step())
    return tokens / (time.perf_counter() - began), width


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--smollm2", type=Path, help="bundle of SmolLM2")
    arguments = parser.parse_args()
    print(f"{os.cpu_count()} cores, {arguments.threads} threads, load {os.getloadavg()[0]:.1f}; scd-gumbel, batch 1")
    print(f"{'model':<18}" + "".join(f"{w!s:>7}" for w in WIDTHS) + "   auto/best fixed, auto's last width")
    with tempfile.TemporaryDirectory() as name:
        fashion = open_bundle("fashion")
        pictures = [prompt.tokens for prompt in fashion.manifest.prompts.values()] * 3
        runs = [("embedded", fashion, pictures, 196, "copy:14", Sampling())]
        runs.append(("compute-bound", bundle_of(Path(name), 8192), [[k] for k in range(12)], 120, "repeat", Sampling()))
        if arguments.smollm2:
            model = open_bundle(arguments.smollm2)
            runs.append(("SmolLM2-135M", model, [[1, 504 + k] for k in range(6)], 96, "ngram", Sampling(0.7)))
        for title, bundle, prompts, length, drafting, sampling in runs:
            rates, last = [], 0
            for repeat in range(arguments.repeats):
                order = np.random.default_rng(repeat).permutation(len(WIDTHS))
                found = np.zeros(len(WIDTHS))
                for i in order:
                    found[i], width = speed(bundle, prompts, length, WIDTHS[i], drafting, sampling, arguments.threads)
                    last = width if WIDTHS[i] == "auto" else last
                rates.append(found)
            middle = np.median(rates, axis=0)
            share = np.median([found[-1] / found[:-1].max() for found in rates])
            print(f"{title:<18}" + "".join(f"{r:>7.0f}" for r in middle) + f"   {share:.2f}, {last}", flush=True)


if __name__ == "__main__":
    main()

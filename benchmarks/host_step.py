"""Cost of one HostStep without the forward pass, against a float32 softmax over the same array in the same run.

    python benchmarks/host_step.py [--json]
    python benchmarks/host_step.py --against ../other-checkout     # the same over another checkout, in turns

A decoder runs over a model whose logits are made beforehand, so that what is timed is the step alone: laws, acceptance, redraft
and noise. Ratios are medians over steps; softmax is timed between the steps, into memory that it already has: fresh memory would
cost it up to four times as much, or not, as the allocator pleases. "noise" is the part of the step that makes the Gumbel noise of
newly entered positions, in softmaxes. Peak memory is counted by tracemalloc, in units of one law array (1, W, V) float32, the
provider's own logits not counted.

With ``--against`` this script runs over this checkout and over another one in turns, each time in a process of its own, and prints
the time of a step here over the time there. Each is the least of the rounds' medians, which other work on the machine disturbs
least.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np

from coupled_sampling import Decoder, HostStep, Request, Sampling, noise
from coupled_sampling.contracts import Integers, Outcome, Window

SIZES = ((8192, 32, None), (8192, 32, 100), (65536, 64, None))
METHODS = ("sjd", "scd-maximal", "scd-gumbel", "scd-match")


class Prepared:
    """Peaked random logits that change a little from pass to pass, as a model's do when its context changes."""

    def __init__(self, vocab_size: int, window: int, passes: int = 4) -> None:
        generator = np.random.default_rng(0)
        self.vocab_size, self.batch_size, self.max_length = vocab_size, 1, 4096
        self.max_window = window
        base = 4 * generator.standard_normal((window, vocab_size), np.float32)
        changed = [base + 0.3 * generator.standard_normal(base.shape, np.float32) for _ in range(passes)]
        self.passes = [np.concatenate([logits, logits]) for logits in changed]  # any window of positions is a view
        self.calls = 0
        self.seconds = 0.0

    def forward(self, tokens: Integers, start: Integers) -> np.ndarray:
        self.calls += 1
        first = int(start[0]) % self.max_window
        return self.passes[self.calls % len(self.passes)][None, first : first + tokens.shape[1]]


class Timed(HostStep):
    """Records the time of every step."""

    def step(self, window: Window) -> Outcome:
        began = time.perf_counter()
        outcome = super().step(window)
        self.seconds = time.perf_counter() - began
        return outcome


class TimedRaces:
    """Stands for `coupled_sampling.noise.race_weights` and adds up the time it takes."""

    def __init__(self) -> None:
        self.made, self.seconds = noise.race_weights, 0.0

    def __call__(self, *where: int) -> np.ndarray:
        began = time.perf_counter()
        weights = self.made(*where)
        self.seconds += time.perf_counter() - began
        return weights


def softmax(logits: np.ndarray, memory: np.ndarray) -> None:
    np.subtract(logits, logits.max(-1, keepdims=True), out=memory)
    np.exp(memory, out=memory)
    memory /= memory.sum(-1, keepdims=True)


def decoder(step: HostStep, window: int, top_k: int | None) -> Decoder:
    made = Decoder(step, window=window, drafting="repeat")
    made.add(Request([0], length=4000, sampling=Sampling(top_k=top_k)))
    return made


def measure(method: str, vocab_size: int, window: int, top_k: int | None, steps: int) -> dict[str, object]:
    provider = Prepared(vocab_size, window)
    step = Timed(provider, method)
    run = decoder(step, window, top_k)
    taken, reference, committed, races = [], [], [], []
    memory = np.empty((1, window, vocab_size), np.float32)
    noise.race_weights = timed = TimedRaces()
    for i in range(steps):
        timed.seconds = 0.0
        commits = run.step()
        began = time.perf_counter()
        softmax(provider.passes[0][None, :window], memory)
        if i >= 3:
            reference.append(time.perf_counter() - began)
            taken.append(step.seconds)
            races.append(timed.seconds)
            committed.append(sum(len(commit.tokens) for commit in commits))
    noise.race_weights = timed.made
    run = decoder(HostStep(provider, method), window, top_k)
    run.step()
    tracemalloc.start()
    for _ in range(3):
        run.step()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return {
        "method": method,
        "vocabulary": vocab_size,
        "window": window,
        "top_k": top_k,
        "step_ms": 1e3 * float(np.median(taken)),
        "softmax_ms": 1e3 * float(np.median(reference)),
        "ratio": float(np.median(taken) / np.median(reference)),
        "noise_ratio": float(np.mean(races) / np.median(reference)),
        "peak_law_arrays": peak / (4 * window * vocab_size),
        "tokens_per_step": float(np.mean(committed)),
    }


def measured_over(checkout: Path, steps: int) -> list[dict[str, object]]:
    """The rows of this script over the library of ``checkout``."""
    command = [sys.executable, __file__, "--json", "--steps", str(steps)]
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    done = subprocess.run(command, env=environment, cwd=checkout, capture_output=True, text=True, check=True)
    return list(json.loads(done.stdout)["rows"])


def compare(here: Path, there: Path, steps: int, rounds: int) -> None:
    """Print the time of a step here over the time of one there."""
    runs = [(measured_over(here, steps), measured_over(there, steps)) for _ in range(rounds)]
    print(f"{here} over {there}; {rounds} rounds, load {os.getloadavg()[0]:.1f}")
    print(
        f"{'method':<13}{'V':>7}{'top-k':>7}{'ms here':>9}{'ms there':>10}{'ratio':>7}{'noise, softmaxes':>18}{'peak laws':>17}"
    )
    for i, row in enumerate(runs[0][0]):
        own, other = (min(float(str(run[side][i]["step_ms"])) for run in runs) for side in (0, 1))
        laws = f"{row['peak_law_arrays']:.1f} / {runs[0][1][i]['peak_law_arrays']:.1f}"
        print(
            f"{row['method']:<13}{row['vocabulary']:>7}{row['top_k'] or '-':>7}{own:>9.2f}{other:>10.2f}{own / other:>7.2f}"
            f"{row['noise_ratio']:>18.2f}{laws:>17}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--against", type=Path, metavar="CHECKOUT", help="another checkout to compare with")
    parser.add_argument("--rounds", type=int, default=5, help="turns with --against (default 5)")
    arguments = parser.parse_args()
    if arguments.against:
        compare(Path(__file__).resolve().parents[1], arguments.against.resolve(), arguments.steps, arguments.rounds)
        return
    rows = [measure(method, *size, arguments.steps) for size in SIZES for method in METHODS]
    if arguments.json:
        print(json.dumps({"machine": platform.processor() or platform.machine(), "rows": rows}, indent=2))
        return
    print(
        f"numpy {np.__version__}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; medians of {arguments.steps} steps"
    )
    heads = (("V", 7), ("W", 4), ("top-k", 7), ("step ms", 9), ("softmax ms", 12), ("ratio", 7), ("noise", 7))
    columns = [f"{name:>{width}}" for name, width in (*heads, ("peak laws", 11), ("tokens", 8))]
    print(f"{'method':<13}" + "".join(columns))
    for row in rows:
        print(
            f"{row['method']:<13}{row['vocabulary']:>7}{row['window']:>4}{row['top_k'] or '-':>7}{row['step_ms']:>9.2f}"
            f"{row['softmax_ms']:>12.2f}{row['ratio']:>7.2f}{row['noise_ratio']:>7.2f}{row['peak_law_arrays']:>11.1f}{row['tokens_per_step']:>8.1f}"
        )


if __name__ == "__main__":
    main()

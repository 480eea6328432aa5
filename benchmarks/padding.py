"""Several rows of a decoder with growing caches: padded to one length in one call, or one by one.

    python benchmarks/padding.py MODEL.onnx [--threads 2] [--repeats 7]

Rows have pasts of different lengths, spread evenly from a half of the longest to the longest; every call rolls back to the same
starts. Both ways run in turn in the same process; seconds are medians, ratios are to one by one. ``copies`` is the part of
the second time that a copy of the pasts alone takes. A graph that writes in place is run row by row both times, in
place and with copies.
"""

from __future__ import annotations

import argparse
import os
import time

import numpy as np

from coupled_sampling.backends.foreign.provider import ConcatenatedProvider


def seconds(model: ConcatenatedProvider, way: str, tokens: np.ndarray, start: np.ndarray) -> float:
    model.batching = way
    begin = time.perf_counter()
    model.forward(tokens, start)
    return time.perf_counter() - begin


def copying(model: ConcatenatedProvider, start: np.ndarray) -> float:
    begin = time.perf_counter()
    for cache in model._caches:
        taken = np.empty((len(start), cache.shape[1], start.max(), cache.shape[3]), cache.dtype)
        for row, length in enumerate(start):
            taken[row, :, start.max() - length :] = cache[row, :, :length]
    return time.perf_counter() - begin


def measure(model: ConcatenatedProvider, rows: int, width: int, longest: int, repeats: int) -> str:
    random = np.random.default_rng(0)
    start = np.linspace(longest // 2, longest, rows).astype(np.int64)
    tokens = random.integers(0, model.vocab_size, (rows, width))
    other = "in place" if model.batching == "in place" else "padded"
    runs: dict[str, list[float]] = {"one by one": [], other: [], "copies": []}
    for _ in range(repeats + 1):
        for way in ("one by one", other):
            runs[way].append(seconds(model, way, tokens, start))
        runs["copies"].append(copying(model, start))
    alone, together, copies = (float(np.median(times[1:])) for times in runs.values())
    model.batching = other
    times = f"{alone:>13.4f}{other:>10}{together:>9.4f}"
    return f"{rows:>5}{width:>7}{longest:>7}{times}{alone / together:>7.2f}x{copies / together:>8.1%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--longest", default="64,512")
    arguments = parser.parse_args()
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    print(f"{'rows':>5}{'width':>7}{'past':>7}{'one by one':>13}{'':>10}{'seconds':>9}{'ratio':>8}{'copies':>8}")
    for rows in (1, 2, 4):
        model = ConcatenatedProvider.open(arguments.model, batch_size=rows, threads=arguments.threads)
        for longest in map(int, arguments.longest.split(",")):
            for width in (1, 8, 32):
                print(measure(model, rows, width, longest, arguments.repeats), flush=True)


if __name__ == "__main__":
    main()

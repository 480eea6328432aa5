"""How prompts are read, and what rows cost, on the CPU: ratios measured in one run.

    python benchmarks/prompts.py [--repeats 5] [--threads 2]

A random decoder (width 512, 6 layers, 16,384 tokens, 2,304 positions) and `fashion`, each by HostStep and by its step
graph. What is compared takes turns in every repeat, and what is printed are medians over repeats, of times and of ratios.

1. The time to the first token of a 1,000-token prompt over one plain pass over it in the widest chunks. Target: at most 1.2.
2. The time between two commits of seven rows that decode token by token, usually and while the eighth reads that prompt; how much
   more that is, over one chunk's own time. Target: about 1.
3. The time of a step of the last of eight requests, in row 7, over that of the only one, in row 0. Target: 1.
4. Calls of the model until the first tokens of four samples of a 400-token prompt are there, and the tokens forwarded in them.
5. Calls of the model until the first token after a 2,000-token prompt at window 8.
6. The time of a step of eight requests that share the default noise key over that of eight with keys of their own. Target: 1.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
from step_graph import random_bundle

from coupled_sampling import Decoder, HostStep, Request, open_bundle
from coupled_sampling.backends import OrtProvider, Place, open_model
from coupled_sampling.backends.ort.session import open_session
from coupled_sampling.backends.ort.step import OrtStep
from coupled_sampling.bundles.opening import Bundle
from coupled_sampling.contracts import Integers, OpenStep
from coupled_sampling.export import DecoderDescription, Rotary, save_graph
from coupled_sampling.export.graphs.step import step_graph

VOCABULARY, POSITIONS, ROWS = 16_384, 2_304, 8
METHOD = "scd-match"


def bundle_of(folder: Path) -> Bundle:
    """A random decoder of the Llama kind."""
    description = DecoderDescription(
        VOCABULARY, POSITIONS, width=512, layers=6, heads=8, kv_heads=4, mlp_width=1408, rotary=Rotary()
    )
    return random_bundle(folder, description)


class Watched:
    """Counts what a step forwards, and how long its reading takes."""

    def __init__(self, step: OpenStep) -> None:
        self.step, self.calls, self.tokens = step, 0, 0
        self.reading: list[float] = []
        read, decide = step.read, step.step

        def reads(tokens: Integers, start: Integers, rows: range) -> None:
            self.calls, self.tokens = self.calls + 1, self.tokens + tokens.size
            began = time.perf_counter()
            read(tokens, start, rows)
            self.reading.append(time.perf_counter() - began)

        def decides(window):
            self.calls, self.tokens = self.calls + 1, self.tokens + window.tokens.size
            return decide(window)

        step.read, step.step = reads, decides


def tokens_of(count: int) -> list[int]:
    return np.random.default_rng(count).integers(0, VOCABULARY, count).tolist()


def until_first_tokens(step: OpenStep, requests: list[Request], window: int = 8) -> float:
    """Seconds until each request has committed something."""
    decoder = Decoder(step, window=window)
    for request in requests:
        decoder.add(request)
    began, seen = time.perf_counter(), set()
    while len(seen) < sum(request.samples for request in requests):
        seen |= {commit.handle for commit in decoder.step()}
    return time.perf_counter() - began


def plain_pass(provider: OrtProvider, tokens: Integers, chunk: int) -> float:
    """Seconds of a pass over ``tokens`` in chunks, which nobody decides anything about."""
    began = time.perf_counter()
    for first in range(0, len(tokens), chunk):
        provider.forward(tokens[None, first : first + chunk], np.array([first]))
    return time.perf_counter() - began


def between_commits(step: OpenStep, prompt: list[int]) -> tuple[float, float, float]:
    """Seconds between commits of seven rows, usually and while the last row reads ``prompt``, and of reading a chunk."""
    watched = Watched(step)
    decoder = Decoder(step, window=1)
    for row in range(ROWS - 1):
        decoder.add(Request([row], 100, sequence=row))

    def interval() -> float:
        began = time.perf_counter()
        assert decoder.step()
        return time.perf_counter() - began

    interval()
    usual = [interval() for _ in range(8)]
    decoder.add(Request(prompt, 1, sequence=ROWS))
    reading = []
    while len(watched.reading) * step.prompt_chunk < len(prompt):
        reading.append(interval())
    chunks = watched.reading
    return float(np.median(usual)), float(np.median(reading[:-1])), float(np.median(chunks[:-1]))


def step_in_row(step: OpenStep, row: int, steps: int) -> float:
    """Seconds of a step of the only request that is left of ``row + 1``, which is in ``row``."""
    decoder = Decoder(step, window=8, drafting="repeat")
    for other in range(row):
        decoder.add(Request([0], 1, sequence=other))
    decoder.add(Request([0], 120, sequence=ROWS))
    for _ in range(2):
        decoder.step()
    return timed_steps(decoder, steps)


def timed_steps(decoder: Decoder, steps: int) -> float:
    times = []
    for _ in range(steps):
        began = time.perf_counter()
        decoder.step()
        times.append(time.perf_counter() - began)
    return float(np.median(times))


def step_of_all(step: OpenStep, shared: bool, steps: int) -> float:
    """Seconds of a step of as many requests as there are rows, whose prompts differ."""
    decoder = Decoder(step, window=16, drafting="repeat")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what it warns of is what is measured
        for row in range(ROWS):
            decoder.add(Request([row, row], 100, sequence=0 if shared else row))
    for _ in range(4):
        decoder.step()
    return timed_steps(decoder, steps)


@contextmanager
def opened(make: Callable[[], OpenStep]) -> Iterator[OpenStep]:
    step = make()
    yield step
    step.close()


def medians(repeats: int, *measures: Callable[[], float]) -> tuple[list[float], float]:
    """Milliseconds of each measure, and the first over the second; they take turns, in alternating order."""
    rows = []
    for turn in range(repeats):
        order = range(len(measures)) if turn % 2 == 0 else reversed(range(len(measures)))
        found = {i: measures[i]() for i in order}
        rows.append([found[i] for i in range(len(measures))])
    times = np.array(rows)
    return (1e3 * np.median(times, axis=0)).tolist(), float(np.median(times[:, 0] / times[:, 1]))


def report(kind: str, make: Callable[[int], OpenStep], provider: OrtProvider, repeats: int) -> None:
    """Points 1 to 5 for one way to make steps of the random decoder."""
    prompt = tokens_of(1000)
    with opened(lambda: make(1)) as step:
        chunk = step.prompt_chunk
        measures = (
            lambda: until_first_tokens(step, [Request(prompt, 1)]),
            lambda: plain_pass(provider, np.array(prompt), chunk),
        )
        (first, plain), ratio = medians(repeats, *measures)
    print(
        f"{kind:<7}first token of 1,000 {first:>8.0f} ms   plain pass, chunks of {chunk} {plain:>8.0f} ms   ratio {ratio:.2f}"
    )
    rows = []
    for _ in range(repeats):
        with opened(lambda: make(ROWS)) as step:
            rows.append(between_commits(step, prompt))
    usual, reading, chunks = np.array(rows).T
    more = float(np.median((reading - usual) / chunks))
    times = [1e3 * float(np.median(x)) for x in (usual, reading, chunks)]
    print(
        f"{kind:<7}between commits {times[0]:>8.1f} ms   while a prompt is read {times[1]:>8.1f} ms   chunk {times[2]:>8.1f} ms   "
        f"more, in chunks {more:.2f}"
    )
    with opened(lambda: make(ROWS)) as step:
        (last, only), ratio = medians(2 * repeats, lambda: step_in_row(step, 7, 10), lambda: step_in_row(step, 0, 10))
    print(f"{kind:<7}a step in row 7 {last:>8.1f} ms   in row 0 {only:>8.1f} ms   ratio {ratio:.2f}")
    for name, requests, window in (
        ("4 samples of 400 tokens", [Request(tokens_of(400), 1, samples=4)], 8),
        ("4 requests of 400 tokens", [Request(tokens_of(400), 1, sequence=i) for i in range(4)], 8),
        ("2,000 tokens at window 8", [Request(tokens_of(2000), 1)], 8),
    ):
        with opened(lambda: make(ROWS)) as step:
            watched = Watched(step)
            until_first_tokens(step, requests, window)
        print(f"{kind:<7}{name}: {watched.calls} calls, {watched.tokens:,} tokens forwarded", flush=True)


def report_embedded(step: OpenStep, kind: str, repeats: int) -> None:
    """Points 3 and 6 for `fashion`."""
    (last, only), ratio = medians(4 * repeats, lambda: step_in_row(step, 7, 20), lambda: step_in_row(step, 0, 20))
    print(f"{kind:<7}embedded: a step in row 7 {last:>6.2f} ms   in row 0 {only:>6.2f} ms   ratio {ratio:.2f}")
    (one, own), ratio = medians(4 * repeats, lambda: step_of_all(step, True, 4), lambda: step_of_all(step, False, 4))
    print(
        f"{kind:<7}embedded: one noise key {one:>6.2f} ms   keys of their own {own:>6.2f} ms   ratio {ratio:.2f}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    threads, repeats = arguments.threads, arguments.repeats
    print(
        f"{os.cpu_count()} cores, {threads} threads, load {os.getloadavg()[0]:.1f}, {METHOD}, medians of {repeats} repeats"
    )
    with tempfile.TemporaryDirectory() as name:
        bundle = bundle_of(Path(name))
        path = save_graph(step_graph(onnx.load(bundle.window_graph), METHOD), Path(name) / "step.onnx")
        window, step = open_session(bundle.window_graph, threads), open_session(path, threads)
        plain = OrtProvider(bundle, open_session(bundle.window_graph, threads), 1)
        report("host", lambda rows: HostStep(OrtProvider(bundle, window, rows), METHOD), plain, repeats)
        report("graph", lambda rows: OrtStep(step, rows), plain, repeats)
    for kind in ("host", "graph"):
        with open_model(open_bundle("fashion"), Place(threads=threads), ROWS, method=METHOD, step=kind) as made:
            report_embedded(made, kind, repeats)
    print(f"load at the end {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()

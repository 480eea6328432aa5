"""What corrected laws save, in passes: on `fashion`, on a text model, and on a large vocabulary.

    python benchmarks/corrections.py passes [BUNDLE] [--count 40] [--seed 7] [--json FILE]
    python benchmarks/corrections.py settings      # temperatures, top-k, guidance, greedy, batches of 8
    python benchmarks/corrections.py samples       # how many samples a fit needs
    python benchmarks/corrections.py cost          # of one correction, in softmaxes, by vocabulary
    python benchmarks/corrections.py large         # a random decoder with 16,384 tokens, to be decoded and fitted
    python benchmarks/corrections.py text BUNDLE   # a language model

Passes are free of noise: they depend on the model, the seed and nothing else. The pictures are of a seed that no table was fitted
on or chosen by (fits draw their samples with seed 1). Only `cost` and `large` time anything; they state the load.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from coupled_sampling import Sampling, generate, open_bundle
from coupled_sampling.backends import NetworkCorrection, open_model
from coupled_sampling.backends.ort.session import open_session
from coupled_sampling.bundles.opening import Bundle
from coupled_sampling.bundles.settings import DecodingSettings
from coupled_sampling.corrections import Changes, Corrector, LowRank
from coupled_sampling.export.graphs.correction_network import NetworkWeights, network_graph
from coupled_sampling.fitting import FitSettings, Optimiser, fit_corrections
from coupled_sampling.plain_corrections import RunningAverages
from coupled_sampling.target import target_law

Row = dict[str, Any]


def decoded(
    model: Any, settings: DecodingSettings, prompts: Sequence[Sequence[int]], seed: int, corrector: Corrector | None
) -> Row:
    """Passes of every prompt's sequence."""
    made = generate(
        model,
        prompts,
        length=settings.length,
        seed=seed,
        stop=settings.stop,
        sampling=settings.samplings(prompts),
        corrections=corrector,
        **settings.decoder,
    )
    passes = np.array([trace.nfe for trace in made.traces], float)
    tokens = sum(len(own) for own in made.tokens)
    return {
        "method": settings.method,
        "window": settings.window,
        "passes": float(passes.mean()),
        "sem": float(passes.std(ddof=1) / len(passes) ** 0.5) if len(passes) > 1 else 0.0,
        "tokens_per_pass": tokens / float(passes.sum()),
        "tokens": made.tokens,
    }


def prompts_of(bundle: Bundle, count: int) -> list[tuple[int, ...]]:
    named = [prompt.tokens for prompt in bundle.manifest.prompts.values()]
    return [named[i % len(named)] for i in range(count)]


def compared(
    bundle: Bundle,
    count: int,
    seed: int,
    windows: Sequence[int],
    methods: Sequence[str],
    kinds: Sequence[str],
    tables: Callable[[str, str], Corrector | None],
    rows: int = 1,
    **given: Any,
) -> list[Row]:
    """Every method at every window with every kind of corrections; and whether methods that promise it gave ``ar``'s tokens."""
    prompts, found = prompts_of(bundle, count), []
    guidance = given.get("guidance", 1.0)
    with open_model(bundle, rows=rows, guidance=guidance) as model:
        reference = decoded(model, bundle.settings(method="ar", **given), prompts, seed, None)["tokens"]
        for window in windows:
            for method in methods:
                for kind in kinds:
                    settings = bundle.settings(method=method, window=window, **given)
                    row = decoded(model, settings, prompts, seed, tables(method, kind))
                    same = all(np.array_equal(a, b) for a, b in zip(row.pop("tokens"), reference, strict=True))
                    found.append({**row, "corrections": kind, "identical_to_ar": same})
    return found


def shown(rows: Sequence[Row]) -> None:
    for row in rows:
        print(
            f"{row.get('setting', ''):<24}{row['window']:>4}  {row['method']:<12} {row['corrections']:<12}"
            f"{row['passes']:>7.1f} ± {row['sem']:.1f}{row['tokens_per_pass']:>8.2f}  {'ar' if row['identical_to_ar'] else ''}",
            flush=True,
        )


def corrector_of(bundle: Bundle, method: str, kind: str) -> Corrector | None:
    return NetworkCorrection.open(bundle, method) if kind == "network" else bundle.corrector(method, kind)


def kinds_of(bundle: Bundle) -> tuple[str, ...]:
    record = bundle.manifest.corrections
    return (
        ("none", "plain", "fitted")
        if record is None or record.network is None
        else ("none", "plain", "fitted", "network")
    )


def passes(arguments: argparse.Namespace) -> list[Row]:
    bundle = open_bundle(arguments.bundle or "fashion")
    rows = compared(
        bundle,
        arguments.count,
        arguments.seed,
        (32, 64),
        ("sjd", "scd-gumbel", "scd-maximal", "scd-match"),
        kinds_of(bundle),
        lambda method, kind: corrector_of(bundle, method, kind),
        rows=8,
    )
    shown(rows)
    return rows


def fitted_there(
    arguments: argparse.Namespace, bundle: Bundle, setting: str, kind: str, plan: FitSettings, **given: Any
) -> list[Row]:
    """Rows of ``setting`` with a table of their own, fitted as ``plan`` says; its samples are thrown away."""
    decoding = bundle.settings(window=32, **given)
    prompts = [prompt.tokens for prompt in bundle.manifest.prompts.values()]
    with tempfile.TemporaryDirectory() as work, open_model(bundle, guidance=decoding.scale) as model:
        tables = fit_corrections(model, bundle, decoding, prompts, Path(work) / "fit", settings=plan).tables.fitted
    by_method = {"scd-maximal": tables["rejection"], "scd-match": tables["match"]}
    count, seed = arguments.count, arguments.seed
    rows = compared(bundle, count, seed, (32,), tuple(by_method), (kind,), lambda method, _: by_method[method], **given)
    return [{"setting": setting, **row} for row in rows]


def settings(arguments: argparse.Namespace) -> list[Row]:
    """Other laws than the model's own, with the shipped table and, for two temperatures, with one fitted there."""
    bundle, rows = open_bundle("fashion"), []
    each: dict[str, dict[str, Any]] = {
        "temperature 0.7": {"temperature": 0.7},
        "temperature 2": {"temperature": 2.0},
        "top-k 100": {"top_k": 100},
        "guidance 2": {"guidance": 2.0},
        "greedy": {"temperature": 0.0},
        "batch 8": {"rows": 8},
    }
    methods, kinds = ("scd-maximal", "scd-match"), kinds_of(bundle)
    for name, given in each.items():
        tables = partial(corrector_of, bundle)
        some = compared(bundle, arguments.count, arguments.seed, (32,), methods, kinds, tables, **given)
        rows += [{"setting": name, **row} for row in some]
    for temperature in (0.7, 2.0):
        name = f"temperature {temperature:g}"
        rows += fitted_there(arguments, bundle, name, "fitted there", FitSettings(), temperature=temperature)
    shown(rows)
    return rows


def samples(arguments: argparse.Namespace) -> list[Row]:
    """What a fit to few samples and to many is worth."""
    bundle, rows = open_bundle("fashion"), []
    for count in (10, 40, 160, 520):
        some = fitted_there(arguments, bundle, f"{count} samples", "fitted", FitSettings(samples=count))
        shown(some)
        rows += some
    return rows


def timed(work: Callable[[], object], repeats: int) -> float:
    work()
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return float(np.median(seconds))


def cost(arguments: argparse.Namespace) -> list[Row]:
    """One position's correction beside one softmax of numpy, and what a table holds."""
    rows = []
    print(f"load {os.getloadavg()[0]:.1f}; medians of 30")
    for vocab_size in (267, 8192, 65536):
        generator = np.random.default_rng(0)

        def normal(*shape: int, scale: float = 0.3) -> Any:
            return (scale * generator.standard_normal(shape)).astype(np.float32)  # noqa: B023 - called before it changes

        table = LowRank(
            (1, 64),
            normal(vocab_size),
            normal(vocab_size, 32),
            normal(2, vocab_size + 1, 32),
            np.ones(4, np.float32),
            normal(4),
        )
        network = random_network(table, normal)
        for count in (1, 8):
            logits = normal(count, vocab_size, scale=3)
            old, new = generator.integers(0, vocab_size, (2, count, 2))
            changes = Changes(old, new, np.arange(100, 100 + count))
            softmax = timed(lambda: target_law(logits, Sampling()), 30)  # noqa: B023 - called before it changes
            own = timed(lambda: table.correct(logits, changes), 30)  # noqa: B023 - called before it changes
            networks = timed(lambda: network.correct(logits, changes), 30)  # noqa: B023 - called before it changes
            parts = (table.unigram, table.basis, table.neighbours)
            rows.append(
                {
                    "vocab_size": vocab_size,
                    "rows": count,
                    "softmax_us": 1e6 * softmax,
                    "correction_us": 1e6 * own,
                    "network_us": 1e6 * networks,
                    "softmaxes": own / softmax,
                    "table_mb": sum(part.nbytes for part in parts) / 1e6,
                }
            )
            print({key: round(value, 2) for key, value in rows[-1].items()}, flush=True)
    return rows


def random_network(table: LowRank, normal: Callable[..., Any]) -> NetworkCorrection:
    """One of the sizes that a fit gives it."""
    size, count, read, wide, hidden, basis = table.vocab_size, len(table.lags), 32, 32, 320, 64
    sizes = (2 * read + 1 + count * (2 * wide + 1), hidden, hidden, basis)
    layers = [(normal(a, b, scale=0.03), normal(b)) for a, b in itertools.pairwise(sizes)]
    matrices = (normal(size, read), normal(size, read), normal(count, size + 1, wide), normal(count, size + 1, wide))
    graph = network_graph(table, NetworkWeights(*matrices, layers, normal(basis, size), normal(size)), 0)
    return NetworkCorrection(open_session(graph.SerializeToString(), threads=1), table)


class RandomPictures:
    """A stand-in for a picture model with a large vocabulary: laws that its left and upper neighbours and a few more shape.

    Random weights of a real decoder make laws that hardly depend on anything. So this is a small network with random weights of a
    size that makes them depend: embeddings of four tokens before, one hidden layer, a product with V columns.
    """

    batch_size, max_length = 1, 24 * 24 + 1

    def __init__(self, vocab_size: int, columns: int, hidden: int = 64) -> None:
        generator = np.random.default_rng(0)
        self.vocab_size, self._lags = vocab_size, (1, columns, 2, columns + 1)
        self._embeddings = [
            (scale * generator.standard_normal((vocab_size + 1, hidden))).astype(np.float32)
            for scale in (1.2, 0.8, 0.4, 0.4)
        ]
        self._out = (2.2 / hidden**0.5 * generator.standard_normal((hidden, vocab_size))).astype(np.float32)
        self._held = np.zeros(self.max_length, np.int64)

    def forward(self, tokens: Any, start: Any) -> Any:
        begin, width = int(start[0]), tokens.shape[1]
        self._held[begin : begin + width] = tokens[0]
        total = np.zeros((width, self._out.shape[0]), np.float32)
        for lag, table in zip(self._lags, self._embeddings, strict=True):
            at = begin + np.arange(width) + 1 - lag
            total += table[np.where(at >= 0, self._held[np.maximum(at, 0)], self.vocab_size)]
        return (np.tanh(total) * 1.5 @ self._out)[None]


def large(arguments: argparse.Namespace) -> list[Row]:
    """V = 16,384: passes, time per step and memory, with no corrections, plain ones and a table of random numbers' size."""
    vocab_size, columns = 16_384, 24
    rows: list[Row] = []
    generator = np.random.default_rng(1)
    table = LowRank(
        (1, columns),
        np.zeros(vocab_size, np.float32),
        (0.1 * generator.standard_normal((vocab_size, 32))).astype(np.float32),
        (0.1 * generator.standard_normal((2, vocab_size + 1, 32))).astype(np.float32),
        np.ones(4, np.float32),
        np.zeros(4, np.float32),
    )
    ways: dict[str, Corrector | None] = {
        "none": None,
        "plain": RunningAverages((1, columns), vocab_size),
        "table": table,
    }
    print(f"load {os.getloadavg()[0]:.1f}")
    for method in ("scd-maximal", "scd-match"):
        for name, corrector in ways.items():
            model = RandomPictures(vocab_size, columns)
            began = time.perf_counter()
            made = generate(
                model,
                [[0]] * 2,
                length=columns * columns,
                method=method,
                window=32,
                drafting=f"copy:{columns}",
                seed=arguments.seed,
                corrections=corrector,
            )
            steps = sum(trace.nfe for trace in made.traces)
            rows.append(
                {
                    "method": method,
                    "corrections": name,
                    "tokens_per_pass": sum(map(len, made.tokens)) / steps,
                    "ms_per_step": 1e3 * (time.perf_counter() - began) / steps,
                    "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
                }
            )
            print(
                {key: value if isinstance(value, str) else round(value, 2) for key, value in rows[-1].items()},
                flush=True,
            )
    return rows


def text(arguments: argparse.Namespace) -> list[Row]:
    """A language model, of which little is expected: its law depends on more than the token to the left."""
    bundle = open_bundle(arguments.bundle)
    tokenizer = bundle.tokenizer()
    if tokenizer is None:
        raise SystemExit(f"{arguments.bundle} has no tokenizer")
    openings = ("The weather today is", "Once upon a time", "To bake bread you need", "The history of the city begins")
    prompts = [tokenizer.encode(opening) for opening in openings]
    decoding = replace(bundle.settings(method="scd-maximal", window=8, length=arguments.length, drafting="repeat"))
    plan = FitSettings(samples=arguments.fit, apart=4, optimiser=Optimiser(steps=150, batch=128), most_bytes=2**29)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as work, open_model(bundle) as model:
        fit = fit_corrections(model, bundle, decoding, prompts, Path(work) / "fit", settings=plan).tables
        for method, use in (("scd-maximal", "rejection"), ("scd-match", "match")):
            for kind, corrector in (("none", None), ("fitted", fit.fitted[use])):
                own = replace(decoding, method=method)
                row = decoded(model, own, [prompts[i % 4] for i in range(8)], arguments.seed, corrector)
                row.pop("tokens")
                rows.append({**row, "corrections": kind, "identical_to_ar": False})
    shown(rows)
    return rows


PARTS = {part.__name__: part for part in (passes, settings, samples, cost, large, text)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("bundle", nargs="?")
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--length", type=int, default=64, help="tokens of each text")
    parser.add_argument("--fit", type=int, default=40, help="texts to fit to")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    found = PARTS[arguments.part](arguments)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()

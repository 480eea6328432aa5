"""What branches save, in passes, and what a step with them costs the host.

    python benchmarks/trees.py passes [--count 40] [--seed 7] [--json FILE]
    python benchmarks/trees.py settings            # temperatures, top-k, guidance, greedy
    python benchmarks/trees.py text BUNDLE         # a language model
    python benchmarks/trees.py cost                # of a tree's step beyond a step of the same width, in softmaxes

Passes are free of noise: they depend on the model, the seed and nothing else. Nothing was fitted on the pictures of the seed, nor
chosen by them. Every row says whether its tokens are those of ``ar``. Only `cost` times anything; it states the load.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from corrections import decoded, prompts_of

from coupled_sampling import HostStep, Window, open_bundle
from coupled_sampling.backends import NetworkCorrection, open_model
from coupled_sampling.branching import BestFirst, BranchContext, checked_branches
from coupled_sampling.bundles.opening import Bundle
from coupled_sampling.contracts import Array, Candidates, Integers
from coupled_sampling.corrections import Corrector
from coupled_sampling.sampling import RowInfo, Sampling
from coupled_sampling.target import target_law

Row = dict[str, Any]

WINDOWS = ((32, 0), (32, 4), (64, 0), (64, 24), (256, 192))
"""Slots, and how many of them are for branches."""


def compared(
    bundle: Bundle,
    prompts: Sequence[Sequence[int]],
    seed: int,
    kinds: Sequence[tuple[str, Corrector | None]],
    windows: Sequence[tuple[int, int]] = WINDOWS,
    setting: str = "",
    **given: Any,
) -> list[Row]:
    """Every window with every kind of corrections, by ``scd-match``."""
    rows = []
    with open_model(bundle, guidance=given.get("guidance", 1.0), trees=True) as model:
        ar = replace(bundle.settings(method="scd-match", **given), method="ar")
        reference = decoded(model, ar, prompts, seed, None)["tokens"]
        for slots, branches in windows:
            for kind, corrector in kinds:
                settings = bundle.settings(method="scd-match", window=slots, branches=branches, **given)
                row = decoded(model, settings, prompts, seed, corrector)
                same = all(np.array_equal(a, b) for a, b in zip(row.pop("tokens"), reference, strict=True))
                named = {"setting": setting, "slots": slots, "branches": branches, "corrections": kind}
                rows.append({**named, **row, "identical_to_ar": same})
                shown(rows[-1])
    return rows


def shown(row: Row) -> None:
    print(
        f"{row['setting']:<18}{row['slots']:>5}{row['branches']:>5}  {row['corrections']:<9}{row['passes']:>7.1f}"
        f" ± {row['sem']:.1f}{row['tokens_per_pass']:>8.2f}  {'ar' if row['identical_to_ar'] else 'NOT ar'}",
        flush=True,
    )


def kinds_of(bundle: Bundle) -> list[tuple[str, Corrector | None]]:
    kept = [(kind, bundle.corrector("scd-match", kind)) for kind in ("none", "plain", "fitted")]
    return [*kept, ("network", NetworkCorrection.open(bundle, "scd-match"))]


def passes(arguments: argparse.Namespace) -> list[Row]:
    bundle = open_bundle("fashion")
    return compared(bundle, prompts_of(bundle, arguments.count), arguments.seed, kinds_of(bundle))


def settings(arguments: argparse.Namespace) -> list[Row]:
    bundle = open_bundle("fashion")
    each: dict[str, dict[str, Any]] = {
        "temperature 0.7": {"temperature": 0.7},
        "temperature 2": {"temperature": 2.0},
        "top-k 100": {"top_k": 100},
        "guidance 2": {"guidance": 2.0},
        "greedy": {"temperature": 0.0},
    }
    prompts, rows = prompts_of(bundle, min(20, arguments.count)), []
    for name, given in each.items():
        fitted = [("fitted", bundle.corrector("scd-match", "fitted"))]
        rows += compared(bundle, prompts, arguments.seed, fitted, setting=name, **given)
    return rows


def text(arguments: argparse.Namespace) -> list[Row]:
    bundle = open_bundle(arguments.bundle)
    tokenizer = bundle.tokenizer()
    if tokenizer is None:
        raise SystemExit(f"{arguments.bundle} has no tokenizer")
    openings = ("The weather today is", "Once upon a time", "To bake bread you need", "The history of the city begins")
    prompts = [tokenizer.encode(opening) for opening in openings]
    windows = ((8, 0), (8, 4), (16, 8), (32, 24))
    given = {"length": arguments.length, "drafting": "repeat"}
    return compared(bundle, prompts * 2, arguments.seed, [("none", None)], windows, setting="text", **given)


def timed(work: Callable[[], object], repeats: int) -> float:
    """Median seconds of this process alone, so that other load shows little."""
    work()
    seconds = []
    for _ in range(repeats):
        began = time.process_time()
        work()
        seconds.append(time.process_time() - began)
    return float(np.median(seconds))


class Given:
    """Logits that were made beforehand, so that a step over it costs what the host does."""

    batch_size, max_length, max_columns = 1, 4096, 8192

    def __init__(self, logits: Array) -> None:
        self.vocab_size, self._logits = int(logits.shape[-1]), logits

    def forward(self, tokens: Integers, start: Integers) -> Array:
        return self._logits[:, : tokens.shape[1]]

    def forward_tree(self, tokens: Integers, start: Integers, parents: Integers, rows: range) -> Array:
        return self._logits[:, : tokens.shape[1]]


def window_of(tokens: Integers, branches: int, round_: int, candidates: int) -> Window:
    """A known token and drafts, ``branches`` of them beside the path, two deep."""
    one, width = np.array([1]), tokens.shape[1]
    path = width - branches
    parents = np.arange(-1, width - 1)
    parents[path:] = [(i // 2) % (path - 1) if i % 2 == 0 else path + i - 1 for i in range(branches)]
    plain = Window(
        tokens,
        one * 100,
        one,
        one * (path - 1),
        one * 0,
        one == 1,
        one * round_,
        [RowInfo(0, 0, Sampling())],
        [np.concatenate([np.zeros(100, np.int64), tokens[0, :path]])],
        [None],
        candidates=candidates,
    )
    return plain._replace(branches=one * branches, parents=parents[None]) if branches else plain


def cost(arguments: argparse.Namespace) -> list[Row]:
    """CPU time: a step of 64 slots, one with 24 of them for branches, what the rule costs, and a softmax of 64 laws."""
    print(f"load {os.getloadavg()[0]:.1f}; medians of 100, milliseconds of CPU time")
    rows = []
    for vocab_size in (267, 8192, 16_384):
        generator = np.random.default_rng(0)
        logits = (3 * generator.standard_normal((1, 64, vocab_size))).astype(np.float32)
        tokens = generator.integers(0, vocab_size, (1, 64))
        step = HostStep(Given(logits), "scd-match")
        path, tree = window_of(tokens, 0, 1, 0), window_of(tokens, 24, 1, 16)
        best = np.sort(generator.standard_normal((39, 16)), axis=1)[:, ::-1]
        known = Candidates(np.argsort(generator.random((39, vocab_size)), axis=1)[:, :16], best)
        context = BranchContext(np.concatenate([tokens[0, :1], known.tokens[:, 0]]), 1, 24, 60, known)
        rule = BestFirst(24)
        figures = {
            "softmax": timed(lambda: target_law(logits, Sampling()), 100),  # noqa: B023 - called before it changes
            "step": timed(lambda: step.step(path), 100),  # noqa: B023 - called before it changes
            "tree step": timed(lambda: step.step(tree), 100),  # noqa: B023 - called before it changes
            "rule": timed(lambda: checked_branches(rule, context, vocab_size), 100),  # noqa: B023 - called before it changes
        }
        beyond = figures["tree step"] + figures["rule"] - figures["step"]
        rows.append({"vocab_size": vocab_size, **{name: 1e3 * value for name, value in figures.items()}})
        rows[-1]["softmaxes_beyond"] = beyond / figures["softmax"]
        print({name: round(value, 3) for name, value in rows[-1].items()}, flush=True)
    return rows


PARTS = {part.__name__: part for part in (passes, settings, text, cost)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("bundle", nargs="?")
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--length", type=int, default=64, help="tokens of each text")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows = PARTS[arguments.part](arguments)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()

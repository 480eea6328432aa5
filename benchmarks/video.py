"""`moving`, the embedded model of clips: how many tokens a pass gives, what that is worth in time, and what it depends on.

    python benchmarks/video.py passes [--count 20] [--seed 7] [--json FILE]   # methods, windows, corrected laws, branches, drafts
    python benchmarks/video.py time [--count 6] [--repeats 3] [--json FILE]   # batch 1, over `ar` in the same run
    python benchmarks/video.py depends BUNDLE ... [--count 20] [--json FILE]  # the same figures of models of other clips

Passes are free of noise: they depend on the model, the seed and nothing else. Every row of ``scd-match`` says whether its tokens
are those of ``ar``. Only `time` times anything; it states the load. `depends` takes bundles that ``make train-moving-variants``
makes: models of clips in which nothing moves, and of clips in which every frame is another shot.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from corrections import decoded, prompts_of

from coupled_sampling import open_bundle
from coupled_sampling.backends import NetworkCorrection, Place, open_model
from coupled_sampling.bundles.opening import Bundle
from coupled_sampling.cli.comparison import compare
from coupled_sampling.corrections import Corrector

Row = dict[str, Any]

TIMED = ("ar", "scd-maximal", "scd-match")
"""Those that have step graphs."""
COMPARED = ("sjd", "scd-maximal", "scd-match")
METHODS = ("sjd", "scd-maximal", "scd-gumbel", "scd-match")
DRAFTS = ("random:0:512", "repeat", "copy:8")
"""Beside the bundle's own, which copies the frame before."""


def measured(
    bundle: Bundle, prompts: Sequence[Sequence[int]], seed: int, method: str, corrector: Corrector | None, **given: Any
) -> Row:
    """One row, with the tokens."""
    settings = bundle.settings(method=method, **given)
    with open_model(bundle, trees=bool(settings.branches)) as model:
        return {
            "drafting": given.get("drafting", bundle.manifest.defaults.drafting),
            **decoded(model, settings, prompts, seed, corrector),
        }


def correctors(bundle: Bundle, method: str) -> list[tuple[str, Corrector | None]]:
    """Every way in which laws can be corrected here."""
    kinds: list[tuple[str, Corrector | None]] = [("none", None), ("plain", bundle.corrector(method, "plain"))]
    if bundle.manifest.corrections is not None:
        kinds.append(("fitted", bundle.corrector(method, "fitted")))
        if bundle.manifest.corrections.network is not None:
            kinds.append(("network", NetworkCorrection.open(bundle, method)))
    return kinds


def passes(arguments: argparse.Namespace) -> list[Row]:
    """Methods by windows; then corrected laws and branches for the two that lead; then other drafts."""
    bundle = open_bundle(arguments.bundle)
    prompts, seed = prompts_of(bundle, arguments.count), arguments.seed
    with open_model(bundle) as model:
        ar = decoded(model, replace(bundle.settings(method="scd-match"), method="ar"), prompts, seed, None)["tokens"]
    rows: list[Row] = []

    def add(method: str, kind: str, corrector: Corrector | None, **given: Any) -> None:
        row = measured(bundle, prompts, seed, method, corrector, **given)
        tokens = row.pop("tokens")
        same = (
            all(np.array_equal(own, its) for own, its in zip(tokens, ar, strict=True))
            if method == "scd-match"
            else None
        )
        rows.append({"corrections": kind, "branches": given.get("branches", 0), **row, "identical_to_ar": same})
        shown(rows[-1], rows)

    windows = [int(window) for window in arguments.windows.split(",")]
    for window in windows:
        for method in METHODS:
            add(method, "none", None, window=window)
        for method in ("scd-maximal", "scd-match"):
            for kind, corrector in correctors(bundle, method)[1:]:
                add(method, kind, corrector, window=window)
        kinds = correctors(bundle, "scd-match")
        for kind, corrector in (kinds[0], kinds[-1]):
            add("scd-match", kind, corrector, window=window, branches=window // 4)
    for drafting in DRAFTS:
        add("scd-match", "none", None, window=windows[-1], drafting=drafting)
    return rows


def shown(row: Row, rows: Sequence[Row]) -> None:
    sjd = next((r["passes"] for r in rows if (r["method"], r["window"]) == ("sjd", row["window"])), None)
    beside = f"{row['passes'] / sjd:>6.2f} of sjd's" if sjd else ""
    same = {True: "  ar", False: "  NOT ar", None: ""}[row["identical_to_ar"]]
    print(
        f"{row['window']:>4}  {row['method']:<12}{row['corrections']:<9}{row['branches']:>3}  {row['drafting']:<14}"
        f"{row['passes']:>7.1f} ± {row['sem']:.1f}{row['tokens_per_pass']:>7.2f}{beside}{same}",
        flush=True,
    )


def timing(arguments: argparse.Namespace) -> list[Row]:
    """Seconds over those of `ar` in the same run: medians over repeats."""
    bundle, place = open_bundle(arguments.bundle), Place(threads=arguments.threads)
    prompts = prompts_of(bundle, arguments.count)
    rows: list[Row] = []
    print(f"{arguments.count} clips, batch 1, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    for window in (32, 64, 128, "auto"):
        settings = bundle.settings(window=window)
        runs = []
        for _ in range(arguments.repeats):
            results = compare(lambda method: open_model(bundle, place, method=method), prompts, TIMED, settings)
            runs.append([result.figures() for result in results])
        for same in zip(*runs, strict=True):
            seconds, speedup = (
                float(np.median([run[name] for run in same])) for name in ("seconds", "speedup_seconds")
            )
            rows.append({**same[0], "window": window, "seconds": seconds, "speedup_seconds": speedup})
            row = rows[-1]
            step = 1e3 * seconds / (row["nfe_mean"] * row["sequences"])
            print(
                f"{window:>5}  {row['method']:<12}{row['tokens_per_step']:>7.2f} tokens per pass{step:>8.2f} ms a pass"
                f"{speedup:>7.2f} times ar  (window at the end {row['last_window']})",
                flush=True,
            )
    return rows


def depends(arguments: argparse.Namespace) -> list[Row]:
    """What the gain depends on: models of clips that move, that stand still, and that are cut at every frame."""
    rows: list[Row] = []
    for path in ("moving", *arguments.bundles):
        bundle = open_bundle(path)
        training = bundle.manifest.provenance["training"]
        prompts = prompts_of(bundle, arguments.count)
        row: Row = {name: training[name] for name in ("motion", "bits_per_token_test", "equal_to_frame_before_test")}
        for method in COMPARED:
            found = measured(bundle, prompts, arguments.seed, method, None, window=128)
            row[method] = found["tokens_per_pass"]
        rows.append(row)
        print(
            f"{row['motion']:<8}{row['equal_to_frame_before_test']:>6.0%} equal to the frame before, "
            f"{row['bits_per_token_test']:.2f} bits per token; tokens per pass: "
            + ", ".join(f"{method} {row[method]:.2f}" for method in COMPARED),
            flush=True,
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="kind", required=True)
    for name, work in (("passes", passes), ("time", timing), ("depends", depends)):
        kind = kinds.add_parser(name, help=work.__doc__)
        kind.set_defaults(work=work)
        kind.add_argument("--count", type=int, default=6 if name == "time" else 20, help="clips (default: %(default)s)")
        kind.add_argument("--json", type=Path, help="file to write the rows to")
        if name == "depends":
            kind.add_argument("bundles", nargs="*", help="folders, measured beside moving")
        else:
            kind.add_argument("--bundle", default="moving", help="name or folder (default: %(default)s)")
        if name == "time":
            kind.add_argument("--repeats", type=int, default=3)
            kind.add_argument("--threads", type=int)
        else:
            kind.add_argument("--seed", type=int, default=7)
        if name == "passes":
            kind.add_argument("--windows", default="64,128")
    arguments = parser.parse_args()
    rows = arguments.work(arguments)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()

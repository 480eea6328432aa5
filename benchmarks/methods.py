"""Every method on `fashion`: 40 pictures, temperature 1, no top-k, batch 1, windows 16, 32 and 64.

    python benchmarks/methods.py [--json] [--repeats 3]
    python benchmarks/methods.py --step graph --windows 8,10,12,16,20,24,32,auto

All methods of a window run one after the other in the same process on the same prompts and seeds; ratios are to AR in that run.
Seconds are medians over repeats. With ``--step graph`` every method, AR too, has its step graph. Redrafts are corrected by the
table of the bundle, unless ``--corrections none``. At the end stands which method and window were fastest. The entropy of the
model's own samples is estimated from held-out bits per token in the manifest.
"""

from __future__ import annotations

import argparse
import json
import os

import numpy as np

from coupled_sampling import open_bundle
from coupled_sampling.backends import Place, open_model
from coupled_sampling.cli.comparison import compare

METHODS = ("ar", "sjd", "scd-maximal", "scd-gumbel", "scd-match")


def measure(window: int | str, arguments: argparse.Namespace) -> list[dict[str, object]]:
    bundle, place = open_bundle("fashion"), Place(threads=arguments.threads)
    prompts = [p.tokens for p in bundle.manifest.prompts.values()]
    runs = []
    for _ in range(arguments.repeats):
        results = compare(
            lambda method: open_model(
                bundle, place, method=method, step=arguments.step, corrections=arguments.corrections
            ),
            [prompts[i % len(prompts)] for i in range(arguments.count)],
            METHODS,
            bundle.settings(window=window, drafting="copy:14"),
        )
        runs.append([result.figures() for result in results])
    rows = []
    for same in zip(*runs, strict=True):
        speedups = [run["speedup_seconds"] for run in same]
        middle = float(np.median([run["seconds"] for run in same]))
        rows.append({**same[0], "window": window, "seconds": middle, "speedup_seconds": float(np.median(speedups))})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--windows", default="16,32,64", help="numbers of slots, and auto for the width that is found")
    parser.add_argument("--step", choices=("host", "graph"), default="host")
    parser.add_argument("--corrections", choices=("auto", "none"), default="auto")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rows = [
        row
        for window in arguments.windows.split(",")
        for row in measure(window if window == "auto" else int(window), arguments)
    ]
    if arguments.json:
        print(json.dumps(rows, indent=2))
        return
    bits = open_bundle("fashion").manifest.provenance["training"]["bits_per_token_test"]
    print(
        f"{arguments.count} pictures, batch 1, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {bits:.2f} bits per token, "
        f"step {arguments.step}, corrections {arguments.corrections}"
    )
    print(
        f"{'window':>6}  {'method':<13}{'NFE':>14}{'tokens/step':>13}{'NFE/sjd':>9}{'seconds':>9}{'ms/step':>9}{'speed-up':>10}"
        "  same as ar"
    )
    for row in rows:
        sjd = next(r["nfe_mean"] for r in rows if r["window"] == row["window"] and r["method"] == "sjd")
        nfe = f"{row['nfe_mean']:.1f} ± {row['nfe_sem']:.1f}"
        step = 1e3 * row["seconds"] / (row["nfe_mean"] * row["sequences"])
        print(
            f"{row['window']:>6}  {row['method']:<13}{nfe:>14}{row['tokens_per_step']:>13.2f}{row['nfe_mean'] / sjd:>9.2f}"
            f"{row['seconds']:>9.2f}{step:>9.2f}{row['speedup_seconds']:>9.2f}x  {'yes' if row['identical_to_ar'] else 'no'}"
        )
    best = max(rows, key=lambda row: row["speedup_seconds"])
    print(
        f"fastest: {best['method']}, window {best['window']} ({best['last_window']} slots at the end): "
        f"{best['speedup_seconds']:.2f} times ar"
    )


if __name__ == "__main__":
    main()

"""Every method on the embedded model: 40 pictures, temperature 1, no top-k, batch 1, windows 16, 32 and 64.

    python benchmarks/methods.py [--json] [--repeats 3]

All methods of a window run one after the other in the same process on the same prompts and seeds; ratios are to AR in that run.
Seconds are medians over repeats. The entropy of the model's own samples is estimated from held-out bits per token in the manifest.
"""

from __future__ import annotations

import argparse
import json
import os

import numpy as np

from coupled_sampling import open_bundle
from coupled_sampling.backends.ort.provider import OrtProvider
from coupled_sampling.cli.comparison import compare

METHODS = ("ar", "sjd", "scd-maximal", "scd-gumbel", "scd-match")


def measure(window: int, count: int, repeats: int, threads: int | None) -> list[dict[str, object]]:
    bundle = open_bundle("fashion")
    prompts = [p.tokens for p in bundle.manifest.prompts.values()]
    runs = []
    for _ in range(repeats):
        results = compare(
            lambda _: OrtProvider.open(bundle, threads=threads),
            [prompts[i % len(prompts)] for i in range(count)],
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
    parser.add_argument("--windows", default="16,32,64")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rows = [
        row
        for window in arguments.windows.split(",")
        for row in measure(int(window), arguments.count, arguments.repeats, arguments.threads)
    ]
    if arguments.json:
        print(json.dumps(rows, indent=2))
        return
    bits = open_bundle("fashion").manifest.provenance["training"]["bits_per_token_test"]
    print(
        f"{arguments.count} pictures, batch 1, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {bits:.2f} bits per token"
    )
    print(
        f"{'window':>6}  {'method':<13}{'NFE':>14}{'tokens/step':>13}{'NFE/sjd':>9}{'seconds':>9}{'speed-up':>10}  same as ar"
    )
    for row in rows:
        sjd = next(r["nfe_mean"] for r in rows if r["window"] == row["window"] and r["method"] == "sjd")
        nfe = f"{row['nfe_mean']:.1f} ± {row['nfe_sem']:.1f}"
        print(
            f"{row['window']:>6}  {row['method']:<13}{nfe:>14}{row['tokens_per_step']:>13.2f}{row['nfe_mean'] / sjd:>9.2f}"
            f"{row['seconds']:>9.2f}{row['speedup_seconds']:>9.2f}x  {'yes' if row['identical_to_ar'] else 'no'}"
        )


if __name__ == "__main__":
    main()

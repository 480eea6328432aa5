"""Bulk runs beside the same pictures one at a time, on the CPU with one thread: ratios measured in one run.

    python benchmarks/bulk.py [--count 32] [--repeats 3]

Of `fashion`. What is compared takes turns in every repeat; printed are medians of CPU seconds, which other programs on the
machine disturb less than the clock, and of the clock. `generate` decodes; a bulk run also draws, and writes record and pictures.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from coupled_sampling import generate, open_bundle
from coupled_sampling.backends import Place, open_model
from coupled_sampling.serving.bulk.running import BulkSettings, run_bulk
from coupled_sampling.serving.lanes import LaneSettings

ONE = Place(threads=1)
NAMES = ("shoe", "bag", "dress", "coat")


def one_at_a_time(count: int, method: str) -> None:
    """As many calls of `generate`."""
    bundle = open_bundle("fashion")
    settings = bundle.settings(method=method)
    with open_model(bundle, ONE, **settings.model) as model:
        for i in range(count):
            prompt = bundle.manifest.find_prompt(NAMES[i % len(NAMES)])
            generate(model, [prompt], length=settings.length, seed=i, **settings.decoder)


def in_bulk(count: int, rows: int) -> None:
    """One bulk run."""
    with tempfile.TemporaryDirectory() as folder:
        prompts = Path(folder) / "prompts.jsonl"
        lines = [json.dumps({"id": str(i), "prompt": NAMES[i % len(NAMES)]}) for i in range(count)]
        prompts.write_text("\n".join(lines))
        opened = functools.partial(open_bundle, "fashion")
        run_bulk(str(prompts), Path(folder) / "out", opened, LaneSettings(place=ONE, rows=rows), BulkSettings())


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=32, help="pictures")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    count = arguments.count
    compared: dict[str, Callable[[], None]] = {
        f"generate, {method}, one at a time": functools.partial(one_at_a_time, count, method)
        for method in ("ar", "scd-match")
    }
    compared |= {f"bulk, scd-match, {rows} rows": functools.partial(in_bulk, count, rows) for rows in (1, 4, 8, 16)}
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in compared}
    for _ in range(arguments.repeats):
        for name, work in compared.items():
            clock, cpu = time.perf_counter(), time.process_time()
            work()
            spent[name].append((time.process_time() - cpu, time.perf_counter() - clock))
    print(f"{'':34} pictures/CPU s  pictures/s")
    for name, seconds in spent.items():
        cpu, clock = (statistics.median(column) for column in zip(*seconds, strict=True))
        print(f"{name:34} {count / cpu:14.1f} {count / clock:11.1f}")


if __name__ == "__main__":
    main()

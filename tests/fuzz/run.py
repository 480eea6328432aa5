"""Damaged files by the thousand for every reader: ``python tests/fuzz/run.py [--count 10000] [--only gguf graph] [--seed 0]``.

Prints a line for each reader and every input that was not handled as promised (see `trial`); exit code 1 if there is any. An
input can be had again by its number: ``--only gguf --first 4711 --count 1``.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).resolve().parents[1])]

from readers import READERS  # noqa: E402 - the folders are on the path now
from trial import Outcome, run_inputs, summary  # noqa: E402


def main() -> int:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000, help="inputs for each reader")
    parser.add_argument("--first", type=int, default=0, help="number of the first input")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=list(READERS), choices=list(READERS))
    parser.add_argument("--verbose", action="store_true", help="also say what was refused with what words")
    given, wrong = parser.parse_args(), 0
    for reader in given.only:
        outcomes: list[Outcome] = []
        for outcome in run_inputs(reader, range(given.first, given.first + given.count), given.seed):
            outcomes.append(outcome)
            if len(outcomes) % 1000 == 0:
                print(f"{reader}: {len(outcomes)} ...", file=sys.stderr, flush=True)
            if not outcome.is_right:
                wrong += 1
                print(f"{reader} {outcome.number}: {outcome.kind}\n{outcome.said}", flush=True)
        print(summary(reader, outcomes), flush=True)
        if given.verbose:
            for said, count in Counter(outcome.said[:110] for outcome in outcomes).most_common(60):
                print(f"  {count:>6} {said}")
    return wrong > 0


if __name__ == "__main__":
    sys.exit(main())

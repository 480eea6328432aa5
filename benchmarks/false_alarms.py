"""How often tests of equal laws say "different": 1,000 true nulls for every test, law and alpha.

    python benchmarks/false_alarms.py [--trials 1000]

A test is valid if its rate is not above alpha beyond the interval (95 %, Clopper and Pearson). Rates below alpha cost power only.
The last rows are the share of 95 % intervals for the total variation distance that hold the true one.
"""

from __future__ import annotations

import argparse
import sys

import numpy as np
import scipy
from scipy import stats

from coupled_sampling.testing.samples.counting import Cells, count_test, distance_of
from coupled_sampling.testing.samples.permutation import Shuffles, margins_of, statistics_of

DRAWS, OTHERS, SHUFFLED, SHUFFLES = 500, 700, 150, 199
ALPHAS = (0.05, 0.01)


def laws() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    small = 1.0 / np.arange(1, 401) ** 1.2
    joint = generator.dirichlet(np.full(8, 0.5))[:, None] * generator.dirichlet(np.full(8, 0.5), size=8)
    three = joint[:, :, None] * generator.dirichlet(np.full(8, 0.5), size=(8, 8))
    return {
        "flat, 20 tokens": np.full(20, 1 / 20),
        "flat, 400 tokens": np.full(400, 1 / 400),
        "peaked, 6 tokens": np.array([0.95, 0.03, 0.01, 0.005, 0.003, 0.002]),
        "many small, 400 tokens": small / small.sum(),
        "joint of 2, 64 cells": joint,
        "joint of 3, 512 cells": three,
    }


def p_values(law: np.ndarray, trials: int) -> dict[str, list[float]]:
    generator = np.random.default_rng(1)
    flat = law.ravel()
    vectors = np.stack(np.unravel_index(np.arange(law.size), law.shape), axis=1)
    found: dict[str, list[float]] = {}
    for trial in range(trials):
        first, second = generator.choice(law.size, DRAWS, p=flat), generator.choice(law.size, OTHERS, p=flat)
        one = Cells(vectors, first, None, flat)
        drawn, index = np.unique(np.concatenate([first, second]), return_inverse=True)
        together = np.bincount(index) / len(index)
        two = Cells(vectors[drawn], index[:DRAWS], index[DRAWS:], together)
        for kind in ("chi-square", "g"):
            for name, cells in (("law", one), ("two-sample", two)):
                found.setdefault(f"{kind}, {name}", []).append(count_test(cells, kind=kind, least=5.0).p_value)
        pairs = vectors[np.concatenate([first[:SHUFFLED], second[: SHUFFLED + 50]])]
        margins = margins_of(pairs)
        members = (np.arange(len(pairs)) < SHUFFLED).astype(np.float32)[None]
        shuffles = Shuffles(margins, SHUFFLED, SHUFFLES, trial)
        found.setdefault("permutation", []).append(
            float(shuffles.p_values(statistics_of(margins, members, 1 - members))[0])
        )
    return found


def coverage(law: np.ndarray, trials: int, *, two: bool) -> tuple[int, float]:
    """Intervals that hold the true distance, and the mean estimate; the second law has a TV of 0.1 from ``law``."""
    generator = np.random.default_rng(2)
    flat = law.ravel()
    inside = generator.random(flat.size) < 0.5
    inside[flat.argmax()] = False
    own = flat[inside].sum()
    other = np.where(inside, flat * (1 + 0.1 / own), flat * (1 - 0.1 / (1 - own)))
    held, estimates = 0, []
    for trial in range(trials):
        first = generator.choice(flat.size, DRAWS, p=flat)
        second = generator.choice(flat.size, OTHERS, p=other) if two else None
        cells = Cells(np.arange(flat.size)[:, None], first, second, other)
        distance = distance_of(cells, seed=trial)
        held += distance.low <= 0.1 <= distance.high
        estimates.append(distance.estimate)
    return held, float(np.mean(estimates))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=1000)
    trials = parser.parse_args().trials
    print(f"python {' '.join(sys.argv)}; numpy {np.__version__}, scipy {scipy.__version__}; {trials} trials")
    print(f"{DRAWS} draws, against {OTHERS}; permutation: {SHUFFLED} against {SHUFFLED + 50}, {SHUFFLES} shuffles\n")
    print(f"{'test':<24}{'law':<26}" + "".join(f"{'alpha ' + str(alpha):>26}" for alpha in ALPHAS))
    for name, law in laws().items():
        for test, values in p_values(law, trials).items():
            line = f"{test:<24}{name:<26}"
            for alpha in ALPHAS:
                hits = int((np.array(values) <= alpha).sum())
                low, high = stats.binomtest(hits, trials).proportion_ci()
                line += f"{hits / trials:>10.3f} ({low:.3f}-{high:.3f})" + ("!" if low > alpha else " ")
            print(line, flush=True)
    print("\ncoverage of the 95 % interval for a total variation distance of 0.1, and the mean estimate")
    for name, law in laws().items():
        for two in (False, True):
            held, mean = coverage(law, trials, two=two)
            print(f"{'two-sample' if two else 'law':<24}{name:<26}{held / trials:>10.3f}{mean:>10.3f}")


if __name__ == "__main__":
    main()

"""Chi-square and G tests of counts, against a law or between two samples; and how far apart the two laws are.

Pooling, one rule for all tests. A cell (a token vector) expected at least ``least_expected`` times is counted on its own. Rarer
cells are gathered by powers of two: first those expected at least half as often, then at least a quarter as often, and so on; a
group is closed as soon as it is expected ``least_expected`` times, and what is left over at the end joins the last group. The
expectation is N times the law, or, for two samples, the count in both together times the smaller sample's share: neither
knows which sample a draw came from, so pooling cannot favour a difference or hide one. Nor do the tokens' names matter.

A draw that the law forbids is never pooled: the p-value is then 0.

The G statistic 2 sum O log(O/E) is divided by Williams' factor (Biometrika 63, 1976), without which it rejects too often at
small expectations.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.contracts import Integers
from coupled_sampling.errors import MissingDependency

__all__ = ["Cells", "Counted", "Distance", "count_test", "distance_of", "pool", "require_scipy"]

Floats = NDArray[np.float64]
FOLDS = 10


def require_scipy() -> Any:
    """`scipy.stats`.

    Raises
    ------
    MissingDependency
        It is not installed.
    """
    try:
        import scipy.stats  # heavy, and no dependency of the core
    except ImportError as error:
        raise MissingDependency(
            "statistical tests need scipy, which is not installed: pip install 'coupled-sampling[testing]'"
        ) from error
    return scipy.stats


class Cells(NamedTuple):
    """The C token vectors that can occur or did, and in which of them every draw lies."""

    vectors: Integers
    """(C, n)."""
    first: Integers
    """(N,) cell of each draw of the first sample."""
    second: Integers | None
    """(M,) cells of the second sample, None where there is a law."""
    law: Floats
    """(C,) the law; for two samples, the share of each cell in both together."""

    @property
    def effective(self) -> float:
        """N, or N M / (N + M): what a difference of laws is multiplied by in the statistic."""
        n = len(self.first)
        return float(n) if self.second is None else n * len(self.second) / (n + len(self.second))

    def pooled(self, least: float) -> tuple[Integers, bool]:
        """Group of every cell, see `pool`."""
        n = len(self.first)
        return pool(self.law * (n if self.second is None else min(n, len(self.second))), least)


class Counted(NamedTuple):
    """Outcome of a test of counts."""

    statistic: float
    degrees: int
    p_value: float


class Distance(NamedTuple):
    """Total variation distance: an estimate, and an interval around it."""

    estimate: float
    low: float
    high: float


def pool(expected: Floats, least: float) -> tuple[Integers, bool]:
    """The group int64 (C,) of every cell, and whether the last group holds rare cells; see the module's text."""
    groups = np.full(len(expected), -1, np.int64)
    own = expected >= least
    groups[own] = np.arange(own.sum())
    count, rare = int(own.sum()), ~own
    if not rare.any():
        return groups, False
    level = np.full(len(expected), np.inf)
    possible = rare & (expected > 0)
    level[possible] = np.ceil(np.log2(least / expected[possible]))
    open_, mass = np.zeros(len(expected), bool), 0.0
    closed = False
    for depth in np.unique(level[rare]):
        here = rare & (level == depth)
        open_ |= here
        mass += float(expected[here].sum())
        if mass >= least:
            groups[open_] = count
            count, mass, closed = count + 1, 0.0, True
            open_[:] = False
    if open_.any():
        joins = count - 1 if closed or not own.any() else int(groups[own][np.argmin(expected[own])])
        groups[open_] = max(joins, 0)
    return groups, True


def count_test(cells: Cells, *, kind: str, least: float) -> Counted:
    """Chi-square (``kind`` "chi-square") or G test ("g") of ``cells``."""
    stats = require_scipy()
    groups, _ = cells.pooled(least)
    size = int(groups.max()) + 1
    first = np.bincount(groups[cells.first], minlength=size).astype(float)
    if cells.second is None:
        if (cells.law[cells.first] <= 0).any():
            return Counted(float("inf"), max(size - 1, 1), 0.0)
        total = np.bincount(groups, cells.law, minlength=size)
        observed, expected = first[None], len(cells.first) * total[None]
        correction = ((1 / total).sum() - 1) / (6 * len(cells.first))
    else:
        second = np.bincount(groups[cells.second], minlength=size).astype(float)
        observed = np.stack([first, second])
        sizes, together, draws = observed.sum(axis=1), observed.sum(axis=0), observed.sum()
        expected = sizes[:, None] * together / draws
        correction = (draws * (1 / sizes).sum() - 1) * (draws * (1 / together).sum() - 1) / (6 * draws)
    degrees = size - 1
    if degrees < 1:
        return Counted(0.0, 0, 1.0)
    if kind == "g":
        ratio = np.where(observed > 0, observed / expected, 1.0)
        statistic = float(2 * (observed * np.log(ratio)).sum() / (1 + correction / degrees))
    else:
        statistic = float(((observed - expected) ** 2 / expected).sum())
    return Counted(statistic, degrees, float(stats.chi2.sf(statistic, degrees)))


def distance_of(cells: Cells, *, level: float = 0.95, seed: int = 0) -> Distance:
    """Total variation distance between the two laws.

    TV = max over f with values in [-1, 1] of (E_first f - E_second f) / 2, reached by f = sign of the difference of the laws. The
    estimate is cross-fitted: f comes from nine tenths of the draws, the means from the other tenth, in turn. So its expectation is
    0 for equal laws and never above TV (the plug-in distance of two equal flat laws is far from 0).

    The interval goes from this estimate minus z / 2 sqrt(1/N + 1/M) to the plug-in distance plus as much: the first has an
    expectation of at most TV, the second of at least TV, and neither has a larger spread than that.
    """
    size, generator = len(cells.law), np.random.default_rng(seed)

    def shares(drawn: Integers) -> Floats:
        return np.bincount(drawn, minlength=size) / len(drawn)

    one, two = cells.first, cells.second
    difference = shares(one) - (cells.law if two is None else shares(two))
    plug_in = 0.5 * float(np.abs(difference).sum())
    folds = min(FOLDS, len(one), len(one) if two is None else len(two))
    fold_one = generator.permutation(len(one)) % folds
    fold_two = None if two is None else generator.permutation(len(two)) % folds
    estimates = []
    for k in range(folds):
        others = cells.law if two is None else shares(two[fold_two != k])
        sign = np.sign(shares(one[fold_one != k]) - others)
        mean = float(sign @ cells.law) if two is None else float(sign[two[fold_two == k]].mean())
        estimates.append(0.5 * (float(sign[one[fold_one == k]].mean()) - mean))
    estimate = float(np.mean(estimates))
    z = float(require_scipy().norm.ppf(0.5 + level / 2))
    margin = z * 0.5 * float(np.sqrt(1 / len(one) + (0 if two is None else 1 / len(two))))
    return Distance(max(estimate, 0.0), max(estimate - margin, 0.0), min(plug_in + margin, 1.0))

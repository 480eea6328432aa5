"""What a test could have seen: power against planted biases, and negative controls.

How large a bias must be to be caught depends on its kind, so several kinds are planted, each from the data themselves:

- ``hotter`` and ``colder``: the law raised to a power below or above 1 (where vectors are too many to count, the product of the
  positions' laws takes the law's place as the weight);
- ``moved mass``: mass moved from a random half of the cells to the other half, in proportion (where vectors are too many to
  count: halves of the pairs of tokens at two positions, of 20 random choices the most equal). By
  Cauchy-Schwarz no bias of the same TV is harder for a chi-square test over all cells;
- ``broken dependence``: one position drawn from its own marginal, independently of the others; the worst position is
  reported (where vectors are too many to count: the position that depends most on another one, and the share of draws redrawn,
  which is at least the TV).

Tests of counts use the noncentral chi-square law, tests by shuffling are simulated (60 times, so to
about 0.04, in steps of a sixteenth of the strongest bias, and without ``colder``).
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.contracts import Integers
from coupled_sampling.testing.samples.counting import Cells, count_test, require_scipy
from coupled_sampling.testing.samples.permutation import Shuffles, margins_of, statistics_of

__all__ = ["CONTROLS", "POWER", "Detectable", "counting_controls", "counting_power", "shuffling_power"]

Floats = NDArray[np.float64]
POWER = 0.9
CONTROLS = 5
SIMULATIONS = 60
STEPS = 4
SHUFFLES = 999


class Detectable(NamedTuple):
    """One kind of bias."""

    family: str
    tv: float | None
    """Smallest TV that is caught with probability 0.9; None if not even the strongest bias of the kind is."""
    largest_tv: float
    """TV of the strongest bias of the kind."""

    @property
    def missed(self) -> float:
        """Every bias of the kind with a larger TV is caught."""
        return self.largest_tv if self.tv is None else self.tv


def halves(mass: Floats, generator: np.random.Generator) -> NDArray[np.bool_]:
    """A random set of cells with at most half of the ``mass``, and about half where no cell is large."""
    order = generator.permutation(len(mass))
    inside = np.zeros(len(mass), bool)
    inside[order] = np.cumsum(mass[order]) <= mass.sum() / 2
    return inside if inside.any() or len(mass) == 1 else np.arange(len(mass)) != int(mass.argmax())


def moved(inside: NDArray[np.bool_], mass: Floats, share: float) -> Floats:
    """Factors (C,) that take ``share`` of the mass outside to the cells inside."""
    own = float(mass[inside].sum())
    gain = 1 + share * (1 - own) / own if own > 0 else 1.0
    return np.where(inside, gain, 1 - share)


def tilted(logs: Floats, mass: Floats, power: float) -> Floats:
    """Factors proportional to exp(power * logs), of mean 1 under ``mass``."""
    with np.errstate(invalid="ignore"):
        factors = np.where(mass > 0, np.exp(power * (logs - logs[mass > 0].max() * (power > 0))), 0.0)
    return np.asarray(factors / (factors @ mass), np.float64)


def replaced(rows: Integers, factors: Floats, mass: Floats, generator: np.random.Generator) -> Integers:
    """Draws whose law is ``factors`` times that of ``rows``, as few of them replaced as possible."""
    extra = np.maximum(factors - 1, 0) * mass
    out = np.flatnonzero(generator.random(len(rows)) >= factors[rows])
    changed = rows.copy()
    if len(out) and extra.sum() > 0:
        changed[out] = generator.choice(len(mass), len(out), p=extra / extra.sum())
    return changed


def smallest(caught: Callable[[float], float], tv: Callable[[float], float], family: str, steps: int) -> Detectable:
    """Bisect the strength in [0, 1] at which ``caught`` reaches `POWER`."""
    largest = tv(1.0)
    if caught(1.0) < POWER:
        return Detectable(family, None, largest)
    low, high = 0.0, 1.0
    for _ in range(steps):
        middle = 0.5 * (low + high)
        low, high = (low, middle) if caught(middle) >= POWER else (middle, high)
    return Detectable(family, tv(high), largest)


def counting_power(cells: Cells, *, alpha: float, least: float, seed: int) -> list[Detectable]:
    """What a chi-square or G test of ``cells`` would catch."""
    law = cells.law
    logs = np.log(np.where(law > 0, law, 1.0))
    inside = halves(law, np.random.default_rng(seed))

    def along(change: Callable[[float], tuple[Floats, float]], family: str) -> Detectable:
        def distance(strength: float) -> float:
            other, new = change(strength)
            return 0.5 * (float(np.abs(other - law).sum()) + new)

        return smallest(lambda s: _power(cells, *change(s), alpha=alpha, least=least), distance, family, 30)

    found = []
    if (law > 0).sum() > 1:
        found.append(along(lambda s: (law * tilted(logs, law, -s), 0.0), "hotter"))
        found.append(along(lambda s: (law * tilted(logs, law, 1 / (1 - 0.999 * s) - 1), 0.0), "colder"))
        found.append(along(lambda s: (law * moved(inside, law, s), 0.0), "moved mass"))
    else:
        found.append(along(lambda s: ((1 - s) * law, s), "moved mass"))
    n = cells.vectors.shape[1]
    broken = []
    for i in range(n if n > 2 else n - 1):
        apart = _independent(cells, i)
        new = max(0.0, 1 - float(apart.sum()))
        broken.append(
            along(lambda s, a=apart, m=new: ((1 - s) * law + s * a, s * m), f"broken dependence of position {i}")  # type: ignore[misc]
        )
    return found + ([max(broken, key=lambda one: one.missed)] if broken else [])


def _independent(cells: Cells, i: int) -> Floats:
    """What each cell's probability would be if position ``i`` were independent of the others."""
    own = np.unique(cells.vectors[:, i], return_inverse=True)[1].reshape(-1)
    rest = np.unique(np.delete(cells.vectors, i, axis=1), axis=0, return_inverse=True)[1].reshape(-1)
    return np.asarray(np.bincount(own, cells.law)[own] * np.bincount(rest, cells.law)[rest], np.float64)


def _power(cells: Cells, other: Floats, new: float, *, alpha: float, least: float) -> float:
    """Probability of rejection if the first sample's law is ``other`` (C,), with mass ``new`` in cells that the law has not."""
    stats = require_scipy()
    groups, rare = cells.pooled(least)
    size = int(groups.max()) + 1
    null, alternative = np.bincount(groups, cells.law, minlength=size), np.bincount(groups, other, minlength=size)
    allowed = 1.0
    if cells.second is None:
        allowed = (1 - new) ** len(cells.first)
        middle = null
    else:
        if new > 0 and rare:
            alternative[-1] += new
        elif new > 0:
            null, alternative, size = np.append(null, 0.0), np.append(alternative, new), size + 1
        share = len(cells.first) / (len(cells.first) + len(cells.second))
        middle = share * alternative + (1 - share) * null
    if size < 2:
        return 1 - allowed
    used = middle > 0
    shift = cells.effective * float(((alternative - null)[used] ** 2 / middle[used]).sum())
    critical = stats.chi2.isf(alpha, size - 1)
    missed = float(stats.ncx2.cdf(critical, size - 1, shift)) if shift > 0 else 1 - alpha
    return 1 - allowed * missed


def counting_controls(cells: Cells, *, tv: float, alpha: float, kind: str, least: float, seed: int) -> int:
    """How many of `CONTROLS` copies of the first sample, biased by ``tv``, are caught."""
    generator, caught = np.random.default_rng([seed, 1]), 0
    for _ in range(CONTROLS):
        inside = halves(cells.law, generator)
        if not inside.any():
            biased = np.where(generator.random(len(cells.first)) < tv, len(cells.law), cells.first)
            together = np.append(cells.law, 0.0)
            if cells.second is not None:
                drawn = np.concatenate([biased, cells.second])
                together = np.bincount(drawn, minlength=len(together)) / len(drawn)
            trial = cells._replace(first=biased, law=together)
        else:
            factors = moved(inside, cells.law, tv / float(cells.law[~inside].sum()))
            trial = cells._replace(first=replaced(cells.first, factors, cells.law, generator))
            if cells.second is not None:
                drawn = np.concatenate([trial.first, cells.second])
                present = np.bincount(drawn, minlength=len(cells.law))
                names = np.cumsum(present > 0) - 1
                trial = trial._replace(
                    first=names[trial.first], second=names[cells.second], law=present[present > 0] / len(drawn)
                )
        caught += count_test(trial, kind=kind, least=least).p_value < alpha
    return caught


def shuffling_power(
    vectors: Integers, first: int, *, alpha: float, control_tv: float, seed: int
) -> tuple[list[Detectable], int]:
    """What the test by shuffling would catch, and how many of `CONTROLS` biased copies of the first sample it does.

    Parameters
    ----------
    vectors
        (N + M, n): both samples, the first before the second.
    first
        N.
    """
    generator = np.random.default_rng([seed, 2])
    rows, n = vectors.shape
    mass = np.full(rows, 1 / rows)
    changed = vectors.copy()
    position = _most_dependent(vectors)
    changed[:, position] = vectors[generator.permutation(rows), position]
    extended = margins_of(np.concatenate([vectors, changed]))
    inside = _pair_halves(vectors, generator)
    logs = np.zeros(rows)
    for i in range(n):
        _, own, counts = np.unique(vectors[:, i], return_inverse=True, return_counts=True)
        logs += np.log(counts[own.reshape(-1)] / rows)

    everything = np.concatenate([vectors, changed])

    def caught(bias: Callable[[Integers, np.random.Generator], Integers]) -> float:
        """Share of biased samples caught; shuffles of one of them are the null law for all."""
        own, samples = np.random.default_rng([seed, 3]), []
        for _ in range(SIMULATIONS):
            order = own.permutation(rows)
            samples.append((bias(order[:first], own), order[first:]))
        null = Shuffles(margins_of(everything[np.concatenate(samples[0])]), first, SHUFFLES, seed)
        counts = [
            np.stack([np.bincount(pair[side], minlength=2 * rows) for pair in samples]).astype(np.float32)
            for side in (0, 1)
        ]
        return float((null.smooth_p_values(statistics_of(extended, counts[0], counts[1])) <= alpha).mean())

    def along(factors: Callable[[float], Floats], family: str) -> Detectable:
        def distance(strength: float) -> float:
            return 0.5 * float(np.abs(factors(strength) - 1).mean())

        return smallest(
            lambda s: caught(lambda part, own: replaced(part, factors(s), mass, own)), distance, family, STEPS
        )

    found = [
        along(lambda s: tilted(logs, mass, -s), "hotter"),
        along(lambda s: moved(inside, mass, s), "moved mass"),
    ]
    if n > 1:
        found.append(
            smallest(
                lambda s: caught(lambda part, own: np.where(own.random(len(part)) < s, part + rows, part)),
                lambda s: s,
                f"broken dependence of position {position} (share redrawn)",
                STEPS,
            )
        )
    return found, sum(
        _control_caught(vectors, first, mass, alpha=alpha, tv=control_tv, seed=seed + k, generator=generator)
        for k in range(CONTROLS)
    )


def _control_caught(
    vectors: Integers, first: int, mass: Floats, *, alpha: float, tv: float, seed: int, generator: np.random.Generator
) -> bool:
    """Whether a biased copy of the first sample is caught, by shuffles of its own: other pooled counts, another null law."""
    chosen = _pair_halves(vectors, generator)
    factors = moved(chosen, mass, tv / float(1 - chosen.mean()))
    biased = replaced(np.arange(first), factors, mass, generator)
    trial = np.concatenate([vectors[biased], vectors[first:]])
    margins = margins_of(trial)
    members = (np.arange(len(trial)) < first).astype(np.float32)[None]
    shuffles = Shuffles(margins, first, SHUFFLES, seed)
    return bool(shuffles.smooth_p_values(statistics_of(margins, members, 1 - members))[0] <= alpha)


def _pair_halves(vectors: Integers, generator: np.random.Generator) -> NDArray[np.bool_]:
    """Which vectors (R,) have a pair of tokens from a random half, at two random positions."""
    best = np.zeros(len(vectors), bool)
    for _ in range(20):
        chosen = generator.permutation(vectors.shape[1])[:2]
        code = vectors[:, chosen] @ np.array([1, int(vectors.max()) + 1])[: len(chosen)]
        _, cell, counts = np.unique(code, return_inverse=True, return_counts=True)
        inside = halves(counts / len(vectors), generator)[cell.reshape(-1)]
        if abs(inside.mean() - 0.5) < abs(best.mean() - 0.5):
            best = inside
    return best


def _most_dependent(vectors: Integers) -> int:
    """The position with the largest plug-in TV between its law with another one and the product of their laws."""
    rows, n = vectors.shape
    found = np.zeros(n)
    for i, j in combinations(range(n), 2):
        own = [np.unique(vectors[:, k], return_inverse=True)[1].reshape(-1) for k in (i, j)]
        sizes = [int(part.max()) + 1 for part in own]
        together = np.bincount(own[0] * sizes[1] + own[1], minlength=sizes[0] * sizes[1]) / rows
        apart = np.outer(*(np.bincount(part) / rows for part in own)).ravel()
        found[[i, j]] = np.maximum(found[[i, j]], 0.5 * np.abs(together - apart).sum())
    return int(found.argmax())

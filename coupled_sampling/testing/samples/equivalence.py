"""Are these tokens drawn from that law? A statistical test that also says what it could have seen.

"No difference seen" means nothing without "and this is what would have been seen". So every test comes with its power (the
smallest bias it catches nine times out of ten), an interval for the total variation distance, and a negative control: copies of the
sample with a planted bias of known size must be caught, or the verdict is "blind" and counts as a failure.

======================= =============================================================================================
method                  test
======================= =============================================================================================
``chi-square``, ``g``   counts of whole token vectors, against a law or another sample; rare ones pooled by one rule
                        (`coupled_sampling.testing.samples.counting`); p-values are asymptotic, their false alarms are measured
                        (``benchmarks/false_alarms.py``)
``permutation``         margins of two samples, calibrated by shuffling (`coupled_sampling.testing.samples.permutation`):
for joint laws of
                        many positions; a law is replaced by a sample from it
``auto``                ``chi-square`` if at least half of the mass is in vectors counted on their own, else ``permutation``
======================= =============================================================================================

It promises no proof: a smaller bias, or one of a kind that the test does not look at, goes unseen. Where the world is small
enough, `coupled_sampling.testing.exact_law` proves.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.contracts import Integers
from coupled_sampling.errors import InvalidArgument
from coupled_sampling.testing.arguments import (
    check_choice,
    check_count,
    check_level,
    check_number,
    check_seed,
    check_tolerance,
    shown,
)
from coupled_sampling.testing.samples.counting import Cells, Distance, count_test, distance_of, require_scipy
from coupled_sampling.testing.samples.permutation import Shuffles, margins_of, statistics_of
from coupled_sampling.testing.samples.power import (
    CONTROLS,
    POWER,
    Detectable,
    counting_controls,
    counting_power,
    shuffling_power,
)

__all__ = ["Equivalence", "Law", "assert_equivalent", "equivalence_test"]

Law: TypeAlias = Mapping[tuple[int, ...], float] | NDArray[np.floating]
"""Probabilities of token vectors: a mapping from tuples, or an array (V,) * n."""

Verdict: TypeAlias = Literal["different", "no difference seen", "blind"]
CONTROLS_NEEDED = CONTROLS - 1


@dataclass(frozen=True)
class Equivalence:
    """Outcome of `equivalence_test`.

    Examples
    --------
    >>> import numpy as np
    >>> from coupled_sampling.testing import equivalence_test
    >>> coins = np.random.default_rng(0).integers(2, size=500)
    >>> outcome = equivalence_test(coins, np.array([0.5, 0.5]))
    >>> outcome.verdict, outcome.sizes, outcome.controls_caught
    ('no difference seen', (500, None), 5)
    """

    verdict: Verdict
    """"different": p_value <= alpha. "blind": not different, but neither were the copies with a planted bias."""
    method: str
    """The test that was run."""
    statistic: float
    """Chi-square or G; for permutation, the sum of standardised margins."""
    degrees_of_freedom: int | None
    """None for permutation."""
    p_value: float
    alpha: float
    distance: Distance
    """Total variation distance between the joint laws: cross-fitted estimate and 95 % interval (conservative)."""
    sizes: tuple[int, int | None]
    """Draws of both samples; the second is None where there is a law."""
    cells: int
    """Groups counted, or margins tested."""
    detectable: tuple[Detectable, ...]
    """Power, by kind of bias."""
    detectable_tv: float
    """Every planted bias with a larger TV is caught with probability 0.9 at this size and alpha, of whatever kind."""
    control_tv: float
    """TV of the negative control."""
    controls_caught: int
    """How many of five biased copies of the first sample were caught; four are needed."""

    def report(self) -> str:
        """All of it, for people."""
        other = "a law" if self.sizes[1] is None else f"{self.sizes[1]} draws"
        degrees = "" if self.degrees_of_freedom is None else f", {self.degrees_of_freedom} degrees of freedom"
        lines = [
            f"{self.verdict}: {self.method} test of {self.sizes[0]} draws against {other}",
            f"  p-value {self.p_value:.3g} (alpha {self.alpha:.3g}), statistic {self.statistic:.4g}{degrees}, {self.cells} cells",
            f"  total variation distance {self.distance.estimate:.3f}, 95 % interval {self.distance.low:.3f} to "
            f"{self.distance.high:.3f}",
            f"  catches with probability {POWER}: {self._power()}",
        ]
        for one in self.detectable:
            seen = f"not even the strongest, {one.largest_tv:.3f}" if one.tv is None else f"TV {one.tv:.3f}"
            lines.append(f"    {one.family}: {seen}")
        lines.append(
            f"  negative control: {self.controls_caught} of {CONTROLS} copies with a bias of TV {self.control_tv:.2f} caught"
        )
        if self.verdict == "blind":
            lines.append("  so this test could not have seen anything: take more draws, or fewer positions")
        return "\n".join(lines)

    def _power(self) -> str:
        sizes = [one.tv for one in self.detectable if one.tv is not None]
        if not sizes:
            return "no planted bias"
        unseen = "" if len(sizes) == len(self.detectable) else ", of the kinds below that it can see at all"
        return f"planted biases of TV from {max(sizes):.3f} on{unseen}"

    def __str__(self) -> str:
        return self.report()


def equivalence_test(
    sample: Integers | Sequence[Any],
    other: Integers | Sequence[Any] | Law,
    *,
    alpha: float = 1e-3,
    method: Literal["auto", "chi-square", "g", "permutation"] = "auto",
    least_expected: float = 5.0,
    permutations: int | None = None,
    control_tv: float = 0.25,
    seed: int = 0,
) -> Equivalence:
    """Test whether ``sample`` has the law of ``other``.

    Parameters
    ----------
    sample
        int (N, n): N independent draws of n tokens each, tested jointly; (N,) for one token each.
    other
        Another sample (M, n), drawn independently of the first; or a `Law`: a mapping from tuples of n tokens, or a
        floating array (V,) * n, that sums to one within 1e-4.
    alpha
        Chance of "different" for equal laws.
    method, least_expected
        See the module's text. ``least_expected`` is the least expected count of a group.
    permutations
        Shuffles of the permutation test; default 4 / alpha, from 999 to 19999.
    control_tv
        TV of the negative control, in (0, 0.5].
    seed
        Of shuffles, folds and controls; the outcome is a function of the arguments.

    Raises
    ------
    InvalidArgument
        A shape, type or law cannot work.
    MissingDependency
        scipy is not installed.

    Examples
    --------
    >>> import numpy as np
    >>> from coupled_sampling.testing.samples.equivalence import equivalence_test
    >>> dice = np.random.default_rng(0).integers(6, size=2000)
    >>> equivalence_test(dice, np.full(6, 1 / 6)).verdict
    'no difference seen'
    >>> equivalence_test(dice, np.array([0.26, 0.14, 0.15, 0.15, 0.15, 0.15])).verdict
    'different'
    """
    require_scipy()
    _check_settings(alpha, method, least_expected, permutations, control_tv)
    seed = check_seed("seed", seed)
    first = _checked_sample("sample", sample)
    law = _checked_law(other, first.shape[1])
    second = _checked_sample("other", other) if law is None else None
    if second is not None and second.shape[1] != first.shape[1]:
        raise InvalidArgument(
            f"sample has {first.shape[1]} tokens per draw, other has {second.shape[1]}; give both the same number of positions"
        )
    cells = _cells(first, second, law)
    distance = distance_of(cells, seed=seed)
    groups, rare = cells.pooled(least_expected)
    impossible = law is not None and bool((cells.law[cells.first] <= 0).any())
    if method == "auto":
        _, counts = np.unique(groups, return_counts=True)
        own = counts[groups] == 1 if not rare else (counts[groups] == 1) & (groups < groups.max())
        method = "chi-square" if impossible or float(cells.law[own].sum()) >= 0.5 else "permutation"
    if method != "permutation" or impossible:
        kind = "chi-square" if method == "permutation" else method
        test = count_test(cells, kind=kind, least=least_expected)
        power = counting_power(cells, alpha=alpha, least=least_expected, seed=seed)
        caught = counting_controls(cells, tv=control_tv, alpha=alpha, kind=kind, least=least_expected, seed=seed)
        return _outcome(
            cells, kind, test.statistic, test.degrees, test.p_value, alpha, distance, int(groups.max()) + 1, power,
            control_tv, caught,
        )  # fmt: skip
    if second is None:
        drawn = np.random.default_rng([seed, 4]).choice(len(cells.law), len(first), p=cells.law)
        second = cells.vectors[drawn]
    vectors = np.concatenate([first, second])
    margins = margins_of(vectors)
    count = min(max(math.ceil(4 / alpha), 999), 19999) if permutations is None else permutations
    shuffles = Shuffles(margins, len(first), count, seed)
    members = (np.arange(len(vectors)) < len(first)).astype(np.float32)[None]
    observed = statistics_of(margins, members, 1 - members)
    power, caught = shuffling_power(vectors, len(first), alpha=alpha, control_tv=control_tv, seed=seed)
    return _outcome(
        cells, method, float(shuffles.scores(observed).sum()), None, float(shuffles.p_values(observed)[0]), alpha,
        distance, len(margins.positions), power, control_tv, caught,
    )  # fmt: skip


def assert_equivalent(sample: Any, other: Any, **settings: Any) -> Equivalence:
    """`equivalence_test`, refusing "different" and "blind".

    Raises
    ------
    AssertionError
        With the report, if a difference was seen or none could have been.

    Examples
    --------
    >>> import numpy as np
    >>> from coupled_sampling.testing import assert_equivalent
    >>> coins = np.random.default_rng(0).integers(2, size=500)
    >>> assert_equivalent(coins, np.array([0.8, 0.2]))
    Traceback (most recent call last):
    AssertionError: different: chi-square test of 500 draws against a law...
    """
    result = equivalence_test(sample, other, **settings)
    if result.verdict != "no difference seen":
        raise AssertionError(result.report())
    return result


def _outcome(
    cells: Cells,
    method: str,
    statistic: float,
    degrees: int | None,
    p_value: float,
    alpha: float,
    distance: Distance,
    used: int,
    power: list[Detectable],
    control_tv: float,
    caught: int,
) -> Equivalence:
    verdict: Verdict = "no difference seen" if caught >= CONTROLS_NEEDED else "blind"
    return Equivalence(
        verdict="different" if p_value <= alpha else verdict,
        method=method,
        statistic=statistic,
        degrees_of_freedom=degrees,
        p_value=p_value,
        alpha=alpha,
        distance=distance,
        sizes=(len(cells.first), None if cells.second is None else len(cells.second)),
        cells=used,
        detectable=tuple(power),
        detectable_tv=max(one.missed for one in power),
        control_tv=control_tv,
        controls_caught=caught,
    )


def _check_settings(
    alpha: float, method: str, least_expected: float, permutations: int | None, control_tv: float
) -> None:
    check_level("alpha", alpha)
    check_choice("method", method, ("auto", "chi-square", "g", "permutation"))
    if check_number("least_expected", least_expected, "a count >= 1; 5 is usual") < 1:
        raise InvalidArgument(f"least_expected is {least_expected}, expected a count >= 1; 5 is usual")
    if permutations is not None and (1 + check_count("permutations", permutations, 1, 10**6)) * alpha < 1:
        raise InvalidArgument(
            f"permutations is {permutations}: no p-value reaches alpha = {alpha}; ask for at least {math.ceil(1 / alpha)}"
        )
    if not 0 < check_number("control_tv", control_tv, "a distance in (0, 0.5]") <= 0.5:
        raise InvalidArgument(f"control_tv is {control_tv}, expected a distance in (0, 0.5]")


def _checked_sample(name: str, sample: Any) -> Integers:
    """int64 (N, n)."""
    try:
        array = np.asarray(sample)
    except ValueError as error:
        raise InvalidArgument(f"{name} is ragged ({error}); give every draw the same number of tokens") from error
    except Exception as error:  # whatever a stranger's __array__ or __len__ raises
        raise InvalidArgument(
            f"{name} is {shown(sample)}, expected an array of tokens (draws, tokens per draw)"
        ) from error
    if array.ndim == 1:
        array = array[:, None]
    if array.ndim != 2 or not array.shape[1]:
        raise InvalidArgument(f"{name} has shape {array.shape}, expected (draws, tokens per draw)")
    if len(array) < 2:
        raise InvalidArgument(f"{name} has {len(array)} draws, expected at least 2")
    if not np.issubdtype(array.dtype, np.integer):
        raise InvalidArgument(f"{name} has type {array.dtype}, expected integer tokens")
    if int(array.min()) < 0:
        raise InvalidArgument(f"{name} holds the token {int(array.min())}, expected tokens >= 0")
    return array.astype(np.int64)


def _checked_law(other: Any, n: int) -> tuple[Integers, NDArray[np.float64]] | None:
    """Vectors (C, n) and probabilities (C,); None if ``other`` is a sample."""
    if isinstance(other, Mapping):
        if not other:
            raise InvalidArgument("the law is empty, expected probabilities of token tuples")
        for key, chance in other.items():
            check_tolerance(f"other[{shown(key)}]", chance)
        keys = [key if isinstance(key, tuple) else (key,) for key in other]
        if any(len(key) != n for key in keys):
            raise InvalidArgument(f"the law has tuples of other lengths than {n}, the tokens per draw of sample")
        vectors, law = _checked_sample("the law's keys", [*keys, keys[0]])[:-1], np.array(list(other.values()), float)
    else:
        array = other if hasattr(other, "dtype") and hasattr(other, "ndim") else None
        if array is None or not np.issubdtype(np.asarray(array).dtype, np.floating):
            return None
        array = np.asarray(array, float)
        if array.ndim != n:
            raise InvalidArgument(
                f"the law has shape {array.shape}, expected one axis for each of the {n} tokens per draw; if it is meant as a "
                "sample, its tokens must be integers"
            )
        vectors = np.stack(np.unravel_index(np.arange(array.size), array.shape), axis=1).astype(np.int64)
        law = array.ravel()
    if not np.isfinite(law).all() or (law < 0).any():
        raise InvalidArgument("the law holds negative or non-finite numbers, expected probabilities")
    if abs(float(law.sum()) - 1) > 1e-4:
        raise InvalidArgument(f"the law sums to {float(law.sum()):.6g}, expected 1 within 1e-4; normalise it")
    return vectors[law > 0], law[law > 0] / law.sum()


def _cells(first: Integers, second: Integers | None, law: tuple[Integers, NDArray[np.float64]] | None) -> Cells:
    """Name all token vectors by numbers."""
    known = second if second is not None else law[0] if law is not None else first[:0]
    vectors, index = np.unique(np.concatenate([first, known]), axis=0, return_inverse=True)
    index = index.reshape(-1).astype(np.int64)
    own, others = index[: len(first)], index[len(first) :]
    if law is None:
        return Cells(vectors, own, others, np.asarray(np.bincount(index, minlength=len(vectors)) / len(index), float))
    weights = np.asarray(np.bincount(others, law[1], minlength=len(vectors)), np.float64)
    return Cells(vectors, own, None, weights)

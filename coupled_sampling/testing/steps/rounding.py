"""Target laws in float64 with the error that an implementation in a shorter precision may make: what `ties` judges by.

The error of a law, to first order and with ``eps`` the spacing of the shorter precision at 1 (2**-23 for float32). For a token
of weight exp(a), a = (logit - largest logit) / temperature:

- a is a difference, a rounded temperature and a quotient: three roundings, 1.5 * eps * abs(a); and logits that differ by
  ``logits_error`` each move it by 2 * logits_error / temperature;
- exp itself is off by at most 3 units in the last place (numpy states 2.52, ONNX Runtime's polynomial has less), and the
  quotient by the sum, the rounding of the race weight and the product with it add 0.5 each: together less than
  6 * eps, relatively;
- the sum of V weights is off, relatively, by the mean of those errors and by sqrt(V) * eps / 2 and 4 * eps more. The first of
  the two is what rounding of a sum from the left to the right stays below with high probability (Higham and Mary, SIAM J. Sci.
  Comput. 41, 2019); blocks and vector lanes do better. It is common to all tokens of a law, so it matters where two laws
  are compared, and not to a race.

Top-k, top-p and min-p keep the tokens from some logit on. Where that threshold is within its own rounding of another logit, there
are several laws, and each says how far its cut is from the exact one.

What is not covered: logits that rank differently than these within ``logits_error`` are cut in the order of these.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.contracts import Sampling

__all__ = ["EXACT", "FLOAT32", "IMPOSSIBLE", "Margin", "RoundedLaw", "given_law", "point_law", "rounded_laws"]

FLOAT32 = float(np.finfo(np.float32).eps)
"""The spacing of float32 at 1."""

_ELEMENT, _ARGUMENT, _SUM = 6.0, 1.5, 4.0
_MOST_CUTS = 8
Floats = NDArray[np.float64]


class Margin(NamedTuple):
    """How far what decided lies from its threshold, and how far rounding may carry it."""

    kind: str
    """"race", "acceptance", "inverse CDF", "top-k", "top-p", "min-p", "greedy", or "rule" for what no rounding can bring about."""
    margin: float
    """Relative; 0 where the exact decision is the one judged."""
    bound: float

    @property
    def strain(self) -> float:
        """``margin / bound``: at most 1 for what rounding can bring about."""
        if self.margin <= 0:
            return 0.0
        # A bound that is not a number explains nothing.
        return self.margin / self.bound if self.bound > 0 else np.inf


EXACT = Margin("rule", 0.0, 0.0)
IMPOSSIBLE = Margin("rule", np.inf, 0.0)


@dataclass(frozen=True)
class RoundedLaw:
    """A law in float64 and what rounding may make of it.

    Parameters
    ----------
    law
        (V,).
    argument
        (V,) logarithms of weights proportional to it; -inf for forbidden tokens.
    wobble
        (V,) error of ``argument``.
    error
        (V,) absolute error of ``law``, but for a factor common to all tokens.
    common
        Relative error of that factor.
    unit
        The spacing eps.
    cut
        How far the set of tokens that were kept is from the exact one.
    """

    law: Floats
    argument: Floats
    wobble: Floats
    error: Floats
    common: float
    unit: float
    cut: Margin = EXACT

    def relative(self, token: int) -> float:
        """Relative error of one token's probability; infinite where it has none."""
        law = float(self.law[token])
        return float(self.error[token]) / law + self.common if law > 0 else np.inf

    @property
    def of_sums(self) -> float:
        """Relative error of sums over tokens, but for the common factor."""
        return float(self.error.sum()) + _sum_error(len(self.law), self.unit)


def _sum_error(count: int, unit: float) -> float:
    return (math.sqrt(count) / 2 + _SUM) * unit


def point_law(token: int, vocab_size: int, unit: float, cut: Margin = EXACT) -> RoundedLaw:
    """All mass on ``token``, without error."""
    law, argument, zeros = np.zeros(vocab_size), np.full(vocab_size, -np.inf), np.zeros(vocab_size)
    law[token], argument[token] = 1, 0
    return RoundedLaw(law, argument, zeros, zeros, 0.0, unit, cut)


def given_law(law: Floats, unit: float) -> RoundedLaw:
    """A law that came with its drafts: rounded once, when it is taken in."""
    with np.errstate(divide="ignore"):
        argument = np.log(law)
    return RoundedLaw(law, argument, np.zeros(len(law)), law * unit, 0.0, unit)


def rounded_laws(
    logits: Floats, sampling: Sampling, *, logits_error: float = 0.0, unit: float = FLOAT32
) -> list[RoundedLaw]:
    """The laws that ``logits`` (V,) may have become: the exact one first, others where a token is at a threshold.

    Parameters
    ----------
    logits
        float64 (V,) after processors; -inf forbids a token.
    sampling
        Temperature, top-k, top-p, min-p.
    logits_error
        By how much another implementation's logits may differ, each, absolutely.
    unit
        The spacing eps of the shortest precision at work.
    """
    highest = float(logits.max())
    if sampling.temperature == 0:
        return _greedy_laws(logits, highest, logits_error, unit)
    argument = (logits - highest) / sampling.temperature
    finite = np.isfinite(argument)
    wobble = np.zeros_like(argument)
    wobble[finite] = _ARGUMENT * unit * -argument[finite] + 2 * logits_error / sampling.temperature
    if not sampling.warps:
        return [_law_of(argument, wobble, unit, EXACT)]
    moved = 2 * logits_error / sampling.temperature
    cuts = _Cuts(argument, wobble, sampling, highest / sampling.temperature, moved, unit)
    return [
        _law_of(np.where(argument >= least, argument, -np.inf), wobble, unit, cut) for least, cut in cuts.possible()
    ]


def _greedy_laws(logits: Floats, highest: float, logits_error: float, unit: float) -> list[RoundedLaw]:
    first = int(logits.argmax())
    others = (
        [int(i) for i in np.flatnonzero(logits >= highest - 2 * logits_error) if i != first] if logits_error else []
    )
    away = [Margin("greedy", float(highest - logits[i]), 2 * logits_error) for i in others]
    pairs = [(first, EXACT), *zip(others[:_MOST_CUTS], away[:_MOST_CUTS], strict=True)]
    return [point_law(token, len(logits), unit, cut) for token, cut in pairs]


def _law_of(argument: Floats, wobble: Floats, unit: float, cut: Margin) -> RoundedLaw:
    weights = np.exp(argument)
    # exp(a + wobble) - exp(a), for small ones without the rounding of that difference; weights past e mean nothing more.
    spread = weights * np.expm1(np.minimum(wobble, 1))
    spread = np.where(wobble < 1, spread, np.exp(np.minimum(argument + wobble, 1)) - weights)
    total = weights.sum()
    error = (spread + _ELEMENT * unit * weights) / total
    common = float(error.sum()) + _sum_error(len(weights), unit)
    return RoundedLaw(weights / total, argument, np.where(weights > 0, wobble, 0), error, common, unit, cut)


class _Cuts:
    """Where top-k, top-p and min-p may cut a row, in the order of its logits.

    ``m`` counts the tokens that are kept. Each rule has a count of its own; the smallest one holds.
    """

    def __init__(
        self, argument: Floats, wobble: Floats, sampling: Sampling, highest: float, moved: float, unit: float
    ) -> None:
        order = np.argsort(-argument, kind="stable")
        order = order[np.isfinite(argument[order])]
        self.sorted, self.wobble, self.unit = argument[order], wobble[order], unit
        self.size, self.sampling, self.moved = len(order), sampling, moved
        self.mass = np.cumsum(np.exp(self.sorted))
        limit = self.size if sampling.top_k is None else min(sampling.top_k, self.size)
        self.top_k = self._with_ties(limit) if sampling.top_k is not None else self.size
        self.wanted = sampling.top_p * self.mass[self.top_k - 1]
        short = int(np.searchsorted(self.mass, self.wanted))
        self.top_p = min(self._with_ties(min(short, limit - 1) + 1), self.top_k) if sampling.top_p < 1 else self.size
        self.least = np.log(sampling.min_p) if sampling.min_p > 0 else -np.inf
        self.min_p = int((self.sorted >= self.least).sum())
        # The shares' own errors, those of two sums, and the slack of 8 eps that implementations give the comparison.
        errors = np.exp(self.sorted) * (_ELEMENT * unit + np.expm1(np.minimum(self.wobble, 1)))
        self.mass_bound = 2 * float(errors.sum() / self.mass[-1]) + 2 * _sum_error(self.size, unit) + 8 * unit
        # A threshold on the logits themselves is the largest one plus a difference, and has its size.
        self.least_bound = 3 * unit * (1 + abs(highest) + (abs(self.least) if np.isfinite(self.least) else 0))

    def _with_ties(self, count: int) -> int:
        """Tokens at least as large as the ``count``-th."""
        return int((self.sorted >= self.sorted[count - 1]).sum())

    def possible(self) -> list[tuple[float, Margin]]:
        """The smallest argument that is kept, and how far that is from the exact cut, which comes first."""
        exact = min(self.top_k, self.top_p, self.min_p)
        found = [(float(self.sorted[exact - 1]), EXACT)]
        for step in (-1, 1):
            count = exact
            for _ in range(_MOST_CUTS):
                count = self._next(count, step)
                if not 1 <= count <= self.size:
                    break
                cut = self._margin(count, exact)
                if cut.strain > 1:
                    break
                found.append((float(self.sorted[count - 1]), cut))
        return found

    def _next(self, count: int, step: int) -> int:
        """The next count at which equal arguments stay together; 0 or size + 1 where there is none."""
        if step > 0:
            return self._with_ties(count + 1) if count < self.size else self.size + 1
        return int((self.sorted > self.sorted[count - 1]).sum())

    def _margin(self, count: int, exact: int) -> Margin:
        """How far ``count`` is: one rule must cut there, or every rule that cuts earlier must not."""
        if count < exact:
            return min((self._of_top_k(count), self._of_top_p(count), self._of_min_p(count)), key=lambda m: m.strain)
        held = [
            margin
            for own, margin in (
                (self.top_k, self._of_top_k(count)),
                (self.top_p, self._of_top_p(count)),
                (self.min_p, self._of_min_p(count)),
            )
            if own < count
        ]
        return max(held, key=lambda m: m.strain)

    def _of_top_k(self, count: int) -> Margin:
        """top-k compares logits as they are: only another model's logits can move it."""
        limit = self.sampling.top_k
        # At least top_k tokens are kept, fewer than here only if equal logits are not equal in the other model.
        if limit is None or count < limit:
            return Margin("top-k", np.inf, 0.0)
        return Margin("top-k", float(abs(self.sorted[self.top_k - 1] - self.sorted[count - 1])), self.moved)

    def _of_top_p(self, count: int) -> Margin:
        if self.sampling.top_p >= 1:
            return Margin("top-p", np.inf, 0.0)
        if count < self.top_p:
            return Margin("top-p", float((self.wanted - self.mass[count - 1]) / self.wanted), self.mass_bound)
        before = int((self.sorted > self.sorted[count - 1]).sum())
        by_mass = Margin("top-p", float((self.mass[before - 1] - self.wanted) / self.wanted), self.mass_bound)
        last = self.top_p - 1
        # Different logits may have equal weights, which are then kept together.
        equal = self.wobble[last] + self.wobble[count - 1] + 2 * _ELEMENT * self.unit
        by_tie = Margin("top-p", float(self.sorted[last] - self.sorted[count - 1]), float(equal))
        return min(by_mass, by_tie, key=lambda m: m.strain)

    def _of_min_p(self, count: int) -> Margin:
        if self.sampling.min_p == 0:
            return Margin("min-p", np.inf, 0.0)
        at = count if count < self.min_p else count - 1
        bound = float(self.wobble[at]) + _ELEMENT * self.unit + self.least_bound
        return Margin("min-p", float(abs(self.sorted[at] - self.least)), bound)

"""Correctors for proofs and tests: some in fractions, one by a fitted form with random numbers, and some that go wrong."""

from collections.abc import Callable
from fractions import Fraction

import numpy as np

from coupled_sampling.corrections import LowRank
from coupled_sampling.testing.exact.rational import RationalArray

__all__ = [
    "ByFactors",
    "Kept",
    "dead_after",
    "fractions_of_place",
    "no_change",
    "random_fractions",
    "random_low_rank",
]

Factors = Callable[[tuple[int, ...], tuple[int, ...], int], list[Fraction]]


def random_low_rank(seed: int, vocab_size: int, lags: tuple[int, ...], *, scale: float = 1.0, rank: int = 2) -> LowRank:
    """A `LowRank` that was fitted to nothing; at scale 1 it moves half of a small law's mass about."""
    generator = np.random.default_rng([seed, vocab_size, *lags])
    count = len(lags)
    return LowRank(
        lags,
        unigram=generator.normal(size=vocab_size),
        basis=generator.normal(size=(vocab_size, rank)),
        neighbours=scale * (2 / rank) ** 0.5 * generator.normal(size=(count, vocab_size + 1, rank)),
        stale_scale=generator.uniform(0.5, 1.5, 2**count),
        unigram_scale=generator.uniform(0.0, 0.5, 2**count),
    )


class ByFactors:
    """Weights are raised to a power and multiplied by ``factors(old, new, position)``: in fractions, or in floats of any library.

    A factor of 0 forbids its token; where all are 0 there is no law.
    """

    def __init__(self, lags, factors: Factors, power: int = 1):
        self.lags, self._factors, self._power = lags, factors, power
        self.calls = 0

    def correct(self, logits, changes):
        self.calls += 1
        rows = [np.asarray(each).tolist() for each in changes]
        laws = [self._factors(tuple(old), tuple(new), position) for old, new, position in zip(*rows, strict=True)]
        factors = np.array([[Fraction(factor) for factor in law] for law in laws], object)
        if isinstance(logits, RationalArray):
            return logits * self._power + RationalArray(factors, logarithms=True)
        with np.errstate(divide="ignore"):
            return np.asarray(logits) * self._power + np.log(factors.astype(float))


def random_fractions(seed: int, vocab_size: int, lags: tuple[int, ...], power: int = 1) -> ByFactors:
    """What `LowRank` is, in fractions: a factor of each neighbour, for the new one and against the old one."""
    generator = np.random.default_rng([seed, vocab_size, *lags])
    table = generator.integers(1, 6, (len(lags), vocab_size + 1, vocab_size)).tolist()

    def factors(old, new, position):
        made = [Fraction(1)] * vocab_size
        for own, before, now in zip(table, old, new, strict=True):
            made = [each * Fraction(own[now][t], own[before][t]) for t, each in enumerate(made)]
        return made

    return ByFactors(lags, factors, power)


def fractions_of_place(seed: int, vocab_size: int, lags: tuple[int, ...]) -> ByFactors:
    """Factors that depend on the place, too, and on the old neighbours alone in every third."""

    def factors(old, new, position):
        generator = np.random.default_rng([seed, position, *(old if position % 3 == 0 else (*old, *new))])
        return [Fraction(int(weight)) for weight in generator.integers(1, 6, vocab_size)]

    return ByFactors(lags, factors)


def dead_after(token: int, corrector: ByFactors) -> ByFactors:
    """``corrector``, but nothing can follow ``token``."""

    def factors(old, new, position):
        made = corrector._factors(old, new, position)
        return [Fraction(0)] * len(made) if token in new else made

    return ByFactors(corrector.lags, factors)


class Kept:
    """Returns the logits it was given, or what ``answer`` makes of them, and notes what it was asked."""

    def __init__(self, *lags, answer=lambda logits, changes: logits):
        self.lags, self.answer = lags, answer
        self.asked = []
        """(logits, Changes) of every call, in numpy."""

    def correct(self, logits, changes):
        self.asked.append((np.array(logits), type(changes)(*map(np.array, changes))))
        return self.answer(logits, changes)


def no_change(vocab_size, lags=(1, 3)):
    """A `LowRank` that predicts that every law stays what it was."""
    count = len(lags)
    nothing = np.zeros((count, vocab_size + 1, 1))
    return LowRank(
        tuple(lags), np.ones(vocab_size), np.ones((vocab_size, 1)), nothing, np.ones(2**count), np.zeros(2**count)
    )

"""The bound on how often a token is among the candidates: against exact probabilities in fractions, and the shipped race."""

import itertools
import re
from fractions import Fraction

import numpy as np
import pytest

from coupled_sampling.draws import race, ranked
from coupled_sampling.errors import InvalidArgument
from coupled_sampling.testing import least_hit_rate

SAMPLES = 20_000
SLACK = (np.log(2 / 1e-8) / (2 * SAMPLES)) ** 0.5
"""How far a share of ``SAMPLES`` may be from its probability; a right one is further off in one of 1e8 comparisons (Hoeffding)."""


def random_pair(seed, size):
    """Two laws in fractions: near, far, and now and then one that forbids what the other allows."""
    random = np.random.default_rng([seed, size])
    q = random.integers(0 if seed % 3 == 0 else 1, 9, size)
    p = random.integers(0 if seed % 3 == 1 else 1, 9, size) if seed % 2 else q + random.integers(0, 3, size)
    q[0] += 1
    p[-1] += 1
    return [[Fraction(int(weight), int(law.sum())) for weight in law] for law in (q, p)]


def exact_hit_rate(q, p, count):
    """The probability itself, by summing over which tokens come before the winner; integrals over its time are elementary."""
    rate = Fraction(0)
    for j, chance in enumerate(p):
        if not chance or not q[j]:
            continue
        ahead = [max(chance / q[j] * q[k] - p[k], Fraction(0)) for k in range(len(q)) if k != j]
        few = itertools.chain.from_iterable(itertools.combinations(range(len(ahead)), n) for n in range(count))
        for before in few:
            left = 1 + sum(a for k, a in enumerate(ahead) if k not in before)
            for n in range(len(before) + 1):
                for some in itertools.combinations(before, n):
                    rate += chance * (-1) ** n / (left + sum(ahead[k] for k in some))
    return rate


@pytest.mark.parametrize("size", [2, 3, 5])
def test_the_bound_lies_below_the_exact_probability_and_is_it_for_one_candidate(size):
    for seed in range(30 if size < 5 else 12):
        q, p = random_pair(seed, size)
        rates = [exact_hit_rate(q, p, count) for count in range(1, size + 1)]
        found = [least_hit_rate(q, p, count) for count in range(1, size + 1)]
        assert found[0] == pytest.approx(float(rates[0]), rel=1e-12)
        assert all(bound <= rate + 1e-12 for bound, rate in zip(found, map(float, rates), strict=True))
        assert found == sorted(found)
        # All that both laws allow is among as many candidates as there are tokens.
        assert rates[-1] == sum(b for a, b in zip(q, p, strict=True) if a)


@pytest.mark.parametrize("size", [2, 3, 5, 50])
def test_one_candidate_is_the_gumbel_coupling(size):
    for seed in range(20):
        q, p = (np.array(law, float) for law in random_pair(seed, size))
        off = abs(q - p).sum() / 2
        assert (1 - off) / (1 + off) - 1e-12 <= least_hit_rate(q, p, 1) <= 1 - off + 1e-12
        if off == 0:
            assert least_hit_rate(q, p, 1) == pytest.approx(1)


@pytest.mark.parametrize(("size", "counts"), [(4, (1, 2, 3)), (40, (1, 4, 16))])
def test_the_shipped_race_keeps_the_bound_and_the_exact_probability(size, counts):
    for seed in range(4):
        random = np.random.default_rng([7, seed, size])
        q, p = (random.dirichlet(np.full(size, 0.7)) for _ in range(2))
        p = 0.5 * p + 0.5 * q
        weights = np.exp(random.gumbel(size=(SAMPLES, size)))
        own = race(np.broadcast_to(p, weights.shape), weights)
        best, _ = ranked(np.broadcast_to(q, weights.shape), weights, max(counts))
        for count in counts:
            hit = float((best[:, :count] == own[:, None]).any(axis=1).mean())
            assert hit >= least_hit_rate(q, p, count) - SLACK
            assert hit <= least_hit_rate(q, p, count) + 0.12
            if size == 4:
                exact = exact_hit_rate([Fraction(x) for x in q], [Fraction(x) for x in p], count)
                assert abs(hit - float(exact)) <= SLACK


def test_noise_of_ones_own_for_each_race_breaks_it():
    """The negative control: what the bound says is that candidates share the position's noise."""
    random = np.random.default_rng(0)
    q = np.full(20, 1 / 20)
    first, second = (np.exp(random.gumbel(size=(SAMPLES, 20))) for _ in range(2))
    best, _ = ranked(np.broadcast_to(q, first.shape), first, 4)
    hit = float((best == race(np.broadcast_to(q, second.shape), second)[:, None]).any(axis=1).mean())
    assert hit < least_hit_rate(q, q, 4) - SLACK


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (([0.5, 0.6], [0.5, 0.5], 1), "draft_law"),
        (([0.5, 0.5], [0.5, 0.3], 1), "target_law"),
        (([0.5, 0.5], [1.0], 1), "target_law"),
        (([0.5, 0.5], [0.5, 0.5], 0), "candidates is 0"),
    ],
)
def test_what_has_no_hit_rate_is_refused(arguments, words):
    with pytest.raises(InvalidArgument, match=re.escape(words)):
        least_hit_rate(*arguments)

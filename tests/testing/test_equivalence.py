"""The equivalence test: calibrated, honest about its power, and blind where it cannot see."""

import numpy as np
import pytest

from coupled_sampling.errors import InvalidArgument

stats = pytest.importorskip("scipy.stats")

from coupled_sampling.testing.samples.counting import pool  # noqa: E402
from coupled_sampling.testing.samples.equivalence import assert_equivalent, equivalence_test  # noqa: E402
from coupled_sampling.testing.samples.power import halves, moved, tilted  # noqa: E402

FALSE_ALARM = 1e-6  # of each check of a rate; seeds are fixed


def rate_is(hits, trials, expected):
    """Whether a binomial count is at most what ``expected`` allows."""
    return stats.binom.sf(hits - 1, trials, expected) > FALSE_ALARM


def law_of(kind):
    generator = np.random.default_rng(3)
    if kind == "flat":
        return np.full(12, 1 / 12)
    if kind == "small cells":
        law = 1.0 / np.arange(1, 201) ** 1.2
        return law / law.sum()
    return generator.dirichlet(np.full(5, 0.5), size=5) * generator.dirichlet(np.ones(5))[:, None]


def draws(law, count, generator):
    index = generator.choice(law.size, count, p=law.ravel())
    return np.stack(np.unravel_index(index, law.shape), axis=1)


@pytest.mark.cases(4)
@pytest.mark.parametrize("two", [False, True], ids=["law", "two-sample"])
@pytest.mark.parametrize("method", ["chi-square", "g"])
@pytest.mark.parametrize("kind", ["flat", "small cells", "joint"])
def test_counting_tests_raise_few_false_alarms(kind, method, two):
    law, generator = law_of(kind), np.random.default_rng(11)
    trials, hits = 40, 0
    for _ in range(trials):
        other = draws(law, 700, generator) if two else law
        hits += equivalence_test(draws(law, 500, generator), other, method=method, alpha=0.05).p_value <= 0.05
    assert rate_is(hits, trials, 0.05)


@pytest.mark.long
def test_the_permutation_test_raises_few_false_alarms():
    generator, hits, trials = np.random.default_rng(12), 0, 25
    law = law_of("joint")
    for seed in range(trials):
        one, two = draws(law, 80, generator), draws(law, 100, generator)
        result = equivalence_test(one, two, method="permutation", alpha=0.05, permutations=99, seed=seed)
        hits += result.verdict == "different"
    assert rate_is(hits, trials, 0.05)


@pytest.mark.cases(2)
@pytest.mark.parametrize("two", [False, True], ids=["law", "two-sample"])
@pytest.mark.parametrize("family", ["hotter", "moved mass", "broken dependence of position 0"])
def test_a_bias_of_the_size_it_promises_to_catch_is_caught_nine_times_out_of_ten(family, two):
    law, generator = law_of("joint"), np.random.default_rng(13)
    reference = draws(law, 3000, generator) if two else law
    power = equivalence_test(draws(law, 3000, generator), reference, alpha=0.01)
    wanted = {one.family: one for one in power.detectable}[family].tv
    apart = law.sum(1, keepdims=True) * law.sum(0, keepdims=True)
    inside = halves(law.ravel(), np.random.default_rng(0)).reshape(law.shape)

    def biased(strength):
        if family == "hotter":
            return law * tilted(np.log(law).ravel(), law.ravel(), -strength).reshape(law.shape)
        return law * moved(inside, law, strength) if family == "moved mass" else (1 - strength) * law + strength * apart

    low, high = 0.0, 1.0
    for _ in range(40):
        middle = 0.5 * (low + high)
        low, high = (low, middle) if 0.5 * abs(biased(middle) - law).sum() > wanted else (middle, high)
    trials, caught = 50, 0
    for _ in range(trials):
        other = draws(law, 3000, generator) if two else law
        caught += equivalence_test(draws(biased(high), 3000, generator), other, alpha=0.01).verdict == "different"
    assert stats.binom.cdf(caught, trials, 0.9) > 1e-3
    assert stats.binom.sf(caught - 1, trials, 0.9) > 1e-3


@pytest.mark.parametrize("method", ["chi-square", "permutation"])
def test_a_bias_of_the_joint_law_alone_is_caught(method):
    generator = np.random.default_rng(14)
    one = generator.integers(4, size=(1500, 2))
    copied = np.where(generator.random(1500) < 0.3, one[:, 0], one[:, 1])
    result = equivalence_test(
        np.stack([one[:, 0], copied], axis=1), generator.integers(4, size=(1500, 2)), method=method
    )
    assert result.verdict == "different"
    apart = equivalence_test(generator.permutation(copied), generator.integers(4, size=1500), method=method)
    assert apart.verdict == "no difference seen"


@pytest.mark.parametrize("method", ["chi-square", "g", "permutation"])
def test_a_single_forbidden_draw_is_fatal(method):
    law = np.array([0.5, 0.5, 0.0])
    sample = np.random.default_rng(15).integers(2, size=3000)
    assert equivalence_test(sample, law, method=method, permutations=1000).verdict == "no difference seen"
    sample[7] = 2
    assert equivalence_test(sample, law, method=method).p_value == 0
    assert equivalence_test(sample, {(0,): 0.5, (1,): 0.5}, method=method).p_value == 0


def test_tiny_samples_are_blind_and_refused_by_the_assertion():
    generator = np.random.default_rng(16)
    law = np.full(8, 1 / 8)
    assert equivalence_test(generator.integers(8, size=20), law).verdict == "blind"
    with pytest.raises(AssertionError, match="could not have seen anything"):
        assert_equivalent(generator.integers(8, size=20), law)
    with pytest.raises(AssertionError, match="different"):
        assert_equivalent(generator.integers(7, size=2000), law)
    assert assert_equivalent(generator.integers(8, size=2000), law).controls_caught == 5


def test_a_deterministic_law_can_be_tested():
    same = np.zeros((300, 2), int)
    assert equivalence_test(same, {(0, 0): 1.0}).verdict == "no difference seen"
    assert equivalence_test(same, same).verdict == "no difference seen"


def test_auto_shuffles_where_vectors_are_too_many_to_count():
    generator = np.random.default_rng(17)
    one, two = generator.integers(10, size=(2, 800, 6))
    result = equivalence_test(one, two, alpha=0.01)
    assert result.method == "permutation"
    assert result.verdict == "no difference seen"
    two[:, 3] = np.where(generator.random(800) < 0.5, two[:, 1], two[:, 3])
    assert equivalence_test(one, two, alpha=0.01).verdict == "different"
    assert equivalence_test(one[:, 0], generator.integers(10, size=800)).method == "chi-square"


def test_pooling_knows_expectations_only_and_keeps_every_group_large_enough():
    expected = np.array([9.0, 0.4, 5.0, 4.0, 2.0, 0.6, 0.0, 3.0, 0.1])
    groups, rare = pool(expected, 5.0)
    assert rare
    sizes = np.bincount(groups, expected)
    assert (sizes >= 5).all()
    assert groups[0] != groups[2]
    order = np.random.default_rng(0).permutation(len(expected))
    again, _ = pool(expected[order], 5.0)
    assert sorted(np.bincount(again, expected[order])) == pytest.approx(sorted(sizes))


def test_the_distance_is_near_the_true_one_and_zero_for_equal_laws():
    generator = np.random.default_rng(18)
    law = np.full(100, 0.01)
    wrong = law * np.where(np.arange(100) < 50, 1.4, 0.6)
    far = equivalence_test(generator.choice(100, 4000, p=wrong), law).distance
    assert far.low < 0.2 < far.high
    assert far.estimate == pytest.approx(0.2, abs=0.03)
    near = equivalence_test(generator.choice(100, 4000, p=law), law).distance
    assert near.low == 0
    assert near.estimate < 0.02


SAMPLE = np.zeros((10, 2), int)


@pytest.mark.parametrize(
    ("sample", "other", "settings", "message"),
    [
        (np.zeros((10, 2)), SAMPLE, {}, "integer tokens"),
        (SAMPLE, np.zeros((10, 3), int), {}, "3"),
        (SAMPLE[:1], SAMPLE, {}, "at least 2"),
        (SAMPLE - 1, SAMPLE, {}, "-1"),
        (np.zeros((2, 2, 2), int), SAMPLE, {}, "shape"),
        ([[0, 1], [0]], SAMPLE, {}, "same number"),
        (SAMPLE, np.full((2, 2), 0.3), {}, "sums to 1.2"),
        (SAMPLE, np.array([[1.5, -0.5], [0, 0]]), {}, "negative"),
        (SAMPLE, np.full(4, 0.25), {}, "one axis"),
        (SAMPLE, {(0,): 1.0}, {}, "lengths"),
        (SAMPLE, {}, {}, "empty"),
        (SAMPLE, SAMPLE, {"alpha": 0}, "alpha"),
        (SAMPLE, SAMPLE, {"method": "t"}, "method"),
        (SAMPLE, SAMPLE, {"least_expected": 0.1}, "least_expected"),
        (SAMPLE, SAMPLE, {"permutations": 10}, "permutations"),
        (SAMPLE, SAMPLE, {"control_tv": 0.9}, "control_tv"),
    ],
)
def test_bad_input_is_refused(sample, other, settings, message):
    with pytest.raises(InvalidArgument, match=message):
        equivalence_test(sample, other, **settings)

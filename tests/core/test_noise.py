"""The frozen noise layout: known answers from an independent Philox in plain Python integers, and what follows."""

import itertools
import math

import numpy as np
import pytest

from coupled_sampling import DraftModel, generate
from coupled_sampling import noise as noise_module
from coupled_sampling.draws import race
from coupled_sampling.methods import METHODS
from coupled_sampling.noise import CounterNoise, Purpose, Sites, race_weights, uniforms
from coupled_sampling.testing import TableProvider, random_table

MASK = 2**64 - 1
LAST = 2**64 - 1


def philox(counter, key):
    """Philox 4x64-10 (Salmon et al. 2011), written from the paper: one block of four words."""
    x, k = list(counter), list(key)
    for _ in range(10):
        left, right = 0xD2E7470EE14C6C93 * x[0], 0xCA5A826395121157 * x[2]
        x = [(right >> 64) ^ x[1] ^ k[0], right & MASK, (left >> 64) ^ x[3] ^ k[1], left & MASK]
        k = [(k[0] + 0x9E3779B97F4A7C15) & MASK, (k[1] + 0xBB67AE8584CAA73B) & MASK]
    return x


def expected_uniform(seed, sequence, position, round_, purpose):
    return (philox((position + 1, round_, 0, 0), (seed, sequence))[purpose] >> 11) * 2.0**-53


def gumbel(*where):
    return np.log(race_weights(*where))


def expected_gumbel(seed, sequence, position, token):
    word = philox((token // 4 + 1, position, 1, 0), (seed, sequence))[token % 4]
    return -math.log(-math.log(((word >> 12) + 0.5) * 2.0**-52))


def sites(positions, round_=0, seed=1, sequence=2):
    positions = np.atleast_2d(positions)
    rows = positions.shape[0]
    return Sites(
        seed=np.full(rows, seed, np.uint64),
        sequence=np.full(rows, sequence, np.uint64),
        round=np.full(rows, round_),
        position=positions,
        valid=np.ones(positions.shape, bool),
    )


def one_law(law, positions):
    return np.broadcast_to(law, (*positions.shape, len(law)))


def test_the_plain_integer_philox_gives_the_published_vectors():
    """Random123 1.14.0, kat_vectors: philox4x64 with 10 rounds."""
    zeros = "16554d9eca36314c db20fe9d672d0fdc d7e772cee186176b 7e68b68aec7ba23b"
    ones = "87b092c3013fe90b 438c3c67be8d0224 9cc7d7c69cd777b6 a09caebf594f0ba0"
    assert " ".join(f"{word:016x}" for word in philox((0, 0, 0, 0), (0, 0))) == zeros
    assert " ".join(f"{word:016x}" for word in philox((MASK,) * 4, (MASK,) * 2)) == ones


KEYS = [(0, 0), (1, 0), (0, 1), (12345, 678), (2**63, 5), (LAST, LAST), (LAST, 0), (0, LAST)]


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("round_", [0, 1, 977])
def test_uniforms_follow_the_layout(key, round_):
    first, count = 7, 5
    found = uniforms(*key, round_, first, count)
    assert found.shape == (count, 4)
    for i, purpose in itertools.product(range(count), Purpose):
        assert found[i, purpose] == expected_uniform(*key, first + i, round_, purpose)


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("position", [0, 1, 65536])
def test_gumbel_noise_follows_the_layout(key, position):
    expected = [expected_gumbel(*key, position, token) for token in range(11)]
    np.testing.assert_allclose(gumbel(*key, position, 11), expected, rtol=1e-13, atol=1e-13)
    np.testing.assert_allclose(race_weights(*key, position, 11), np.exp(expected), rtol=1e-13)


FROZEN_FIRST = ["0x1.7a5d3204726c0p-7", "0x1.eeb1585ce5460p-3", "0x1.c8667a55d9028p-4", "0x1.20faf40a5fab6p-1"]
FROZEN_LATER = ["0x1.6933aafa3f130p-4", "0x1.46c75fad608adp-1", "0x1.3f96dc47a45f0p-4", "0x1.7d43a2e68de2ep-1"]
FROZEN_GUMBEL = [0.8195706580779715, -1.0138800285268832, -0.7502702579025581, -0.07983053279009797, 0.9664590510032791]
FROZEN_FAR = [1.6100474801458937, 1.3137316132065184]


def test_frozen_answers():
    """Literals: a change of the layout that also changes the helper above still fails here."""
    assert [int(p) for p in (Purpose.ACCEPT, Purpose.RESIDUAL, Purpose.REDRAFT, Purpose.PROPOSE)] == [0, 1, 2, 3]
    assert [u.hex() for u in uniforms(0, 0, 0, 0, 1)[0].tolist()] == FROZEN_FIRST
    assert [u.hex() for u in uniforms(12345, 678, 9, 1000, 2)[1].tolist()] == FROZEN_LATER
    np.testing.assert_allclose(gumbel(0, 0, 0, 5), FROZEN_GUMBEL, rtol=1e-14)
    np.testing.assert_allclose(gumbel(LAST, LAST, 4095, 50000)[[0, 49999]], FROZEN_FAR, rtol=1e-14)


def test_a_shorter_vocabulary_or_a_later_start_sees_the_same_noise():
    np.testing.assert_array_equal(race_weights(3, 4, 5, 1000)[:37], race_weights(3, 4, 5, 37))
    np.testing.assert_array_equal(uniforms(3, 4, 5, 10, 20)[7:], uniforms(3, 4, 5, 17, 13))


def test_uniforms_lie_in_the_half_open_interval():
    values = uniforms(5, 0, 0, 0, 50_000)
    assert values.min() >= 0
    assert values.max() < 1
    assert (values * 2.0**53 == np.floor(values * 2.0**53)).all()


def test_race_weights_are_finite_and_positive_at_the_extreme_words(monkeypatch):
    extremes = np.array([0, MASK, 1 << 11, (1 << 12) - 1, MASK - (1 << 12)], np.uint64)
    monkeypatch.setattr("coupled_sampling.noise._words", lambda *_: extremes.copy())
    weights = race_weights(0, 0, 0, len(extremes))
    assert np.isfinite(weights).all()
    assert (weights > 0).all()
    narrow = weights.astype(np.float32)
    assert np.isfinite(narrow).all()
    assert (narrow > 0).all()
    assert weights[0] == pytest.approx(1 / (53 * math.log(2)), rel=1e-15)
    # u = 1 - 2**-53 is the largest; the weight is one over -log(u) = 2**-53 to first order
    assert weights[1] == pytest.approx(2.0**53, rel=1e-12)


def test_race_weights_are_finite_and_positive_over_many_words():
    weights = race_weights(8, 9, 10, 400_000)
    assert np.isfinite(weights).all()
    assert weights.min() > 0.02  # 1 / (53 log 2)


def test_moments():
    """Seeds are fixed, so this passes or fails for good; the bounds are 5 standard errors (false alarm 6e-7 each)."""
    n = 200_000
    for values, mean, variance, fourth in [
        (uniforms(21, 22, 23, 0, n // 4).ravel(), 0.5, 1 / 12, 1 / 80),
        (gumbel(21, 22, 23, n), np.euler_gamma, math.pi**2 / 6, 5.4 * (math.pi**2 / 6) ** 2),
        (1 / race_weights(21, 22, 24, n), 1.0, 1.0, 9.0),
    ]:
        assert abs(values.mean() - mean) < 5 * math.sqrt(variance / n)
        centred = (values - mean) ** 2
        assert abs(centred.mean() - variance) < 5 * math.sqrt((fourth - variance**2) / n)


def test_purposes_positions_rounds_and_keys_never_share_a_word():
    """18432 numbers of 50 bits collide by chance with probability 2e-7; the keys are fixed."""
    seen = []
    for seed, sequence, round_ in itertools.product((0, 1, LAST), (0, 1, LAST), range(4)):
        seen.append(uniforms(seed, sequence, round_, 0, 64).ravel())
        words = [gumbel(seed, sequence, position, 64) for position in range(round_ * 4, round_ * 4 + 4)]
        seen.append(np.exp(-np.exp(-np.concatenate(words))))  # back to the uniforms they were made of
    values = np.concatenate(seen)
    assert len(np.unique(np.round(values * 2**50))) == len(values)


@pytest.mark.parametrize("purpose", Purpose)
def test_noise_answers_from_its_own_word(purpose):
    where = sites([10, 11, 12], round_=3)
    expected = np.array([[expected_uniform(1, 2, position, 3, purpose) for position in (10, 11, 12)]])
    noise = CounterNoise()
    barely = np.nextafter(expected, 1)
    assert noise.bernoulli(barely, where, purpose, where=where.valid).all()
    assert not noise.bernoulli(expected, where, purpose, where=where.valid).any()
    weights = np.broadcast_to(np.ones(1000), (1, 3, 1000))
    drawn = noise.categorical(weights, where, purpose, where=where.valid)
    assert drawn.tolist() == np.floor(expected * 1000).astype(int).tolist()


def test_shared_is_the_gumbel_argmax_of_the_position():
    positions, law = np.array([[4, 5, 6, 7]]), np.array([0.1, 0.0, 0.5, 0.4])
    drawn = CounterNoise().shared(one_law(law, positions), sites(positions), where=np.ones((1, 4), bool))
    for token, position in zip(drawn[0], positions[0], strict=True):
        score = [math.log(p) + expected_gumbel(1, 2, int(position), i) if p else -math.inf for i, p in enumerate(law)]
        assert token == int(np.argmax(score))


def test_the_cache_never_changes_an_answer():
    """A random walk of windows, rounds, sequences, types and purposes against a noise that was never used before."""
    draw = np.random.default_rng(0)
    noise, round_, start = CounterNoise(), 0, 0
    for _ in range(150):
        round_ += int(draw.integers(0, 4))
        start = max(0, start + int(draw.integers(-2, 4)))
        count, vocab_size = int(draw.integers(1, 6)), int(draw.choice([3, 7]))
        where = sites(np.arange(start, start + count), round_, sequence=int(draw.integers(0, 2)))
        law = draw.dirichlet(np.ones(vocab_size), size=(1, count)).astype(draw.choice(["float32", "float64"]))
        purpose = Purpose(int(draw.integers(4)))
        if draw.random() < 0.1:
            noise.forget(1, int(where.sequence[0]))
        for ask in (
            lambda n, law=law, where=where: n.shared(law, where, where=where.valid),
            lambda n, law=law, where=where, p=purpose: n.categorical(law, where, p, where=where.valid),
            lambda n, law=law, where=where, p=purpose: n.bernoulli(law[..., 0], where, p, where=where.valid),
        ):
            np.testing.assert_array_equal(ask(noise), ask(CounterNoise()))


@pytest.mark.parametrize("step", [1, 2, 3, 5, 7])
def test_gumbel_noise_stays_with_its_position_while_a_window_moves_on(step):
    noise, law = CounterNoise(), np.full(50, 0.02)
    for start in range(0, 60, step):
        where = sites(np.arange(start, start + 5))
        shared = [n.shared(one_law(law, where.position), where, where=where.valid) for n in (noise, CounterNoise())]
        np.testing.assert_array_equal(*shared)


def test_rows_of_a_batch_get_their_own_sequences_noise():
    positions = np.array([[3, 4], [9, 10]])
    both = sites(positions)._replace(sequence=np.array([2, LAST], np.uint64), round=np.array([0, 5]))
    law = one_law(np.full(50, 0.02), positions)
    noise = CounterNoise()
    shared = noise.shared(law, both, where=both.valid)
    drawn = noise.categorical(law, both, Purpose.REDRAFT, where=both.valid)
    for b, (sequence, round_) in enumerate([(2, 0), (LAST, 5)]):
        alone = sites(positions[b], round_, sequence=sequence)
        np.testing.assert_array_equal(shared[b], CounterNoise().shared(law[b : b + 1], alone, where=alone.valid)[0])
        expected = [expected_uniform(1, sequence, int(p), round_, Purpose.REDRAFT) * 50 for p in positions[b]]
        assert drawn[b].tolist() == np.floor(expected).astype(int).tolist()


def test_sites_that_are_not_valid_do_not_disturb_the_others():
    positions = np.array([[3, 4, 5, 6], [3, 4, 5, 6]])
    some = sites(positions)._replace(valid=np.array([[False, True, True, False], [False] * 4]))
    law = one_law(np.full(50, 0.02), positions)
    whole = CounterNoise().shared(law, sites(positions), where=np.ones((2, 4), bool))
    part = CounterNoise().shared(law, some, where=some.valid)
    np.testing.assert_array_equal(part[0, 1:3], whole[0, 1:3])


def test_shared_draws_have_the_law():
    """Chi-square over 20000 positions, fixed seed: chance of a false alarm was 1e-4 when the seed was chosen."""
    stats = pytest.importorskip("scipy.stats")
    law, n = np.array([0.5, 0.0, 0.2, 0.2, 0.07, 0.03]), 20_000
    weights = np.stack([race_weights(6, 0, position, len(law)) for position in range(n)])
    counts = np.bincount(race(law, weights), minlength=len(law))
    assert counts[1] == 0
    positive = law > 0
    assert stats.chisquare(counts[positive], n * law[positive]).pvalue > 1e-4


class AskedOnce:
    """Refuses a second question about the same uniform, biased or not, in runs far too long to enumerate."""

    def __init__(self):
        self._noise = CounterNoise()
        self._asked = set()

    def __getattr__(self, name):
        return getattr(self._noise, name)

    def _note(self, at, asked, purpose):
        for b, j in np.argwhere(asked).tolist():
            assert at.valid[b, j]
            key = (at.seed[b], at.sequence[b], at.position[b, j], at.round[b], purpose)
            assert key not in self._asked
            self._asked.add(key)

    def bernoulli(self, probability, at, purpose, **options):
        self._note(at, options["where"], purpose)
        return self._noise.bernoulli(probability, at, purpose, **options)

    def categorical(self, weights, at, purpose, **options):
        self._note(at, options["where"], purpose)
        return self._noise.categorical(weights, at, purpose, **options)


@pytest.mark.parametrize("drafting", ["random", "repeat", "model"])
@pytest.mark.parametrize("method", METHODS)
def test_a_decoder_uses_every_uniform_at_most_once(method, drafting):
    table = random_table(1, 5)
    rule = DraftModel(TableProvider(random_table(2, 5), 5, 2, 40)) if drafting == "model" else drafting
    prompts = [[0], [1, 2, 3], [4]]
    noise = AskedOnce()
    generate(
        TableProvider(table, 5, 2, 40), prompts, length=[20, 9, 14], method=method, window=5, drafting=rule, noise=noise
    )


@pytest.mark.parametrize("library", ["numpy", "other"])
def test_sequences_of_one_key_do_not_drive_each_other_out_of_the_cache(monkeypatch, library):
    """Each position's noise is made once for each of them, whoever is ahead."""
    made = []
    make = noise_module.race_weights_between

    def counting(seed, sequence, first, end, vocab_size):
        made.extend(range(first, end))
        return make(seed, sequence, first, end, vocab_size)

    monkeypatch.setattr(noise_module, "race_weights_between", counting)
    noise, width = CounterNoise(), 8
    law = np.full((2, width, 5), 0.2)
    if library == "other":
        law = pytest.importorskip("array_api_strict").asarray(law)
    for step in range(20):
        position = np.array([[3], [7]]) + 2 * step + np.arange(width)
        sites = Sites(
            seed=np.zeros(2, np.uint64), sequence=np.zeros(2, np.uint64), round=np.array([step, step]), position=position,
            valid=np.ones((2, width), bool),
        )  # fmt: skip
        noise.shared(law, sites, where=sites.valid)
    assert max(made.count(position) for position in set(made)) <= 2


@pytest.mark.parametrize("library", ["numpy", "other"])
def test_a_sequence_alone_keeps_one_place_however_far_it_jumps(library):
    """Where all drafts were accepted, the next ones lie beyond all that is held."""
    noise, law = CounterNoise(), np.full((1, 4, 5), 0.2)
    if library == "other":
        law = pytest.importorskip("array_api_strict").asarray(law)
    for first in (3, 4, 30, 31, 90):
        position = first + np.arange(4)[None]
        sites = Sites(np.zeros(1, np.uint64), np.zeros(1, np.uint64), np.zeros(1, int), position, np.ones((1, 4), bool))
        noise.shared(law, sites, where=sites.valid)
    assert [len(places) for places in noise._races.values()] == [1]

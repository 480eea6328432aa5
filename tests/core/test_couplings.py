"""Elementary draws, acceptance rules and couplings: exact at the edges, with the promised laws, in any array library.

Statistical tests use fixed seeds, so they pass or fail for good. The chance that a correct implementation would have
failed was 1e-4 per test when its seed was chosen.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from coupled_sampling import couplings, draws
from coupled_sampling.arrays import to_host
from coupled_sampling.errors import InvalidArgument

array_api_strict = pytest.importorskip("array_api_strict")

FALSE_ALARM = 1e-4
JUST_BELOW_ONE = 1 - 2.0**-53
VOCABULARIES = [1, 2, 5, 64, 65, 267, 1024, 5000]
"""Both sides of the two-level search, with and without a partial last block (see `test_vocabularies_cover_both_ways`)."""

finite_laws = st.integers(2, 8).flatmap(
    lambda n: st.lists(st.sampled_from([0.0, 0.01, 0.2, 1.0, 3.0]), min_size=n, max_size=n).filter(any)
)
uniform_numbers = st.one_of(st.sampled_from([0.0, JUST_BELOW_ONE]), st.floats(0, 1, exclude_max=True))


def laws(seed, shape, zeros=0.0):
    generator = np.random.default_rng(seed)
    weights = generator.gamma(0.5, size=shape) + 1e-9
    weights[generator.random(shape) < zeros] = 0
    weights[..., 0] = np.maximum(weights[..., 0], 1e-9)
    return weights / weights.sum(axis=-1, keepdims=True)


def variation(p, q):
    return 0.5 * np.abs(p - q).sum(axis=-1)


def assert_has_law(tokens, law):
    """Chi-square; tokens of zero probability must not occur at all."""
    counts = np.bincount(tokens, minlength=len(law))
    assert not counts[law == 0].any()
    expected = len(tokens) * law
    common = expected >= 5
    seen = np.append(counts[common], counts[~common].sum())
    wanted = np.append(expected[common], expected[~common].sum())
    if wanted[-1] == 0:
        seen, wanted = seen[:-1], wanted[:-1]
    if len(seen) > 1:
        assert stats.chisquare(seen, wanted * seen.sum() / wanted.sum()).pvalue > FALSE_ALARM


def test_vocabularies_cover_both_ways():
    two_levels = [v for v in VOCABULARIES if v > 4 * draws._block_size(v)]
    assert two_levels
    assert len(two_levels) < len(VOCABULARIES)
    assert any(v % draws._block_size(v) for v in two_levels)
    assert any(v % draws._block_size(v) == 0 for v in two_levels)


# Inverse CDF


@pytest.mark.parametrize("vocab_size", VOCABULARIES)
def test_categorical_is_a_search_in_the_cumulative_sums(vocab_size):
    """Oracle: np.searchsorted. Weights are small integers, so every sum is exact, and so is every boundary."""
    generator = np.random.default_rng(vocab_size)
    for _ in range(5):
        weights = generator.integers(0, 4, vocab_size).astype(float)
        weights[generator.integers(vocab_size)] = 4
        weights[0] += 2 ** int(np.ceil(np.log2(weights.sum()))) - weights.sum()  # a power of two: u * total is exact
        edges = np.cumsum(weights)
        uniform = np.concatenate([edges[edges < edges[-1]] / edges[-1], [0.0, JUST_BELOW_ONE], generator.random(200)])
        found = draws.categorical(np.broadcast_to(weights, (len(uniform), vocab_size)), uniform)
        expected = np.searchsorted(edges, uniform * edges[-1], side="right")
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("uniform", [0.0, 0.5, JUST_BELOW_ONE])
@pytest.mark.parametrize("vocab_size", VOCABULARIES)
def test_categorical_never_returns_zero_weight(vocab_size, uniform, dtype):
    weights = np.zeros((vocab_size, vocab_size) if vocab_size < 300 else (3, vocab_size), dtype)
    alone = np.arange(vocab_size) if vocab_size < 300 else np.array([0, vocab_size // 2, vocab_size - 1])
    weights[np.arange(len(weights)), alone] = 1e-30
    np.testing.assert_array_equal(draws.categorical(weights, np.full(len(weights), uniform)), alone)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("vocab_size", VOCABULARIES)
def test_categorical_reaches_the_first_and_the_last_token_of_positive_weight(vocab_size, dtype):
    weights = laws(vocab_size, (200, vocab_size), zeros=0.6).astype(dtype)
    weights[:, : vocab_size // 3] = 0
    weights[:, vocab_size - vocab_size // 3 :] = 0
    weights[:, vocab_size // 2] = 0.1
    positive = weights > 0
    first = draws.categorical(weights, np.zeros(200))
    last = draws.categorical(weights, np.full(200, JUST_BELOW_ONE))
    np.testing.assert_array_equal(first, positive.argmax(axis=-1))
    drawn = draws.categorical(weights, np.random.default_rng(1).random(200))
    for tokens in (first, last, drawn):
        assert np.take_along_axis(positive, tokens[:, None], axis=-1).all()
    # nothing of noticeable weight lies beyond the last
    beyond = np.where(np.arange(vocab_size) > last[:, None], weights, 0).sum(axis=-1)
    assert (beyond <= 1e-5 * weights.sum(axis=-1)).all()


@pytest.mark.parametrize("vocab_size", [267, 5000, 8191, 8192])
def test_rounding_at_the_end_of_a_row_does_not_lead_out_of_it(vocab_size):
    weights = np.random.default_rng(vocab_size).random((2000, vocab_size), np.float32)
    for uniform in (JUST_BELOW_ONE, 1 - 1e-8, 1 - 2e-7):
        tokens = draws.categorical(weights, np.full(2000, uniform))
        assert tokens.max() == vocab_size - 1


@settings(derandomize=True, deadline=None, max_examples=200)
@given(weights=finite_laws, uniform=uniform_numbers, scale=st.sampled_from([1e-300, 1e-30, 1.0, 1e30]))
def test_categorical_needs_no_normalisation(weights, uniform, scale):
    weights = np.array(weights) * scale
    token = int(draws.categorical(weights, np.asarray(uniform)))
    assert weights[token] > 0
    below, total = weights[:token].sum() / scale, weights.sum() / scale
    assert below <= uniform * total * (1 + 1e-12) + 1e-12
    assert uniform * total <= (below + weights[token] / scale) * (1 + 1e-12) + 1e-12


@pytest.mark.parametrize("zeros", [0.5, 0.9])
@pytest.mark.parametrize("vocab_size", [267, 5000])
def test_categorical_never_returns_zero_weight_where_a_block_begins(vocab_size, zeros):
    """A threshold that rounding puts just below its block must not choose the block's first tokens."""
    weights = laws(vocab_size, vocab_size, zeros)
    block = draws._block_size(vocab_size)
    for first in range(0, vocab_size, block):
        weights[first : first + 2] = 0
    sums = np.array([weights[first : first + block].sum() for first in range(0, vocab_size, block)])
    edges = np.cumsum(sums)[:-1] / sums.sum()
    uniform = np.concatenate([np.nextafter(edges, 0), edges, np.nextafter(edges, 1), edges + 1e-15, edges + 1e-14])
    tokens = draws.categorical(np.broadcast_to(weights, (len(uniform), vocab_size)), uniform)
    assert (weights[tokens] > 0).all()


def test_categorical_agrees_between_one_and_two_levels(monkeypatch):
    weights, uniform = laws(3, (500, 5000), zeros=0.5), np.random.default_rng(4).random(500)
    two_levels = draws.categorical(weights, uniform)
    monkeypatch.setattr(draws, "_block_size", lambda vocab_size: vocab_size)
    np.testing.assert_array_equal(two_levels, draws.categorical(weights, uniform))


@pytest.mark.parametrize("vocab_size", [5, 267, 5000, 8192])
def test_a_row_is_drawn_alike_whatever_rows_are_beside_it(vocab_size):
    weights = laws(vocab_size, (40, vocab_size), zeros=0.3).astype(np.float32)
    cumulative = np.cumsum(weights.astype(float), axis=-1)
    # uniforms close to a boundary, where the last bit of a sum decides
    near = np.random.default_rng(5).integers(1, vocab_size, 40)
    uniform = cumulative[np.arange(40), near - 1] / cumulative[:, -1]
    together = draws.categorical(weights, uniform)
    for count in (1, 2, 3, 7):
        apart = [draws.categorical(weights[k : k + count], uniform[k : k + count]) for k in range(0, 40, count)]
        np.testing.assert_array_equal(together, np.concatenate(apart))


@pytest.mark.parametrize("vocab_size", [5, 267, 5000, 8192])
def test_categorical_has_the_law(vocab_size):
    law, n = laws(vocab_size, vocab_size, zeros=0.3), 4000
    uniform = np.random.default_rng(5).random(n)
    assert_has_law(draws.categorical(np.broadcast_to(law, (n, vocab_size)), uniform), law)


# Gumbel


@pytest.mark.parametrize("vocab_size", [1, 5, 267])
def test_race_and_gumbel_are_the_same_choice_and_have_the_law(vocab_size):
    law, n = laws(vocab_size, vocab_size, zeros=0.3), 20_000
    noise = np.random.default_rng(6).gumbel(size=(n, vocab_size))
    tokens = couplings.gumbel(law, noise)
    np.testing.assert_array_equal(tokens, draws.race(law, np.exp(noise)))
    with np.errstate(divide="ignore"):
        np.testing.assert_array_equal(tokens, np.argmax(np.log(law) + noise, axis=-1))
    assert_has_law(tokens, law)


def test_race_never_returns_zero_weight_however_large_its_noise():
    law, weights = np.array([0.0, 1e-12, 0.0]), np.array([2.0**53, 0.02, 2.0**53])
    assert draws.race(law, weights) == 1


# Acceptance


@settings(derandomize=True, deadline=None, max_examples=200)
@given(law=finite_laws, accept=uniform_numbers, residual=uniform_numbers)
def test_equal_laws_are_always_accepted(law, accept, residual):
    law = np.array(law) / np.sum(law)
    for draft in np.flatnonzero(law):
        decision = couplings.maximal(np.asarray(draft), law, law, np.asarray(accept), np.asarray(residual))
        assert decision.accepted
        assert decision.tokens == draft


@settings(derandomize=True, deadline=None, max_examples=300)
@given(
    pair=st.integers(2, 6).flatmap(
        lambda n: st.tuples(*[st.lists(st.sampled_from([0.0, 0.01, 0.2, 1.0]), min_size=n, max_size=n).filter(any)] * 2)
    ),
    accept=uniform_numbers,
    residual=uniform_numbers,
    data=st.data(),
)
def test_rejection_never_returns_a_token_the_target_forbids(pair, accept, residual, data):
    q, p = (np.array(weights) / np.sum(weights) for weights in pair)
    draft = data.draw(st.integers(0, len(p) - 1))
    decision = couplings.maximal(np.asarray(draft), q, p, np.asarray(accept), np.asarray(residual))
    assert p[int(decision.tokens)] > 0
    assert bool(decision.accepted) == (
        accept < (0 if p[draft] == 0 else 1 if q[draft] <= p[draft] else p[draft] / q[draft])
    )


@pytest.mark.parametrize("seed", range(5))
def test_acceptance_and_residual_add_up_to_the_target_law(seed):
    """q(x) a(x) + P(refused) residual(x) = p(x), as numbers."""
    q, p = laws(seed, 40, zeros=0.3), laws(seed + 100, 40, zeros=0.3)
    stays = q * couplings.acceptance_probability(
        np.arange(40), np.broadcast_to(q, (40, 40)), np.broadcast_to(p, (40, 40))
    )
    left = couplings.residual(p, q)
    np.testing.assert_allclose(stays + (1 - stays.sum()) * left / left.sum(), p, atol=1e-14)
    np.testing.assert_allclose(1 - stays.sum(), variation(p, q), atol=1e-14)


def test_an_empty_residual_is_the_target_law():
    p = np.array([0.3, 0.7, 0.0])
    more = p * (1 + 1e-7)
    np.testing.assert_array_equal(couplings.residual(p, p), p)
    np.testing.assert_array_equal(couplings.residual(np.stack([p, p]), np.stack([more, 0 * p])), np.stack([p, p]))
    for uniform, token in [(0.0, 0), (0.5, 1), (JUST_BELOW_ONE, 1)]:
        decision = couplings.maximal(np.asarray(0), more, p, np.asarray(JUST_BELOW_ONE), np.asarray(uniform))
        assert not decision.accepted
        assert decision.tokens == token


def test_a_residual_is_not_empty_however_small_it_is():
    p, q = np.array([0.25, 0.5, 0.25]), np.array([0.25, 0.5 + 1e-12, 0.25 - 1e-12])
    assert np.flatnonzero(couplings.residual(p, q)).tolist() == [2]


def test_a_point_mass_is_accepted_with_the_targets_probability_and_replaced_by_another_token():
    p, q = np.array([0.25, 0.5, 0.25]), np.array([0.0, 1.0, 0.0])
    assert couplings.acceptance_probability(np.asarray(1), q, p) == 0.5
    np.testing.assert_array_equal(couplings.residual(p, q), [0.25, 0, 0.25])


def test_up_to_the_first_refusal_only_that_is_corrected():
    """With ``leading`` sites behind the first refusal hold their drafts, and sites that are not asked for are not decided."""
    generator = np.random.default_rng(3)
    q, p = laws(1, (50, 6, 5)), laws(2, (50, 6, 5))
    draft = draws.categorical(q, generator.random((50, 6)))
    u, v = generator.random((2, 50, 6))
    where = np.arange(6) >= generator.integers(0, 5, (50, 1))
    all_sites = couplings.maximal(draft, q, p, u, v)
    some = couplings.maximal(draft, q, p, u, v, where=where, leading=True)
    for row in range(50):
        refused = np.flatnonzero(where[row] & ~all_sites.accepted[row])
        expected = draft[row].copy()
        expected[refused[:1]] = all_sites.tokens[row, refused[:1]]
        assert some.tokens[row].tolist() == expected.tolist()
        assert some.accepted[row].tolist() == (where[row] & all_sites.accepted[row]).tolist()


def test_match_returns_the_targets_own_token_whatever_the_draft():
    p, weights = laws(1, (50, 9)), np.exp(np.random.default_rng(2).gumbel(size=(50, 9)))
    own = draws.race(p, weights)
    for draft in (own, (own + 1) % 9, np.zeros(50, np.int64)):
        decision = couplings.match(draft, p, np.log(weights))
        np.testing.assert_array_equal(decision.tokens, own)
        np.testing.assert_array_equal(decision.accepted, own == draft)


# Couplings


def coupled(q, p, n, seed):
    """Drafts of law q, and what each coupling makes of them under p."""
    generator = np.random.default_rng(seed)
    many_q, many_p = np.broadcast_to(q, (n, len(q))), np.broadcast_to(p, (n, len(p)))
    draft = draws.categorical(many_q, generator.random(n))
    maximal = couplings.maximal(draft, many_q, many_p, generator.random(n), generator.random(n)).tokens
    noise = generator.gumbel(size=(n, len(q)))
    return draft, {
        "maximal": (draft, maximal),
        "gumbel": (couplings.gumbel(many_q, noise), couplings.gumbel(many_p, noise)),
        "independent": (draft, couplings.independent(many_p, generator.random(n))),
    }


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("vocab_size", [2, 6, 40])
def test_couplings_have_both_laws_and_agree_as_often_as_promised(vocab_size, seed):
    n = 20_000
    q, p = laws(seed, vocab_size, zeros=0.2), laws(seed + 50, vocab_size, zeros=0.2)
    _, pairs = coupled(q, p, n, seed)
    for earlier, later in pairs.values():
        assert_has_law(earlier, q)
        assert_has_law(later, p)
    agree = {name: (earlier == later).sum() for name, (earlier, later) in pairs.items()}
    distance = variation(p, q)
    assert stats.binomtest(agree["maximal"], n, 1 - distance).pvalue > FALSE_ALARM
    assert stats.binomtest(agree["independent"], n, (p * q).sum()).pvalue > FALSE_ALARM
    bound = (1 - distance) / (1 + distance)
    assert stats.binomtest(agree["gumbel"], n, bound, alternative="less").pvalue > FALSE_ALARM
    assert stats.binomtest(agree["gumbel"], n, 1 - distance, alternative="greater").pvalue > FALSE_ALARM


def test_gumbel_coupling_agrees_across_three_laws_where_the_maximal_one_forgets():
    """Back to the first law means back to the first token."""
    q, p = laws(0, (1, 12)), laws(1, (1, 12))
    noise = np.random.default_rng(0).gumbel(size=(500, 12))
    first, _, third = (couplings.gumbel(np.broadcast_to(law, noise.shape), noise) for law in (q, p, q))
    np.testing.assert_array_equal(first, third)


NOT_LAWS = {
    "logits": [[1.0, -2.0, 3.0]],
    "weights": [[1.0, 1.0, 1.0]],
    "negative": [[-0.5, 1.0, 0.5]],
    "nan": [[np.nan, 0.5, 0.5]],
    "infinite": [[np.inf, 0.5, 0.5]],
    "zeros": [[0.0, 0.0, 0.0]],
}


@pytest.mark.parametrize("bad", NOT_LAWS.values(), ids=NOT_LAWS)
def test_what_is_not_a_law_is_refused_by_name_and_row(bad):
    good = np.full((2, 3), 1 / 3)
    bad = np.concatenate([good[:1], bad])
    zero, draft = np.zeros(2), np.zeros(2, np.int64)
    for call, name in [
        (lambda: couplings.independent(bad, zero), "target_law"),
        (lambda: couplings.gumbel(bad, np.zeros((2, 3))), "target_law"),
        (lambda: couplings.maximal(draft, bad, good, zero, zero), "draft_law"),
        (lambda: couplings.maximal(draft, good, bad, zero, zero), "target_law"),
        (lambda: couplings.match(draft, bad, np.zeros((2, 3))), "target_law"),
    ]:
        with pytest.raises(InvalidArgument, match=rf"{name}: row 1 .*not a law"):
            call()


# Array libraries


def answers(convert, vocab_size, dtype):
    """Every function of the three modules on the same numbers, in the library that ``convert`` makes arrays of."""
    generator = np.random.default_rng(vocab_size)
    q, p = (laws(seed, (4, 3, vocab_size), zeros=0.3).astype(dtype) for seed in (1, 2))
    u, v = generator.random((4, 3)), generator.random((4, 3))
    noise = generator.gumbel(size=(4, 3, vocab_size)).astype(dtype)
    draft = draws.categorical(q, generator.random((4, 3)))
    q, p, u, v, draft = (convert(a) for a in (q, p, u, v, draft))
    noise, weights = convert(noise), convert(np.exp(noise))
    found = [
        draws.categorical(p, u),
        draws.race(p, weights),
        couplings.independent(p, u),
        *couplings.maximal(draft, q, p, u, v),
        *couplings.maximal(draft, q, p, u, v, where=u < v, leading=True),
        *couplings.match(draft, p, noise),
        couplings.acceptance_probability(draft, q, p),
        couplings.residual(p, q),
        couplings.gumbel(p, noise),
    ]
    assert all(isinstance(array, type(q)) for array in found)
    return [to_host(array) for array in found]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("vocab_size", [5, 267, 5000])
@pytest.mark.parametrize("library", ["array_api_strict", "torch"])
def test_array_libraries_agree(library, vocab_size, dtype):
    convert = array_api_strict.asarray
    if library == "torch":
        convert = pytest.importorskip("torch").asarray
    for found, expected in zip(
        answers(convert, vocab_size, dtype), answers(np.asarray, vocab_size, dtype), strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-6)
        assert found.dtype == expected.dtype

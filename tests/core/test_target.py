"""Logits to laws, against a naive oracle written from the documented order."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coupled_sampling import Sampling, generate
from coupled_sampling.contracts import RowInfo
from coupled_sampling.errors import InvalidArgument, InvalidLogits
from coupled_sampling.target import target_law, target_laws
from coupled_sampling.testing import TableProvider, random_table


def naive(logits, sampling):
    """One row in python floats: temperature, top-k, top-p, min-p, each keeping ties."""
    if sampling.temperature == 0:
        law = [0.0] * len(logits)
        law[max(range(len(logits)), key=lambda i: (logits[i], -i))] = 1.0
        return law
    top = max(logits)
    weights = [0.0 if x == -np.inf else float(np.exp((x - top) / sampling.temperature)) for x in logits]
    if sampling.top_k is not None and sampling.top_k < len(weights):
        kth = sorted(weights, reverse=True)[sampling.top_k - 1]
        weights = [w if w >= kth else 0.0 for w in weights]
    if sampling.top_p < 1:
        mass, least, total = 0.0, None, sum(weights)
        for w in sorted(weights, reverse=True):
            mass, least = mass + w, w
            if mass >= sampling.top_p * total * (1 - 1e-12):
                break
        weights = [w if w >= least else 0.0 for w in weights]
    if sampling.min_p > 0:
        weights = [w if w >= sampling.min_p * max(weights) else 0.0 for w in weights]
    return [w / sum(weights) for w in weights]


samplings = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 0.3, 1.0, 2.5]),
    top_k=st.sampled_from([None, 1, 2, 3, 5, 100]),
    top_p=st.sampled_from([0.1, 0.5, 0.8, 0.95, 1.0]),
    min_p=st.sampled_from([0.0, 0.05, 0.5, 1.0]),
)
rows = st.lists(st.sampled_from([-np.inf, -3.0, -1.0, 0.0, 0.25, 1.0, 2.0, 5.0]), min_size=2, max_size=12).filter(
    lambda row: max(row) > -np.inf
)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(rows, samplings)
def test_laws_follow_the_documented_order(row, sampling):
    law = target_law(np.array(row), sampling)
    np.testing.assert_allclose(law, naive(row, sampling), atol=1e-12)


@pytest.mark.parametrize("vocab_size", [4096, 8192, 50257])
@pytest.mark.parametrize("top_k", [1, 7, 100])
def test_top_k_of_a_large_vocabulary_keeps_exactly_the_largest(vocab_size, top_k):
    logits = np.random.default_rng(1).standard_normal((2, 3, vocab_size)).astype(np.float32)
    law = target_law(logits, Sampling(top_k=top_k))
    kth = np.sort(logits, axis=-1)[..., -top_k, None]
    np.testing.assert_array_equal(law > 0, logits >= kth)
    np.testing.assert_allclose(law.sum(-1), 1, atol=1e-6)


def test_nucleus_boundary_is_the_smallest_set_that_reaches_the_mass():
    logits = np.log([0.5, 0.3, 0.15, 0.05])
    for top_p, kept in [(0.5, 1), (0.51, 2), (0.8, 2), (0.81, 3), (0.95, 3), (0.96, 4)]:
        assert (target_law(logits, Sampling(top_p=top_p)) > 0).sum() == kept


def test_top_p_is_measured_on_what_top_k_has_left():
    """Of 0.4 and 0.3, the first alone reaches half; of the whole law it does not."""
    law = target_law(np.log([0.4, 0.3, 0.2, 0.1]), Sampling(top_k=2, top_p=0.5))
    np.testing.assert_array_equal(law > 0, [True, False, False, False])


def test_half_precision_is_widened_and_extreme_temperatures_stay_laws():
    logits = np.array([1.0, 2.0, 3.0], np.float16)
    assert target_law(logits, Sampling()).dtype == np.float32
    for temperature in (1e-6, 1e6):
        law = target_law(logits.astype(np.float32), Sampling(temperature=temperature))
        assert np.isfinite(law).all()
        assert law.sum() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(("value", "word"), [(np.nan, "NaN"), (np.inf, "inf"), (None, "-inf")])
def test_unusable_logits_are_told_by_row_and_position_where_they_matter(value, word):
    logits = np.zeros((2, 3, 4))
    logits[1, 2] = -np.inf if value is None else [0, value, 0, 0]
    info = [RowInfo(0, b, Sampling()) for b in range(2)]
    positions = np.array([[4, 5, 6], [7, 8, 9]])
    wanted = np.ones((2, 3), bool)
    made = target_laws(logits, info, [np.zeros(0, np.int64)] * 2, positions, wanted)
    assert made.usable.tolist() == [[True] * 3, [True, True, False]]
    assert np.isfinite(made.laws).all()
    ((where, error),) = made.faults.items()
    assert (where, type(error)) == ((1, 2), InvalidLogits)
    assert re.search(rf"row 1 for position 9.*{word}", str(error))
    assert made.failures(np.array([2, 1])) == {}
    assert made.failures(np.array([2, 2])) == {1: error}
    wanted[1, 2] = False
    assert target_laws(logits, info, [np.zeros(0, np.int64)] * 2, positions, wanted).faults is None


@pytest.mark.parametrize(
    "bad",
    [
        {"temperature": -0.1}, {"temperature": float("inf")}, {"temperature": float("nan")}, {"top_k": 0}, {"top_k": 1.5},
        {"top_k": 2.0}, {"top_k": float("nan")}, {"temperature": 1e-50}, {"temperature": 1e39},
        {"top_p": 0}, {"top_p": 1.01}, {"min_p": -0.1}, {"min_p": 1.1},
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused_by_name(bad):
    with pytest.raises(InvalidArgument, match=next(iter(bad))):
        Sampling(**bad)


def no_repeat(logits, tokens, positions):
    """Forbids the token before: depends on drafts."""
    changed = logits.copy()
    changed[np.arange(len(positions)), tokens[positions - 1]] = -np.inf
    return changed


def test_processors_see_the_tokens_before_each_slot_drafts_included():
    table = random_table(3, 5)
    prompts, sampling = [[0], [1, 2, 3]], [Sampling(processors=(no_repeat,)), Sampling(temperature=0.7, top_k=3)]
    runs = [
        generate(
            TableProvider(table, 5, rows), prompts, length=20, method=method, window=window, seed=9, sampling=sampling
        ).tokens
        for method, window, rows in [("ar", 1, 1), ("scd-match", 6, 2), ("scd-match", 3, 1)]
    ]
    for tokens in zip(*runs, strict=True):
        assert all(np.array_equal(tokens[0], other) for other in tokens[1:])
    for method in ("sjd", "scd-maximal", "scd-gumbel"):
        provider = TableProvider(table, 5, 2)
        tokens = generate(provider, prompts, length=20, method=method, window=6, sampling=sampling).tokens[0]
        assert (np.diff(np.concatenate([[0], tokens])) != 0).all()


def prefer_first(logits, tokens, positions):
    return logits + np.array([1.5, 0.0, 0.0, 0.0])


def square(logits, tokens, positions):
    return logits * 2


def test_processors_come_one_after_the_other_and_before_temperature():
    logits = np.log([0.1, 0.2, 0.3, 0.4])[None, None]
    info = RowInfo(0, 0, Sampling(temperature=0.5, top_k=3, processors=(square, prefer_first)))
    law = target_laws(logits, [info], [np.zeros(1, np.int64)], np.ones((1, 1), int), np.ones((1, 1), bool)).laws[0, 0]
    changed = 2 * logits[0, 0] + [1.5, 0, 0, 0]
    weights = np.exp(changed / 0.5) * (changed > changed.min())
    np.testing.assert_allclose(law, weights / weights.sum(), atol=1e-12)


def test_a_processor_of_wrong_shape_is_refused():
    sampling = Sampling(processors=(lambda logits, tokens, positions: logits[:, :2],))
    with pytest.raises(InvalidArgument, match=r"of shape \(1, 2\), expected an array of shape \(1, 3\)"):
        generate(TableProvider(random_table(0, 3), 3), [[0]], length=3, sampling=sampling)


@pytest.mark.parametrize("temperature", [1e4, 1e6, 1e8, 1e30])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("top_k", [None, 40])
def test_top_p_tells_tokens_apart_whose_weights_round_to_the_same(temperature, dtype, top_k):
    """Nearly uniform weights: as many tokens as top-p says, the likeliest ones; equal logits stay together."""
    logits = np.random.default_rng(0).standard_normal((5, 50)).astype(dtype)
    count = 0.3 * (top_k or 50)
    law = target_law(logits, Sampling(temperature, top_k=top_k, top_p=0.3))
    for own, one in zip(logits, law, strict=True):
        assert (one > 0).sum() == count
        assert own[one > 0].min() > own[one == 0].max()
    logits[:, :20] = 9
    assert ((target_law(logits, Sampling(temperature, top_k=top_k, top_p=0.3)) > 0).sum(-1) == 20).all()
    most = target_law(logits, Sampling(temperature, min_p=1.0))
    assert ((most > 0) == (logits == 9)).all()

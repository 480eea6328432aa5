"""Losslessness without sampling error: exact laws of the shipped decoder against the chain rule."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coupled_sampling import DraftModel, generate
from coupled_sampling.drafting import Copy, Repeat
from coupled_sampling.errors import InvalidArgument
from coupled_sampling.methods import METHODS
from coupled_sampling.noise import Purpose, Sites
from coupled_sampling.testing import TableProvider, autoregressive_law, exact_law, random_table, total_variation

TOLERANCE = 1e-12
"""Sums of a few thousand float64 products; anything a broken decoder does is above 1e-3 (test_negative_controls)."""

SIZES = [(4, 2, 1), (4, 2, 4), (4, 3, 2), (4, 3, 3), (3, 3, 2), (3, 3, 3), (2, 4, 3), (2, 4, 4), (3, 2, 3), (2, 3, 2)]
"""Vocabulary, length, window: a few hundred paths each."""
SMALL_SIZES = [(2, 2, 2), (2, 3, 2), (2, 3, 3), (3, 2, 2), (3, 3, 2), (2, 4, 3)]
"""For draftings that draw, which multiply the paths."""
FILLED = Repeat(fill=0)
"""Drafts from the first step on: short outputs need all that they can get."""
STATELESS = ["repeat", FILLED, "copy:2", Copy(2, fill=1), "ngram", "ngram:1"]


def decoded_law(method, table, vocab_size, prompts, length, window, *, drafting=FILLED, stop=(), draft_table=None):
    """The exact joint law of what the shipped decoder generates for ``prompts``."""

    def run(noise):
        model = TableProvider(table, vocab_size, len(prompts), 12)
        rule = drafting
        if draft_table is not None:
            rule = DraftModel(TableProvider(draft_table, vocab_size, len(prompts), 12))
        tokens = generate(
            model, prompts, length=length, method=method, window=window, drafting=rule, stop=stop, noise=noise
        ).tokens
        return tuple(tuple(row.tolist()) for row in tokens)

    return exact_law(run, max_paths=20_000)


def oracle_law(table, prompts, lengths, stop=()):
    """Independent rows: the product of their autoregressive laws."""
    alone = [autoregressive_law(table, prompt, n, stop) for prompt, n in zip(prompts, lengths, strict=True)]
    return {
        tuple(tokens for tokens, _ in rows): float(np.prod([chance for _, chance in rows]))
        for rows in itertools.product(*(law.items() for law in alone))
    }


def assert_lossless(law, oracle):
    assert abs(sum(law.values()) - 1) < TOLERANCE
    assert total_variation(law, oracle) < TOLERANCE


@st.composite
def worlds(draw, sizes):
    vocab_size, length, window = draw(st.sampled_from(sizes))
    tokens = st.integers(0, vocab_size - 1)
    prompt = draw(st.lists(tokens, min_size=1, max_size=4))
    stop = draw(st.one_of(st.just(()), st.tuples(tokens)))
    table = random_table(draw(st.integers(0, 999)), vocab_size, zeros=draw(st.sampled_from([0.0, 0.3])))
    return table, vocab_size, [prompt], length, window, stop


@pytest.mark.parametrize("method", METHODS)
@settings(derandomize=True, deadline=None, max_examples=16)
@given(world=worlds(SIZES), drafting=st.sampled_from(STATELESS))
def test_law_is_autoregressive_whatever_the_window_and_the_guesses(method, world, drafting):
    table, vocab_size, prompts, length, window, stop = world
    law = decoded_law(method, table, vocab_size, prompts, length, window, drafting=drafting, stop=stop)
    assert_lossless(law, oracle_law(table, prompts, [length], stop))


@pytest.mark.parametrize("method", METHODS)
@settings(derandomize=True, deadline=None, max_examples=6)
@given(world=worlds(SMALL_SIZES))
def test_law_is_autoregressive_with_random_guesses(method, world):
    table, vocab_size, prompts, length, window, stop = world
    law = decoded_law(method, table, vocab_size, prompts, length, window, drafting="random", stop=stop)
    assert_lossless(law, oracle_law(table, prompts, [length], stop))


@pytest.mark.parametrize("method", METHODS)
@settings(derandomize=True, deadline=None, max_examples=8)
@given(world=worlds(SMALL_SIZES), draft_seed=st.integers(0, 999))
def test_law_is_autoregressive_with_a_draft_model(method, world, draft_seed):
    table, vocab_size, prompts, length, window, stop = world
    draft_table = random_table(draft_seed, vocab_size, zeros=0.3)
    law = decoded_law(method, table, vocab_size, prompts, length, window, stop=stop, draft_table=draft_table)
    assert_lossless(law, oracle_law(table, prompts, [length], stop))


@pytest.mark.parametrize("method", METHODS)
@settings(derandomize=True, deadline=None, max_examples=8)
@given(
    prompts=st.tuples(st.lists(st.integers(0, 1), min_size=1, max_size=2), st.lists(st.integers(0, 1), min_size=3)),
    sizes=st.sampled_from([(2, 2, 2), (2, 3, 2), (3, 2, 3), (3, 3, 2), (2, 3, 1), (2, 4, 3)]),
    stop=st.sampled_from([(), (1,)]),
    drafting=st.sampled_from(STATELESS),
    seed=st.integers(0, 999),
)
def test_joint_law_of_ragged_rows_is_the_product_of_autoregressive_laws(method, prompts, sizes, stop, drafting, seed):
    prompts = [prompts[0], prompts[1][:4]]
    *lengths, window = sizes
    table = random_table(seed, 2, zeros=0.1)
    law = decoded_law(method, table, 2, prompts, lengths, window, drafting=drafting, stop=stop)
    assert_lossless(law, oracle_law(table, prompts, lengths, stop))


@pytest.mark.parametrize("method", METHODS)
def test_law_survives_a_row_that_is_used_again(method):
    """Three prompts on two rows: what the first sequence left behind must not reach the third."""
    table, prompts, lengths = random_table(3, 2), [[0], [1, 1], [1]], [2, 1, 2]

    def run(noise):
        model = TableProvider(table, 2, 2, 12)
        tokens = generate(model, prompts, length=lengths, method=method, window=2, drafting=FILLED, noise=noise).tokens
        return tuple(tuple(row.tolist()) for row in tokens)

    assert_lossless(exact_law(run), oracle_law(table, prompts, lengths))


@pytest.mark.parametrize("method", sorted(set(METHODS) - {"ar"}))
def test_largest_world(method):
    """Four tokens over a window that recycles: beyond what the generated worlds reach."""
    table = random_table(11, 4)
    law = decoded_law(method, table, 4, [[2]], 3, 2)
    assert_lossless(law, oracle_law(table, [[2]], [3]))


def one_site(position=5):
    return Sites(
        seed=np.zeros(1, np.uint64),
        sequence=np.zeros(1, np.uint64),
        round=np.zeros(1, np.int64),
        position=np.array([[position]]),
        valid=np.ones((1, 1), bool),
    )


def test_enumeration_of_two_draws_by_hand():
    def run(noise):
        site = one_site()
        first = noise.bernoulli(np.array([[0.25]]), site, Purpose.ACCEPT, where=site.valid)
        weights = np.array([[[3.0, 0.0, 1.0]]]) if first[0, 0] else np.array([[[0.0, 5.0, 0.0]]])
        second = noise.categorical(weights, site, Purpose.RESIDUAL, where=site.valid)
        return bool(first[0, 0]), int(second[0, 0])

    law = exact_law(run)
    expected = {(True, 0): 0.1875, (True, 2): 0.0625, (False, 1): 0.75}
    assert law.keys() == expected.keys()
    assert all(law[key] == pytest.approx(expected[key], abs=1e-15) for key in expected)


def test_enumeration_asks_only_where_and_no_further_than_the_first_no():
    def run(noise):
        site = one_site()._replace(position=np.array([[5, 6, 7]]), valid=np.ones((1, 3), bool))
        where = np.array([[False, True, True]])
        answers = noise.bernoulli(np.full((1, 3), 0.5), site, Purpose.ACCEPT, where=where, leading=True)
        return tuple(answers[0].tolist())

    assert exact_law(run) == {(False, False, False): 0.5, (False, True, False): 0.25, (False, True, True): 0.25}


def test_shared_draw_agrees_with_itself_as_computed_by_hand():
    """One uniform under (1/2, 1/2) and (1/4, 3/4): [0, 1/4) is 0 twice, [1/2, 1) is 1 twice, between they differ."""

    def run(noise):
        site = one_site()
        laws = np.array([[[0.5, 0.5]]]), np.array([[[0.25, 0.75]]])
        return tuple(int(noise.shared(law, site, where=site.valid)[0, 0]) for law in (laws[0], laws[1], laws[0]))

    assert exact_law(run) == {(0, 0, 0): 0.25, (0, 1, 0): 0.25, (1, 1, 1): 0.5}


def test_shared_draws_of_two_positions_are_independent():
    def run(noise):
        law = np.array([[[0.5, 0.5]]])
        return tuple(int(noise.shared(law, s, where=s.valid)[0, 0]) for s in (one_site(5), one_site(6)))

    assert exact_law(run) == dict.fromkeys(itertools.product((0, 1), repeat=2), 0.25)


def test_too_many_paths_are_refused():
    def run(noise):
        site = one_site()
        return int(noise.categorical(np.ones((1, 1, 5)), site, Purpose.RESIDUAL, where=site.valid)[0, 0])

    assert len(exact_law(run, max_paths=5)) == 5
    with pytest.raises(InvalidArgument, match="more paths than max_paths = 4: about 5"):
        exact_law(run, max_paths=4)


def test_oracle_is_the_chain_rule_and_ends_at_stop_tokens():
    law = autoregressive_law(lambda context: [0.5, 0.5] if context[-1] == 0 else [1.0, 0.0], [0], 2, stop=[1])
    assert law == {(1,): 0.5, (0, 0): 0.25, (0, 1): 0.25}


def test_total_variation_is_half_the_sum_of_differences():
    assert total_variation({"a": 0.5, "b": 0.5}, {"a": 0.25, "c": 0.75}) == 0.75

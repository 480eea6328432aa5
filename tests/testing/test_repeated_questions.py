"""A uniform is drawn once: whoever asks about it again is answered as production answers, and a rule that does so is seen."""

import itertools
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coupled_sampling import generate
from coupled_sampling.drafting import Proposal
from coupled_sampling.draws import categorical
from coupled_sampling.errors import InvalidArgument
from coupled_sampling.noise import Purpose, Sites
from coupled_sampling.testing import (
    TableProvider,
    assert_lossless_exactly,
    autoregressive_law,
    exact_law,
    exact_law_from_uniforms,
    random_table,
    rational_table,
    shipped_decoder,
    total_variation,
)

BERNOULLI, CATEGORICAL = "bernoulli", "categorical"


def sites_of(seed=0, sequence=0, position=0, round_=0):
    return Sites(
        seed=np.array([seed], np.uint64),
        sequence=np.array([sequence], np.uint64),
        round=np.array([round_], np.int64),
        position=np.array([[position]]),
        valid=np.ones((1, 1), bool),
    )


def ask(noise, kind, numbers, purpose=Purpose.ACCEPT, **site):
    sites = sites_of(**site)
    if kind == BERNOULLI:
        return int(noise.bernoulli(np.array([[numbers[0] / 16]]), sites, purpose, where=sites.valid)[0, 0])
    return int(noise.categorical(np.array([[numbers]], float), sites, purpose, where=sites.valid)[0, 0])


def production(kind, numbers, uniform):
    """What `CounterNoise` makes of a uniform."""
    if kind == BERNOULLI:
        return int(uniform < numbers[0] / 16)
    return int(categorical(np.array([numbers], float), np.array([uniform]))[0])


def law_over_cells(questions):
    """The joint law of production's answers: between two thresholds of its questions, a uniform always gives the same ones.

    Thresholds are k/16 and k/total with a total of at most 15: two of them are equal, or further apart than rounding reaches.
    """
    law = {}
    by_site = {}
    for index, (site, _, _) in enumerate(questions):
        by_site.setdefault(site, []).append(index)
    parts = []
    for indices in by_site.values():
        edges = {Fraction(0), Fraction(1)}
        for index in indices:
            _, kind, numbers = questions[index]
            total = 16 if kind == BERNOULLI else sum(numbers)
            ends = numbers[:1] if kind == BERNOULLI else itertools.accumulate(numbers)
            edges |= {Fraction(end, total) for end in ends}
        cells = []
        for low, high in itertools.pairwise(sorted(edges)):
            uniform = float(low + high) / 2
            answers = {index: production(*questions[index][1:], uniform) for index in indices}
            cells.append((answers, high - low))
        parts.append(cells)
    for cells in itertools.product(*parts):
        answers, chance = {}, Fraction(1)
        for own, length in cells:
            answers.update(own)
            chance *= length
        outcome = tuple(answers[index] for index in range(len(questions)))
        law[outcome] = law.get(outcome, 0) + chance
    return law


weights = st.lists(st.integers(0, 5), min_size=3, max_size=3).filter(any)
question = st.one_of(
    st.tuples(st.just(BERNOULLI), st.lists(st.integers(0, 16), min_size=1, max_size=1)),
    st.tuples(st.just(CATEGORICAL), weights),
)
site = st.sampled_from([Purpose.ACCEPT, Purpose.RESIDUAL])


@settings(derandomize=True, deadline=None, max_examples=60)
@given(st.lists(st.tuples(site, question), min_size=1, max_size=4))
def test_questions_are_answered_as_production_answers_them_whatever_is_asked_twice(asked):
    questions = [(purpose, *rest) for purpose, rest in asked]

    def run(noise):
        return tuple(ask(noise, kind, numbers, purpose) for purpose, kind, numbers in questions)

    law = exact_law(run, arithmetic="rational")
    expected = {outcome: chance for outcome, chance in law_over_cells(questions).items() if chance}
    assert total_variation(law, expected) < 1e-12  # fractions of floats: 1/3 is none
    assert all(chance > 1e-12 for outcome, chance in expected.items() if outcome not in law)


@pytest.mark.parametrize("kind", [BERNOULLI, CATEGORICAL])
def test_the_same_question_has_the_same_answer(kind):
    numbers = [5] if kind == BERNOULLI else [1, 2, 1]
    law = exact_law(lambda noise: tuple(ask(noise, kind, numbers) for _ in range(3)))
    assert all(len(set(answers)) == 1 for answers in law)
    assert law.paths == len(law)


@pytest.mark.parametrize(
    "other",
    [{"seed": 1}, {"sequence": 1}, {"position": 1}, {"round_": 1}, {"purpose": Purpose.REDRAFT}],
    ids=lambda other: next(iter(other)),
)
def test_another_seed_sequence_position_round_or_purpose_is_another_uniform(other):
    law = exact_law(lambda noise: (ask(noise, BERNOULLI, [8]), ask(noise, BERNOULLI, [8], **other)))
    assert law == dict.fromkeys(itertools.product((0, 1), repeat=2), 0.25)


def test_a_sequence_that_is_forgotten_and_begun_again_has_the_same_noise():
    def run(noise):
        first = ask(noise, CATEGORICAL, [1, 2, 3])
        noise.forget(0, 0)
        return first, ask(noise, CATEGORICAL, [1, 2, 3])

    assert all(first == second for first, second in exact_law(run))


def test_an_acceptance_that_was_not_looked_at_is_not_remembered():
    """With ``leading``, what is right of a refusal has not been asked: its uniform is still unknown."""

    def run(noise):
        sites = sites_of()._replace(position=np.array([[0, 1]]), valid=np.ones((1, 2), bool))
        half = np.full((1, 2), 0.5)
        noise.bernoulli(half, sites, Purpose.ACCEPT, where=sites.valid, leading=True)
        return ask(noise, BERNOULLI, [8], position=1)

    assert exact_law(run) == {0: 0.5, 1: 0.5}


class Reuse:
    """Draws its guess with a uniform that is, or is not, the one with which the step corrects that position."""

    def __init__(self, purpose, later=0):
        self.purpose, self.later = purpose, later

    def propose(self, contexts, noise, *, vocab_size, shared):
        proposals = []
        for c in contexts:
            sites = Sites(
                seed=np.array([c.info.seed], np.uint64),
                sequence=np.array([c.info.sequence], np.uint64),
                round=np.array([c.round + self.later], np.int64),
                position=len(c.tokens) + np.arange(c.wanted)[None],
                valid=np.ones((1, c.wanted), bool),
            )
            flat = np.full((1, c.wanted, vocab_size), 1 / vocab_size)
            drawn = noise.categorical(flat, sites, self.purpose, where=sites.valid)
            proposals.append(Proposal(np.asarray(drawn)[0]))
        return proposals


@pytest.mark.parametrize("arithmetic", ["float", "rational"])
@pytest.mark.parametrize("purpose", [Purpose.RESIDUAL, Purpose.ACCEPT], ids=lambda purpose: purpose.name)
def test_a_rule_that_draws_its_guess_with_a_uniform_of_the_step_is_seen(purpose, arithmetic):
    table = (random_table if arithmetic == "float" else rational_table)(0, 3)
    decode = shipped_decoder("scd-maximal", window=2, drafting=Reuse(purpose))
    with pytest.raises(AssertionError, match="not lossless"):
        assert_lossless_exactly(decode, table, [[0]], vocab_size=3, length=2, arithmetic=arithmetic)


def test_a_rule_that_draws_its_guess_with_a_uniform_of_its_own_passes():
    for rule in (Reuse(Purpose.PROPOSE), Reuse(Purpose.RESIDUAL, later=1000)):
        decode = shipped_decoder("scd-maximal", window=2, drafting=rule)
        assert_lossless_exactly(decode, random_table(0, 3), [[0]], vocab_size=3, length=2)


@pytest.mark.cases(1)
@pytest.mark.parametrize("purpose", [Purpose.RESIDUAL, Purpose.ACCEPT], ids=lambda purpose: purpose.name)
def test_what_enumeration_says_of_a_biased_rule_is_what_production_does(purpose):
    """The bias itself is the same, not only seen: frequencies of 4,000 seeds agree with the exact law, and not with AR's."""
    table, rule, draws = random_table(0, 3), Reuse(purpose), 4000

    def decode(noise=None, count=1):
        model = TableProvider(table, 3, 100 if count > 1 else 1, 12)
        tokens = generate(
            model, [[0]] * count, length=2, method="scd-maximal", window=2, drafting=rule, noise=noise, seed=5
        ).tokens
        return [tuple(one.tolist()) for one in tokens]

    exact = exact_law(lambda noise: decode(noise)[0])
    found, counts = np.unique(decode(count=draws), axis=0, return_counts=True)
    frequencies = {tuple(one.tolist()): float(count) / draws for one, count in zip(found, counts, strict=True)}
    assert total_variation(frequencies, exact) < 0.03  # nine outcomes: 0.02 is to be expected of 4,000 draws at most
    assert total_variation(frequencies, autoregressive_law(table, [0], 2)) > 0.06


def test_two_requests_with_one_key_are_dependent_as_in_production():
    def run(noise):
        both = [ask(noise, BERNOULLI, [4], sequence=0) for _ in range(2)]
        return tuple(both)

    assert exact_law(run) == {(0, 0): 0.75, (1, 1): 0.25}


@pytest.mark.parametrize(
    ("weights", "message"),
    [([0.0, 0.0], "positive"), ([np.nan, 1.0], "nan"), ([-0.5, 1.5], "-0.5"), ([np.inf, 1.0], "inf")],
)
def test_weights_that_make_no_law_are_refused_by_name(weights, message):
    with pytest.raises(InvalidArgument, match=f"{message}(.|\n)*position 7"):
        exact_law(lambda noise: ask(noise, CATEGORICAL, weights, position=7))


def test_a_ratio_above_one_is_certain():
    assert exact_law(lambda noise: ask(noise, BERNOULLI, [32])) == {1: 1}


def test_a_decoder_that_keeps_something_from_run_to_run_is_refused():
    kept = []

    def run(noise):
        kept.append(0)
        return ask(noise, BERNOULLI, [1 + len(kept) % 3])

    with pytest.raises(InvalidArgument, match="keep nothing"):
        exact_law(run)


def test_a_decoder_that_asks_less_than_before_is_refused():
    kept = []

    def run(noise):
        kept.append(0)
        return tuple(ask(noise, BERNOULLI, [8], position=i) for i in range(3 if len(kept) == 1 else 1))

    with pytest.raises(InvalidArgument, match="it asked 1 questions, and at least 3"):
        exact_law(run)


def test_a_uniform_of_a_generator_is_remembered_too():
    def sampler(generator):
        u = generator.random()
        return bool(u < 0.5), bool(2 * u < 0.5), bool(1 - u > 0.5)

    assert {answers: float(chance) for answers, chance in exact_law_from_uniforms(sampler).items()} == {
        (True, True, True): 0.25,
        (True, False, True): 0.25,
        (False, False, False): 0.5,
    }

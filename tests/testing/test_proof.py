"""Exact proofs as a stranger would write them: in fractions, of his own sampler, and with a report when they fail."""

from fractions import Fraction

import numpy as np
import pytest

from coupled_sampling import METHODS, GuidedProvider, HostStep, Sampling, generate
from coupled_sampling.couplings import DraftLawArray
from coupled_sampling.drafting import Repeat
from coupled_sampling.errors import InvalidArgument
from coupled_sampling.testing import (
    RationalProvider,
    assert_lossless_exactly,
    autoregressive_law,
    exact_law,
    exact_law_from_uniforms,
    random_table,
    rational_table,
    shipped_decoder,
    total_variation,
)
from coupled_sampling.testing.exact.laws import expected_paths

WORLDS = [(2, 4, 3), (3, 3, 3), (3, 3, 2), (4, 2, 4)]
"""Vocabulary, length, window."""


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("vocab_size", "length", "window"), WORLDS)
def test_in_fractions_the_distance_is_exactly_nothing(method, vocab_size, length, window):
    for seed in range(2):
        law = assert_lossless_exactly(
            shipped_decoder(method, window=window),
            rational_table(seed, vocab_size, zeros=0.1),
            [[0]],
            vocab_size=vocab_size,
            length=length,
            arithmetic="rational",
        )
        assert all(isinstance(chance, Fraction | int) for chance in law.values())
        assert sum(law.values()) == 1


@pytest.mark.parametrize("method", ["ar", "sjd", "scd-maximal", "scd-gumbel", "scd-match"])
def test_fractions_through_stops_ragged_rows_and_rows_used_again(method):
    assert_lossless_exactly(
        shipped_decoder(method, window=2, stop=(1,), drafting="random" if method == "sjd" else Repeat(fill=0)),
        rational_table(4, 2),
        [[0], [1, 0, 1]],
        vocab_size=2,
        length=[2, 2],
        stop=(1,),
        rows=1,
        arithmetic="rational",
    )


class LawsAsArrays(HostStep):
    """The shipped step with its draft laws in one array, the form that jitted code passes to `decide`."""

    def _draft_laws(self, target, slots, window):
        laws = super()._draft_laws(target, slots, window)
        if self.method.acceptance != "rejection":
            return DraftLawArray(laws.draft, laws.drafted, None)
        return DraftLawArray(laws.draft, laws.drafted, laws.dense(target))


@pytest.mark.parametrize("method", METHODS)
def test_laws_as_arrays_are_exact_too(method):
    decode = shipped_decoder(method, window=3, step=LawsAsArrays)
    law = assert_lossless_exactly(
        decode, rational_table(2, 3), [[0], [1, 2]], vocab_size=3, length=[2, 2], arithmetic="rational"
    )
    assert sum(law.values()) == 1


def warped(law, sampling):
    """The law that temperature 1/n, top-k, top-p and min-p make of ``law``, from their definitions, in fractions."""
    weights = [chance ** round(1 / sampling.temperature) for chance in law]
    if sampling.top_k:
        least = sorted(weights, reverse=True)[sampling.top_k - 1]
        weights = [weight if weight >= least else 0 for weight in weights]
    if sampling.top_p < 1:
        wanted, mass, least = Fraction(sampling.top_p) * sum(weights), 0, None
        for weight in sorted(weights, reverse=True):
            mass, least = mass + weight, weight
            if mass >= wanted:
                break
        weights = [weight if weight >= least else 0 for weight in weights]
    bound = Fraction(sampling.min_p) * max(weights)
    weights = [weight if weight >= bound else 0 for weight in weights]
    return [Fraction(weight) / sum(weights) for weight in weights]


SETTINGS = [Sampling(0.5), Sampling(top_k=2), Sampling(top_p=0.6), Sampling(min_p=0.4), Sampling(0.25, 2, 0.75, 0.125)]


@pytest.mark.cases(10)
@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("method", ["ar", "scd-maximal", "scd-gumbel", "scd-match"])
def test_warped_laws_are_exact_too(method, settings):
    table = rational_table(5, 3)

    def run(noise):
        model = RationalProvider(table, 3, 1, 8)
        return tuple(
            generate(
                model, [[1]], length=3, method=method, window=3, sampling=settings, drafting=Repeat(fill=0), noise=noise
            )
            .tokens[0]
            .tolist()
        )

    expected = autoregressive_law(lambda context: warped(table(context), settings), [1], 3)
    assert total_variation(exact_law(run), expected) == 0


def test_guidance_by_an_integer_is_exact():
    table = rational_table(6, 2)

    def guided(context):
        conditional, unconditional = table((1, *context)), table((0, *context))
        weights = [c**3 / u**2 for c, u in zip(conditional, unconditional, strict=True)]
        return [weight / sum(weights) for weight in weights]

    def run(noise):
        model = GuidedProvider(RationalProvider(table, 2, 2, 8), 3, [0])
        tokens = generate(
            model, [[1]], length=3, method="scd-maximal", window=3, drafting=Repeat(fill=0), noise=noise
        ).tokens
        return tuple(tokens[0].tolist())

    expected = autoregressive_law(lambda context: guided(context[1:]), [1], 3)
    assert total_variation(exact_law(run), expected) == 0


def test_numbers_that_are_no_fractions_are_refused():
    with pytest.raises(InvalidArgument, match="one over an integer"):
        generate(RationalProvider(rational_table(0, 2), 2, 1, 8), [[0]], length=2, window=2, sampling=Sampling(0.7))
    with pytest.raises(InvalidArgument, match="fractions >= 0 that sum to exactly 1"):
        generate(RationalProvider(random_table(0, 2), 2, 1, 8), [[0]], length=2, window=2)
    with pytest.raises(InvalidArgument, match="arithmetic is 'decimal'"):
        assert_lossless_exactly(
            shipped_decoder("ar"), rational_table(0, 2), [[0]], vocab_size=2, length=1, arithmetic="decimal"
        )


class KeepsEveryDraft(HostStep):
    """Never refuses: the plainest of mistakes."""

    def _decide(self, target, slots, window, correction=None):
        decided = super()._decide(target, slots, window, correction)
        opening = slots.sites.valid.argmax(axis=1)
        last = opening + slots.has_draft.sum(axis=1)
        tokens = np.where(slots.has_draft, slots.draft, decided.tokens)
        return decided._replace(tokens=tokens, last=last)


def test_a_failure_names_the_output_both_probabilities_and_a_path():
    table = rational_table(1, 2)
    with pytest.raises(AssertionError) as failure:
        assert_lossless_exactly(
            shipped_decoder("sjd", step=KeepsEveryDraft, window=2), table, [[0]], vocab_size=2, length=2
        )
    lines = str(failure.value).splitlines()
    assert lines[0].startswith("not lossless: total variation 0.")
    expected = autoregressive_law(table, [0], 2)
    worst = next(output for output in expected if lines[1].startswith(f"most wrong: {output} has probability"))
    assert f"{float(expected[worst]):.6g} by autoregressive sampling" in lines[1]
    assert any(line.startswith("a shortest path to") for line in lines)
    assert any("position" in line and "probability" in line for line in lines[-2:])


def test_the_shortest_path_is_one_that_leads_there():
    """Taking the choices of the path again, and no others, gives the output with the product of their chances."""
    table = rational_table(2, 3)
    law = assert_lossless_exactly(shipped_decoder("scd-maximal"), table, [[0]], vocab_size=3, length=3)
    assert law.paths > len(law)
    for output in law:
        path = law.shortest_path(output)
        assert 1 <= len(path) <= 9
        assert np.prod([float(choice.probability) for choice in path]) <= float(law[output]) + 1e-12


def test_the_budget_says_how_many_paths_it_would_take():
    def run(noise):
        model = RationalProvider(rational_table(1, 3), 3, 1, 12)
        return tuple(
            generate(model, [[0]], length=3, method="sjd", window=3, drafting=Repeat(fill=0), noise=noise).tokens[0]
        )

    paths = exact_law(run).paths
    estimate = expected_paths(run, probes=400)
    assert abs(estimate.paths - paths) < 5 * estimate.standard_error
    assert estimate.standard_error < paths
    with pytest.raises(InvalidArgument, match=r"about .* use a smaller vocabulary"):
        exact_law(run, max_paths=10)
    with pytest.raises(InvalidArgument, match="max_paths is 0"):
        exact_law(run, max_paths=0)
    with pytest.raises(InvalidArgument, match="probes is 1"):
        expected_paths(run, probes=1)


def test_a_run_that_would_be_far_too_long_is_refused_early():
    calls = []

    def run(generator):
        calls.append(1)
        return sum(bool(generator.random() < 0.5) for _ in range(40))

    with pytest.raises(InvalidArgument, match=r"about 1\.1e\+12"):
        exact_law_from_uniforms(run, max_paths=10**9)
    assert len(calls) < 2000


def speculative_by_hand(generator, table, length, *, residual=True, comparison=lambda u, p, q: u * q < p):
    """A textbook speculative sampler with one draft, written as others write it: numpy, uniforms, a cumulative sum."""

    def draw(law):
        law = np.asarray([float(chance) for chance in law])
        return int((np.cumsum(law) > generator.random() * law.sum()).argmax())

    tokens = [0]
    while len(tokens) <= length:
        target = [float(chance) for chance in table(tuple(tokens))]
        uniform = [1 / len(target)] * len(target)
        draft = draw(uniform)
        if comparison(generator.random(), target[draft], uniform[draft]):
            tokens.append(draft)
        else:
            left = [max(p - q, 0) for p, q in zip(target, uniform, strict=True)]
            tokens.append(draw(left if residual else target))
    return tuple(tokens[1:])


def test_a_strangers_sampler_is_followed_through_its_uniforms():
    table = rational_table(3, 3)
    expected = autoregressive_law(table, [0], 2)
    law = exact_law_from_uniforms(lambda generator: speculative_by_hand(generator, table, 2))
    assert total_variation(law, expected) < 1e-12
    wrong = exact_law_from_uniforms(lambda generator: speculative_by_hand(generator, table, 2, residual=False))
    assert total_variation(wrong, expected) > 1e-2


def test_a_uniform_used_twice_is_seen():
    """What `Noise` cannot show, unknown uniforms do: the second comparison is conditional on the first."""

    def run(generator):
        first = generator.random()
        return bool(first < 0.5), bool(1 - first <= 0.5), bool(2 * first - 1 > 0.25)

    law = exact_law_from_uniforms(run)
    assert law == {(True, False, False): 0.5, (False, True, False): 0.125, (False, True, True): 0.375}


def test_search_and_whole_arrays_work_on_unknown_uniforms():
    cumulative = np.cumsum([0.25, 0.5, 0.25])
    by_search = exact_law_from_uniforms(
        lambda generator: int(np.searchsorted(cumulative, generator.random(), side="right"))
    )
    by_array = exact_law_from_uniforms(lambda generator: int((cumulative <= generator.random()).sum()))
    by_choice = exact_law_from_uniforms(lambda generator: generator.choice(3, p=[0.25, 0.5, 0.25]))
    pair = exact_law_from_uniforms(lambda generator: tuple(bool(u >= 0.5) for u in generator.random(2)))
    assert by_search == by_array == by_choice == {0: 0.25, 1: 0.5, 2: 0.25}
    assert set(pair.values()) == {0.25}
    assert exact_law_from_uniforms(lambda generator: generator.integers(2, 5)) == dict.fromkeys(
        (2, 3, 4), Fraction(1, 3)
    )


@pytest.mark.parametrize(
    "use",
    [
        lambda generator: float(generator.random()),
        lambda generator: generator.random() ** 2,
        lambda generator: hash(generator.random()),
        lambda generator: generator.random() < generator.random(),
        lambda generator: generator.random() * 0 < 1,
        lambda generator: np.log(generator.random()),
        lambda generator: generator.random() == 0.5,
        lambda generator: generator.standard_normal(),
        lambda generator: generator.gumbel(size=3),
        lambda generator: generator.integers(3, 3),
        lambda generator: generator.choice(2, p=[0, 0]),
    ],
)
def test_what_cannot_be_followed_is_refused(use):
    with pytest.raises((InvalidArgument, TypeError)):
        exact_law_from_uniforms(use)

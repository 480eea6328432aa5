"""Laws and noise as arrays: the same decisions as from laws in pieces and noise that is drawn when it is asked for."""

import numpy as np
import pytest

from coupled_sampling import METHODS, CounterNoise
from coupled_sampling.contracts import Sites
from coupled_sampling.couplings import Decision, DraftLawArray, acceptance_probability, maximal
from coupled_sampling.draft_laws import DraftLaws, Run
from coupled_sampling.errors import InvalidArgument
from coupled_sampling.noise import ArrayNoise, race_weights, uniforms
from coupled_sampling.step_rule import decide

ROWS, SLOTS, VOCAB, FIRST, ROUND = 3, 6, 9, 4, 2


def random_laws(generator, *shape):
    weights = generator.random((*shape, VOCAB)) ** 3
    weights[..., 0] = 0
    return weights / weights.sum(axis=-1, keepdims=True)


@pytest.fixture(params=range(5))
def step(request):
    """Sites of three rows, of which one begins later; drafts of which the first three were drawn and the next two guessed."""
    generator = np.random.default_rng(request.param)
    valid = np.ones((ROWS, SLOTS), bool)
    valid[1, :2] = False
    target = random_laws(generator, ROWS, SLOTS)
    drawn = 0.7 * target + 0.3 * random_laws(generator, ROWS, SLOTS)
    draft = generator.integers(1, VOCAB, (ROWS, SLOTS))
    numbers = np.arange(ROWS).astype(np.uint64)
    position = np.broadcast_to(FIRST + np.arange(SLOTS), (ROWS, SLOTS)).copy()
    sites = Sites(7 + numbers, numbers, np.full(ROWS, ROUND), position, valid)
    runs = [
        [Run(int(valid[b].argmax()), 3, drawn[b, int(valid[b].argmax()) : 3]), Run(3, 5, None)] for b in range(ROWS)
    ]
    return target, drawn, draft, sites, DraftLaws(draft, runs)


def noise_of(sites):
    drawn = [uniforms(int(s), int(q), ROUND, FIRST, SLOTS) for s, q in zip(sites.seed, sites.sequence, strict=True)]
    races = [
        [race_weights(int(s), int(q), FIRST + j, VOCAB) for j in range(SLOTS)]
        for s, q in zip(sites.seed, sites.sequence, strict=True)
    ]
    return ArrayNoise(np.stack(drawn), np.array(races))


@pytest.mark.parametrize("method", METHODS)
def test_a_step_on_arrays_decides_what_the_loop_would(step, method):
    target, drawn, draft, sites, pieces = step
    expected = decide(METHODS[method], target, sites, pieces, CounterNoise())
    drawn[~pieces.drafted] = np.nan  # where there is no draft the law may be anything
    guessed = np.broadcast_to((np.arange(SLOTS) >= 3) & (np.arange(SLOTS) < 5), draft.shape)
    laws = DraftLawArray(draft, pieces.drafted, drawn).guessed(guessed)
    found = decide(METHODS[method], target, sites, laws, noise_of(sites))
    np.testing.assert_array_equal(found.last, expected.last)
    np.testing.assert_array_equal(found.tokens[sites.valid], expected.tokens[sites.valid])


def test_a_match_needs_no_laws_and_rejection_no_races(step):
    target, drawn, draft, sites, pieces = step
    noise = noise_of(sites)
    match = decide(
        METHODS["scd-match"], target, sites, DraftLawArray(draft, pieces.drafted, None), noise._replace(uniforms=None)
    )
    np.testing.assert_array_equal(match.tokens, decide(METHODS["scd-match"], target, sites, pieces, noise).tokens)
    laws = DraftLawArray(draft, pieces.drafted, drawn)
    sparse = decide(METHODS["scd-maximal"], target, sites, laws, noise._replace(race_weights=None))
    np.testing.assert_array_equal(sparse.tokens, decide(METHODS["scd-maximal"], target, sites, laws, noise).tokens)


def test_noise_that_is_missing_is_named(step):
    target, drawn, draft, sites, pieces = step
    laws = DraftLawArray(draft, pieces.drafted, drawn)
    with pytest.raises(InvalidArgument, match="race_weights is None"):
        decide(METHODS["scd-match"], target, sites, laws, ArrayNoise(noise_of(sites).uniforms))
    with pytest.raises(InvalidArgument, match="uniforms is None"):
        decide(METHODS["sjd"], target, sites, laws, ArrayNoise(None, noise_of(sites).race_weights))


def test_the_couplings_take_drafts_with_their_laws(step):
    """Where there is no draft, the token is drawn from the target law, and nothing is accepted."""
    target, drawn, draft, _, _ = step
    drafted = np.broadcast_to(np.arange(SLOTS) % 2 == 0, draft.shape)
    u, v = np.random.default_rng(1).random((2, ROWS, SLOTS))
    laws = DraftLawArray(draft, drafted, drawn)
    found, all_drafted = maximal(draft, laws, target, u, v), maximal(draft, drawn, target, u, v)
    assert isinstance(found, Decision)
    np.testing.assert_array_equal(found.accepted, all_drafted.accepted & drafted)
    np.testing.assert_array_equal(found.tokens[drafted], all_drafted.tokens[drafted])
    np.testing.assert_array_equal(
        acceptance_probability(draft, laws, target), acceptance_probability(draft, drawn, target)
    )
    alone = np.array(
        [np.searchsorted(np.cumsum(law), x, side="right") for law, x in zip(target[~drafted], v[~drafted], strict=True)]
    )
    np.testing.assert_array_equal(found.tokens[~drafted], alone)


def test_with_uniforms_the_target_laws_are_checked(step):
    target, drawn, draft, _, pieces = step
    u, v = np.random.default_rng(1).random((2, ROWS, SLOTS))
    with pytest.raises(InvalidArgument, match="target_law"):
        maximal(draft, DraftLawArray(draft, pieces.drafted, drawn), 2 * target, u, v)

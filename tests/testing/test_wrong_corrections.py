"""Wrong ways to use a corrected law must be caught: each is put into the shipped step and its bias is measured exactly.

An unlucky model hides a mistake, so each is tried on several, and the test says on how many it shows.
"""

import numpy as np
import pytest

from coupled_sampling import HostStep, generate
from coupled_sampling.drafting import Repeat
from coupled_sampling.step_rule import StepDecision
from coupled_sampling.testing import TableProvider, autoregressive_law, exact_law, random_table, total_variation
from standins.correctors import Kept, random_low_rank

CAUGHT = 1e-3
LOSSLESS = 1e-12
MODELS = range(6)
METHODS = ["scd-maximal", "sjd", "scd-gumbel"]


def distances(kind, method, *, length=3, models=MODELS, corrector=None):
    """Total variation of the outputs of ``kind`` from the chain rule, on each model."""

    def distance(seed):
        table = random_table(seed, 2)
        predicts = random_low_rank(seed, 2, (1, 2)) if corrector is None else corrector

        def run(noise):
            step = kind(TableProvider(table, 2), method, noise, predicts)
            return tuple(generate(step, [[0]], length=length, window=3, drafting=Repeat(fill=0)).tokens[0].tolist())

        return total_variation(exact_law(run), autoregressive_law(table, [0], length))

    return [distance(seed) for seed in models]


def caught(kind, method, **world):
    """On how many models the mistake shows."""
    return sum(distance > CAUGHT for distance in distances(kind, method, **world))


class RecordsTheUncorrectedLaw(HostStep):
    """Draws a redraft from the corrected law and records that of the pass."""

    def _decide(self, target, slots, window, correction=None):
        return super()._decide(target, slots, window, correction)._replace(laws=target)


def later_sites(slots, decided):
    """bool (B, n) the sites that are redrafts."""
    return slots.sites.valid & (np.arange(slots.draft.shape[1]) > decided.last[:, None])


class RenamesTheLaw(HostStep):
    """Keeps the redrafts that were drawn from the laws of the pass, and records the corrected ones for them."""

    def _decide(self, target, slots, window, correction=None):
        decided = super()._decide(target, slots, window)
        laws, later = decided.laws.copy(), later_sites(slots, decided)
        for site in range(1, laws.shape[1]) if correction is not None else ():
            found = correction.at(site, decided.tokens, later)
            if found is not None:
                laws[found.changed, site] = found.law[found.changed]
        return decided._replace(laws=laws)


class LooksToTheRight:
    """What is predicted for a site depends on the redraft that stands behind it."""

    def __init__(self, correction):
        self._correction = correction

    def at(self, site, tokens, later):
        found = self._correction.at(site, tokens, later)
        if found is None or site + 1 >= tokens.shape[1]:
            return found
        tilted = found.law * np.where(tokens[:, site + 1, None] == 0, [4.0, 1.0], [1.0, 4.0])
        return found._replace(law=tilted / np.maximum(tilted.sum(axis=-1, keepdims=True), 1e-300))


class PredictsFromTheRight(HostStep):
    """Corrects by `LooksToTheRight`."""

    def _decide(self, target, slots, window, correction=None):
        return super()._decide(target, slots, window, None if correction is None else LooksToTheRight(correction))


class CommitsWhatWasPredicted(HostStep):
    """Goes on behind the first refusal: a redraft from a corrected law is committed as if the model had been asked."""

    def _decide(self, target, slots, window, correction=None):
        decided = super()._decide(target, slots, window, correction)
        behind = later_sites(slots, decided).any(axis=1)
        return StepDecision(decided.tokens, np.where(behind, decided.last + 1, decided.last), decided.laws)


@pytest.mark.cases(3)
@pytest.mark.parametrize("kind", [RecordsTheUncorrectedLaw, RenamesTheLaw, CommitsWhatWasPredicted])
@pytest.mark.parametrize("method", METHODS)
def test_a_law_that_is_not_the_drafts_own_is_caught_on_every_model(kind, method):
    assert caught(kind, method) == len(MODELS)


@pytest.mark.parametrize("method", METHODS)
def test_the_shipped_step_is_clean_on_all_of_them(method):
    assert max(distances(HostStep, method)) < LOSSLESS


def test_what_looks_to_the_right_is_caught_on_every_model_of_two():
    """It takes one token more to see: that behind the one whose law was bent."""
    assert caught(PredictsFromTheRight, "scd-gumbel", models=range(2), length=4) == 2
    assert max(distances(PredictsFromTheRight, "scd-gumbel", models=range(2))) < LOSSLESS


@pytest.mark.parametrize("kind", [RecordsTheUncorrectedLaw, RenamesTheLaw])
def test_where_a_corrector_changes_nothing_neither_do_these_mistakes(kind):
    """Why several models: of those on which a prediction is the law of the pass, each would let them through."""
    assert max(distances(kind, "scd-maximal", corrector=Kept(1, 2))) < LOSSLESS


def test_under_match_no_law_is_recorded_and_only_committing_too_much_is_wrong():
    assert max(distances(RecordsTheUncorrectedLaw, "scd-match")) < LOSSLESS
    assert max(distances(PredictsFromTheRight, "scd-match")) < LOSSLESS
    assert caught(CommitsWhatWasPredicted, "scd-match") == len(MODELS)

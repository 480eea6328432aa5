"""Broken decoders must be caught: each well-known mistake is put into the shipped step and its bias is measured exactly.

Without these, "the total variation is zero" could mean that the test cannot see.
"""

import itertools

import numpy as np
import pytest

from coupled_sampling import HostStep, generate
from coupled_sampling.couplings import residual
from coupled_sampling.drafting import Repeat
from coupled_sampling.noise import Purpose
from coupled_sampling.step_rule import StepDecision
from coupled_sampling.testing import TableProvider, autoregressive_law, exact_law, random_table, total_variation
from standins.old_law import OldLawForKeptDrafts

CAUGHT = 1e-3
LOSSLESS = 1e-12
SEEDS = range(6)
"""Tables tried; a mistake counts as caught if one world shows it, the shipped step must be clean on all of them."""


def law_of(step_type, method, seed, *, prompts=((0,),), vocab_size=2, length=4, window=3, wrap=lambda noise: noise):
    """Exact joint law of ``step_type`` run by the shipped decoder on the table of ``seed``."""
    table = random_table(seed, vocab_size)

    def run(noise):
        noise = wrap(noise)
        step = step_type(TableProvider(table, vocab_size, len(prompts), 12), method, noise)
        tokens = generate(step, prompts, length=length, window=window, drafting=Repeat(fill=0), noise=noise).tokens
        return tuple(tuple(row.tolist()) for row in tokens)

    alone = [autoregressive_law(table, prompt, length) for prompt in prompts]
    oracle = {
        tuple(tokens for tokens, _ in rows): float(np.prod([chance for _, chance in rows]))
        for rows in itertools.product(*(law.items() for law in alone))
    }
    return total_variation(exact_law(run, max_paths=50_000), oracle)


def worst(step_type, method, *, seeds=SEEDS, **world):
    return max(law_of(step_type, method, seed, **world) for seed in seeds)


# A. The law that is recorded for a draft that was kept.


@pytest.mark.cases(1)
@pytest.mark.parametrize("method", ["scd-maximal", "scd-gumbel"])
def test_recording_the_old_law_of_kept_drafts_is_caught(method):
    assert worst(OldLawForKeptDrafts, method) > CAUGHT
    assert worst(HostStep, method) < LOSSLESS


# B. Acceptance that shares the draft's own noise.


class AcceptanceFromTheSharedDraw:
    """Answers whether to accept from the position's persistent uniform, the one the draft was drawn with."""

    def __init__(self, noise):
        self._noise = noise

    def __getattr__(self, name):
        return getattr(self._noise, name)

    def bernoulli(self, probability, sites, purpose, *, where, leading=False):
        law = np.stack([probability, 1 - probability], axis=-1)
        asked = np.zeros(where.shape, bool)
        answers = np.zeros(where.shape, bool)
        for b, j in np.argwhere(where).tolist():
            if leading and (where[b, :j] & ~answers[b, :j]).any():
                continue
            asked[:] = False
            asked[b, j] = True
            answers[b, j] = self._noise.shared(law, sites, where=asked)[b, j] == 0
        return answers


class ResidualFromTheSharedDraw(AcceptanceFromTheSharedDraw):
    """Independent acceptance, but the corrected token comes from the persistent draw."""

    def bernoulli(self, probability, sites, purpose, *, where, leading=False):
        return self._noise.bernoulli(probability, sites, purpose, where=where, leading=leading)

    def categorical(self, weights, sites, purpose, *, where):
        if purpose is not Purpose.RESIDUAL:
            return self._noise.categorical(weights, sites, purpose, where=where)
        total = weights.sum(axis=-1, keepdims=True)
        return self._noise.shared(weights / np.where(total > 0, total, 1), sites, where=where)


def test_acceptance_that_shares_the_drafts_noise_is_caught():
    assert worst(HostStep, "scd-gumbel", wrap=AcceptanceFromTheSharedDraw) > CAUGHT


def test_correction_that_shares_the_drafts_noise_is_caught():
    assert worst(HostStep, "scd-gumbel", vocab_size=3, length=3, wrap=ResidualFromTheSharedDraw) > CAUGHT
    assert worst(HostStep, "scd-gumbel", vocab_size=3, length=3) < LOSSLESS


def test_the_noise_wrapper_itself_is_harmless():
    """Where drafts do not use the shared draw there is nothing to be dependent on: same wrapper, no bias."""
    assert worst(HostStep, "speculative", wrap=AcceptanceFromTheSharedDraw) < LOSSLESS


# C. Drafts that are recycled although the decision to stop has looked at them.


class BlockVerification(HostStep):
    """Block verification (Sun et al., arXiv 2403.10444): the longest prefix that the block as a whole lets stand.

    With w_0 = 1 and w_i = min(1, w_{i-1} p_i(x_i) / q_i(x_i)): a prefix of length i < n is accepted with probability
    h_i = r_i / (r_i + 1 - w_i), r_i = sum_x max(w_i p_{i+1}(x) - q_{i+1}(x), 0), the whole block with w_n; the longest
    accepted prefix stands and the next token comes from max(w_i p_{i+1} - q_{i+1}, 0). It stops at i only because
    the tests to the right of i have failed, so it looks at drafts that it then leaves behind.
    """

    def _decide(self, target, slots, window, correction=None):
        law = self._draft_laws(target, slots, window).dense(target)
        rows, count = slots.draft.shape
        weight = np.ones((rows, count))
        chance = np.zeros((rows, count))
        drafts = slots.has_draft.sum(axis=1)
        opening = np.argmax(slots.sites.valid, axis=1)
        for b in range(rows):
            standing = 1.0
            first, end = int(opening[b]), int(opening[b]) + int(drafts[b])
            for j in range(first, end):
                x = int(slots.draft[b, j])
                standing = min(1.0, standing * target[b, j, x] / law[b, j, x])
                weight[b, j + 1] = standing
                left = np.maximum(standing * target[b, j + 1] - law[b, j + 1], 0).sum()
                if j + 1 == end:
                    chance[b, j] = standing
                else:
                    chance[b, j] = left / (left + 1 - standing) if left > 0 else 0.0
        accepted = self.noise.bernoulli(chance, slots.sites, Purpose.ACCEPT, where=slots.has_draft)
        number = np.arange(count) + 1
        last = np.maximum((number * (accepted & slots.has_draft)).max(axis=1), opening)
        scaled = weight[..., None] * target
        here = np.arange(count) == last[:, None]
        corrected = self.noise.categorical(residual(scaled, law), slots.sites, Purpose.RESIDUAL, where=here)
        tokens = np.where(here, corrected, slots.draft)
        later = slots.sites.valid & (np.arange(count) > last[:, None])
        if self.method.redraft == "independent":
            redrawn = self.noise.categorical(target, slots.sites, Purpose.REDRAFT, where=later)
            tokens = np.where(later, redrawn, tokens)
        elif self.method.redraft == "maximal":
            kept = later & slots.has_draft
            kept &= self.noise.bernoulli(self._keep(slots, law, target), slots.sites, Purpose.REDRAFT, where=kept)
            drawn = self.noise.categorical(residual(target, law), slots.sites, Purpose.REDRAFT, where=later & ~kept)
            tokens = np.where(later & ~kept, drawn, tokens)
        return StepDecision(tokens, last, target)

    @staticmethod
    def _keep(slots, law, target):
        proposed = np.take_along_axis(law, slots.draft[..., None], axis=-1)[..., 0]
        wanted = np.take_along_axis(target, slots.draft[..., None], axis=-1)[..., 0]
        return np.where(proposed > wanted, wanted / np.where(proposed > 0, proposed, 1), 1.0)


def test_block_verification_is_lossless_when_its_leftover_drafts_are_dropped():
    assert worst(BlockVerification, "speculative") < LOSSLESS
    assert worst(BlockVerification, "speculative", vocab_size=3, length=3) < LOSSLESS


def test_block_verification_with_recycled_drafts_is_caught():
    assert worst(BlockVerification, "scd-maximal") > CAUGHT
    assert worst(HostStep, "scd-maximal") < LOSSLESS


def test_block_verification_may_redraw_what_it_leaves_behind_independently():
    """The exception that shows the reason: fresh draws do not remember what the decision looked at."""
    assert worst(BlockVerification, "sjd") < LOSSLESS


# D. Noise that belongs to a window slot.


class NoiseOfTheSlot:
    """Shared draws keyed by the slot: the table of noise stays where it is while the window moves on."""

    def __init__(self, noise):
        self._noise = noise

    def __getattr__(self, name):
        return getattr(self._noise, name)

    def shared(self, law, sites, *, where):
        slots = np.broadcast_to(np.arange(sites.position.shape[1]), sites.position.shape)
        return self._noise.shared(law, sites._replace(position=slots), where=where)


class NoiseOfTheRow(NoiseOfTheSlot):
    """Shared draws of one stream for the whole batch."""

    def shared(self, law, sites, *, where):
        return self._noise.shared(law, sites._replace(sequence=np.zeros_like(sites.sequence)), where=where)


@pytest.mark.cases(2)
@pytest.mark.parametrize("method", ["ar", "scd-gumbel", "scd-match", "speculative-match"])
def test_shared_noise_that_belongs_to_a_slot_is_caught(method):
    assert worst(HostStep, method, wrap=NoiseOfTheSlot) > CAUGHT
    assert worst(HostStep, method) < LOSSLESS


@pytest.mark.parametrize("method", ["ar", "scd-match"])
def test_shared_noise_that_ignores_the_sequence_is_caught(method):
    world = {"prompts": ((0,), (1,)), "length": 2, "window": 2}
    assert worst(HostStep, method, wrap=NoiseOfTheRow, **world) > CAUGHT
    assert worst(HostStep, method, **world) < LOSSLESS


# E. One count for the whole batch.


class CommitsTheBatchMinimum(HostStep):
    """Every row stops where the first row stops, and takes its corrected token there although its draft stood."""

    def _decide(self, target, slots, window, correction=None):
        law = self._draft_laws(target, slots, window).dense(target)
        decided = super()._decide(target, slots, window, correction)
        at = np.full(len(window.start), int(decided.last.min()))
        here = np.arange(slots.draft.shape[1]) == at[:, None]
        earlier = here & (decided.last > at)[:, None]
        corrected = self.noise.categorical(residual(target, law), slots.sites, Purpose.RESIDUAL, where=earlier)
        return StepDecision(np.where(earlier, corrected, decided.tokens), at, decided.laws)


@pytest.mark.cases(1)
@pytest.mark.parametrize("method", ["sjd", "scd-maximal", "speculative"])
def test_committing_the_batch_minimum_is_caught(method):
    world = {"prompts": ((0,), (1,)), "length": 3, "window": 2, "seeds": range(2)}
    assert worst(CommitsTheBatchMinimum, method, **world) > CAUGHT
    assert worst(HostStep, method, **world) < LOSSLESS


def test_one_row_alone_has_no_minimum_to_be_biased_by():
    assert worst(CommitsTheBatchMinimum, "sjd", length=3) < LOSSLESS

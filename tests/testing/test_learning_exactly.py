"""Learning of committed positions keeps the law, by enumeration; learning of anything to the right does not."""

import itertools

import numpy as np
import pytest

from coupled_sampling import HostStep, generate
from coupled_sampling.drafting import Copy
from coupled_sampling.plain_corrections import RunningAverages
from coupled_sampling.row_correctors import Made, RowCorrectors
from coupled_sampling.testing import TableProvider, autoregressive_law, exact_law, random_table, total_variation

CAUGHT = 1e-4
LOSSLESS = 1e-12
LONG = {"lengths": (5,), "window": 4}
"""The least in which a law can be corrected by what was learned of its own draft: two rounds later, and three slots on."""


def distance(method, seed, *, vocab_size=2, lengths=(4,), window=3, stop=(), step=HostStep):
    """Total variation between what is decoded while averages are learned and the model's own law."""
    table, prompts = random_table(seed, vocab_size), [[0], [1, 1]][: len(lengths)]

    def run(noise):
        # Stronger than anybody would have them: two or three positions are to make a difference.
        averages = RunningAverages((1, 2), vocab_size, weights=(2.0, -1.0), shrinkage=0.1)
        model = step(TableProvider(table, vocab_size, len(prompts), 12), method, noise, averages)
        made = generate(
            model, prompts, length=list(lengths), window=window, drafting=Copy(lag=1, fill=0), stop=stop, noise=noise
        )
        return tuple(tuple(row.tolist()) for row in made.tokens)

    alone = [autoregressive_law(table, prompt, n, stop) for prompt, n in zip(prompts, lengths, strict=True)]
    oracle = {
        tuple(tokens for tokens, _ in rows): float(np.prod([chance for _, chance in rows]))
        for rows in itertools.product(*(law.items() for law in alone))
    }
    return total_variation(exact_law(run, max_paths=20_000), oracle)


@pytest.mark.cases(4)
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("method", ["scd-maximal", "sjd", "scd-gumbel", "scd-match"])
def test_what_is_learned_on_the_way_changes_no_law(method, seed):
    assert distance(method, seed) < LOSSLESS


@pytest.mark.parametrize("method", ["scd-maximal", "sjd", "scd-gumbel"])
def test_nor_with_stop_tokens(method):
    assert distance(method, 2, stop=(1,)) < LOSSLESS


def test_nor_the_joint_law_of_two_rows():
    assert distance("scd-gumbel", 3, lengths=(4, 2), stop=(1,)) < LOSSLESS
    assert distance("scd-maximal", 3, lengths=(4, 2), stop=(1,)) < LOSSLESS


def test_a_table_of_the_sequence_itself_is_caught():
    """What was committed before by the same noise says something about the drafts that it will draw."""
    table, prompt, length = random_table(1, 2), [[0]], 3

    def run(noise):
        averages = RunningAverages((1, 2), 2, weights=(2.0, -1.0), shrinkage=0.1)
        settings = {"length": length, "window": 3, "drafting": Copy(lag=1, fill=0), "noise": noise}
        generate(TableProvider(table, 2), prompt, method="scd-match", corrections=averages, **settings)
        again = generate(TableProvider(table, 2), prompt, method="scd-gumbel", corrections=averages.kept(), **settings)
        return tuple(again.tokens[0].tolist())

    assert total_variation(exact_law(run), autoregressive_law(table, prompt[0], length)) > CAUGHT


class LearnsOfDrafts(HostStep):
    """Learns of all sites of a window, the drafts behind the last committed position included."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self._correctors = _ToTheEnd(self.corrections, self.method)


class _ToTheEnd(RowCorrectors):
    def commit(self, window, slots, logits, tokens, made):
        ends = [int(np.flatnonzero(valid)[-1]) + 1 for valid in slots.sites.valid]
        to_the_end = [Made(slice(own.sites.start, end)) for own, end in zip(made, ends, strict=True)]
        super().commit(window, slots, logits, np.where(slots.has_draft, slots.draft, tokens), to_the_end)


def test_learning_of_drafts_that_are_still_open_is_caught():
    assert distance("scd-gumbel", 0, step=LearnsOfDrafts, **LONG) > CAUGHT
    assert distance("scd-gumbel", 0, **LONG) < LOSSLESS

"""What a step walked, and what a narrower window would have come to: held against windows that were narrower."""

import numpy as np
import pytest

from coupled_sampling import Decoder, Request
from coupled_sampling.branching import BestFirst, BranchContext
from coupled_sampling.contracts import Candidates
from coupled_sampling.walks import Walk
from standins.markov import Markov


class Scripted:
    """Windows of 14 slots, 8 of them for branches; at step ``at`` ``kept`` of them, behind the same path."""

    largest = 14

    def __init__(self, at=None, kept=8):
        self.at, self.kept = at, kept
        self.walks = []

    def width(self, rows):
        return 6 + self.branches(rows)

    def branches(self, rows):
        return self.kept if len(self.walks) == self.at else 8

    def record(self, rows, width, tokens, seconds):
        raise AssertionError("a rule that chooses branches is told of walks")

    def record_walks(self, rows, width, branches, walks, seconds):
        assert (width, branches) == ((6 + self.kept, self.kept) if len(self.walks) == self.at else (14, 8))
        self.walks += walks


def decoded(rule, seed, steps=None):
    """For every walk that was told, the tokens committed and the window."""
    model = Markov(seed, vocab_size=6, max_length=200)
    decoder = Decoder(model, method="scd-match", window=rule, drafting="repeat")
    decoder.add(Request([1], 80, seed=seed))
    found = []
    while (decoder.active or decoder.waiting) and len(found) != steps:
        (commit,) = decoder.step()
        if len(rule.walks) > len(found):
            found.append((commit.tokens.tolist(), model.windows[-1]))
    return found


@pytest.mark.parametrize("seed", range(2))
def test_a_walk_spells_what_was_committed(seed):
    rule = Scripted()
    found = decoded(rule, seed)
    assert len(found) == len(rule.walks) > 10
    for walk, (committed, (tokens, parents)) in zip(rule.walks, found, strict=True):
        assert walk.tokens == len(committed)
        slots = walk.known + walk.drafts
        parents = range(-1, len(tokens) - 1) if parents is None else parents  # a step in which no branch was found
        assert [tokens[slot] for slot in slots] == committed[:-1]
        assert [parents[slot] for slot in slots] == [walk.known - 1, *slots][: len(slots)]
    assert any((walk.drafts >= walk.path).any() for walk in rule.walks)
    assert any((walk.drafts < walk.path).any() for walk in rule.walks)


@pytest.mark.parametrize("seed", range(2))
def test_a_window_with_fewer_branches_commits_what_the_wider_one_said_of_it(seed):
    """The same step is made anew with fewer branches behind the same path."""
    wide = Scripted()
    decoded(wide, seed)
    fewer = 0
    for at in range(12):
        for kept in (1, 2, 4):
            tokens, steps = wide.walks[at].within(np.array([6 + kept]), np.array([kept]))
            committed, _ = decoded(Scripted(at, kept), seed, steps=at + 1)[-1]
            assert (tokens.tolist(), steps.tolist()) == ([len(committed)], [1])
            fewer += len(committed) < wide.walks[at].tokens
    assert fewer >= 3, "else nothing was compared"


def test_first_branches_are_those_of_a_search_for_fewer():
    """What `Walk.within` stands on."""
    generator = np.random.default_rng(0)
    tokens = np.array([generator.permutation(9)[:4] for _ in range(7)])
    candidates = Candidates(tokens, -np.sort(-generator.standard_normal((7, 4)), axis=1))
    contexts = [BranchContext(np.concatenate([[0], tokens[:5, 0]]), 1, most, 7, candidates) for most in (20, 6)]
    many, few = (BestFirst(99).branches(context) for context in contexts)
    assert len(few.tokens) == 6
    np.testing.assert_array_equal(many.parents[:6], few.parents)
    np.testing.assert_array_equal(many.tokens[:6], few.tokens)


def test_a_run_along_the_path_takes_a_chain_its_length_over_the_width():
    widths = np.array([1, 2, 3, 5, 8])
    for count in range(1, 30):
        tokens, steps = Walk(np.arange(count - 1), count, 1).within(widths, np.zeros(5, int))
        assert tokens.tolist() == [count] * 5
        assert steps.tolist() == [-(-count // width) for width in widths.tolist()]


def test_known_tokens_take_slots_of_a_narrower_window():
    tokens, steps = Walk(np.arange(5), 9, known=3).within(np.array([6, 12]), np.array([2, 2]))
    # One draft fits beside three known tokens and two branches: two tokens, and four more by four slots a step.
    assert (tokens.tolist(), steps.tolist()) == ([6, 6], [2, 1])

"""Windows with branches keep the law, by enumeration: exactly in fractions, to 1e-12 in floats, whatever the branches are.

`EnumeratingNoise` has one interval for each position, and a tree asks about a position several times in one pass, under the laws of
several slots: each answer is conditional on those before, as it is when production draws the number once.
"""

from fractions import Fraction

import numpy as np
import pytest

from coupled_sampling import HostStep, Sampling, generate
from coupled_sampling.branching import BestFirst, Branches
from coupled_sampling.contracts import Candidates, Sites
from coupled_sampling.drafting import Repeat
from coupled_sampling.draws import RanksShared
from coupled_sampling.errors import InvalidArgument
from coupled_sampling.testing import (
    EnumeratingNoise,
    RationalProvider,
    TableProvider,
    assert_lossless_exactly,
    autoregressive_law,
    exact_law,
    random_table,
    rational_table,
    shipped_decoder,
    total_variation,
)
from coupled_sampling.testing.exact.enumeration import enumerate_paths
from standins.correctors import random_fractions
from standins.tree_worlds import AnyShape

MATCH = ["scd-match", "speculative-match"]


class Everything:
    """Every token behind every draft and every branch, for as many slots as there are: some of them the path's own again."""

    candidates = 2

    def __init__(self, most, vocab_size):
        self.most, self.vocab_size = most, vocab_size

    def branches(self, context):
        drafts, parents, tokens, node = len(context.path), [], [], -1
        depths = list(range(drafts))
        while node < len(depths) and len(tokens) < context.most:
            depth = 0 if node < 0 else depths[node] + 1
            some = range(min(self.vocab_size, context.most - len(tokens)) if depth < context.reach else 0)
            for token in some:
                parents.append(node)
                tokens.append(token)
                depths.append(depth)
            node += 1
        return Branches(np.array(parents, np.int64), np.array(tokens, np.int64))


@pytest.mark.parametrize(
    ("method", "vocab_size", "length", "window", "rule"),
    [
        ("scd-match", 2, 4, 5, BestFirst(2, candidates=2)),
        ("speculative-match", 2, 4, 5, BestFirst(2, candidates=2)),
        ("scd-match", 2, 4, 9, Everything(8, 2)),
        ("scd-match", 3, 3, 6, BestFirst(3, candidates=3)),
        ("speculative-match", 2, 4, 8, AnyShape(0, 5, [[0, 1, 1, 0, 0], [0, 0, 1, 1, 0]], vocab_size=2)),
        ("scd-match", 4, 2, 6, Everything(4, 4)),
    ],
)
def test_in_fractions_the_distance_is_exactly_nothing(method, vocab_size, length, window, rule):
    law = assert_lossless_exactly(
        shipped_decoder(method, window=window, branches=rule),
        rational_table(1, vocab_size, zeros=0.1),
        [[0]],
        vocab_size=vocab_size,
        length=length,
        arithmetic="rational",
    )
    assert all(isinstance(chance, Fraction | int) for chance in law.values())
    assert sum(law.values()) == 1


@pytest.mark.parametrize("method", MATCH)
def test_so_it_is_through_stops_ragged_rows_and_rows_used_again(method):
    settings = {
        "stop": (1,),
        "drafting": Repeat(fill=0),
        "branches": AnyShape(2, 3, [[0, 0, 1], [1, 0, 1, 0, 0]], vocab_size=2),
    }
    for rows in (1, 2):
        assert_lossless_exactly(
            shipped_decoder(method, window=4, **settings),
            rational_table(4, 2),
            [[0], [1, 0, 1]],
            vocab_size=2,
            length=[2, 2],
            stop=(1,),
            rows=rows,
            arithmetic="rational",
        )


def test_so_it_is_with_corrected_redrafts_and_warped_laws():
    table, sampling = rational_table(3, 3), Sampling(0.5, top_k=2)

    def run(noise):
        step = HostStep(RationalProvider(table, 3), "scd-match", noise, random_fractions(0, 3, (1, 2)))
        settings = {
            "sampling": sampling,
            "window": 6,
            "drafting": Repeat(fill=0),
            "branches": BestFirst(3, candidates=3),
        }
        return tuple(generate(step, [[1]], length=3, **settings).tokens[0].tolist())

    def warped(context):
        weights = [chance**2 for chance in table(context)]
        least = sorted(weights)[-2]
        weights = [weight if weight >= least else 0 for weight in weights]
        return [Fraction(weight) / sum(weights) for weight in weights]

    assert total_variation(exact_law(run, arithmetic="rational"), autoregressive_law(warped, [1], 3)) == 0


def test_and_in_floats_with_a_processor():
    """What it adds depends on the slot's own path."""
    table, weights = random_table(0, 2), np.array([[1.0, 2.0], [4.0, 1.0]])
    sampling = Sampling(processors=(lambda logits, tokens, positions: logits + np.log(weights)[tokens[positions - 1]],))

    def bent(context):
        own = table(context) * weights[context[-1]]
        return own / own.sum()

    rule = Everything(6, 2)
    decode = shipped_decoder("scd-match", window=8, branches=rule, sampling=sampling)

    def decoded(model, noise, prompts, lengths):
        return decode(TableProvider(table, 2), noise, prompts, lengths)

    assert_lossless_exactly(decoded, bent, [[0]], vocab_size=2, length=4)


def test_sites_of_a_tree_may_ask_about_a_position_several_times():
    """One interval for all: the answers are those of one uniform that is compared with several laws."""
    laws = np.array([[[0.5, 0.5], [0.25, 0.75], [0.75, 0.25]]])
    sites = Sites(
        np.zeros(1, np.uint64), np.zeros(1, np.uint64), np.zeros(1, int), np.array([[7, 7, 7]]), np.ones((1, 3), bool)
    )

    def run(chooser):
        return tuple(EnumeratingNoise(chooser).shared(laws, sites, where=sites.valid)[0].tolist())

    assert enumerate_paths(run, max_paths=10) == {(0, 0, 0): 0.25, (0, 1, 0): 0.25, (1, 1, 0): 0.25, (1, 1, 1): 0.25}


def test_where_noise_ranks_nothing_candidates_are_the_likeliest_by_law():
    """Behind the redraft itself: so branches are chosen while an interval, and no race, stands for the noise."""
    seen, table = [], rational_table(0, 3)

    class Watched(BestFirst):
        def branches(self, context):
            if context.candidates is not None:
                seen.append((context.tokens.copy(), context.committed, context.candidates))
            return super().branches(context)

    def run(noise):
        assert not isinstance(noise, RanksShared)
        rule = Watched(2, candidates=2)
        settings = {"window": 6, "drafting": Repeat(fill=0), "branches": rule, "noise": noise}
        return tuple(
            generate(RationalProvider(table, 3), [[0]], length=3, method="scd-match", **settings).tokens[0].tolist()
        )

    law = exact_law(run, arithmetic="rational", max_paths=5000)
    assert total_variation(law, autoregressive_law(table, [0], 3)) == 0
    assert len(seen) > 10
    for tokens, committed, candidates in seen:
        assert isinstance(candidates, Candidates)
        path = tokens[committed:][: len(candidates.tokens)]
        assert candidates.tokens[: len(path), 0].tolist() == path.tolist()  # the redrafts
        assert (candidates.tokens[:, 0] != candidates.tokens[:, 1]).all()
        assert (np.diff(candidates.scores, axis=1) <= 0).all()  # logarithms of probabilities, without noise
        assert (np.exp(candidates.scores).sum(axis=1) <= 1 + 1e-12).all()


def test_a_decoder_cannot_be_shipped_with_what_are_no_branches():
    for wrong in (-1, 1.5, "best", BestFirst):
        with pytest.raises(InvalidArgument, match="branches is"):
            shipped_decoder("scd-match", branches=wrong)
    with pytest.raises(InvalidArgument, match="sjd accepts drafts by rejection"):
        assert_lossless_exactly(shipped_decoder("sjd", branches=2), random_table(0, 2), [[0]], vocab_size=2, length=2)

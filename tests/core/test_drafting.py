"""Fresh drafts: what each rule guesses, and a draft model that needs no signals."""

import numpy as np
import pytest

from coupled_sampling import CounterNoise, Decoder, DraftModel, Request, generate
from coupled_sampling.contracts import RowInfo, Sampling
from coupled_sampling.drafting import Copy, DraftContext, NGram, Random, Repeat, find_drafting
from coupled_sampling.errors import InvalidArgument
from coupled_sampling.testing import TableProvider, random_table


def guesses(rule, tokens, wanted, prompt_length=1, vocab_size=10):
    context = DraftContext(0, np.array(tokens), prompt_length, wanted, RowInfo(0, 0, Sampling()), 2)
    proposal = rule.propose([context], CounterNoise(), vocab_size=vocab_size, shared=False)[0]
    assert proposal.law is None
    return proposal.tokens.tolist()


def test_repeat_and_copy_read_to_the_left():
    assert guesses(Repeat(), [9, 4], 3) == [4, 4, 4]
    assert guesses(Copy(2), [9, 4, 5, 6], 5) == [5, 6, 5, 6, 5]


def test_copy_repeats_where_the_source_was_not_generated():
    assert guesses(Copy(3), [9, 8, 7], 4, prompt_length=3) == [7, 7, 7, 7]
    assert guesses(Copy(3), [9, 1, 2], 4, prompt_length=1) == [2, 1, 2, 2]


def test_ngram_continues_the_most_recent_longest_match():
    assert guesses(NGram(2), [1, 2, 3, 4, 1, 2], 3) == [3, 4, 1]
    assert guesses(NGram(3), [1, 2, 5, 0, 2, 6, 2], 2) == [6, 2]
    assert guesses(NGram(3), [1, 2, 3], 2) == [3, 3]
    assert guesses(NGram(3), [1], 2) == [1, 1]


def test_ngram_prefers_a_longer_match_to_a_more_recent_one():
    tokens = [1, 2, 3, 0, 2, 4, 1, 2]
    assert guesses(NGram(2), tokens, 2) == [3, 0]
    assert guesses(NGram(1), tokens, 2) == [4, 1]


def test_random_stays_in_its_range_and_reaches_all_of_it():
    assert set(guesses(Random(3, 4), [0], 200)) == {3, 4, 5, 6}
    assert set(guesses(Random(), [0], 300)) == set(range(10))
    with pytest.raises(InvalidArgument, match=r"random:8:4 leaves the vocabulary"):
        Decoder(TableProvider(random_table(0, 10), 10), drafting=Random(8, 4)).add(Request([0], length=2))


@pytest.mark.parametrize(
    "text", ["", "copy", "copy:x", "copy:0", "copy:1:2", "random:1", "ngram:0", "magic", "copy:-1"]
)
def test_specifications_that_mean_nothing_are_refused(text):
    with pytest.raises(InvalidArgument, match="drafting"):
        find_drafting(text)


def test_specifications_name_their_rules():
    assert find_drafting("copy:14") == Copy(14)
    assert find_drafting("random:0:256") == Random(0, 256)
    assert find_drafting("ngram") == NGram(3)
    assert isinstance(find_drafting("repeat"), Repeat)


@pytest.mark.parametrize("method", ["speculative", "speculative-match"])
def test_a_draft_model_equal_to_the_target_is_always_right(method):
    table = random_table(5, 6)
    draft = DraftModel(TableProvider(table, 6, 2))
    tokens, traces = generate(
        TableProvider(table, 6, 2), [[0], [3, 1, 2]], length=16, method=method, window=4, drafting=draft
    )
    assert [len(t) for t in tokens] == [16, 16]
    assert traces[0].committed_per_step == [4, 4, 4, 4]


@pytest.mark.parametrize("method", ["speculative", "scd-gumbel", "scd-match", "scd-maximal"])
def test_rows_of_a_draft_model_do_not_disturb_each_other(method):
    target, other = random_table(5, 6), random_table(6, 6)
    requests = [([i % 6] * (1 + i), 8 + 3 * i) for i in range(5)]
    alone = [
        generate(
            TableProvider(target, 6), [prompt], length=length, method=method, window=5, seed=i,
            drafting=DraftModel(TableProvider(other, 6)),
        ).tokens[0]
        for i, (prompt, length) in enumerate(requests)
    ]  # fmt: skip
    decoder = Decoder(
        TableProvider(target, 6, 2), method=method, window=5, drafting=DraftModel(TableProvider(other, 6, 2))
    )
    for i, (prompt, length) in enumerate(requests):
        decoder.add(Request(prompt, length, seed=i))
    parts = [[] for _ in requests]
    while decoder.active or decoder.waiting:
        for commit in decoder.step():
            parts[commit.handle].append(commit.tokens)
    for own, part in zip(alone, parts, strict=True):
        np.testing.assert_array_equal(own, np.concatenate(part))


def test_a_draft_model_carries_the_law_it_drew_from():
    table = random_table(2, 4)
    context = DraftContext(0, np.array([1, 2]), 1, 3, RowInfo(0, 0, Sampling()), 0)
    proposal = DraftModel(TableProvider(table, 4)).propose([context], CounterNoise(), vocab_size=4, shared=False)[0]
    prefix = [1, 2]
    for token, law in zip(proposal.tokens.tolist(), proposal.law, strict=True):
        np.testing.assert_allclose(law, table(tuple(prefix)), atol=1e-12)
        prefix.append(token)


def test_a_draft_model_that_does_not_fit_is_refused():
    table = random_table(2, 4)
    with pytest.raises(InvalidArgument, match="vocabulary"):
        generate(TableProvider(table, 4), [[0]], length=5, drafting=DraftModel(TableProvider(random_table(0, 3), 3)))
    with pytest.raises(InvalidArgument, match="draft model holds 6"):
        generate(TableProvider(table, 4), [[0]], length=9, drafting=DraftModel(TableProvider(table, 4, max_length=6)))


class Told(TableProvider):
    """Wants to know which prompt each row works on, and remembers it."""

    def begin(self, row, request):
        self.__dict__.setdefault("prompts", []).append((row, request.prompt.tolist()))


def test_a_draft_model_and_its_target_are_told_the_prompts():
    table = random_table(2, 4)
    target, draft = Told(table, 4), Told(table, 4)
    prompts = [[1], [2, 3], [0]]
    generate(target, prompts, length=5, method="speculative", window=3, drafting=DraftModel(draft))
    assert target.prompts == draft.prompts == [(0, prompt) for prompt in prompts]

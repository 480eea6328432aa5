"""Fresh drafts: what each rule guesses, and a draft model that needs no signals."""

from dataclasses import replace

import numpy as np
import pytest

from coupled_sampling import CounterNoise, Decoder, DraftModel, Request, generate
from coupled_sampling.contracts import RowInfo, Sampling
from coupled_sampling.drafting import Copy, DraftContext, NGram, Random, Repeat, find_drafting
from coupled_sampling.errors import InvalidArgument
from coupled_sampling.grammars import GrammarDrafts
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
    assert guesses(Copy(3), [9, 1, 2], 4, prompt_length=1) == [2, 1, 2, 2]


def test_where_nothing_was_generated_the_fill_token_is_guessed_and_never_the_prompt():
    assert guesses(Copy(3, fill=4), [9, 8, 7], 5, prompt_length=3) == [4, 4, 4, 4, 4]
    assert guesses(Repeat(fill=0), [9], 2) == [0, 0]
    assert guesses(Copy(3, fill=4), [9, 8, 7, 1], 5, prompt_length=3) == [1, 1, 1, 1, 1]
    assert guesses(Copy(1, fill=4), [9, 1], 2) == [1, 1]


def test_copy_copies_a_prompt_that_could_have_been_generated():
    """A video goes on from its first frames, behind a token that cannot stand in them."""
    rule = Copy(3, generated=(0, 8))
    assert guesses(rule, [9, 1, 2, 3, 4, 5, 6], 5, prompt_length=7) == [4, 5, 6, 4, 5]
    assert guesses(rule, [9, 1, 2, 3, 4, 5, 6, 7], 3, prompt_length=7) == [5, 6, 7]
    assert guesses(replace(rule, fill=7), [9, 8, 2], 4, prompt_length=3) == [7, 7, 2, 7]
    assert guesses(Copy(3, generated=(0, 0), fill=7), [1, 2, 3], 2, prompt_length=3) == [7, 7]
    assert guesses(Repeat(generated=(0, 8)), [9, 4], 2, prompt_length=2) == [4, 4]
    with pytest.raises(InvalidArgument, match=r"drafting copy: generated is 8, expected \(first, count\)"):
        Copy(3, generated=8)


@pytest.mark.parametrize(
    ("rule", "prompt", "waits"),
    [
        (Copy(3), [9], True),
        (Copy(3, fill=0), [9], False),
        (Copy(3, generated=(0, 8)), [9, 1, 2], True),
        (Copy(3, generated=(0, 8)), [9, 1, 2, 3], False),
        (Copy(4, generated=(0, 8)), [1, 2, 3], True),
        (Repeat(), [9, 9], True),
        (NGram(), [9], False),
        (NGram(generated=(0, 5)), [9], True),
        (NGram(generated=(0, 5)), [2], False),
        (NGram(generated=(0, 5)), [9, 4, 9], False),
        (NGram(generated=(0, 5), fill=1), [9], False),
        (GrammarDrafts(Copy(3)), [9], True),
        (GrammarDrafts(), [9], False),
    ],
)
def test_rules_wait_for_a_first_token_where_they_have_no_guess(rule, prompt, waits):
    assert rule.waits(np.array(prompt), len(prompt)) == waits
    assert not rule.waits(np.array([*prompt, 1]), len(prompt))


class Watched(TableProvider):
    """Remembers what it was asked to forward."""

    def forward(self, tokens, start):
        self.__dict__.setdefault("windows", []).append(tokens[0].tolist())
        return super().forward(tokens, start)


@pytest.mark.parametrize("method", ["sjd", "scd-maximal", "scd-gumbel", "scd-match", "speculative"])
def test_a_first_step_without_a_guess_forwards_the_prompt_and_commits_one_token(method):
    settings = {"length": 9, "method": method, "window": 5, "seed": 3}
    waiting, filled = (Watched(random_table(0, 6), 6) for _ in range(2))
    trace = generate(waiting, [[5, 4]], drafting="copy:2", **settings).traces[0]
    assert waiting.windows[0] == [5, 4]
    assert trace.committed_per_step[0] == 1
    token = waiting.windows[1][0]
    assert waiting.windows[1] == [token] * 5, "what is copied is the first token, and no longer the prompt"
    generate(filled, [[5, 4]], drafting=Copy(2, fill=1), **settings)
    assert filled.windows[0] == [5, 4, 1, 1, 1]


def test_rows_that_wait_do_not_hold_up_others_and_draw_as_they_do_alone():
    table, prompts = random_table(1, 5), [[1], [2, 3]]
    settings = {"method": "scd-maximal", "window": 4, "drafting": "repeat"}
    alone = generate(
        TableProvider(table, 5), prompts, length=12, seed=2, **settings
    ).tokens  # one row: one after the other
    decoder = Decoder(TableProvider(table, 5, 2), **settings)
    decoder.add(Request(prompts[0], 12, seed=2, sequence=0))
    commits = decoder.step() + decoder.step()
    decoder.add(Request(prompts[1], 12, seed=2, sequence=1))  # waits while the other row drafts
    while decoder.active:
        commits += decoder.step()
    for handle, expected in enumerate(alone):
        found = np.concatenate([commit.tokens for commit in commits if commit.handle == handle])
        np.testing.assert_array_equal(found, expected)


def test_tokens_of_a_resumed_request_count_as_generated():
    model = Watched(random_table(0, 6), 6)
    decoder = Decoder(model, method="sjd", window=5, drafting="copy:2")
    decoder.add(Request([5, 4], 9, generated=[1]))
    decoder.step()
    assert model.windows[0] == [5, 4, 1, 1, 1]


def test_a_prompt_longer_than_the_window_is_read_before_a_row_waits():
    model = Watched(random_table(0, 6), 6)
    trace = generate(model, [[5, 4, 3, 2, 1]], length=6, method="scd-match", window=3, drafting="repeat").traces[0]
    first = trace.committed_per_step.index(1)
    assert trace.committed_per_step[:first] == [0] * first
    assert model.windows[first] == [1]


def test_a_fill_token_that_is_none_is_refused():
    with pytest.raises(InvalidArgument, match="fill token is -1"):
        Copy(2, fill=-1)
    with pytest.raises(InvalidArgument, match=r"fill token is 1\.5"):
        NGram(fill=1.5)
    with pytest.raises(InvalidArgument, match=r"generated is 3, expected \(first, count\)"):
        NGram(generated=3)
    for rule in (Copy(2, fill=10), Repeat(fill=10), NGram(fill=10)):
        with pytest.raises(InvalidArgument, match=r"fill token of drafting .* none of the vocabulary \[0, 10\)"):
            Decoder(TableProvider(random_table(0, 10), 10), drafting=rule).check(Request([0], length=2))


def test_ngram_continues_the_most_recent_longest_match():
    assert guesses(NGram(2), [1, 2, 3, 4, 1, 2], 3) == [3, 4, 1]
    assert guesses(NGram(3), [1, 2, 5, 0, 2, 6, 2], 2) == [6, 2]
    assert guesses(NGram(3), [1, 2, 3], 2) == [3, 3]
    assert guesses(NGram(3), [1], 2) == [1, 1]


def test_ngram_guesses_nothing_that_cannot_be_generated():
    """A prompt of 7 to 9, a model that generates 0 to 4."""
    rule = NGram(2, generated=(0, 5))
    assert guesses(NGram(2), [8, 7, 8], 2, prompt_length=3) == [7, 8]
    assert guesses(replace(rule, fill=3), [8, 7, 8], 2, prompt_length=3) == [3, 3]
    assert guesses(replace(rule, fill=3), [9], 2) == [3, 3]
    assert guesses(rule, [8, 2, 9, 1, 2], 3, prompt_length=3) == [2, 1, 2], (
        "behind 2 came 9, in whose place the token before stands"
    )
    assert guesses(rule, [8, 2, 1, 1, 2], 3, prompt_length=3) == [1, 1, 2]


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

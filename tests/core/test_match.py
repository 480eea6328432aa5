"""Token-for-token promises: match methods give `ar`'s tokens, and no method's tokens depend on the company they keep."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coupled_sampling import Decoder, DraftModel, Request, Sampling, generate
from coupled_sampling.drafting import Repeat
from coupled_sampling.methods import METHODS
from coupled_sampling.testing import TableProvider, random_table

VOCAB = 6
MAX_LENGTH = 40
MATCH = ["scd-match", "speculative-match"]
DRAFTINGS = [
    "random",
    "random:1:3",
    "repeat",
    Repeat(fill=0),
    "copy:2",
    "copy:5",
    "ngram",
    "ngram:1",
    "model",
    "same model",
]


def rule(name, seed, batch_size):
    if not isinstance(name, str) or "model" not in name:
        return name
    table = random_table(seed if name == "same model" else seed + 1, VOCAB)
    return DraftModel(TableProvider(table, VOCAB, batch_size, MAX_LENGTH))


def decoder(method, seed, *, window=4, drafting="repeat", batch_size=2, zeros=0.2):
    model = TableProvider(random_table(seed, VOCAB, zeros=zeros), VOCAB, batch_size, MAX_LENGTH)
    return Decoder(model, method=method, window=window, drafting=rule(drafting, seed, batch_size))


def run(running, requests, order=None):
    """Tokens of every request, whatever the order they are added in."""
    order = range(len(requests)) if order is None else order
    owner = {running.add(requests[i]): i for i in order}
    tokens = [[] for _ in requests]
    while running.active or running.waiting:
        for commit in running.step():
            assert len(commit.tokens) > 0
            tokens[owner[commit.handle]] += commit.tokens.tolist()
    return tokens


@st.composite
def request_lists(draw, most=5):
    count = draw(st.integers(1, most))
    seed = draw(st.integers(0, 2**64 - 1))
    token = st.integers(0, VOCAB - 1)
    return [
        Request(
            draw(st.lists(token, min_size=1, max_size=9)),
            draw(st.integers(1, 12)),
            seed=seed,
            sequence=i,
            stop=draw(st.sampled_from([(), (), (2,), (0, 5)])),
            sampling=draw(st.sampled_from([Sampling(), Sampling(0.7), Sampling(top_k=3), Sampling(0)])),
        )
        for i in range(count)
    ]


worlds = {
    "seed": st.integers(0, 99),
    "requests": request_lists(),
    "window": st.integers(1, 12),
    "batch_size": st.integers(1, 4),
    "drafting": st.sampled_from(DRAFTINGS),
    "shuffle": st.randoms(use_true_random=False),
}


@pytest.mark.parametrize("method", MATCH)
@settings(derandomize=True, deadline=None, max_examples=50)
@given(**worlds)
def test_match_gives_the_tokens_of_ar(method, seed, requests, window, batch_size, drafting, shuffle):
    order = shuffle.sample(range(len(requests)), len(requests))
    fast = decoder(method, seed, window=window, drafting=drafting, batch_size=batch_size)
    assert run(fast, requests, order) == run(decoder("ar", seed), requests)


@pytest.mark.cases(3)
@pytest.mark.parametrize("method", METHODS)
@settings(derandomize=True, deadline=None, max_examples=18)
@given(**worlds)
def test_tokens_do_not_depend_on_the_batch_or_the_order(method, seed, requests, window, batch_size, drafting, shuffle):
    order = shuffle.sample(range(len(requests)), len(requests))
    together = run(decoder(method, seed, window=window, drafting=drafting, batch_size=batch_size), requests, order)
    for request, tokens in zip(requests, together, strict=True):
        alone = decoder(method, seed, window=window, drafting=drafting, batch_size=1)
        assert run(alone, [request]) == [tokens]


@pytest.mark.parametrize("method", METHODS)
@settings(derandomize=True, deadline=None, max_examples=12)
@given(
    seed=st.integers(0, 99),
    requests=request_lists(most=6),
    steps=st.integers(0, 6),
    drafting=st.sampled_from(DRAFTINGS),
    data=st.data(),
)
def test_removing_other_requests_midway_changes_nothing_for_the_rest(method, seed, requests, steps, drafting, data):
    expected = run(decoder(method, seed, drafting=drafting), requests)
    running = decoder(method, seed, drafting=drafting, batch_size=2)
    owner = {running.add(request): i for i, request in enumerate(requests)}
    tokens = [[] for _ in requests]
    finished = set()

    def advance():
        for commit in running.step():
            tokens[owner[commit.handle]] += commit.tokens.tolist()
            if commit.finished:
                finished.add(commit.handle)

    for _ in range(steps):
        advance()
    open_handles = sorted(set(owner) - finished)
    doomed = data.draw(st.sets(st.sampled_from(open_handles))) if open_handles else set()
    for handle in doomed:
        so_far = running.remove(handle).tolist()
        assert so_far == tokens[owner[handle]]
        assert so_far == expected[owner[handle]][: len(so_far)]
    while running.active or running.waiting:
        advance()
    for handle, i in owner.items():
        if handle not in doomed:
            assert tokens[i] == expected[i]


@pytest.mark.parametrize("method", METHODS)
@settings(derandomize=True, deadline=None, max_examples=12)
@given(seed=st.integers(0, 99), window=st.integers(1, 9), drafting=st.sampled_from(DRAFTINGS), noise=st.integers(0, 9))
def test_greedy_decoding_gives_the_tokens_of_ar(method, seed, window, drafting, noise):
    prompts, length = [[0], [3, 1, 2]], [10, 7]
    model = TableProvider(random_table(seed, VOCAB), VOCAB, 2, MAX_LENGTH)

    def greedy(name, drafts, seed):
        return generate(
            model, prompts, length=length, method=name, window=window, drafting=drafts, seed=seed, sampling=Sampling(0)
        ).tokens

    own, reference = greedy(method, rule(drafting, seed, 2), noise), greedy("ar", "repeat", noise + 1)
    assert [t.tolist() for t in own] == [t.tolist() for t in reference]


@pytest.mark.parametrize("method", sorted(set(METHODS) - {"ar"}))
def test_drafting_by_the_target_itself_is_always_accepted(method):
    """p = q at every draft: each step commits its whole window."""
    table = random_table(7, VOCAB)
    model, drafts = (TableProvider(table, VOCAB, 1, MAX_LENGTH) for _ in range(2))
    trace = generate(model, [[1]], length=12, method=method, window=4, drafting=DraftModel(drafts)).traces[0]
    assert trace.committed_per_step == [4, 4, 4]


@pytest.mark.parametrize("method", METHODS)
def test_seeds_and_sequences_are_honoured(method):
    def tokens(seed, sequence):
        return run(decoder(method, 0, zeros=0.0), [Request([1], 24, seed=seed, sequence=sequence)])[0]

    assert tokens(5, 3) == tokens(5, 3)
    assert len({tuple(tokens(seed, sequence)) for seed in (0, 1, 2**64 - 1) for sequence in (0, 1, 2**64 - 1)}) == 9


def test_match_commits_several_tokens_per_step():
    """Equality with `ar` would be hollow if nothing were ever accepted."""
    peaked = random_table(4, VOCAB, concentration=0.05)
    model = TableProvider(peaked, VOCAB, 1, MAX_LENGTH)
    traces = generate(model, [[1]], length=36, method="scd-match", window=8, drafting="repeat").traces
    assert np.max(traces[0].committed_per_step) > 1

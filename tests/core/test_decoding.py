"""The loop: windows, chunks, stops, rows that come and go, and what it refuses."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coupled_sampling import (
    METHODS,
    CounterNoise,
    Decoder,
    HostStep,
    Request,
    Sampling,
    generate,
    stream,
    summarise,
)
from coupled_sampling.errors import InvalidArgument, InvalidLogits, ProviderError, RequestFailed, SharedNoise
from coupled_sampling.testing import TableProvider, random_table

V = 5


class Watched(TableProvider):
    """Checks that every call obeys the contract, and keeps the widths."""

    def forward(self, tokens, start):
        assert tokens.dtype == start.dtype == np.int64
        assert tokens.shape[0] == start.shape[0] <= self.batch_size
        assert tokens.shape[1] >= 1
        assert (start >= 0).all()
        assert (start + tokens.shape[1] <= self.max_length).all()
        assert ((tokens >= 0) & (tokens < self.vocab_size)).all()
        self.__dict__.setdefault("widths", []).append(tokens.shape[1])
        return super().forward(tokens, start)


@settings(max_examples=120, deadline=None, derandomize=True)
@given(
    st.sampled_from(list(METHODS)),
    st.integers(1, 9),
    st.integers(1, 3),
    st.lists(st.tuples(st.integers(1, 12), st.integers(1, 9)), min_size=1, max_size=5),
    st.sampled_from(["repeat", "random", "copy:2", "ngram"]),
)
def test_every_call_obeys_the_contract_and_traces_add_up(method, window, batch, shapes, drafting):
    longest = max(prompt + length - 1 for prompt, length in shapes)
    window = min(window, longest)
    provider = Watched(random_table(1, V), V, batch, longest)
    prompts = [[i % V] * prompt for i, (prompt, _) in enumerate(shapes)]
    lengths = [length for _, length in shapes]
    tokens, traces = generate(provider, prompts, length=lengths, method=method, window=window, drafting=drafting)
    assert max(provider.widths) <= max(window, *(prompt - 1 for prompt, _ in shapes), 1)
    for own, trace, prompt, length in zip(tokens, traces, prompts, lengths, strict=True):
        assert len(own) == trace.tokens == length == len(trace.step_of_token)
        assert (np.diff(trace.step_of_token) >= 0).all()
        chunks = int(len(prompt) > window)  # one as wide as the prompt
        assert trace.committed_per_step[:chunks] == [0] * chunks
        assert all(count >= 1 for count in trace.committed_per_step[chunks:])
    if method == "ar":
        assert all(count <= 1 for trace in traces for count in trace.committed_per_step)


def test_a_row_may_fill_the_model_to_its_last_position_and_not_one_more():
    provider = Watched(random_table(1, V), V, 1, 8)
    assert len(generate(provider, [[0, 1]], length=7, window=8).tokens[0]) == 7
    with pytest.raises(InvalidArgument, match="at most 7"):
        generate(provider, [[0, 1]], length=8, window=8)


@pytest.mark.parametrize("method", list(METHODS))
def test_a_stop_token_inside_an_accepted_run_ends_the_sequence_there(method):
    table = random_table(4, 3)
    whole = generate(TableProvider(table, 3), [[0]], length=30, method=method, window=6, drafting="repeat").tokens[0]
    stopped = generate(
        TableProvider(table, 3), [[0]], length=30, method=method, window=6, drafting="repeat", stop=[2]
    ).tokens[0]
    end = int(np.flatnonzero(whole == 2)[0]) + 1
    np.testing.assert_array_equal(stopped, whole[:end])


def test_a_stop_token_is_seen_inside_a_run_not_only_at_its_end():
    """What followed in the prompt is right: the first pass accepts all of its drafts, and the second of them is the stop token."""
    cycle = np.roll(np.eye(3), 1, axis=1)
    model = TableProvider(lambda c: cycle[c[-1]], 3)
    commits = list(stream(model, [[0, 1, 2, 0]], length=30, method="sjd", window=9, drafting="ngram", stop=[2]))
    assert [commit.tokens.tolist() for commit in commits] == [[1, 2]]
    assert commits[-1].finished


@pytest.mark.parametrize("method", list(METHODS))
def test_streaming_yields_what_generate_returns(method):
    prompts = [[0], [1, 2, 3, 4, 0, 1], [2]]
    tokens, traces = generate(TableProvider(random_table(2, V), V, 2), prompts, length=12, method=method, window=4)
    parts = [[], [], []]
    for commit in stream(TableProvider(random_table(2, V), V, 2), prompts, length=12, method=method, window=4):
        assert commit.position == len(prompts[commit.handle]) + sum(map(len, parts[commit.handle]))
        parts[commit.handle].append(commit.tokens)
    for own, part in zip(tokens, parts, strict=True):
        np.testing.assert_array_equal(own, np.concatenate(part))
    assert summarise(traces).tokens == 36


@pytest.mark.parametrize("method", list(METHODS))
def test_requests_may_come_and_go_without_touching_the_others(method):
    table = random_table(7, V)
    alone = generate(TableProvider(table, V), [[3]], length=25, method=method, window=5, seed=3).tokens[0]
    decoder = Decoder(TableProvider(table, V, 2), method=method, window=5)
    dropped = decoder.add(Request([1, 1], length=40, seed=1))
    kept = decoder.add(Request([3], length=25, seed=3))
    queued = decoder.add(Request([4], length=3, seed=5))
    parts = decoder.step()
    assert decoder.waiting == 1
    assert decoder.trace(kept).nfe == 1
    assert len(decoder.remove(dropped)) >= 1
    for _ in range(3):
        parts += decoder.step()
    late = decoder.add(Request([2], length=4, seed=6))
    while decoder.active or decoder.waiting:
        parts += decoder.step()
    got = {h: np.concatenate([c.tokens for c in parts if c.handle == h]) for h in (kept, queued, late)}
    np.testing.assert_array_equal(got[kept], alone)
    assert (len(got[queued]), len(got[late])) == (3, 4)
    assert decoder.step() == []
    with pytest.raises(InvalidArgument, match="handle"):
        decoder.remove(kept)


@pytest.mark.parametrize("method", list(METHODS))
def test_a_step_that_fails_can_be_tried_again(method):
    class Flaky(TableProvider):
        def forward(self, tokens, start):
            if self.calls == 2 and not self.__dict__.get("failed"):
                self.failed = True
                raise RuntimeError("the device was lost")
            return super().forward(tokens, start)

    table = random_table(8, V)
    expected = generate(TableProvider(table, V), [[1]], length=15, method=method, window=4).tokens[0]
    decoder = Decoder(Flaky(table, V), method=method, window=4)
    decoder.add(Request([1], length=15))
    parts, failures = [], 0
    while decoder.active or decoder.waiting:
        try:
            parts += decoder.step()
        except RuntimeError:
            failures += 1
    assert failures == 1
    np.testing.assert_array_equal(np.concatenate([commit.tokens for commit in parts]), expected)


def broken(change):
    class Broken(TableProvider):
        def forward(self, tokens, start):
            return change(super().forward(tokens, start))

    return Broken(random_table(0, V), V, 2, 32)


def spoil(logits, value):
    logits = logits.copy()
    logits[-1, -1, 0] = value
    return logits


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda logits: logits[..., :-1], ProviderError, r"expected logits of shape \(2, 4, 5\)"),
        (lambda logits: logits[:, -1], ProviderError, "expected logits of shape"),
        (lambda logits: logits.tolist(), ProviderError, "list"),
        (lambda logits: np.zeros(logits.shape, int), ProviderError, "floating"),
        (lambda logits: spoil(logits, np.nan), InvalidLogits, "request 1: logits of row 1 for position 9 hold NaN"),
        (lambda logits: spoil(logits, np.inf), InvalidLogits, r"row 1 for position 9 hold \+inf"),
        (lambda logits: np.full_like(logits, -np.inf), InvalidLogits, "row 0 for position 1 hold nothing but -inf"),
    ],
)
def test_a_provider_that_breaks_its_contract_is_named(change, error, words):
    with pytest.raises(error, match=words):
        generate(broken(change), [[0], [1]], length=9, window=4)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"window": 0}, "window"),
        ({"window": 33}, "32"),
        ({"window": 2.5}, "window"),
        ({"method": "warp"}, "scd-gumbel"),
        ({"drafting": "copy"}, "copy:LAG"),
        ({"length": 0}, "length"),
        ({"length": 3.0}, "length"),
        ({"stop": [2.5]}, "stop"),
        ({"stop": None}, "stop"),
        ({"length": [1, 2]}, "entries"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**64}, "seed"),
        ({"prompts": [[]]}, "at least one token"),
        ({"prompts": [[0, 5]]}, "prompt token 1 is 5"),
        ({"prompts": [[-1]]}, "prompt token 0 is -1"),
        ({"prompts": [[0.5]]}, "integer"),
        ({"prompts": [[0] * 40]}, "cached positions"),
        ({"sampling": [Sampling(), Sampling()]}, "entries"),
    ],
)
def test_arguments_that_cannot_work_are_refused_before_anything_runs(arguments, words):
    provider = TableProvider(random_table(0, V), V, 1, 32)
    defaults = {"prompts": [[0]], "length": 4}
    with pytest.raises(InvalidArgument, match=words):
        generate(provider, **{**defaults, **arguments})
    with pytest.raises(InvalidArgument, match=words):
        stream(provider, **{**defaults, **arguments})
    assert provider.calls == 0


def test_a_model_that_is_none_is_refused():
    with pytest.raises(InvalidArgument, match="LogitsProvider"):
        generate(object(), [[0]], length=3)


@pytest.mark.parametrize("method", list(METHODS))
def test_sequences_that_share_a_noise_key_do_not_disturb_each_other(method):
    table = random_table(12, V)
    requests = [Request([i % V] * (1 + 4 * i), length=20 - 3 * i, seed=7) for i in range(4)]
    alone = [
        generate(TableProvider(table, V), [request.prompt], length=request.length, method=method, window=6, seed=7)
        for request in requests
    ]
    decoder = Decoder(TableProvider(table, V, 3), method=method, window=6)
    parts = {decoder.add(request): [] for request in requests}
    while decoder.active or decoder.waiting:
        for commit in decoder.step():
            parts[commit.handle].append(commit.tokens)
    for own, part in zip(alone, parts.values(), strict=True):
        np.testing.assert_array_equal(own.tokens[0], np.concatenate(part))


@pytest.mark.parametrize("how", ["done", "removed while it waits", "removed under way"])
def test_a_noise_key_may_be_used_again_once_nobody_has_it(how):
    decoder = Decoder(TableProvider(random_table(12, V), V), method="ar")
    first = decoder.add(Request([0], length=3, seed=7))
    if how != "removed while it waits":
        decoder.step()
    with pytest.warns(SharedNoise):
        second = decoder.add(Request([1], length=3, seed=7))
    if how != "done":
        decoder.remove(first)
    with pytest.warns(SharedNoise):  # one of the two still has it
        third = decoder.add(Request([2], length=3, seed=7))
    if how != "done":
        decoder.remove(second)
        decoder.remove(third)
    while decoder.active or decoder.waiting:
        decoder.step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decoder.add(Request([0], length=3, seed=7))


class Picky(TableProvider):
    """Cannot begin with token 1."""

    error: BaseException = KeyError("no such picture")

    def begin(self, row, request):
        if request.prompt[0] == 1:
            raise self.error


def test_a_request_whose_start_fails_ends_and_the_next_one_begins_in_the_same_step():
    decoder = Decoder(Picky(random_table(0, V), V), window=4)
    bad, good = decoder.add(Request([1], length=3)), decoder.add(Request([2], length=3, sequence=1))
    failed, other = decoder.step()
    assert (failed.handle, failed.reason, failed.finished, failed.tokens.tolist()) == (bad, "error", True, [])
    assert isinstance(failed.error, RequestFailed)
    assert isinstance(failed.error.__cause__, KeyError)
    assert f"request {bad}" in str(failed.error)
    assert other.handle == good


def test_a_request_whose_start_is_interrupted_waits_on():
    provider = Picky(random_table(0, V), V)
    provider.error = KeyboardInterrupt()
    decoder = Decoder(provider, window=4)
    handle = decoder.add(Request([1], length=3))
    with pytest.raises(KeyboardInterrupt):
        decoder.step()
    assert decoder.waiting == 1
    assert not decoder.active
    provider.error = KeyError()
    assert decoder.step()[0].handle == handle


def test_a_step_keeps_no_noise_of_sequences_that_ended():
    step = HostStep(TableProvider(random_table(0, V), V), "scd-gumbel")
    generate(step, [[0]] * 6, length=5, window=3)
    assert not step.noise._races
    with pytest.raises(InvalidArgument, match="noise"):
        Decoder(step, noise=CounterNoise())


def test_what_lies_in_padding_does_not_matter():
    class Dirty(TableProvider):
        def forward(self, tokens, start):
            logits = super().forward(tokens, start)
            logits[0, 3:] = np.nan  # row 0 has three tokens at the most
            return logits

    table = random_table(1, 64)
    sampling = Sampling(top_k=2)
    tokens = generate(Dirty(table, 64, 2), [[1], [2] * 6], length=[3, 9], window=6, sampling=sampling).tokens
    assert [len(t) for t in tokens] == [3, 9]


class LosesOutcomes(HostStep):
    """Ctrl-C between a step's work and the loop's book-keeping, at every other call."""

    calls = 0

    def step(self, window):
        outcome = super().step(window)
        self.calls += 1
        if self.calls % 2:
            raise KeyboardInterrupt
        return outcome


@pytest.mark.parametrize("method", list(METHODS))
def test_a_step_whose_outcome_was_lost_can_be_done_again(method):
    table = random_table(7, V)

    def tokens_of(step_type):
        decoder = Decoder(step_type(TableProvider(table, V, 2), method), window=4, drafting="repeat")
        for handle, length in enumerate([9, 12, 10]):
            decoder.add(Request([handle], length=length, seed=3, sequence=handle))
        rows = {}
        while decoder.active or decoder.waiting:
            try:
                commits = decoder.step()
            except KeyboardInterrupt:
                continue
            for commit in commits:
                rows.setdefault(commit.handle, []).extend(commit.tokens.tolist())
        return rows

    assert tokens_of(LosesOutcomes) == tokens_of(HostStep)


def test_recycled_drafts_of_another_round_are_refused():
    step = HostStep(TableProvider(random_table(7, V), V), "sjd")
    decoder = Decoder(step, window=4, drafting="repeat")
    decoder.add(Request([0], length=12))
    decoder.step()
    decoder.step()
    window, _ = decoder._assembly.window(decoder._rows, [np.zeros(0, np.int64)], decoder.window, 0)
    assert window.recycled[0]
    step.step(window)
    with pytest.raises(InvalidArgument, match="round before"):
        step.step(window._replace(round=window.round + 5))

"""What the loop keeps count of: windows, rounds, stops, keys, the order of requests, traces."""

import numpy as np
import pytest

from coupled_sampling import METHODS, CounterNoise, Decoder, HostStep, Request, Trace, generate, summarise
from coupled_sampling.testing import TableProvider, random_table

V = 5
CYCLE = np.roll(np.eye(3), 1, axis=1)
"""Token t is followed by t + 1 modulo 3, surely."""


class Watched(HostStep):
    """Keeps every window and its outcome."""

    def step(self, window):
        outcome = super().step(window)
        self.__dict__.setdefault("seen", []).append((window, outcome))
        return outcome


@pytest.mark.parametrize("prompt_length", [1, 7, 8])
@pytest.mark.parametrize("method", METHODS)
def test_windows_are_as_long_as_they_can_be_and_keep_every_redraft(method, prompt_length):
    step, window, length = Watched(TableProvider(random_table(2, V), V), method), 4, 30
    generate(step, [[1] * prompt_length], length=length, window=window)
    committed, redrafts = prompt_length, 0
    for round_, (seen, outcome) in enumerate(step.seen):
        start, known, recycled, fresh = (int(field[0]) for field in seen[1:5])
        assert seen.round[0] == round_
        forwarded = start + known
        assert forwarded == committed if seen.draws[0] else forwarded < committed
        if step.method.drafts and seen.draws[0]:
            assert known + recycled + fresh == min(window, prompt_length + length - 1 - start)
            assert recycled == min(redrafts, min(window, prompt_length + length - 1 - start) - known)
        committed += int(outcome.committed[0])
        if step.method.recycles and seen.draws[0]:
            redrafts = recycled + fresh + 1 - int(outcome.committed[0])
    assert committed == prompt_length + length


def test_counts_of_a_stopped_sequence_are_those_of_its_tokens():
    provider = TableProvider(lambda context: CYCLE[context[-1]], 3)
    tokens, traces = generate(provider, [[0, 1, 2, 0]], length=30, method="sjd", window=9, drafting="ngram", stop=[2])
    assert tokens[0].tolist() == [1, 2]
    assert traces[0].committed_per_step == [2]  # one pass over a window whose drafts were all right


def test_the_first_of_two_stop_tokens_in_a_run_ends_the_sequence():
    provider = TableProvider(lambda context: CYCLE[context[-1]], 3)
    for stop in ([2, 0], [0, 2]):
        tokens = generate(provider, [[0, 1, 2, 0]], length=30, method="sjd", window=9, drafting="ngram", stop=stop)[0]
        assert tokens[0].tolist() == [1, 2]


@pytest.mark.parametrize("method", METHODS)
def test_a_stop_token_in_the_prompt_stops_nothing(method):
    provider = TableProvider(lambda context: CYCLE[context[-1]], 3)
    tokens = generate(provider, [[2, 2]], length=30, method=method, window=9, drafting="copy:3", stop=[2]).tokens[0]
    assert tokens.tolist() == [0, 1, 2]


@pytest.mark.parametrize("method", METHODS)
def test_all_64_bits_of_seed_and_sequence_count(method):
    def tokens(seed, sequence):
        decoder = Decoder(TableProvider(random_table(0, V), V), method=method, window=4)
        decoder.add(Request([1], 20, seed=seed, sequence=sequence))
        parts = []
        while decoder.active or decoder.waiting:
            parts += [commit.tokens for commit in decoder.step()]
        return tuple(np.concatenate(parts).tolist())

    keys = [(5, 3)]
    keys += [(5 + 2**bit, 3) for bit in (31, 32, 63)]
    keys += [(5, 3 + 2**bit) for bit in (31, 32, 63)]
    assert len({tokens(*key) for key in keys}) == len(keys)


@pytest.mark.parametrize("method", METHODS)
def test_equal_prompts_of_one_call_are_continued_differently(method):
    tokens = generate(TableProvider(random_table(0, V), V, 2), [[1]] * 4, length=20, method=method, window=4).tokens
    assert len({tuple(own.tolist()) for own in tokens}) == 4


def test_requests_start_in_the_order_of_their_arrival():
    decoder = Decoder(TableProvider(random_table(0, V), V, 2), window=3)
    handles = [decoder.add(Request([0], length)) for length in (9, 3, 5, 2, 4)]
    started = []
    while decoder.active or decoder.waiting:
        started += [commit.handle for commit in decoder.step() if commit.handle not in started]
    assert started == handles


@pytest.mark.parametrize("method", METHODS)
def test_nothing_is_kept_of_sequences_that_ended(method):
    noise = CounterNoise()
    generate(TableProvider(random_table(0, V), V, 2), [[0]] * 5, length=6, method=method, window=3, noise=noise)
    assert not any(vars(noise).values())


def test_figures_of_a_trace_by_hand():
    trace = Trace([0, 0, 3, 1])
    assert (trace.nfe, trace.tokens, trace.tokens_per_step) == (4, 4, 1.0)
    assert trace.step_of_token.tolist() == [2, 2, 2, 3]
    assert Trace().tokens_per_step == 0


def test_figures_of_a_summary_by_hand():
    summary = summarise([Trace([0, 4]), Trace([1, 1, 1, 1]), Trace([2, 2, 2])])
    assert (summary.sequences, summary.tokens, summary.nfe_mean) == (3, 14, 3.0)
    assert summary.nfe_sem == pytest.approx(1 / np.sqrt(3))  # 2, 4, 3: a standard deviation of 1
    assert summary.tokens_per_step == pytest.approx(14 / 9)
    assert summary.committed_histogram.tolist() == [1, 4, 3, 0, 1]
    assert summarise([Trace([1])]).nfe_sem == 0


@pytest.mark.parametrize("stop", [(), (1,)])
def test_a_trace_knows_which_tokens_branches_guessed(stop):
    """The oracle walks every window's tree along the tokens that were committed."""
    found, walked, cut = [], [], 0
    for seed in range(20):
        step = Watched(TableProvider(random_table(2, V), V, max_length=64), "scd-match")
        trace = generate(step, [[1, 3]], length=40, window=12, branches=8, seed=seed, stop=stop).traces[0]
        found.append(trace.branch_tokens)
        guessed = list(_guessed_by_branches(step.seen))
        walked.append([index for index in guessed if index < trace.tokens])
        cut += len(guessed) - len(walked[-1])
        assert trace.tokens < 40 or not stop
    assert found == walked
    assert sum(map(len, found)) > 5
    assert (cut > 0) == bool(stop), "nothing was discarded behind a stop token"


def _guessed_by_branches(seen):
    index = 0
    for window, outcome in seen:
        slot, count = int(window.known[0]) - 1, int(outcome.committed[0])
        for token in outcome.tokens[0, slot : slot + count - 1].tolist():
            parents = np.arange(-1, window.tokens.shape[1] - 1) if window.parents is None else window.parents[0]
            slot = next(j for j in np.flatnonzero(parents == slot).tolist() if window.tokens[0, j] == token)
            if slot >= window.end[0]:
                yield index
            index += 1
        index += min(count, 1)

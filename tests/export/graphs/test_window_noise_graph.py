"""The step graph whose noise is an input for each slot, which TensorRT builds: against HostStep, on tables, by ONNX Runtime.

TensorRT does not say which of several equal entries its ArgMax finds, so all is also run with one that finds the last.
"""

import numpy as np
import pytest

from coupled_sampling import Decoder, HostStep, Request, Sampling
from coupled_sampling.backends.ort.step import OrtStep
from coupled_sampling.backends.trt.precision import uses_float64
from coupled_sampling.errors import BundleError, InvalidArgument
from coupled_sampling.export.graphs.decision import _Decision, decision_graph
from coupled_sampling.export.graphs.step import step_graph
from coupled_sampling.methods import find_method
from coupled_sampling.noise import CounterNoise, race_weights
from coupled_sampling.running import Runs
from coupled_sampling.target import close_rows
from coupled_sampling.testing import StepComparison
from standins.both_steps import Both
from standins.table_graphs import (
    FAULTS,
    LENGTH,
    VOCAB,
    WIDE,
    Table,
    finish,
    session_of,
    table,
    window_model,
    with_dead_states,
)

onnx = pytest.importorskip("onnx")

SAMPLINGS = [Sampling(), Sampling(0.7), Sampling(0), Sampling(1e-30), Sampling(1.3)]


class WindowNoiseStep:
    """The graph's loop in numpy: slot j has the noise of position start + j + 1 + ``shift``; rubbish where nothing is decided."""

    def __init__(self, session, logits, batch_size=1, shift=0):
        self.session, self.batch_size, self.shift = session, batch_size, shift
        self.method, self.noise = find_method("scd-match"), CounterNoise()
        self.vocab_size, self.max_length, self.max_window = logits.shape[-1], LENGTH, LENGTH
        self.cache = np.zeros((batch_size, 1, LENGTH, 1), np.int64)

    runs = Runs("a test", step="graph")

    def takes(self, request):
        return None

    def close(self):
        pass

    def begin(self, row, request):
        pass

    def step(self, window):
        rows, width = window.tokens.shape
        noise = np.full((rows, width, self.vocab_size), np.nan, np.float32)
        slot = np.arange(width)
        end = (window.known + window.recycled + window.fresh)[:, None]
        valid = window.draws[:, None] & (slot >= window.known[:, None] - 1) & (slot < end)
        for b, j in zip(*np.nonzero(valid), strict=True):
            info, position = window.rows[b], int(window.start[b]) + j + 1 + self.shift
            noise[b, j] = race_weights(info.seed, info.sequence, position, self.vocab_size)
        feeds = {name: getattr(window, name) for name in ("start", "known", "recycled", "fresh", "draws")}
        feeds |= {"input_ids": window.tokens, "noise": noise, "past_key_values.0.key": self.cache[:rows]}
        feeds["temperature"] = np.float32([1 if info is None else info.sampling.temperature for info in window.rows])
        names = ["tokens", "committed", "highest_logits", "present.0.key"]
        tokens, committed, highest, self.cache[:rows] = self.session.run(names, feeds)
        return close_rows(window, tokens, committed, highest)


def last_of_equals(model):
    """As if ArgMax found the last of equal entries."""
    for node in model.graph.node:
        if node.op_type == "ArgMax":
            node.attribute.append(onnx.helper.make_attribute("select_last_index", 1))
    return model


def unchanged(model):
    return model


def whole_numbers(logits):
    """Logits that tie."""
    return np.round(logits)


def compare(logits, change=unchanged, noise="window", rows=2, window=6, shift=0, method="scd-match"):
    graph = change(step_graph(window_model(logits), method, noise=noise))
    step = OrtStep(session_of(graph), rows) if noise == "ring" else None
    both = StepComparison(Table(logits, rows), step or WindowNoiseStep(session_of(graph), logits, rows, shift))
    prompts = [[1], [2, 3, 1, 1, 0, 2, 2, 1, 1, 1], [4], [0, 1]]
    requests = [
        Request(prompt, 20 - i, seed=seed, sequence=i, sampling=SAMPLINGS[(i + seed) % 5], stop=(2,) if i == 2 else ())
        for seed in range(3)
        for i, prompt in enumerate(prompts)
    ]
    finish(Decoder(both, window=window, drafting="repeat"), requests)
    return both.report()


def differences(report):
    assert report.sites > 100
    return report.ties + report.disagreements


@pytest.mark.cases(4)
@pytest.mark.parametrize("vocab_size", [VOCAB, WIDE])
@pytest.mark.parametrize("change", [unchanged, last_of_equals])
@pytest.mark.parametrize(("kind", "rows", "window"), [(unchanged, 1, 1), (whole_numbers, 2, 6), (unchanged, 3, 9)])
def test_tokens_and_counts_are_exactly_those_of_host_step(vocab_size, change, kind, rows, window):
    """Prompts in chunks, idle and ragged rows, greedy rows whose logits tie; not one site differs, ties included."""
    assert differences(compare(kind(table(0, vocab_size)), change, rows=rows, window=window)) == 0


@pytest.mark.cases(3)
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("change", [unchanged, last_of_equals])
def test_drafts_end_where_no_law_can_be_made_and_texts_only_fail_there(change, fault):
    for size, window, reachable in ((VOCAB, 6, 0.0), (VOCAB, 9, 0.03), (WIDE, 5, 0.03)):
        logits = with_dead_states(table(1, size), fault, reachable)
        session = session_of(change(step_graph(window_model(logits), "scd-match", noise="window")))
        both = Both(WindowNoiseStep(session, logits, 3), HostStep(Table(logits, 3), "scd-match"))
        requests = [
            Request([1 + i % 3] * (1 + i % 4), 24 - i, seed=i, sequence=i, sampling=SAMPLINGS[i % 5]) for i in range(14)
        ]
        finish(Decoder(both, window=window, drafting=f"random:{size - 3}:3"), requests)
        assert both.closed > 100
        assert bool(both.failed) == (reachable > 0)


@pytest.mark.parametrize("method", ["sjd", "scd-maximal", "scd-gumbel", "scd-match"])
def test_no_ring_graph_relies_on_argmax_for_the_first_refusal(method):
    found = compare(table(0), last_of_equals, noise="ring", method=method)
    assert found == compare(table(0), noise="ring", method=method)
    assert found.disagreements == 0


@pytest.mark.parametrize("noise", ["ring", "window"])
def test_a_first_refusal_by_an_argmax_that_finds_the_last_commits_refused_drafts(monkeypatch, noise):
    """Negative control of the graph's own way to it."""

    def by_argmax(decision, mask):
        return decision.graph.op("ArgMax", decision.graph.op("Cast", mask, to=1), axis=1, keepdims=1)

    monkeypatch.setattr(_Decision, "first_true", by_argmax)
    assert differences(compare(table(0), last_of_equals, noise=noise)) > 0


@pytest.mark.parametrize("shift", [-1, 1])
def test_noise_of_another_position_is_seen(shift):
    assert compare(table(0), shift=shift).disagreements


def test_without_tie_free_search_greedy_rows_take_another_token(monkeypatch):
    """Negative control of `first_largest`."""
    from coupled_sampling.export.graphs import decision_law

    monkeypatch.setattr(decision_law, "first_largest", decision_law.largest)
    assert differences(compare(whole_numbers(table(0)), last_of_equals)) > 0


def test_it_has_no_float64_no_state_of_its_own_and_says_what_it_is():
    model = step_graph(window_model(table(0)), "scd-match", noise="window")
    assert uses_float64(model) is None
    assert [value.name for value in model.graph.output] == ["tokens", "committed", "highest_logits", "present.0.key"]
    noise = next(value for value in model.graph.input if value.name == "noise")
    sizes = [size.dim_param or size.dim_value for size in noise.type.tensor_type.shape.dim]
    assert sizes == ["B", "W", VOCAB]
    assert {entry.key: entry.value for entry in model.metadata_props}["noise"] == "window"
    onnx.checker.check_model(model, full_check=True)
    with pytest.raises(BundleError, match="noise_start"):
        OrtStep(session_of(model))


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        ("scd-gumbel", {}, "method 'scd-gumbel'"),
        ("sjd", {}, "float64"),
        ("ar", {}, "leave noise at 'ring'"),
        ("scd-match", {"warped": True}, "warped True"),
        ("scd-match", {"guided": True}, "guided True"),
    ],
)
def test_what_it_cannot_be_is_refused(method, settings, message):
    with pytest.raises(InvalidArgument, match=message):
        decision_graph(method, VOCAB, noise="window", **settings)


def test_another_source_of_noise_is_refused():
    with pytest.raises(InvalidArgument, match="noise is 'queue', expected one of 'ring', 'window'"):
        decision_graph("scd-match", VOCAB, noise="queue")

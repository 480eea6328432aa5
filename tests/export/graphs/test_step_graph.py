"""The decision graph against HostStep, law by law and token by token, on tables that ONNX Runtime looks up itself."""

import copy

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coupled_sampling import Decoder, Guidance, GuidedProvider, HostStep, Request, Sampling
from coupled_sampling.backends.ort.session import open_session
from coupled_sampling.backends.ort.step import OrtStep
from coupled_sampling.contracts import RowInfo, Window
from coupled_sampling.errors import BundleError, InvalidArgument, InvalidLogits
from coupled_sampling.export.graphs.builder import save_graph
from coupled_sampling.export.graphs.decision import STEP_METHODS, decision_graph
from coupled_sampling.export.graphs.step import step_graph
from coupled_sampling.target import target_law
from coupled_sampling.testing import StepComparison
from standins.both_steps import Both
from standins.refused import (
    LOGPROBS,
    OTHERS,
    PROCESSORS,
    WARPS,
    expect_refusals,
    expect_that_unannounced_laws_end_a_request_alone,
)
from standins.schedules import LosesEveryThird
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
onnxruntime = pytest.importorskip("onnxruntime")


def ort_step(logits, method, batch_size=1, *, warped=False, change=lambda model: model):
    return OrtStep(session_of(change(step_graph(window_model(logits), method, warped=warped))), batch_size)


SAMPLINGS = [Sampling(), Sampling(0.7), Sampling(0), Sampling(1e-30), Sampling(1.3)]
WARPED = [
    Sampling(top_k=3),
    Sampling(0.8, top_p=0.6),
    Sampling(min_p=0.2),
    Sampling(1.2, 4, 0.8, 0.05),
    Sampling(top_k=1),
    Sampling(top_k=99, top_p=0.95),
    Sampling(0, 2, 0.5),
    Sampling(min_p=1.0),
]


@pytest.mark.cases(4)
@pytest.mark.parametrize("warped", [False, True])
@pytest.mark.parametrize("method", STEP_METHODS)
def test_tokens_and_counts_are_those_of_host_step(method, warped, record_property):
    """Every step of whole runs: ragged rows, prompts in chunks, rows that change their sequence, fresh drafts in between."""
    kept = {(seed, size): table(seed, size) for seed in range(2) for size in (VOCAB, WIDE)}
    graphs = {key: step_graph(window_model(logits), method, warped=warped) for key, logits in kept.items()}
    sessions = {key: session_of(model) for key, model in graphs.items()}

    @settings(derandomize=True, deadline=None, max_examples=20)
    @given(data=st.data())
    def runs(data):
        key = data.draw(st.sampled_from(sorted(kept)))
        rows, window = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 9))
        token = st.integers(0, key[1] - 1)
        requests = [
            Request(
                data.draw(st.lists(token, min_size=1, max_size=14)),
                data.draw(st.integers(1, 20)),
                seed=data.draw(st.integers(0, 2**64 - 1)),
                sequence=i,
                stop=data.draw(st.sampled_from([(), (2,)])),
                sampling=data.draw(st.sampled_from(WARPED + SAMPLINGS if warped else SAMPLINGS)),
            )
            for i in range(data.draw(st.integers(1, 5)))
        ]
        both = StepComparison(Table(kept[key], rows), OrtStep(sessions[key], rows))
        drafting = data.draw(st.sampled_from(["random", "repeat", "copy:2", "ngram"]))
        finish(Decoder(both, window=window, drafting=drafting), requests)
        reports.append(both.report())
        assert reports[-1].sites
        assert not reports[-1].disagreements, reports[-1]

    reports = []
    runs()
    counts = {name: sum(getattr(report, name) for report in reports) for name in ("sites", "ties", "expected_ties")}
    record_property("ties", counts)
    assert counts["ties"] <= 1e-3 * counts["sites"], counts


def absolute_residual(model):
    """|p - q| where the residual max(p - q, 0) belongs."""
    node = next(n for n in model.graph.node if n.op_type == "Relu" and n.name.startswith("decision."))
    node.op_type = "Abs"
    return model


def laws_that_do_not_move(model):
    """Draft laws looked up by slot, as if every window began where the one before did."""
    for node in model.graph.node:
        if "draft_laws_start" in node.input:
            node.input[list(node.input).index("draft_laws_start")] = "start"
    return model


@pytest.mark.parametrize("method", ["sjd", "scd-maximal", "scd-gumbel"])
@pytest.mark.parametrize("change", [absolute_residual, laws_that_do_not_move])
def test_a_broken_graph_is_seen(method, change):
    logits = table(0)
    both = StepComparison(Table(logits), ort_step(logits, method, change=change))
    finish(Decoder(both, window=6, drafting="repeat"), [Request([1], 50, seed=s) for s in range(6)])
    assert both.report().disagreements


@pytest.mark.parametrize("method", ["sjd", "scd-maximal", "scd-gumbel", "scd-match"])
def test_interruptions_anywhere_change_nothing(method):
    """An outcome lost as a whole, or after the loop took some of its rows and not yet the others."""
    logits = table(1)
    requests = [Request([i], length, seed=3, sequence=i) for i, length in enumerate([30, 25, 28])]

    class Loses(LosesEveryThird, OrtStep):
        pass

    def tokens_of(step, partial):
        decoder = Decoder(step, window=5, drafting="repeat")
        rows = {decoder.add(request): [] for request in requests}
        calls = 0
        while decoder.active or decoder.waiting:
            calls += 1
            saved = copy.copy(decoder._rows[0])
            if saved is not None:
                saved.tokens = saved.tokens.copy()
            try:
                commits = decoder.step()
            except KeyboardInterrupt:
                continue
            if partial and calls % 4 == 3 and saved is not None and decoder._rows[0] is not None:
                decoder._rows[0] = saved  # as if the loop had been stopped before it came to this row
                commits = [c for c in commits if c.handle != saved.handle]
            for commit in commits:
                rows[commit.handle].extend(commit.tokens.tolist())
        return rows

    session = session_of(step_graph(window_model(logits), method))
    expected = tokens_of(HostStep(Table(logits, 2), method), False)
    assert tokens_of(Loses(session, 2), False) == expected
    stopped, gathered = OrtStep(session, 2), []
    gather = stopped._laws._gather
    stopped._laws._gather = lambda owners: gathered.append(owners) or gather(owners)
    assert tokens_of(stopped, True) == expected
    assert gathered or method == "scd-match"


def test_recycled_drafts_of_another_round_are_refused():
    step = ort_step(table(0), "sjd")
    decoder = Decoder(step, window=4, drafting="repeat")
    decoder.add(Request([0], length=12))
    decoder.step()
    windows, forward = [], step.step
    step.step = lambda window: windows.append(window) or forward(window)
    while not windows or not windows[-1].recycled[0]:
        decoder.step()
    with pytest.raises(InvalidArgument, match="round before"):
        forward(windows[-1]._replace(round=windows[-1].round + 5))


@pytest.mark.parametrize("method", ["ar", "scd-gumbel"])
@pytest.mark.parametrize(("fault", "found"), [(np.nan, "NaN"), (np.inf, "+inf"), (-np.inf, "nothing but -inf")])
def test_unusable_logits_are_told_by_row_and_position(method, fault, found):
    logits = table(0, WIDE)
    logits[:, 5] = -np.inf if fault == -np.inf else 0
    if fault != -np.inf:
        logits[:, 5, 70] = fault
    step = ort_step(logits, method)
    outcome = step.step(one_row([3, 5], known=2))
    assert outcome.committed.tolist() == [1]
    assert outcome.tokens[0, 1] == -1
    assert isinstance(outcome.failures[0], InvalidLogits)
    assert f"row 0 for position 2 hold {found}" in str(outcome.failures[0])
    assert not step.step(one_row([5, 3], known=2)).failures  # a known slot's logits are nobody's business


@pytest.mark.cases(8)
@pytest.mark.parametrize(
    ("warped", "fault"),
    [
        (False, "none possible"),
        (False, "NaN"),
        pytest.param(False, "NaN for one token", marks=pytest.mark.long),  # as with warps below
        (False, "+inf"),
        pytest.param(True, "none possible", marks=pytest.mark.long),
        (True, "NaN for one token"),
    ],
)
@pytest.mark.parametrize("method", STEP_METHODS)
def test_drafts_end_where_no_law_can_be_made_and_texts_only_fail_there(method, warped, fault):
    """Nothing of a dead slot comes to the slots beside it, to the count, or to the laws of the next round."""
    for size, window, reachable in ((VOCAB, 6, 0.0), (VOCAB, 9, 0.02), (WIDE, 5, 0.02)):
        logits = with_dead_states(table(1, size), fault, reachable)
        both = Both(ort_step(logits, method, 3, warped=warped), HostStep(Table(logits, 3), method))
        samplings = WARPED + SAMPLINGS if warped else SAMPLINGS
        requests = [
            Request([1 + i % 3] * (1 + i % 4), 24 - i, seed=i, sequence=i, sampling=samplings[i % len(samplings)])
            for i in range(14)
        ]
        finish(Decoder(both, window=window, drafting=f"random:{size - 3}:3"), requests)
        assert both.compared > 150
        assert both.closed > 100 or method == "ar"
        assert bool(both.failed) == (reachable > 0)


def one_row(tokens, known, sampling=None):
    count = np.array([len(tokens) - known], np.int64)
    return Window(
        tokens=np.array([tokens], np.int64),
        start=np.zeros(1, np.int64),
        known=np.array([known], np.int64),
        recycled=np.zeros(1, np.int64),
        fresh=count,
        draws=np.array([True]),
        round=np.zeros(1, np.int64),
        rows=[RowInfo(0, 0, sampling or Sampling())],
        contexts=[np.array(tokens, np.int64)],
        fresh_laws=[None],
    )


def test_too_few_candidates_are_noticed_and_the_step_done_again():
    logits = np.log(np.random.default_rng(0).random((WIDE, WIDE, WIDE), np.float32) + 0.5)
    sampling = Sampling(top_p=0.9)
    ours = ort_step(logits, "scd-gumbel", warped=True)
    ours._tensors._nucleus = 2
    both = Both(ours, HostStep(Table(logits), "scd-gumbel"))
    finish(Decoder(both, window=5), [Request([1], 20, sampling=sampling)])
    assert ours._tensors._nucleus > 2
    frozen = ort_step(logits, "scd-gumbel", warped=True)
    tensors = frozen._tensors
    tensors._nucleus = 2
    window = one_row([1, 2, 3], 1, sampling)
    frozen._choose(range(1))
    tensors.put_counts(window)
    tensors.put_tokens(window.tokens, window.start)
    frozen._feed_laws(window, range(1), 0)
    frozen._feed_noise(window, range(1), frozen._noise_positions(window)[0])
    frozen._run(1, 3)
    assert tensors.out("nucleus_short", 1, 3).all()


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 1.7, Guidance.within(2, 8, 1.7).scale])
def test_guided_logits_are_those_of_guided_provider(scale):
    """Same laws from the same doubled logits, -inf and a lagging unconditional row included."""
    random = np.random.default_rng(5)
    logits = random.standard_normal((4, 6, VOCAB)).astype(np.float32)
    logits[::2][random.random((2, 6, VOCAB)) < 0.2] = -np.inf
    if not callable(scale) and scale <= 1:
        logits[1::2][random.random((2, 6, VOCAB)) < 0.2] = -np.inf
    logits[..., 0] = 1.0

    class Prepared:
        vocab_size, batch_size, max_length = VOCAB, 4, LENGTH

        def forward(self, tokens, start):
            return logits

    guided = GuidedProvider(Prepared(), scale, [0])
    guided.begin(0, Request([1, 2, 3], length=3))
    guided.begin(1, Request([1], length=9))
    expected = guided.forward(np.zeros((2, 6), np.int64), np.array([0, 4]))
    session = session_of(decision_graph("scd-match", VOCAB, guided=True))
    # Of each slot, by the index of the token that it is for: the first request has three tokens, the second nine.
    index = np.array([[0, 0, 0, 1, 2, 2], [4, 5, 6, 7, 8, 8]])
    scales = scale(index) if callable(scale) else np.full(index.shape, scale)
    feeds = {
        "logits": logits, "input_ids": np.zeros((4, 6), np.int64), "start": np.array([0, 0, 4, 4]),
        "known": np.array([3, 1]), "recycled": np.array([3, 5]), "fresh": np.zeros(2, np.int64),
        "draws": np.array([True, True]), "temperature": np.ones(2, np.float32), "guidance": scales,
        "guidance_lag": np.array([2, 0]), "noise": np.ones((2, 1, VOCAB), np.float32), "noise_start": np.zeros(2, np.int64),
        "past_noise": np.ones((2, 14, VOCAB), np.float32),
    }  # fmt: skip
    tokens, highest = session.run(["tokens", "highest_logits"], feeds)
    for row, lag in ((0, 2), (1, 0)):  # slots before the unconditional prompt begins decide nothing
        np.testing.assert_array_equal(highest[row, lag:], expected[row, lag:].max(-1))
        np.testing.assert_array_equal(tokens[row, lag:], expected[row, lag:].argmax(-1))


@pytest.mark.parametrize("vocab_size", [VOCAB, WIDE])
@pytest.mark.parametrize("method", ["sjd", "scd-maximal", "scd-gumbel"])
def test_where_the_residual_is_empty_the_target_law_is_drawn_from(method, vocab_size):
    """By rounding, no token may have more chance than its draft law gave it, and the draft be refused all the same."""
    slots, rows = 4, 50
    random = np.random.default_rng(1)
    logits = random.standard_normal((rows, slots, vocab_size)).astype(np.float32)
    logits[random.random(logits.shape) < 0.5] = -np.inf
    logits[..., 1] = 0
    law = target_law(logits, Sampling())
    drawn = random.random((rows, slots, 3))
    drawn[:, 0, 0] = 0.9  # the acceptance ratio is 1/2
    nothing = np.zeros(rows, np.int64)
    feeds = {
        "logits": logits, "input_ids": np.ones((rows, slots), np.int64), "start": nothing, "known": nothing + 1,
        "recycled": nothing + slots - 1, "fresh": nothing, "draws": np.ones(rows, bool),
        "temperature": np.ones(rows, np.float32), "uniforms": drawn, "draft_laws": 2 * law, "draft_laws_start": nothing,
    }  # fmt: skip
    if method == "scd-gumbel":
        noise = np.ones((rows, slots, vocab_size), np.float32)
        feeds |= {"noise": noise, "noise_start": nothing + 1, "past_noise": np.tile(noise, (1, 3, 1))}
    tokens, committed = session_of(decision_graph(method, vocab_size)).run(["tokens", "committed"], feeds)
    assert (committed == 1).all()
    # The token whose stretch of the cumulative law the uniform lies in.
    expected = [int(np.searchsorted(np.cumsum(p, dtype=float), u * p.sum(dtype=float), "right"))
                for p, u in zip(law[:, 0], drawn[:, 0, 1], strict=True)]  # fmt: skip
    assert tokens[:, 0].tolist() == expected


@pytest.mark.parametrize("method", STEP_METHODS)
def test_an_outcome_stays_what_it_is(method):
    step, known = ort_step(table(0), method), 3 if method == "ar" else 1
    outcome = step.step(one_row([1, 2, 3], known))
    before = outcome.tokens.tolist(), outcome.committed.tolist()
    for token in range(VOCAB):
        step.step(one_row([token, 4, 0], known))
    assert (outcome.tokens.tolist(), outcome.committed.tolist()) == before


def test_weights_in_a_second_file_are_shared(tmp_path):
    logits = table(2)
    onnx.save_model(
        window_model(logits),
        tmp_path / "window.onnx",
        save_as_external_data=True,
        location="weights",
        size_threshold=1000,
    )
    model = onnx.load(tmp_path / "window.onnx", load_external_data=False)
    for method in STEP_METHODS:
        path = save_graph(step_graph(model, method), tmp_path / f"{method}.onnx")
        both = Both(OrtStep(open_session(path, 1)), HostStep(Table(logits), method))
        finish(Decoder(both, window=4), [Request([1], 9)])
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
        ["weights", "window.onnx", *(f"{m}.onnx" for m in STEP_METHODS)]
    )


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("method", STEP_METHODS)
def test_guided_drafts_end_there_too(method, fault):
    """At scale 1, at which a token that is forbidden for the one row says nothing of the other."""
    logits = with_dead_states(table(2, forbidden=0), fault, reachable=0.03)
    session = session_of(step_graph(window_model(logits), method, guided=True))
    guided = OrtStep(session, 2, guidance=1.0, unconditional=[1, 2])
    both = Both(guided, HostStep(GuidedProvider(Table(logits, 4), 1.0, [1, 2]), method))
    both.max_length = both.max_window = guided.max_length
    requests = [Request([1 + i % 3], 20, seed=i) for i in range(6)]
    finish(Decoder(both, window=6, drafting="random:4:3"), requests)
    assert both.closed > 40 or method == "ar"
    assert both.failed


@pytest.mark.parametrize("warped", [False, True])
@pytest.mark.parametrize("method", STEP_METHODS)
def test_requests_for_what_a_graph_cannot_do_are_refused_before_anything_runs(method, warped):
    step = ort_step(table(0), method, warped=warped)
    asked = PROCESSORS | LOGPROBS | OTHERS
    refused = {name: (asked[name], "which this step graph") for name in asked}
    if not warped:
        refused |= {name: (settings, "neither top-k, top-p nor min-p") for name, settings in WARPS.items()}
    expect_refusals(step, refused, WARPS.values() if warped else [{}])


def test_laws_that_nobody_spoke_of_end_their_request():
    expect_that_unannounced_laws_end_a_request_alone(ort_step(table(0), "sjd"))


def test_what_a_graph_cannot_do_is_refused():
    step = ort_step(table(0), "sjd")
    with pytest.raises(InvalidArgument, match="warped=True"):
        step.step(one_row([1, 2], 1, Sampling(top_k=2)))
    with pytest.raises(InvalidArgument, match="fresh_laws"):
        step.step(one_row([1, 2], 1)._replace(fresh_laws=[np.ones((1, VOCAB)) / VOCAB]))
    with pytest.raises(InvalidArgument, match="starts at"):
        step.step(one_row([1, 2], 1)._replace(start=np.array([LENGTH])))
    with pytest.raises(InvalidArgument, match="slot 1 is token"):
        step.step(one_row([1, VOCAB], 1))
    with pytest.raises(InvalidArgument, match="speculative"):
        decision_graph("speculative", VOCAB)
    with pytest.raises(InvalidArgument, match="window graph"):
        step_graph(decision_graph("ar", VOCAB), "ar")
    with pytest.raises(BundleError, match="step graph"):
        OrtStep(session_of(window_model(table(0))), 1)

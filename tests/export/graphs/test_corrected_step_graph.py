"""Step graphs that draw redrafts from corrected laws, against HostStep with the same table: token by token, and law by law."""

import dataclasses

import numpy as np
import pytest

from coupled_sampling import Decoder, GuidedProvider, HostStep, Request, Sampling
from coupled_sampling.backends.ort.step import OrtStep
from coupled_sampling.backends.ort.step_corrections import fed_tables
from coupled_sampling.corrections import Changes
from coupled_sampling.drafting import Repeat
from coupled_sampling.errors import InvalidArgument
from coupled_sampling.export.graphs.decision import decision_graph
from coupled_sampling.export.graphs.step import step_graph
from coupled_sampling.target import target_law
from coupled_sampling.testing import StepComparison
from standins.both_steps import Both
from standins.correctors import no_change, random_low_rank
from standins.table_graphs import VOCAB, WIDE, Table, finish, session_of, table, window_model

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

METHODS = ("sjd", "scd-maximal", "scd-gumbel", "scd-match")
SAMPLINGS = [Sampling(), Sampling(0.7), Sampling(0), Sampling(1.3)]
WARPED = [Sampling(top_k=3), Sampling(0.8, top_p=0.6), Sampling(min_p=0.2), Sampling(1.2, 4, 0.8, 0.05), Sampling(0)]


def graph_step(logits, method, corrections, rows=1, **variant):
    model = step_graph(window_model(logits), method, corrected=corrections is not None, **variant)
    return OrtStep(session_of(model), rows, corrections=corrections)


def requests_of(count, samplings, length=30):
    """Ragged rows, prompts of several tokens, settings that differ between neighbouring rows."""
    return [
        Request([1 + i % 3] * (1 + i % 4), length - i, seed=i, sequence=i, sampling=samplings[i % len(samplings)])
        for i in range(count)
    ]


@pytest.mark.cases(4)
@pytest.mark.parametrize(
    ("size", "lags", "warped"), [(VOCAB, (1, 3), False), (WIDE, (2, 1, 5), False), (WIDE, (1, 50), True)]
)
@pytest.mark.parametrize("method", METHODS)
def test_tokens_and_counts_are_those_of_host_step(method, size, lags, warped):
    """Lags in any order, into prompts and beyond every window; what is recorded is what the next round tests by."""
    logits, corrections = table(1, size), random_low_rank(0, size, lags)
    ours = graph_step(logits, method, corrections, 3, warped=warped)
    both = Both(ours, HostStep(Table(logits, 3), method, corrections=corrections))
    finish(Decoder(both, window=9, drafting=Repeat(fill=2)), requests_of(5, WARPED if warped else SAMPLINGS))
    assert both.compared > 400
    plain = generated(graph_step(logits, method, None, warped=warped), 9)
    assert generated(graph_step(logits, method, corrections, warped=warped), 9)[1] != plain[1]


def generated(step, window):
    """Tokens, and how many every call committed."""
    tokens, counts, inner = [], [], step.step

    def kept(of_window):
        outcome = inner(of_window)
        counts.append(outcome.committed.tolist())
        return outcome

    step.step = kept
    decoder = Decoder(step, window=window, drafting="repeat")
    decoder.add(Request([1], 55, seed=4))
    while decoder.active or decoder.waiting:
        tokens.extend(token for commit in decoder.step() for token in commit.tokens.tolist())
    return tokens, counts


@pytest.mark.parametrize("method", METHODS)
def test_a_table_that_changes_nothing_gives_the_tokens_of_the_plain_graph(method):
    """Sites are drawn again, from the same law, and all of them come out as they were."""
    logits = table(2, WIDE)
    plain, same = (graph_step(logits, method, corrections) for corrections in (None, no_change(WIDE)))
    assert generated(same, 8) == generated(plain, 8)


def test_matched_tokens_depend_on_no_table():
    logits = table(3)
    ar = generated(graph_step(logits, "ar", None), 1)[0]
    for seed in range(3):
        tokens, counts = generated(graph_step(logits, "scd-match", random_low_rank(seed, VOCAB, (1, 3), scale=2)), 8)
        assert tokens == ar
        assert len(counts) < len(ar)


def test_guided_logits_are_corrected_after_guidance():
    logits, corrections = table(0, forbidden=0.0), random_low_rank(0, VOCAB, (1, 3))
    for method in ("scd-maximal", "scd-gumbel"):
        model = step_graph(window_model(logits), method, warped=True, guided=True, corrected=True)
        ours = OrtStep(session_of(model), 2, guidance=1.5, unconditional=[1, 2], corrections=corrections)
        host = HostStep(GuidedProvider(Table(logits, 4), 1.5, [1, 2]), method, corrections=corrections)
        both = Both(ours, host)
        both.max_length = both.max_window = ours.max_length
        finish(Decoder(both, window=7, drafting="repeat"), requests_of(4, [Sampling(0.8), Sampling(top_k=4)], 25))
        assert both.compared > 200


W, START = 12, 40


def window_of(vocab_size, rows, method, seed=0):
    """What a decision graph is fed whose drafts are nearly all refused, and the drafts, slot by slot."""
    random = np.random.default_rng(seed)
    logits = (2 * random.standard_normal((rows, W, vocab_size))).astype(np.float32)
    logits[random.random(logits.shape) < 0.1] = -np.inf
    logits[..., 0] = 1
    held = target_law(random.standard_normal(logits.shape).astype(np.float32), Sampling())
    nothing = np.zeros(rows, np.int64)
    feeds = {
        "logits": logits, "input_ids": random.integers(0, vocab_size, (rows, W)), "start": nothing + START,
        "known": nothing + 1, "recycled": nothing + W - 1, "fresh": nothing, "draws": np.ones(rows, bool),
        "temperature": np.full(rows, 0.9, np.float32),
    }  # fmt: skip
    if method != "scd-match":
        feeds |= {"uniforms": random.random((rows, W, 3)), "draft_laws": held, "draft_laws_start": nothing + START}
    if method in ("scd-gumbel", "scd-match"):
        ring = (1 / random.exponential(size=(rows, 2 * W + 2, vocab_size))).astype(np.float32)
        entering = np.stack([ring[:, (START + 1) % ring.shape[1]]], axis=1)
        feeds |= {"noise": entering, "noise_start": nothing + START + 1, "past_noise": ring}
    return feeds, np.concatenate([feeds["input_ids"][:, 1:], feeds["input_ids"][:, -1:]], axis=1)


@pytest.mark.parametrize("method", ["sjd", "scd-maximal", "scd-gumbel"])
def test_recorded_laws_are_what_the_table_predicts_under_the_final_tokens(method):
    """In every row of every window, whatever the order in which sites were settled; where nothing changed, the pass's own."""
    corrections, rows = random_low_rank(0, WIDE, (1, 4)), 6
    feeds, draft = window_of(WIDE, rows, method)
    outputs = ["tokens", "committed", "laws"]
    tokens, committed, laws = session_of(decision_graph(method, WIDE, corrected=True)).run(
        outputs, feeds | fed_tables(corrections)
    )
    corrected = 0
    for b in range(rows):
        for j in range(W):
            at = [j - lag for lag in corrections.lags]
            old, new = (np.array([[x[b, i] if i >= 0 else 0 for i in at]]) for x in (draft, tokens))
            logits = feeds["logits"][b, j][None]
            if j >= committed[b] and (old != new).any():
                logits = corrections.correct(logits, Changes(old, new, np.array([START + j + 1])))
                corrected += 1
            np.testing.assert_allclose(laws[b, j], target_law(logits, Sampling(0.9))[0], atol=3e-6)
    assert corrected > 30


@pytest.mark.parametrize("method", METHODS)
def test_a_change_that_goes_from_site_to_site_is_followed_to_the_end(method):
    """Each new token forces another one behind it, so that every site but one is settled in a turn of its own."""
    corrections = random_low_rank(5, VOCAB, (1,), scale=30)
    logits = table(4, forbidden=0.0)
    both = Both(graph_step(logits, method, corrections), HostStep(Table(logits), method, corrections=corrections))
    finish(Decoder(both, window=24, drafting="repeat"), requests_of(1, [Sampling()], 45))
    assert both.compared > 100


def spoiling_table(vocab_size):
    """A table under which a neighbour that is, or was, token 2 leaves laws that are none: it overflows."""
    made = random_low_rank(0, vocab_size, (1, 2))
    made.neighbours[:, 2] = 0
    made.neighbours[:, 2, 0] = 1e25
    made.basis[:, 0] = np.where(np.arange(vocab_size) % 2, 1e25, -1e25)
    return made


@pytest.mark.parametrize("method", METHODS)
def test_drafts_end_where_no_corrected_law_can_be_made_and_nothing_fails(method):
    logits, corrections = table(6, forbidden=0.0), spoiling_table(VOCAB)
    with np.errstate(over="ignore", invalid="ignore"):
        host = HostStep(Table(logits, 2), method, corrections=corrections)
        both = Both(graph_step(logits, method, corrections, 2), host)
        finish(Decoder(both, window=8, drafting="repeat"), requests_of(6, [Sampling()]))
    assert both.closed > 30
    assert not both.failed


def test_too_few_candidates_for_a_corrected_law_are_noticed():
    """Laws of the pass are sharp, and what a table makes of them is flat: only those want more candidates."""
    sharp = np.zeros((WIDE, WIDE, WIDE), np.float32)
    favourite = np.random.default_rng(0).integers(0, WIDE, (WIDE, WIDE))
    np.put_along_axis(sharp, favourite[..., None], 6, axis=-1)
    np.put_along_axis(sharp, (favourite[..., None] + 1) % WIDE, 5.8, axis=-1)
    flat = dataclasses.replace(random_low_rank(0, WIDE, (1,), scale=0.01), stale_scale=np.array([1.0, 0.05]))
    ours = graph_step(sharp, "scd-gumbel", flat, warped=True)
    ours._tensors._nucleus = 4
    both = Both(ours, HostStep(Table(sharp), "scd-gumbel", corrections=flat))
    finish(Decoder(both, window=8, drafting="repeat"), [Request([1], 30, sampling=Sampling(top_p=0.7))])
    assert ours._tensors._nucleus > 4


def test_what_cannot_be_corrected_is_refused():
    for method, noise in (("ar", "ring"), ("scd-match", "window")):
        with pytest.raises(InvalidArgument, match=f"corrected is True, but method is '{method}' and noise '{noise}'"):
            decision_graph(method, VOCAB, noise=noise, corrected=True)
    model = window_model(table(0))
    with pytest.raises(InvalidArgument, match="not corrected and takes None"):
        OrtStep(session_of(step_graph(model, "sjd")), corrections=random_low_rank(0, VOCAB, (1, 3)))
    session = session_of(step_graph(model, "sjd", corrected=True))
    with pytest.raises(InvalidArgument, match="corrections is None, the step graph is corrected and needs a LowRank"):
        OrtStep(session)
    with pytest.raises(InvalidArgument, match=f"corrections is for {WIDE} tokens, expected {VOCAB}"):
        OrtStep(session, corrections=random_low_rank(0, WIDE, (1, 3)))

    class Own:
        lags = (1,)

        def correct(self, logits, changes):
            return logits

    with pytest.raises(InvalidArgument, match="corrections is a Own, of which a step graph knows nothing"):
        OrtStep(session, corrections=Own())


def swapped(model):
    """New and old neighbours in each other's place."""
    loop = next(node for node in model.graph.node if node.op_type == "Loop")
    step = next(node for node in loop.attribute[0].g.node if node.op_type == "Sub" and "Gather" in node.input[0])
    step.input[0], step.input[1] = step.input[1], step.input[0]
    return model


@pytest.mark.parametrize("method", METHODS)
def test_differences_are_ties_that_are_shown_and_a_broken_graph_is_seen(method):
    logits, corrections = table(5, WIDE), random_low_rank(0, WIDE, (1, 3))
    for change in (lambda model: model, swapped):
        model = change(step_graph(window_model(logits), method, corrected=True))
        both = StepComparison(Table(logits, 2), OrtStep(session_of(model), 2, corrections=corrections))
        finish(Decoder(both, window=8, drafting="repeat"), requests_of(2, SAMPLINGS, 25))
        report = both.report()
        assert report.sites > 60
        assert bool(report.disagreements) == (change is swapped), report

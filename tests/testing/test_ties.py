"""Differences between two implementations: ties are recognised, bounded and counted; faults are never explained away."""

import json

import numpy as np
import pytest
from hypothesis import given, settings

from coupled_sampling import Decoder, HostStep, Request, Sampling
from coupled_sampling.backends import OrtProvider, Place, open_model
from coupled_sampling.bundles.opening import open_bundle
from coupled_sampling.drafting import Repeat
from coupled_sampling.export.graphs.decision import STEP_METHODS
from coupled_sampling.noise import CounterNoise, race_weights, uniforms
from coupled_sampling.testing import TableProvider, random_table
from coupled_sampling.testing.steps.rounding import Margin, rounded_laws
from coupled_sampling.testing.steps.ties import StepComparison, StepsDisagree
from coupled_sampling.testing.strategies import samplings, worlds
from standins import table_graphs
from standins.old_law import OldLawForKeptDrafts

VOCAB = 40
REJECTION = ["sjd", "scd-maximal", "scd-gumbel"]


class Single:
    """The same model, whose logits are rounded to float32: its laws and races are those of another precision."""

    def __init__(self, provider):
        self.provider = provider
        self.vocab_size, self.batch_size = provider.vocab_size, provider.batch_size
        self.max_length = provider.max_length

    def forward(self, tokens, start):
        return self.provider.forward(tokens, start).astype(np.float32)


class Doubled(Single):
    """The logits of `Single` in float64, so that only what follows them differs."""

    def forward(self, tokens, start):
        return super().forward(tokens, start).astype(np.float64)


def finish(comparison, requests, **loop):
    decoder = Decoder(comparison, **loop)
    for request in requests:
        decoder.add(request)
    while decoder.active or decoder.waiting:
        decoder.step()
    return comparison.report()


def model(next_law, rows=1, vocab_size=VOCAB):
    return TableProvider(next_law, vocab_size, rows, 80)


@pytest.mark.cases(3)
@pytest.mark.parametrize("warped", [False, True])
@pytest.mark.parametrize("method", STEP_METHODS)
def test_the_embedded_model(method, warped, record_property):
    pytest.importorskip("onnxruntime")
    bundle = open_bundle("fashion")
    step = open_model(bundle, Place(threads=1), 3, method=method, step="graph", warped=warped)
    warps = [Sampling(0.8, top_p=0.9), Sampling(top_k=20, min_p=0.02), Sampling(0)]
    requests = [
        Request([prompt], length, seed=3, sequence=i, sampling=warps[i] if warped else Sampling())
        for i, (prompt, length) in enumerate([(256, 196), (258, 60), (260, 110)])
    ]
    comparison = StepComparison(OrtProvider.open(bundle, 3, threads=1), step)
    report = finish(comparison, requests, window=16, drafting="copy:14").check()
    assert report.sites > 300
    record_property("ties", str(report))


@pytest.mark.parametrize("method", STEP_METHODS)
def test_worlds_in_two_precisions(method):
    @settings(derandomize=True, deadline=None, max_examples=40)
    @given(world=worlds(max_length=12, max_window=5), sampling=samplings(2))
    def compared(world, sampling):
        other = HostStep(Single(world.provider()), method)
        requests = [
            Request(list(prompt), world.length, seed=7, sequence=i, stop=world.stop, sampling=sampling)
            for i, prompt in enumerate(world.prompts)
        ]
        report = finish(StepComparison(Doubled(world.provider()), other), requests, window=world.window)
        assert not report.disagreements, report

    compared()


class OtherUniforms(CounterNoise):
    """The uniforms of the position after."""

    def _uniform(self, sites, purpose):
        return super()._uniform(sites._replace(position=sites.position + 1), purpose)


class OtherRaces(CounterNoise):
    """The race noise of the position after."""

    def _weights(self, sites, row, first, end, like):
        return super()._weights(sites._replace(position=sites.position + 1), row, first, end, like)


def faulty(method, fault):
    inner = model(random_table(1, VOCAB))
    if fault == "old law":
        return OldLawForKeptDrafts(inner, method)
    return HostStep(inner, method, {"uniforms": OtherUniforms, "races": OtherRaces}[fault]())


@pytest.mark.cases(3)
@pytest.mark.parametrize(
    ("method", "fault"),
    [(m, f) for m in REJECTION for f in ("old law", "uniforms") if (m, f) != ("sjd", "old law")]
    + [(m, "races") for m in ("ar", "scd-gumbel", "scd-match")],
)
def test_faults_are_disagreements(method, fault):
    comparison = StepComparison(model(random_table(1, VOCAB)), faulty(method, fault))
    report = finish(comparison, [Request([1], 60, seed=s) for s in range(3)], window=8)
    assert report.disagreements
    assert report.ties <= report.most_ties
    with pytest.raises(StepsDisagree, match="DISAGREEMENT"):
        report.check()


def test_a_wrong_count_is_a_disagreement():
    class Counts(HostStep):
        def step(self, window):
            outcome = super().step(window)
            return outcome._replace(committed=outcome.committed + window.draws)

    comparison = StepComparison(model(random_table(1, VOCAB)), Counts(model(random_table(1, VOCAB)), "scd-match"))
    report = finish(comparison, [Request([1], 30)], window=8)
    assert report.disagreements
    assert "rule" in {example.kind for example in report.examples}


def race_tie(sequence):
    """All products of law and weight are equal."""
    weights = 1 / race_weights(0, sequence, 1, VOCAB)
    return weights / weights.sum()


def draw_tie(sequence):
    """The uniform of the first correction is the boundary between tokens 0 and 1."""
    return split(uniforms(0, sequence, 0, 1, 1)[0, 1])


def acceptance_tie(sequence):
    """The uniform of the first draft, token 0, is what its law gives it."""
    return split(uniforms(0, sequence, 0, 1, 1)[0, 0])


def split(first):
    law = np.zeros(VOCAB)
    law[:2] = first, 1 - first
    return law


@pytest.mark.parametrize(
    ("method", "tie", "kind", "window"),
    [
        ("ar", race_tie, "race", 1),
        ("scd-match", race_tie, "race", 1),
        ("sjd", draw_tie, "inverse CDF", 1),
        ("scd-gumbel", acceptance_tie, "acceptance", 2),
        ("scd-maximal", acceptance_tie, "acceptance", 2),
    ],
)
def test_made_ties_are_recognised(method, tie, kind, window):
    """Float32 breaks some of them otherwise than float64 does; each of those is a tie, and nothing is a disagreement."""
    ties = 0
    for sequence in range(30):
        law = tie(sequence)
        inner = [model(lambda context, law=law: law) for _ in range(2)]
        comparison = StepComparison(Doubled(inner[0]), HostStep(Single(inner[1]), method))
        drafting = Repeat(fill=0) if kind == "acceptance" else "random"
        report = finish(comparison, [Request([0], window, sequence=sequence)], window=window, drafting=drafting)
        assert not report.disagreements, report
        assert {example.kind for example in report.examples} <= {kind}
        ties += report.ties
    assert ties


@pytest.mark.parametrize("temperature", [1e-30, 1e-3, 1.0, 1e30])
def test_bounds_are_small_numbers_at_any_temperature(temperature):
    logits = np.array([1.0, 3.0, -np.inf, 3.0, -40.0, 80.0])
    (law,) = rounded_laws(logits, Sampling(temperature))
    np.testing.assert_allclose(law.law.sum(), 1)
    assert (law.error <= 1e-4 * law.law).all()
    assert 0 < law.common < 1e-4
    assert not Margin("race", 1e-9, np.nan).strain <= 1


def test_a_threshold_between_two_logits_gives_both_laws():
    logits = np.log(np.array([0.5, 0.25 * (1 - 1e-9), 0.25 * (1 + 1e-9)]))
    kept = [np.flatnonzero(law.law).tolist() for law in rounded_laws(logits, Sampling(min_p=0.5))]
    assert kept == [[0, 2], [0], [0, 1, 2]]
    assert len(rounded_laws(logits, Sampling(min_p=0.4))) == 1
    assert len(rounded_laws(logits, Sampling(top_k=2))) == 1


def test_the_report():
    class Far(HostStep):
        def step(self, window):
            outcome = super().step(window)
            return outcome._replace(tokens=(outcome.tokens + 1) % VOCAB)

    comparison = StepComparison(model(random_table(1, VOCAB)), Far(model(random_table(1, VOCAB)), "ar"))
    report = finish(comparison, [Request([1], 30)], window=1)
    assert report.disagreements == report.sites == 30
    assert len(report.examples) == 20
    assert json.loads(report.to_json())["disagreements"] == 30
    assert "30 disagreements" in str(report)
    with pytest.raises(StepsDisagree, match="nothing was compared"):
        StepComparison(model(random_table(1, VOCAB)), Far(model(random_table(1, VOCAB)), "ar")).report().check()


@pytest.mark.cases(6)
@pytest.mark.parametrize("fault", table_graphs.FAULTS)
@pytest.mark.parametrize("method", [*REJECTION, "scd-match"])
def test_sites_of_which_no_law_can_be_made_end_a_comparison(method, fault):
    """Both must say so; nothing to the right is judged, and nothing there is a tie."""
    logits = table_graphs.with_dead_states(table_graphs.table(1), fault, reachable=0.02)

    class Forgetting(HostStep):
        def step(self, window):
            outcome = super().step(window)
            return outcome._replace(tokens=np.maximum(outcome.tokens, 0))

    for kind, faulty in ((HostStep, False), (Forgetting, True)):
        comparison = StepComparison(table_graphs.Table(logits, 2), kind(table_graphs.Table(logits, 2), method))
        requests = [Request([1], 20, seed=i) for i in range(6)]
        table_graphs.finish(Decoder(comparison, window=6, drafting="random:4:3"), requests)
        report = comparison.report()
        assert report.sites > 100
        assert report.expected_ties < 1
        assert bool(report.disagreements) == faulty
        assert not report.ties

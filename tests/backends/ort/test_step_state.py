"""What a step graph keeps between calls, under everything that a loop may do to it: laws, noise, caches, and pairs of prompts."""

import pytest

from coupled_sampling import Decoder, Guidance, GuidedProvider, HostStep, Request
from coupled_sampling.backends.ort import step_tensors
from coupled_sampling.backends.ort.step import OrtStep
from coupled_sampling.export.graphs.decision import STEP_METHODS
from coupled_sampling.export.graphs.step import step_graph
from standins.schedules import ROWS, UNCONDITIONAL, Losing, run_schedule
from standins.table_graphs import LENGTH, VOCAB, Table, session_of, table, window_model

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

STEPS = 120


class Failing:
    """A session of ONNX Runtime whose calls fail when told to, before the graph has run."""

    def __init__(self, session):
        self._session, self.fails = session, False

    def __getattr__(self, name):
        return getattr(self._session, name)

    def run_with_iobinding(self, *arguments):
        if self.fails:
            self.fails = False
            raise RuntimeError("out of memory")
        return self._session.run_with_iobinding(*arguments)


def assert_same(report):
    assert report.sites > 150
    assert not report.disagreements, report


@pytest.fixture(autouse=True)
def _short_steps_of_the_cache(monkeypatch):
    """``kv_length`` is rounded to 4 columns, so that one too few is seen almost everywhere."""
    monkeypatch.setattr(step_tensors, "KV_STEP", 4)


@pytest.mark.cases(3)
@pytest.mark.parametrize(("warped", "schedules"), [(False, 1), (True, 4)])
@pytest.mark.parametrize("method", STEP_METHODS)
def test_state_follows_whatever_the_loop_does(method, warped, schedules):
    logits = table(2)
    session = Failing(session_of(step_graph(window_model(logits, kv_length=True), method, warped=warped)))
    for seed in range(schedules):
        step = OrtStep(session, ROWS)
        step._candidates = 1 + seed % 2  # so that nuclei want more, and steps are done again
        assert_same(run_schedule(Losing(Table(logits, ROWS), step), session, seed, STEPS, warped))


@pytest.mark.cases(4)
@pytest.mark.parametrize("unconditional", UNCONDITIONAL.values(), ids=UNCONDITIONAL)
@pytest.mark.parametrize("method", STEP_METHODS)
def test_guided_state_follows_whatever_the_loop_does(method, unconditional):
    logits = table(3, forbidden=0)
    model = step_graph(window_model(logits, kv_length=True), method, warped=True, guided=True)
    session = Failing(session_of(model))
    for seed in range(2):
        step = OrtStep(session, ROWS, guidance=1.8, unconditional=unconditional)
        guided = GuidedProvider(Table(logits, 2 * ROWS), 1.8, unconditional)
        # (1 - s) u + s c is added up in another order, or by fused instructions.
        assert_same(run_schedule(Losing(guided, step, logits_error=1e-5), session, seed, STEPS))


@pytest.mark.cases(2)
@pytest.mark.parametrize("method", STEP_METHODS)
def test_state_follows_requests_with_guidance_of_their_own(method):
    """Scales and unconditional prompts differ from row to row, and some leave less room than a window is wide."""
    logits = table(3, forbidden=0)
    session = Failing(session_of(step_graph(window_model(logits, kv_length=True), method, warped=True, guided=True)))
    for seed in range(3):
        step = OrtStep(session, ROWS, guidance=1.8, unconditional=[3])
        guided = GuidedProvider(Table(logits, 2 * ROWS), 1.8, [3])
        assert_same(run_schedule(Losing(guided, step, logits_error=1e-5), session, seed, STEPS, guided=True))


def test_a_window_wider_than_what_an_unconditional_row_has_left():
    """The graph runs; slots past the model's memory decide nothing."""
    logits, how = table(3, forbidden=0), {"window": 9, "drafting": "repeat"}
    asked = [
        Request([1], 4, guidance=Guidance(unconditional=[2] * (LENGTH - 4))),
        Request([1, 0, 2, 2, 0, 3, 1, 1], 6, sequence=1),
    ]
    session = session_of(step_graph(window_model(logits, kv_length=True), "scd-match", guided=True))
    found = []
    for model in (
        OrtStep(session, 2, guidance=1.8, unconditional=[3]),
        HostStep(GuidedProvider(Table(logits, 4), 1.8, [3]), "scd-match"),
    ):
        decoder, tokens = Decoder(model, **how), {}
        handles = [decoder.add(request) for request in asked]
        while decoder.active or decoder.waiting:
            for commit in decoder.step():
                tokens[commit.handle] = [*tokens.get(commit.handle, []), *commit.tokens.tolist()]
        found.append([tokens[handle] for handle in handles])
    assert found[0] == found[1]


def test_requests_that_cannot_be_guided_are_refused_with_what_to_do():
    session = session_of(step_graph(window_model(table(3)), "scd-match", guided=True))
    step = OrtStep(session, ROWS, guidance=1.8, unconditional=[3])
    assert step.takes(Request([0], 4, guidance=Guidance.until(2, 3.0))) is None  # each slot has a scale of its own
    assert "cannot be guided: unconditional prompt token 0 is" in step.takes(
        Request([0], 4, guidance=Guidance(unconditional=[VOCAB]))
    )
    plain = OrtStep(session_of(step_graph(window_model(table(3)), "scd-match")), ROWS)
    assert "use HostStep over a GuidedProvider, or a guided step graph" in plain.takes(
        Request([0], 4, guidance=Guidance(2.0))
    )

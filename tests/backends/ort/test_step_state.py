"""What a step graph keeps between calls, under everything that a loop may do to it: laws, noise, caches, and pairs of prompts."""

import pytest

from coupled_sampling import GuidedProvider
from coupled_sampling.backends.ort import step as ort_step
from coupled_sampling.backends.ort.step import OrtStep
from coupled_sampling.export.graphs.decision import STEP_METHODS
from coupled_sampling.export.graphs.step import step_graph
from standins.schedules import ROWS, UNCONDITIONAL, Losing, run_schedule
from standins.table_graphs import Table, session_of, table, window_model

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
    monkeypatch.setattr(ort_step, "KV_STEP", 4)


@pytest.mark.parametrize(("warped", "schedules"), [(False, 1), (True, 4)])
@pytest.mark.parametrize("method", STEP_METHODS)
def test_state_follows_whatever_the_loop_does(method, warped, schedules):
    logits = table(2)
    session = Failing(session_of(step_graph(window_model(logits, kv_length=True), method, warped=warped)))
    for seed in range(schedules):
        step = OrtStep(session, ROWS)
        step._candidates = 1 + seed % 2  # so that nuclei want more, and steps are done again
        assert_same(run_schedule(Losing(Table(logits, ROWS), step), session, seed, STEPS, warped))


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

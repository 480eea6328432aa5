"""What a step graph keeps between calls, under everything that a loop may do to it: laws, noise, caches, and pairs of prompts.

Schedules of arrivals, removals, lost outcomes, failing calls and windows that grow and shrink, made at random from a seed; tokens
and counts are those of HostStep at every site of every step.
"""

import contextlib

import numpy as np
import pytest

from coupled_sampling import Decoder, GuidedProvider, Request, Sampling
from coupled_sampling.backends.ort import step as ort_step
from coupled_sampling.backends.ort.step import OrtStep
from coupled_sampling.errors import ProviderError
from coupled_sampling.export.graphs.decision import STEP_METHODS
from coupled_sampling.export.graphs.step import step_graph
from coupled_sampling.testing import StepComparison
from standins.table_graphs import LENGTH, VOCAB, Table, session_of, table, window_model

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

ROWS, STEPS, FITS = 3, 120, 25
"""Rows; steps of a schedule; and the most positions of a request, so that rows are used many times."""
UNCONDITIONAL = {
    "one": [3],
    "long": [2, 0, 1, 3, 3, 1],
    "made from the prompt": lambda prompt: [*prompt[::-1], 1, 2][: len(prompt) + 2 if len(prompt) % 2 else 1],
}
SAMPLINGS = [Sampling(), Sampling(0.7), Sampling(1.5, top_k=4, min_p=0.1), Sampling(0.8, top_p=0.7), Sampling(0)]


class Erratic:
    """Widths that stay for a while, then jump."""

    largest = 9

    def __init__(self, random):
        self.random, self.chosen = random, 4

    def width(self, rows):
        return self.chosen

    def record(self, rows, width, tokens, seconds):
        pass

    def change(self):
        self.chosen = int(self.random.integers(1, self.largest + 1))


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


class Losing(StepComparison):
    """The outcome is lost on the way to the loop when told to."""

    loses = False

    def step(self, window):
        outcome = super().step(window)
        if self.loses:
            self.loses = False
            raise KeyboardInterrupt
        return outcome


def run_schedule(both, session, seed, warped=True):
    """Some hundred steps; returns the report of all that was compared."""
    random = np.random.default_rng(seed)
    rule = Erratic(random)
    decoder = Decoder(both, window=rule, drafting=str(random.choice(["repeat", "random", "copy:3"])))
    under_way = set()
    for _ in range(STEPS):
        chance = random.random(6)
        if chance[0] < 0.3 and decoder.active + decoder.waiting < ROWS + 1:
            prompt = random.integers(0, VOCAB, random.integers(1, 13)).tolist()
            length = int(random.integers(1, FITS + 1 - len(prompt)))
            # Few seeds and sequences: the same pair comes again, and pairs that share one of the two stand side by side.
            noise = dict(zip(("seed", "sequence"), random.integers(0, 3, 2).tolist(), strict=True))
            sampling = SAMPLINGS[int(random.integers(len(SAMPLINGS)))] if warped else Sampling()
            under_way.add(decoder.add(Request(prompt, length, sampling=sampling, **noise)))
        if chance[1] < 0.05 and under_way:
            gone = int(random.choice(sorted(under_way)))
            decoder.remove(gone)
            under_way.discard(gone)
        if chance[2] < 0.15:
            rule.change()
        both.loses, session.fails = chance[3] < 0.1, chance[4] < 0.1
        with contextlib.suppress(KeyboardInterrupt, ProviderError):
            under_way -= {commit.handle for commit in decoder.step() if commit.finished}
    return both.report()


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
        assert_same(run_schedule(Losing(Table(logits, ROWS), OrtStep(session, ROWS)), session, seed, warped))


@pytest.mark.parametrize("unconditional", UNCONDITIONAL.values(), ids=UNCONDITIONAL)
@pytest.mark.parametrize("method", STEP_METHODS)
def test_guided_state_follows_whatever_the_loop_does(method, unconditional):
    logits = table(3, forbidden=0)
    model = step_graph(window_model(logits, kv_length=True), method, warped=True, guided=True)
    session = Failing(session_of(model))
    for seed in range(2):
        step = OrtStep(session, ROWS, guidance=1.8, unconditional=unconditional)
        guided = GuidedProvider(Table(logits, 2 * ROWS), 1.8, unconditional)
        assert guided.max_length <= LENGTH
        # (1 - s) u + s c is added up in another order, or by fused instructions.
        assert_same(run_schedule(Losing(guided, step, logits_error=1e-5), session, seed))

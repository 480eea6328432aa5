"""Prompts in chunks and forked, idle rows: over ONNX Runtime, by HostStep and step graphs, the tokens are those of windows alone.

The reference is a step whose prompts the loop reads in windows, one row at a time.
"""

import contextlib

import numpy as np
import pytest

from coupled_sampling import Decoder, GuidedProvider, HostStep, Request
from coupled_sampling.backends import OrtProvider, OrtStep, Place, open_model
from coupled_sampling.backends.ort import cuda_session, step_tensors
from coupled_sampling.backends.ort.session import open_session
from coupled_sampling.bundles.opening import open_bundle
from coupled_sampling.contracts import Forks, PromptReader
from coupled_sampling.errors import InvalidArgument, ProviderError
from coupled_sampling.export.graphs.decision import STEP_METHODS
from coupled_sampling.export.graphs.step import step_graph
from standins.fake_onnxruntime import FakeRuntime
from standins.on_cuda import cuda_provider, cuda_step
from standins.schedules import ROWS, UNCONDITIONAL, Losing, run_schedule
from standins.table_graphs import Table, session_of, table, window_model

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

PROMPT = [256, *np.random.default_rng(5).integers(0, 256, 60).tolist()]


class InWindows:
    """A step that hides all that it offers beyond the contract, so that prompts come in windows and all rows run."""

    def __init__(self, step):
        self._step = step

    def __getattr__(self, name):
        return getattr(self._step, name)


class AllRows:
    """A provider that can only forward its first rows."""

    def __init__(self, provider):
        self.forward, self.vocab_size, self.batch_size = provider.forward, provider.vocab_size, provider.batch_size
        self.max_length, self.max_window = provider.max_length, provider.max_window


@pytest.fixture(scope="module")
def bundle():
    return open_bundle("fashion")


def step_of(bundle, kind, method, rows):
    if kind == "graph":
        return open_model(bundle, Place(threads=1), rows, method=method, step="graph", corrections="none")
    return HostStep(OrtProvider.open(bundle, rows, threads=1), method)


def decoded(step, requests, chunk=None, window=8, interrupt=()):
    """Tokens by request, and passes over the model; the calls numbered in ``interrupt`` are lost after they ran."""
    decoder = Decoder(step, window=window, drafting="copy:14", prompt_chunk=chunk)
    tokens = {}
    for request in requests:
        first = decoder.add(request)
        tokens |= {first + i: [] for i in range(request.samples)}
    while decoder.active or decoder.waiting:
        with contextlib.suppress(KeyboardInterrupt):
            for commit in decoder.step():
                assert commit.error is None
                tokens[commit.handle].extend(commit.tokens.tolist())
    return list(tokens.values())


def requests(count=3):
    """Prompts longer than a window, and one that is not, of several lengths."""
    prompts = [PROMPT, PROMPT[:30], PROMPT[:3], PROMPT[:45]][:count]
    return [Request(prompt, 20 + 3 * i, sequence=i) for i, prompt in enumerate(prompts)]


@pytest.fixture(scope="module")
def in_windows(bundle):
    """The reference's tokens of each method."""
    made = {}

    def tokens(method):
        if method not in made:
            step = InWindows(HostStep(AllRows(OrtProvider.open(bundle, 3, threads=1)), method))
            made[method] = decoded(step, requests(4))
        return made[method]

    return tokens


@pytest.mark.cases(4)
@pytest.mark.parametrize("kind", ["host", "graph"])
@pytest.mark.parametrize("method", STEP_METHODS)
def test_tokens_do_not_depend_on_how_prompts_were_read(bundle, in_windows, method, kind):
    for rows, chunk in ((1, None), (3, 1), (3, 29)):
        assert decoded(step_of(bundle, kind, method, rows), requests(4), chunk) == in_windows(method), (rows, chunk)


@pytest.mark.parametrize("kind", ["host", "graph"])
@pytest.mark.parametrize("method", ["scd-match", "scd-gumbel"])
def test_samples_that_were_forked_are_those_that_read_for_themselves(bundle, kind, method):
    step, calls = step_of(bundle, kind, method, 4), []
    own = step.read
    step.read = lambda tokens, start, rows: calls.append((tokens.shape, rows)) or own(tokens, start, rows)
    found = decoded(step, [Request(PROMPT, 20, samples=4)], chunk=16)
    assert calls == [((1, 16), range(1))] * 3 + [((1, 12), range(1))]  # 60 tokens, once
    alone = [Request(PROMPT, 20, sequence=i) for i in range(4)]
    assert found == decoded(InWindows(step_of(bundle, kind, method, 4)), alone)


@pytest.mark.parametrize("unconditional", [[266], [266, *PROMPT[1:70]]], ids=["short", "long"])
def test_guided_samples_are_forked_too(bundle, unconditional):
    step = OrtStep(
        open_session(bundle.step_graph("scd-match", guided=True), 1), 3, guidance=1.7, unconditional=unconditional
    )
    host = HostStep(GuidedProvider(OrtProvider.open(bundle, 6, threads=1), 1.7, unconditional), "scd-match")
    alone = [Request(PROMPT, 20, sequence=i) for i in range(3)]
    assert decoded(step, [Request(PROMPT, 20, samples=3)], chunk=16) == decoded(InWindows(host), alone)


@pytest.mark.parametrize("kind", ["host", "graph"])
@pytest.mark.parametrize("method", ["sjd", "scd-match"])
def test_ctrl_c_in_the_middle_of_reading_or_of_a_step_changes_nothing(bundle, in_windows, method, kind):
    """Every third call of the model is lost after it has run."""
    step = step_of(bundle, kind, method, 3)
    binding = step.binding if kind == "graph" else step.provider.binding
    own, calls = binding.run, []

    def run():
        own()
        calls.append(1)
        if len(calls) % 3 == 0:
            raise KeyboardInterrupt

    binding.run = run
    assert decoded(step, requests(4), chunk=7) == in_windows(method)
    assert len(calls) > 30


@pytest.mark.parametrize("kind", ["host", "graph"])
@pytest.mark.parametrize("method", ["scd-match", "scd-maximal"])
def test_idle_rows_are_not_run(bundle, method, kind):
    """Rows 2 and 7 of eight stay: each runs alone, and both give what they would have given in one."""
    step = step_of(bundle, kind, method, 8)
    binding = step.binding if kind == "graph" else step.provider.binding
    chosen, own = [], binding.choose
    binding.choose = lambda rows: chosen.append(rows) or own(rows)
    decoder, tokens = Decoder(step, window=8, drafting="copy:14"), {}
    for row in range(8):
        handle = decoder.add(Request([256 + row], 30 if row in (2, 7) else 1, sequence=row))
        tokens[handle] = []
    while decoder.active or decoder.waiting:
        for commit in decoder.step():
            tokens[commit.handle].extend(commit.tokens.tolist())
    assert chosen[0] == range(8)
    assert set(chosen[1:]) == {range(2, 3), range(7, 8)}
    for row in (2, 7):
        request = Request([256 + row], 30, sequence=row)
        assert [tokens[row]] == decoded(step_of(bundle, kind, method, 1), [request])


@pytest.mark.parametrize("method", ["sjd", "scd-gumbel", "scd-match"])
def test_prompts_are_read_on_a_gpu_too(bundle, in_windows, method, monkeypatch):
    """On the stand-in for a GPU, where rows cannot be copied: each sample reads for itself."""
    monkeypatch.setattr(cuda_session, "require_onnxruntime", lambda install: FakeRuntime())
    for make in (cuda_step, lambda *settings: HostStep(cuda_provider(bundle, 3), method)):
        step = make(bundle, method, 3)
        assert not step.forks
        assert decoded(step, requests(4), chunk=29) == in_windows(method)


def test_a_step_graph_says_what_it_offers(bundle):
    step = step_of(bundle, "graph", "scd-match", 2)
    assert isinstance(step, PromptReader)
    assert isinstance(step, Forks)
    assert (step.prompt_chunk, step.touches_all, step.keeps_prefixes, step.forks) == (196, False, True, True)
    guided = open_model(bundle, Place(threads=1), method="scd-match", step="graph", guidance=2.0, corrections="none")
    assert (guided.touches_all, guided.keeps_prefixes, guided.forks) == (False, False, True)


def test_what_is_out_of_bounds_is_refused_by_a_step_graph(bundle):
    step = step_of(bundle, "graph", "scd-match", 2)
    tokens, start = np.full((1, 3), 256), np.zeros(1, np.int64)
    with pytest.raises(InvalidArgument, match="rows is range\\(2, 3\\), expected a range of 1 consecutive rows"):
        step.read(tokens, start, range(2, 3))
    with pytest.raises(InvalidArgument, match="row 0 starts at 194, expected 0 to 193"):
        step.read(tokens, start + 194, range(1))
    with pytest.raises(InvalidArgument, match="row 2 to fork"):
        step.fork(0, [2], 1)
    step.close()
    for call in (lambda: step.read(tokens, start, range(1)), lambda: step.fork(0, [1], 1)):
        with pytest.raises(ProviderError, match="OrtStep was closed"):
            call()


@pytest.mark.parametrize("chunk", [5, None])
@pytest.mark.parametrize("method", ["scd-match", "sjd"])
def test_guided_prompts_are_read_in_chunks_too(bundle, method, chunk):
    """The unconditional prompt is shorter than most prompts, then longer than all."""
    graph = bundle.step_graph(method, guided=True)
    for unconditional in ([266], [266, *PROMPT[1:70]]):
        guided = OrtStep(open_session(graph, 1), 2, guidance=1.7, unconditional=unconditional)
        host = HostStep(GuidedProvider(OrtProvider.open(bundle, 4, threads=1), 1.7, unconditional), method)
        assert decoded(guided, requests(), chunk) == decoded(InWindows(host), requests())


class Reading(Losing):
    """What is compared reads prompts, and so does the reference; which then holds the same tokens."""

    prompt_chunk, keeps_prefixes, touches_all = 5, False, False

    def read(self, tokens, start, rows):
        self.other.read(tokens, start, rows)
        model, self.chunks = self._recorded.provider, getattr(self, "chunks", 0) + 1
        model.forward_rows(tokens, start, rows)


class TableOfRows(Table):
    def forward_rows(self, tokens, start, rows):
        part = Table(self.logits, len(rows))
        part.held = self.held[rows.start : rows.stop]  # a view: what is written stays
        return part.forward(tokens, start)


class Failing:
    """A session whose calls fail when told to, before the graph has run."""

    def __init__(self, session):
        self._session, self.fails = session, False

    def __getattr__(self, name):
        return getattr(self._session, name)

    def run_with_iobinding(self, *arguments):
        if self.fails:
            self.fails = False
            raise RuntimeError("out of memory")
        return self._session.run_with_iobinding(*arguments)


@pytest.mark.cases(3)
@pytest.mark.filterwarnings("ignore:two requests under way")
@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("method", STEP_METHODS)
def test_state_follows_whatever_the_loop_does_with_chunks_in_between(method, guided, monkeypatch):
    """Every decision on an exact model, whose logits depend on each token before: rows come, go, fail, read and idle."""
    monkeypatch.setattr(step_tensors, "KV_STEP", 4)
    logits = table(4, forbidden=0 if guided else 0.15)
    graph = step_graph(window_model(logits, kv_length=True), method, warped=guided, guided=guided)
    session, settings = Failing(session_of(graph)), {}
    model, error = TableOfRows(logits, ROWS), 0.0
    if guided:
        settings = {"guidance": 1.8, "unconditional": UNCONDITIONAL["long"]}
        model, error = GuidedProvider(TableOfRows(logits, 2 * ROWS), 1.8, settings["unconditional"]), 1e-5
    for seed in (10, 11):
        both = Reading(model, OrtStep(session, ROWS, **settings), logits_error=error)
        report = run_schedule(both, session, seed, 120, warped=guided)
        assert both.chunks > 10
        assert report.sites > 150
        assert not report.disagreements, report

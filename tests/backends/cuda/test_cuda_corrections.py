"""Corrected laws in the CUDA kernels, emulated on the CPU: the tokens of HostStep with the same LowRank. Nothing ran on a GPU."""

import numpy as np
import pytest

from coupled_sampling import GuidedProvider, HostStep, Sampling, generate
from coupled_sampling.backends import Place
from coupled_sampling.backends.cuda.correction_tables import low_rank, packed
from coupled_sampling.backends.cuda.kernel_step import KernelStep
from coupled_sampling.backends.cuda.kernels import ROW
from coupled_sampling.backends.ort import cuda
from coupled_sampling.backends.place import Wanted
from coupled_sampling.backends.trt import opening as tensorrt
from coupled_sampling.bundles.opening import open_bundle
from coupled_sampling.corrections import LowRank
from coupled_sampling.errors import InvalidArgument
from coupled_sampling.methods import find_method
from standins.cuda_emulation.comparison import (
    PROMPTS,
    BothSteps,
    Float32Table,
    NormalWorld,
    compare,
    compare_on,
    exact_correction,
    tie_ridden_logits,
    window_of,
)
from standins.cuda_emulation.emulation import PLAIN, SANITIZED, THREADED, DeviceProvider, EmulationLauncher
from standins.schedules import ROWS, LosesWhenTold, run_schedule
from standins.table_graphs import VOCAB, Table, table

RECYCLING = ["sjd", "scd-maximal", "scd-gumbel", "scd-match"]


class Tied(NormalWorld):
    """Logits with ties, forbidden tokens, one candidate only, equal tokens, and far from zero: by the token before."""

    def __init__(self, vocab_size, batch_size=2):
        super().__init__(vocab_size, batch_size)
        self._table = np.concatenate([tie_ridden_logits(vocab_size, 3), tie_ridden_logits(vocab_size, 4)[:1]])


class Half(NormalWorld):
    def forward(self, tokens, start):
        return super().forward(tokens, start).astype(np.float16)


class Anything:
    """A corrector of somebody's own."""

    lags = (1,)

    def correct(self, logits, changes):
        return logits


@pytest.fixture(scope="module")
def launcher():
    with EmulationLauncher(SANITIZED) as one:
        yield one


@pytest.fixture(scope="module")
def plain():
    with EmulationLauncher(PLAIN) as one:
        yield one


@pytest.mark.cases(2)
@pytest.mark.parametrize("method", RECYCLING)
def test_tokens_and_counts_are_those_of_host_step(launcher, method):
    """Windows of many widths, five prompts in two or three rows, and warps of every kind among them."""
    for lags, size, window in (((1,), 5, 2), ((1, 4), 30, 12), ((2, 1, 3), 5, 33)):
        settings = {"corrections": exact_correction(size, lags), "window": window, "drafting": "random", "length": 20}
        both = compare_on(launcher, lambda size=size: Float32Table(size, 3), method, **settings)
        assert both.differences == [], (lags, size)


@pytest.mark.parametrize("method", RECYCLING)
def test_ties_stay_ties(plain, method):
    """Corrections that treat many tokens alike, so that top-k, top-p, min-p and greedy rows meet ties of corrected logits."""
    settings = {"corrections": exact_correction(40, (1, 4), rank=1, seed=1), "window": 9, "drafting": "random"}
    warps = [Sampling(top_k=4), Sampling(0.7, top_p=0.5), Sampling(min_p=1.0), Sampling(0), Sampling(1e6, top_p=0.3)]
    both = compare_on(plain, lambda: Tied(40), method, sampling=warps, **settings)
    assert both.differences == []


@pytest.mark.parametrize("method", ["scd-maximal", "scd-match"])
def test_large_vocabularies_and_fitted_tables(plain, method):
    """Three chunks of a slot, the last one short and odd; numbers that are rounded; logits of half precision."""
    random = np.random.default_rng(0)
    neighbours = 0.3 * random.standard_normal((2, 9002, 32))
    tables = random.standard_normal(9001), 0.3 * random.standard_normal((9001, 32)), neighbours
    corrections = LowRank((1, 4), *tables, np.array([1, 0.6, 0.8, 0.5]), np.array([0, 0.3, 0.1, 0.4]))
    settings = {"window": 6, "steps": 6, "sampling": [Sampling(), Sampling(0.7, top_k=900, top_p=0.9)]}
    both = compare_on(plain, lambda: Half(9001, 2), method, corrections=corrections, dtype="float16", **settings)
    assert both.differences == []


@pytest.mark.parametrize("method", RECYCLING)
def test_guided_logits_are_corrected(plain, method):
    def world():
        return Float32Table(20, 6, zeros=0)

    corrections = exact_correction(20, (1, 4), seed=2)
    settings = {"length": 20, "window": 6, "seed": 7, "drafting": "repeat", "sampling": Sampling(0.8, top_k=9)}
    oracle = HostStep(GuidedProvider(world(), 2.5, [0, 1, 1, 0]), method, corrections=corrections)
    expected = generate(oracle, PROMPTS[:3], **settings)
    provider = DeviceProvider(world(), plain)
    guided = {"guidance": 2.5, "unconditional": [0, 1, 1, 0]}
    kernels = KernelStep(provider, method, plain, corrections=corrections, **guided)
    found = generate(kernels, PROMPTS[:3], **settings)
    kernels.release()
    provider.close()
    assert [row.tolist() for row in found.tokens] == [row.tolist() for row in expected.tokens]
    assert [trace.nfe for trace in found.traces] == [trace.nfe for trace in expected.traces]


def test_match_gives_the_tokens_of_ar_whatever_the_table(plain):
    world, settings = Float32Table(12, 2), {"length": 40, "seed": 3, "sampling": Sampling(0.9, top_k=7)}
    expected = generate(Float32Table(12, 2), [[0], [3, 1]], method="ar", **settings)
    provider, passes = DeviceProvider(world, plain), []
    for corrections in (None, exact_correction(12, (1, 2), seed=5)):
        step = KernelStep(provider, "scd-match", plain, corrections=corrections)
        found = generate(step, [[0], [3, 1]], window=8, drafting="random", **settings)
        assert [row.tolist() for row in found.tokens] == [row.tolist() for row in expected.tokens]
        passes.append([trace.nfe for trace in found.traces])
        step.release()
    provider.close()
    assert passes[0] != passes[1], "the table changed nothing"


@pytest.mark.filterwarnings("ignore:overflow")
@pytest.mark.parametrize("method", RECYCLING)
def test_drafts_end_where_no_corrected_law_can_be_made(launcher, method):
    """A large enough correction overflows. What is committed never does, since it is not corrected."""
    settings = {"corrections": overflowing(), "window": 8, "drafting": "random"}
    both = compare_on(launcher, lambda: Float32Table(6, 3, zeros=0), method, **settings)
    assert both.differences == []
    assert both.closed > 20
    assert both.failed == 0


def overflowing():
    """Of six tokens one, as a new neighbour, makes all logits infinite."""
    tables = exact_correction(6, (1,))
    tables.neighbours[0, 2] = 3e38
    tables.basis[:] = np.maximum(np.abs(tables.basis), 0.5) * 8
    return tables


class Losing(LosesWhenTold, BothSteps):
    """Both steps, whose outcome may be lost."""

    def report(self):
        return self


@pytest.mark.filterwarnings("ignore:two requests under way")
@pytest.mark.parametrize("method", ["scd-maximal", "scd-gumbel"])
def test_the_laws_of_redrafts_follow_whatever_the_loop_does(plain, method):
    """Requests come and go, windows change, outcomes are lost and steps done again."""
    logits, corrections = table(3, forbidden=0), exact_correction(VOCAB, (1, 3))
    provider = DeviceProvider(Table(logits, ROWS), plain)
    kernels = KernelStep(provider, method, plain, corrections=corrections)
    both = Losing(HostStep(Table(logits, ROWS), method, corrections=corrections), kernels)
    run_schedule(both, provider, 2, 80)
    kernels.release()
    provider.close()
    assert both.draws > 150
    assert both.differences == []


@pytest.mark.parametrize("order", [1, 2])
def test_the_order_of_threads_does_not_matter(order):
    settings = {"corrections": exact_correction(150, (1, 4)), "window": 16, "length": 20, "prompts": PROMPTS[:2]}
    assert compare(lambda: Float32Table(150, 3), "scd-maximal", PLAIN, order=order, **settings).differences == []


@pytest.mark.long
def test_real_threads_do_not_race():
    """Thresholds are left out: their phases are many, and those of other kernels, where they are tried."""
    found = []
    for options, corrections in ((PLAIN, None), (PLAIN, exact_correction(20)), (THREADED, exact_correction(20))):
        with EmulationLauncher(options) as launcher:
            provider = DeviceProvider(Float32Table(20, 1, zeros=0), launcher)
            kernels = KernelStep(provider, "scd-maximal", launcher, corrections=corrections)
            found.append(kernels.step(window_of([0, 1, 2, 3])).tokens.tolist())
            kernels.close()
            provider.close()
    assert found[0] != found[1] == found[2]


def test_tables_are_uploaded_once_and_only_where_they_are_used():
    corrections = exact_correction(30, (1, 4))
    for method, sweeps in (("scd-gumbel", True), ("speculative", False), ("ar", False)):
        with EmulationLauncher(PLAIN) as launcher:
            provider = DeviceProvider(NormalWorld(30), launcher)
            kernels = KernelStep(provider, method, launcher, corrections=corrections)
            tables = packed(corrections).nbytes if sweeps else 0
            for slots in (1,) if method == "ar" else (8, 5, 8):
                before = launcher.sent
                kernels.step(window_of([0] * slots))
                assert launcher.sent - before == 4 * slots * 30 + ROW.itemsize + 8 * slots + tables
                tables = 0
            assert launcher.launched.count("sweep") == 3 * sweeps
            kernels.close()
            provider.close()


def test_what_kernels_cannot_correct_by_is_refused():
    with EmulationLauncher(PLAIN) as launcher:
        for wrong, message in (
            (Anything(), "corrections is a Anything, which runs on the host.* use step='host'"),
            (exact_correction(31), "corrections is for 31 tokens, expected 30"),
            ("fitted", "corrections is 'fitted'"),
        ):
            with pytest.raises(InvalidArgument, match=message):
                KernelStep(NormalWorld(30), "sjd", launcher, corrections=wrong)
    assert low_rank(exact_correction(30), 30).vocab_size == 30


def test_back_ends_refuse_what_their_steps_cannot_correct():
    bundle = open_bundle("fashion")

    def refusal(backend, step, corrections, method="scd-match"):
        name = "cuda" if backend is cuda else "tensorrt"
        wanted = Wanted(bundle, Place(name), 1, find_method(method), step, corrections=corrections)
        return backend.takes(wanted) or ""

    fitted = exact_correction(259)
    for backend in (cuda, tensorrt):
        assert refusal(backend, "host", Anything()) == refusal(backend, "kernels", fitted) == ""
        assert "use step='host', or a LowRank" in refusal(backend, "kernels", Anything())
    assert "use step='kernels' with a LowRank, or step='host'" in refusal(tensorrt, "graph", fitted)
    assert "corrections" not in refusal(tensorrt, "graph", None)


BROKEN = {
    "old and new exchanged": (
        "sum += @;",
        "corrections.of(k, left.tokens[at])[i] - corrections.of(k, left.draft(at))[i]",
        "corrections.of(k, left.draft(at))[i] - corrections.of(k, left.tokens[at])[i]",
    ),
    "neighbours one further to the left": (
        "at = int(@);\n                sum",
        "left.position - corrections.lags[k]",
        "left.position - corrections.lags[k] - (left.position - corrections.lags[k] > left.first)",
    ),
    "changes of the nearest neighbour only": (
        "if (@) found |=",
        "has_changed(corrections.lags[k])",
        "(k == 0 && has_changed(corrections.lags[k]))",
    ),
    "scales of another set of neighbours": (
        "const float stale = @, ",
        "corrections.stale_scale[changed]",
        "corrections.stale_scale[1]",
    ),
    "no unigram law": ("logits.at(token) + @ + predicted;", "own * corrections.unigram[token]", "0"),
    "the thresholds of the law from before": (
        "place.site->law = @;\n        place.site->lead",
        "law",
        "place.site->law",
    ),
    "the law from before is recorded": (
        "            @;\n            if (draw.way == KEEPS)",
        "laws.keep(token, end, four)",
        "(gridDim.x > 1 ? laws.keep(token, end, four) : void())",  # `sweep` has one block for a row
    ),
    "the draft is tested by the law from before": (
        "accepted = tests && @;",
        "is_accepted(law, logits, decision, row, slots, slot, draft)",
        "place.site->accepted",
    ),
    "the race goes on from its winner of before": (
        "place.site->lead = @;\n        place.site->limit",
        "0",
        "place.site->lead",
    ),
    "the first redraft is left out": (
        "redrafts = @, closed",
        "slots.first + int(decision.committed[blockIdx.y])",
        "slots.first + int(decision.committed[blockIdx.y]) + 1",
    ),
    "drafts go on behind a slot without a law": ("i < @; i += THREADS) tokens", "closed", "position + 1"),
}
"""Where something stands in the source, what, and what a bug has in its place."""


def differences(order):
    """Of two methods and two tables with all bugs in one build, of which ``order`` chooses one: it is compiled once for all."""
    pieces = tuple(
        (where.replace("@", right), where.replace("@", f"(turn_order == {number} ? {wrong} : {right})"))
        for number, (where, right, wrong) in enumerate(BROKEN.values(), 10)
    )
    found = []
    with EmulationLauncher((*PLAIN, "-O0"), replacement=pieces, order=order) as launcher:
        for method in ("scd-maximal", "scd-gumbel"):
            for size, corrections in ((30, exact_correction(30, (1, 4))), (6, overflowing())):
                settings = {"corrections": corrections, "window": 9, "drafting": "random", "prompts": PROMPTS[:2]}
                world = Float32Table(size, zeros=0)
                found += compare_on(launcher, lambda world=world: world, method, steps=8, **settings).differences
    return found


@pytest.mark.cases(3)
@pytest.mark.filterwarnings("ignore:overflow")
@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_sweep_is_noticed(name):
    """Negative control."""
    assert differences(10 + list(BROKEN).index(name))


@pytest.mark.filterwarnings("ignore:overflow")
def test_the_build_with_the_bugs_is_right_where_none_is_chosen():
    assert differences(0) == []

"""Windows with branches, and candidates, in the CUDA kernels, emulated on the CPU: what HostStep gives. Nothing ran on a GPU."""

import numpy as np
import pytest

from coupled_sampling import HostStep, Window, generate
from coupled_sampling.backends.cuda.kernel_step import KernelStep
from coupled_sampling.backends.cuda.kernels import ROW
from coupled_sampling.contracts import RowInfo, TreeSteps
from coupled_sampling.errors import InvalidArgument
from standins.cuda_emulation.comparison import NormalWorld, exact_correction, window_of
from standins.cuda_emulation.emulation import PLAIN, SANITIZED, THREADED, DeviceProvider, EmulationLauncher
from standins.cuda_emulation.trees import SHAPES, AnyShape, BothOfTrees, DeviceTrees, TreeWorld, compare_trees_on


@pytest.fixture(scope="module")
def launcher():
    with EmulationLauncher(SANITIZED) as one:
        yield one


@pytest.fixture(scope="module")
def plain():
    with EmulationLauncher(PLAIN) as one:
        yield one


@pytest.mark.parametrize("method", ["scd-match", "speculative-match"])
def test_tokens_counts_and_candidates_are_those_of_host_step(launcher, method):
    """Trees of random shapes and best-first ones, five prompts in three rows, and warps of every kind."""
    for branches in (AnyShape(6), 5):
        both = compare_trees_on(launcher, lambda: TreeWorld(5), branches=branches, method=method)
        assert both.differences == []
        assert both.trees > 10
    assert both.ranked > 50


def test_vocabularies_of_more_than_a_block(plain):
    both = compare_trees_on(plain, lambda: TreeWorld(300, zeros=0.5), branches=AnyShape(7, candidates=20), steps=12)
    assert both.differences == []
    assert both.trees > 8


def test_a_tree_may_have_more_slots_than_a_block_threads(plain):
    both = compare_trees_on(plain, lambda: TreeWorld(4, 1), branches=AnyShape(120), window=150, steps=8)
    assert both.differences == []
    assert both.beside > 1


def test_branches_are_walked_and_the_tokens_are_those_of_ar(plain):
    world, settings = TreeWorld(5, 2), {"length": 40, "seed": 3, "sampling": SHAPES[0]}
    expected = generate(TreeWorld(5, 2), [[0], [3, 1]], method="ar", **settings)
    provider, passes = DeviceTrees(world, plain), []
    for window, branches in ((4, 0), (16, 12)):
        step = KernelStep(provider, "scd-match", plain)
        found = generate(step, [[0], [3, 1]], window=window, branches=branches, **settings)
        assert [row.tolist() for row in found.tokens] == [row.tolist() for row in expected.tokens]
        passes.append(sum(trace.nfe for trace in found.traces))
        step.release()
    provider.close()
    assert passes[1] < passes[0]


def test_drafts_end_where_no_law_can_be_made_and_texts_only_fail_there(launcher):
    """On the path, on branches beside it, and at the end of a walk."""
    both = compare_trees_on(launcher, lambda: TreeWorld(5, dead=0.06, zeros=0), branches=AnyShape(8), length=50)
    assert both.differences == []
    assert both.closed > 10
    assert both.failed >= 2


@pytest.mark.parametrize(("size", "lags", "dead"), [(5, (1, 4), 0.0), (5, (2, 1, 3), 0.05), (300, (1,), 0.0)])
def test_redrafts_of_the_path_are_corrected_by_what_was_committed(plain, size, lags, dead):
    """Tokens of branches among it; candidates are those of the corrected laws."""
    settings = {"branches": AnyShape(6), "corrections": exact_correction(size, lags), "steps": 10 if size > 5 else None}
    both = compare_trees_on(plain, lambda: TreeWorld(size, dead=dead), **settings)
    assert both.differences == []
    assert both.beside or size > 5


def test_candidates_come_without_branches_too(plain):
    """In the first step, whose window is a chain; 9,001 tokens are 36 groups of four for each of 64 threads."""
    for method in ("scd-match", "speculative-match", "scd-maximal"):
        world = NormalWorld(9001)
        provider = DeviceProvider(world, plain)
        kernels, first = KernelStep(provider, method, plain), len(plain.launched)
        window = window_of([0, 1, 2, 3])._replace(candidates=5)
        received = plain.received
        both = BothOfTrees(HostStep(world, method), kernels)
        both.step(window)
        assert both.differences == []
        assert both.ranked > 0
        assert plain.launched[first:] == ["measure", "settle", "target_laws", "decide", "rank"]
        assert plain.received - received == 4 * (12 + 12 * 5) + 8
        assert not kernels.step(window_of([0, 1, 2, 3])).candidates
        kernels.release()
        provider.close()


def test_all_tokens_can_be_wanted(plain):
    """Also those that cannot be: they come last, each once."""
    provider = DeviceProvider(TreeWorld(9, 1, zeros=0.6), plain)
    kernels = KernelStep(provider, "scd-match", plain)
    outcome = kernels.step(window_of([0, 1, 2, 3])._replace(candidates=100))
    tokens, scores = outcome.candidates[0]
    assert [sorted(row) for row in tokens.tolist()] == [[*range(9)]] * len(tokens)
    assert len(tokens) == 4 - outcome.committed[0]
    assert np.isinf(scores).any()
    kernels.release()
    provider.close()


def tree_window(parents, tokens, known, recycled, draws):
    """Rows of one width; what stands behind known and recycled slots is branches, but where the parent is -1."""
    parents, count = np.array(parents), len(tokens)
    known, recycled = np.array(known), np.array(recycled)
    branches = (parents >= 0).sum(axis=1) + 1 - known - recycled
    rows = [RowInfo(b, 2, SHAPES[0]) for b in range(count)]
    zeros, contexts = np.zeros(count, np.int64), [np.array(row) for row in tokens]
    window = Window(np.array(tokens), zeros, known, recycled, zeros, np.array(draws), zeros, rows, contexts, rows)
    return window._replace(fresh_laws=[None] * count, branches=branches, parents=parents, candidates=2)


RAGGED = tree_window(
    parents=[[-1, 0, 1, 1, 3, 0], [-1, 0, 1, 2, -1, -1], [-1, 0, 0, 0, 0, 0]],
    tokens=[[0, 1, 2, 3, 1, 2], [2, 0, 1, 1, 0, 0], [1, 0, 1, 2, 2, 0]],
    known=[1, 3, 1],
    recycled=[2, 1, 1],
    draws=[True, False, True],
)


def test_rows_of_other_shapes_and_rows_that_decide_nothing(launcher):
    provider = DeviceTrees(TreeWorld(4, zeros=0), launcher)
    kernels = KernelStep(provider, "scd-match", launcher)
    both = BothOfTrees(HostStep(TreeWorld(4, zeros=0), "scd-match"), kernels)
    both.step(RAGGED)
    assert both.differences == []
    sent, received, first = launcher.sent, launcher.received, len(launcher.launched)
    outcome = kernels.step(RAGGED)
    assert outcome.committed[1] == 0
    assert not outcome.tokens[1].any()
    assert launcher.launched[first:] == ["measure", "settle", "target_laws", "walk", "rank"]
    assert launcher.received - received == 3 * (8 + 6 * (12 + 12 * 2))
    assert launcher.sent - sent == 3 * (ROW.itemsize + 6 * (4 * 4 + 24))
    kernels.release()
    provider.close()


class Certain:
    """Token 1 is certain after as many slots as are told; after the others nothing can follow, of each for another reason."""

    vocab_size, batch_size, max_length, max_columns = 3, 1, 20, 20

    def __init__(self, slots):
        self._slots = slots

    def forward(self, tokens, start):
        raise AssertionError("windows with branches go to forward_tree")

    def forward_tree(self, tokens, start, parents, rows):
        logits = np.zeros((*tokens.shape, 3), np.float32)
        logits[:, :] = [-np.inf, 0, -np.inf]
        logits[:, self._slots :] = np.array([np.nan, -np.inf, np.inf])[: tokens.shape[1] - self._slots, None]
        return logits


def both_on(launcher, slots, window):
    """What both steps make of ``window`` in a `Certain` world, and HostStep's outcome."""
    provider = DeviceTrees(Certain(slots), launcher)
    kernels = KernelStep(provider, "scd-match", launcher)
    both = BothOfTrees(HostStep(Certain(slots), "scd-match"), kernels)
    outcome = both.step(window)
    kernels.release()
    provider.close()
    return both, outcome


def test_a_text_that_fails_is_told_what_is_wrong_where_it_ended(plain):
    """Beside two siblings that were refused."""
    window = tree_window([[-1, 0, 0, 0]], [[0, 2, 1, 0]], known=[1], recycled=[1], draws=[True])
    both, outcome = both_on(plain, 1, window)
    assert both.differences == []
    assert "for position 2 hold nothing but -inf" in str(outcome.failures[0])


BEYOND = tree_window([[-1, 0, 0, 2, 3]], [[0, 2, 1, 1, 1]], known=[1], recycled=[1], draws=[True])


def test_a_branch_may_reach_further_than_the_path(plain):
    both, outcome = both_on(plain, 5, BEYOND)
    assert both.differences == []
    assert outcome.committed.tolist() == [4]


def test_what_cannot_be_done_is_refused_by_name(plain):
    world = TreeWorld(4, 2)
    provider = DeviceTrees(world, plain)

    def refusal(method, inner=provider, **settings):
        return KernelStep(inner, method, plain, **settings).refuses_branches

    assert isinstance(KernelStep(provider, "sjd", plain), TreeSteps)
    assert refusal("scd-match") is None
    assert refusal("speculative-match") is None
    assert (
        refusal("sjd")
        == 'sjd does not accept drafts by "match", which branches are for; use scd-match or speculative-match'
    )
    assert "ar does not" in refusal("ar")
    assert "no branches with guidance" in refusal("scd-match", guidance=2.0, unconditional=[0])
    assert "NormalWorld cannot forward windows that are trees" in refusal("scd-match", NormalWorld(30))
    plain.launched.clear()
    with pytest.raises(InvalidArgument, match="window has parents, but sjd does not"):
        KernelStep(provider, "sjd", plain).step(RAGGED.part(range(1)))
    wrong = RAGGED.part(range(1))
    with pytest.raises(InvalidArgument, match="parent of row 0, slot 1 is 1"):
        KernelStep(provider, "scd-match", plain).step(wrong._replace(parents=np.array([[-1, 1, 1, 1, 3, 0]])))
    assert plain.launched == []
    assert KernelStep(provider, "scd-match", plain).max_columns == world.max_columns
    assert KernelStep(NormalWorld(30), "scd-match", plain).max_columns == 300


@pytest.mark.parametrize("order", [1, 2])
def test_the_order_of_threads_does_not_matter(order):
    with EmulationLauncher(PLAIN, order=order) as launcher:
        settings = {"branches": AnyShape(6), "corrections": exact_correction(5, (1, 4)), "steps": 12}
        assert compare_trees_on(launcher, lambda: TreeWorld(5), **settings).differences == []


SMALL = tree_window([[-1, 0, 1, 0]], [[0, 1, 2, 3]], known=[1], recycled=[2], draws=[True])


def test_real_threads_do_not_race():
    found = []
    for options in (PLAIN, THREADED):
        with EmulationLauncher(options) as launcher:
            provider = DeviceTrees(TreeWorld(4, 1, zeros=0), launcher)
            kernels = KernelStep(provider, "scd-match", launcher)
            outcome = kernels.step(SMALL)
            found.append((outcome.tokens.tolist(), [each.tokens.tolist() for each in outcome.candidates.values()]))
            kernels.close()
            provider.close()
    assert found[0] == found[1]


BROKEN = {
    "noise of the slot": ("start + (@) + 1;", "decision.depth ? decision.depth[index] : slot", "slot"),
    "siblings of a slot without a law": (
        "decision.parents ? @ : slot < row.closed",
        "sites[slot].law.usable()",
        "slot < 3",
    ),
    "the branch of a draft that does not stand": (
        "to[slot] = {from[own.above].above, @};",
        "own.stands && from[own.above].stands",
        "own.stands",
    ),
    "the longest path of any drafts": ("if (@ && beats", "from[slot].stands", "slots.decides(slot)"),
    "the first path that ends": ("Scored other = {@, slot};", "float(decision.depth[place.index + slot])", "0.0f"),
    "redrafts of the path behind any walk": ("for (; @; tip", "child[tip] < width", "false"),
    "the last child goes on": ("parents[slot]], @);", "slot", "width - 1"),
    "positions end with the path": (
        "closed = place.row->end = @;",
        "reach < slots.end ? slots.end : reach + 1",
        "slots.end",
    ),
    "counted by slots": ("place.batch_row] = @;", "last - slots.first + 1", "end - slots.first + 1"),
    "neighbours of the path for any slot": ("followed(@ && position", "decision.parents", "nullptr"),
    "corrected as the path's own slot": ("slot = @ ? whole", "decision.parents", "nullptr"),
    "candidates of the path's own slot": ("place(decision, @ ? here", "decision.parents", "nullptr"),
    "a candidate twice": ("if (@ || lead <= best) continue;", "lead >= bound", "lead > bound"),
    "a share is searched once": ("shared.best[share] = @;", "shared.next", "0"),
    "candidates of the laws of the pass": ("= @ ? Logits(place.corrected)", "place.site->corrected", "false"),
    "products for scores": ("product > 0 ? @ : -INF", "logf(product)", "product"),
    "an inexact ranking": ("if (product > NOTHING) least = @;", "product * (1 - BAND)", "1.5f * product"),
}
"""Where something stands in the source, what, and what a bug has in its place."""


def differences(order):
    """With all bugs in one build, of which ``order`` chooses one: it is compiled once for all."""
    pieces = tuple(
        (where.replace("@", right), where.replace("@", f"(turn_order == {number} ? {wrong} : {right})"))
        for number, (where, right, wrong) in enumerate(BROKEN.values(), 10)
    )
    found = []
    with EmulationLauncher((*PLAIN, "-O0"), replacement=pieces, order=order) as launcher:
        for size, corrections in ((5, None), (5, exact_correction(5, (1, 2))), (40, exact_correction(40))):
            settings = {"branches": AnyShape(8, candidates=5), "corrections": corrections, "steps": 8}
            found += compare_trees_on(launcher, lambda size=size: TreeWorld(size, 2), **settings).differences
        found += both_on(launcher, 5, BEYOND)[0].differences
    return found


@pytest.mark.cases(5)
@pytest.mark.parametrize("name", BROKEN)
def test_broken_kernels_of_trees_are_noticed(name):
    """Negative control."""
    assert differences(10 + list(BROKEN).index(name))


def test_the_build_with_the_bugs_is_right_where_none_is_chosen():
    assert differences(0) == []

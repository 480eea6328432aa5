"""Step graphs for windows with branches, against HostStep: tokens, counts and candidates, whatever the trees look like."""

import numpy as np
import pytest

from coupled_sampling import Decoder, HostStep, Request, Sampling
from coupled_sampling.backends.ort.step import OrtStep
from coupled_sampling.branching import Branches
from coupled_sampling.contracts import RowInfo, Window
from coupled_sampling.errors import InvalidArgument
from coupled_sampling.export.graphs.decision import decision_graph
from coupled_sampling.export.graphs.step import step_graph
from coupled_sampling.export.graphs.tree_window import POSITION, SEES
from coupled_sampling.trees import Tree
from standins.both_steps import Both
from standins.correctors import random_low_rank
from standins.table_graphs import (
    FAULTS,
    VOCAB,
    WIDE,
    Table,
    finish,
    session_of,
    table,
    tree_model,
    window_model,
    with_dead_states,
)

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

SAMPLINGS = [Sampling(), Sampling(0.7), Sampling(0), Sampling(1.3)]
WARPED = [Sampling(top_k=3), Sampling(0.8, top_p=0.6), Sampling(min_p=0.2), Sampling(1.2, 4, 0.8, 0.05), Sampling(0)]


class AnyTree:
    """Branches of any shape: from every slot, beside and behind each other, twice the same, none at all; many of them right."""

    candidates = 5

    def __init__(self, most):
        self.most = most

    def branches(self, context):
        drafts = len(context.path)
        random = np.random.default_rng([context.committed, drafts, int(context.tokens.sum())])
        depths, parents, tokens = list(range(drafts)), [], []
        for i in range(int(random.integers(0, context.most + 1))):
            parent = int(random.integers(-1, drafts + i)) if random.random() < 0.5 else drafts + i - 1
            depth = 0 if parent < 0 else depths[parent] + 1
            if depth >= context.reach:
                break
            known = () if context.candidates is None else context.candidates.tokens
            guess = int(random.integers(0, VOCAB))
            if depth < len(known) and random.random() < 0.8:
                guess = int(known[depth][random.integers(0, known.shape[1])])
            depths.append(depth)
            parents.append(parent)
            tokens.append(guess)
        return Branches(np.array(parents, int), np.array(tokens, int))


def tree_step(logits, rows=1, corrections=None, **variant):
    model = step_graph(tree_model(logits), "scd-match", corrected=corrections is not None, tree=True, **variant)
    return OrtStep(session_of(model), rows, corrections=corrections)


def requests_of(count, samplings, length=30):
    """Ragged rows, prompts of several tokens, settings that differ between neighbouring rows."""
    return [
        Request([1 + i % 3] * (1 + i % 4), length - i, seed=i, sequence=i, sampling=samplings[i % len(samplings)])
        for i in range(count)
    ]


@pytest.mark.parametrize(
    ("size", "warped", "lags"),
    [(VOCAB, False, (2, 1, 50)), (WIDE, False, None), (VOCAB, True, None), (WIDE, True, (1, 3))],
)
def test_tokens_counts_and_candidates_are_those_of_host_step(size, warped, lags):
    logits, corrections = table(1, size), None if lags is None else random_low_rank(0, size, lags)
    ours = tree_step(logits, 3, corrections, warped=warped)
    both = Both(ours, HostStep(Table(logits, 3), "scd-match", corrections=corrections))
    requests = requests_of(5, WARPED if warped else SAMPLINGS, 20)
    finish(Decoder(both, window=14, branches=AnyTree(8), drafting="repeat"), requests)
    assert both.compared > 200
    assert both.ranked > 150


def test_a_branch_may_be_followed_beyond_the_end_of_the_path():
    logits = table(3, forbidden=0.7)
    both = Both(tree_step(logits), HostStep(Table(logits), "scd-match"))
    finish(Decoder(both, window=12, branches=AnyTree(10), drafting="repeat"), requests_of(2, [Sampling(0.3)], 50))
    assert both.beyond > 3


@pytest.mark.parametrize(("fault", "reachable"), [*((fault, 0.02) for fault in FAULTS), (FAULTS[0], 0.0)])
def test_drafts_end_where_no_law_can_be_made_and_only_what_is_decided_there_fails(fault, reachable):
    logits = with_dead_states(table(2), fault, reachable)
    corrections = random_low_rank(0, VOCAB, (1, 3)) if fault in FAULTS[1::2] else None
    both = Both(tree_step(logits, 2, corrections), HostStep(Table(logits, 2), "scd-match", corrections=corrections))
    finish(Decoder(both, window=12, branches=AnyTree(6), drafting="random:4:3"), requests_of(7, [Sampling()], 24))
    assert both.closed > 40
    assert bool(both.failed) == (reachable > 0)


def test_too_few_logits_for_the_law_of_a_branch_are_noticed():
    """All of the path's laws are sharp. After token 3, which only branches hold, they are flat."""
    logits = np.zeros((WIDE, WIDE, WIDE), np.float32)
    logits[..., 4] = 9
    logits[:, 3] = 0.01 * np.arange(WIDE)
    ours = tree_step(logits, warped=True)
    ours._tensors._nucleus = 2
    window = one_window([1, 4, 3], [-1, 0, 0], 1, Sampling(top_p=0.9))
    Both(ours, HostStep(Table(logits), "scd-match")).step(window)
    assert ours._tensors._nucleus > 2


def test_a_row_that_is_decided_at_a_dead_slot_beyond_the_path_fails_there():
    logits = np.full((VOCAB, VOCAB, VOCAB), -np.inf, np.float32)
    logits[:, 1, 2] = logits[:, 2, 6] = 0  # and after 6 comes nothing
    both = Both(tree_step(logits), HostStep(Table(logits), "scd-match"))
    outcome = both.step(one_window([1, 2, 6], [-1, 0, 1], 0, Sampling()))
    assert outcome.tokens.tolist() == [[2, 6, -1]]
    assert both.failed


def one_window(tokens, parents, path, sampling):
    """A known token, so many drafts, and branches."""
    one = np.ones(1, np.int64)
    return Window(
        np.array([tokens]), 0 * one, one, 0 * one, path * one, one == 1, 0 * one, [RowInfo(0, 0, sampling)],
        [np.array(tokens[: 1 + path])], [None], candidates=2, branches=(len(tokens) - 1 - path) * one,
        parents=np.array([parents]),
    )  # fmt: skip


def feeds_of(rows, width, noise):
    """A decision graph's inputs for random trees, rows that are idle among them."""
    random = np.random.default_rng(3)
    logits = (2 * random.standard_normal((rows, width, WIDE))).astype(np.float32)
    parents = np.stack([[-1] + [int(random.integers(-1, j)) for j in range(1, width)] for _ in range(rows)])
    known, path = random.integers(1, 3, rows), random.integers(3, 8, rows)
    for b in range(rows):
        parents[b, : known[b] + path[b]] = np.arange(-1, known[b] + path[b] - 1)
        parents[b, known[b] + path[b] :] = np.maximum(parents[b, known[b] + path[b] :], known[b] - 1)
    start, tree = random.integers(0, 40, rows), Tree.of(parents)
    ring = (1 / random.exponential(size=(rows, 60, WIDE))).astype(np.float32)
    position = start[:, None] + tree.depth
    of_slots = np.take_along_axis(ring, (position + 1)[..., None] % 60, axis=1)
    own = np.argmax(np.exp(logits) * of_slots, axis=2)
    ids = np.where(random.random((rows, width)) < 0.6, np.take_along_axis(own, np.maximum(parents, 0), 1), 1)
    feeds = {
        "logits": logits, "input_ids": ids, "start": start, "known": known, "recycled": path, "fresh": 0 * path,
        "draws": np.arange(rows) % 4 != 3, "temperature": np.ones(rows, np.float32), "parents": parents,
        "branches": width - known - path, SEES: tree.sees, POSITION: position,
    }  # fmt: skip
    if noise == "window":
        return feeds | {"noise": of_slots}
    return feeds | {
        "past_noise": ring,
        "noise": ring[:, 50:51],
        "noise_start": np.full(rows, 50),
        "best_count": np.array([16]),
    }


def test_noise_for_each_slot_is_that_of_its_position_and_gives_the_same():
    """The graph for TensorRT: a fixed number of candidates, ranked everywhere."""
    made = {}
    for noise in ("ring", "window"):
        session = session_of(decision_graph("scd-match", WIDE, noise=noise, tree=True))
        names = ["tokens", "committed", "best_tokens", "best_scores", "highest_logits"]
        made[noise] = session.run(names, feeds_of(8, 20, noise))
    tokens, committed, best, scores, highest = made["ring"]
    assert (committed == 0).tolist() == [False, False, False, True] * 2
    assert committed.max() > 2
    np.testing.assert_array_equal(tokens, made["window"][0])
    np.testing.assert_array_equal(committed, made["window"][1])
    np.testing.assert_array_equal(highest, made["window"][4])
    feeds = feeds_of(8, 20, "ring")
    for b in range(8):
        redrafts = slice(feeds["known"][b] - 1 + committed[b], feeds["known"][b] + feeds["recycled"][b])
        if committed[b]:
            np.testing.assert_array_equal(best[b, redrafts], made["window"][2][b, redrafts])
            np.testing.assert_array_equal(scores[b, redrafts], made["window"][3][b, redrafts])
            np.testing.assert_array_equal(best[b, redrafts, 0], tokens[b, redrafts])


def test_windows_without_branches_are_chains():
    """Of a graph for trees; what reads prompts is one."""
    logits = table(4, WIDE)
    both = Both(tree_step(logits, 2), HostStep(Table(logits, 2), "scd-match"))
    finish(Decoder(both, window=9, drafting="repeat", prompt_chunk=3), requests_of(4, SAMPLINGS))
    assert both.compared > 200


def test_what_is_not_for_trees_is_refused():
    with pytest.raises(InvalidArgument, match="tree is True, but method is 'sjd', expected scd-match"):
        decision_graph("sjd", VOCAB, tree=True)
    logits = table(0)
    with pytest.raises(InvalidArgument, match="tree is True, but window_model is 'table', which takes no trees"):
        step_graph(window_model(logits), "scd-match", tree=True)
    with pytest.raises(InvalidArgument, match="tree is False, but window_model is 'tree_table', which takes trees"):
        step_graph(tree_model(logits), "scd-match")
    step = OrtStep(session_of(step_graph(window_model(logits), "scd-match")))
    with pytest.raises(InvalidArgument, match="this step graph is not one for trees; open the model with trees=True"):
        Decoder(step, window=8, branches=AnyTree(3))
    rejecting = OrtStep(session_of(step_graph(window_model(logits), "sjd")))
    assert "sjd accepts drafts by rejection" in rejecting.refuses_branches

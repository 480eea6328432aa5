"""Rules for branches: the likeliest ones are the likeliest, and what no rule may propose is refused by name."""

import itertools
import re

import numpy as np
import pytest

from coupled_sampling import Decoder, HostStep, Request, generate
from coupled_sampling.branching import BestFirst, BranchContext, Branches, Branching, checked_branches, find_branching
from coupled_sampling.contracts import Candidates
from coupled_sampling.errors import InvalidArgument
from coupled_sampling.testing import TableProvider, random_table
from standins.correctors import random_low_rank

V = 6


class World:
    """Candidates of a few positions, a path, and what probability `BestFirst` has for a token behind another, by its words."""

    def __init__(self, seed, *, corrected=False, foreign=False, beyond=0):
        self.random = random = np.random.default_rng([seed, corrected, foreign, beyond])
        self.depth, self.kept = int(random.integers(1, 4)), 3
        self.tokens = np.array([random.permutation(V)[: self.kept] for _ in range(self.depth)])
        self.scores = -np.sort(-random.gumbel(size=self.tokens.shape), axis=-1)
        self.scores[:, 1:][random.random((self.depth, self.kept - 1)) < 0.2] = -np.inf  # a redraft can always be
        length = int(random.integers(0, self.depth + 1)) if not beyond else self.depth + beyond
        self.path = random.integers(0, V, length) if foreign else np.resize(self.tokens[:, 0], length)
        self.reach = max(length, self.depth) + int(random.integers(0, 2))
        self.table = random_low_rank(seed, V, (2, 1)) if corrected else None
        self.rule = BestFirst(int(random.integers(1, 8)), temperature=0.7, fresh=0.3)
        self.context = BranchContext(
            np.concatenate([[0, 1], self.path]), 2, self.rule.most, self.reach, Candidates(self.tokens, self.scores),
            self.table,
        )  # fmt: skip

    def chances(self, depth, before):
        """Probabilities by token of the position ``depth``, behind the token ``before``."""
        new = self.path[depth] if depth < len(self.path) else None
        if depth >= self.depth:
            return {} if new is None else {int(new): self.rule.fresh}
        scores = self.scores[depth].copy()
        first = self.tokens[depth - 1, 0]
        if self.table is not None and depth:
            # A draft that comes from elsewhere stands where the redraft would.
            before = first if depth <= len(self.path) and before == self.path[depth - 1] else before
            scores += self.table.basis[self.tokens[depth]] @ (
                self.table.neighbours[1][before] - self.table.neighbours[1][first]
            )
        weights = np.exp(scores / 0.7) if np.isfinite(scores).any() else np.zeros(len(scores))
        law = weights / max(weights.sum(), 1e-300)
        chances = dict(zip(self.tokens[depth].tolist(), law.tolist(), strict=True))
        if new is not None and new != self.tokens[depth, 0]:
            chances = {token: chance * (1 - self.rule.fresh) for token, chance in chances.items()}
            chances[int(new)] = self.rule.fresh
        return chances

    def nodes(self):
        """Every possible beginning, the path's own included, with its probability."""
        found, open_ = {}, {(): 1.0}
        for depth in range(min(max(self.depth, len(self.path)), self.reach)):
            grown = {
                (*beginning, token): chance * own
                for beginning, chance in open_.items()
                for token, own in self.chances(depth, beginning[-1] if beginning else None).items()
            }
            found |= grown
            open_ = grown
        return {beginning: chance for beginning, chance in found.items() if chance > 0}

    def chosen(self):
        """The beginnings that the rule's branches are."""
        made = checked_branches(self.rule, self.context, V)
        slots = [tuple(self.path[: i + 1].tolist()) for i in range(len(self.path))]
        for parent, token in zip(made.parents.tolist(), made.tokens.tolist(), strict=True):
            slots.append((*(() if parent < 0 else slots[parent]), token))
        return slots[len(self.path) :]


KINDS = [
    {"corrected": corrected, "foreign": foreign, "beyond": beyond}
    for corrected, foreign, beyond in itertools.product((False, True), (False, True), (0, 1))
]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_no_branches_of_that_number_are_likelier_together(kind):
    """Among all beginnings there are, by brute force: with candidates that are impossible, drafts that are no candidates, drafts
    that nobody has looked at, and correctors."""
    full = 0
    for seed in range(60):
        world = World(seed, **kind)
        nodes, chosen = world.nodes(), world.chosen()
        path = {tuple(world.path[: i + 1].tolist()) for i in range(len(world.path))}
        others = sorted((chance for node, chance in nodes.items() if node not in path), reverse=True)
        assert len(set(chosen)) == len(chosen) == min(world.rule.most, len(others))
        assert not path & set(chosen)
        assert all(node in nodes for node in chosen)  # none that is impossible
        best = sum(others[: world.rule.most])
        assert sum(nodes[node] for node in chosen) == pytest.approx(best, rel=1e-12)
        full += len(others) > world.rule.most
    assert full > 20


def test_without_candidates_there_is_nothing_to_branch_to():
    for candidates in (None, Candidates(np.zeros((0, 3), int), np.zeros((0, 3)))):
        made = BestFirst(5).branches(BranchContext(np.array([0, 4, 2]), 1, 5, 4, candidates))
        assert (made.parents.tolist(), made.tokens.tolist()) == ([], [])


def test_candidates_beyond_the_end_are_left():
    candidates = Candidates(np.array([[4, 1], [2, 3], [0, 5]]), np.array([[1.0, 0.9]] * 3))
    for reach in (1, 2, 3):
        made = checked_branches(BestFirst(99), BranchContext(np.array([0]), 1, 99, reach, candidates), V)
        assert len(made.tokens) == 2 ** (reach + 1) - 2


class Proposes:
    """A rule that proposes ``made``."""

    most = candidates = 1

    def __init__(self, made):
        self.made = made

    def __repr__(self):
        return "my rule"

    def branches(self, context):
        return self.made


WRONG = [
    (None, "my rule returned a NoneType, expected Branches"),
    (([-1], [3]), "returned a tuple, expected Branches"),
    (
        Branches(np.array([-1, 0]), np.array([3])),
        "parents int64 (2,) and tokens int64 (1,), expected integers, as many of both",
    ),
    (Branches(np.array([[-1]]), np.array([[3]])), "parents int64 (1, 1)"),
    (Branches(np.array([-1.0]), np.array([3])), "parents float64 (1,)"),
    (Branches(np.array([-1]), np.array([True])), "tokens bool (1,)"),
    (Branches(np.array([-1] * 5), np.arange(5)), "returned 5 branches, expected at most 4"),
    (Branches(np.array([-1]), np.array([6])), "returned tokens [6], expected tokens in [0, 6)"),
    (Branches(np.array([-1]), np.array([-1])), "returned tokens [-1], expected tokens in [0, 6)"),
    (
        Branches(np.array([-2]), np.array([0])),
        "returned -2 as the parent of branch 0, expected -1 to 1: the path's 2 drafts",
    ),
    (Branches(np.array([2]), np.array([0])), "returned 2 as the parent of branch 0, expected -1 to 1"),
    (Branches(np.array([0, 3]), np.array([0, 0])), "returned 3 as the parent of branch 1, expected -1 to 2"),
    (
        Branches(np.array([1, 2]), np.array([0, 0])),
        "guesses for the position 4 behind the committed ones, expected at most 3",
    ),
]


@pytest.mark.parametrize(("made", "words"), WRONG)
def test_what_cannot_be_a_branch_is_refused_by_name(made, words):
    context = BranchContext(np.array([0, 4, 2]), committed=1, most=4, reach=3)
    with pytest.raises(InvalidArgument, match=re.escape(words)):
        checked_branches(Proposes(made), context, V)
    fits = Branches(np.array([-1, 2, 1, 0], np.int32), np.array([5, 0, 1, 1], np.int32))
    assert [each.dtype for each in checked_branches(Proposes(fits), context, V)] == [np.int64] * 2
    none = checked_branches(Proposes(Branches([], [])), context, V)  # numpy takes an empty list for floats
    assert [each.dtype for each in none] == [np.int64] * 2


class NoTrees:
    """A provider that forwards plain windows only."""

    vocab_size, batch_size, max_length = V, 1, 32

    def forward(self, tokens, start):
        return np.zeros((*tokens.shape, V))


class PlainStep:
    """A step that says nothing of trees."""

    def __init__(self):
        self._step = HostStep(TableProvider(random_table(0, V), V), "scd-match")

    def __getattr__(self, name):
        if name in ("refuses_branches", "max_columns", "corrections"):
            raise AttributeError(name)
        return getattr(self._step, name)


def table_step(method):
    return HostStep(TableProvider(random_table(0, V), V), method)


@pytest.mark.parametrize(
    ("branches", "step", "words"),
    [
        (True, table_step("scd-match"), "branches is True, expected a number of slots >= 0, or a rule"),
        (-1, table_step("scd-match"), "branches is -1, expected a number of slots >= 0"),
        (2.0, table_step("scd-match"), "branches is 2.0"),
        ("best", table_step("scd-match"), "branches is 'best'"),
        (4, table_step("sjd"), "branches is 4, but sjd accepts drafts by rejection"),
        (
            BestFirst(4),
            table_step("scd-gumbel"),
            "branches is BestFirst(4), but scd-gumbel accepts drafts by rejection",
        ),
        (4, table_step("speculative"), "use scd-match or speculative-match"),
        (4, table_step("ar"), "ar has no drafts; use scd-match"),
        (4, HostStep(NoTrees(), "scd-match"), "NoTrees cannot forward windows that are trees"),
        (4, PlainStep(), "a PlainStep does not do them; use HostStep"),
    ],
)
def test_branches_that_cannot_be_are_refused_before_anything_runs(branches, step, words):
    with pytest.raises(InvalidArgument, match=re.escape(words)):
        find_branching(branches, step)
    with pytest.raises(InvalidArgument, match=re.escape(words)):
        Decoder(step, branches=branches)


@pytest.mark.parametrize("step", [table_step("ar"), HostStep(NoTrees(), "sjd"), PlainStep()])
def test_no_branches_are_for_every_step(step):
    assert find_branching(0, step) is None


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"most": 0}, "most is 0"),
        ({"most": 2.5}, "most is 2.5"),
        ({"most": 2, "candidates": 0}, "candidates is 0"),
        ({"most": 2, "temperature": 0}, "temperature is 0"),
        ({"most": 2, "fresh": -0.1}, "fresh is -0.1"),
        ({"most": 2, "fresh": float("nan")}, "fresh is nan"),
    ],
)
def test_best_first_refuses_settings_that_cannot_be(settings, words):
    with pytest.raises(InvalidArgument, match=re.escape(words)):
        BestFirst(**settings)


class Watched(BestFirst):
    """Notes what it is asked and what it answers."""

    def __init__(self, *settings, **named):
        super().__init__(*settings, **named)
        self.seen = []

    def branches(self, context):
        made = super().branches(context)
        self.seen.append((context._replace(tokens=context.tokens.copy()), made))  # a row's tokens change
        return made


@pytest.mark.parametrize("method", ["scd-match", "speculative-match"])
def test_a_rule_is_told_candidates_of_the_open_positions_and_uses_no_impossible_one(method):
    """The law depends on the position before alone, so that whoever knows the table knows which token can follow which."""
    laws = np.random.default_rng(0).dirichlet(np.ones(V) / 3, V) * (np.random.default_rng(1).random((V, V)) < 0.6)
    laws = (laws + 1e-3 * np.eye(V)) / (laws + 1e-3 * np.eye(V)).sum(axis=-1, keepdims=True)
    rule = Watched(6, candidates=4)
    model = TableProvider(lambda context: laws[context[-1]], V, max_length=64)
    decoder = Decoder(model, method=method, window=9, branches=rule)
    decoder.add(Request([1], length=40))
    tokens = np.concatenate([[1], *(commit.tokens for _ in range(40) for commit in decoder.step())])
    told = [(context, made) for context, made in rule.seen if context.candidates is not None]
    assert len(told) > 5
    for context, _ in told:
        assert (context.tokens[: context.committed] == tokens[: context.committed]).all()
        assert context.reach == 40 - context.committed
        assert 1 <= context.candidates.tokens.shape[0] <= context.reach
        assert context.candidates.tokens.shape[1] == 4
        if method == "scd-match":
            known = min(len(context.path), len(context.candidates.tokens))
            assert (context.candidates.tokens[:known, 0] == context.path[:known]).all()
    assert any((context.candidates.scores == -np.inf).any() for context, _ in told)
    for context, made in told:
        for parent, token in zip(made.parents, made.tokens, strict=True):
            if parent == -1:  # of the first open position: what stands before it is known
                assert context.candidates.scores[0][context.candidates.tokens[0] == token] > -np.inf


def test_a_rule_of_ones_own_is_a_branching():
    assert isinstance(Proposes(None), Branching)
    assert isinstance(BestFirst(3), Branching)
    assert not isinstance(object(), Branching)


@pytest.mark.parametrize("window", [3, 5])
def test_more_branches_than_the_window_holds_leave_a_draft_to_the_path(window):
    """Without one there would be no candidates, and so no branch at all."""
    table = random_table(2, V)
    plain = generate(TableProvider(table, V), [[0]], length=30, method="ar").tokens[0]
    rule = Watched(50)
    settings = {"length": 30, "method": "scd-match", "window": window, "branches": rule}
    found = generate(TableProvider(table, V), [[0]], **settings)
    assert (found.tokens[0] == plain).all()
    assert max(len(made.tokens) for _, made in rule.seen) == window - 2
    assert min(len(context.path) for context, _ in rule.seen) >= 1
    assert found.traces[0].nfe < 30

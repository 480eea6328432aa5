"""One rule: what is public in `coupled_sampling.couplings` is what decodes, for every method and every array library."""

import inspect

import numpy as np
import pytest

import coupled_sampling.couplings as couplings
import coupled_sampling.step_rule as step_rule
from coupled_sampling import METHODS, generate
from coupled_sampling.testing import TableProvider, random_table

FUNCTIONS = {
    name: getattr(module, name)
    for module in (couplings, step_rule)
    for name in module.__all__
    if inspect.isfunction(getattr(module, name))
}


class Elsewhere(TableProvider):
    """Logits in another array library."""

    def forward(self, tokens, start):
        return pytest.importorskip("array_api_strict").asarray(super().forward(tokens, start))

    def forward_tree(self, *window):
        return pytest.importorskip("array_api_strict").asarray(super().forward_tree(*window))


def calls_of(monkeypatch, kind, method, branches=0):
    """Which public functions of the rule a decoder calls, and how often."""
    seen = dict.fromkeys(FUNCTIONS, 0)

    def spied(name, function):
        def call(*arguments, **settings):
            seen[name] += 1
            return function(*arguments, **settings)

        return call

    with monkeypatch.context() as patch:
        for name, function in FUNCTIONS.items():
            for module in ("couplings", "step_rule", "host_step", "draft_laws"):
                patch.setattr(f"coupled_sampling.{module}.{name}", spied(name, function), raising=False)
        model = kind(random_table(3, 4), 4, 2, 40)
        settings = {"length": 12, "window": 5, "drafting": "repeat", "seed": 1, "branches": branches}
        generate(model, [[0], [1, 2]], method=method, **settings)
    return seen


def test_every_public_function_is_called_by_some_decoder(monkeypatch):
    runs = [calls_of(monkeypatch, kind, method) for kind in (TableProvider, Elsewhere) for method in METHODS]
    runs.append(calls_of(monkeypatch, TableProvider, "scd-match", branches=2))
    assert set(FUNCTIONS) >= {
        "decide",
        "decide_tree",
        "independent",
        "maximal",
        "gumbel",
        "match",
        "residual",
        "acceptance_probability",
    }
    assert [name for name in FUNCTIONS if not any(run[name] for run in runs)] == []


@pytest.mark.parametrize("kind", [TableProvider, Elsewhere])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_decides_by_the_one_rule(monkeypatch, kind, method):
    """Numpy's users run the couplings too: only the residual of single sites is computed in place for them."""
    seen = calls_of(monkeypatch, kind, method)
    coupled = {
        "ar": {"match", "gumbel"},
        "scd-match": {"match", "gumbel"},
        "speculative-match": {"match", "gumbel"},
        "sjd": {"maximal", "acceptance_probability", "independent"},
        "scd-maximal": {"maximal", "acceptance_probability"},
        "scd-gumbel": {"maximal", "acceptance_probability", "gumbel"},
        "speculative": {"maximal", "acceptance_probability"},
    }[method]
    called = {name for name, count in seen.items() if count}
    assert called - {"residual"} == coupled | {"decide"}
    assert ("residual" in called) == ("maximal" in called and kind is Elsewhere)


@pytest.mark.parametrize("kind", [TableProvider, Elsewhere])
@pytest.mark.parametrize("method", ["scd-match", "speculative-match"])
def test_windows_with_branches_are_decided_by_the_one_rule(monkeypatch, kind, method):
    """A match of every slot with its parent is no `match` of a window's slots with the next ones: only the race is shared."""
    called = {name for name, count in calls_of(monkeypatch, kind, method, branches=2).items() if count}
    assert called >= {"decide_tree", "gumbel"}
    assert called <= {"decide_tree", "gumbel", "decide", "match"}  # a window whose row gets no branch is none


def test_a_method_may_be_decided_without_a_step():
    """`decide` on arrays: the residual corrects the first refusal, and later sites are redrawn."""
    from coupled_sampling.contracts import Sites
    from coupled_sampling.draft_laws import DraftLaws, Run
    from coupled_sampling.noise import CounterNoise

    target = np.full((1, 3, 2), 0.5)
    target[0, 0] = [0.0, 1.0]  # the first draft, a guess, cannot stay
    laws = DraftLaws(np.array([[0, 1, 0]]), [[Run(0, 2, None)]])
    one = np.ones(1, np.uint64)
    sites = Sites(one, one, np.array([4]), np.array([[7, 8, 9]]), np.ones((1, 3), bool))
    for name in ("sjd", "scd-maximal", "scd-gumbel", "speculative"):
        decision = step_rule.decide(METHODS[name], target, sites, laws, CounterNoise())
        assert decision.last.tolist() == [0]
        assert decision.tokens[0, 0] == 1

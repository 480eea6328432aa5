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


def calls_of(monkeypatch, kind, method):
    """Which public functions of `couplings` a decoder calls, and how often."""
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
        generate(model, [[0], [1, 2]], length=12, method=method, window=5, drafting="repeat", seed=1)
    return seen


def test_every_public_function_is_called_by_some_decoder(monkeypatch):
    runs = [calls_of(monkeypatch, kind, method) for kind in (TableProvider, Elsewhere) for method in METHODS]
    assert set(FUNCTIONS) >= {
        "decide",
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

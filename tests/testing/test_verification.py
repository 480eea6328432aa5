"""Verification of methods: every shipped step passes on a table, broken ones are reported, a test that cannot see says so."""

import dataclasses

import numpy as np
import pytest

from coupled_sampling import CounterNoise, HostStep, Sampling
from coupled_sampling.branching import BestFirst
from coupled_sampling.drafting import Repeat
from coupled_sampling.errors import InvalidArgument
from coupled_sampling.testing import TableProvider, random_table

pytest.importorskip("scipy.stats")

from coupled_sampling.testing.verification import verify


class ForgetsTheSeed(HostStep):
    """A right law from the wrong noise: the promise of AR's tokens is broken, the law is not."""

    def step(self, window):
        rows = [None if row is None else row._replace(seed=row.seed + 99) if hasattr(row, "_replace") else
                type(row)(row.seed + 99, row.sequence, row.sampling) for row in window.rows]  # fmt: skip
        return super().step(window._replace(rows=rows))


class Fused(HostStep):
    """Stands for a step that is decided elsewhere, with a law of its own making: another temperature."""

    factor = 1.0

    @property
    def runs(self):
        return dataclasses.replace(super().runs, step="graph")

    def step(self, window):
        rows = [row and dataclasses.replace(row, sampling=Sampling(temperature=self.factor)) for row in window.rows]
        return super().step(window._replace(rows=rows))


class FusedAndHotter(Fused):
    factor = 3.0


class FusedAndBroken(Fused):
    """Accepts every draft: right without drafts, wrong with them."""

    def __init__(self, provider, method):
        super().__init__(provider, method, AlwaysAccept())


class AlwaysAccept(CounterNoise):
    def bernoulli(self, probability, sites, purpose, *, where, leading=False):
        return np.ones_like(probability, bool)


def table():
    return TableProvider(random_table(1, 3), 3, 8, 16)


def test_every_shipped_method_passes_on_a_table():
    methods = ["sjd", "scd-maximal", "scd-gumbel", "scd-match"]
    results = verify(table, [0], methods, samples=1200, positions=4, window=4, drafting=Repeat(fill=0))
    assert [one.verdict for one in results] == ["no difference seen"] * 4
    assert [one.method for one in results] == methods
    assert all(0.2 < one.recycled_share < 1 for one in results)
    assert results[-1].differing_tokens == 0
    assert results[0].differing_tokens is None
    assert all(one.equivalence.alpha == pytest.approx(1e-3 / 4) for one in results)


def test_tokens_that_should_be_those_of_ar_are_compared_one_by_one():
    (result,) = verify(
        table, [0], ["scd-match"], samples=800, positions=4, window=4, drafting=Repeat(fill=0), make_step=ForgetsTheSeed
    )
    assert result.equivalence.verdict == "no difference seen"
    assert result.differing_tokens > 100
    assert result.verdict == "different"
    assert not result.passed


SMALL = {"samples": 800, "positions": 3, "window": 4, "drafting": Repeat(fill=0)}


def test_a_step_that_is_decided_elsewhere_is_compared_with_itself_and_its_law_with_the_hosts():
    both = verify(table, [0], ["scd-maximal", "scd-match"], make_step=Fused, **SMALL)
    for one in both:
        assert (one.step, one.verdict, one.law.verdict) == ("graph", "no difference seen", "no difference seen")
        assert one.equivalence.alpha == one.law.alpha == pytest.approx(1e-3 / 4)
        assert "step graph: passed" in one.report()
        assert "its law against the host's" in one.report()
    assert both[1].differing_tokens == 0


def test_a_step_that_keeps_a_law_of_its_own_is_lossless_and_fails_for_its_law():
    (one,) = verify(table, [0], ["scd-match"], make_step=FusedAndHotter, **SMALL)
    assert (one.equivalence.verdict, one.differing_tokens) == ("no difference seen", 0)
    assert (one.law.verdict, one.verdict, one.passed) == ("different", "different", False)


def test_a_step_with_the_hosts_law_that_does_not_keep_it_fails_against_itself():
    (one,) = verify(table, [0], ["scd-maximal"], make_step=FusedAndBroken, **SMALL)
    assert (one.equivalence.verdict, one.law.verdict, one.verdict) == ("different", "no difference seen", "different")


def test_the_host_s_steps_are_compared_with_ar_alone():
    (one,) = verify(table, [0], ["sjd"], **SMALL)
    assert (one.step, one.law) == ("host", None)
    assert "step host: passed" in one.report()


def test_every_model_that_was_opened_is_closed():
    opened, closed = [], []

    class Counted(TableProvider):
        def close(self):
            closed.append(self)

    def open_model():
        opened.append(Counted(random_table(1, 3), 3, 8, 16))
        return opened[-1]

    verify(open_model, [0], ["scd-match"], samples=20, positions=2, window=2, make_step=Fused)
    assert opened == closed
    assert len(opened) == 4  # the host's ar, the method, the method without drafts, and once more for its tokens


def test_a_run_in_which_nothing_was_recycled_is_blind():
    (result,) = verify(table, [0], ["scd-gumbel"], samples=800, positions=1, window=4, drafting=Repeat(fill=0))
    assert result.recycled_share == 0
    assert result.verdict == "blind"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": []}, "empty"),
        ({"methods": ["jacobi"]}, "jacobi"),
        ({"samples": 1}, "samples"),
        ({"positions": 0}, "positions"),
        ({"alpha": 1.0}, "alpha"),
        ({"branches": -1}, "branches"),
        ({"branches": "many"}, "branches"),
        ({"branches": BestFirst}, "branches"),
    ],
)
def test_bad_arguments_are_refused(changes, message):
    methods = changes.pop("methods", ["sjd"])
    with pytest.raises(InvalidArgument, match=message):
        verify(table, [0], methods, **changes)


def test_windows_with_branches_are_verified_where_methods_take_them():
    """More slots than the model has positions, for a method that takes branches and for ``ar``."""
    found = verify(table, [0], ["sjd", "scd-match"], samples=20, positions=6, window=14, branches=9)
    assert [(one.differing_tokens, one.branches) for one in found] == [(None, 0), (0, 9)]
    assert "9 slots of a window are for branches" in found[1].report()
    assert "branches" not in found[0].report()
    (wide,) = verify(table, [0], ["scd-match"], samples=20, positions=6, window=20, branches=BestFirst(16))
    assert (wide.differing_tokens, wide.branches) == (0, 16)


def test_branches_that_change_tokens_are_seen():
    class Wrong(HostStep):
        """Takes every branch's tokens for what its own law gives."""

        def step(self, window):
            outcome = super().step(window)
            if window.branches is not None:
                outcome.tokens[:, :] = (outcome.tokens + 1) % 3
            return outcome

    (found,) = verify(table, [0], ["scd-match"], samples=40, positions=6, window=8, branches=4, make_step=Wrong)
    assert found.differing_tokens > 0
    assert not found.passed


def test_steps_that_know_no_branches_are_refused_them():
    class Chains:
        def __init__(self, provider, method):
            self.inner = HostStep(provider, method)

        def __getattr__(self, name):
            if name in ("refuses_branches", "max_columns"):
                raise AttributeError(name)
            return getattr(self.inner, name)

    with pytest.raises(InvalidArgument, match="branches is 4, but a Chains does not do them; use HostStep"):
        verify(table, [0], ["scd-match"], samples=2, positions=2, window=8, branches=4, make_step=Chains)


def test_a_long_beginning_is_read_once_a_row_not_once_a_continuation():
    read = []

    class Counting(TableProvider):
        def forward(self, tokens, start):
            read.append(tokens.size)
            return super().forward(tokens, start)

    def model():
        read.append(0)
        return Counting(random_table(1, 3), 3, 4, 128)

    beginning, samples, positions = [0, 1] * 50, 40, 3
    (found,) = verify(model, beginning, ["scd-match"], samples=samples, positions=positions, window=3)
    samplings = read.count(0)
    rows_read, windows = samplings * 4 * len(beginning), samplings * samples * positions * 4
    assert sum(read) < rows_read + windows < samplings * samples * len(beginning) / 3
    assert found.recycled_share > 0

"""Verification of methods: every shipped step passes on a table, broken ones are reported, a test that cannot see says so."""

import pytest

from coupled_sampling import HostStep
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


def table():
    return TableProvider(random_table(1, 3), 3, 8, 16)


def test_every_shipped_method_passes_on_a_table():
    methods = ["sjd", "scd-maximal", "scd-gumbel", "scd-match"]
    results = verify(table, [0], methods, samples=1200, positions=4, window=4, drafting="repeat")
    assert [one.verdict for one in results] == ["no difference seen"] * 4
    assert [one.method for one in results] == methods
    assert all(0.2 < one.recycled_share < 1 for one in results)
    assert results[-1].differing_tokens == 0
    assert results[0].differing_tokens is None
    assert all(one.equivalence.alpha == pytest.approx(1e-3 / 4) for one in results)


def test_tokens_that_should_be_those_of_ar_are_compared_one_by_one():
    (result,) = verify(
        table, [0], ["scd-match"], samples=800, positions=4, window=4, drafting="repeat", make_step=ForgetsTheSeed
    )
    assert result.equivalence.verdict == "no difference seen"
    assert result.differing_tokens > 100
    assert result.verdict == "different"
    assert not result.passed


def test_a_run_in_which_nothing_was_recycled_is_blind():
    (result,) = verify(table, [0], ["scd-gumbel"], samples=800, positions=1, window=4, drafting="repeat")
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
    ],
)
def test_bad_arguments_are_refused(changes, message):
    methods = changes.pop("methods", ["sjd"])
    with pytest.raises(InvalidArgument, match=message):
        verify(table, [0], methods, **changes)

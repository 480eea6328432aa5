"""Verification of methods on real models: the shipped step passes, a broken one is reported and exits with 1."""

import json

import pytest

from coupled_sampling import HostStep, cli
from coupled_sampling.cli import verify as verification_command
from coupled_sampling.errors import InvalidArgument
from coupled_sampling.testing import TableProvider, random_table
from standins.old_law import OldLawForKeptDrafts

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


COMMAND = ["verify", "--prompt", "bag", "--methods", "scd-maximal", "--after", "33", "--seed", "4", "--samples", "400"]
COMMAND += ["--positions", "6", "--alpha", "0.01", "--threads", "1"]
"""A place where laws of consecutive passes differ much: half of the tokens are decided on recycled drafts, and the broken step's
statistic is three times what the right one's may be."""


def run(capsys, *arguments):
    code = cli.main(list(arguments))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture
def _pictures():
    pytest.importorskip("onnxruntime")
    pytest.importorskip("tqdm")


@pytest.mark.usefixtures("_pictures")
def test_the_embedded_model_passes_with_power(capsys):
    code, text, _ = run(capsys, *COMMAND, "--json")
    (row,) = json.loads(text)
    assert (code, row["verdict"], row["passed"]) == (0, "no difference seen", True)
    assert row["recycled_share"] > 0.2
    assert row["equivalence"]["controls_caught"] >= 4


@pytest.mark.usefixtures("_pictures")
def test_a_broken_step_on_the_embedded_model_is_reported_and_exits_with_1(capsys, monkeypatch):
    def broken(*arguments, **settings):
        return verify(*arguments, **{**settings, "make_step": OldLawForKeptDrafts})

    monkeypatch.setattr(verification_command, "verify", broken)
    code, text, _ = run(capsys, *COMMAND)
    assert code == 1
    assert "scd-maximal: FAILED (different)" in text
    assert text.rstrip().endswith("failed: scd-maximal (different)")


@pytest.mark.usefixtures("_pictures")
def test_too_few_samples_are_blind_and_exit_with_1(capsys):
    code, text, _ = run(capsys, "verify", "--methods", "sjd", "--samples", "10", "--after", "0", "--positions", "3")
    assert code == 1
    assert "sjd (blind)" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "jacobi"], "jacobi"),
        (["--samples", "0"], "samples is 0"),
        (["--positions", "0"], "positions is 0"),
        (["--alpha", "2"], "alpha is 2"),
        (["--after", "196"], "together more than"),
        (["--after", "-1"], "after is -1"),
        (["--prompt", "bag,coat"], "one prompt"),
        (["--prompt", "spoon"], "spoon"),
    ],
)
def test_wrong_command_lines_are_one_line_and_exit_code_2(capsys, arguments, message):
    code, out, err = run(capsys, "verify", *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1

"""``verify``: the shipped step passes on the embedded model, a broken one is reported and exits with 1."""

import json

import pytest

from coupled_sampling.cli import verify as verify_command
from standins.old_law import OldLawForKeptDrafts

pytest.importorskip("scipy.stats")

from coupled_sampling.testing.verification import verify

COMMAND = ["verify", "--prompt", "bag", "--methods", "scd-maximal", "--after", "33", "--seed", "4", "--samples", "400"]
COMMAND += ["--positions", "6", "--alpha", "0.01", "--threads", "1"]
"""A place where laws of consecutive passes differ much: half of the tokens are decided on recycled drafts, and the broken step's
statistic is three times what the right one's may be."""


@pytest.fixture
def _pictures():
    pytest.importorskip("onnxruntime")
    pytest.importorskip("tqdm")


@pytest.mark.usefixtures("_pictures")
def test_the_embedded_model_passes_with_power(command):
    code, text, _ = command(*COMMAND, "--json")
    (row,) = json.loads(text)
    assert (code, row["verdict"], row["passed"]) == (0, "no difference seen", True)
    assert row["recycled_share"] > 0.2
    assert row["equivalence"]["controls_caught"] >= 4


@pytest.mark.usefixtures("_pictures")
def test_a_broken_step_on_the_embedded_model_is_reported_and_exits_with_1(command, monkeypatch):
    def broken(*arguments, **settings):
        return verify(*arguments, **{**settings, "make_step": OldLawForKeptDrafts})

    monkeypatch.setattr(verify_command, "verify", broken)
    code, text, _ = command(*COMMAND)
    assert code == 1
    assert "scd-maximal: FAILED (different)" in text
    assert text.rstrip().endswith("failed: scd-maximal (different)")


@pytest.mark.usefixtures("_pictures")
def test_too_few_samples_are_blind_and_exit_with_1(command):
    code, text, _ = command("verify", "--methods", "sjd", "--samples", "10", "--after", "0", "--positions", "3")
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
def test_wrong_command_lines_are_one_line_and_exit_code_2(command, arguments, message):
    code, out, err = command("verify", *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1

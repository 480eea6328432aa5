"""``verify``: the shipped step passes on `fashion`, a broken one is reported and exits with 1."""

import json

import pytest

from coupled_sampling.cli import verify as verify_command
from standins.old_law import OldLawForKeptDrafts

pytest.importorskip("scipy.stats")

from coupled_sampling.testing.verification import verify

COMMAND = ["verify", "--prompt", "bag", "--methods", "scd-maximal", "--after", "33", "--seed", "4"]
COMMAND += ["--alpha", "0.01", "--threads", "1"]
"""A place where laws of consecutive passes differ much: of six tokens half are decided on recycled drafts, and the broken step's
statistic is three times what the right one's may be."""
FEW, ENOUGH = ["--samples", "300", "--positions", "4"], ["--samples", "600", "--positions", "6"]
"""What sees the controls, and what sees the broken step."""


@pytest.fixture
def _pictures():
    pytest.importorskip("onnxruntime")
    pytest.importorskip("tqdm")


@pytest.mark.usefixtures("_pictures")
def test_the_embedded_model_passes_with_power(command):
    code, text, _ = command(*COMMAND, *FEW, "--json")
    (row,) = json.loads(text)
    assert (code, row["verdict"], row["passed"]) == (0, "no difference seen", True)
    assert row["recycled_share"] > 0.2
    assert row["equivalence"]["controls_caught"] >= 4


@pytest.mark.usefixtures("_pictures")
def test_a_broken_step_on_the_embedded_model_is_reported_and_exits_with_1(command, monkeypatch):
    def broken(*arguments, **settings):
        return verify(*arguments, **{**settings, "make_step": OldLawForKeptDrafts})

    monkeypatch.setattr(verify_command, "verify", broken)
    code, text, _ = command(*COMMAND, *ENOUGH)
    assert code == 1
    assert "scd-maximal, step host: FAILED (different)" in text
    assert "failed: scd-maximal, step host (different)" in text


@pytest.mark.usefixtures("_pictures")
def test_too_few_samples_are_blind_and_exit_with_1(command):
    code, text, _ = command("verify", "--methods", "sjd", "--samples", "10", "--after", "0", "--positions", "3")
    assert code == 1
    assert "sjd, step graph (blind)" in text


@pytest.mark.usefixtures("_pictures")
def test_the_host_s_steps_and_those_of_the_bundle_s_graphs_are_verified_in_one_run(command):
    few = ["--samples", "20", "--after", "0", "--positions", "2", "--window", "4", "--threads", "1"]
    code, text, _ = command("verify", "--methods", "sjd,scd-match", "--step", "both", *few, "--json")
    rows = json.loads(text)
    assert code == 1  # 20 draws see nothing
    assert [(row["method"], row["step"], row["law"] is None) for row in rows] == [
        ("sjd", "host", True),
        ("scd-match", "host", True),
        ("sjd", "graph", False),
        ("scd-match", "graph", False),
    ]
    assert [row["differing_tokens"] for row in rows] == [None, 0, None, 0]
    assert all(row["equivalence"]["alpha"] <= 1e-3 / 4 for row in rows)
    _, text, _ = command("verify", "--methods", "scd-match", "--step", "both", *few)
    for line in ("scd-match, step host: FAILED (blind)", "scd-match, step graph: FAILED (blind)"):
        assert line in text
    assert [line.split("step: ")[-1] for line in text.splitlines()[-2:]] == [
        "host, corrections: LowRank",
        "graph, corrections: LowRank",
    ]


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
        (["--methods", "speculative", "--step", "both"], "nothing but the host"),
    ],
)
def test_wrong_command_lines_are_one_line_and_exit_code_2(command, arguments, message):
    code, out, err = command("verify", *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1

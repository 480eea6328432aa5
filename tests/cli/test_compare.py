"""``compare``: methods beside ar, measured in the same run."""

import json

import numpy as np
import pytest

Image = pytest.importorskip("PIL.Image")
pytest.importorskip("matplotlib")
pytest.importorskip("onnxruntime")
pytest.importorskip("tqdm")


def test_compare_measures_ar_in_the_same_run_and_match_gives_its_tokens(tmp_path, command):
    plot = tmp_path / "compare.png"
    code, text, _ = command("compare", "--methods", "scd-match, sjd", "--count", 2, "--json", "--plot", plot)
    rows = {row["method"]: row for row in json.loads(text)}
    assert code == 0
    assert list(rows) == ["ar", "scd-match", "sjd"]
    assert rows["ar"]["nfe_mean"] == 196
    assert rows["ar"]["speedup_nfe"] == 1
    assert rows["scd-match"]["identical_to_ar"]
    assert not rows["sjd"]["identical_to_ar"]
    expected = {
        "nfe_mean",
        "nfe_sem",
        "tokens_per_step",
        "seconds",
        "tokens_per_second",
        "speedup_nfe",
        "speedup_seconds",
    }
    assert expected <= set(rows["sjd"])
    assert np.asarray(Image.open(plot)).std() > 10


def test_greedy_with_guidance_gives_the_same_tokens_by_every_method(command):
    methods = "sjd,scd-maximal,scd-gumbel,scd-match"
    code, text, _ = command(
        "compare", "--methods", methods, "--count", 1, "--temperature", 0, "--guidance", 2, "--json"
    )
    assert code == 0
    assert all(row["identical_to_ar"] for row in json.loads(text))


def test_guidance_of_an_interval_gives_the_tokens_of_ar(command):
    asked = ("--count", 1, "--guidance", 4, "--guidance-interval", "20:60", "--step", "graph", "--json")
    code, text, error = command("compare", "--methods", "scd-match", *asked)
    assert code == 0, error
    assert all(row["identical_to_ar"] for row in json.loads(text))


def test_a_method_that_does_not_exist_is_refused_before_the_others_run(command):
    code, text, error = command("compare", "--methods", "ar,magic", "--count", 5000)
    assert (code, text, error.count("\n")) == (2, "", 1)
    assert "method is 'magic'" in error

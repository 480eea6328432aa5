"""``coupled-sampling fit-corrections`` as a user runs it."""

import functools
import json

import pytest

from coupled_sampling import open_bundle
from coupled_sampling.cli import fit_corrections
from coupled_sampling.cli.entry import main, make_parser
from coupled_sampling.fitting import FitSettings, Optimiser


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        fit_corrections, "FitSettings", functools.partial(FitSettings, optimiser=Optimiser(rank=2, steps=2))
    )


FIT = ["fit-corrections", "fashion", "--samples", "2", "--apart", "1", "--out", "fitted"]


def test_tables_come_into_a_copy_of_the_bundle_and_are_used(tmp_path, capsys):
    assert main([*FIT, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["match"]["method"] == "scd-match"
    bundle = open_bundle(tmp_path / "fitted")
    assert bundle.manifest.corrections.uses == ("match", "rejection")
    assert bundle.manifest.corrections.provenance == told
    assert bundle.corrector("scd-maximal").lags == (1, 14)
    assert not (tmp_path / "fashion.fitting").exists()
    assert main(["generate", "fitted", "--count", "1", "--method", "scd-match", "--out", "one.png"]) == 0


def test_what_is_there_is_refused_before_anything_is_decoded(tmp_path, capsys):
    (tmp_path / "fitted").mkdir()
    (tmp_path / "fitted" / "mine.txt").write_text("x")
    assert main(FIT) == 2
    assert "fitted" in capsys.readouterr().err
    assert not (tmp_path / "fashion.fitting").exists()
    for window in ("auto", "1"):
        assert main(["fit-corrections", "fashion", "--window", window, "--out", "new"]) == 2
        assert "expected a number of slots from 2 on" in capsys.readouterr().err
    for work in ("new", "new/work"):
        assert main(["fit-corrections", "fashion", "--work", work, "--out", "new"]) == 2
        assert "in the folder that the tables go to" in capsys.readouterr().err
    assert not (tmp_path / "fashion.fitting").exists()


def test_an_embedded_model_is_copied_and_not_changed(tmp_path, monkeypatch):
    before = open_bundle("fashion").manifest
    asked = []

    def noted(_provider, _bundle, _decoding, _prompts, work, **_given):
        asked.append(work)
        raise KeyboardInterrupt

    monkeypatch.setattr(fit_corrections, "fit_corrections", noted)
    (tmp_path / "fashion-fitted").mkdir()
    assert main(["fit-corrections"]) == 2  # what is in the way is refused first
    (tmp_path / "fashion-fitted").rmdir()
    assert main(["fit-corrections"]) == 130
    assert [str(work) for work in asked] == ["fashion.fitting"]
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    parsed = make_parser().parse_args(["fit-corrections", "fashion"])
    assert str(fit_corrections._out(parsed)) == "fashion-fitted"
    assert fit_corrections._out(make_parser().parse_args(["fit-corrections", "./fashion"])) is None
    assert open_bundle("fashion").manifest == before


def test_a_table_that_does_harm_is_said_to():
    apart = {"tokens_per_pass": {"none": 6.0, "fitted": 5.9}, "tv": [0.5, 0.49], "samples": 2}
    told = {"method": "scd-match", "apart": apart}
    assert "more samples" in fit_corrections._line("match", told)
    apart["tokens_per_pass"]["fitted"] = 6.1
    assert "more samples" not in fit_corrections._line("match", told)


def test_a_fit_that_is_stopped_says_how_it_goes_on(tmp_path, capsys, monkeypatch):
    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(fit_corrections, "fit_corrections", stopped)
    assert main(FIT) == 130
    said = capsys.readouterr().err
    assert "samples so far are in fashion.fitting" in said
    assert "same command" in said

"""``coupled-sampling fit-corrections`` as a user runs it."""

import functools
import json

import pytest

from coupled_sampling import open_bundle
from coupled_sampling.cli import fit_corrections
from coupled_sampling.cli.entry import main
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
    assert main(["fit-corrections", "fashion", "--window", "auto", "--out", "new"]) == 2
    assert "window is 'auto'" in capsys.readouterr().err


def test_a_fit_that_is_stopped_says_how_it_goes_on(tmp_path, capsys, monkeypatch):
    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(fit_corrections, "fit_corrections", stopped)
    assert main(FIT) == 130
    said = capsys.readouterr().err
    assert "samples so far are in fashion.fitting" in said and "same command" in said

"""``--corrections``, and what ``inspect`` says of a bundle's tables."""

import dataclasses
import json

import pytest

from coupled_sampling import open_bundle
from coupled_sampling.bundles import CorrectionTables, write_corrections
from coupled_sampling.bundles.manifest_file import write_manifest
from coupled_sampling.cli.entry import make_parser
from coupled_sampling.cli.settings import run_settings
from standins.corrected_bundles import PROVENANCE, a_manifest
from standins.correctors import random_low_rank

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("tqdm")
trt_bundles = pytest.importorskip("standins.trt_bundles")

WORDS = 11
DECODING = ("--tokens", "8", "--length", 24, "--window", 8, "--drafting", "repeat", "--json")


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return open_bundle(trt_bundles.write_bundle(tmp_path_factory.mktemp("plain") / "toy", steps=["ar", "scd-match"]))


def with_tables(bundle, folder, seed):
    """The bundle with tables that were fitted to nothing, the larger the larger ``seed`` is."""
    tables = {use: random_low_rank(seed, WORDS, (1, 3), scale=10.0**seed) for use in PROVENANCE}
    return write_corrections(bundle, CorrectionTables(tables), PROVENANCE, out=folder)


@pytest.fixture(scope="module")
def fitted(plain, tmp_path_factory):
    return with_tables(plain, tmp_path_factory.mktemp("fitted") / "toy", 0)


def rows_of(command, *arguments):
    code, text, error = command(*arguments)
    assert code == 0, error
    return {row["method"]: row for row in json.loads(text)}


@pytest.mark.parametrize(("seed", "step"), [(0, "auto"), (0, "host"), (1, "graph"), (2, "host")])
def test_match_gives_the_tokens_of_ar_whatever_the_table(command, plain, tmp_path, seed, step):
    made = with_tables(plain, tmp_path / "made", seed)
    rows = rows_of(command, "compare", made.folder, "--methods", "scd-match", "--count", 3, "--step", step, *DECODING)
    assert rows["scd-match"]["identical_to_ar"]
    assert (rows["ar"]["corrections"], rows["scd-match"]["corrections"]) == ("", "LowRank")
    assert rows["scd-match"]["step"] == ("graph" if step == "auto" else step)


def test_corrections_are_chosen(command, fitted):
    methods = ("--methods", "scd-match,sjd", "--count", 1)
    for kind, name in (("none", ""), ("plain", "RunningAverages"), ("fitted", "LowRank")):
        rows = rows_of(command, "compare", fitted.folder, *methods, "--corrections", kind, *DECODING)
        assert [rows[method]["corrections"] for method in ("ar", "scd-match", "sjd")] == ["", name, name]
        assert rows["scd-match"]["identical_to_ar"]
    code, text, _ = command("generate", fitted.folder, "--method", "sjd", "--corrections", "fitted", *DECODING)
    assert code == 0
    assert '"corrections": "LowRank"' in text


def test_what_is_verified_is_what_is_corrected(command, fitted):
    arguments = ("--methods", "sjd", "--samples", 2, "--positions", 2, "--step", "host", *DECODING)
    for kind, name in (("none", ""), ("fitted", "LowRank")):
        _, text, _ = command("verify", fitted.folder, "--corrections", kind, *arguments)
        assert [row["corrections"] for row in json.loads(text)] == [name]


def test_a_table_that_there_is_not_is_refused_before_anything_runs(command, plain):
    for name in ("generate", "compare", "verify"):
        code, text, error = command(name, plain.folder, "--corrections", "fitted", *DECODING)
        assert (code, text, error.count("\n")) == (2, "", 1)
        assert "has no table for" in error
        assert "coupled-sampling fit-corrections" in error


@pytest.mark.parametrize("command_name", ["generate", "compare", "verify"])
def test_the_option_goes_into_the_settings(command_name):
    for words, expected in ((["--corrections", "plain"], "plain"), (["--corrections", "none"], "none"), ([], "auto")):
        arguments = make_parser().parse_args([command_name, "fashion", *words])
        assert run_settings(arguments, a_manifest(), count=1).decoding.corrections == expected


def test_another_word_is_no_choice(capsys):
    with pytest.raises(SystemExit):
        make_parser().parse_args(["generate", "--corrections", "best"])
    assert "invalid choice: 'best'" in capsys.readouterr().err


def test_inspect_says_what_tables_there_are(command, plain, fitted, tmp_path):
    def said(folder):
        code, text, _ = command("inspect", folder)
        assert code == 0
        return next(line for line in text.splitlines() if line.startswith("corrections:"))

    assert said(plain.folder).split(maxsplit=1)[1] == "no tables"
    assert said(fitted.folder).split(maxsplit=1)[1] == (
        "neighbours 1, 3 before; tables for match (temperature 1.0, samples 160, loss kl, held_out (tokens_per_pass 7.3)), "
        "rejection (temperature 0.7, samples 40, loss tv)"
    )
    other = write_corrections(fitted, fitted.correction_tables(), {"match": 3}, out=tmp_path / "other")
    assert said(other.folder).endswith("tables for match (3), rejection (nothing is said of it)")
    record = dataclasses.replace(other.manifest.corrections, fingerprint="0" * 64)
    write_manifest(other.folder, dataclasses.replace(other.manifest, corrections=record))
    assert "not usable:" in said(other.folder)
    assert "made for another model, vocabulary or layout" in said(other.folder)
    _, text, _ = command("inspect", fitted.folder, "--json")
    assert json.loads(text)["corrections"]["lags"] == [1, 3]


def test_a_table_made_for_another_model_is_refused_in_one_line(command, fitted, tmp_path):
    other = write_corrections(fitted, fitted.correction_tables(), {}, out=tmp_path / "other")
    record = dataclasses.replace(other.manifest.corrections, fingerprint="0" * 64)
    write_manifest(other.folder, dataclasses.replace(other.manifest, corrections=record))
    code, text, error = command("generate", other.folder, "--method", "sjd", *DECODING)
    assert (code, text, error.count("\n")) == (2, "", 1)
    assert "made for another model, vocabulary or layout" in error
    assert command("generate", other.folder, "--method", "sjd", "--corrections", "none", *DECODING)[0] == 0

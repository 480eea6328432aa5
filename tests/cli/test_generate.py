"""``generate``: pictures, traces and figures; what cannot work is refused before the work."""

import json
import os
import shutil
import time

import numpy as np
import pytest

from coupled_sampling import open_bundle
from coupled_sampling.bundles.hidden import hidden_path
from coupled_sampling.cli.pictures import write_grid
from coupled_sampling.window_search import LADDER

Image = pytest.importorskip("PIL.Image")
pytest.importorskip("onnxruntime")
pytest.importorskip("tqdm")


def test_generate_writes_a_picture_and_a_trace(tmp_path, command):
    out, trace = tmp_path / "grid.png", tmp_path / "trace.json"
    code, text, _ = command(
        "generate", "--prompt", "shoe,bag", "--count", 2, "--window", 16, "--batch-size", 2,
        "--out", out, "--trace", trace, "--json",
    )  # fmt: skip
    assert code == 0
    figures = json.loads(text)["methods"][0]
    pixels = np.asarray(Image.open(out))
    assert pixels.std() > 20
    written = json.loads(trace.read_text())
    assert {name: written[name] for name in ("method", "seed", "window")} == {
        "method": "scd-gumbel",
        "seed": 0,
        "window": 16,
    }
    recorded = written["sequences"]
    assert [len(sequence["tokens"]) for sequence in recorded] == [196, 196]
    assert [sequence["prompt"] for sequence in recorded] == [[263], [264]]
    assert sum(len(s["committed_per_step"]) for s in recorded) / 2 == figures["nfe_mean"]
    assert "identical_to_ar" not in figures
    assert sorted(path.name for path in tmp_path.iterdir()) == ["grid.png", "trace.json"]


def test_ar_beside_a_method_is_printed_first(tmp_path, command):
    code, text, _ = command(
        "generate", "--count", 1, "--method", "scd-match", "--beside-ar", "--out", tmp_path / "x.png"
    )
    assert code == 0
    ar, match, wrote = text.splitlines()
    assert ar.startswith("ar: 1 sequences, NFE 196.0, 1.00 tokens per step, ")
    assert match.startswith("scd-match: 1 sequences, NFE ")
    assert wrote == f"wrote {tmp_path / 'x.png'}"


def test_where_an_automatic_window_ended_is_said_and_other_windows_are_not(tmp_path, command):
    arguments = ["generate", "--count", 1, "--beside-ar", "--method", "scd-match", "--out", tmp_path / "x.png"]
    code, text, _ = command(*arguments, "--window", "auto")
    ar, match, _ = text.splitlines()
    assert (code, "window" in ar) == (0, False)
    assert int(match.rpartition(", window auto ended at ")[2]) in LADDER
    code, text, _ = command(*arguments, "--window", 8, "--json")
    assert [row["last_window"] for row in json.loads(text)["methods"]] == [1, 8]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--prompt", "giraffe"], "giraffe"),
        (["--method", "magic"], "scd-gumbel"),
        (["--drafting", "copy:zero"], "copy:LAG"),
        (["--drafting", "copy:0"], "lag"),
        (["--window", "0"], "window"),
        (["--window", "1000"], "196"),
        (["--length", "10"], "length is 10, but this model makes exactly 196 tokens"),
        (["--temperature", "-1"], "temperature"),
        (["--temperature", "nan"], "temperature"),
        (["--top-p", "0"], "top_p"),
        (["--top-k", "0"], "top_k"),
        (["--min-p", "1.5"], "min_p"),
        (["--count", "0"], "count"),
        (["--batch-size", "0"], "batch-size"),
        (["--threads", "0"], "threads"),
        (["--threads", "99999999999"], "threads"),
        (["--temperature", "1e39"], "temperature"),
        (["--seed", "-3"], "seed"),
        (["--guidance", "nan"], "guidance is nan, expected a finite number"),
        (["--guidance-interval", "3:9"], "guidance_interval is '3:9', but guidance is 1"),
        (["--guidance", "2", "--guidance-interval", "9"], "guidance_interval is '9', expected FIRST:END"),
        (["no/such/model"], "no/such/model"),
    ],
)
def test_bad_arguments_are_one_line_and_exit_code_2(arguments, words, tmp_path, command):
    out = tmp_path / "grid.png"
    less = [] if "--count" in arguments else ["--count", "1"]
    code, text, error = command("generate", *arguments, "--out", out, *less)
    assert code == 2
    assert text == ""
    assert words in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_an_unwritable_output_is_refused_before_the_work(tmp_path, command):
    began = time.perf_counter()
    code, _, error = command("generate", "--count", 2000, "--out", tmp_path / "missing" / "grid.png")
    assert code == 2
    assert "does not exist" in error
    assert time.perf_counter() - began < 30
    code, _, error = command("generate", "--count", 2000, "--out", tmp_path)
    assert code == 2
    assert "folder" in error


@pytest.mark.skipif(os.name != "posix", reason="makes a pipe")
def test_outputs_that_are_not_files_of_their_own_are_refused(tmp_path, command):
    pipe, picture = tmp_path / "pipe", tmp_path / "x.png"
    os.mkfifo(pipe)
    for out, trace in [(pipe, None), (picture, picture), (tmp_path / ("x" * 300), None)]:
        code, _, error = command("generate", "--count", 1, "--out", out, *(["--trace", trace] if trace else []))
        assert code == 2
        assert error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]
    assert pipe.is_fifo()


@pytest.mark.parametrize(("name", "kind"), [("x.jpg", "JPEG"), ("x.JPEG", "JPEG"), ("x.png", "PNG"), ("x", "PNG")])
def test_a_picture_is_of_the_kind_that_its_ending_says(tmp_path, name, kind):
    write_grid(np.zeros((2, 8, 8, 3), np.uint8), tmp_path / name)
    assert Image.open(tmp_path / name).format == kind


@pytest.mark.parametrize("name", ["x.gif", "x.json", "x.png.bak"])
def test_other_endings_are_refused_before_the_work(tmp_path, command, name):
    for arguments in (["generate", "--out"], ["compare", "--plot"]):
        code, _, error = command(*arguments, tmp_path / name, "--count", 2000)
        assert code == 2
        assert "expected a file that ends in .png, .jpg" in error
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.name != "posix", reason="makes links")
def test_one_place_by_two_names_is_one_file(tmp_path, command):
    (tmp_path / "link.png").symlink_to("x.png")
    code, _, error = command("generate", "--count", 1, "--out", tmp_path / "x.png", "--trace", tmp_path / "link.png")
    assert (code, error.count("\n")) == (2, 1)
    assert "name two files" in error


@pytest.mark.skipif(os.name != "posix", reason="locks of POSIX")
def test_what_a_killed_run_left_is_mentioned_and_removed_on_demand(tmp_path, command):
    out, trace = tmp_path / "my x.png", tmp_path / "t.json"
    left = [hidden_path(out, suffix=".png"), hidden_path(trace, suffix=".json")]
    for path in left:
        path.write_text("half")
    code, _, error = command("generate", "--out", out, "--trace", trace, "--count", 1)
    assert code == 0
    mentioned = error.splitlines()
    assert [line.count("note: a run that was killed left") for line in mentioned] == [1, 1]
    assert (
        f"{left[1]}; to remove it: coupled-sampling generate --out '{out}' --trace {trace} --count 1 --clean"
        in mentioned[0]
    )
    code, _, error = command("generate", "--out", out, "--trace", trace, "--count", 1, "--clean")
    assert code == 0
    assert error.count("removed") == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["my x.png", "t.json"]


def test_files_of_a_bundle_are_not_written_over(tmp_path, command):
    bundle = tmp_path / "bundle"
    shutil.copytree(open_bundle("fashion").folder, bundle)
    manifest = (bundle / "manifest.json").read_bytes()
    for name in ("manifest.json", "window.onnx"):
        code, _, error = command("generate", "--count", 1, "--trace", bundle / name)
        assert code == 2
        assert f"cannot write {bundle / name}: it is a file of the bundle" in error
    assert (bundle / "manifest.json").read_bytes() == manifest
    open_bundle(bundle)

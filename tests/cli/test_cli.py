"""The command line as a user meets it: results, one-line errors with exit code 2, and nothing half-written."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial

import numpy as np
import pytest

from coupled_sampling.cli import main

Image = pytest.importorskip("PIL.Image")


def run(capsys, *arguments):
    code = main(list(arguments))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_generate_writes_a_picture_and_a_trace(tmp_path, capsys):
    out, trace = tmp_path / "grid.png", tmp_path / "trace.json"
    code, text, _ = run(
        capsys, "generate", "--prompt", "shoe,bag", "--count", "2", "--window", "16", "--batch-size", "2",
        "--out", str(out), "--trace", str(trace), "--json",
    )  # fmt: skip
    assert code == 0
    figures = json.loads(text)["methods"][0]
    pixels = np.asarray(Image.open(out))
    assert pixels.std() > 20
    recorded = json.loads(trace.read_text())["sequences"]
    assert [len(sequence["tokens"]) for sequence in recorded] == [196, 196]
    assert [sequence["prompt"] for sequence in recorded] == [[263], [264]]
    assert sum(len(s["committed_per_step"]) for s in recorded) / 2 == figures["nfe_mean"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["grid.png", "trace.json"]


def test_compare_measures_ar_in_the_same_run_and_match_gives_its_tokens(tmp_path, capsys):
    plot = tmp_path / "compare.png"
    code, text, _ = run(capsys, "compare", "--methods", "scd-match,sjd", "--count", "2", "--json", "--plot", str(plot))
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


def test_greedy_with_guidance_gives_the_same_tokens_by_every_method(capsys):
    methods = "sjd,scd-maximal,scd-gumbel,scd-match"
    code, text, _ = run(
        capsys, "compare", "--methods", methods, "--count", "1", "--temperature", "0", "--guidance", "2", "--json"
    )
    assert code == 0
    assert all(row["identical_to_ar"] for row in json.loads(text))


def test_inspect_says_what_the_model_is(capsys):
    code, text, _ = run(capsys, "inspect", "fashion")
    assert code == 0
    for word in ("267", "14 x 14", "ankle-boot", "Apache-2.0", "Fashion-MNIST", "196"):
        assert word in text
    code, text, _ = run(capsys, "inspect", "--json")
    assert json.loads(text)["vocab_size"] == 267


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--prompt", "giraffe"], "giraffe"),
        (["--method", "magic"], "scd-gumbel"),
        (["--drafting", "copy:zero"], "copy:LAG"),
        (["--drafting", "copy:0"], "lag"),
        (["--window", "0"], "window"),
        (["--window", "1000"], "196"),
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
        (["no/such/model"], "no/such/model"),
    ],
)
def test_bad_arguments_are_one_line_and_exit_code_2(arguments, words, tmp_path, capsys):
    out = tmp_path / "grid.png"
    code, text, error = run(
        capsys, "generate", *arguments, "--out", str(out), *([] if "--count" in arguments else ["--count", "1"])
    )
    assert code == 2
    assert text == ""
    assert words in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_an_unwritable_output_is_refused_before_the_work(tmp_path, capsys):
    began = time.perf_counter()
    code, _, error = run(capsys, "generate", "--count", "2000", "--out", str(tmp_path / "missing" / "grid.png"))
    assert code == 2
    assert "does not exist" in error
    assert time.perf_counter() - began < 30
    code, _, error = run(capsys, "generate", "--count", "2000", "--out", str(tmp_path))
    assert code == 2
    assert "folder" in error


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT")
def test_an_interrupt_leaves_no_file_and_no_traceback(tmp_path):
    command = [
        sys.executable,
        "-m",
        "coupled_sampling",
        "generate",
        "--count",
        "3000",
        "--out",
        str(tmp_path / "g.png"),
    ]
    # A job in the background of a shell ignores SIGINT, and would hand that down.
    listen = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=listen)
    time.sleep(4)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in error
    assert "interrupted" in error
    assert not list(tmp_path.iterdir())


def test_outputs_that_are_not_files_of_their_own_are_refused(tmp_path, capsys):
    pipe, picture = tmp_path / "pipe", tmp_path / "x.png"
    os.mkfifo(pipe)
    for out, trace in [(pipe, None), (picture, picture), (tmp_path / ("x" * 300), None)]:
        arguments = ["generate", "--count", "1", "--out", str(out), *(["--trace", str(trace)] if trace else [])]
        code, _, error = run(capsys, *arguments)
        assert code == 2
        assert error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]
    assert pipe.is_fifo()

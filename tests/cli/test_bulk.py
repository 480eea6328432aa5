"""``coupled-sampling bulk``: killed at any moment and run again, it makes every sequence once; signals, wrong options."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest

from standins import ROOT

parquet = pytest.importorskip("pyarrow.parquet", reason="needs the extra [bulk]")

ROWS = ["--batch-size", "4", "--part-rows", "2", "--threads", "1"]


@pytest.fixture
def prompts(tmp_path):
    def write(count, name="prompts.jsonl"):
        rows = [{"id": f"r{i}", "prompt": ("shoe", "bag", "dress")[i % 3]} for i in range(count)]
        (tmp_path / name).write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        return tmp_path / name

    return write


def started(*arguments):
    words = [sys.executable, "-m", "coupled_sampling", "bulk", *map(str, arguments)]
    return subprocess.Popen(
        words,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def parts(out):
    return sorted(out.glob("record/part-*.parquet"))


def wait_for(found, process):
    """Wait until ``found()``, or the process ends."""
    until = time.monotonic() + 60
    while process.poll() is None and not found():
        assert time.monotonic() < until
        time.sleep(0.01)


def content(out):
    """What is in a folder: rows and pictures by id. How many passes a row took depends on the machine: on what corrects."""
    rows = parquet.read_table(out / "record").to_pylist()
    found = {row["id"]: row for row in rows}
    assert len(found) == len(rows), "an id is in the record twice"
    for row in rows:
        assert row.pop("tokens_per_pass") == len(row["tokens"]) / row.pop("passes")
    return {name: (row, (out / row["picture"]).read_bytes()) for name, row in found.items()}


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
def test_a_run_that_is_killed_goes_on_and_nothing_is_twice_or_missing(command, prompts, tmp_path):
    path = prompts(8)
    assert command("bulk", path, tmp_path / "whole", *ROWS)[0] == 0
    out = tmp_path / "out"
    process = started(path, out, *ROWS)
    wait_for(lambda: parts(out), process)
    process.kill()
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    kept = {part: part.read_bytes() for part in parts(out)}
    (out / "record" / ".part-0000000x.parquet-0123456789abcdef.coupled-sampling.partial.parquet").write_text("half")
    code, said, _ = command("bulk", path, out, *ROWS)
    assert (code, f"{len(parquet.read_table(list(kept))) if kept else 0} were there already" in said) == (0, bool(kept))
    assert {part: part.read_bytes() for part in kept} == kept
    assert content(out) == content(tmp_path / "whole")
    assert not [path for path in out.rglob("*") if path.name.startswith(".")]
    assert len(list(out.rglob("*.png"))) == 8


@pytest.mark.long
@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
@pytest.mark.parametrize("seed", range(4))
def test_a_run_that_is_killed_at_random_moments_ends_as_an_unbroken_one(command, prompts, tmp_path, seed):
    path, moments = prompts(24), random.Random(seed)
    assert command("bulk", path, tmp_path / "whole", *ROWS)[0] == 0
    out, kills = tmp_path / "out", 0
    while True:
        process = started(path, out, *ROWS)
        # Half of the time is spent before the first sequence; the more often it was killed, the longer it is left alone.
        try:
            process.communicate(timeout=moments.uniform(0.2, 4) * (1 + kills / 4))
            break
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate(timeout=60)
            kills += 1
    assert process.returncode == 0
    assert kills > 1
    assert content(out) == content(tmp_path / "whole")


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_a_signal_writes_what_is_complete(prompts, tmp_path):
    out = tmp_path / "out"
    process = started(
        prompts(200), out, "--batch-size", "4", "--threads", "1"
    )  # parts of a thousand: none is written before the signal
    wait_for(lambda: len(list(out.rglob("pictures/*/*.png"))) > 3, process)
    assert parts(out) == []
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 143
    assert error.splitlines() == [
        f"what was finished is in {out}; the same command makes the rest",
        "coupled-sampling: terminated; nothing half-written is left",
    ]
    assert len(content(out)) >= 3
    assert not [path for path in out.rglob("*") if path.name.startswith(".")]


def test_what_is_said_of_a_run(command, prompts, tmp_path):
    code, said, error = command("bulk", prompts(2), tmp_path / "out", "--json", "--threads", "1")
    figures = json.loads(said)
    assert (code, error) == (0, "")
    assert (figures["sequences"], figures["made"], figures["before"], figures["errors"]) == (2, 2, 0, 0)
    assert figures["tokens"] == 2 * 196
    assert figures["tokens_per_pass"] == pytest.approx(figures["tokens"] / figures["passes"])
    assert figures["sequences_per_second"] == pytest.approx(2 / figures["seconds"])
    code, said, _ = command("bulk", prompts(2), tmp_path / "out")
    assert said.startswith("0 sequences, 2 were there already")
    code, _, error = command("bulk", prompts(2), tmp_path / "out", "--temperature", "0.5")
    assert (code, "temperature was 1.0 and is 0.5 now" in error) == (2, True)


def test_prompts_come_from_standard_input(command, prompts, tmp_path, monkeypatch):
    with prompts(1).open() as file:
        monkeypatch.setattr("sys.stdin", file)
        assert command("bulk", "-", tmp_path / "out", "--threads", "1")[0] == 0
    assert set(content(tmp_path / "out")) == {"r0"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--actors", "2"], "actors is given, which is about Ray; add --ray, or leave it out"),
        (["--ray", "--actors", "0"], "actors is 0, expected an integer >= 1"),
        (["--ray", "--cpus", "0"], "cpus is 0.0, expected a number > 0"),
        (["--ray", "--gpus", "-1"], "gpus is -1.0, expected a number >= 0"),
        (["--samples", "0"], "samples is 0, expected an integer >= 1"),
        (["--part-rows", "0"], "part-rows is 0, expected an integer >= 1"),
        (["--seed", "-1"], "seed is -1, expected an integer"),
        (["--batch-size", "0"], "batch-size is 0, expected at least 1"),
        (["--method", "scd"], "'scd'"),
        (["--window", "0"], "window is 0"),
        (["--temperature", "-1"], "temperature is -1.0"),
    ],
)
def test_wrong_options_are_one_line_before_anything_is_made(command, prompts, tmp_path, options, words):
    code, said, error = command("bulk", prompts(1), tmp_path / "out", *options)
    assert (code, said) == (2, "")
    assert words in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()

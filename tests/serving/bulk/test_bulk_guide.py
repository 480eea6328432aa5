"""The guide to bulk runs, as its reader follows it: the prompts, the commands, the Python, and what all of them print."""

import contextlib
import io
import os
import re
import subprocess
import sys

import pytest

from standins import ROOT

pytest.importorskip("pyarrow", reason="needs the extra [bulk]")

GUIDE = (ROOT / "docs" / "bulk.md").read_text()
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```\n(?:\n```text\n(.*?)^```$)?", re.DOTALL | re.MULTILINE)
FIGURE = re.compile(r"\d+\.\d+")
"""Speeds: how fast a machine is, no page can say."""


def commands(text):
    """Commands that can be run here: no installation, no cluster, no figures that take minutes."""
    lines = text.splitlines()
    return [
        line for line in lines if "coupled-sampling bulk" in line and "--ray" not in line and "many.jsonl" not in line
    ]


def test_the_guide_does_what_it_says(tmp_path, monkeypatch):
    blocks = BLOCK.findall(GUIDE)
    (prompts,) = (text for kind, text, _ in blocks if kind == "json")
    (tmp_path / "prompts.jsonl").write_text(prompts)
    monkeypatch.chdir(tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    names, checked = {}, 0
    for kind, text, shown in blocks:
        printed = ""
        if kind == "console":
            for line in commands(text):
                words = line.replace("coupled-sampling bulk", f"{sys.executable} -m coupled_sampling bulk")
                result = subprocess.run(words, shell=True, capture_output=True, text=True, env=environment, timeout=120)
                printed += result.stdout + result.stderr
        elif kind == "py":
            written = io.StringIO()
            with contextlib.redirect_stdout(written):
                exec(compile(text, "bulk.md", "exec"), names)
            printed = written.getvalue()
        if shown and "--count" not in text:
            assert FIGURE.sub("N", printed) == FIGURE.sub("N", shown)
            checked += 1
    assert checked == 4


def test_the_guide_lists_every_column_and_every_field():
    from coupled_sampling.serving.bulk.record import schema
    from coupled_sampling.serving.bulk.rows import FIELDS

    columns, fields = GUIDE.split("## What a line may say")
    assert set(schema().names) <= named_in(columns)
    assert named_in(fields.split("All lines are checked")[0]) == set(FIELDS)


def named_in(text):
    """Names in the first column of tables."""
    cells = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    return {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}

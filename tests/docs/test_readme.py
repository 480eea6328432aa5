"""The README's Python is run, in order, as a reader would, and prints what the README says."""

import re

from standins import ROOT
from standins.blocks import run_blocks

README = ROOT / "README.md"


def test_every_python_block_of_the_readme_runs_and_prints_what_is_shown():
    shown = run_blocks(README)
    assert [text is not None for _, text in shown] == [True, True]
    assert [printed for printed, _ in shown] == [text for _, text in shown]


def test_the_readme_is_short_and_its_commands_exist():
    text = README.read_text()
    assert len(text.splitlines()) <= 110
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"^make ([\w-]+)", text, re.MULTILINE)) <= targets
    for path in re.findall(r"python (?:-m pytest )?((?:tests|benchmarks|examples)/\S+\.py)", text):
        assert (ROOT / path).is_file(), path

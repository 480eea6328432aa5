"""The Python in the guides is run, in order, as a reader of a checkout would, and prints what the guides say."""

import importlib.util
import sys

import numpy as np
import pytest

from coupled_sampling import generate
from standins import ROOT
from standins.blocks import run_blocks

NEEDED = {"jax.md": "jax"}
"""Packages without which a guide's Python cannot run."""

GUIDES = [
    pytest.param(guide, id=guide.name, marks=[pytest.mark.frameworks] if guide.name in NEEDED else [])
    for guide in sorted((ROOT / "docs").glob("*.md"))
    if not guide.name.startswith("serving-")  # these ask a server, which tests of their own start
]


@pytest.mark.parametrize("guide", GUIDES)
def test_every_python_block_of_a_guide_runs_and_prints_what_is_shown(guide, monkeypatch):
    if guide.name in NEEDED:
        pytest.importorskip(NEEDED[guide.name], reason="make test-frameworks installs it")
    monkeypatch.chdir(ROOT)
    for printed, expected in run_blocks(guide):
        assert expected is None or printed == expected


@pytest.fixture
def figure(monkeypatch):
    """The script that draws the figure of "How it works"."""
    spec = importlib.util.spec_from_file_location("figure", ROOT / "docs" / "site" / "figure.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "figure", module)
    spec.loader.exec_module(module)
    return module


def test_the_figure_is_what_the_decoder_does(figure):
    assert figure.FIGURE.read_text() == figure.figure()


def test_the_passes_that_how_it_works_speaks_of(figure):
    page = (ROOT / "docs" / "how-it-works.md").read_text()
    for method in ("sjd", "scd-maximal"):
        model, loop = figure.Walk(), {"length": figure.LENGTH, "window": figure.WINDOW, "drafting": figure.DRAFTING}
        passes = [generate(model, [[3]], method=method, seed=seed, **loop).traces[0].nfe for seed in range(200)]
        assert f"{np.mean(passes):.1f} passes with `{method}`" in " ".join(page.split())

"""The list of planted bugs follows the code: each still fits where it belongs (`make mutants` shows that tests see them)."""

import importlib
import shutil
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def bugs(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "mutants"))
    before = set(sys.modules)
    yield importlib.import_module("bugs").BUGS
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_every_bug_can_be_planted(bugs):
    assert len(bugs) >= 30
    assert [f"{bug.name}: {reason}" for bug in bugs if (reason := bug.misfit(ROOT)) is not None] == []


def test_every_bug_is_listed_once_and_says_what_it_breaks(bugs):
    assert [name for name, count in Counter(bug.name for bug in bugs).items() if count > 1] == []
    assert [change for change, count in Counter((b.file, b.old, b.new) for b in bugs).items() if count > 1] == []
    assert all(bug.tests and bug.breaks.endswith(".") for bug in bugs)


def test_every_bug_leaves_a_program(bugs):
    for bug in bugs:
        source = (ROOT / bug.file).read_text(encoding="utf-8")
        compile(source.replace(bug.old, bug.new), bug.name, "exec")


def test_a_bug_is_planted_once_and_a_misfit_is_refused(bugs, tmp_path):
    bug = bugs[0]
    for name in (bug.file, *bug.tests):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    before = (tmp_path / bug.file).read_text(encoding="utf-8")
    bug.plant(tmp_path)
    assert (tmp_path / bug.file).read_text(encoding="utf-8") == before.replace(bug.old, bug.new)
    (tmp_path / bug.file).write_text(before + bug.old, encoding="utf-8")
    with pytest.raises(ValueError, match="occurs 2 times"):
        bug.plant(tmp_path)
    (tmp_path / bug.file).write_text(before.replace(bug.old, ""), encoding="utf-8")
    with pytest.raises(ValueError, match="occurs 0 times"):
        bug.plant(tmp_path)

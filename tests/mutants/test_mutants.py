"""The list of planted bugs follows the code: each still fits (`make mutants` shows that tests see them)."""

import importlib
import sys
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

ROOT = next(folder for folder in Path(__file__).resolve().parents if (folder / "pyproject.toml").is_file())

MODULE = '''\
"""A façade."""

LIMITS = {"least": 1, "most": 9}


def law(weights, count):
    total = sum(weights)
    if count > 1:
        total = total * count
    elif count == 1:
        pass
    return [weight / total for weight in weights], f"{count}"


class Row:
    def step(self, count):
        self.note("Straße", count); self.count = count
        if self.count:
            self.end()
        return self.count
'''


@pytest.fixture
def mutants(monkeypatch):
    """The modules `bugs` and `planting`."""
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "mutants"))
    before = set(sys.modules)
    yield importlib.import_module("bugs"), importlib.import_module("planting")
    for name in set(sys.modules) - before:
        del sys.modules[name]


@pytest.fixture
def bugs(mutants):
    return mutants[0].BUGS


@pytest.fixture
def checkout(tmp_path):
    """A checkout with one module and one test file."""
    for name, text in {"coupled_sampling/rows.py": MODULE, "tests/core/test_rows.py": ""}.items():
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


@pytest.fixture
def bug(mutants):
    """A bug of that checkout; only what matters is said."""

    def make(within, right, wrong, tests=("test_rows",)):
        return mutants[1].Bug("some-bug", within, right, wrong, "It breaks.", tests)

    return make


def test_every_bug_can_be_planted_and_leaves_a_program(mutants, monkeypatch):
    bugs, planting = mutants[0].BUGS, mutants[1]
    for name in ("tests_by_name", "_source_files", "_content"):  # no file changes meanwhile
        monkeypatch.setattr(planting, name, cache(getattr(planting, name)))
    misfits = []
    for bug in bugs:
        try:
            bug.test_paths(ROOT)
            bug.change(ROOT)
        except planting.MisfitError as reason:
            misfits.append(f"{bug.name}: {reason}")
    assert len(bugs) >= 30
    assert misfits == []


def test_every_bug_is_listed_once_and_says_what_it_breaks(bugs):
    assert [name for name, count in Counter(bug.name for bug in bugs).items() if count > 1] == []
    assert [change for change, count in Counter((b.within, b.right, b.wrong) for b in bugs).items() if count > 1] == []
    assert all(bug.tests and bug.breaks.endswith(".") for bug in bugs)


@pytest.mark.parametrize(
    ("within", "right", "wrong", "before", "after"),
    [
        ("law", "weight", "weight + 1", "[weight / total", "[(weight + 1) / total"),
        ("law", "count > 1", "False", "if count > 1:", "if (False):"),
        ("law", "count == 1", "count == 2", "elif count == 1:", "elif (count == 2):"),
        ("law", "f'{count}'", "''", 'f"{count}"', "('')"),
        ("LIMITS", "9", "8", '"most": 9', '"most": (8)'),
        (
            "LIMITS",
            "LIMITS = {'least': 1, 'most': 9}",
            "LIMITS = {}",
            'LIMITS = {"least": 1, "most": 9}',
            "LIMITS = {}",
        ),
        ("Row", "self.end()", "", "            self.end()\n", "            pass\n"),
        ("Row.step", "self.note('Straße', count)", "pass", 'self.note("Straße", count);', "pass;"),
        (
            "rows:Row.step",
            "if self.count:\n    self.end()\nreturn self.count",
            "self.end()\n\nif True:\n    return 0\n",
            "        if self.count:\n            self.end()\n        return self.count\n",
            "        self.end()\n\n        if True:\n            return 0\n",
        ),
        ("law", "total = sum(weights)", "", "    total = sum(weights)\n", "    \n"),
    ],
)
def test_code_is_replaced_and_the_rest_of_the_file_left_alone(bug, checkout, within, right, wrong, before, after):
    source = checkout / "coupled_sampling" / "rows.py"
    change = bug(within, right, wrong).plant(checkout)
    assert MODULE.count(before) == 1
    assert source.read_text(encoding="utf-8") == MODULE.replace(before, after)
    change.undo()
    assert source.read_text(encoding="utf-8") == MODULE


@pytest.mark.parametrize(
    ("within", "right", "wrong", "reason"),
    [
        ("gone", "count", "1", "nothing defines gone"),
        ("other:law", "count", "1", "nothing defines other:law"),
        ("law", "count - 1", "1", r"occurs 0 times in law in coupled_sampling/rows\.py"),
        ("law", "weights", "1", "occurs 2 times in law"),
        ("law", "count  >  1", "(count > 1)", "are the same"),
        ("law", "total = sum(weights)", "total = sum( weights )", "are the same"),
        ("law", "count >", "1", "is not Python"),
        ("law", "", "1", "is empty"),
        ("law", "x := 1", "pass", "one is an expression and the other is statements"),
        ("law", "count > 1", "", "occurs 0 times"),
        ("Row.step", "self.count = count", "if count:\n    pass", "leaves no program"),
    ],
)
def test_a_misfit_is_refused(bug, checkout, within, right, wrong, reason):
    with pytest.raises(ValueError, match=f"bug some-bug cannot be planted: .*{reason}.*bring it up to date"):
        bug(within, right, wrong).plant(checkout)
    assert (checkout / "coupled_sampling" / "rows.py").read_text(encoding="utf-8") == MODULE


def test_a_planted_bug_cannot_be_planted_again(bug, checkout):
    bug("law", "count > 1", "count > 2").plant(checkout)
    assert "occurs 0 times" in bug("law", "count > 1", "count > 2").misfit(checkout)


def test_a_name_of_several_modules_needs_the_module(bug, checkout):
    (checkout / "backends").mkdir()
    (checkout / "backends" / "others.py").write_text(MODULE, encoding="utf-8")
    (checkout / "coupled_sampling" / "backends").symlink_to("../backends")
    reason = bug("law", "count > 1", "False").misfit(checkout)
    assert reason == (
        "law is defined 2 times, in backends/others.py, coupled_sampling/rows.py; say which as module:law"
    )
    assert bug("others:law", "count > 1", "False").change(checkout).path.name == "others.py"


def test_tests_are_found_wherever_they_lie_and_must_be_one_file_each(bug, checkout):
    some = bug("law", "count > 1", "False")
    assert [path.as_posix() for path in some.test_paths(checkout)] == ["tests/core/test_rows.py"]
    assert bug("law", "count > 1", "False", ("test_gone",)).misfit(checkout) == "there is no test_gone.py below tests"
    (checkout / "tests" / "test_rows.py").touch()
    assert "tests/core/test_rows.py, tests/test_rows.py" in some.misfit(checkout)


def test_a_bug_is_found_after_its_file_was_moved(bug, checkout):
    some = bug("Row.step", "self.end()", "")
    before = some.change(checkout)
    (checkout / "coupled_sampling" / "deep").mkdir()
    before.path.rename(checkout / "coupled_sampling" / "deep" / "steps.py")
    moved = some.change(checkout)
    assert moved.path.name == "steps.py"
    assert moved.after == before.after


def test_a_bug_is_found_after_its_function_was_laid_out_anew(bug, checkout):
    source = checkout / "coupled_sampling" / "rows.py"
    some = bug("law", "if count > 1:\n    total = total * count\nelif count == 1:\n    pass", "total = 1")
    layout = (
        "if (\n        count > 1  # more\n    ):\n        # so\n        total = (total\n                 * count)\n"
    )
    anew = MODULE.replace("if count > 1:\n        total = total * count\n", layout)
    assert anew != MODULE
    before = some.change(checkout).after
    source.write_text(anew, encoding="utf-8")
    some.plant(checkout)
    assert source.read_bytes() == before

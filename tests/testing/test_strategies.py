"""Strategies keep what they promise and shrink to what can be read; the plugin changes nothing unless it is asked to."""

import importlib.util
import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st

from coupled_sampling import Sampling, generate
from coupled_sampling.errors import InvalidArgument
from coupled_sampling.testing import strategies
from coupled_sampling.testing.strategies import Table, World
from standins import ROOT

QUICK = settings(derandomize=True, deadline=None, max_examples=60)
# All phases, since the runs with a planted bug leave out shrinking.
SHRINK = settings(derandomize=True, deadline=None, max_examples=200, database=None, phases=tuple(Phase))
KINDS = ["any", "flat", "peaked", "zeros", "near-ties", "subnormal"]
SMALLEST_NORMAL = np.finfo(np.float64).smallest_normal

PROMISES = {
    "any": lambda law: True,
    "flat": lambda law: law.max() <= 9.001 * law.min(),
    "peaked": lambda law: np.sort(law)[-1] > 10 * np.sort(law)[-2],
    "zeros": lambda law: (law == 0).any(),
    "near-ties": lambda law: np.ptp(law) < 1e-15,
    "subnormal": lambda law: ((law > 0) & (law < SMALLEST_NORMAL)).any(),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("vocab_size", [None, 2, 5])
def test_laws_are_laws_of_their_kind(kind, vocab_size):
    @QUICK
    @given(strategies.laws(vocab_size, kind))
    def check(law):
        assert law.dtype == np.float64
        assert law.shape == (vocab_size or len(law),)
        assert (law >= 0).all()
        assert abs(law.sum() - 1) < 1e-14
        assert PROMISES[kind](law)

    check()


@pytest.mark.parametrize("kind", KINDS[1:])
def test_any_law_may_be_of_every_kind(kind):
    assert PROMISES[kind](find(strategies.laws(), PROMISES[kind], settings=SHRINK))


@QUICK
@given(strategies.pairs_of_laws(tv=st.shared(st.floats(0, 1), key="tv")), st.shared(st.floats(0, 1), key="tv"))
def test_pairs_have_the_distance_that_was_asked_for(pair, variation):
    draft_law, target_law = pair
    for law in pair:
        assert (law >= 0).all()
        assert abs(law.sum() - 1) < 1e-14
    assert abs(0.5 * np.abs(draft_law - target_law).sum() - variation) < 1e-14


@pytest.mark.parametrize("tv", [0, 0.25, 1.0])
def test_pairs_at_a_fixed_distance(tv):
    draft_law, target_law = find(strategies.pairs_of_laws(3, tv=tv), lambda pair: True, settings=SHRINK)
    assert 0.5 * np.abs(draft_law - target_law).sum() == pytest.approx(tv)


def test_the_simplest_law_is_a_half_and_a_half():
    assert find(strategies.laws(), lambda law: True, settings=SHRINK).tolist() == [0.5, 0.5]


@QUICK
@given(strategies.worlds())
def test_a_world_can_be_pasted_and_decoded(world):
    assert eval(repr(world), {"World": World, "Table": Table}) == world
    tokens = generate(
        world.provider(), world.prompts, length=world.length, method="scd-maximal", window=world.window, stop=world.stop
    ).tokens
    assert len(tokens) == len(world.prompts)
    assert all(1 <= len(row) <= world.length for row in tokens)


@QUICK
@given(strategies.tables(3, order=2), strategies.prompts(3, 4))
def test_a_table_is_looked_up_by_its_last_tokens(table, context):
    padded = (0, 0, *context)
    row = np.array(table.weights[3 * padded[-2] + padded[-1]])
    np.testing.assert_allclose(table(context), row / row.sum())


@QUICK
@given(strategies.samplings(4))
def test_sampling_settings_can_be_pasted(sampling):
    assert eval(repr(sampling), {"Sampling": Sampling}) == sampling


@QUICK
@given(strategies.batches(3, max_rows=4, max_length=2), strategies.windows(7))
def test_batches_and_windows_stay_in_their_ranges(batch, window):
    assert 1 <= len(batch) <= 4
    assert all(1 <= len(prompt) <= 2 and set(prompt) <= {0, 1, 2} for prompt in batch)
    assert 1 <= window <= 7


@pytest.mark.long
def test_a_planted_bug_shrinks_to_a_small_world():
    """The bug: a decoder that is wrong if the window is wider than 2 and a law forbids a token."""
    wrong = lambda world: world.window > 2 and any(0 in row for row in world.table.weights)  # noqa: E731
    world = find(strategies.worlds(2, max_rows=1), wrong, settings=SHRINK)
    assert (world.window, world.length, world.rows, world.stop) == (3, 1, 1, ())
    assert world.prompts == ((0,),)
    assert (world.table.vocab_size, world.table.order) == (2, 1)
    assert sum(map(sum, world.table.weights)) <= 3
    assert len(repr(world)) < 130


def test_a_planted_bug_in_a_coupling_shrinks_to_simple_laws():
    """The bug: the draft is always kept."""
    draft_law, target_law = find(
        strategies.pairs_of_laws(), lambda pair: np.abs(pair[0] - pair[1]).max() > 1e-3, settings=SHRINK
    )
    assert len(draft_law) == 2
    np.testing.assert_allclose([draft_law, target_law], [[0.5625, 0.4375], [0.4375, 0.5625]])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: strategies.laws(kind="round"), "kind is 'round'"),
        (lambda: strategies.laws(1), "vocab_size is 1"),
        (lambda: strategies.pairs_of_laws(tv=1.5), "tv is 1.5"),
        (lambda: Table(2, 1, ((1, 1),)), "expected 2 rows"),
        (lambda: Table(2, 0, ((0, 0),)), "not all of them 0"),
    ],
)
def test_what_cannot_be_is_refused(make, message):
    with pytest.raises(InvalidArgument, match=message):
        make()


PLUGIN = "coupled_sampling.testing.plugin"
TEST = """
def test_profile():
    from hypothesis import settings
    now = settings.default
    print("SEEN", now.max_examples, now.derandomize, now.deadline, now.print_blob)
"""


def run(folder, *arguments, plugin=True, blocked=False, **environment):
    """pytest on one small test in a project of its own."""
    (folder / "test_it.py").write_text(TEST)
    if blocked:
        (folder / "hypothesis.py").write_text("raise ImportError('not installed')\n")
    own = [str(ROOT), *([str(folder)] if blocked else [])]
    cleared = {name: value for name, value in os.environ.items() if name not in ("CI", "COUPLED_SAMPLING_PROFILE")}
    command = [sys.executable, "-m", "pytest", "-s", "-p", "no:cacheprovider"]
    command += ["-p", "no:hypothesispytest"] if blocked else []
    installed = [entry.name for entry in entry_points(group="pytest11") if entry.value == PLUGIN]
    if not plugin:
        command += [part for name in installed for part in ("-p", f"no:{name}")]
    elif not installed:
        command += ["-p", PLUGIN]
    result = subprocess.run(
        [*command, *arguments],
        cwd=folder,
        env={**cleared, "PYTHONPATH": os.pathsep.join(reversed(own)), "PYTHONDONTWRITEBYTECODE": "1", **environment},
        capture_output=True,
        text=True,
    )
    return result.returncode, result.stdout + result.stderr


def seen(output):
    return next(line for line in output.splitlines() if "SEEN" in line).split("SEEN ")[1]


def test_the_plugin_changes_nothing_unless_asked(tmp_path):
    code, plain = run(tmp_path, plugin=False)
    assert code == 0
    code, output = run(tmp_path)
    assert code == 0
    assert seen(output) == seen(plain)
    assert "hypothesis profile" not in output


@pytest.mark.parametrize("how", ["option", "environment", "setting"])
def test_a_profile_can_be_asked_for_in_three_ways(tmp_path, how):
    if how == "setting":
        (tmp_path / "pytest.ini").write_text("[pytest]\ncoupled_sampling_profile = ci\n")
    arguments = ["--coupled-sampling-profile", "ci"] if how == "option" else []
    environment = {"COUPLED_SAMPLING_PROFILE": "ci"} if how == "environment" else {}
    code, output = run(tmp_path, *arguments, **environment)
    assert code == 0
    assert seen(output).startswith("100 True None")
    assert "hypothesis profile coupled-sampling-ci" in output


def test_the_option_comes_before_the_environment(tmp_path):
    code, output = run(tmp_path, "--coupled-sampling-profile", "nightly", COUPLED_SAMPLING_PROFILE="ci")
    assert code == 0
    assert seen(output) == "2000 False None True"


def test_a_profile_that_does_not_exist_is_refused(tmp_path):
    code, output = run(tmp_path, COUPLED_SAMPLING_PROFILE="daily")
    assert code == 4
    assert "COUPLED_SAMPLING_PROFILE is 'daily', expected one of ci, nightly" in output


def test_without_hypothesis_pytest_goes_on_unless_a_profile_is_asked_for(tmp_path):
    (tmp_path / "test_other.py").write_text("def test_nothing(): pass\n")
    alone = ("-p", "no:schemathesis")  # whose own plugin cannot do without it
    code, output = run(tmp_path, "test_other.py", *alone, blocked=True)
    assert code == 0, output
    code, output = run(tmp_path, "test_other.py", *alone, "--coupled-sampling-profile", "ci", blocked=True)
    assert code == 4
    assert "needs the package hypothesis" in output


def test_making_no_strategy_loads_no_hypothesis():
    code = """import sys, coupled_sampling.testing.strategies as strategies
print('hypothesis' in sys.modules)
strategies.laws()
print('hypothesis' in sys.modules)"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["False", "True"]


def test_our_long_profile_takes_its_multiple_once_however_many_cases_share_a_test(tmp_path):
    """A parametrised test is one function in many items; a multiple for each would be 12 to the power of their number."""
    (tmp_path / "conftest.py").write_text((ROOT / "tests" / "conftest.py").read_text())
    (tmp_path / "test_many.py").write_text(
        "import pytest\n"
        "from hypothesis import given, settings, strategies as st\n"
        "\n"
        "calls = {0: 0, 1: 0, 2: 0}\n"
        "\n"
        "@pytest.mark.parametrize('case', [0, 1, 2])\n"
        "@settings(max_examples=2)\n"
        "@given(st.integers())\n"
        "def test_many(case, number):\n"
        "    calls[case] += 1\n"
        "\n"
        "def test_count():\n"
        "    assert calls == {0: 24, 1: 24, 2: 24}\n"
    )
    code, output = run(tmp_path, "test_many.py", "--coupled-sampling-profile", "nightly")
    assert code == 0, output


def test_a_shorter_run_takes_as_many_cases_as_a_mark_says_and_the_same_ones_always():
    spec = importlib.util.spec_from_file_location("our_conftest", ROOT / "tests" / "conftest.py")
    conftest = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(conftest)

    class Case:
        def __init__(self, name, **marks):
            self.path, self.name, self.originalname, self.marks = Path("test_a.py"), name, name, marks

        def get_closest_marker(self, name):
            return SimpleNamespace(args=(self.marks[name],)) if name in self.marks else None

    many, few = [Case("many", cases=3) for _ in range(10)], [Case("few", cases=3) for _ in range(2)]
    others = [Case("plain"), Case("slow", cases=0, long=None)]
    left = list(conftest.left_out([*many, *few, *others]))
    assert len(left) == 7
    assert set(left) < set(many)
    assert list(conftest.left_out([*many, *few, *others])) == left

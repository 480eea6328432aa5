"""Who chooses how many slots are for branches: the user, a rule of the user's, or the search."""

from types import SimpleNamespace

import numpy as np
import pytest

from coupled_sampling import Decoder, HostStep, Request, Sampling, decoding, generate
from coupled_sampling.branching import BestFirst
from coupled_sampling.errors import InvalidArgument
from coupled_sampling.window_choice import WindowChoice
from coupled_sampling.window_search import LADDER, TREES
from standins.markov import Markov


class Seen(HostStep):
    """Keeps what it was asked: each window's width, branches, and candidates wanted."""

    def __init__(self, method, **model):
        super().__init__(Markov(4, vocab_size=5, **model), method)
        self.asked = []

    def step(self, window):
        branches = 0 if window.branches is None else int(window.branches[0])
        self.asked.append((window.tokens.shape[1], branches, window.candidates))
        return super().step(window)


class Chooses:
    """A rule of a stranger's: three branches in eight slots, at every second pair of steps."""

    largest = 8

    def __init__(self, kept=3):
        self.steps, self.kept, self.told = 0, kept, []

    def width(self, rows):
        return 8

    def branches(self, rows):
        return self.kept if len(self.told) // 4 % 2 else 0

    def record(self, rows, width, tokens, seconds):
        self.told.append((width, tokens))

    def record_walks(self, rows, width, branches, walks, seconds):
        self.told.append((width, branches, [walk.tokens for walk in walks]))


def run(step, length=100, sampling=None, **settings):
    """The tokens, by a decoder that is returned."""
    decoder = Decoder(step, drafting="repeat", **settings)
    decoder.add(Request([2], length, seed=3, sampling=sampling or Sampling()))
    tokens = []
    while decoder.active or decoder.waiting:
        for commit in decoder.step():
            tokens += commit.tokens.tolist()
    return tokens, decoder


@pytest.fixture
def free_width(monkeypatch):
    """A clock by which all passes take as long, whatever their width."""
    ticks = iter(range(10**9))
    monkeypatch.setattr(decoding, "time", SimpleNamespace(perf_counter=lambda: float(next(ticks))))


def test_auto_finds_branches_where_they_cost_nothing_and_leaves_the_tokens_alone(free_width):
    step = Seen("scd-match", max_length=1100)
    tokens, decoder = run(step, length=1000, window="auto")
    assert {(width, branches) for width, branches, _ in step.asked} >= {(16, 0), (32, 4)}
    chosen = decoder._windows.next(rows=1)
    assert chosen in TREES
    assert chosen.width > 16
    (plain,) = generate(step.provider, [[2]], length=1000, method="ar", seed=3).tokens
    assert tokens == plain.tolist()


def test_auto_comes_to_rest_where_no_branch_is_found(free_width):
    step = Seen("scd-match", max_length=20_000)
    _, decoder = run(
        step, length=12_000, window="auto", sampling=Sampling(temperature=0)
    )  # there is nothing to guess beside
    assert {branches for _, branches, _ in step.asked} == {0}
    assert max(width for width, _, _ in step.asked) > 16
    assert decoder._windows.rule.settled() is not None


@pytest.mark.parametrize(
    ("window", "branches", "told"),
    [
        (2, 1, r"branches is 1, expected at most 0 of the window's 2 slots: .*or for a wider window"),
        (8, 7, r"branches is 7, expected at most 6 of the window's 8 slots"),
        (None, 31, r"branches is 31, expected at most 30 of the window's 32 slots"),
        (
            "auto",
            65,
            r"branches is 65, but window 'auto' .* at most 128; ask for fewer, or give the window's width",
        ),
        ("auto", BestFirst(65), r"branches is BestFirst\(65\), but window 'auto'"),
    ],
)
def test_branches_that_no_window_has_slots_for_are_refused(window, branches, told):
    step = Seen("scd-match", max_length=190)
    step.provider.max_columns = 190
    with pytest.raises(InvalidArgument, match=told):
        Decoder(step, window=window, branches=branches)


@pytest.mark.parametrize(("name", "value"), [("candidates", 0), ("candidates", 2.0), ("most", -1), ("most", "3")])
def test_a_rule_whose_numbers_are_none_is_refused(name, value):
    rule = BestFirst(2)
    setattr(rule, name, value)
    with pytest.raises(InvalidArgument, match=rf"branches\.{name} is .*, expected an integer"):
        Decoder(Seen("scd-match", max_length=64), window=8, branches=rule)


def test_a_rule_may_count_in_numpys_integers():
    step, rule = Seen("scd-match", max_length=64), BestFirst(2)
    rule.candidates = np.int64(3)
    run(step, length=20, window=8, branches=rule)
    assert {(type(candidates), candidates) for _, _, candidates in step.asked} == {(int, 3)}, "windows are cut by rows"


@pytest.mark.parametrize("settings", [{"branches": 0}, {}])
def test_auto_has_no_branches_where_there_are_to_be_or_can_be_none(settings, free_width):
    step = Seen("scd-match" if settings else "scd-gumbel", max_length=800)
    run(step, length=700, window="auto", **settings)
    assert {asked[1:] for asked in step.asked} == {(0, 0)}
    assert max(width for width, _, _ in step.asked) > 16
    assert [rung.width for rung in WindowChoice("auto", settings.get("branches"), step).rule.rungs] == list(LADDER)


def test_a_number_of_branches_stands_in_all_windows_that_are_twice_as_wide(free_width):
    step = Seen("scd-match", max_length=800)
    _, decoder = run(step, length=700, window="auto", branches=9)
    full = {(width, branches) for width, branches, _ in step.asked if branches in (0, 9)}
    assert {(16, 0), (32, 9)} <= full
    assert not any(branches for width, branches, _ in step.asked if width < 18)
    assert decoder._windows.next(rows=1).branches == 9


def test_fixed_windows_have_no_branches_unless_asked_for():
    for given, kept in ((None, 0), (3, 3)):
        step = Seen("scd-match", max_length=128)
        _, decoder = run(step, window=8, branches=given)
        assert decoder.branches == kept
        assert any(branches for _, branches, _ in step.asked) == (kept > 0)


def test_a_rule_of_a_strangers_chooses_and_is_told_of_walks():
    step, rule = Seen("scd-match", max_length=128), Chooses()
    run(step, window=rule)
    assert {told[1] for told in rule.told} == {0, 3}
    assert all(told[0] == 8 and len(told[2]) == 1 for told in rule.told)
    # Candidates are made where branches may need them, and nowhere else.
    assert {bool(candidates) for _, branches, candidates in step.asked if branches} == {True}
    assert 0 in {candidates for _, _, candidates in step.asked}


def test_a_number_of_branches_is_not_for_the_rule_to_change():
    for given in (0, 2):
        step, rule = Seen("scd-match", max_length=128), Chooses()
        _, decoder = run(step, window=rule, branches=given)
        assert decoder.branches == given
        assert {len(told) for told in rule.told} == {2}, "told as a plain rule is"


def test_a_rule_that_chooses_branches_is_refused_where_there_can_be_none():
    with pytest.raises(
        InvalidArgument, match=r"chooses branches, but sjd accepts drafts by rejection.*give branches=0"
    ):
        Decoder(Seen("sjd", max_length=64), window=Chooses())
    assert Decoder(Seen("sjd", max_length=64), window=Chooses(), branches=0).branches == 0


@pytest.mark.parametrize("chosen", [8, -1, 1.5, True])
def test_branches_that_cannot_be_are_refused(chosen):
    rule = Chooses()
    rule.branches = lambda rows: chosen
    decoder = Decoder(Seen("scd-match", max_length=64), window=rule)
    decoder.add(Request([2], 4))
    with pytest.raises(
        InvalidArgument, match=r"Chooses\.branches returned .*expected an integer from 0 to the width less 1, 7"
    ):
        decoder.step()


def test_windows_to_try_fit_the_model():
    step = Seen("scd-match", max_length=100)
    step.max_window, step.provider.max_columns = 40, 100
    rungs = WindowChoice("auto", None, step).rule.rungs
    assert [tuple(rung) for rung in rungs[-3:]] == [(32, 4), (48, 14), (64, 24)]
    assert all(rung.path <= 40 for rung in WindowChoice("auto", 9, step).rule.rungs)


def test_matches_are_told_at_once_and_others_when_they_are_closed():
    for method, late in (("scd-match", False), ("scd-gumbel", True)):
        rule = Chooses()
        decoder = Decoder(Seen(method, max_length=128), window=rule, branches=0, drafting="repeat")
        decoder.add(Request([2], 100))
        for _ in range(6):
            decoder.step()
        assert (len(rule.told) < 6 - 1) == late


def test_rows_of_their_own_numbers_are_walked():
    model = Markov(1, vocab_size=5, batch_size=3, max_length=128)
    rule = Chooses()
    generate(model, [[0], [1], [2, 3]], length=[30, 60, 40], method="scd-match", window=rule, drafting="repeat")
    assert {len(told[2]) for told in rule.told} >= {1, 3}
    assert np.sum([np.sum(told[2]) for told in rule.told]) <= 130

"""Windows whose width is chosen while decoding: the law stays, the search finds the fastest, and looking at drafts is caught."""

from types import SimpleNamespace

import numpy as np
import pytest

from coupled_sampling import Decoder, HostStep, Request, decoding, generate
from coupled_sampling.drafting import Repeat
from coupled_sampling.errors import InvalidArgument
from coupled_sampling.methods import METHODS
from coupled_sampling.testing import (
    TableProvider,
    autoregressive_law,
    exact_law,
    joint_law,
    random_table,
    total_variation,
)
from coupled_sampling.window_search import LADDER, WindowSearch
from coupled_sampling.windows import WindowRule, find_window_rule


class ByCounts:
    """A rule as erratic as one may be: the width is a function of all counts so far."""

    largest = 4

    def __init__(self):
        self.state = 2

    def width(self, rows):
        return 1 + self.state % 4

    def record(self, rows, width, tokens, seconds):
        self.state = 3 * self.state + 7 * sum(tokens) + width


class ByDrafts(ByCounts):
    """The forbidden one: it looks at the drafts it is about to have tested."""

    def __init__(self):
        self.decoder = None

    def width(self, rows):
        row = self.decoder._rows[0]
        drafts = row.tokens[row.committed : row.committed + row.drafted] if row is not None else []
        return 1 if 0 in list(drafts) else 4

    def record(self, rows, width, tokens, seconds):
        pass


class SlowPasses(TableProvider):
    """A pass takes longer where a draft is token 0, on a clock that only passes move."""

    def forward(self, tokens, start):
        self.clock += 6 if (tokens[0, 1:] == 0).any() else 1
        return super().forward(tokens, start)

    clock = 0.0


class ByTimes:
    """Narrow after a slow step: as bad as looking at drafts, if it knows the time at once."""

    largest = 4

    def __init__(self):
        self.chosen = 4

    def width(self, rows):
        return self.chosen

    def record(self, rows, width, tokens, seconds):
        self.chosen = 2 if seconds > 3 else 4


class ByTimesAtOnce(ByTimes):
    """It reads the clock behind the loop's back."""

    seen = 0.0

    def width(self, rows):
        clock = self.decoder._step.provider.clock
        if clock != self.seen:
            self.chosen, self.seen = 2 if clock - self.seen > 3 else 4, clock
        return self.chosen


FILLED = Repeat(fill=1)
"""So that there are drafts from the first step on."""


def law_of(method, rule, table, length, drafting=FILLED, model=TableProvider):
    def run(noise):
        chosen = rule()
        decoder = Decoder(model(table, 2, 1, 12), method=method, window=chosen, drafting=drafting, noise=noise)
        chosen.decoder = decoder
        decoder.add(Request([1], length))
        tokens = []
        while decoder.active or decoder.waiting:
            for commit in decoder.step():
                tokens += commit.tokens.tolist()
        return tuple(tokens)

    return exact_law(run, max_paths=50_000)


SEEDS = [0, *(pytest.param(seed, marks=pytest.mark.long) for seed in (1, 2))]
"""Of tables: others show the same again."""


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("seed", SEEDS)
def test_law_is_autoregressive_when_widths_depend_on_counts(method, seed):
    table = random_table(seed, 2)
    law = law_of(method, ByCounts, table, 5)
    assert total_variation(law, autoregressive_law(table, [1], 5)) < 1e-12


@pytest.mark.cases(1)
@pytest.mark.parametrize("method", ["sjd", "scd-maximal", "scd-gumbel"])
def test_a_rule_that_looks_at_drafts_is_caught(method):
    """Otherwise the test above would prove nothing."""
    found = (
        total_variation(law_of(method, ByDrafts, table, 5), autoregressive_law(table, [1], 5))
        for table in (random_table(seed, 2) for seed in range(3))
    )
    assert any(distance > 1e-3 for distance in found)


@pytest.fixture
def slow_passes(monkeypatch):
    """Decoders over `SlowPasses` tell the time by its clock."""
    made = []

    class Model(SlowPasses):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            made[:] = [self]

    monkeypatch.setattr(decoding, "time", SimpleNamespace(perf_counter=lambda: made[0].clock))
    return Model


@pytest.mark.parametrize("method", ["sjd", "scd-maximal", "scd-gumbel", "scd-match"])
@pytest.mark.parametrize("seed", SEEDS[:2])
def test_law_is_autoregressive_when_times_depend_on_drafts(method, seed, slow_passes):
    table = random_table(seed, 2)
    law = law_of(method, ByTimes, table, 5, model=slow_passes)
    assert total_variation(law, autoregressive_law(table, [1], 5)) < 1e-12


@pytest.mark.cases(1)
@pytest.mark.parametrize("method", ["scd-maximal", "scd-gumbel"])
def test_times_known_at_once_are_caught(method, slow_passes):
    found = (
        total_variation(law_of(method, ByTimesAtOnce, table, 5, model=slow_passes), autoregressive_law(table, [1], 5))
        for table in (random_table(seed, 2) for seed in range(3))
    )
    assert any(distance > 1e-3 for distance in found)


class Telling(HostStep):
    """A step whose time tells what it leaves open: it is slow where any row now has token 0 for a draft.

    That is more than `SlowPasses` tells, for it includes what the step itself drew, up to the draft after the last slot.
    """

    clock = 0.0

    def step(self, window):
        outcome = super().step(window)
        first = window.known - 1 + outcome.committed
        end = window.known + window.recycled + window.fresh
        drafts = [outcome.tokens[b, first[b] : end[b]] for b in np.flatnonzero(window.draws)]
        self.clock += 6 if any(0 in row for row in drafts) else 1
        return outcome


class ByTellingTimes(ByTimes):
    """One slot after a slow step, else three."""

    largest = 3

    def __init__(self):
        self.chosen = 3

    def record(self, rows, width, tokens, seconds):
        self.chosen = 1 if seconds > 3 else 3


RAGGED = [([1], 2), ([0, 1], 4)]
"""Prompts and lengths: rows are never at the same position, and one ends while the other is under way."""


def law_of_rows(method, table, monkeypatch, rule=ByTellingTimes):
    def run(noise):
        step = Telling(TableProvider(table, 2, len(RAGGED), 12), method, noise)
        chosen = rule()
        chosen.step = step
        monkeypatch.setattr(decoding, "time", SimpleNamespace(perf_counter=lambda: step.clock))
        decoder = Decoder(step, window=chosen, drafting="repeat")
        rows = [[] for _ in RAGGED]
        for sequence, (prompt, length) in enumerate(RAGGED):
            decoder.add(Request(prompt, length, sequence=sequence))
        while decoder.active or decoder.waiting:
            for commit in decoder.step():
                rows[commit.handle] += commit.tokens.tolist()
        return tuple(map(tuple, rows))

    return exact_law(run, max_paths=50_000)


def distance_of_rows(method, seed, monkeypatch, **settings):
    table = random_table(seed, 2)
    expected = joint_law([autoregressive_law(table, *row) for row in RAGGED])
    return total_variation(law_of_rows(method, table, monkeypatch, **settings), expected)


@pytest.mark.parametrize("method", ["sjd", "scd-maximal", "scd-gumbel", "scd-match"])
@pytest.mark.parametrize("seed", SEEDS[:2])
def test_joint_law_is_autoregressive_when_times_tell_all_that_is_open_in_any_row(method, seed, monkeypatch):
    assert distance_of_rows(method, seed, monkeypatch) < 1e-12


@pytest.mark.cases(1)
@pytest.mark.parametrize("method", ["sjd", "scd-maximal", "scd-gumbel"])
def test_telling_times_known_at_once_are_caught(method, monkeypatch):
    """Otherwise the test above would prove nothing."""

    class AtOnce(ByTellingTimes):
        seen = 0.0

        def width(self, rows):
            passed, self.seen = self.step.clock - self.seen, self.step.clock
            return 1 if passed > 3 else 3

    assert any(distance_of_rows(method, seed, monkeypatch, rule=AtOnce) > 0.02 for seed in range(2))


def test_times_do_reach_the_rule(slow_passes):
    """Else its law would be safe for no good reason."""
    told = []

    class Listening(ByTimes):
        def record(self, rows, width, tokens, seconds):
            told.append(seconds)
            super().record(rows, width, tokens, seconds)

    decoder = Decoder(slow_passes(random_table(0, 2), 2, 1, 80), window=Listening(), drafting="repeat")
    decoder.add(Request([1], 70))
    while decoder.active or decoder.waiting:
        decoder.step()
    assert set(told) == {1, 6}


@pytest.mark.parametrize("width", [0, 5, 2.5, True, None])
def test_a_rule_that_chooses_no_width_is_refused(width):
    rule = ByCounts()
    rule.width = lambda rows: width
    decoder = Decoder(TableProvider(random_table(0, 2), 2, 1, 12), window=rule)
    decoder.add(Request([1], 4))
    with pytest.raises(
        InvalidArgument, match=r"ByCounts\.width returned .* expected an integer from 1 to its largest, 4"
    ):
        decoder.step()


def test_the_rules_are_what_decides_the_widths():
    rule = ByCounts()
    seen = []

    class Model(TableProvider):
        def forward(self, tokens, start):
            seen.append(tokens.shape[1])
            return super().forward(tokens, start)

    generate(Model(random_table(0, 2), 2, 1, 40), [[1]], length=30, window=rule, method="scd-match", drafting="repeat")
    assert len(set(seen)) >= 3


def simulated(slot, search, steps=3000, seed=0, rows=1):
    """Feed a search with a machine whose steps cost 1 + ``slot`` per slot, in noisy times with hiccups.

    Runs of accepted drafts come in bursts that a narrow window needs several steps for. Returns the share of the best fixed
    width's tokens per second that was reached over all steps, and that width.
    """
    random = np.random.default_rng(seed)
    bursts = np.where(random.random(4000) < 0.1, random.geometric(1 / 25, 4000), 1 + random.poisson(2, 4000))
    gain = {width: bursts.sum() / np.ceil(bursts / width).sum() for width in LADDER}
    cost = {width: 1 + slot * width for width in LADDER}
    made = spent = left = 0
    for _ in range(steps):
        width = search.width(rows)
        left = left or int(random.choice(bursts))
        committed = min(left, width)
        left -= committed
        seconds = cost[width] * np.exp(0.15 * random.standard_normal()) * (20 if random.random() < 0.02 else 1)
        search.record(rows, width, [committed] * rows, float(seconds))
        # What the width commits on average: the luck of the draw is no merit of the search.
        made, spent = made + gain[width], spent + cost[width]
    rates = {width: gain[width] / cost[width] for width in LADDER}
    best = max(rates, key=rates.get)
    return made / spent / rates[best], best


@pytest.mark.cases(2)
@pytest.mark.parametrize("slot", [1.0, 0.3, 0.1, 0.03, 0.003])
def test_search_comes_near_the_best_fixed_width_despite_hiccups(slot):
    shares = [simulated(slot, WindowSearch(128), seed=seed)[0] for seed in range(5)]
    # Far from where it starts the way costs more; at 16, where searches start, a rung is worth 5 %.
    assert np.median(shares) > (0.93 if slot <= 0.1 else 0.85), shares


def test_search_rests_and_wakes_up():
    search = WindowSearch(128)
    _, fastest = simulated(0.1, search, steps=2000)
    rested = {search.settled(1)}
    for _ in range(40):
        simulated(0.1, search, steps=60)
        rested.add(search.settled(1))
    assert None in rested
    assert any(width is not None and 0.5 <= width / fastest <= 2 for width in rested)


def test_numbers_of_rows_are_searched_apart():
    search = WindowSearch(128)
    simulated(1.0, search, rows=1)
    simulated(0.003, search, rows=8)
    assert search.width(1) < search.width(8)


def test_widths_stay_on_the_ladder_and_within_the_model():
    assert WindowSearch(20).widths == [1, 2, 3, 4, 6, 8, 12, 16]
    assert WindowSearch(1).width(1) == 1
    tokens, _ = generate(
        TableProvider(random_table(0, 3), 3, 2, 200), [[0], [1]], length=190, window="auto", method="ar"
    )
    assert [len(row) for row in tokens] == [190, 190]


def test_automatic_windows_leave_the_tokens_of_scd_match_alone():
    table = random_table(4, 5)
    runs = [
        generate(TableProvider(table, 5, 1, 400), [[2]], length=390, window=window, method=method, seed=3).tokens[0]
        for window, method in (("auto", "scd-match"), (1, "ar"))
    ]
    np.testing.assert_array_equal(*runs)


@pytest.mark.parametrize("window", ["wide", 0, -3, 2.5, True])
def test_a_window_that_is_none_is_refused(window):
    with pytest.raises(InvalidArgument, match="expected an integer >= 1, or 'auto'"):
        find_window_rule(window, 10)


def test_a_rule_wider_than_the_model_is_refused():
    assert isinstance(ByCounts(), WindowRule)
    with pytest.raises(InvalidArgument, match="window is 4, the model takes at most 3"):
        find_window_rule(ByCounts(), 3)


def test_the_usual_window_fits_a_model_that_takes_fewer_slots():
    for most, expected in ((8, 8), (32, 32), (100, 32)):
        assert Decoder(TableProvider(random_table(0, 3), 3, max_length=most)).window == expected

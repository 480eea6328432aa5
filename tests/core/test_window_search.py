"""The search on ladders with branches, with a machine and a model that are formulas."""

import numpy as np
import pytest

from coupled_sampling.errors import InvalidArgument
from coupled_sampling.walks import Walk
from coupled_sampling.window_search import TREES, WindowSearch

RUNS = np.random.default_rng(1).geometric(1 / 12, 4000), np.random.default_rng(2).geometric(1 / 40, 4000) - 1
"""Drafts of the path that stand, one run after another; and which branch stands behind each, if there are that many."""


def step(rung, run, branch):
    """What a window walks where so much of a run is left, and what it leaves of it."""
    path = rung.width - rung.branches - 1
    if run > path:
        return Walk(np.arange(path), path, 1), run - path - 1
    stood = [path + branch] if branch < rung.branches else []
    return Walk(np.array([*range(run), *stood], int), path, 1), 0


def decoded(rung, usable):
    """Tokens per step of a window that is always the same."""
    tokens = steps = 0
    for run, branch in zip(*(each[:600].tolist() for each in RUNS), strict=True):
        left = run
        while left is not None:
            walk, rest = step(rung, left, branch if usable else 10**6)
            tokens, steps, left = tokens + walk.tokens, steps + 1, rest or None
    return tokens / steps


@pytest.mark.parametrize(
    ("slot", "usable"),
    [(0.2, True), (0.02, True), (0.002, True), (0.02, False)],
    ids=["dear", "cheap", "free", "no-use"],
)
def test_search_comes_near_the_best_window_with_branches(slot, usable):
    rates = {rung: decoded(rung, usable) / (1 + slot * rung.width) for rung in TREES}
    search, random = WindowSearch(256, ladder=TREES), np.random.default_rng(0)
    left, number = 0, -1
    while search.settled() is None:
        if not left:
            number += 1
            left = int(RUNS[0][number])
        branch = int(RUNS[1][number]) if usable else 10**6
        rung = next(rung for rung in TREES if rung == (search.width(1), search.branches(1)))
        walk, left = step(rung, left, branch)
        seconds = (1 + slot * rung.width) * np.exp(0.1 * random.standard_normal())
        search.record_walks(1, *rung, [walk], seconds)
    found = next(rung for rung in TREES if rung == (search.settled(), search.branches(1)))
    assert rates[found] > 0.9 * max(rates.values()), (found, max(rates, key=rates.get))


def test_search_knows_a_window_by_its_branches_too():
    search = WindowSearch(32, start=32, ladder=[(16, 0), (32, 8)])
    walk = Walk(np.arange(3), 20, 1)
    for _ in range(200):
        search.record_walks(1, 32, 4, [walk], 1.0)
    assert search.settled() is None
    for _ in range(200):
        search.record_walks(1, 32, 8, [walk], 1.0)
        search.record_walks(1, 16, 0, [walk], 0.1)
    assert (search.settled(), search.branches(1)) == (16, 0)


@pytest.mark.parametrize("ladder", [[], [(64, 0)], [(8, 8)], [(8, -1)], [(16, 0), (8, 0)], [(8, 0), (8, 0)]])
def test_a_ladder_that_is_none_is_refused(ladder):
    with pytest.raises(InvalidArgument, match=r"expected windows .* from narrow to wide"):
        WindowSearch(32, ladder=ladder)

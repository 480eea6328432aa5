"""What a fit and the tables that it makes cannot be given is refused with the argument's name."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from coupled_sampling import open_bundle
from coupled_sampling.bundles import CorrectionTables, neighbour_lags
from coupled_sampling.corrections import LowRank
from coupled_sampling.errors import InvalidArgument
from coupled_sampling.fitting import FitSettings, Optimiser, Pairs, Recording, fit_corrections, fit_low_rank
from coupled_sampling.plain_corrections import KeptAverages, RunningAverages
from coupled_sampling.testing import TableProvider, random_table

PARTS = {
    "unigram": np.zeros(4),
    "basis": np.zeros((4, 2)),
    "neighbours": np.zeros((1, 5, 2)),
    "stale_scale": np.ones(2),
    "unigram_scale": np.zeros(2),
}
LAW = np.zeros((3, 4))
PAIRS = Pairs(np.zeros((3, 1), int), np.ones((3, 1), int), LAW, LAW, np.arange(3))


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("wrong", ["a list", None, np.full((4, 2), None), np.zeros((9, 9, 9)), np.float64(1)])
def test_parts_of_a_table_are_arrays_of_their_shapes(part, wrong):
    given = PARTS[part].tolist() if isinstance(wrong, str) else wrong
    with pytest.raises(InvalidArgument, match=f"{part}|basis"):
        LowRank((1,), **PARTS | {part: given})


@pytest.mark.parametrize("make", [lambda lags: LowRank(lags, **PARTS), lambda lags: RunningAverages(lags, 4)])
@pytest.mark.parametrize("lags", [None, 1, "1", True, (), (0,), (1, 1), (1.0,), [None], object()])
def test_lags_are_distances(make, lags):
    with pytest.raises(InvalidArgument, match="lags"):
        make(lags)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [("weights", "a"), ("weights", 1), ("weights", [None]), ("shrinkage", "3"), ("shrinkage", None), ("shrinkage", 0)],
)
def test_settings_of_averages_are_numbers(name, wrong):
    with pytest.raises(InvalidArgument, match=name):
        RunningAverages((1,), 4, **{name: wrong})


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: KeptAverages((1,), [[0.0]], [[0, 0]]), "rows"),
        (lambda: KeptAverages((1,), np.zeros((1, 4)), None), "index"),
        (lambda: KeptAverages.from_state(None), "state"),
        (
            lambda: KeptAverages.from_state({"lags": 0, "rows": np.zeros((1, 4)), "index": np.zeros((1, 5), int)}),
            "lags",
        ),
        (lambda: CorrectionTables({"match": LowRank((1,), **PARTS)}, plain=None), "plain"),
        (lambda: neighbour_lags(None), "manifest"),
        (lambda: Optimiser(seed=-1), "seed"),
        (lambda: fit_low_rank(None, (1,), vocab_size=4), "parts"),
        (lambda: fit_low_rank([PAIRS, 3], (1,), vocab_size=4), r"parts\[1\]"),
        (lambda: fit_low_rank([PAIRS, PAIRS], (1, 2), vocab_size=4), r"parts\[0\]"),
        (lambda: fit_low_rank([PAIRS, PAIRS], (1,), vocab_size=3), r"parts\[0\]"),
        (lambda: fit_low_rank([PAIRS, PAIRS], (1,), vocab_size=4, first=-1), "first"),
        (lambda: fit_low_rank([PAIRS, PAIRS], 1, vocab_size=4), "lags"),
        (lambda: fit_low_rank([PAIRS, PAIRS], (1,), vocab_size=4, temperature="hot"), "temperature"),
        (lambda: fit_low_rank([PAIRS, PAIRS], (1,), vocab_size=4, optimiser=3), "optimiser"),
        (lambda: Recording(None, (1,), 0, 4), "provider"),
        (lambda: Recording(TableProvider(random_table(0, 4), 4), (1,), 0, 0), "count"),
        (lambda: Recording(TableProvider(random_table(0, 4), 4), (1,), 2, 3), "count"),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(make, said):
    with pytest.raises(InvalidArgument, match=said):
        make()


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("provider", None),
        ("provider", TableProvider(random_table(0, 4), 4)),
        ("bundle", "fashion"),
        ("decoding", None),
        ("prompts", None),
        ("prompts", [3]),
        ("prompts", ["a"]),
        ("prompts", [(9999,)]),
        ("work", 3),
        ("settings", 3),
    ],
)
def test_a_fit_asks_what_it_is_given(name, wrong, tmp_path):
    bundle = open_bundle("fashion")
    model = TableProvider(random_table(0, bundle.manifest.vocab_size), bundle.manifest.vocab_size)
    given = {
        "provider": model,
        "bundle": bundle,
        "decoding": replace(bundle.settings(), window=8),
        "prompts": [(263,)],
        "work": Path(tmp_path / "work"),
        "settings": FitSettings(samples=2, apart=1),
    }
    with pytest.raises(InvalidArgument, match=name):
        fit_corrections(**given | {name: wrong})
    assert not (tmp_path / "work").exists()

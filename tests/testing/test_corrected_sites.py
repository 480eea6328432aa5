"""How a comparison judges redrafts that a table corrects: by its laws under the tokens at hand, within a bound that holds."""

import numpy as np
import pytest

from coupled_sampling import HostStep, Request, Sampling
from coupled_sampling.contracts import RowInfo
from coupled_sampling.corrections import Changes
from coupled_sampling.errors import InvalidArgument
from coupled_sampling.target import target_law
from coupled_sampling.testing import StepComparison, TableProvider, random_table
from coupled_sampling.testing.steps.corrected_sites import corrected_sites
from coupled_sampling.testing.steps.margins import Site
from coupled_sampling.testing.steps.rounding import FLOAT32, rounded_laws
from standins.correctors import random_low_rank

V, N = 40, 9


def sites_of(logits, drafts, sampling):
    info = RowInfo(0, 0, sampling)
    return [
        Site(rounded_laws(row, sampling), None, int(drafts[s]), np.zeros(4), info, 20 + s, row)
        for s, row in enumerate(logits)
    ]


@pytest.mark.parametrize("seed", range(5))
def test_laws_are_the_tables_and_float32_stays_within_their_errors(seed):
    random = np.random.default_rng(seed)
    table = random_low_rank(seed, V, (1, 3, 12), rank=20, scale=3)
    logits = (4 * random.standard_normal((N, V))).astype(np.float32).astype(np.float64)
    logits[:, 5] = -np.inf
    drafts, tokens = random.integers(0, V, (2, N))
    tokens[3:5] = drafts[3:5]
    sampling = Sampling(0.7)
    made = corrected_sites(table, sites_of(logits, drafts, sampling), tokens, 2, logits_error=0.0, unit=FLOAT32)
    changed = 0
    for s, site in enumerate(made):
        old, new = (np.array([[x[s - lag] if s >= lag else 0 for lag in table.lags]]) for x in (drafts, tokens))
        wide, single = (
            table.correct(logits[s][None].astype(kind), Changes(old, new, np.array([20 + s])))[0]
            for kind in (np.float64, np.float32)
        )
        if s < 2 or (old == new).all():
            wide = single = logits[s]
        else:
            changed += 1
        (law,) = site.targets
        np.testing.assert_allclose(law.law, target_law(wide, sampling), atol=1e-12)
        off = np.abs(target_law(single.astype(np.float32), sampling) - law.law)
        assert (off <= law.error + law.common * law.law).all()
        assert law.error.max() < 1e-3
    assert changed >= 5


def test_sites_end_where_the_table_makes_no_law():
    table = random_low_rank(0, V, (1,))
    table.neighbours[0, 7] = np.inf
    drafts, tokens = np.zeros(N, np.int64), np.zeros(N, np.int64)
    tokens[4] = 7
    made = corrected_sites(
        table, sites_of(np.zeros((N, V)), drafts, Sampling()), tokens, 2, logits_error=0.0, unit=FLOAT32
    )
    assert len(made) == 5


def test_what_cannot_be_judged_is_refused():
    class Own:
        lags = (1,)

        def correct(self, logits, changes):
            return logits

    def model():
        return TableProvider(random_table(0, 5), 5)

    with pytest.raises(InvalidArgument, match="other corrects laws by a Own, which has no bound"):
        StepComparison(model(), HostStep(model(), "sjd", corrections=Own()))
    both = StepComparison(model(), HostStep(model(), "sjd", corrections=random_low_rank(0, 5, (1, 3))))
    processed = Sampling(processors=(lambda logits, tokens, positions: logits,))
    assert "not compared" in both.takes(Request([0], 4, sampling=processed))
    assert both.takes(Request([0], 4)) is None

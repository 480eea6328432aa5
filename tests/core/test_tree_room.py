"""Windows with branches in models that have little room beside their positions, or that take few slots at once."""

import numpy as np
import pytest

from coupled_sampling import generate
from coupled_sampling.branching import Branches
from coupled_sampling.testing import TableProvider, random_table


class Narrow(TableProvider):
    """It has so many columns, and takes so many slots without branches."""

    def __init__(self, columns, max_window, rows=2):
        super().__init__(random_table(1, 5), 5, batch_size=rows, max_length=40)
        self._columns, self.max_window = columns, max_window

    @property
    def max_columns(self):
        return self._columns


class Wide:
    """Branches as many as there may be, all of them guesses for the first open position."""

    candidates = 1

    def __init__(self, most):
        self.most = most

    def branches(self, context):
        return Branches(np.full(context.most, -1), np.arange(context.most) % 5)


@pytest.mark.cases(5)
@pytest.mark.parametrize("columns", [40, 41, 47, 90])
@pytest.mark.parametrize("branches", [3, 12, Wide(5), Wide(20)])
def test_branches_fit_into_what_is_left_of_the_columns(columns, branches):
    prompts, lengths = [[0], [1, 2, 3], [4] * 20], [40, 33, 21]
    given = {"length": lengths, "seed": 3}
    expected = generate(Narrow(columns, 40), prompts, method="ar", **given).tokens
    found = generate(Narrow(columns, 40), prompts, method="scd-match", window=24, branches=branches, **given).tokens
    for mine, ours in zip(found, expected, strict=True):
        np.testing.assert_array_equal(mine, ours)


@pytest.mark.parametrize("branches", [1, 30, Wide(40)])
@pytest.mark.parametrize("prompt", [[0], [1] * 11, [2] * 35])
def test_a_window_is_wider_than_the_model_takes_by_its_branches_only(branches, prompt):
    widths = []

    class Watched(Narrow):
        def forward(self, tokens, start):
            widths.append(tokens.shape[1])
            return super().forward(tokens, start)

    model = Watched(200, 9, rows=1)
    given = {"length": 41 - len(prompt), "seed": 3}
    expected = generate(Narrow(200, 9, rows=1), [prompt], method="ar", **given).tokens[0]
    found = generate(model, [prompt], method="scd-match", window=48, branches=branches, **given).tokens[0]
    np.testing.assert_array_equal(found, expected)
    assert max(widths, default=0) <= 9

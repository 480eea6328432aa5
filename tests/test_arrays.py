"""Arrays stay in their own library, and every library gives numpy's tokens."""

import importlib

import numpy as np
import pytest

from coupled_sampling import METHODS, DraftModel, HostStep, Sampling, generate
from coupled_sampling.testing import TableProvider, random_table

LIBRARIES = [
    pytest.param("array_api_strict"),
    pytest.param("torch", marks=pytest.mark.torch),
]


class Foreign(TableProvider):
    """A table whose logits are arrays of another library."""

    def __init__(self, library, *arguments):
        super().__init__(*arguments)
        self.library = library

    def forward(self, tokens, start):
        return self.library.asarray(super().forward(tokens, start))


@pytest.mark.parametrize("name", LIBRARIES)
@pytest.mark.parametrize("method", list(METHODS))
@pytest.mark.parametrize("settings", [Sampling(), Sampling(0.8, top_k=3, top_p=0.9, min_p=0.05), Sampling(0.0)])
def test_other_libraries_give_the_same_tokens(name, method, settings):
    library = pytest.importorskip(name)
    table, prompts = random_table(3, 6, zeros=0.2), [[0], [1, 2, 3], [4]]
    arguments = {"length": 14, "method": method, "window": 5, "drafting": "copy:2", "seed": 2, "sampling": settings}
    expected = generate(TableProvider(table, 6, 2), prompts, **arguments).tokens
    got = generate(Foreign(library, table, 6, 2), prompts, **arguments).tokens
    for own, other in zip(expected, got, strict=True):
        np.testing.assert_array_equal(own, other)


@pytest.mark.parametrize("name", LIBRARIES)
def test_laws_stay_in_their_library_and_a_draft_model_may_use_another(name):
    library = pytest.importorskip(name)
    table, other = random_table(3, 6), random_table(4, 6)
    step = HostStep(Foreign(library, table, 6, 1), "scd-maximal")
    drafting = DraftModel(TableProvider(other, 6, 1))
    tokens = generate(step, [[0]], length=14, window=5, drafting=drafting).tokens[0]
    laws = step._laws.all()
    assert laws
    assert all(type(law).__module__.split(".")[0] == name for law in laws)
    reference = generate(
        TableProvider(table, 6, 1),
        [[0]],
        length=14,
        method="scd-maximal",
        window=5,
        drafting=DraftModel(TableProvider(other, 6, 1)),
    ).tokens[0]
    np.testing.assert_array_equal(tokens, reference)


def test_large_vocabularies_take_the_same_decisions_in_float32(monkeypatch):
    """The row-by-row paths for long numpy rows choose what whole-array operations choose."""
    arrays = importlib.import_module("coupled_sampling.arrays")
    generator = np.random.default_rng(0)
    first = generator.random((2, 3, 5000)).astype(np.float32)
    second = generator.random((2, 3, 5000)).astype(np.float32)
    np.testing.assert_array_equal(arrays.argmax_of_product(first, second), (first * second).argmax(-1))
    for count in (1, 50, 4000):
        np.testing.assert_array_equal(
            np.sort(arrays.largest(first, count), axis=-1), np.sort(first, axis=-1)[..., 5000 - count :]
        )

"""Arrays stay in their own library, and every library gives numpy's tokens."""

import importlib

import numpy as np
import pytest

from coupled_sampling import METHODS, DraftModel, HostStep, Sampling, arrays, generate
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
    laws = [law for held in step._laws._held.values() for law in held if law is not None]
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


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", [3, 128, 1000, 1024, 5001, 65536, 100_003])
def test_sums_over_long_rows_are_precise_and_alike_whatever_rows_are_beside_them(size, dtype):
    rows = np.random.default_rng(size).random((2, 5, size)).astype(dtype) ** 8
    exact = rows.astype(np.longdouble).sum(axis=-1)
    sums = arrays.total(rows)[..., 0]
    assert sums.dtype == dtype
    # 16 roundings are what numpy's own pairwise sum may lose on rows of 65,536
    assert (np.abs(sums - exact) <= 16 * np.finfo(dtype).eps * exact).all()
    np.testing.assert_array_equal(arrays.total(rows[1, 3])[0], sums[1, 3])
    np.testing.assert_array_equal(arrays.total(rows[:, 1:4])[..., 0], sums[:, 1:4])


@pytest.mark.parametrize("size", [267, 2048, 5000, 40_000])
def test_the_largest_product_is_found_alike_whatever_rows_are_beside_it(size):
    generator = np.random.default_rng(size)
    first, second = generator.random((2, 21, size), np.float32), generator.random((21, size), np.float32)
    found = arrays.argmax_of_product(first, second)
    np.testing.assert_array_equal(found, (first * second).argmax(axis=-1))
    np.testing.assert_array_equal(found[1, 20], arrays.argmax_of_product(first[1, 20], second[20]))

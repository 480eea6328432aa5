"""Arrays stay in their own library, and every library gives numpy's tokens."""

import numpy as np
import pytest

from coupled_sampling import METHODS, DraftModel, HostStep, Sampling, arrays, generate
from coupled_sampling.selection import argmax_of_product, best_of_product, largest
from coupled_sampling.testing import TableProvider, random_table
from standins.frameworks import TRANSFORMATIONS, Framework

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


class OfType(TableProvider):
    """A table whose logits are a framework's arrays, rounded to one of its types; without one, the same numbers in numpy."""

    def __init__(self, framework, dtype, *arguments):
        super().__init__(*arguments)
        self.framework, self.dtype = framework, dtype

    def forward(self, tokens, start):
        logits = super().forward(tokens, start).astype(np.float32)
        if self.dtype == "bfloat16":  # eight bits of the mantissa, rounded to even
            bits = logits.view(np.uint32)
            logits = ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)
        return logits if self.framework is None else self.framework.array(logits, self.dtype)


@pytest.mark.frameworks
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("method", list(METHODS))
@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_providers_of_frameworks_give_the_same_tokens(name, method, dtype):
    framework, table = Framework(name), random_table(3, 6, zeros=0.2)
    for settings in (Sampling(), Sampling(0.8, top_k=3, top_p=0.9, min_p=0.05), Sampling(0.0)):
        arguments = {"length": 14, "method": method, "window": 5, "drafting": "copy:2", "seed": 2, "sampling": settings}
        prompts = [[0], [1, 2, 3], [4]]
        expected = generate(OfType(None, dtype, table, 6, 2), prompts, **arguments).tokens
        got = generate(OfType(framework, dtype, table, 6, 2), prompts, **arguments).tokens
        for own, other in zip(expected, got, strict=True):
            np.testing.assert_array_equal(own, other)


@pytest.mark.frameworks
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_a_draft_model_of_a_framework_may_stand_beside_numpy(name):
    framework, table, other = Framework(name), random_table(3, 6), random_table(4, 6)
    found = []
    for drafts in (None, framework):
        drafting = DraftModel(OfType(drafts, "bfloat16", other, 6, 1))
        model = TableProvider(table, 6, 1)
        found.append(generate(model, [[0]], length=14, method="speculative", window=5, drafting=drafting).tokens[0])
    np.testing.assert_array_equal(*found)


@pytest.mark.frameworks
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32"])
@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_arrays_come_to_the_host_in_a_type_that_numpy_has(name, dtype):
    values = np.array([0.0, 1.0, -2.0], np.float32)
    host = arrays.to_host(Framework(name).array(values, dtype))
    assert host.dtype == ("int32" if dtype == "int32" else "float32")
    np.testing.assert_array_equal(host, values)


@pytest.mark.frameworks
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_numbers_from_the_host_keep_what_the_library_can_hold(name):
    framework, values = Framework(name), np.array([1 / 3, 2.0**-60, 1 - 2.0**-53])
    array = arrays.from_host(values, framework.array(np.ones(1, np.float32)))
    host = arrays.to_host(array)
    assert host.dtype == (np.float32 if name == "jax" else np.float64)
    np.testing.assert_array_equal(host, values.astype(host.dtype))


@pytest.mark.torch
@pytest.mark.filterwarnings("error")
def test_no_tensor_is_made_of_memory_that_must_not_be_written():
    torch, values = pytest.importorskip("torch"), np.arange(3)
    values.flags.writeable = False
    array = arrays.from_host(values, torch.ones(1))  # torch would warn, and write
    array[0] = 7
    assert values[0] == 0


def test_a_uniform_stays_below_one_where_there_is_no_float64(monkeypatch):
    library = pytest.importorskip("array_api_strict")
    monkeypatch.setattr(arrays, "floats", lambda like: library.float32)
    uniform = arrays.unit_interval(np.array([0.0, 0.3, 1 - 2.0**-53]), library.ones(1))
    assert uniform.dtype == library.float32
    np.testing.assert_array_equal(arrays.to_host(uniform), np.array([0.0, 0.3, 1 - 2.0**-24], np.float32))


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
    generator = np.random.default_rng(0)
    first = generator.random((2, 3, 5000)).astype(np.float32)
    second = generator.random((2, 3, 5000)).astype(np.float32)
    np.testing.assert_array_equal(argmax_of_product(first, second), (first * second).argmax(-1))
    for count in (1, 50, 4000):
        np.testing.assert_array_equal(
            np.sort(largest(first, count), axis=-1), np.sort(first, axis=-1)[..., 5000 - count :]
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
    found = argmax_of_product(first, second)
    np.testing.assert_array_equal(found, (first * second).argmax(axis=-1))
    np.testing.assert_array_equal(found[1, 20], argmax_of_product(first[1, 20], second[20]))


@pytest.mark.parametrize(("size", "count"), [(5, 5), (5, 3), (267, 16), (5000, 16), (5003, 16), (5003, 1)])
def test_the_best_products_are_those_of_a_sort(size, count):
    generator = np.random.default_rng(size)
    first, second = generator.random((2, 3, size)), generator.random((2, 3, size))
    index, values = best_of_product(first, second, count)
    order = np.argsort(-(first * second), axis=-1)[..., :count]
    np.testing.assert_array_equal(index, order)
    np.testing.assert_array_equal(values, np.take_along_axis(first * second, order, axis=-1))

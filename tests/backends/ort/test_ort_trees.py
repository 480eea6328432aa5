"""The tree graph under ONNX Runtime, on the CPU and on the stand-in for a GPU: every slot sees its path, and nothing else.

The oracle is the window graph, one path after the other. Nothing ran on a GPU.
"""

import dataclasses

import numpy as np
import pytest

from coupled_sampling import HostStep, generate, open_bundle
from coupled_sampling.backends import OrtProvider
from coupled_sampling.backends.ort import cuda_session
from coupled_sampling.contracts import Trees
from coupled_sampling.errors import BundleError, InvalidArgument, ProviderError
from coupled_sampling.testing import check_provider
from standins.fake_onnxruntime import FakeRuntime
from standins.on_cuda import cuda_provider
from standins.random_trees import by_paths, random_parents

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
trt_bundles = pytest.importorskip("standins.trt_bundles")

LENGTH, VOCAB, ROWS = trt_bundles.LENGTH, 11, 4
PROMPTS = [[8], [3, 1], [2, 2, 5, 0, 7, 1, 4, 4, 6]]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return open_bundle(trt_bundles.write_bundle(tmp_path_factory.mktemp("trees") / "toy", trees=True))


@pytest.fixture
def provider(bundle):
    return OrtProvider.open(bundle, ROWS, threads=1, trees=True)


def some_tokens(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, VOCAB, shape)


def starts(*values):
    return np.array(values, np.int64)


def close(found, expected):
    np.testing.assert_allclose(found, expected, atol=2e-5, rtol=0)


def test_trees_are_offered_over_the_tree_graph_alone(bundle, provider):
    assert isinstance(provider, Trees)
    assert isinstance(provider, OrtProvider)
    assert provider.max_columns == bundle.manifest.tree_graph.cache_length > provider.max_length
    plain = OrtProvider.open(bundle, threads=1)
    assert not isinstance(plain, Trees)
    assert HostStep(plain, "scd-match").refuses_branches is not None
    assert HostStep(provider, "scd-match").refuses_branches is None


def test_it_passes_the_conformance_suite(bundle, provider):
    reference = OrtProvider.open(bundle, threads=1)
    check_provider(provider, reference=lambda tokens: reference.forward(tokens[None], starts(0))[0])


@pytest.mark.parametrize("rows", [range(1), range(1, 3), range(ROWS)], ids=str)
def test_slots_see_their_paths_and_the_leading_ones_leave_their_state(bundle, provider, rows):
    oracle = OrtProvider.open(bundle, ROWS, threads=1)
    tokens, start = some_tokens(ROWS, 20), starts(3, 12, 7, 9)
    for model in (provider, oracle):
        model.forward(tokens, starts(*[0] * ROWS))
    own, leading, parents = start[rows.start : rows.stop], 3, random_parents(len(rows), 9, leading=3)
    window = some_tokens(len(rows), 9, seed=1)
    found = provider.forward_tree(window, own, parents, rows).copy()
    for i, row in enumerate(rows):
        close(found[i], by_paths(oracle, window[i : i + 1], own[i : i + 1], parents[i : i + 1], row))
    # All rows go on: those of the tree behind its leading slots, the others where they were.
    after = starts(*[first + leading * (row in rows) for row, first in enumerate(start)])
    oracle.forward_rows(window[:, :leading], own, rows)
    then = some_tokens(ROWS, 2, seed=2)
    close(provider.forward(then, after), oracle.forward(then, after))


def test_a_tree_may_end_in_the_last_column(bundle, provider):
    width, start = 250, provider.max_length - 1
    assert start + width > provider.max_length
    wide = provider.max_columns - start
    oracle = OrtProvider.open(bundle, threads=1)
    before = some_tokens(1, start)
    for model in (provider, oracle):
        model.forward(before, starts(0))
    tokens, parents = some_tokens(1, wide, seed=1), np.full((1, wide), -1)
    found = provider.forward_tree(tokens, starts(start), parents, range(1)).copy()
    for slot in (0, 1, wide - 1):
        close(found[0, slot], oracle.forward(tokens[:, slot : slot + 1], starts(start))[0, 0])
    with pytest.raises(InvalidArgument, match=rf"has {wide + 1} slots.*within the {provider.max_columns} columns"):
        provider.forward_tree(some_tokens(1, wide + 1), starts(start), np.full((1, wide + 1), -1), range(1))


def test_what_is_no_tree_of_its_rows_is_refused_and_nothing_runs(provider):
    tokens, parents = some_tokens(2, 3), random_parents(2, 3)
    for changes, words in (
        ({"parents": np.array([[-1, 0, 2], [-1, 0, 0]])}, "parent of row 0, slot 2 is 2"),
        ({"parents": parents[:1]}, "parents is int64"),
        ({"rows": range(3)}, "rows is range"),
        ({"rows": range(3, 5)}, "rows is range"),
        ({"start": starts(0, LENGTH)}, r"row 1 has a slot at position 4\d, expected positions in \[0, 40\)"),
        ({"tokens": some_tokens(2, 3) + VOCAB}, "expected tokens in"),
    ):
        with pytest.raises(InvalidArgument, match=words):
            provider.forward_tree(
                **{"tokens": tokens, "start": starts(0, 0), "parents": parents, "rows": range(2)} | changes
            )
    provider.close()
    with pytest.raises(ProviderError, match="closed"):
        provider.forward_tree(tokens, starts(0, 0), parents, range(2))


def test_a_fork_copies_what_trees_left(provider):
    window, parents = some_tokens(1, 6), random_parents(1, 6, leading=4)
    provider.forward_tree(window, starts(0), parents, range(1, 2))
    provider.fork(1, [3], 4)
    then = np.repeat(some_tokens(1, 2, seed=3), 2, axis=0)
    logits = [provider.forward_rows(then[:1], starts(4), range(row, row + 1)).copy() for row in (1, 3)]
    np.testing.assert_array_equal(*logits)


def test_a_bundle_without_a_tree_graph_is_refused(bundle):
    without = dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, tree_graph=None))
    with pytest.raises(BundleError, match="toy has no graph for trees; `coupled-sampling step-graphs`"):
        OrtProvider.open(without, trees=True)


def test_a_graph_that_is_not_the_promised_one_is_refused(bundle):
    """The window graph in the tree graph's place, and caches of another length."""
    record = bundle.manifest.tree_graph
    for changes, words in (
        ({"file": bundle.manifest.window_graph.file}, r"'parents' is missing|past_key_values"),
        ({"cache_length": record.cache_length + 32}, "past_key_values"),
    ):
        manifest = dataclasses.replace(bundle.manifest, tree_graph=dataclasses.replace(record, **changes))
        with pytest.raises(BundleError, match=words):
            OrtProvider.open(dataclasses.replace(bundle, manifest=manifest), trees=True)


def expected_tokens(bundle):
    plain = OrtProvider.open(bundle, 2, threads=1)
    return [row.tolist() for row in generate(plain, PROMPTS, length=24, method="ar", seed=3).tokens]


def tokens_by_branches(provider, **settings):
    settings = {"method": "scd-match", "window": 12, "branches": 8, "length": 24, "seed": 3} | settings
    generation = generate(provider, PROMPTS, **settings)
    assert sum(len(trace.branch_tokens) for trace in generation.traces), "no branch was ever right"
    return [row.tolist() for row in generation.tokens]


def test_decoding_with_branches_gives_the_tokens_of_ar(bundle):
    """Two rows for three prompts, so that one is free at the end; and windows wider than the model is long."""
    expected = expected_tokens(bundle)
    for settings in ({}, {"window": 64, "branches": 50}, {"window": 8, "branches": 5, "prompt_chunk": 3}):
        assert tokens_by_branches(OrtProvider.open(bundle, 2, threads=1, trees=True), **settings) == expected


@pytest.mark.parametrize(
    "settings", [{}, {"cuda_graphs": True}, {"cuda_graphs": True, "column_buckets": (32, 320)}], ids=str
)
def test_it_runs_on_a_gpu_as_on_the_cpu(bundle, monkeypatch, settings):
    monkeypatch.setattr(cuda_session, "require_onnxruntime", lambda install: FakeRuntime())
    provider = cuda_provider(bundle, 2, trees=True, **settings)
    assert isinstance(provider, Trees)
    for window in ({}, {"window": 64, "branches": 50}):  # more slots than the model takes without branches
        assert tokens_by_branches(provider, **window) == expected_tokens(bundle)
    if settings:
        assert provider.binding.captured

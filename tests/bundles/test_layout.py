"""Layouts: what may stand where, and that decoding under one is lossless with respect to the restricted law."""

import json

import numpy as np
import pytest

from coupled_sampling import METHODS, Sampling, generate
from coupled_sampling.bundles.layouts import Layout, Span
from coupled_sampling.bundles.manifest_file import write_manifest
from coupled_sampling.bundles.opening import open_bundle
from coupled_sampling.drafting import Repeat
from coupled_sampling.errors import InvalidArgument, InvalidLogits
from coupled_sampling.testing import TableProvider, autoregressive_law, exact_law, random_table, total_variation

PICTURE = Layout.grid(2, 3, (2, 4), row_end=6, end=(7,))


def test_a_grid_has_its_rows_row_ends_and_its_end():
    assert PICTURE.length == 2 * (3 + 1) + 1
    assert PICTURE.free().tolist() == [0, 1, 2, 4, 5, 6]
    assert Layout.grid(2, 3, (2, 4)).length == 6


def test_logits_outside_the_spans_are_forbidden_and_others_are_left_alone():
    processor = PICTURE.processor(prompt_length=2)
    logits = np.random.default_rng(0).normal(size=(12, 9)).astype(np.float32)
    out = processor(logits, np.zeros(0, np.int64), np.arange(12))
    allowed = [set(range(9))] * 2
    for _ in range(2):
        allowed += [{2, 3, 4, 5}] * 3 + [{6}]
    allowed += [{7}, set(range(9))]
    for row, tokens in enumerate(allowed):
        assert set(np.flatnonzero(np.isfinite(out[row])).tolist()) == tokens
        np.testing.assert_array_equal(out[row, sorted(tokens)], logits[row, sorted(tokens)])
    assert out.dtype == np.float32


@pytest.mark.parametrize("library", ["array_api_strict"])
def test_other_array_libraries(library):
    xp = pytest.importorskip(library)
    logits = np.random.default_rng(1).normal(size=(5, 9))
    processor = PICTURE.processor(1)
    out = processor(xp.asarray(logits), np.zeros(0, np.int64), np.arange(5))
    np.testing.assert_array_equal(np.asarray(out), processor(logits, np.zeros(0, np.int64), np.arange(5)))


@pytest.mark.parametrize("method", METHODS)
def test_decoding_keeps_the_law_under_the_layout(method):
    table, layout = random_table(3, 4), Layout((Span(0, 2, 2), Span(3, 1), Span(1, 3)))

    def restricted(context):
        law = np.array(table(context))
        allowed = [(0, 2), (0, 2), (3, 1), (1, 3)][len(context) - 1]
        law[: allowed[0]] = 0
        law[sum(allowed) :] = 0
        return law / law.sum()

    def run(noise):
        sampling = Sampling(processors=(layout.processor(1),))
        model = TableProvider(table, 4, 1, 12)
        tokens = generate(
            model, [[0]], length=4, method=method, window=3, sampling=sampling, drafting=Repeat(fill=0), noise=noise
        ).tokens[0]
        return tuple(tokens.tolist())

    assert total_variation(exact_law(run), autoregressive_law(restricted, [0], 4)) < 1e-12


def test_a_forced_token_that_the_model_forbids_is_refused():
    def never_three(context):
        return np.array([0.5, 0.5, 0, 0])

    sampling = Sampling(processors=(Layout((Span(3, 1),)).processor(1),))
    with pytest.raises(InvalidLogits, match="position 1"):
        generate(TableProvider(never_three, 4, 1, 12), [[0]], length=1, window=2, sampling=sampling)


@pytest.mark.parametrize("span", [(-1, 1, 1), (0, 0, 1), (0, 1, 0)])
def test_impossible_spans_are_refused(span):
    with pytest.raises(InvalidArgument, match="of a span is"):
        Span(*span)


def test_a_manifest_carries_a_layout(tmp_path):
    bundle = open_bundle("fashion")
    for name in bundle.manifest.files:
        (tmp_path / name).write_bytes((bundle.folder / name).read_bytes())
    document = json.loads((bundle.folder / "manifest.json").read_text())
    document["layout"] = [{"first": 0, "count": 256, "times": 196}]
    (tmp_path / "manifest.json").write_text(json.dumps(document))
    manifest = open_bundle(tmp_path).manifest
    assert manifest.layout == (Span(0, 256, 196),)
    write_manifest(tmp_path, manifest)
    assert open_bundle(tmp_path).manifest == manifest

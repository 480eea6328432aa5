"""Decoders whose layers differ, as providers: nothing may depend on how tokens are cut, in which row they sit or what was there.

Sequences are several times as long as the sliding windows, so that a window that is one off, or forgets where a row began, shows.
"""

import dataclasses

import numpy as np
import pytest

from coupled_sampling import HostStep, generate
from coupled_sampling.backends import OrtProvider, Place, open_model
from coupled_sampling.errors import InvalidArgument
from coupled_sampling.export import (
    GridRotary,
    LayerKind,
    Norm,
    PicturePositions,
    QueryKeyNorm,
    Rotary,
    RotaryScaling,
    add_step_graphs,
    reference_logits,
)
from coupled_sampling.testing import CheckFailed, check_provider
from standins.toy_bundles import toy_gpt, toy_weights, write_toy_bundle

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

NEAR, FAR = LayerKind(4, Rotary(base=100.0)), LayerKind(0, Rotary(base=1e4, scaling=RotaryScaling("linear", 2.0)))
DECODER = toy_gpt(
    32,
    layers=3,
    learned_positions=False,
    norm=Norm(),
    layer_kinds=(NEAR, LayerKind(), FAR),
    query_key_norm=QueryKeyNorm(whole=True),
    residual_scale=0.7,
)


PICTURES = PicturePositions(begin=4, grids=((2, 2), (2, 3)), sections=(1, 1, 0))
WITH_PICTURES = toy_gpt(32, learned_positions=False, rotary=Rotary(base=100.0, pictures=PICTURES))


def provider(tmp_path, description=DECODER):
    write_toy_bundle(tmp_path / "toy", description, max_window=16)
    return OrtProvider.open(tmp_path / "toy", batch_size=3, threads=1)


def reference(description, **changes):
    changed = dataclasses.replace(description, **changes)
    return lambda tokens: reference_logits(changed, toy_weights(description), np.asarray(tokens))


def test_it_keeps_the_contract_and_is_the_reference(tmp_path):
    check_provider(provider(tmp_path), tolerance=1e-4, length=28, reference=reference(DECODER))


def test_a_reference_with_a_longer_window_is_told_apart(tmp_path):
    """Negative control."""
    longer = reference(DECODER, layer_kinds=(LayerKind(5, NEAR.rotary), LayerKind(), FAR))
    with pytest.raises(CheckFailed, match="reference"):
        check_provider(provider(tmp_path), tolerance=1e-4, length=28, reference=longer)


def test_pictures_begin_where_their_token_lies_also_after_a_rollback(tmp_path):
    check_provider(provider(tmp_path, WITH_PICTURES), tolerance=1e-4, length=28, reference=reference(WITH_PICTURES))


def test_a_reference_with_another_grid_is_told_apart(tmp_path):
    """Negative control."""
    wider = Rotary(base=100.0, pictures=dataclasses.replace(PICTURES, grids=((2, 2), (3, 2))))
    with pytest.raises(CheckFailed, match="reference"):
        check_provider(
            provider(tmp_path, WITH_PICTURES),
            tolerance=1e-4,
            length=28,
            reference=reference(WITH_PICTURES, rotary=wider),
        )


def test_places_in_pictures_by_hand():
    """A picture wider than high, one higher than wide, and what follows; two tokens of text before."""
    pictures = PicturePositions(begin=4, grids=((1, 3), (3, 1)), sections=(1, 1, 0))
    text, first = [(0, 0, 0), (1, 1, 1)], [(2, 2, 2), (2, 2, 3), (2, 2, 4)]
    second, after = [(5, 5, 5), (5, 6, 5), (5, 7, 5)], [(8, 8, 8), (9, 9, 9)]
    np.testing.assert_array_equal(pictures.places([0, 4, 0, 0, 4, 0, 0, 0, 0, 0]), [*text, *first, *second, *after])
    np.testing.assert_array_equal(pictures.places([0, 1, 2]), [*text, (2, 2, 2)])


def test_marks_are_found_at_any_past(tmp_path):
    """The token in an earlier call, in this one, overwritten, and another one behind it: each slot has the places of its prefix."""
    tokens = np.array(
        [[1, 2, 4, 0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3, 5], [4, 1, 2, 3, 0, 1, 4, 3, 5, 6, 7, 0, 1, 2, 3, 5]]
    )
    tokens = np.concatenate([tokens, (tokens[:1] + 5) % 8])
    run, logits = provider(tmp_path, WITH_PICTURES), reference(WITH_PICTURES)
    for starts, width in (([0, 0, 0], 2), ([2, 1, 2], 5), ([7, 3, 1], 1), ([6, 4, 2], 8)):
        for row, start in enumerate(starts):
            if row == 2:
                tokens[row, start:] = np.random.default_rng(start).integers(0, 5, 16 - start)
        window = np.stack([tokens[row, start : start + width] for row, start in enumerate(starts)])
        found = np.asarray(run.forward(window, np.array(starts)))
        for row, start in enumerate(starts):
            expected = logits(tokens[row, : start + width])[start:, :8]
            np.testing.assert_allclose(found[row][:, :8], expected, atol=1e-4)


@pytest.mark.parametrize("description", [DECODER, WITH_PICTURES], ids=["kinds", "pictures"])
def test_a_step_graph_gives_the_tokens_of_the_library(tmp_path, description):
    write_toy_bundle(tmp_path / "toy", description, max_window=16)
    bundle = add_step_graphs(tmp_path / "toy", tmp_path / "steps", ["scd-match"])
    settings = {"length": 14, "window": 4, "seed": 2}
    prompts = [[1, 4], [4], [2, 3, 4, 1, 0], [5]]
    ours = generate(open_model(bundle, Place(threads=1), 2, method="scd-match", step="graph"), prompts, **settings)
    inner = OrtProvider.open(tmp_path / "toy", batch_size=2, threads=1)
    host = generate(HostStep(inner, "scd-match"), prompts, **settings)
    alone = generate(HostStep(inner, "ar"), prompts, length=14, seed=2)
    for found, expected, one_by_one in zip(ours.tokens, host.tokens, alone.tokens, strict=True):
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal(found, one_by_one)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"begin": -1}, "begin is -1, expected a token"),
        ({"grids": ()}, r"grids is \(\)"),
        ({"grids": ((2, 0),)}, "expected rows and columns >= 1"),
        ({"sections": (1, 1)}, r"sections is \(1, 1\), expected a sequence of 3 values"),
    ],
)
def test_positions_of_pictures_that_cannot_be(changes, message):
    with pytest.raises(InvalidArgument, match=message):
        dataclasses.replace(PICTURES, **changes)


def test_decoders_that_positions_of_pictures_do_not_fit():
    with pytest.raises(InvalidArgument, match="expected numbers that sum to the 2 pairs"):
        toy_gpt(8, rotary=Rotary(pictures=dataclasses.replace(PICTURES, sections=(1, 1, 1))))
    other = Rotary(pictures=dataclasses.replace(PICTURES, begin=3))
    with pytest.raises(InvalidArgument, match="different positions of pictures"):
        toy_gpt(8, layer_kinds=(LayerKind(0, WITH_PICTURES.rotary), LayerKind(0, other)))
    with pytest.raises(InvalidArgument, match="grid and pictures"):
        Rotary(grid=GridRotary(2, 2), pictures=PICTURES)

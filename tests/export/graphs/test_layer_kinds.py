"""Decoders whose layers differ, as providers: nothing may depend on how tokens are cut, in which row they sit or what was there.

Sequences are several times as long as the sliding windows, so that a window that is one off, or forgets where a row began, shows.
"""

import dataclasses

import numpy as np
import pytest

from coupled_sampling.backends.ort.provider import OrtProvider
from coupled_sampling.export import LayerKind, Norm, QueryKeyNorm, Rotary, RotaryScaling, reference_logits
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


def provider(tmp_path):
    write_toy_bundle(tmp_path / "toy", DECODER, max_window=16)
    return OrtProvider.open(tmp_path / "toy", batch_size=3, threads=1)


def reference(description):
    return lambda tokens: reference_logits(description, toy_weights(DECODER), np.asarray(tokens))


def test_it_keeps_the_contract_and_is_the_reference(tmp_path):
    check_provider(provider(tmp_path), tolerance=1e-4, length=28, reference=reference(DECODER))


def test_a_reference_with_a_longer_window_is_told_apart(tmp_path):
    """Negative control."""
    longer = dataclasses.replace(DECODER, layer_kinds=(LayerKind(5, NEAR.rotary), LayerKind(), FAR))
    with pytest.raises(CheckFailed, match="reference"):
        check_provider(provider(tmp_path), tolerance=1e-4, length=28, reference=reference(longer))

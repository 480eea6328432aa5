"""Small tokenizers of videos with random weights, for tests of the exporter."""

import dataclasses
from types import SimpleNamespace

import numpy as np

from coupled_sampling.export.pictures.video_description import CausalVideoDescription, VideoStage
from standins.picture_decoders import random_weights

STAGES = (VideoStage(8, 1, space=True), VideoStage(8, 2, space=True, time=True), VideoStage(4, 2))
VIDEO = CausalVideoDescription(frames=3, rows=2, columns=3, stages=STAGES, latent=5)
"""Cosmos' decoder, narrow: 3 frames of 2 by 3 codes become 17 of 32 by 48 pixels."""


def video_weights(description, seed=0):
    """Weights of a decoder whose frames have a spread of about one half, float32."""
    weights = random_weights(description, seed)
    for part in ("weight", "bias"):
        # Each transform adds up eight coefficients.
        weights[f"conv_out.time.{part}"] /= np.float32(8 ** (description.transforms / 2))
    return weights


ENCODED = dataclasses.replace(VIDEO, stages=tuple(dataclasses.replace(stage, blocks=2) for stage in STAGES), base=6)
"""A tokenizer with an encoder, whose stages have a block less."""


def encoder_weights(description, seed=0):
    """Weights of an encoder, float32, whose digits are not all alike."""
    weights = random_weights(SimpleNamespace(weight_shapes=description.encoder_shapes), seed)
    for axis in ("space", "time"):
        # Coefficients are small, and what differs between frames would be lost beside a bias.
        weights[f"conv_in.{axis}.bias"] *= np.float32(0.02)
    return weights | {"quant.weight": 2 * weights["quant.weight"]}


def archive(places, weights):
    """``weights`` under the names of an archive, with tables that nobody needs."""
    tensors = {place.tensor: weights[name] for name, place in places.items()}
    others = ("quantizer._levels", "inv_quant.quantizer._levels", "decoder.unpatcher3d.wavelets")
    return tensors | {name: np.zeros(6, np.float32) for name in (*others, "encoder.patcher3d._arange")}

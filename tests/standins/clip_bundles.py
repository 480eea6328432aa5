"""A small random model of clips as a bundle: 3 frames of 2 by 2 tokens, of which a decoder makes frames of 4 by 4 pixels."""

import dataclasses

import numpy as np
import pytest

from coupled_sampling.bundles import open_bundle
from coupled_sampling.bundles.manifest import Defaults, Grid, PixelGraph
from coupled_sampling.bundles.manifest_file import file_record, write_manifest
from coupled_sampling.export.pictures import PictureTokens, Stage, VqDescription, write_vq_pixel_graph
from standins.toy_bundles import toy_gpt, write_toy_bundle

FRAMES, SIDE = 3, 2
LENGTH = FRAMES * SIDE**2


def write_clip_bundle(folder, *, channels=1, methods=()):
    """The bundle, called "toy", with step graphs for ``methods``; its one prompt is "sneaker"."""
    pytest.importorskip("onnx")
    write_toy_bundle(folder, toy_gpt(LENGTH + 1), max_window=LENGTH + 1)
    stages = (Stage(width=4, blocks=1), Stage(width=4, blocks=1))
    decoder = VqDescription(
        codes=8, code_size=4, latent=4, stages=stages, rows=SIDE, columns=SIDE, groups=2, channels=channels, frames=FRAMES
    )  # fmt: skip
    random = np.random.default_rng(3)
    weights = {name: random.normal(0, 0.5, shape) for name, shape in decoder.weight_shapes().items()}
    write_vq_pixel_graph(decoder, weights, PictureTokens(LENGTH, 0, 8), folder / "pixels.onnx")
    pixels = PixelGraph("pixels.onnx", decoder.height, decoder.width, channels, FRAMES)
    manifest = open_bundle(folder).manifest
    written = dataclasses.replace(
        manifest,
        files={**manifest.files, "pixels.onnx": file_record(folder / "pixels.onnx")},
        length=LENGTH,
        grid=Grid(SIDE, SIDE, FRAMES),
        pixel_graph=pixels,
        defaults=Defaults("scd-match", 6, f"copy:{SIDE**2}"),
        fill_token=0,
    )
    write_manifest(folder, written)
    if methods:
        from coupled_sampling.export.step_bundle import write_step_graphs

        write_step_graphs(folder, methods)
    return folder

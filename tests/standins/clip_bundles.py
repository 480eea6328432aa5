"""A small random model of clips as a bundle."""

import dataclasses

import numpy as np
import pytest

from coupled_sampling.bundles import open_bundle
from coupled_sampling.bundles.manifest import Defaults, Grid, PixelGraph, Prompt
from coupled_sampling.bundles.manifest_file import file_record, write_manifest
from coupled_sampling.export.pictures import PictureTokens, Stage, VqDescription, write_vq_pixel_graph
from standins.toy_bundles import toy_gpt, write_toy_bundle

FRAMES, SIDE = 3, 2
LENGTH = FRAMES * SIDE**2


def write_clip_bundle(folder, *, name="toy", frames=FRAMES, side=SIDE, stages=2, channels=1, methods=()):
    """Frames of ``side`` by ``side`` tokens, each of them 2 ** (stages - 1) pixels wide; step graphs for ``methods``."""
    pytest.importorskip("onnx")
    length = frames * side**2
    write_toy_bundle(folder, toy_gpt(length + 1), max_window=length + 1)
    decoder = VqDescription(
        codes=8,
        code_size=4,
        latent=4,
        stages=(Stage(width=4, blocks=1),) * stages,
        rows=side,
        columns=side,
        groups=2,
        channels=channels,
        frames=frames,
    )
    random = np.random.default_rng(3)
    weights = {key: random.normal(0, 0.5, shape) for key, shape in decoder.weight_shapes().items()}
    write_vq_pixel_graph(decoder, weights, PictureTokens(length, 0, 8), folder / "pixels.onnx")
    pixels = PixelGraph("pixels.onnx", decoder.height, decoder.width, channels, frames)
    manifest = open_bundle(folder).manifest
    written = dataclasses.replace(
        manifest,
        name=name,
        prompts={"sneaker": Prompt((8,), ("shoe",), "Sneaker")},
        files={**manifest.files, "pixels.onnx": file_record(folder / "pixels.onnx")},
        length=length,
        grid=Grid(side, side, frames),
        pixel_graph=pixels,
        defaults=Defaults("scd-match", 6, f"copy:{side**2}"),
        fill_token=0,
    )
    write_manifest(folder, written)
    if methods:
        from coupled_sampling.export.step_bundle import write_step_graphs

        write_step_graphs(folder, methods)
    return folder

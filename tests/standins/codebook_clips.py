"""A small random GPT whose tokens are clips: three frames of two by two patches, each of two by two pixels."""

import numpy as np

from coupled_sampling.bundles import write_manifest
from coupled_sampling.bundles.manifest import Defaults, GeneratedTokens, Manifest, PixelGraph, Prompt
from coupled_sampling.bundles.manifest_file import file_record
from coupled_sampling.bundles.records import Grid
from coupled_sampling.export import pixel_graph, save_graph, write_decoder_graph
from standins.toy_bundles import toy_gpt, toy_weights

CLIP = Grid(rows=2, columns=2, frames=3)


def codebook(channels=1):
    """Eight patches without a pixel in common."""
    return np.random.default_rng(5).permutation(8 * 2 * 2 * channels).reshape(8, 2, 2, channels).astype(np.uint8)


def write_clip_bundle(path, channels=1):
    """Its bundle, in the folder ``path``."""
    path.mkdir()
    description = toy_gpt(positions=16)
    write_decoder_graph(description, toy_weights(description), path / "window.onnx")
    save_graph(pixel_graph(codebook(channels), CLIP.rows, CLIP.columns, CLIP.frames), path / "pixels.onnx")
    manifest = Manifest(
        name="clips",
        description="Clips.",
        files={name: file_record(path / name) for name in ("window.onnx", "pixels.onnx")},
        window_graph=description.manifest("window.onnx", max_window=8),
        vocab_size=description.vocab_size,
        generated_tokens=GeneratedTokens(0, description.generated),
        length=CLIP.count,
        grid=CLIP,
        prompts={"run": Prompt((8,), (), "Run"), "fall": Prompt((9,), (), "Fall")},
        defaults=Defaults("scd-match", 4, "repeat"),
        licence="Apache-2.0",
        provenance={},
        pixel_graph=PixelGraph("pixels.onnx", 4, 4, channels, CLIP.frames),
    )
    write_manifest(path, manifest)
    return path


def clip_of(tokens, channels=1):
    """The pixels (frames, H, W, C) of a clip's tokens, patch by patch."""
    book = codebook(channels)
    clip = np.zeros((3, 4, 4, channels), np.uint8)
    for index, token in enumerate(tokens):
        frame, place = divmod(index, 4)
        top, left = 2 * (place // 2), 2 * (place % 2)
        clip[frame, top : top + 2, left : left + 2] = book[token]
    return clip

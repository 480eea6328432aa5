"""A small random GPT as a bundle, for tests that are about something else than the model."""

import dataclasses

import numpy as np

from coupled_sampling.bundles.manifest import Defaults, GeneratedTokens, Manifest, PixelGraph, Prompt
from coupled_sampling.bundles.manifest_file import file_record, write_manifest
from coupled_sampling.export import (
    DecoderDescription,
    Norm,
    Storage,
    pixel_graph,
    save_graph,
    write_condition_graph,
    write_decoder_graph,
)


def toy_gpt(positions, **changes):
    """Its description: 11 tokens of which 8 are generated, 2 layers with 2 heads of 4."""
    plain = DecoderDescription(
        vocab_size=11,
        positions=positions,
        width=8,
        layers=2,
        heads=2,
        mlp_width=20,
        norm=Norm("layer"),
        mlp="plain",
        activation="gelu",
        learned_positions=True,
        query_key_value_bias=True,
        attention_output_bias=True,
        mlp_bias=True,
        head_bias=True,
        generated=8,
    )
    return dataclasses.replace(plain, **{"cache_length": positions} | changes)


def toy_weights(description, seed=0):
    """Weights of a description, all drawn alike."""
    random = np.random.default_rng(seed)
    return {name: random.normal(0, 0.5, shape) for name, shape in description.weight_shapes().items()}


def write_toy_bundle(
    path, description, *, max_window, seed=0, change=None, codebook=None, grid=(0, 0), prompts=None, storage=None
):
    """A bundle in the folder ``path``; ``change`` may spoil its window graph, ``codebook`` and ``grid`` give it pixels."""
    path.mkdir(exist_ok=True)
    storage = storage or Storage()
    write_decoder_graph(description, toy_weights(description, seed), path / "window.onnx", storage)
    if change is not None:
        import onnx

        model = onnx.load(path / "window.onnx")
        change(model)
        onnx.save(model, path / "window.onnx")
    files, pixels, condition = ["window.onnx"], None, None
    if description.condition is not None:
        write_condition_graph(description, toy_weights(description, seed), path / "condition.onnx", storage)
        files.append("condition.onnx")
        condition = description.condition.record("condition.onnx")
    if codebook is not None:
        files.append("pixels.onnx")
        save_graph(pixel_graph(codebook, *grid), path / "pixels.onnx")
        height, width, channels = codebook.shape[1:]
        pixels = PixelGraph("pixels.onnx", grid[0] * height, grid[1] * width, channels)
    manifest = Manifest(
        name="toy",
        description="A toy.",
        files={name: file_record(path / name) for name in files},
        window_graph=dataclasses.replace(
            description.manifest("window.onnx", storage.compute, max_window=max_window), domains=storage.domains
        ),
        vocab_size=description.vocab_size,
        generated_tokens=GeneratedTokens(0, description.generated),
        length=6,
        prompts=prompts or {"sneaker": Prompt((8,), (), "Sneaker")},
        defaults=Defaults("ar", 1, "random"),
        licence="Apache-2.0",
        provenance={},
        pixel_graph=pixels,
        condition_graph=condition,
    )
    write_manifest(path, manifest)
    return path

"""Turn a checkpoint of train.py into a bundle that runs without PyTorch.

    python examples/fashion_mnist/export.py --checkpoint build/fashion/checkpoint.pt

PyTorch reads the checkpoint and is the judge: the graph's logits, run by ONNX Runtime through windows of all kinds,
must equal the trained model's. Only then does the bundle (--out) take the place of the one before.
"""

from __future__ import annotations

import argparse
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from data import CLASSES, GRID, PATCH, TOKENS
from model import Model, Shape

from coupled_sampling.backends import OrtProvider
from coupled_sampling.bundles.manifest import Defaults, FileRecord, GeneratedTokens, Grid, Manifest, PixelGraph, Prompt
from coupled_sampling.bundles.manifest_file import file_record, write_manifest
from coupled_sampling.bundles.opening import open_bundle
from coupled_sampling.export import (
    DecoderDescription,
    Norm,
    find_fill_token,
    pixel_graph,
    save_graph,
    write_decoder_graph,
)
from coupled_sampling.export.step_bundle import write_step_graphs

WINDOW_GRAPH, PIXEL_GRAPH = "window.onnx", "pixels.onnx"
TOLERANCE = 1e-4
TITLES = {"t-shirt": "T-shirt or top", "ankle-boot": "Ankle boot"}
ALIASES = {
    "t-shirt": ("tshirt", "tee", "top", "t-shirt/top"),
    "trouser": ("trousers", "pants"),
    "pullover": ("sweater", "jumper"),
    "dress": (),
    "coat": ("jacket",),
    "sandal": ("sandals",),
    "shirt": ("blouse",),
    "sneaker": ("shoe", "shoes", "sneakers", "trainer"),
    "bag": ("handbag", "purse"),
    "ankle-boot": ("ankle boot", "ankleboot", "boot", "boots"),
}


NAMES = {
    "attention_norm": "attention_norm",
    "attention_out": "attention.output",
    "mlp_norm": "mlp_norm",
    "mlp_in": "mlp.up",
    "mlp_out": "mlp.down",
}
"""Weights of a layer: their names in model.py, and the exporter's."""


def description(shape: Shape, epsilon: float) -> DecoderDescription:
    return DecoderDescription(
        vocab_size=shape.vocabulary,
        generated=shape.codes,
        positions=shape.positions,
        width=shape.width,
        layers=shape.layers,
        heads=shape.heads,
        mlp_width=4 * shape.width,
        norm=Norm("layer", epsilon),
        mlp="plain",
        activation="gelu",
        learned_positions=True,
        query_key_value_bias=True,
        attention_output_bias=True,
        mlp_bias=True,
        head_bias=True,
    )


def weights(model: Model) -> dict[str, np.ndarray]:
    """The model's weights by the exporter's names."""
    named = {}
    for name, tensor in model.state_dict().items():
        value = tensor.numpy()
        if not name.startswith("blocks."):
            named[name] = value
            continue
        _, layer, module, part = name.split(".")
        if module == "attention_in":
            # Queries, keys and values are one map in model.py.
            for each, third in zip(("query", "key", "value"), np.split(value, 3), strict=True):
                named[f"layers.{layer}.attention.{each}.{part}"] = third
        else:
            named[f"layers.{layer}.{NAMES[module]}.{part}"] = value
    return named


def manifest(shape: Shape, gpt: DecoderDescription, files: dict[str, FileRecord], figures: dict) -> Manifest:
    side = GRID * PATCH
    return Manifest(
        name="fashion",
        description="Pictures of clothes, 28 by 28 grey pixels, one class token then 196 codebook tokens; a small GPT.",
        files=files,
        window_graph=gpt.manifest(WINDOW_GRAPH),
        pixel_graph=PixelGraph(PIXEL_GRAPH, side, side, 1),
        vocab_size=shape.vocabulary,
        generated_tokens=GeneratedTokens(0, shape.codes),
        length=TOKENS,
        grid=Grid(GRID, GRID),
        prompts={
            name: Prompt((shape.codes + k,), ALIASES[name], TITLES.get(name, name.capitalize()))
            for k, name in enumerate(CLASSES)
        },
        unconditional_prompt=(shape.null,),
        defaults=Defaults("scd-gumbel", 16, f"copy:{GRID}", temperature=1.0, guidance=1.0),
        licence="Apache-2.0",
        provenance={
            "data": {
                "name": "Fashion-MNIST",
                "licence": "MIT",
                "source": "https://github.com/zalandoresearch/fashion-mnist",
                "paper": "arXiv 1708.07747",
                "obtained_as": "Debian package dataset-fashion-mnist",
            },
            "training": {"script": "examples/fashion_mnist/train.py", **figures},
        },
    )


def worst_difference(model: Model, folder: Path, seed: int = 0) -> float:
    """Largest difference of logits between graph and model over windows of all kinds.

    Two ragged rows. Every window is forwarded with wrong tokens in its second half, then again with the true ones, and
    the next window starts inside it: state must be replaced, never kept.
    """
    random = np.random.default_rng(seed)
    shape = model.shape
    provider = OrtProvider.open(folder, batch_size=2)
    tokens = random.integers(0, shape.codes, (2, shape.positions))
    tokens[:, 0] = [shape.codes, shape.null]
    with torch.no_grad():
        expected = model(torch.from_numpy(tokens)).numpy()
    worst = 0.0
    for width in (1, 5, 32, 64, shape.positions):
        start, end = np.zeros(2, np.int64), shape.positions - width
        while True:
            slots = start[:, None] + np.arange(width)
            window = np.take_along_axis(tokens, slots, 1)
            half_wrong = window.copy()
            half_wrong[:, width // 2 :] = random.integers(0, shape.codes, (2, width - width // 2))
            provider.forward(half_wrong, start)
            logits = provider.forward(window, start)
            if not np.isneginf(logits[..., shape.codes :]).all():
                raise SystemExit("the graph can generate class tokens: their logits must be -inf; nothing was written")
            target = np.take_along_axis(expected, slots[..., None], 1)
            worst = max(worst, float(np.abs(logits[..., : shape.codes] - target).max()))
            if (start == end).all():
                break
            start = np.minimum(start + np.maximum(1, width - random.integers(0, width // 2 + 1, 2)), end)
    return worst


def export(checkpoint: Path, folder: Path) -> Manifest:
    """Write the bundle of ``checkpoint`` into the empty ``folder``."""
    state = torch.load(checkpoint, map_location="cpu", weights_only=False)
    shape = Shape(**state["shape"])
    model = Model(shape).eval()
    model.load_state_dict(state["model"])
    gpt = description(shape, model.norm.eps)
    write_decoder_graph(gpt, weights(model), folder / WINDOW_GRAPH)
    save_graph(pixel_graph(state["codebook"].reshape(-1, PATCH, PATCH, 1), GRID, GRID), folder / PIXEL_GRAPH)
    files = {name: file_record(folder / name) for name in (WINDOW_GRAPH, PIXEL_GRAPH)}
    written = manifest(shape, gpt, files, state["figures"])
    write_manifest(folder, written)
    worst = worst_difference(model, folder)
    written = replace(written, fill_token=find_fill_token(OrtProvider.open(folder), written))
    write_manifest(folder, written)
    written = write_step_graphs(folder)
    print(f"largest logit difference between graph and PyTorch: {worst:.1e} (allowed {TOLERANCE:.0e})")
    if worst > TOLERANCE:
        raise SystemExit("the graph is not the model; nothing was written")
    return written


def replace_folder(new: Path, old: Path) -> None:
    """Put ``new`` in the place of ``old``, which is set aside first: a folder cannot be renamed onto another."""
    aside = old.with_name(f".{old.name}.{os.getpid()}.old")
    if old.exists():
        old.rename(aside)
    new.rename(old)
    shutil.rmtree(aside, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=Path("build/fashion/checkpoint.pt"))
    parser.add_argument("--out", type=Path, default=Path("coupled_sampling/bundles/models/fashion"))
    arguments = parser.parse_args()
    if not arguments.checkpoint.exists():
        raise SystemExit(f"{arguments.checkpoint} does not exist: run train.py first, or pass --checkpoint FILE")
    if arguments.out.exists() and not (arguments.out / "manifest.json").exists():
        raise SystemExit(f"{arguments.out} exists and is not a bundle; it is left alone: choose another --out")
    partial = arguments.out.with_name(f".{arguments.out.name}.{os.getpid()}.partial")
    partial.mkdir(parents=True)
    try:
        written = export(arguments.checkpoint, partial)
        replace_folder(partial, arguments.out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    opened = open_bundle(arguments.out)
    size = sum(record.bytes for record in written.files.values())
    print(f"wrote {opened.folder}: {size / 1e6:.1f} MB, {written.provenance['training']}")


if __name__ == "__main__":
    main()

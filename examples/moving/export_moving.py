"""Turn what train_moving.py wrote into a bundle that runs without PyTorch.

    python examples/moving/export_moving.py --build build/moving

PyTorch reads the checkpoint and is the judge: the graph's logits, run by ONNX Runtime through windows of all kinds, and the frames
of the pixel graph must equal the trained model's. Only then does the bundle (--out) take the place of the one before.
"""

from __future__ import annotations

import argparse
import os
import shutil
from dataclasses import replace
from pathlib import Path

import clips  # first: it lets Python find what the example of pictures shares  # noqa: F401
import numpy as np
import torch
from tokeniser import DESCRIPTION, Tokeniser
from transformer import Model, Shape

from coupled_sampling.backends import OrtProvider, PixelDecoder
from coupled_sampling.bundles.manifest import Defaults, FileRecord, GeneratedTokens, Grid, Manifest, PixelGraph, Prompt
from coupled_sampling.bundles.manifest_file import file_record, write_manifest
from coupled_sampling.bundles.opening import open_bundle
from coupled_sampling.export import DecoderDescription, Norm, Storage, find_fill_token, write_decoder_graph
from coupled_sampling.export.pictures import PictureTokens, write_vq_pixel_graph
from coupled_sampling.export.step_bundle import write_step_graphs
from export import ALIASES, CLASSES, PIXEL_GRAPH, TITLES, WINDOW_GRAPH, replace_folder, worst_difference
from export import weights as shared_weights

STORAGE = Storage(weights="float16")
"""Half the bytes: the shipped model is the trained one with its weights rounded, and its law is that of the rounded ones."""

TOLERANCE = 3e-4
"""Of logits, which reach 30 where nothing moves: a hundred thousandth."""

METHODS = ("ar", "scd-maximal", "scd-match")
"""Methods with step graphs, of which all take a megabyte more; the library decides the steps of others."""


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
        rotary=shape.rotary(),
        learned_positions=True,
        query_key_value_bias=True,
        attention_output_bias=True,
        mlp_bias=True,
        head_bias=True,
    )


def weights(model: Model) -> dict[str, np.ndarray]:
    """The model's weights by the exporter's names; the three tables of positions become one."""
    named = shared_weights(model)
    for part in ("frame", "row", "column"):
        del named[f"{part}.weight"]
    with torch.no_grad():
        return {**named, "position.weight": model.positions().numpy()}


def round_matrices(module: torch.nn.Module) -> None:
    """Round a module's matrices to what is stored, so that PyTorch judges the model that is shipped."""
    for parameter in module.parameters():
        if parameter.ndim > 1:
            parameter.data = parameter.data.half().float()


def manifest(shape: Shape, decoder: DecoderDescription, files: dict[str, FileRecord], figures: dict) -> Manifest:
    frame = shape.rows * shape.columns
    return Manifest(
        name="moving",
        description=(
            f"Clips of clothes that move, {shape.frames} frames of {DESCRIPTION.height} by {DESCRIPTION.width} grey pixels, "
            f"one class token then {shape.positions} frame tokens; a small Transformer."
        ),
        files=files,
        window_graph=decoder.manifest(WINDOW_GRAPH),
        pixel_graph=PixelGraph(PIXEL_GRAPH, DESCRIPTION.height, DESCRIPTION.width, 1, frames=shape.frames),
        vocab_size=shape.vocabulary,
        generated_tokens=GeneratedTokens(0, shape.codes),
        length=shape.positions,
        grid=Grid(shape.rows, shape.columns, shape.frames),
        prompts={
            name: Prompt((shape.codes + k,), ALIASES[name], TITLES.get(name, name.capitalize()))
            for k, name in enumerate(CLASSES)
        },
        unconditional_prompt=(shape.null,),
        defaults=Defaults("scd-match", 64, f"copy:{frame}", temperature=1.0, guidance=1.0),
        licence="Apache-2.0",
        provenance={
            "data": {
                "name": "Fashion-MNIST, drawn in motion by examples/moving/clips.py",
                "licence": "MIT",
                "source": "https://github.com/zalandoresearch/fashion-mnist",
                "paper": "arXiv 1708.07747",
                "obtained_as": "Debian package dataset-fashion-mnist",
            },
            "training": {"script": "examples/moving/train_moving.py", **figures},
        },
    )


def worst_frame(tokeniser: Tokeniser, folder: Path, seed: int = 0) -> int:
    """Largest difference of a pixel between the pixel graph and PyTorch, over clips of random tokens."""
    decode = PixelDecoder.open(folder)
    shape = decode.bundle.manifest
    random = np.random.default_rng(seed).integers(0, DESCRIPTION.codes, (4, shape.length))
    expected = tokeniser.decode(torch.from_numpy(random).view(4, decode.shape[0], -1))
    return int(np.abs(decode(random)[..., 0].astype(int) - expected.numpy().astype(int)).max())


def export(build: Path, folder: Path) -> Manifest:
    """Write the bundle of what is in ``build`` into the empty ``folder``."""
    state = torch.load(build / "checkpoint.pt", map_location="cpu", weights_only=False)
    shape = Shape(**state["shape"])
    model, tokeniser = Model(shape).eval(), Tokeniser().eval()
    model.load_state_dict(state["model"])
    tokeniser.load_state_dict(torch.load(build / "tokeniser.pt", map_location="cpu", weights_only=True))
    kept = weights(model)
    table = torch.from_numpy(kept["position.weight"]).half().float()
    model.positions = lambda: table  # their sum is stored, not its parts
    round_matrices(model)
    round_matrices(tokeniser.decoder)
    decoder = description(shape, model.norm.eps)
    write_decoder_graph(decoder, kept, folder / WINDOW_GRAPH, STORAGE)
    clip = replace(DESCRIPTION, frames=shape.frames)
    codes = PictureTokens(shape.positions, 0, shape.codes)
    write_vq_pixel_graph(clip, tokeniser.decoder.weights(), codes, folder / PIXEL_GRAPH, STORAGE)
    files = {name: file_record(folder / name) for name in (WINDOW_GRAPH, PIXEL_GRAPH)}
    written = manifest(shape, decoder, files, state["figures"])
    write_manifest(folder, written)
    worst, frame = worst_difference(model, folder), worst_frame(tokeniser, folder)
    written = replace(written, fill_token=find_fill_token(OrtProvider.open(folder), written))
    write_manifest(folder, written)
    written = write_step_graphs(folder, METHODS)
    print(
        f"largest difference between graphs and PyTorch: logits {worst:.1e} (allowed {TOLERANCE:.0e}), pixels {frame} (allowed 1)"
    )
    if worst > TOLERANCE or frame > 1:
        raise SystemExit("the graphs are not the model; nothing was written")
    return written


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=Path, default=Path("build/moving"), help="where train_moving.py wrote")
    parser.add_argument("--out", type=Path, default=Path("coupled_sampling/bundles/models/moving"))
    arguments = parser.parse_args()
    for name in ("checkpoint.pt", "tokeniser.pt"):
        if not (arguments.build / name).exists():
            raise SystemExit(
                f"{arguments.build / name} does not exist: run train_moving.py first, or pass --build FOLDER"
            )
    if arguments.out.exists() and not (arguments.out / "manifest.json").exists():
        raise SystemExit(f"{arguments.out} exists and is not a bundle; it is left alone: choose another --out")
    partial = arguments.out.with_name(f".{arguments.out.name}.{os.getpid()}.partial")
    partial.mkdir(parents=True)
    try:
        written = export(arguments.build, partial)
        replace_folder(partial, arguments.out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    opened = open_bundle(arguments.out)
    size = sum(record.bytes for record in written.files.values())
    print(f"wrote {opened.folder}: {size / 1e6:.1f} MB, {written.provenance['training']}")


if __name__ == "__main__":
    main()

"""Small Cosmos models as the files that are published: ``model.pt``, ``decoder.jit`` and ``encoder.jit``."""

import dataclasses
import json

from coupled_sampling.export.pictures.video_names import video_places
from standins.cosmos_models import CLIP, cosmos_tensors
from standins.torch_archives import Module, archive_of
from standins.video_decoders import ENCODED, VIDEO, archive, encoder_weights, video_weights

__all__ = ["CODES", "DECODER", "ENCODER", "write_cosmos"]

CODES = 64_000
DECODER = VIDEO
"""Of 3 frames of 2 by 3 codes, which are 17 of 32 by 48 pixels."""
ENCODER = dataclasses.replace(ENCODED, frames=2)
"""Of 9 frames, which are a prompt."""


def write_cosmos(folder, sizes):
    """Write a model of ``sizes`` with all of the tokenizer's codes into ``folder``, and the tokenizer beside it."""
    folder.mkdir(parents=True)
    (folder / "model.pt").write_bytes(archive_of(cosmos_tensors(sizes | {"codes": CODES}, "model.")))
    (folder / "config.json").write_text(json.dumps({"video_latent_shape": CLIP}))
    for name, places, weights in (
        ("decoder.jit", video_places(DECODER), video_weights(DECODER)),
        ("encoder.jit", video_places(ENCODER, encoder=True), encoder_weights(ENCODER)),
    ):
        (folder.parent / name).write_bytes(archive_of(_modules(archive(places, weights))))


def _modules(tensors):
    """A tree of TorchScript's modules that has ``tensors`` by their names."""
    root = Module()
    for name, array in tensors.items():
        *path, last = name.split(".")
        here = root
        for part in path:
            here = here.attributes.setdefault(part, Module())
        here.attributes[last] = array
    return root

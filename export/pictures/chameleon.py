"""Chameleon's picture decoder, which Lumina-mGPT uses too: a VQGAN of taming-transformers, from a checkpoint of its own.

transformers' Chameleon reads pictures only, so that its checkpoints lack the decoder. The authors publish it as
``vqgan.ckpt`` and ``vqgan.yaml``: save the entry "state_dict" with safetensors, under its names, and the YAML as JSON in
``config.json`` beside it. A picture token's name spells its code, a letter for each digit (A is 0) between ``IMGIMG`` and
``Z``. Sources: facebookresearch/chameleon, ``chameleon/inference/vqgan.py``, ``image_tokenizer.py`` and ``vocab.py``;
Alpha-VLLM/Lumina-mGPT, ``data/item_processor.py``. Fractions of pixels are cut off, as there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from coupled_sampling.errors import CheckpointError
from coupled_sampling.export.checkpoints.contract import Checkpoint
from coupled_sampling.export.families.config import ConfigReader
from coupled_sampling.export.families.contract import Exportable
from coupled_sampling.export.pictures.contract import PictureDecoder, picture_decoder, stages
from coupled_sampling.export.pictures.names import TAMING

__all__ = ["chameleon_codes", "chameleon_pictures"]

_NAME = re.compile(r"IMGIMG([A-J]+)Z")
_DIGITS = str.maketrans("ABCDEFGHIJ", "0123456789")
_TRAINING = ("lossconfig", "ckpt_path", "ignore_keys", "image_key", "monitor", "scheduler_config", "lr_g_factor")


def chameleon_pictures(model: Exportable, checkpoint: Checkpoint, separate: Checkpoint | None) -> PictureDecoder | None:
    """The decoder in ``separate`` with the token names of ``checkpoint``; None without one."""
    if separate is None:
        return None
    codes = chameleon_codes(checkpoint.config.get("vocabulary_map") or {}, f"the configuration of {checkpoint.path}")
    return picture_decoder(model, separate, TAMING, _choices(separate), codes=codes)


def chameleon_codes(vocabulary: Mapping[str, int], where: str) -> dict[int, int]:
    """The code of every picture token.

    >>> chameleon_codes({"IMGIMGBAZ": 4, "<s>": 0}, "an example")
    {4: 10}
    """
    codes = {}
    for name, token in vocabulary.items():
        if not name.startswith("IMGIMG"):
            continue
        found = _NAME.fullmatch(name)
        if found is None:
            raise CheckpointError(
                f"{where}: vocabulary_map has the picture token {name!r}, expected IMGIMG, letters A to J for digits, and Z"
            )
        codes[int(token)] = int(found[1].translate(_DIGITS))
    return codes


def _choices(separate: Checkpoint) -> dict[str, Any]:
    where = f"the configuration of {separate.path}"
    reader = ConfigReader(separate.config, where)
    if "model" in separate.config:
        model = reader.part("model", f"{where}, model")
        reader.finish()
        target = model.take("target", "VQModel")
        if str(target).rpartition(".")[2] != "VQModel":
            raise CheckpointError(f"{where}, model: target is {target!r}, and only a VQModel can be exported")
        model.ignore("base_learning_rate")
        where = f"{where}, model, params"
        reader = model.part("params", where)
        model.finish()
    decoder = reader.part("ddconfig")
    choices = _decoder_choices(decoder)
    decoder.finish()
    choices |= {"codes": reader.take("n_embed"), "code_size": reader.take("embed_dim")}
    reader.take("remap", None, accepted=(None,))
    reader.take("colorize_nlabels", None, accepted=(None,))
    reader.ignore("sane_index_shape", *_TRAINING)
    reader.finish()
    return choices


def _decoder_choices(reader: ConfigReader) -> dict[str, Any]:
    multipliers, resolution = reader.take("ch_mult", [1, 2, 4, 8]), reader.take("resolution")
    coarsest = len(multipliers) - 1
    # Its code counts from the coarsest resolution, rounded down, upwards.
    resolutions = {k: resolution // 2**coarsest * 2 ** (coarsest - k) for k in range(len(multipliers))}
    attended = reader.take("attn_resolutions")
    levels = {k for k, size in resolutions.items() if size in attended}
    reader.take("resamp_with_conv", True, accepted=(True,))
    for key in ("give_pre_end", "tanh_out", "use_linear_attn"):
        reader.take(key, False, accepted=(False,))
    reader.take("attn_type", "vanilla", accepted=("vanilla",))
    reader.ignore("double_z", "in_channels", "dropout")
    return {
        "latent": reader.take("z_channels"),
        "stages": stages(reader.take("ch"), multipliers, reader.take("num_res_blocks"), levels),
        "channels": reader.take("out_ch"),
    }

"""Emu3's picture decoder: one of videos, of which a picture is the first frame.

transformers' checkpoints hold it; BAAI's is a checkpoint of its own, Emu3-VisionTokenizer. `FirstFrame` says what is left of
its convolutions in time. Sources: baaivision/Emu3, ``emu3/tokenizer/modeling_emu3visionvq.py`` and
``image_processing_emu3visionvq.py``, which cuts fractions of pixels off; ``Emu3VQVAE`` of transformers.
"""

from __future__ import annotations

import math
import re
from typing import Any

from coupled_sampling.errors import CheckpointError, InvalidArgument
from coupled_sampling.export.checkpoints.contract import Checkpoint
from coupled_sampling.export.families.config import ConfigReader
from coupled_sampling.export.families.contract import Exportable
from coupled_sampling.export.pictures.contract import PictureDecoder, picture_decoder, stages
from coupled_sampling.export.pictures.description import FirstFrame
from coupled_sampling.export.pictures.names import TAMING, TRANSFORMERS_EMU3

__all__ = ["emu3_pictures"]

PREFIXES = ("model.vqmodel.", "vqmodel.")
"""Of checkpoints of several generations."""

_NAME = re.compile(r"<\|visual token (\d+)\|>")


def emu3_pictures(model: Exportable, checkpoint: Checkpoint, separate: Checkpoint | None) -> PictureDecoder | None:
    """The decoder in ``checkpoint`` or in ``separate``; None if there is none."""
    vocabulary = checkpoint.config.get("vocabulary_map")
    codes = None
    if vocabulary:
        names = ((_NAME.fullmatch(name), token) for name, token in vocabulary.items())
        codes = {int(token): int(found[1]) for found, token in names if found}
    prefixes = [p for p in PREFIXES if any(name.startswith(f"{p}decoder.") for name in checkpoint.names())]
    if separate is not None:
        if prefixes:
            raise InvalidArgument(
                f"vq is {str(separate.path)!r}, but {checkpoint.path} holds a picture decoder itself; leave vq out"
            )
        reader = ConfigReader(separate.config, f"the configuration of {separate.path}")
        choices = _choices(reader, "z_channels", "ch", "ch_mult")
        reader.ignore("double_z", "in_channels", "dropout")
        reader.finish()
        return picture_decoder(model, separate, TAMING, choices, codes=codes)
    if not prefixes:
        return None
    where = f"the configuration of {checkpoint.path}, vq_config"
    reader = ConfigReader(checkpoint.config.get("vq_config") or {}, where)
    choices = _choices(reader, "latent_channels", "base_channels", "channel_multiplier")
    reader.take("num_attention_heads", 1, accepted=(1,))
    reader.ignore("hidden_size", "attention_dropout", "double_latent", "in_channels")
    reader.finish()
    return picture_decoder(model, checkpoint, TRANSFORMERS_EMU3, choices, prefix=prefixes[0], codes=codes)


def _choices(reader: ConfigReader, latent: str, width: str, multipliers: str) -> dict[str, Any]:
    """What both configurations say, under the names that differ; defaults are those of both classes."""
    factor, blocks = reader.take("temporal_downsample_factor", 4), reader.take("num_res_blocks", 2)
    if not isinstance(factor, int) or factor < 1:
        raise CheckpointError(f"temporal_downsample_factor is {factor!r}, expected an integer >= 1")
    levels = reader.take("attn_resolutions", [3])
    return {
        "codes": reader.take("codebook_size", 32768),
        "code_size": reader.take("embed_dim", 4),
        "latent": reader.take(latent, 4),
        "stages": stages(reader.take(width, 256), reader.take(multipliers, [1, 2, 2, 4]), blocks, levels),
        "channels": reader.take("out_channels", 3),
        "frame": FirstFrame(blocks, int(math.log2(factor))),
    }

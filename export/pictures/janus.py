"""Janus' and Janus-Pro's picture decoder: LlamaGen's VQ-16, in the model's own checkpoint.

Sources: deepseek-ai/Janus, ``janus/models/vq_model.py`` and ``generation_inference.py``, which cuts fractions of pixels off;
``JanusVQVAE`` of transformers. Both scale code vectors to length 1.
"""

from __future__ import annotations

from typing import Any

from coupled_sampling.errors import CheckpointError, InvalidArgument
from coupled_sampling.export.checkpoints.contract import Checkpoint
from coupled_sampling.export.families.config import ConfigReader
from coupled_sampling.export.families.contract import Exportable
from coupled_sampling.export.pictures.contract import PictureDecoder, picture_decoder, stages
from coupled_sampling.export.pictures.names import LLAMAGEN, TRANSFORMERS_JANUS, read_stages

__all__ = ["janus_pictures"]

OWN_PREFIX, PREFIX = "gen_vision_model.", "model.vqmodel."
LATENT = "post_quant_conv.weight"


def janus_pictures(model: Exportable, checkpoint: Checkpoint, separate: Checkpoint | None) -> PictureDecoder | None:
    """The decoder in ``checkpoint``; None if it holds none."""
    if separate is not None:
        raise InvalidArgument(
            f"vq is {str(separate.path)!r}, but Janus' picture decoder is in its own checkpoint; leave vq out"
        )
    own = checkpoint.config.get("model_type") == "multi_modality"
    prefix, naming = (OWN_PREFIX, LLAMAGEN) if own else (PREFIX, TRANSFORMERS_JANUS)
    if not any(name.startswith(f"{prefix}decoder.") for name in checkpoint.names()):
        return None
    choices = _own_choices(checkpoint) if own else _choices(model, checkpoint)
    return picture_decoder(model, checkpoint, naming, choices | {"normalised_codes": True}, prefix=prefix)


def _choices(model: Exportable, checkpoint: Checkpoint) -> dict[str, Any]:
    where = f"the configuration of {checkpoint.path}, vq_config"
    reader = ConfigReader(checkpoint.config.get("vq_config") or {}, where)
    multipliers = reader.take("channel_multiplier", [1, 1, 2, 2, 4])
    choices = {
        "codes": reader.take("num_embeddings", 16384),
        "code_size": reader.take("embed_dim", 8),
        "latent": reader.take("latent_channels", 256),
        # Only the coarsest stage, which is the last multiplier, has attention.
        "stages": stages(
            reader.take("base_channels", 128), multipliers, reader.take("num_res_blocks", 2), {len(multipliers) - 1}
        ),
        "channels": reader.take("out_channels", 3),
    }
    grid = model.decoding.grid
    side = grid.rows if grid else 0
    reader.take("num_patches", side, accepted=(side,))
    reader.ignore("double_latent", "in_channels", "dropout")
    # Of the aligner and the head, which the decoder of tokens has read.
    reader.ignore("projection_dim", "num_hidden_layers", "hidden_act", "image_token_embed_dim", "depth")
    reader.finish()
    return choices


def _own_choices(checkpoint: Checkpoint) -> dict[str, Any]:
    """DeepSeek's code takes the class ``VQ-16`` as it is, so that the tensors say all."""
    where = f"the configuration of {checkpoint.path}, gen_vision_config"
    reader = ConfigReader(checkpoint.config.get("gen_vision_config") or {}, where)
    reader.take("cls", "VQ-16", accepted=("VQ-16",))
    params = reader.take("params", {})
    reader.finish()
    inner = ConfigReader(params, f"{where}, params")
    latent = checkpoint.info(OWN_PREFIX + LATENT).shape
    codebook = checkpoint.info(f"{OWN_PREFIX}quantize.embedding.weight").shape
    if len(codebook) != 2 or len(latent) != 4:
        raise CheckpointError(
            f"{checkpoint.path}: tensors of {OWN_PREFIX!r} have the shapes {codebook} and {latent}, expected 2 axes for the "
            "codebook and 4 for post_quant_conv"
        )
    inner.take("image_token_size", codebook[0], accepted=(codebook[0],))
    inner.take("n_embed", codebook[1], accepted=(codebook[1],))
    inner.finish()
    return {
        "codes": codebook[0],
        "code_size": codebook[1],
        "latent": latent[0],
        "stages": read_stages(checkpoint, LLAMAGEN, OWN_PREFIX),
    }

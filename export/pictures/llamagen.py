"""LlamaGen's picture decoders, VQ-16 and VQ-8, from a checkpoint of their own.

They are published as ``.pt`` files whose entry "model" is the state dict; saved with safetensors it keeps its names:
``quantize.embedding.weight``, ``post_quant_conv.*``, ``decoder.conv_in.*``, ``decoder.mid.0``, ``.1`` and ``.2``,
``decoder.conv_blocks.N`` with ``res.N``, ``attn.N`` and ``upsample.conv``, ``decoder.norm_out.*`` and ``decoder.conv_out.*``.
``config.json`` beside it may be ``{}``, or hold keys of the published ``ModelArgs``; sizes are read off the tensors.
Source: FoundationVision/LlamaGen, ``tokenizer/tokenizer_image/vq_model.py``; pixels are rounded as in
``autoregressive/sample/sample_c2i.py``, to the nearest.
"""

from __future__ import annotations

from coupled_sampling.errors import CheckpointError
from coupled_sampling.export.checkpoints.contract import Checkpoint
from coupled_sampling.export.families.config import ConfigReader
from coupled_sampling.export.families.contract import Exportable
from coupled_sampling.export.pictures.contract import PictureDecoder, picture_decoder
from coupled_sampling.export.pictures.names import LLAMAGEN, read_stages

__all__ = ["llamagen_pictures"]

_WITHOUT_EFFECT = (
    "codebook_show_usage",
    "commit_loss_beta",
    "entropy_loss_ratio",
    "encoder_ch_mult",
    "dropout_p",
)


def llamagen_pictures(model: Exportable, checkpoint: Checkpoint, separate: Checkpoint | None) -> PictureDecoder | None:
    """The decoder in ``separate``; None without one."""
    if separate is None:
        return None
    reader = ConfigReader(separate.config, f"the configuration of {separate.path}")
    codebook, latent = separate.info("quantize.embedding.weight").shape, separate.info("post_quant_conv.weight").shape
    found = read_stages(separate, LLAMAGEN)
    if len(codebook) != 2 or len(latent) != 4:
        raise CheckpointError(
            f"{separate.path}: quantize.embedding.weight and post_quant_conv.weight have the shapes {codebook} and {latent}, "
            "expected 2 and 4 axes"
        )
    reader.take("codebook_size", codebook[0], accepted=(codebook[0],))
    reader.take("codebook_embed_dim", codebook[1], accepted=(codebook[1],))
    reader.take("z_channels", latent[0], accepted=(latent[0],))
    multipliers = [stage.width // found[-1].width for stage in reversed(found)]
    reader.take("decoder_ch_mult", multipliers, accepted=(multipliers,))
    normalised = reader.take("codebook_l2_norm", True, accepted=(True, False))
    reader.ignore(*_WITHOUT_EFFECT)
    reader.finish()
    choices = {
        "codes": codebook[0],
        "code_size": codebook[1],
        "latent": latent[0],
        "stages": found,
        "normalised_codes": normalised,
        "rounding": "nearest",
    }
    return picture_decoder(model, separate, LLAMAGEN, choices)

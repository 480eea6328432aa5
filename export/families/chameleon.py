"""Chameleon (arXiv 2405.09818) and Lumina-mGPT (arXiv 2408.02657): one decoder for text and picture tokens alike.

A Llama that normalises the queries and keys of every head, each head with a weight and bias of its own, and in the 34B
model normalises what leaves attention and MLP instead of what enters. Picture tokens have names in ``vocabulary_map``. The
graph writes pictures: transformers' model forbids exactly the tokens that this one allows, since it answers in text.

Chameleon's picture is 32 by 32 tokens without anything between. Lumina-mGPT, known by the keys that its own class adds to
the configuration, says rows and columns before the picture and ends every row with a token, which is forced here as in its
own decoding. Sources: facebookresearch/chameleon, ``chameleon/inference``; Alpha-VLLM/Lumina-mGPT, ``inference_solver.py``
and its README; transformers' ``ChameleonForConditionalGeneration``.

Both models' picture decoder is a VQGAN of taming-transformers, from a checkpoint of its own: transformers' Chameleon reads
pictures only, so that its checkpoints lack it. The authors publish it as ``vqgan.ckpt`` and ``vqgan.yaml``: save the entry
"state_dict" with safetensors, under its names, and the YAML as JSON in ``config.json`` beside it. A picture token's name spells
its code, a letter for each digit (A is 0) between ``IMGIMG`` and ``Z``. Fractions of pixels are cut off. Sources:
facebookresearch/chameleon, ``chameleon/inference/vqgan.py``, ``image_tokenizer.py`` and ``vocab.py``; Alpha-VLLM/Lumina-mGPT,
``data/item_processor.py``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from coupled_sampling.arguments import shown
from coupled_sampling.bundles.layouts import Layout
from coupled_sampling.bundles.manifest import Grid
from coupled_sampling.export.checkpoints.contract import Checkpoint, CheckpointError
from coupled_sampling.export.checkpoints.places import read_places
from coupled_sampling.export.families.backbone import (
    backbone_places,
    completed,
    empty_prompt,
    others,
    take_backbone,
    token_range,
)
from coupled_sampling.export.families.config import ConfigReader
from coupled_sampling.export.families.contract import Decoding, Exportable
from coupled_sampling.export.families.settings import describe
from coupled_sampling.export.families.vqgan import picture_decoder, stages
from coupled_sampling.export.graphs.description import DecoderDescription, Norm, QueryKeyNorm
from coupled_sampling.export.pictures.contract import PictureDecoder
from coupled_sampling.export.pictures.names import TAMING

__all__ = ["Chameleon"]

DEFAULTS: dict[str, Any] = {
    "vocab_size": 65536,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "bos_token_id": 1,
}
"""Of transformers' ChameleonConfig."""

HEAD_NORM = Norm("layer", 1e-5)
"""Of queries and keys; its epsilon is written into the models' code."""

PICTURE, BEGIN, END = "IMGIMG", "<racm3:break>", "<eoss>"
ROW_END, GRIDS = "<reserved08799>", "<reserved{:05d}>"
"""Lumina-mGPT's names; the second is of a number of grids, n, with 8800 + n."""

SIDE, LUMINA_SIDE, GRID_SIDE = 32, 48, 2
"""Tokens in a row of a picture: of Chameleon, and of Lumina-mGPT at 768 by 768 pixels; a grid is 2 by 2 tokens."""

_LUMINA_KEYS = ("mask_image_logits", "z_loss_weight")
_NAME = re.compile(rf"{PICTURE}([A-J]+)Z")
_DIGITS = str.maketrans("ABCDEFGHIJ", "0123456789")
_VQ_TRAINING = ("lossconfig", "ckpt_path", "ignore_keys", "image_key", "monitor", "scheduler_config", "lr_g_factor")


class Chameleon:
    """Chameleon and Lumina-mGPT."""

    name = "chameleon"

    def recognises(self, config: Mapping[str, Any]) -> bool:
        """Whether ``model_type`` is ``chameleon``."""
        return bool(config.get("model_type") == "chameleon")

    def load(self, checkpoint: Checkpoint, positions: int | None = None) -> Exportable:
        where = f"the configuration of {checkpoint.path}"
        config = completed(checkpoint.config, DEFAULTS)
        reader = ConfigReader(config, where)
        lumina = any(key in config for key in _LUMINA_KEYS)
        vocabulary = reader.tokens("vocabulary_map")
        pictures = token_range(
            [n for name, n in vocabulary.items() if name.startswith(PICTURE)], where, f"{PICTURE}..."
        )
        choices = take_backbone(reader, where, positions)
        if choices["head_size"] * choices["heads"] != choices["width"]:
            raise CheckpointError(
                f"{where}: head_dim is {choices['head_size']}, expected hidden_size / num_attention_heads, "
                f"{choices['width'] // choices['heads']}"
            )
        first, count = _generated(pictures, vocabulary, where) if lumina else pictures
        description = describe(
            checkpoint,
            **choices,
            query_key_norm=QueryKeyNorm(HEAD_NORM, per_head=True),
            norm_placement="output" if reader.flag("swin_norm", False) else "input",
            generated_first=first,
            generated=count,
        )
        reader.take("tie_word_embeddings", False, accepted=(False,))
        # How many machines it was trained on shows in the norms' weights, which are stored head by head.
        reader.ignore("model_parallel_size", "vq_config", "image_token_id", *_LUMINA_KEYS)
        first_token = reader.count("bos_token_id", least=0)
        reader.finish()
        places = backbone_places(description, "model.", "lm_head.weight")
        weights = read_places(checkpoint, places, others(checkpoint, "model.vqmodel."))
        decoding = (_lumina if lumina else _chameleon)(description, pictures, vocabulary, first_token)
        return Exportable(self.name, description, weights, decoding)

    def pictures(self, model: Exportable, checkpoint: Checkpoint, separate: Checkpoint | None) -> PictureDecoder | None:
        """The picture decoder in ``separate`` with the token names of ``checkpoint``; None without one."""
        if separate is None:
            return None
        where = f"the configuration of {checkpoint.path}"
        codes = _codes(ConfigReader(checkpoint.config, where).tokens("vocabulary_map", {}), where)
        return picture_decoder(model, separate, TAMING, _vq_choices(separate), codes=codes)


def _generated(pictures: tuple[int, int], vocabulary: Mapping[str, int], where: str) -> tuple[int, int]:
    """First and count of a range with all tokens of a picture and those that end its rows and itself."""
    try:
        forced = vocabulary[ROW_END], vocabulary[END]
    except KeyError as error:
        raise CheckpointError(f"{where}: vocabulary_map has no {error}, which Lumina-mGPT needs") from error
    first = min(pictures[0], *forced)
    return first, max(sum(pictures), *(token + 1 for token in forced)) - first


def _chameleon(
    description: DecoderDescription, pictures: tuple[int, int], vocabulary: Mapping[str, int], start: int
) -> Decoding:
    unconditional = (start, vocabulary[BEGIN]) if BEGIN in vocabulary else None
    fits = description.positions > SIDE**2
    return Decoding(
        length=SIDE**2 if fits else 0,
        grid=Grid(SIDE, SIDE) if fits else None,
        prompts=empty_prompt(unconditional),
        unconditional_prompt=unconditional,
        drafting=f"copy:{SIDE}" if fits else f"random:{pictures[0]}:{pictures[1]}",
        temperature=0.7,
        top_p=0.9,
        guidance=1.0 if unconditional is None else 3.0,
        notes=(
            f"A prompt is text with {BEGIN} as its last token. The authors' second guidance scale, 1.2, is for prompts with "
            "pictures in them and has no effect on others; it is not exported.",
        ),
    )


def _lumina(
    description: DecoderDescription, pictures: tuple[int, int], vocabulary: Mapping[str, int], start: int
) -> Decoding:
    grids = vocabulary.get(GRIDS.format(8800 + LUMINA_SIDE // GRID_SIDE))
    unconditional = (vocabulary[BEGIN], grids, grids) if grids is not None and BEGIN in vocabulary else None
    layout = Layout.grid(LUMINA_SIDE, LUMINA_SIDE, pictures, row_end=vocabulary[ROW_END], end=(vocabulary[END],))
    fits = layout.length + 2 <= description.positions
    return Decoding(
        length=layout.length if fits else 0,
        grid=Grid(LUMINA_SIDE, LUMINA_SIDE) if fits else None,
        layout=layout if fits else None,
        prompts=empty_prompt(unconditional),
        unconditional_prompt=unconditional,
        drafting=f"copy:{LUMINA_SIDE + 1}" if fits else f"random:{pictures[0]}:{pictures[1]}",
        top_k=2000,
        guidance=1.0 if unconditional is None else 4.0,
        notes=(
            f"A prompt is text, {BEGIN} and the tokens of rows and columns, counted in grids of 2 by 2 tokens: for this layout "
            f"twice {GRIDS.format(8800 + LUMINA_SIDE // GRID_SIDE)}. The layout is that of 768 by 768 pixels; checkpoints made for "
            "other sizes need another, and the unconditional prompt must say the same size.",
        ),
    )


def _codes(vocabulary: Mapping[str, int], where: str) -> dict[int, int]:
    """The code of every picture token.

    >>> _codes({"IMGIMGBAZ": 4, "<s>": 0}, "an example")
    {4: 10}
    """
    codes = {}
    for name, token in vocabulary.items():
        if not name.startswith(PICTURE):
            continue
        found = _NAME.fullmatch(name)
        if found is None:
            raise CheckpointError(
                f"{where}: vocabulary_map has the picture token {shown(name)}, expected {PICTURE}, letters A to J for digits, and Z"
            )
        codes[int(token)] = int(found[1].translate(_DIGITS))
    return codes


def _vq_choices(separate: Checkpoint) -> dict[str, Any]:
    """What the picture decoder's configuration says of its description."""
    where = f"the configuration of {separate.path}"
    reader = ConfigReader(separate.config, where)
    if "model" in separate.config:
        model = reader.part("model", f"{where}, model")
        reader.finish()
        target = model.take("target", "VQModel")
        if str(target).rpartition(".")[2] != "VQModel":
            raise CheckpointError(f"{where}, model: target is {shown(target)}, and only a VQModel can be exported")
        model.ignore("base_learning_rate")
        where = f"{where}, model, params"
        reader = model.part("params", where)
        model.finish()
    decoder = reader.part("ddconfig")
    choices = _vq_decoder_choices(decoder)
    decoder.finish()
    choices |= {"codes": reader.count("n_embed"), "code_size": reader.count("embed_dim")}
    reader.take("remap", None, accepted=(None,))
    reader.take("colorize_nlabels", None, accepted=(None,))
    reader.ignore("sane_index_shape", *_VQ_TRAINING)
    reader.finish()
    return choices


def _vq_decoder_choices(reader: ConfigReader) -> dict[str, Any]:
    multipliers, resolution = reader.counts("ch_mult", [1, 2, 4, 8]), reader.count("resolution")
    coarsest = len(multipliers) - 1
    # Its code counts from the coarsest resolution, rounded down, upwards.
    resolutions = {k: resolution // 2**coarsest * 2 ** (coarsest - k) for k in range(len(multipliers))}
    attended = reader.counts("attn_resolutions")
    levels = {k for k, size in resolutions.items() if size in attended}
    reader.take("resamp_with_conv", True, accepted=(True,))
    for key in ("give_pre_end", "tanh_out", "use_linear_attn"):
        reader.take(key, False, accepted=(False,))
    reader.take("attn_type", "vanilla", accepted=("vanilla",))
    reader.ignore("double_z", "in_channels", "dropout")
    return {
        "latent": reader.count("z_channels"),
        "stages": stages(reader.count("ch"), multipliers, reader.count("num_res_blocks"), levels),
        "channels": reader.count("out_ch"),
    }

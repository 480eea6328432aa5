"""Emu3 (arXiv 2409.18869): a Llama over text and 32,768 picture tokens, which ends every row of a picture with a token.

Read are transformers' ``Emu3ForConditionalGeneration``, whose ``vocabulary_map`` names the tokens, and BAAI's own
``Emu3ForCausalLM``, whose configuration numbers those with a meaning; its picture tokens are the last of the vocabulary. Row
ends, the end of the frame and the end of the picture are forced, as in its own decoding.

Sources: baaivision/Emu3, ``image_generation.py``, ``emu3/mllm/utils_emu3.py`` and ``emu3/mllm/configuration_emu3.py``.

The picture decoder is one of videos, of which a picture is the first frame; `FirstFrame` says what is left of its convolutions
in time, and `coupled_sampling.export.families.emu3_video` decodes all frames. transformers' checkpoints hold the decoder; BAAI's
is a checkpoint of its own, Emu3-VisionTokenizer. Sources: baaivision/Emu3, ``emu3/tokenizer/modeling_emu3visionvq.py`` and
``image_processing_emu3visionvq.py``, which cuts fractions of pixels off; ``Emu3VQVAE`` of transformers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from coupled_sampling.bundles.layouts import Layout
from coupled_sampling.bundles.manifest import Grid
from coupled_sampling.errors import InvalidArgument
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
from coupled_sampling.export.graphs.description import DecoderDescription
from coupled_sampling.export.pictures.contract import PictureDecoder
from coupled_sampling.export.pictures.description import FirstFrame
from coupled_sampling.export.pictures.names import TAMING, TRANSFORMERS_EMU3

__all__ = ["Emu3", "inner_vq_choices", "own_vq_choices", "vq_prefixes"]

DEFAULTS: dict[str, Any] = {
    "vocab_size": 184622,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 9216,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1000000.0,
}
"""Of both configuration classes."""

PICTURE = "<|visual token"
NAMES = {
    "row_end": "<|extra_200|>",
    "frame_end": "<|extra_201|>",
    "start": "<|extra_203|>",
    "image": "<|image token|>",
    "begin": "<|image start|>",
    "end": "<|image end|>",
}
"""Tokens with a meaning in ``vocabulary_map``."""

KEYS = {
    "row_end": ("eol_token_id", 151846),
    "frame_end": ("eof_token_id", 151847),
    "start": ("bos_token_id", 151849),
    "image": ("img_token_id", 151851),
    "begin": ("boi_token_id", 151852),
    "end": ("eoi_token_id", 151853),
}
"""The same in BAAI's configurations, with their defaults."""

IMAGE_AREA, PIXELS = 720 * 720, 8
"""Default size of a picture, and pixels of a token in each direction."""

_SHAPES = {
    "transformers": (("text_model.model.", "text_model.lm_head.weight"), ("model.text_model.", "lm_head.weight")),
    "own": (("model.", "lm_head.weight"),),
}
"""Beginning of the decoder's tensors, and the head, in checkpoints of several generations."""

_VQ_PREFIXES = ("model.vqmodel.", "vqmodel.")
"""Beginning of the picture decoder's tensors, in the same."""

_PICTURE_NAME = re.compile(r"<\|visual token (\d+)\|>")


@dataclass(frozen=True)
class _Tokens:
    """Numbers of the tokens that lay out a picture, and of the digits and the star that say its size."""

    pictures: tuple[int, int]
    row_end: int
    frame_end: int
    start: int
    image: int
    begin: int
    end: int
    size: tuple[int, ...] | None

    def generated(self) -> tuple[int, int]:
        """First and count of a range with all tokens that are generated."""
        forced = (self.row_end, self.frame_end, self.end)
        first = min(self.pictures[0], *forced)
        return first, max(sum(self.pictures), *(token + 1 for token in forced)) - first


class Emu3:
    """Emu3, from transformers and from BAAI."""

    name = "emu3"

    def recognises(self, config: Mapping[str, Any]) -> bool:
        """Whether ``model_type`` is ``emu3``, or BAAI's ``Emu3``."""
        return config.get("model_type") in ("emu3", "Emu3")

    def load(self, checkpoint: Checkpoint, positions: int | None = None) -> Exportable:
        where = f"the configuration of {checkpoint.path}"
        own = checkpoint.config.get("model_type") == "Emu3"
        area = IMAGE_AREA
        if own:
            config = completed(checkpoint.config, DEFAULTS)
            reader = ConfigReader(config, where)
            area = reader.count("image_area", IMAGE_AREA)
            side = round(math.sqrt(area) / PIXELS)
            numbers = {role: reader.count(key, default, least=0) for role, (key, default) in KEYS.items()}
        else:
            side = round(math.sqrt(area) / PIXELS)
            tokens = _named_tokens(checkpoint, where, side)
            where = f"{where}, text_config"
            reader = ConfigReader(completed(checkpoint.config.get("text_config", {}), DEFAULTS), where)
        choices = take_backbone(reader, where, positions)
        if own:
            tokens = _own_tokens(numbers, choices["vocab_size"], side)
        reader.take("tie_word_embeddings", False, accepted=(False,))
        reader.finish()
        first, count = tokens.generated()
        description = describe(checkpoint, **choices, generated_first=first, generated=count)
        shapes = _SHAPES["own" if own else "transformers"]
        prefix, head = next((shape for shape in shapes if shape[1] in checkpoint), shapes[0])
        places = backbone_places(description, prefix, head)
        weights = read_places(checkpoint, places, others(checkpoint, *_VQ_PREFIXES))
        return Exportable(self.name, description, weights, _decoding(description, tokens, side))

    def pictures(self, model: Exportable, checkpoint: Checkpoint, separate: Checkpoint | None) -> PictureDecoder | None:
        """The picture decoder in ``checkpoint`` or in ``separate``; None if there is none."""
        where = f"the configuration of {checkpoint.path}"
        codes = _codes(ConfigReader(checkpoint.config, where).tokens("vocabulary_map", {}))
        prefixes = vq_prefixes(checkpoint)
        if separate is not None:
            if prefixes:
                raise InvalidArgument(
                    f"vq is {str(separate.path)!r}, but {checkpoint.path} holds a picture decoder itself; leave vq out"
                )
            return picture_decoder(model, separate, TAMING, own_vq_choices(separate), codes=codes)
        if not prefixes:
            return None
        choices = inner_vq_choices(checkpoint)
        return picture_decoder(model, checkpoint, TRANSFORMERS_EMU3, choices, prefix=prefixes[0], codes=codes)


def vq_prefixes(checkpoint: Checkpoint) -> list[str]:
    """Beginnings of the picture decoder's tensors in a checkpoint that holds the model, too."""
    return [p for p in _VQ_PREFIXES if any(name.startswith(f"{p}decoder.") for name in checkpoint.names())]


def own_vq_choices(separate: Checkpoint) -> dict[str, Any]:
    """What the configuration of BAAI's checkpoint of the decoder says."""
    reader = ConfigReader(separate.config, f"the configuration of {separate.path}")
    choices = _vq_choices(reader, "z_channels", "ch", "ch_mult")
    reader.ignore("double_z", "in_channels", "dropout")
    reader.finish()
    return choices


def inner_vq_choices(checkpoint: Checkpoint) -> dict[str, Any]:
    """What the configuration of transformers' checkpoint of the model says of the decoder."""
    reader = ConfigReader(checkpoint.config, f"the configuration of {checkpoint.path}").part("vq_config", default={})
    choices = _vq_choices(reader, "latent_channels", "base_channels", "channel_multiplier")
    reader.take("num_attention_heads", 1, accepted=(1,))
    reader.ignore("hidden_size", "attention_dropout", "double_latent", "in_channels")
    reader.finish()
    return choices


def _named_tokens(checkpoint: Checkpoint, where: str, side: int) -> _Tokens:
    """Tokens of transformers' configuration, of which all but the text's part and the names is without effect."""
    reader = ConfigReader(checkpoint.config, where)
    vocabulary = reader.tokens("vocabulary_map")
    reader.take("tie_word_embeddings", False, accepted=(False,))
    reader.ignore("text_config", "vq_config", "image_token_id")
    # The converter of transformers wrote these here, where its model does not read them.
    reader.ignore("max_position_embeddings", "rope_scaling")
    reader.finish()
    pictures = token_range([n for name, n in vocabulary.items() if name.startswith(PICTURE)], where, f"{PICTURE} ...")
    missing = [name for name in NAMES.values() if name not in vocabulary]
    if missing:
        raise CheckpointError(f"{where}: vocabulary_map has no {', '.join(missing)}, which lay out a picture")
    text = f"{side}*{side}"
    size = tuple(vocabulary[letter] for letter in text) if all(letter in vocabulary for letter in text) else None
    return _Tokens(pictures, size=size, **{role: vocabulary[name] for role, name in NAMES.items()})


def _own_tokens(numbers: Mapping[str, int], vocab_size: int, side: int) -> _Tokens:
    first = numbers["end"] + 1
    # Single bytes come first in its vocabulary, from "!" on, and digits are never merged.
    size = tuple(ord(letter) - ord("!") for letter in f"{side}*{side}")
    return _Tokens((first, vocab_size - first), size=size, **numbers)


def _decoding(description: DecoderDescription, tokens: _Tokens, side: int) -> Decoding:
    unconditional = None
    if tokens.size is not None:
        unconditional = (tokens.start, tokens.begin, *tokens.size, tokens.image)
    layout = Layout.grid(side, side, tokens.pictures, row_end=tokens.row_end, end=(tokens.frame_end, tokens.end))
    fits = layout.length + len(unconditional or ()) <= description.positions
    return Decoding(
        length=layout.length if fits else 0,
        grid=Grid(side, side) if fits else None,
        layout=layout if fits else None,
        prompts=empty_prompt(unconditional),
        unconditional_prompt=unconditional,
        drafting=f"copy:{side + 1}" if fits else f"random:{tokens.pictures[0]}:{tokens.pictures[1]}",
        top_k=2048,
        guidance=1.0 if unconditional is None else 3.0,
        notes=(
            f"A prompt is {NAMES['start']}, text, {NAMES['begin']}, {side}*{side} as text and {NAMES['image']}.",
            "The unconditional prompt has no text, as part of the training data had none; the authors' own decoding takes a "
            'negative prompt instead ("lowres, bad anatomy, ..."), which is text and needs the tokenizer.',
        ),
    )


def _codes(vocabulary: Mapping[str, int] | None) -> dict[int, int] | None:
    """The code of every picture token; None if their names are not known, and they are in order."""
    if not vocabulary:
        return None
    names = ((_PICTURE_NAME.fullmatch(name), token) for name, token in vocabulary.items())
    return {int(token): int(found[1]) for found, token in names if found}


def _vq_choices(reader: ConfigReader, latent: str, width: str, multipliers: str) -> dict[str, Any]:
    """What both configurations say, under the names that differ; defaults are those of both classes."""
    factor, blocks = reader.count("temporal_downsample_factor", 4), reader.count("num_res_blocks", 2)
    levels = reader.counts("attn_resolutions", [3])
    return {
        "codes": reader.count("codebook_size", 32768),
        "code_size": reader.count("embed_dim", 4),
        "latent": reader.count(latent, 4),
        "stages": stages(reader.count(width, 256), reader.counts(multipliers, [1, 2, 2, 4]), blocks, levels),
        "channels": reader.count("out_channels", 3),
        "frame": FirstFrame(blocks, int(math.log2(factor))),
    }

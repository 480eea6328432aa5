"""Emu3 (arXiv 2409.18869): a Llama over text and 32,768 picture tokens, which ends every row of a picture with a token.

Read are transformers' ``Emu3ForConditionalGeneration``, whose ``vocabulary_map`` names the tokens, and BAAI's own
``Emu3ForCausalLM``, whose configuration numbers those with a meaning; its picture tokens are the last of the vocabulary. Row
ends, the end of the frame and the end of the picture are forced, as in its own decoding.

Sources: baaivision/Emu3, ``image_generation.py``, ``emu3/mllm/utils_emu3.py`` and ``emu3/mllm/configuration_emu3.py``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from coupled_sampling.bundles.layouts import Layout
from coupled_sampling.bundles.manifest import Grid
from coupled_sampling.export.checkpoints.contract import Checkpoint, CheckpointError
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
from coupled_sampling.export.families.places import read_places
from coupled_sampling.export.families.settings import describe
from coupled_sampling.export.graphs.description import DecoderDescription

__all__ = ["Emu3"]

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
    """The family, a `coupled_sampling.export.families.contract.Family`."""

    name = "emu3"

    def recognises(self, config: Mapping[str, Any]) -> bool:
        """Whether ``model_type`` is ``emu3``, or BAAI's ``Emu3``."""
        return config.get("model_type") in ("emu3", "Emu3")

    def load(self, checkpoint: Checkpoint, positions: int | None = None) -> Exportable:
        """Understand ``checkpoint``; ``positions`` shortens the longest sequence, None keeps the checkpoint's."""
        where = f"the configuration of {checkpoint.path}"
        own = checkpoint.config.get("model_type") == "Emu3"
        area = IMAGE_AREA
        if own:
            config = completed(checkpoint.config, DEFAULTS)
            reader = ConfigReader(config, where)
            area = reader.take("image_area", IMAGE_AREA)
            side = round(math.sqrt(area) / PIXELS)
            tokens = _own_tokens(config, side)
            reader.ignore("attn_implementation", *(key for key, _ in KEYS.values()))
        else:
            side = round(math.sqrt(area) / PIXELS)
            tokens = _named_tokens(checkpoint, where, side)
            where = f"{where}, text_config"
            reader = ConfigReader(completed(checkpoint.config.get("text_config") or {}, DEFAULTS), where)
        choices = take_backbone(reader, where, positions)
        reader.take("tie_word_embeddings", False, accepted=(False,))
        reader.finish()
        first, count = tokens.generated()
        description = describe(checkpoint, **choices, generated_first=first, generated=count)
        shapes = _SHAPES["own" if own else "transformers"]
        prefix, head = next((shape for shape in shapes if shape[1] in checkpoint), shapes[0])
        places = backbone_places(description, prefix, head)
        weights = read_places(checkpoint, places, others(checkpoint, "vqmodel.", "model.vqmodel."))
        return Exportable(self.name, description, weights, _decoding(description, tokens, side))


def _named_tokens(checkpoint: Checkpoint, where: str, side: int) -> _Tokens:
    """Tokens of transformers' configuration, of which all but the text's part and the names is without effect."""
    reader = ConfigReader(checkpoint.config, where)
    vocabulary = reader.take("vocabulary_map")
    if not isinstance(vocabulary, Mapping):
        raise CheckpointError(f"{where}: vocabulary_map is {vocabulary!r}, expected names of tokens and their numbers")
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


def _own_tokens(config: Mapping[str, Any], side: int) -> _Tokens:
    numbers = {role: int(config.get(key, default)) for role, (key, default) in KEYS.items()}
    first = numbers["end"] + 1
    # Single bytes come first in its vocabulary, from "!" on, and digits are never merged.
    size = tuple(ord(letter) - ord("!") for letter in f"{side}*{side}")
    return _Tokens((first, config["vocab_size"] - first), size=size, **numbers)


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

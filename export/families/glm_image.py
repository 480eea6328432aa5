"""GLM-Image's decoder of tokens: GLM-4 9B over text, of which the head scores picture tokens only.

The model writes two pictures one right after the other: a small one that plans, then the one that is meant. Both are tokens 0
to 16,383; a diffusion model makes pixels of the second and is not exported. Half of every head turns, some pairs with the
position in time and the others with row and column, counted from where the first picture begins
(`coupled_sampling.export.graphs.picture_positions`). Norms enclose attention and MLP, and gate and up are one matrix.

The size of a picture stands in the prompt as text and decides its positions. The graph is for pictures of 1024 by 1024 pixels,
32 by 32 tokens, with 16 by 16 before. Pictures in prompts need the encoder of pictures, and are not exported.

Sources: transformers' ``GlmImageForConditionalGeneration`` (``get_rope_index``) and ``GlmImageProcessor``; diffusers'
``GlmImagePipeline.generate_prior_tokens``; the settings of sampling are those of the authors' model card.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from coupled_sampling.bundles.layouts import Layout, Span
from coupled_sampling.export.checkpoints.contract import Checkpoint, CheckpointError
from coupled_sampling.export.checkpoints.places import Place
from coupled_sampling.export.families.backbone import completed
from coupled_sampling.export.families.config import ConfigReader
from coupled_sampling.export.families.contract import Decoding, Exportable
from coupled_sampling.export.families.text import LAYER_NAMES, Reading, TextFamily, gate_up, rows_place, take_llama
from coupled_sampling.export.graphs.description import DecoderDescription
from coupled_sampling.export.graphs.picture_positions import PicturePositions

__all__ = ["GlmImage"]

TEXT_DEFAULTS: dict[str, Any] = {
    "vocab_size": 168064,
    "vision_vocab_size": 16512,
    "hidden_size": 4096,
    "intermediate_size": 13696,
    "num_hidden_layers": 40,
    "num_attention_heads": 32,
    "num_key_value_heads": 2,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "attention_bias": True,
}
"""Of transformers' GlmImageTextConfig."""

GRIDS = ((16, 16), (32, 32))
"""Rows and columns of the pictures in the order in which they are written."""

SECTIONS = (8, 12, 12)
"""Pairs that turn with time, row and column, where a configuration does not say."""

_SCALINGS = ("default",)


class GlmImage(TextFamily):
    """GLM-Image."""

    name: ClassVar[str] = "glm_image"
    model_types: ClassVar[Mapping[str, str]] = {"glm_image": "GlmImageForConditionalGeneration"}
    names: ClassVar[Mapping[str, str]] = LAYER_NAMES | {
        "attention_output_norm": "post_self_attn_layernorm",
        "mlp_output_norm": "post_mlp_layernorm",
    }

    def load(self, checkpoint: Checkpoint, positions: int | None = None) -> Exportable:
        exportable = super().load(checkpoint, positions)
        return dataclasses.replace(exportable, decoding=_decoding(checkpoint, exportable))

    def reader(self, config: Mapping[str, Any], where: str, kind: str) -> ConfigReader:
        outer = ConfigReader(config, where)
        text = outer.take("text_config", {})
        outer.take("tie_word_embeddings", False, accepted=(False,))
        begin = outer.count("image_start_token_id", 16384, least=0)
        outer.count("image_end_token_id", 16385, least=0)
        outer.ignore("vision_config", "vq_config", "image_token_id")
        outer.finish()
        if not isinstance(text, Mapping):
            raise outer.refusal("text_config", text, "an object of keys and values")
        found = dict(completed(text, TEXT_DEFAULTS)) | {"image_start_token_id": begin}
        # The one key of rotary positions that other families have not.
        rotary = found.get("rope_parameters")
        if isinstance(rotary, Mapping):
            found["rope_parameters"] = {key: value for key, value in rotary.items() if key != "mrope_section"}
            found["mrope_section"] = rotary.get("mrope_section", list(SECTIONS))
        return ConfigReader(found, f"{where}, text_config")

    def read(self, reader: ConfigReader, where: str, kind: str, positions: int | None) -> Reading:
        choices, notes = take_llama(reader, where, positions, partial=True, scalings=_SCALINGS)
        sections = reader.counts("mrope_section", list(SECTIONS))
        if len(sections) != 3:
            raise reader.refusal("mrope_section", sections, "three numbers of pairs, of time, row and column")
        reader.take("tie_word_embeddings", False, accepted=(False,))
        begin = reader.count("image_start_token_id", least=0)
        pictures = PicturePositions(begin, GRIDS, (sections[0], sections[1], sections[2]))
        choices |= {
            "rotary": dataclasses.replace(choices["rotary"], pictures=pictures),
            "norm_placement": "both",
            "query_key_value_bias": reader.flag("attention_bias"),
            "generated": reader.count("vision_vocab_size"),
        }
        return Reading(choices, notes)

    def prefix(self, checkpoint: Checkpoint) -> str:
        return "model.language_model."

    def unused(self, checkpoint: Checkpoint) -> tuple[str, ...]:
        return tuple(name for name in checkpoint.names() if name.startswith(("model.visual.", "model.vqmodel.")))

    def place(
        self, description: DecoderDescription, name: str, shape: tuple[int, ...], prefix: str, head: str
    ) -> Place:
        plain = super().place
        return rows_place(gate_up(description), name, shape, prefix) or plain(description, name, shape, prefix, head)


def _decoding(checkpoint: Checkpoint, model: Exportable) -> Decoding:
    """Both pictures and the token that ends them, which is what `GRIDS` have places for."""
    description = model.description
    where = f"the configuration of {checkpoint.path}"
    end = ConfigReader(checkpoint.config, where).count("image_end_token_id", 16385, least=0)
    codes = 0 if description.pictures is None else description.pictures.begin
    if not 0 < codes < end < description.generated:
        raise CheckpointError(
            f"{where}: pictures begin with token {codes} and end with {end}, expected picture tokens below both, and both among "
            f"the {description.generated} tokens of the head"
        )
    layout = Layout((*(Span(0, codes, rows * columns) for rows, columns in GRIDS), Span(end, 1)))
    fits = layout.length < description.positions
    first, second = (f"<sop>{rows} {columns}<eop>" for rows, columns in reversed(GRIDS))
    return dataclasses.replace(
        model.decoding,
        length=layout.length if fits else 0,
        layout=layout if fits else None,
        drafting=f"copy:{GRIDS[-1][1]}" if fits else f"random:0:{codes}",
        temperature=0.9,
        top_p=0.75,
        notes=(
            *model.decoding.notes,
            f"A prompt is the conversation as text, {first}{second} and token {codes}, with which the first picture begins; only "
            "pictures of this size have right positions.",
            f"The last {GRIDS[-1][0] * GRIDS[-1][1]} picture tokens are those that a diffusion model makes pixels of, which is not "
            "exported.",
            f"Few positions are needed: {layout.length} and those of the prompt.",
        ),
    )

"""Janus and Janus-Pro (arXiv 2410.13848, 2501.17811): a Llama that reads text and writes the 576 tokens of a picture.

Text has an embedding and a head as in Llama. Picture tokens have their own: the codebook's entry through a small MLP goes in,
and a head of two linear maps with a GELU between scores the 16,384 codes. Here both live in one vocabulary: code c is the
token ``text vocabulary + c``, its row of the embedding is computed once, at export, and only codes are scored.

Sources: deepseek-ai/Janus, ``generation_inference.py`` and ``janus/models/modeling_vlm.py``; ``JanusForConditionalGeneration``
of transformers. Checkpoints of both are read. Text answers and pictures as input are not exported.

The picture decoder is LlamaGen's VQ-16, in the model's own checkpoint, with code vectors scaled to length 1. Sources:
deepseek-ai/Janus, ``janus/models/vq_model.py`` and ``generation_inference.py``, which cuts fractions of pixels off;
``JanusVQVAE`` of transformers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.bundles.json_files import TOKENIZER, read_object
from coupled_sampling.bundles.manifest import Grid, PaddedPrompt
from coupled_sampling.errors import InvalidArgument
from coupled_sampling.export.checkpoints.contract import Checkpoint, CheckpointError
from coupled_sampling.export.checkpoints.places import Place, read_places
from coupled_sampling.export.families.backbone import backbone_places, completed, empty_prompt, others, take_backbone
from coupled_sampling.export.families.config import ConfigReader
from coupled_sampling.export.families.contract import Decoding, Exportable
from coupled_sampling.export.families.settings import describe
from coupled_sampling.export.families.vqgan import picture_decoder, read_sizes, stages
from coupled_sampling.export.graphs.description import DecoderDescription
from coupled_sampling.export.graphs.reference import activation
from coupled_sampling.export.pictures.contract import PictureDecoder
from coupled_sampling.export.pictures.names import LLAMAGEN, TRANSFORMERS_JANUS

__all__ = ["Janus"]

LLAMA_DEFAULTS: dict[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
}
"""Of transformers' LlamaConfig: published configurations of Janus leave out what equals them."""

IMAGE_TOKENS, GUIDANCE = 576, 5.0
PADS = 24
"""Padding tokens of the prompt that says nothing, as many as stand in place of the words of a sentence."""

BEGIN, PAD, BEGIN_OF_IMAGE = "<｜begin▁of▁sentence｜>", "<｜▁pad▁｜>", "<begin_of_image>"  # noqa: RUF001
_ROWS_AT_ONCE = 1024
_OWN_VQ_PREFIX, _VQ_PREFIX = "gen_vision_model.", "model.vqmodel."
"""Beginning of the picture decoder's tensors, in DeepSeek's checkpoints and in transformers'."""


@dataclass(frozen=True)
class _Layout:
    """Names of tensors in one kind of checkpoint; ``aligner`` are the linear maps of the MLP, in their order."""

    backbone: str
    codebook: str
    aligner: tuple[str, ...]
    hidden: str
    head: str
    others: tuple[str, ...]


@dataclass(frozen=True)
class _Picture:
    """Sizes of what makes and reads picture tokens."""

    codes: int
    code_size: int
    head_hidden: int
    count: int = IMAGE_TOKENS


class Janus:
    """Janus and Janus-Pro, from transformers and from DeepSeek."""

    name = "janus"

    def recognises(self, config: Mapping[str, Any]) -> bool:
        """Whether it is transformers' ``janus``, or ``multi_modality`` with a head for pictures."""
        return config.get("model_type") == "janus" or (
            config.get("model_type") == "multi_modality" and "gen_head_config" in config
        )

    def load(self, checkpoint: Checkpoint, positions: int | None = None) -> Exportable:
        where = f"the configuration of {checkpoint.path}"
        reader = ConfigReader(checkpoint.config, where)
        own = checkpoint.config.get("model_type") == "multi_modality"
        picture, layout = (_take_own if own else _take_transformers)(reader, where)
        part = "language_config" if own else "text_config"
        text = completed(checkpoint.config.get(part, {}), LLAMA_DEFAULTS)
        reader.ignore(part, "tie_word_embeddings", "image_token_id")
        reader.finish()
        inner = ConfigReader(text, f"{where}, {part}")
        choices = take_backbone(inner, f"{where}, {part}", positions)
        inner.ignore("tie_word_embeddings")  # of the text's head, which is not exported
        inner.finish()
        words = choices.pop("vocab_size")
        description = describe(
            checkpoint,
            **choices,
            vocab_size=words + picture.codes,
            embedding_segments=(words, picture.codes),
            generated_first=words,
            generated=picture.codes,
            head_hidden=picture.head_hidden,
            head_bias=True,
        )
        weights = _Weights(checkpoint, description, picture, layout)
        return Exportable(self.name, description, weights, _decoding(checkpoint, description, picture))

    def pictures(self, model: Exportable, checkpoint: Checkpoint, separate: Checkpoint | None) -> PictureDecoder | None:
        """The picture decoder in ``checkpoint``; None if it holds none."""
        if separate is not None:
            raise InvalidArgument(
                f"vq is {str(separate.path)!r}, but Janus' picture decoder is in its own checkpoint; leave vq out"
            )
        own = checkpoint.config.get("model_type") == "multi_modality"
        prefix, naming = (_OWN_VQ_PREFIX, LLAMAGEN) if own else (_VQ_PREFIX, TRANSFORMERS_JANUS)
        if not any(name.startswith(f"{prefix}decoder.") for name in checkpoint.names()):
            return None
        choices = _own_vq_choices(checkpoint) if own else _vq_choices(model, checkpoint)
        return picture_decoder(model, checkpoint, naming, choices | {"normalised_codes": True}, prefix=prefix)


_MOST_LAYERS = 64
"""Of the aligner; published ones have two."""


def _take_transformers(reader: ConfigReader, where: str) -> tuple[_Picture, _Layout]:
    vision = reader.part("vision_config", default={})
    part = reader.part("vq_config")
    width, depth = part.count("projection_dim", 2048), part.count("num_hidden_layers", 2, most=_MOST_LAYERS)
    part.take("hidden_act", "gelu", accepted=("gelu",))
    picture = _Picture(
        codes=part.count("num_embeddings", 16384),
        code_size=part.count("embed_dim", 8),
        head_hidden=width,
        count=vision.count("num_image_tokens", IMAGE_TOKENS),
    )
    # The rest describes the decoder of pictures, which `_vq_choices` reads.
    part.ignore(
        *("image_token_embed_dim", "double_latent", "latent_channels", "in_channels", "out_channels", "base_channels"),
        *("channel_multiplier", "num_res_blocks", "num_patches", "depth"),
    )
    part.finish()
    aligner = ("fc1", *(f"hidden_layers.{i}" for i in range(depth - 1)))
    return picture, _Layout(
        backbone="model.language_model.",
        codebook="model.generation_embeddings.weight",
        aligner=tuple(f"model.generation_aligner.{name}" for name in aligner),
        hidden="model.generation_head.proj_out",
        head="model.generation_head.vision_head",
        others=("model.vision_model.", "model.aligner.", _VQ_PREFIX, "lm_head."),
    )


def _take_own(reader: ConfigReader, where: str) -> tuple[_Picture, _Layout]:
    """DeepSeek's own configurations: every part has a class ``cls`` and its arguments ``params``."""
    aligner = _params(reader, where, "gen_aligner_config", "MlpProjector")
    depth = aligner.count("depth", 1, most=_MOST_LAYERS)
    aligner.take("projector_type", accepted=("mlp_gelu",))
    code_size = aligner.count("input_dim")
    aligner.ignore("n_embed")
    aligner.finish()
    head = _params(reader, where, "gen_head_config", "vision_head")
    picture = _Picture(head.count("image_token_size"), code_size, head.count("image_token_embed"))
    head.ignore("n_embed")
    head.finish()
    reader.ignore("vision_config", "aligner_config", "gen_vision_config")
    return picture, _Layout(
        backbone="language_model.model.",
        codebook="gen_embed.weight",
        aligner=tuple(f"gen_aligner.layers.{2 * i}" for i in range(depth)),
        hidden="gen_head.output_mlp_projector",
        head="gen_head.vision_head",
        others=("vision_model.", "aligner.", _OWN_VQ_PREFIX, "language_model.lm_head."),
    )


def _params(reader: ConfigReader, where: str, key: str, kind: str) -> ConfigReader:
    part = reader.part(key, f"{where}, {key}")
    part.take("cls", kind, accepted=(kind,))
    params = part.part("params", f"{where}, {key}, params")
    part.finish()
    return params


class _Weights:
    """Reads weights; picture tokens' embeddings are computed."""

    def __init__(
        self, checkpoint: Checkpoint, description: DecoderDescription, picture: _Picture, layout: _Layout
    ) -> None:
        width, words = description.width, description.embedding_segments[0]
        shapes = description.weight_shapes()
        places = backbone_places(description, layout.backbone, None)
        places["embedding.0.weight"] = Place(f"{layout.backbone}embed_tokens.weight", (words, width))
        for name, tensor in (("head.hidden", layout.hidden), ("head", layout.head)):
            places |= {f"{name}.{part}": Place(f"{tensor}.{part}", shapes[f"{name}.{part}"]) for part in _LINEAR}
        places["codebook"] = Place(layout.codebook, (picture.codes, picture.code_size))
        self._depth = len(layout.aligner)
        for i, tensor in enumerate(layout.aligner):
            places[f"aligner.{i}.weight"] = Place(f"{tensor}.weight", (width, width if i else picture.code_size))
            places[f"aligner.{i}.bias"] = Place(f"{tensor}.bias", (width,))
        self._read = read_places(checkpoint, places, others(checkpoint, *layout.others))

    def __call__(self, name: str) -> NDArray[Any]:
        """The weight called ``name``."""
        return self._image_embedding() if name == "embedding.1.weight" else self._read(name)

    def _image_embedding(self) -> NDArray[np.float32]:
        """Rows of the codebook through the aligner, float32 (codes, width)."""
        x = self._read("codebook").astype(np.float32)
        for i in range(self._depth):
            matrix, bias = (self._read(f"aligner.{i}.{part}").astype(np.float32) for part in _LINEAR)
            # The exact GELU goes through Python objects: in pieces, so that they do not fill the memory.
            pieces = np.split(x, range(_ROWS_AT_ONCE, len(x), _ROWS_AT_ONCE))
            x = np.concatenate([(activation("gelu", piece) if i else piece) @ matrix.T + bias for piece in pieces])
        return np.asarray(x, np.float32)


_LINEAR = ("weight", "bias")


def _decoding(checkpoint: Checkpoint, description: DecoderDescription, picture: _Picture) -> Decoding:
    words, side = description.generated_first, math.isqrt(picture.count)
    draft = f"random:{words}:{picture.codes}"
    special = _special(checkpoint)
    notes = [
        f"A prompt is the conversation as text and {BEGIN_OF_IMAGE} as its last token; token {words} + c is code c."
    ]
    if special is None:
        notes.append(
            f"The authors use guidance {GUIDANCE:g}; without tokenizer.json its unconditional prompt is not known."
        )
    if side**2 != picture.count:
        raise CheckpointError(
            f"{checkpoint.path}: num_image_tokens is {picture.count}, expected those of a square picture"
        )
    empty = special and (special.begin, *([special.pad] * PADS), special.begin_of_image)
    fits = picture.count + len(empty or ()) <= description.positions
    return Decoding(
        length=picture.count if fits else 0,
        grid=Grid(side, side) if fits else None,
        prompts=empty_prompt(empty),
        unconditional_prompt=special and PaddedPrompt(special.pad),
        drafting=f"copy:{side}" if fits else draft,
        guidance=1.0 if special is None else GUIDANCE,
        notes=tuple(notes),
    )


class _Special(NamedTuple):
    """Numbers of special tokens."""

    begin: int
    pad: int
    begin_of_image: int


def _special(checkpoint: Checkpoint) -> _Special | None:
    """What only the tokenizer beside the checkpoint tells."""
    home = checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent
    try:
        added = read_object(home / "tokenizer.json", TOKENIZER, CheckpointError)["added_tokens"]
        numbers = {token["content"]: int(token["id"]) for token in added}
        return _Special(numbers[BEGIN], numbers[PAD], numbers[BEGIN_OF_IMAGE])
    except (CheckpointError, ValueError, KeyError, TypeError, OverflowError):
        return None


def _vq_choices(model: Exportable, checkpoint: Checkpoint) -> dict[str, Any]:
    """What transformers' configuration says of the picture decoder's description."""
    reader = ConfigReader(checkpoint.config, f"the configuration of {checkpoint.path}").part("vq_config", default={})
    multipliers = reader.counts("channel_multiplier", [1, 1, 2, 2, 4])
    choices = {
        "codes": reader.count("num_embeddings", 16384),
        "code_size": reader.count("embed_dim", 8),
        "latent": reader.count("latent_channels", 256),
        # Only the coarsest stage, which is the last multiplier, has attention.
        "stages": stages(
            reader.count("base_channels", 128), multipliers, reader.count("num_res_blocks", 2), {len(multipliers) - 1}
        ),
        "channels": reader.count("out_channels", 3),
    }
    grid = model.decoding.grid
    side = grid.rows if grid else 0
    reader.take("num_patches", side, accepted=(side,))
    reader.ignore("double_latent", "in_channels", "dropout")
    # Of the aligner and the head, which the decoder of tokens has read.
    reader.ignore("projection_dim", "num_hidden_layers", "hidden_act", "image_token_embed_dim", "depth")
    reader.finish()
    return choices


def _own_vq_choices(checkpoint: Checkpoint) -> dict[str, Any]:
    """DeepSeek's code takes the class ``VQ-16`` as it is, so that the tensors say all."""
    reader = ConfigReader(checkpoint.config, f"the configuration of {checkpoint.path}").part(
        "gen_vision_config", default={}
    )
    reader.take("cls", "VQ-16", accepted=("VQ-16",))
    inner = reader.part("params", default={})
    reader.finish()
    sizes = read_sizes(checkpoint, LLAMAGEN, _OWN_VQ_PREFIX)
    for key, name in (("image_token_size", "codes"), ("n_embed", "code_size")):
        inner.take(key, sizes[name], accepted=(sizes[name],))
    inner.finish()
    return sizes

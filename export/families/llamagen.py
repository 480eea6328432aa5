"""LlamaGen (arXiv 2406.06525), class or text to picture: Llama with positions in two dimensions behind a class or a caption.

From classes, the vocabulary here is the codebook followed by the classes and the one that means none: the prompt of class k is the
token ``codes + k``, and only codes are generated. Half of the rotary pairs turn with the row and half with the column; the class
has cos = sin = 0, so that its query and key vanish. Source: FoundationVision/LlamaGen, ``autoregressive/models/gpt.py``,
``generate.py`` and ``autoregressive/sample/sample_c2i.py``.

Its checkpoints are ``.pt`` files without a configuration, whose entry "model", "module" or "state_dict" has the tensors. They need
a ``config.json`` beside them: ``{"model_type": "llamagen", "block_size": 576}``, where ``block_size`` is the number of tokens in a
picture, 256 or 576. Other sizes are read off the tensors; `KEYS` lists what may be said besides.

Text to picture, whose prompt is vectors of T5 and not tokens, is told by its tensors; see
`coupled_sampling.export.families.llamagen_captions`.

The picture decoders, VQ-16 and VQ-8, are checkpoints of their own. They are published as ``.pt`` files, too, whose entry "model"
has the tensors: ``quantize.embedding.weight``, ``post_quant_conv.*``,
``decoder.conv_in.*``, ``decoder.mid.0``, ``.1`` and ``.2``, ``decoder.conv_blocks.N`` with ``res.N``, ``attn.N`` and
``upsample.conv``, ``decoder.norm_out.*`` and ``decoder.conv_out.*``. ``config.json`` beside it may be missing, or hold keys of the
published ``ModelArgs``; sizes are read off the tensors. Source: FoundationVision/LlamaGen,
``tokenizer/tokenizer_image/vq_model.py``; pixels are rounded as in ``autoregressive/sample/sample_c2i.py``, to the nearest.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from numpy.typing import NDArray

from coupled_sampling.bundles.manifest import Grid, Prompt
from coupled_sampling.export.checkpoints.contract import Checkpoint, CheckpointError
from coupled_sampling.export.checkpoints.places import Place, layer_name, read_places
from coupled_sampling.export.families.config import ConfigReader
from coupled_sampling.export.families.contract import Decoding, Exportable
from coupled_sampling.export.families.llamagen_captions import Captions, caption_weights
from coupled_sampling.export.families.settings import MOST_POSITIONS, choose_positions, describe
from coupled_sampling.export.families.vqgan import picture_decoder, read_sizes
from coupled_sampling.export.graphs.description import DecoderDescription, Norm
from coupled_sampling.export.graphs.rotary import GridRotary, Rotary
from coupled_sampling.export.pictures.contract import PictureDecoder
from coupled_sampling.export.pictures.names import LLAMAGEN

__all__ = ["KEYS", "LlamaGen"]

KEYS = {
    "block_size": "tokens in a picture; required",
    "gpt_type": "'c2i' or 't2i'; as the tensors say",
    "n_head": "heads; known for the published widths",
    "n_kv_head": "heads of keys and values; default as many",
    "num_classes": "default 1000",
    "cls_token_num": "1, or the vectors of a caption; as the tensors say",
    "rope_base": "default 10000",
    "norm_eps": "default 1e-5",
    "dim, n_layer, vocab_size, caption_dim": "checked against the tensors",
}
"""Keys of the configuration, under the names of the published code's ``ModelArgs``."""

HEADS = {768: 12, 1024: 16, 1280: 20, 1536: 24, 2560: 40, 2048: 32, 3200: 32, 4096: 32}
"""Heads of GPT-B, L, XL, XXL, XXXL, 1B, 3B and 7B, by their widths."""

EMBEDDING, CLASSES = "tok_embeddings.weight", "cls_embedding.embedding_table.weight"
LAYER_NAMES = {
    "attention_norm": "attention_norm",
    "attention.output": "attention.wo",
    "mlp_norm": "ffn_norm",
    "mlp.gate": "feed_forward.w1",
    "mlp.up": "feed_forward.w3",
    "mlp.down": "feed_forward.w2",
}
_HARMLESS_TENSORS = ("freqs_cis",)
_LAYER = re.compile(r"layers\.(\d+)\.")
_DROPOUTS = (
    "token_dropout_p",
    "attn_dropout_p",
    "resid_dropout_p",
    "ffn_dropout_p",
    "drop_path_rate",
    "class_dropout_prob",
)
_VQ_TRAINING = (
    "codebook_show_usage",
    "commit_loss_beta",
    "entropy_loss_ratio",
    "encoder_ch_mult",
    "dropout_p",
)


@dataclass(frozen=True)
class _Sizes:
    """What the tensors say."""

    width: int
    codes: int
    rows_of_classes: int
    layers: int
    mlp_width: int
    captions: Captions | None

    @property
    def prefix(self) -> int:
        """Positions before the picture."""
        return 1 if self.captions is None else self.captions.length


class LlamaGen:
    """LlamaGen, class or text to picture."""

    name = "llamagen"

    def recognises(self, config: Mapping[str, Any]) -> bool:
        """Whether ``model_type`` is ``llamagen``."""
        return bool(config.get("model_type") == "llamagen")

    def load(self, checkpoint: Checkpoint, positions: int | None = None) -> Exportable:
        """Understand ``checkpoint``; ``positions`` keeps the prompt and the first tokens only, None keeps all."""
        where = f"the configuration of {checkpoint.path}"
        reader = ConfigReader(checkpoint.config, where)
        sizes = _sizes(checkpoint)
        kind = "c2i" if sizes.captions is None else "t2i"
        reader.take("gpt_type", kind, accepted=(kind,))
        for key, found in (("dim", sizes.width), ("n_layer", sizes.layers), ("vocab_size", sizes.codes)):
            reader.take(key, found, accepted=(found,))
        block = reader.count("block_size")
        side = math.isqrt(block)
        if side**2 != block or not 0 < block <= MOST_POSITIONS:
            raise CheckpointError(
                f"{where}: block_size is {block}, expected the tokens of a square picture, such as 576, at most {MOST_POSITIONS}"
            )
        classes = reader.count("num_classes", 1000)
        if sizes.captions is not None:
            reader.take("caption_dim", sizes.captions.size, accepted=(sizes.captions.size,))
        elif sizes.rows_of_classes not in (classes, classes + 1):
            raise CheckpointError(
                f"{checkpoint.path}: {CLASSES!r} has {sizes.rows_of_classes} rows, expected {classes} or {classes + 1}; say "
                "num_classes in config.json if they are not 1000"
            )
        description = _description(checkpoint, reader, sizes, side, positions)
        reader.ignore(*_DROPOUTS, "multiple_of", "ffn_dim_multiplier", "max_batch_size", "max_seq_len")
        reader.finish()
        weights = read_places(checkpoint, _places(description, sizes.captions), _HARMLESS_TENSORS)
        if sizes.captions is not None:
            weights = caption_weights(weights, description.width)
        return Exportable(self.name, description, weights, _decoding(description, side, classes, sizes.captions))

    def pictures(self, model: Exportable, checkpoint: Checkpoint, separate: Checkpoint | None) -> PictureDecoder | None:
        """The picture decoder in ``separate``; None without one."""
        if separate is None:
            return None
        return picture_decoder(model, separate, LLAMAGEN, _vq_choices(separate))


def _sizes(checkpoint: Checkpoint) -> _Sizes:
    names = checkpoint.names()
    captions = Captions.of(checkpoint)
    layers = {int(found[1]) for found in map(_LAYER.match, names) if found}
    return _Sizes(
        width=_rows_of(checkpoint, "norm.weight", 1),
        codes=_rows_of(checkpoint, EMBEDDING, 2),
        rows_of_classes=_rows_of(checkpoint, CLASSES, 2) if captions is None else 0,
        layers=len(layers),
        mlp_width=_rows_of(checkpoint, "layers.0.feed_forward.w1.weight", 2),
        captions=captions,
    )


def _rows_of(checkpoint: Checkpoint, name: str, axes: int) -> int:
    shape = checkpoint.info(name).shape
    if len(shape) != axes:
        raise CheckpointError(
            f"{checkpoint.path}: tensor {name!r} has shape {shape}, expected {axes} axes; is it LlamaGen's?"
        )
    return shape[0]


def _description(
    checkpoint: Checkpoint, reader: ConfigReader, sizes: _Sizes, side: int, positions: int | None
) -> DecoderDescription:
    prefix, captions = reader.take("cls_token_num", sizes.prefix, accepted=(sizes.prefix,)), sizes.captions
    rows = (sizes.codes, sizes.rows_of_classes) if captions is None else (sizes.codes, captions.length, 1)
    heads = reader.count("n_head", HEADS.get(sizes.width, 0), least=0)
    if not heads or sizes.width % heads:
        raise CheckpointError(
            f"the configuration of {checkpoint.path}: n_head is {heads}, expected a divisor of the width, {sizes.width}; its width "
            "is not a published one, so say n_head in config.json"
        )
    return describe(
        checkpoint,
        vocab_size=sum(rows),
        positions=choose_positions(positions, prefix + side**2),
        width=sizes.width,
        layers=sizes.layers,
        heads=heads,
        kv_heads=reader.count("n_kv_head", heads),
        mlp_width=sizes.mlp_width,
        norm=Norm("rms", reader.number("norm_eps", 1e-5)),
        rotary=Rotary("interleaved", reader.number("rope_base", 10000.0), grid=GridRotary(side, side, prefix=prefix)),
        embedding_segments=rows,
        generated=sizes.codes,
        condition=None if captions is None else captions.prefix(sizes.codes),
    )


def _places(description: DecoderDescription, captions: Captions | None) -> dict[str, Place]:
    shapes = description.weight_shapes()
    if captions is None:
        others = {"embedding.1.weight": Place(CLASSES, shapes["embedding.1.weight"])}
    else:
        others = captions.places(description.width)
    places = others | {
        "embedding.0.weight": Place(EMBEDDING, shapes["embedding.0.weight"]),
        "norm.weight": Place("norm.weight", shapes["norm.weight"]),
        "head.weight": Place("output.weight", shapes["head.weight"]),
    }
    query, key = description.heads * description.head_size, description.kv_heads * description.head_size
    joined = (query + 2 * key, description.width)
    parts = {"query": slice(query), "key": slice(query, query + key), "value": slice(query + key, joined[0])}
    for name, shape in shapes.items():
        if name in places or not name.startswith("layers."):
            continue
        layer, rest = layer_name(name)
        stem = rest.removesuffix(".weight")
        part = parts.get(stem.removeprefix("attention."))
        if part is None:
            places[name] = Place(f"layers.{layer}.{LAYER_NAMES[stem]}.weight", shape)
        else:
            places[name] = Place(f"layers.{layer}.attention.wqkv.weight", joined, partial(_rows, part))
    return places


def _rows(part: slice, array: NDArray[Any]) -> NDArray[Any]:
    return array[part]


def _decoding(description: DecoderDescription, side: int, classes: int, captions: Captions | None) -> Decoding:
    codes = description.generated
    length = min(side**2, description.positions + 1 - (1 if captions is None else captions.length))
    whole = Decoding(length=length, grid=Grid(side, side) if length == side**2 else None, drafting=f"copy:{side}")
    if captions is not None:
        prompts, nothing = captions.prompts(codes)
        notes = "Guidance and top_k are those of the authors' sampling script."
        return replace(
            whole, prompts=prompts, unconditional_prompt=nothing, top_k=min(1000, codes), guidance=7.5, notes=(notes,)
        )
    none = codes + classes if codes + classes < description.vocab_size else None
    return replace(
        whole,
        prompts={str(k): Prompt((codes + k,), (), f"Class {k}") for k in range(classes)},
        unconditional_prompt=None if none is None else (none,),
        top_k=min(2000, codes),
        guidance=1.0 if none is None else 4.0,
        notes=(
            "Guidance and top_k are those of the authors' sampling script; published scores were measured with less guidance and "
            "without top_k.",
        ),
    )


def _vq_choices(separate: Checkpoint) -> dict[str, Any]:
    """What the tensors say of the picture decoder's description, which its configuration may say again."""
    reader = ConfigReader(separate.config, f"the configuration of {separate.path}")
    sizes = read_sizes(separate, LLAMAGEN)
    for key, name in (("codebook_size", "codes"), ("codebook_embed_dim", "code_size"), ("z_channels", "latent")):
        reader.take(key, sizes[name], accepted=(sizes[name],))
    stages = sizes["stages"]
    multipliers = [stage.width // stages[-1].width for stage in reversed(stages)]
    reader.take("decoder_ch_mult", multipliers, accepted=(multipliers,))
    normalised = reader.flag("codebook_l2_norm", True)
    reader.ignore(*_VQ_TRAINING)
    reader.finish()
    return sizes | {"normalised_codes": normalised, "rounding": "nearest"}

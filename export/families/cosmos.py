"""NVIDIA's Cosmos-Predict1 autoregressive video models: frames of tokens after one or two that are given.

A Llama with grouped heads whose queries and keys are normalised, head by head, with a weight that all heads of a layer share. Each
query and key turns with the frame, the row and the column of its token; in 12B and 13B these angles are stretched. Tokens are codes
of a video tokenizer, 40 rows by 64 columns to a latent frame: 5 latent frames are a clip of 33 frames of 640 by 1024 pixels. A
prompt of 4B and 12B is the codes of the first latent frames and nothing else. There is no start without a video, and no guidance.

5B and 13B are 4B and 12B with a text. Every layer adds positions anew and attends to vectors of T5, the condition of a request. A
prompt begins with the token that begins a video, the first one behind the codes: it neither turns nor has a position, and is
never generated. The embedding has more rows, which nothing uses.

A checkpoint is ``model.pt``, a PyTorch archive of named tensors, with ``model.`` before all names or without. Sizes are read off
the tensors, and so is which model it is: in 4B and 5B the heads together are as wide as the model, in the others they are not, and
those with text have cross-attention. The published code does not read ``config.json``, and what the published ones hold is not
known. So keys of it that the code's own settings have are compared with what is exported, and all others are passed over.
``video_latent_shape``, [frames, rows, columns], is where to say that a model was trained further for clips of another size.

Source: nvidia-cosmos/cosmos-predict1 at 4ed35fa, under ``cosmos_predict1/autoregressive``: ``networks/transformer.py``,
``modules/attention.py``, ``modules/embedding.py``, ``configs/base/model_config.py``, ``inference/world_generation_pipeline.py``,
``utils/sampling.py``; ``cosmos_predict1/auxiliary/t5_text_encoder.py``. No published weights were seen. Not known: what their
``config.json`` holds, whether their names begin with ``model.``, and the top-p of 12B and 13B, which are those of the predecessor,
Cosmos 1.0.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from numpy.typing import NDArray

from coupled_sampling.bundles.manifest import Grid
from coupled_sampling.export.checkpoints.contract import Checkpoint, CheckpointError
from coupled_sampling.export.checkpoints.places import Place, layer_name, read_places
from coupled_sampling.export.families.config import ConfigReader
from coupled_sampling.export.families.contract import Decoding, Exportable
from coupled_sampling.export.families.cosmos_tokenizer import cosmos_picture_decoder
from coupled_sampling.export.families.settings import MOST_POSITIONS, choose_positions, describe
from coupled_sampling.export.graphs.conditions import CrossAttention
from coupled_sampling.export.graphs.description import DecoderDescription, Norm, QueryKeyNorm
from coupled_sampling.export.graphs.layer_positions import LayerPositions
from coupled_sampling.export.graphs.rotary import GridRotary, Rotary, RotaryScaling
from coupled_sampling.export.pictures.contract import PictureDecoder

__all__ = ["Cosmos"]

EMBEDDING, HEAD = "tok_embeddings.weight", "output.weight"
QUERY_NORM = "layers.0.attention.q_norm.weight"
CONTEXT_KEY = "layers.0.cross_attention.wk.weight"
PARTS = {"query": "wq", "key": "wk", "value": "wv", "query_norm": "q_norm", "key_norm": "k_norm", "output": "wo"}
LAYER_NAMES = {
    "attention_norm": "attention_norm",
    "cross_attention_norm": "cross_attention_norm",
    "mlp_norm": "ffn_norm",
    "mlp.gate": "feed_forward.w1",
    "mlp.up": "feed_forward.w3",
    "mlp.down": "feed_forward.w2",
    **{f"{part}.{own}": f"{part}.{name}" for part in ("attention", "cross_attention") for own, name in PARTS.items()},
}
CLIP = [5, 40, 64]
"""Frames, rows and columns of tokens of the published models."""

BASE, EPSILON = 500_000.0, 1e-5
STRETCH, BETA_FAST, BETA_SLOW, FIRST_TRAINED = 2, 4, 1, [3, 40, 64]
"""How 12B's and 13B's angles are stretched; of the last the published code takes the rows for the columns, too."""

CONTEXT = 512
"""Vectors of a text that are attended to: T5's texts are padded to so many tokens, and the padding is zeros."""

TOP_P = {"4B": 0.8, "12B": 0.9, "5B": 0.7, "13B": 0.8}

_LAYER = re.compile(r"layers\.(\d+)\.")
_HARMLESS_TENSORS = ("_extra_state",)
_WINDOW = 64
_PROMPT_FRAMES = 2


@dataclass(frozen=True)
class _Sizes:
    """What the tensors say."""

    width: int
    rows: int
    """Of the embedding; with text more than are used."""
    codes: int
    layers: int
    head_size: int
    heads: int
    kv_heads: int
    mlp_width: int
    context_size: int
    """Of the vectors of a text; 0 without."""

    @property
    def stretched(self) -> bool:
        """Whether it is built as 12B and 13B are."""
        return self.width != self.heads * self.head_size

    @property
    def begin(self) -> tuple[int, ...]:
        """What comes before the clip: the token that begins a video, with text."""
        return (self.codes,) if self.context_size else ()

    @property
    def model(self) -> str:
        """Which of the published models is built so."""
        with_text, without = ("13B", "12B") if self.stretched else ("5B", "4B")
        return with_text if self.context_size else without


class Cosmos:
    """Cosmos-Predict1 autoregressive."""

    name = "cosmos"

    def recognises(self, config: Mapping[str, Any]) -> bool:
        """Whether ``model_type`` is ``cosmos``."""
        return bool(config.get("model_type") == "cosmos")

    def recognises_tensors(self, names: Collection[str]) -> bool:
        """Whether tensors are named as in the published code, with ``model.`` before all or without."""
        return any(
            all(f"{prefix}{name}" in names for name in (EMBEDDING, HEAD, QUERY_NORM)) for prefix in ("", "model.")
        )

    def load(self, checkpoint: Checkpoint, positions: int | None = None) -> Exportable:
        """Understand ``checkpoint``; ``positions`` keeps the first tokens of a clip only, None keeps all."""
        prefix = "model." if f"model.{EMBEDDING}" in checkpoint else ""
        sizes = _sizes(checkpoint, prefix)
        reader = ConfigReader(checkpoint.config, f"the configuration of {checkpoint.path}")
        clip = reader.counts("video_latent_shape", CLIP, least=1)
        if len(clip) != len(CLIP):
            raise reader.refusal("video_latent_shape", clip, "three numbers: frames, rows and columns of tokens")
        if math.prod(clip) > MOST_POSITIONS:  # tables have a row for each, however few positions are asked for
            raise reader.refusal("video_latent_shape", clip, f"a clip of at most {MOST_POSITIONS} tokens")
        _compare(reader, sizes)
        description = _description(checkpoint, sizes, clip, positions)
        weights = read_places(checkpoint, _places(description, sizes, prefix), _HARMLESS_TENSORS)
        return Exportable(self.name, description, weights, _decoding(description, sizes, clip))

    def pictures(self, model: Exportable, checkpoint: Checkpoint, separate: Checkpoint | None) -> PictureDecoder | None:
        """The decoder of clips in ``separate``, which also shows the frames of the prompt; None if there is none."""
        grid = model.decoding.grid
        return None if separate is None or grid is None else cosmos_picture_decoder(separate, grid)


def _sizes(checkpoint: Checkpoint, prefix: str) -> _Sizes:
    def shape(name: str, axes: int = 2) -> tuple[int, ...]:
        return _shape(checkpoint, f"{prefix}{name}", axes)

    (head_size,) = shape(QUERY_NORM, 1)
    (width,) = shape("norm.weight", 1)
    rows = {name: shape(f"layers.0.attention.{name}.weight")[0] for name in ("wq", "wk")}
    for name, count in rows.items():
        if not head_size or not count or count % head_size:
            raise CheckpointError(
                f"{checkpoint.path}: layers.0.attention.{name}.weight has {count} rows, expected a multiple of the size of a head, "
                f"{head_size}, as {QUERY_NORM} has it"
            )
    numbers = (_LAYER.match(name.removeprefix(prefix)) for name in checkpoint.names())
    embedded, codes = (shape(name)[0] for name in (EMBEDDING, HEAD))
    with_text = any(".cross_attention" in name for name in checkpoint.names())
    if embedded <= codes if with_text else embedded != codes:
        wanted = (
            "more rows than the head has, one of them for the token that begins a video" if with_text else "as many"
        )
        raise CheckpointError(
            f"{checkpoint.path}: {EMBEDDING} has {embedded} rows and {HEAD} {codes}, expected {wanted}"
        )
    return _Sizes(
        width=width,
        rows=embedded,
        codes=codes,
        layers=len({int(found[1]) for found in numbers if found}),
        head_size=head_size,
        heads=rows["wq"] // head_size,
        kv_heads=rows["wk"] // head_size,
        mlp_width=shape("layers.0.feed_forward.w1.weight")[0],
        context_size=shape(CONTEXT_KEY)[1] if with_text else 0,
    )


def _shape(checkpoint: Checkpoint, name: str, axes: int) -> tuple[int, ...]:
    shape = checkpoint.info(name).shape
    if len(shape) != axes:
        raise CheckpointError(
            f"{checkpoint.path}: tensor {name!r} has shape {shape}, expected {axes} axes; is it Cosmos'?"
        )
    return shape


def _compare(reader: ConfigReader, sizes: _Sizes) -> None:
    """Refuse a configuration that says something else than what is exported, in a key that the published code's settings have."""
    for key, found in (
        ("dim", sizes.width),
        ("n_layers", sizes.layers),
        ("n_heads", sizes.heads),
        ("n_kv_heads", sizes.kv_heads),
        ("head_dim", sizes.head_size),
        ("ffn_hidden_size", sizes.mlp_width),
        ("norm_type", "rmsnorm"),
        ("rope_dim", "3D"),
        ("pytorch_rope_version", "v2"),
        ("use_qk_normalization", True),
        ("causal_mask", True),
        ("insert_cross_attn", bool(sizes.context_size)),
        ("apply_abs_pos_emb", bool(sizes.context_size)),
        ("apply_yarn", sizes.stretched),
        ("original_latent_shape", FIRST_TRAINED),
    ):
        reader.take(key, found, accepted=(found,))
    reader.take("vocab_size", sizes.codes, accepted=(sizes.codes, sizes.rows))
    if sizes.context_size:
        reader.take("context_dim", sizes.context_size, accepted=(sizes.context_size,))
        reader.take("insert_cross_attn_every_k_layers", 1, accepted=(1,))
    for key, value in (
        ("norm_eps", EPSILON),
        ("rope_theta", BASE),
        ("yarn_scale", STRETCH),
        ("yarn_beta_fast", BETA_FAST),
        ("yarn_beta_slow", BETA_SLOW),
    ):
        said = reader.number(key, value)
        if said != value:
            raise reader.refusal(key, said, f"{value}, which is what the published code has")


def _description(checkpoint: Checkpoint, sizes: _Sizes, clip: list[int], positions: int | None) -> DecoderDescription:
    frames, rows, columns = clip
    before = len(sizes.begin)
    grid = GridRotary(rows, columns, prefix=before, frames=frames, prefix_vanishes=False)
    scaling = None
    if sizes.stretched:
        first, space, _ = FIRST_TRAINED
        grid = replace(grid, trained=(first, space, space))
        scaling = RotaryScaling("llama3", STRETCH, low_frequency_factor=BETA_SLOW, high_frequency_factor=BETA_FAST)
    return describe(
        checkpoint,
        vocab_size=sizes.codes + before,
        positions=choose_positions(positions, before + math.prod(clip)),
        width=sizes.width,
        layers=sizes.layers,
        heads=sizes.heads,
        kv_heads=sizes.kv_heads,
        head_size=sizes.head_size,
        mlp_width=sizes.mlp_width,
        norm=Norm("rms", EPSILON),
        rotary=Rotary("half", BASE, scaling=scaling, grid=grid),
        query_key_norm=QueryKeyNorm(Norm("rms", EPSILON)),
        generated=sizes.codes,
        layer_positions=LayerPositions(frames, rows, columns, prefix=before) if before else None,
        condition=CrossAttention(CONTEXT, sizes.context_size) if before else None,
    )


def _places(description: DecoderDescription, sizes: _Sizes, prefix: str) -> dict[str, Place]:
    names = {"norm.weight": "norm.weight", "head.weight": HEAD}

    def used(table: NDArray[Any]) -> NDArray[Any]:
        return table[: description.vocab_size]

    places = {"embedding.weight": Place(f"{prefix}{EMBEDDING}", (sizes.rows, sizes.width), used)}
    for name, shape in description.weight_shapes().items():
        if name in places:
            continue
        if name not in names:
            layer, rest = layer_name(name)
            names[name] = f"layers.{layer}.{LAYER_NAMES[rest.removesuffix('.weight')]}.weight"
        places[name] = Place(f"{prefix}{names[name]}", shape)
    return places


def _decoding(description: DecoderDescription, sizes: _Sizes, clip: list[int]) -> Decoding:
    frames, rows, columns = clip
    whole = description.positions == len(sizes.begin) + math.prod(clip) and frames > 1
    given = min(_PROMPT_FRAMES, frames - 1) if whole else 0
    notes = ["A prompt is the tokens of the first latent frames of a clip, as the published encoder makes them."]
    if sizes.begin:
        notes.append(f"Before them comes token {sizes.codes}, which begins a video.")
        notes.append(
            f"The condition is the last hidden states of T5-11B for a text's own tokens, up to {CONTEXT}, without padding."
        )
    if sizes.stretched:
        notes.append("top_p is that of the predecessor, Cosmos 1.0; what the authors use for Predict1 is not known.")
    return Decoding(
        length=(frames - given) * rows * columns if whole else 0,
        grid=Grid(rows, columns, frames) if whole else None,
        prompt_frames=given,
        prompt_begin=sizes.begin,
        drafting=f"copy:{rows * columns}",
        window=_WINDOW,
        top_p=TOP_P[sizes.model],
        notes=tuple(notes),
    )

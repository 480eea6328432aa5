"""What families of text models share: from a configuration and names of tensors to a decoder with its weights.

A family is a subclass that says which configurations are its own (`model_types`), what they mean (`read`) and what its tensors
are called (`names`, `place`). Nearly all text models are Llama with some choices changed: `take_llama` reads what they share.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

from coupled_sampling.arguments import is_whole
from coupled_sampling.export.checkpoints.contract import Checkpoint, CheckpointError
from coupled_sampling.export.checkpoints.places import Place, layer_name, read_places, require_tied_head
from coupled_sampling.export.families.config import ConfigReader, architectures
from coupled_sampling.export.families.contract import Decoding, Exportable
from coupled_sampling.export.families.rotary_settings import SCALINGS, Lengths, take_rotary
from coupled_sampling.export.families.settings import describe, require_layers, take_activation, take_stop_tokens
from coupled_sampling.export.graphs.description import DecoderDescription, Norm

__all__ = [
    "EMBEDDING",
    "HARMLESS_TENSORS",
    "HEAD",
    "LAYER_NAMES",
    "Reading",
    "Rows",
    "TextFamily",
    "gate_up",
    "rows_place",
    "take_llama",
]

LAYER_NAMES = {
    "attention_norm": "input_layernorm",
    "attention.query": "self_attn.q_proj",
    "attention.key": "self_attn.k_proj",
    "attention.value": "self_attn.v_proj",
    "attention.query_norm": "self_attn.q_norm",
    "attention.key_norm": "self_attn.k_norm",
    "attention.output": "self_attn.o_proj",
    "mlp_norm": "post_attention_layernorm",
    "mlp.gate": "mlp.gate_proj",
    "mlp.up": "mlp.up_proj",
    "mlp.down": "mlp.down_proj",
}
"""From canonical names to Llama's."""

EMBEDDING, HEAD = "embed_tokens.weight", "lm_head.weight"
HARMLESS_TENSORS = ("rotary_emb.inv_freq",)


class Reading(NamedTuple):
    """A configuration understood: parameters of a `DecoderDescription`, and what a user must know."""

    choices: dict[str, Any]
    notes: tuple[str, ...] = ()


class Rows(NamedTuple):
    """A matrix of a layer that holds several maps, one below the other: its name, and how many rows it has."""

    tensor: str
    total: int


class TextFamily(ABC):
    """A family of text models, all but `read` as in Llama."""

    name: ClassVar[str]
    model_types: ClassVar[Mapping[str, str]]
    """What ``model_type`` may be, and what ``architectures`` then calls the model."""
    names: ClassVar[Mapping[str, str]] = LAYER_NAMES

    def recognises(self, config: Mapping[str, Any]) -> bool:
        """Whether ``model_type``, or ``architectures`` without it, is one of this family."""
        return self.kind(config) is not None

    def kind(self, config: Mapping[str, Any]) -> str | None:
        """Which of ``model_types`` a configuration is of; None for none."""
        kind, named = config.get("model_type"), architectures(config)
        if kind is not None:
            return kind if isinstance(kind, str) and kind in self.model_types else None
        return next((name for name, one in self.model_types.items() if one in named), None)

    def load(self, checkpoint: Checkpoint, positions: int | None = None) -> Exportable:
        kind = self.kind(checkpoint.config)
        if kind is None:
            raise CheckpointError(
                f"{checkpoint.path}: model_type is {checkpoint.config.get('model_type')!r}, expected one of "
                f"{', '.join(self.model_types)}; is the family right?"
            )
        where = f"the configuration of {checkpoint.path}"
        # By a reader of its own, since `read` enumerates layers and takes the key itself.
        require_layers(checkpoint, self.reader(checkpoint.config, where, kind).count("num_hidden_layers"))
        reader = self.reader(checkpoint.config, where, kind)
        vocab_size = reader.count("vocab_size")
        stop_tokens = take_stop_tokens(reader, vocab_size)
        choices, notes = self.read(reader, where, kind, positions)
        description = describe(checkpoint, vocab_size=vocab_size, **choices)
        reader.finish()
        prefix = self.prefix(checkpoint)
        harmless = (*HARMLESS_TENSORS, *self.unused(checkpoint))
        head = self.head(checkpoint)
        if description.tied_head:
            require_tied_head(checkpoint, prefix + EMBEDDING, head)
            harmless = (*harmless, head)
        places = {
            name: self.place(description, name, shape, prefix, head)
            for name, shape in description.weight_shapes().items()
        }
        weights = read_places(checkpoint, places, harmless)
        return Exportable(self.name, description, weights, Decoding(stop_tokens=stop_tokens, notes=notes))

    def reader(self, config: Mapping[str, Any], where: str, kind: str) -> ConfigReader:
        """What reads the decoder's part of the configuration."""
        return ConfigReader(config, where)

    @abstractmethod
    def read(self, reader: ConfigReader, where: str, kind: str, positions: int | None) -> Reading:
        """What the configuration says but for the vocabulary and the tokens that stop.

        Raises
        ------
        CheckpointError
            A key is missing or has a value that is not supported.
        """
        ...

    def prefix(self, checkpoint: Checkpoint) -> str:
        """What the names of the decoder's tensors begin with; none where only the base model was saved."""
        return "model." if any(name.startswith("model.") for name in checkpoint.names()) else ""

    def head(self, checkpoint: Checkpoint) -> str:
        """Name of the head's matrix."""
        return HEAD

    def unused(self, checkpoint: Checkpoint) -> tuple[str, ...]:
        """Names of tensors of other parts of the model."""
        return ()

    def place(
        self, description: DecoderDescription, name: str, shape: tuple[int, ...], prefix: str, head: str
    ) -> Place:
        """Where the weight ``name`` is."""
        if not name.startswith("layers."):
            tensor = {
                "embedding.weight": prefix + EMBEDDING,
                "norm.weight": f"{prefix}norm.weight",
                "head.weight": head,
            }
            return Place(tensor[name], shape)
        layer, rest = layer_name(name)
        stem, part = rest.rsplit(".", 1)
        return Place(f"{prefix}layers.{layer}.{self.names[stem]}.{part}", shape)


def gate_up(description: DecoderDescription) -> dict[str, tuple[Rows, int]]:
    """Gate and up as rows of one matrix, by where their first row is."""
    rows = Rows("mlp.gate_up_proj", 2 * description.mlp_width)
    return {"mlp.gate.weight": (rows, 0), "mlp.up.weight": (rows, description.mlp_width)}


def rows_place(parts: Mapping[str, tuple[Rows, int]], name: str, shape: tuple[int, ...], prefix: str) -> Place | None:
    """Where the weight ``name`` is if it is one of ``parts``, which are maps and their first rows; else None."""
    layer, rest = layer_name(name) if name.startswith("layers.") else (0, name)
    if rest not in parts:
        return None
    rows, first = parts[rest]
    last = first + shape[0]
    return Place(
        f"{prefix}layers.{layer}.{rows.tensor}.weight", (rows.total, shape[1]), lambda matrix: matrix[first:last]
    )


def take_llama(
    reader: ConfigReader,
    where: str,
    positions: int | None,
    *,
    base: float = 10000.0,
    partial: bool = False,
    scalings: tuple[str, ...] = SCALINGS,
    activation: tuple[str, str] = ("hidden_act", "silu"),
) -> Reading:
    """What a configuration says of what Llama's relatives share; biases are none of it.

    Parameters
    ----------
    where
        What ``reader`` reads, for messages.
    positions
        Asked for; None for all.
    base, partial, scalings
        As ``base``, ``partial`` and ``kinds`` of `take_rotary`.
    activation
        The key of the activation, and what is meant where it is missing.

    Raises
    ------
    CheckpointError
        A key is missing or has a value that is not supported.
    """
    width, heads = reader.count("hidden_size"), reader.count("num_attention_heads")
    head_size = reader.count("head_dim", width // heads)
    lengths = Lengths(reader.count("max_position_embeddings"), positions)
    rotary, longest, notes = take_rotary(reader, where, head_size, lengths, base=base, partial=partial, kinds=scalings)
    choices = {
        "positions": longest,
        "width": width,
        "layers": reader.count("num_hidden_layers"),
        "heads": heads,
        "kv_heads": _kv_heads(reader, heads),
        "head_size": head_size,
        "mlp_width": reader.count("intermediate_size"),
        "norm": Norm("rms", reader.number("rms_norm_eps", positive=True)),
        "activation": take_activation(reader, *activation),
        "rotary": rotary,
    }
    return Reading(choices, notes)


def _kv_heads(reader: ConfigReader, heads: int) -> int:
    """Null means one for each head, and a missing key another number in every architecture."""
    found = reader.take("num_key_value_heads")
    if found is not None and (not is_whole(found) or found < 1):
        raise reader.refusal("num_key_value_heads", found, "an integer >= 1, or null")
    return heads if found is None else int(found)

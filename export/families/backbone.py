"""What picture models built on Llama share: its configuration, its tensors, one vocabulary for text and pictures.

Chameleon, Emu3 and Janus are Llama decoders whose checkpoints also hold the encoders and decoders of pictures. Only the
decoder of tokens is exported: `backbone_places` finds its tensors, `others` names those of the rest. Configurations nested
in others leave out what their class has as default, so that every family says what its own class would fill in.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from coupled_sampling.bundles.manifest import Prompt
from coupled_sampling.export.checkpoints.contract import Checkpoint, CheckpointError
from coupled_sampling.export.checkpoints.places import Place, layer_name
from coupled_sampling.export.families.config import ConfigReader
from coupled_sampling.export.families.rotary_settings import OF_ONE_LENGTH, Lengths, take_rotary
from coupled_sampling.export.families.settings import take_activation
from coupled_sampling.export.families.text import HARMLESS_TENSORS, LAYER_NAMES
from coupled_sampling.export.graphs.description import DecoderDescription, Norm

__all__ = ["backbone_places", "completed", "empty_prompt", "others", "take_backbone", "token_range"]

_NORMS_OF_OUTPUTS = {"attention_output_norm": "input_layernorm", "mlp_output_norm": "post_attention_layernorm"}
"""Chameleon 34B keeps the tensors' names where it moves the norms."""


def completed(config: Any, defaults: Mapping[str, Any]) -> Any:
    """``config`` with the keys that it leaves out, as its own class would fill them in; what is no object stays what it is."""
    if not isinstance(config, Mapping):
        return config or dict(defaults)
    nested = config.get("rope_parameters") or config.get("rope_scaling") or {}
    elsewhere = {"rope_theta"} if isinstance(nested, Mapping) and "rope_theta" in nested else set()
    return {key: value for key, value in defaults.items() if key not in elsewhere} | dict(config)


def take_backbone(reader: ConfigReader, where: str, positions: int | None) -> dict[str, Any]:
    """Choices of a description that are Llama's, out of a `completed` configuration.

    Parameters
    ----------
    where
        What ``reader`` reads, for messages.
    positions
        Asked for; None for all.

    Raises
    ------
    CheckpointError
        A key is missing or has a value that is not supported.
    """
    width, heads = reader.count("hidden_size"), reader.count("num_attention_heads")
    head_size = reader.count("head_dim", width // heads)
    bias = reader.flag("attention_bias", False)
    lengths = Lengths(reader.count("max_position_embeddings"), positions)
    rotary, longest, _ = take_rotary(reader, where, head_size, lengths, kinds=OF_ONE_LENGTH)
    return {
        "vocab_size": reader.count("vocab_size"),
        "positions": longest,
        "width": width,
        "layers": reader.count("num_hidden_layers"),
        "heads": heads,
        "kv_heads": reader.count("num_key_value_heads", heads),
        "head_size": head_size,
        "mlp_width": reader.count("intermediate_size"),
        "norm": Norm("rms", reader.number("rms_norm_eps")),
        "activation": take_activation(reader, "hidden_act", "silu"),
        "rotary": rotary,
        "query_key_value_bias": bias,
        "attention_output_bias": bias,
        "mlp_bias": reader.flag("mlp_bias", False),
    }


def backbone_places(description: DecoderDescription, prefix: str, head: str | None) -> dict[str, Place]:
    """Places of the backbone's weights.

    Parameters
    ----------
    prefix
        What the names of its tensors begin with.
    head
        Tensor with a row for every token of the vocabulary, of which the head takes those of the generated tokens. None if
        the family has another head: embeddings and head are then left to it.
    """
    shapes, places = description.weight_shapes(), {}
    for name, shape in shapes.items():
        if name.startswith("layers."):
            layer, rest = layer_name(name)
            stem, part = rest.rsplit(".", 1)
            tensor = (LAYER_NAMES | _NORMS_OF_OUTPUTS)[stem]
            places[name] = Place(f"{prefix}layers.{layer}.{tensor}.{part}", shape)
    places["norm.weight"] = Place(f"{prefix}norm.weight", shapes["norm.weight"])
    if head is None:
        return places
    table = (description.vocab_size, description.width)
    places["embedding.weight"] = Place(f"{prefix}embed_tokens.weight", table)
    rows = slice(description.generated_first, description.generated_first + description.generated)
    places["head.weight"] = Place(head, table, lambda array: array[rows])
    return places


def others(checkpoint: Checkpoint, *beginnings: str) -> tuple[str, ...]:
    """Names of tensors of other parts of the model, which begin so, and of buffers: they do not change the logits."""
    return (*(name for name in checkpoint.names() if name.startswith(beginnings)), *HARMLESS_TENSORS)


def token_range(tokens: Collection[int], where: str, what: str) -> tuple[int, int]:
    """First and count of ``tokens``, which must be consecutive integers.

    Raises
    ------
    CheckpointError
        There are none, or they have holes.
    """
    first = min(tokens, default=0)
    if not tokens or sorted(tokens) != list(range(first, first + len(tokens))):
        raise CheckpointError(
            f"{where}: {len(tokens)} tokens are named {what}, expected one or more with consecutive numbers; is this checkpoint "
            "one that generates pictures?"
        )
    return first, len(tokens)


def empty_prompt(tokens: tuple[int, ...] | None) -> dict[str, Prompt]:
    """The unconditional prompt under a name, so that a bundle without a tokenizer can be tried, too."""
    return {} if tokens is None else {"empty": Prompt(tokens, (), "A picture of anything")}

"""What the configurations of several families have in common: activations, the longest sequence, stop tokens."""

from __future__ import annotations

from typing import Any

from coupled_sampling.arguments import is_whole
from coupled_sampling.errors import InvalidArgument
from coupled_sampling.export.checkpoints.contract import Checkpoint, CheckpointError
from coupled_sampling.export.families.config import ConfigReader
from coupled_sampling.export.graphs.description import DecoderDescription

__all__ = ["MOST_POSITIONS", "choose_positions", "describe", "require_layers", "take_activation", "take_stop_tokens"]

MOST_POSITIONS = 2**20
"""Of an exported sequence; what some configurations promise beyond has no cache that fits into a machine."""

_ACTIVATION_NAMES = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
}
"""From Hugging Face's names of activations to ours: theirs has one name for each way of computing the same function."""


def take_activation(reader: ConfigReader, key: str, default: str) -> str:
    """Our name of the activation ``key`` of the configuration."""
    return _ACTIVATION_NAMES[reader.take(key, default, accepted=tuple(_ACTIVATION_NAMES))]


def choose_positions(asked: int | None, most: int) -> int:
    """The longest sequence to export: ``asked``, or all that the model was made for.

    Raises
    ------
    InvalidArgument
        ``asked`` is more than that, or less than 1; or nothing is asked and there are more than `MOST_POSITIONS`.
    """
    if asked is not None and not 1 <= asked <= most:
        raise InvalidArgument(f"positions is {asked}, expected 1 to {most}, which is what the checkpoint was made for")
    if (asked or most) > MOST_POSITIONS:
        raise InvalidArgument(
            f"a sequence would have {asked or most} positions, and a graph can have {MOST_POSITIONS}: caches have a column and "
            "tables a row for each of them; ask for fewer by max_length (--max-length)"
        )
    return most if asked is None else asked


def take_stop_tokens(reader: ConfigReader, vocab_size: int) -> tuple[int, ...]:
    """Tokens of ``eos_token_id``, a token, a list of them, or nothing.

    Some configurations say -1 or a token past the vocabulary for "none": what can never be generated stops nothing.
    """
    found = reader.take("eos_token_id", None)
    tokens = found if isinstance(found, list) else [] if found is None else [found]
    if not all(is_whole(token) for token in tokens):
        raise reader.refusal("eos_token_id", found, "a token, a list of tokens or null")
    return tuple(int(token) for token in dict.fromkeys(tokens) if 0 <= token < vocab_size)


def require_layers(checkpoint: Checkpoint, layers: int) -> None:
    """Refuse more layers than tensors, of which each layer has some of its own: before anything is made for each of them.

    Raises
    ------
    CheckpointError
        There are more.
    """
    tensors = len(checkpoint.names())
    if layers > tensors:
        raise CheckpointError(
            f"the configuration of {checkpoint.path} asks for {layers} layers, and the checkpoint holds only {tensors} tensors; "
            "configuration and weights are not of the same model, or one of them is damaged"
        )


def describe(checkpoint: Checkpoint, **choices: Any) -> DecoderDescription:
    """The description, refused in the checkpoint's name if its sizes contradict each other, or the tensors that are there.

    Raises
    ------
    CheckpointError
        The choices make no decoder, or one that the checkpoint has not the tensors for.
    """
    require_layers(checkpoint, choices["layers"])
    try:
        return DecoderDescription(**choices)
    except (InvalidArgument, TypeError) as error:
        raise CheckpointError(f"the configuration of {checkpoint.path} makes no decoder: {error}") from error

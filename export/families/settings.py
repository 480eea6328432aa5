"""What the configurations of several families have in common: activations, the longest sequence, stop tokens."""

from __future__ import annotations

from typing import Any

from coupled_sampling.errors import InvalidArgument
from coupled_sampling.export.checkpoints.contract import Checkpoint, CheckpointError
from coupled_sampling.export.families.config import ConfigReader
from coupled_sampling.export.graphs.description import DecoderDescription

__all__ = ["choose_positions", "describe", "take_activation", "take_stop_tokens"]

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
        ``asked`` is more than that, or less than 1.
    """
    if asked is not None and not 1 <= asked <= most:
        raise InvalidArgument(f"positions is {asked}, expected 1 to {most}, which is what the checkpoint was made for")
    return most if asked is None else asked


def take_stop_tokens(reader: ConfigReader, vocab_size: int) -> tuple[int, ...]:
    """Tokens of ``eos_token_id``, a token, a list of them, or nothing.

    Some configurations say -1 or a token past the vocabulary for "none": what can never be generated stops nothing.
    """
    found = reader.take("eos_token_id", None)
    tokens = found if isinstance(found, list) else [] if found is None else [found]
    return tuple(int(token) for token in dict.fromkeys(tokens) if 0 <= token < vocab_size)


def describe(checkpoint: Checkpoint, **choices: Any) -> DecoderDescription:
    """The description, refused in the checkpoint's name if its sizes contradict each other.

    Raises
    ------
    CheckpointError
        The choices make no decoder.
    """
    try:
        return DecoderDescription(**choices)
    except (InvalidArgument, TypeError) as error:
        raise CheckpointError(f"the configuration of {checkpoint.path} makes no decoder: {error}") from error

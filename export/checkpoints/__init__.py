"""Checkpoints: other people's weights as named tensors, read one at a time without the framework that wrote them.

`open_checkpoint` opens a Hugging Face folder, a safetensors file or a GGUF file, and answers under one naming.
Importing this package loads nothing heavy: ``safetensors``, ``gguf`` and ``tokenizers`` are loaded when a file needs
them, and their absence is a `MissingDependency` then.
"""

from coupled_sampling.export.checkpoints.contract import Checkpoint, CheckpointError, TensorInfo, checkpoint_of
from coupled_sampling.export.checkpoints.gguf_config import huggingface_config
from coupled_sampling.export.checkpoints.gguf_tokenizer import (
    SpecialTokens,
    chat_template,
    gguf_tokenizer,
    special_tokens,
)
from coupled_sampling.export.checkpoints.opening import open_checkpoint
from coupled_sampling.export.checkpoints.rotary_layout import permute_rotary, unpermute_rotary

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "SpecialTokens",
    "TensorInfo",
    "chat_template",
    "checkpoint_of",
    "gguf_tokenizer",
    "huggingface_config",
    "open_checkpoint",
    "permute_rotary",
    "special_tokens",
    "unpermute_rotary",
]

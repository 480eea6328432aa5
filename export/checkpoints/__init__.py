"""Checkpoints: other people's weights as named tensors, read one at a time without the framework that wrote them.

`open_checkpoint` opens a Hugging Face folder, a safetensors file or a GGUF file, and answers under one naming.
Importing this package loads nothing heavy: ``safetensors``, ``gguf`` and ``tokenizers`` are loaded when a file needs
them, and their absence is a `MissingDependency` then.
"""

from coupled_sampling.export.checkpoints.contract import Checkpoint, CheckpointError, TensorInfo
from coupled_sampling.export.checkpoints.gguf_config import huggingface_config
from coupled_sampling.export.checkpoints.gguf_tokenizer import gguf_tokenizer
from coupled_sampling.export.checkpoints.opening import open_checkpoint
from coupled_sampling.export.checkpoints.rotary_layout import unpermute_rotary

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "TensorInfo",
    "gguf_tokenizer",
    "huggingface_config",
    "open_checkpoint",
    "unpermute_rotary",
]

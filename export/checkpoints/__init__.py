"""Checkpoints: other people's weights as named tensors, read one at a time without the framework that wrote them.

`open_checkpoint` opens a Hugging Face folder, a safetensors file or a GGUF file, and answers under one naming.
Importing this package loads nothing heavy: ``safetensors``, ``gguf`` and ``tokenizers`` are loaded when a file needs
them, and their absence is a `MissingDependency` then.
"""

from coupled_sampling.export.checkpoints.contract import Checkpoint
from coupled_sampling.export.checkpoints.opening import open_checkpoint

__all__ = [
    "Checkpoint",
    "open_checkpoint",
]

"""Checkpoints of arrays in memory, and the order of rows that llama.cpp's files have."""

from pathlib import Path

import numpy as np

from coupled_sampling.export.checkpoints import Checkpoint
from coupled_sampling.export.checkpoints.contract import TensorInfo


def checkpoint_of(tensors, config):
    """A checkpoint with these tensors and this configuration."""
    path = Path("memory")
    table = {key: TensorInfo(array.shape, array.dtype.name, array.nbytes, path) for key, array in tensors.items()}
    return Checkpoint(path, "safetensors", config, table, lambda name: np.array(tensors[name]))


def interleaved_rotary(weight, heads):
    """What llama.cpp's converter makes of a query's or key's rows (``LlamaModel.permute``)."""
    halves = weight.reshape(heads, 2, len(weight) // heads // 2, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)

"""LlamaGen from text: what its checkpoints have in place of classes.

A caption is 120 vectors of T5 (flan-t5-xl, 2048 numbers each), through an MLP. The authors' script moves a caption's vectors to the
end, so that padding comes first and is attended to by nobody. For guidance a table of 120 learned vectors takes the caption's
place, under the caption's own padding. Here the vocabulary is the codebook, then a token for each of that table's vectors, already
through the MLP, and last the token that stands for a vector of the caption. The prompt consists of the last one, the unconditional
prompt of those before it. Source: FoundationVision/LlamaGen, ``autoregressive/models/gpt.py``, ``generate.py`` and
``autoregressive/sample/sample_t2i.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.bundles.manifest import Prompt
from coupled_sampling.export.checkpoints.contract import Checkpoint, CheckpointError
from coupled_sampling.export.checkpoints.places import Place
from coupled_sampling.export.graphs.conditions import PrefixVectors
from coupled_sampling.export.graphs.reference import activation

__all__ = ["CAPTIONS", "Captions", "caption_weights"]

CAPTIONS = "cls_embedding.cap_proj."
"""What names of tensors begin with that only a checkpoint from text has."""

_UP, _DOWN, _NOTHING = f"{CAPTIONS}fc1.weight", f"{CAPTIONS}fc2.weight", "cls_embedding.uncond_embedding"


@dataclass(frozen=True)
class Captions:
    """What the tensors say: vectors of a caption, their size, and the width of the MLP's hidden layer."""

    length: int
    size: int
    hidden: int

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> Captions | None:
        """Of a checkpoint; None if it is from classes.

        Raises
        ------
        CheckpointError
            A tensor is missing, or is no matrix.
        """
        if not any(name.startswith(CAPTIONS) for name in checkpoint.names()):
            return None
        shapes = {name: checkpoint.info(name).shape for name in (_NOTHING, _UP)}
        for name, shape in shapes.items():
            if len(shape) != 2:
                raise CheckpointError(f"{checkpoint.path}: tensor {name!r} has shape {shape}, expected 2 axes")
        length, size = shapes[_NOTHING]
        return cls(length, size, hidden=shapes[_UP][0])

    def prefix(self, codes: int) -> PrefixVectors:
        """What the first positions hold, behind so many ``codes`` in the vocabulary."""
        return PrefixVectors(self.length, self.size, self.hidden, token=codes + self.length)

    def places(self, width: int) -> dict[str, Place]:
        """Where the weights are that only such a model has."""
        return {
            "embedding.1.weight": Place(_NOTHING, (self.length, self.size)),
            "prefix.up.weight": Place(_UP, (self.hidden, self.size)),
            "prefix.down.weight": Place(_DOWN, (width, self.hidden)),
        }

    def prompts(self, codes: int) -> tuple[dict[str, Prompt], tuple[int, ...]]:
        """The prompt of a caption by its name, and the unconditional one."""
        caption = Prompt((codes + self.length,) * self.length, (), "A caption, whose vectors are the condition")
        return {"caption": caption}, tuple(range(codes, codes + self.length))


def caption_weights(read: Callable[[str], NDArray[Any]], width: int) -> Callable[[str], NDArray[Any]]:
    """``read`` with the table of learned vectors through the MLP, and zeros for the token that stands for a vector."""

    def weights(name: str) -> NDArray[Any]:
        if name == "embedding.2.weight":
            return np.zeros((1, width), np.float32)
        found = read(name)
        if name != "embedding.1.weight":
            return found
        up, down = (read(f"prefix.{part}.weight").astype(np.float64) for part in ("up", "down"))
        return np.asarray(activation("gelu_tanh", found.astype(np.float64) @ up.T) @ down.T, np.float32)

    return weights

"""ImageGPT (Chen et al., ICML 2020): GPT-2 over the pixels of a small picture, each one of 512 colours.

It differs from GPT-2 in its norm, which has no bias and does not subtract the mean (so it is an RMS norm), in its activation,
and in its head, which is its own and never scores the start token: that one is the last of the vocabulary, and every
picture's prompt. A pixel looks most like the one above it, ``columns`` tokens ago, and that is the recommended draft.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from coupled_sampling.bundles.manifest import Grid, Prompt
from coupled_sampling.export.checkpoints.contract import Checkpoint, CheckpointError
from coupled_sampling.export.checkpoints.places import read_places
from coupled_sampling.export.families.config import ConfigReader, architectures
from coupled_sampling.export.families.contract import Decoding, Exportable
from coupled_sampling.export.families.gpt2 import HARMLESS_TENSORS, gpt2_places, prefix_of, take_choices
from coupled_sampling.export.families.settings import choose_positions, describe
from coupled_sampling.export.graphs.description import Norm

__all__ = ["ImageGpt"]

ARCHITECTURES = ("ImageGPTForCausalImageModeling", "ImageGPT")


class ImageGpt:
    """ImageGPT."""

    name = "imagegpt"

    def recognises(self, config: Mapping[str, Any]) -> bool:
        """Whether ``model_type`` is ``imagegpt``."""
        named = any(name in architectures(config) for name in ARCHITECTURES)
        return bool(config.get("model_type", "imagegpt" if named else None) == "imagegpt")

    def load(self, checkpoint: Checkpoint, positions: int | None = None) -> Exportable:
        """Understand ``checkpoint``; ``positions`` keeps the first pixels only, None keeps all."""
        where = f"the configuration of {checkpoint.path}"
        reader = ConfigReader(checkpoint.config, where)
        choices = take_choices(reader, activation="quick_gelu")
        table_rows = choices["positions"]
        columns = math.isqrt(table_rows)
        if columns**2 != table_rows:
            raise CheckpointError(f"{where}: n_positions is {table_rows}, expected the pixels of a square picture")
        choices["positions"] = choose_positions(positions, table_rows)
        description = describe(
            checkpoint,
            **choices,
            norm=Norm("rms", reader.number("layer_norm_epsilon", 1e-5)),
            generated=choices["vocab_size"] - 1,
            tied_head=reader.take("tie_word_embeddings", False, accepted=(False,)),
        )
        reader.finish()
        places = gpt2_places(description, prefix_of(checkpoint), table_rows)
        weights = read_places(checkpoint, places, HARMLESS_TENSORS)
        return Exportable(
            self.name, description, weights, _decoding(description.positions, columns, description.generated)
        )


def _decoding(length: int, columns: int, start: int) -> Decoding:
    rows, rest = divmod(length, columns)
    return Decoding(
        length=length,
        grid=None if rest else Grid(rows, columns),
        prompts={"start": Prompt((start,), (), "Start of a picture")},
        drafting=f"copy:{columns}",
        notes=(
            "A token is the number of a colour; the colours are `clusters` in the checkpoint's preprocessor_config.json.",
        ),
    )

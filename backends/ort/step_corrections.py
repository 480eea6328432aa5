"""The corrector of a step graph: the tables of a `coupled_sampling.corrections.LowRank` as its inputs, which lie where it runs."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.backends.ort.binding import HostBinding
from coupled_sampling.corrections import Corrector, LowRank, check_corrector
from coupled_sampling.errors import InvalidArgument

__all__ = ["CORRECTION", "CorrectionTables", "fed_tables", "refused_corrector"]

CORRECTION = "correction_"
"""How the names of these inputs begin."""


def refused_corrector(corrections: Corrector) -> str | None:
    """Why step graphs cannot have ``corrections``; None if they can."""
    if isinstance(corrections, LowRank):
        return None
    return f"corrections is a {type(corrections).__name__}, of which a step graph knows nothing: it takes a LowRank"


def fed_tables(table: LowRank) -> dict[str, NDArray[Any]]:
    """The inputs by name, as ``docs/step-graph.md`` has them: a site whose neighbours are what they were keeps its logits."""
    stale, own = table.stale_scale.astype(np.float32), table.unigram_scale.astype(np.float32)
    stale[0], own[0] = 1, 0
    named: dict[str, NDArray[Any]] = {
        "lags": np.array(table.lags, np.int64),
        "unigram": table.unigram.astype(np.float32),
        "basis": np.ascontiguousarray(table.basis.T, np.float32),
        "neighbours": np.ascontiguousarray(table.neighbours, np.float32),
        "stale_scale": stale,
        "unigram_scale": own,
    }
    return {f"{CORRECTION}{name}": values for name, values in named.items()}


class CorrectionTables:
    """The tables of ``table`` in memory of ``binding``.

    Raises
    ------
    InvalidArgument
        ``table`` is no `LowRank`, or for another vocabulary.
    """

    def __init__(self, binding: HostBinding, table: LowRank, vocab_size: int) -> None:
        refusal = refused_corrector(table)
        if refusal is not None:
            raise InvalidArgument(f"{refusal}; use HostStep for others")
        check_corrector(table, vocab_size)
        self._binding = binding
        self._kept = {name: (binding.keep(values), values.shape) for name, values in fed_tables(table).items()}

    def bind(self) -> None:
        """Bind them for the rows that were chosen."""
        for name, (kept, shape) in self._kept.items():
            self._binding.bind_kept(name, kept, shape)

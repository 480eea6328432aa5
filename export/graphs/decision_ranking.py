"""The best tokens of each redraft's race as ONNX operators: what rules for branches (`coupled_sampling.branching`) choose from.

They are of the sites behind the correction alone, and of the laws that the redrafts are drawn from: those of the pass, or what a
corrector made of them. So a graph with a ring of noise looks up these sites first. TensorRT plans for no number of sites that
depends on values, nor for a number of tokens that is an input: its graph ranks every slot, `MOST_WITHOUT_RING` tokens of each.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from coupled_sampling.export.graphs.decision_draws import DecisionBuilder, rows_at

__all__ = ["MOST_WITHOUT_RING", "Best", "Followed", "Ranking"]

MOST_WITHOUT_RING = 16
"""How many tokens of each redraft a graph names whose noise is an input for each slot; fewer if the vocabulary has fewer."""


class Best(NamedTuple):
    """The best tokens of sites, best first."""

    tokens: str
    """int64 (B, W, K)."""
    scores: str
    """float32 (B, W, K): the logarithms of what they came to in the race; -inf for a token that cannot be."""


class Followed(NamedTuple):
    """Where the sites of a window with branches have their laws from."""

    slots: str
    """int64 (B, W): the slot of each site."""
    reach: str
    """int64 (B, 1): the last site for which that may not be the path's."""
    draft: str
    """int64 (B, W): up to there, what stood at each site."""

    def places(self, graph: DecisionBuilder, sites: str) -> str:
        """The slots int64 (..., 2) of ``sites`` int64 (..., 2): row and number of both."""
        row = graph.op("Slice", sites, graph.integers(0), graph.integers(1), graph.integers(-1))
        slot = graph.op("Unsqueeze", graph.op("GatherND", self.slots, sites), graph.integers(-1))
        return graph.op("Concat", row, slot, axis=-1)


class Ranking:
    """Ranks what the races of slots come to, ``products`` (B, W, V) of laws and ``noise``; declares ``best_count`` if there is a
    ``ring``."""

    def __init__(
        self, graph: DecisionBuilder, vocab_size: int, products: str, noise: str, followed: Followed, *, ring: bool
    ) -> None:
        self.graph, self.products, self.noise, self.followed, self.ring = graph, products, noise, followed, ring
        most = min(MOST_WITHOUT_RING, vocab_size)
        self.size: str | int = "best_count" if ring else most
        self.count = graph.input("best_count", "int64", [1]) if ring else graph.integers(most)

    def first(self, where: str) -> Best:
        """Of the pass's own laws, at the sites ``where`` bool (B, W); elsewhere they mean nothing."""
        graph = self.graph
        if not self.ring:
            return Best(*(rows_at(graph, values, self.followed.slots) for values in self._best(self.products)))
        # Never of none, which ONNX Runtime 1.30 for the web cannot rank. Site 0 of a row is a known token's, or is committed.
        no_redraft = graph.constant("no_redraft", np.zeros((1, 2), np.int64))
        sites = graph.op("Concat", graph.op("Transpose", graph.op("NonZero", where)), no_redraft, axis=0)
        found = self._best(graph.op("GatherND", self.products, self.followed.places(graph, sites)))
        shape = graph.op("Concat", graph.op("Shape", where), self.count, axis=0)
        nothing = (graph.constant(f"nothing.{dtype}", np.zeros(1, dtype)) for dtype in ("int64", "float32"))
        room = (graph.op("Expand", value, shape) for value in nothing)
        return Best(*(graph.op("ScatterND", empty, sites, own) for empty, own in zip(room, found, strict=True)))

    def again(self, law: str, at: Callable[[str], str]) -> Best:
        """Of other laws (n, 1, V), of the sites that ``at`` looks up."""
        return self._best(self.graph.op("Mul", law, at(self.noise)))

    def report(self, best: Best) -> None:
        """Outputs ``best_tokens`` and ``best_scores``."""
        for name, values, dtype in zip(("best_tokens", "best_scores"), best, ("int64", "float32"), strict=True):
            self.graph.op("Identity", values, name=name)
            self.graph.output(name, dtype, ["B", "W", self.size])

    def _best(self, products: str) -> Best:
        graph = self.graph
        # Of equal ones TopK, too, finds the first.
        highest, tokens = graph.ops("TopK", products, self.count, names=(None, None), axis=-1, largest=1, sorted=1)
        return Best(tokens, graph.op("Log", highest))

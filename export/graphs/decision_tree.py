"""The walk down a window with branches as ONNX operators: `coupled_sampling.step_rule.decide_tree`, decision by decision.

Every slot draws the target's own token with the noise of the position that it decides. A draft stands if it is what its parent
drew, and so is all that it sees. The deepest of those is where the walk ends, and its own token is committed as well. Redrafts are
what the slots behind it drew, by the first child of each, and behind these the path's.

What each slot sees, and its position, are not computed here: a window graph that takes trees has them inside, by names of
`coupled_sampling.export.graphs.tree_window`. There is no loop: a slot stands if nothing that it sees was
refused, one product of a matrix and a vector, and the walk is what its end sees.

A *site* is a position, that of the path's slot of the same number. What comes out is by sites.

Slots without a law draw anything, and so the walk may go on behind one. But nothing else is as deep that stands, so that the row is
decided at that slot: whoever reads the largest logits by sites finds it first, see ``docs/step-graph.md``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from coupled_sampling.export.graphs.decision_draws import DecisionBuilder, rows_at
from coupled_sampling.export.graphs.decision_ranking import Followed
from coupled_sampling.export.graphs.decision_slots import Slots, following
from coupled_sampling.export.graphs.tree_window import POSITION, SEES

__all__ = ["TREE_METHOD", "TreeSlots", "Walk"]

TREE_METHOD = "scd-match"
"""The method that has decision graphs for trees."""


class Walk(NamedTuple):
    """What a tree decides, by sites."""

    tokens: str
    """int64 (B, W)."""
    last: str
    """int64 (B, 1): the last site that is committed."""
    highest: str
    """float32 (B, W): the largest logit of the slot that each site has its law from."""
    followed: Followed


class TreeSlots:
    """All slots of a window with branches; declares ``parents`` and ``branches``, and what the window graph has inside."""

    def __init__(self, graph: DecisionBuilder) -> None:
        self.graph = graph
        self.parents = graph.input("parents", "int64", ["B", "W"])
        sees = graph.input(SEES, "bool", ["B", "W", "seen"])
        self.position = graph.input(POSITION, "int64", ["B", "W"])
        width = graph.op("Shape", self.parents, start=1, end=2)
        self.sees = graph.op("Slice", sees, graph.integers(0), width, graph.integers(2))
        self.branches = graph.op("Unsqueeze", graph.input("branches", "int64", ["B"]), graph.integers(1))

    def walk(self, own: str, highest: str, ids: str, path: Slots, first_true: Callable[[str], str]) -> Walk:
        """What becomes of the window ``ids``, whose slots draw the tokens ``own`` and have the largest logits ``highest``.

        Parameters
        ----------
        first_true
            From a mask (B, W) to the slot (B, 1) of each row's first true entry.
        """
        graph = self.graph
        within = graph.op("LessOrEqual", path.slot, graph.op("Add", path.last, self.branches))
        valid = graph.op("And", path.begun, within)
        is_draft = graph.op("And", valid, graph.op("GreaterOrEqual", path.slot, path.known))
        parent = graph.op("Max", self.parents, graph.number(0, "int64"))
        expected = graph.op("GatherElements", own, parent, axis=1)
        refused = graph.op("And", is_draft, graph.op("Not", graph.op("Equal", expected, ids)))
        reached = graph.op("And", valid, graph.op("Not", self._seeing(refused)))
        start = graph.op("Slice", self.position, *(graph.integers(i) for i in (0, 1, 1)))  # slot 0 has no other
        depth = graph.op("Sub", self.position, start)
        last, end = self._deepest(reached, depth, first_true)
        reach, tip = self._deepest(self._going_on(end, path.slot), depth, first_true)
        slots = self._slots_of_sites(tip, depth, path.slot)
        tokens, of_sites, drafts = (graph.op("GatherElements", x, slots, axis=1) for x in (own, highest, ids))
        return Walk(tokens, last, of_sites, Followed(slots, reach, following(graph, drafts)))

    def _seeing(self, slots: str) -> str:
        """Which slots see one of ``slots``, bool (B, W) both."""
        graph = self.graph
        column = graph.op("Cast", graph.op("Unsqueeze", slots, graph.integers(2)), to=1)
        counts = graph.op("MatMul", graph.op("Cast", self.sees, to=1), column)
        return graph.op("Greater", graph.op("Squeeze", counts, graph.integers(2)), graph.number(0.0))

    def _deepest(self, slots: str, depth: str, first_true: Callable[[str], str]) -> tuple[str, str]:
        """The depth and the number, int64 (B, 1), of the deepest of ``slots``, the first of equals; -1 and any if there is none."""
        graph = self.graph
        depths = graph.op("Where", slots, depth, graph.number(-1, "int64"))
        deepest = graph.op("ReduceMax", depths, graph.integers(1), keepdims=1)
        return deepest, first_true(graph.op("And", slots, graph.op("Equal", depth, deepest)))

    def _going_on(self, end: str, slot: str) -> str:
        """``end`` (B, 1), its first child, that one's first child, and so on: bool (B, W)."""
        graph = self.graph
        column = graph.op("Unsqueeze", slot, graph.integers(1))
        siblings = graph.op("Equal", *(graph.op("Unsqueeze", self.parents, graph.integers(axis)) for axis in (2, 1)))
        earlier = graph.op("Cast", graph.op("And", siblings, graph.op("Greater", column, slot)), to=1)
        later_child = graph.op("Cast", graph.op("ReduceMax", earlier, graph.integers(2), keepdims=0), to=9)
        at_end = graph.op("Equal", slot, end)
        behind = self._seeing(at_end)
        aside = graph.op("And", graph.op("And", behind, later_child), graph.op("Not", at_end))
        return graph.op("And", behind, graph.op("Not", self._seeing(aside)))

    def _slots_of_sites(self, tip: str, depth: str, slot: str) -> str:
        """The slot (B, W) that each site has its law from: up to ``tip`` (B, 1) the one of that depth, behind it the path's."""
        graph, none = self.graph, self.graph.number(-1, "int64")
        walked = rows_at(graph, self.sees, tip)
        depths = graph.op("Where", walked, graph.op("Unsqueeze", depth, graph.integers(1)), none)
        at_site = graph.op("Equal", graph.op("Unsqueeze", slot, graph.integers(1)), depths)
        found = graph.op("ReduceMax", graph.op("Where", at_site, slot, none), graph.integers(2), keepdims=0)
        return graph.op("Where", graph.op("Less", found, graph.number(0, "int64")), slot, found)

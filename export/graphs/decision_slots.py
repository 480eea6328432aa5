"""The slots of a window that decide, by inputs of a decision graph: `coupled_sampling.slots.Window.decisions` as ONNX operators."""

from __future__ import annotations

from typing import NamedTuple

from coupled_sampling.export.graphs.decision_correction import At
from coupled_sampling.export.graphs.decision_draws import DecisionBuilder, first_of

__all__ = ["Slots", "following"]


class Slots(NamedTuple):
    """The sites of a step, all (B, W) where nothing else is said. In a window with branches those of its path."""

    slot: str
    """int64 (W,): 0, 1, ..."""
    begun: str
    """From the first that decides on."""
    valid: str
    has_draft: str
    recycled: str
    fresh: str
    draft: str
    known: str
    """int64 (B, 1)."""
    draws: str
    """bool (B, 1)."""
    last: str
    """int64 (B, 1): the last that is valid."""
    shape: str
    """int64 (2,): B and W."""

    @classmethod
    def of(cls, graph: DecisionBuilder, ids: str) -> Slots:
        """Those of the window ``ids``; declares ``known``, ``recycled``, ``fresh`` and ``draws``."""
        one = graph.number(1, "int64")
        width = graph.op("Size", first_of(graph, ids))
        shape = graph.op("Shape", ids)
        slot = graph.op("Range", graph.number(0, "int64"), width, one)
        known, recycled, fresh = (_column(graph, name, "int64") for name in ("known", "recycled", "fresh"))
        draws = _column(graph, "draws", "bool")
        opening = graph.op("Sub", known, one)
        middle = graph.op("Add", opening, recycled)
        last = graph.op("Add", middle, fresh)
        begun = graph.op("And", draws, graph.op("GreaterOrEqual", slot, opening))
        valid = graph.op("And", begun, graph.op("LessOrEqual", slot, last))
        has_draft = graph.op("And", begun, graph.op("Less", slot, last))
        own = graph.op("And", begun, graph.op("Less", slot, middle))
        new = graph.op("And", has_draft, graph.op("GreaterOrEqual", slot, middle))
        draft = following(graph, ids)
        return cls(slot, begun, valid, has_draft, own, new, draft, known, draws, last, shape)

    def at(self, at: At) -> Slots:
        """Those of them that a turn of the sweep looks at, (n, 1)."""
        return self._replace(has_draft=at(self.has_draft), fresh=at(self.fresh), draft=at(self.draft))


def _column(graph: DecisionBuilder, name: str, dtype: str) -> str:
    """The input ``name`` (B,) as a column (B, 1)."""
    return graph.op("Unsqueeze", graph.input(name, dtype, ["B"]), graph.integers(1))


def following(graph: DecisionBuilder, ids: str) -> str:
    """``ids`` (B, W) one slot to the left; the last slot, which tests no draft, keeps its own."""
    end = graph.integers(1 << 62)
    pieces = (graph.op("Slice", ids, graph.integers(begin), end, graph.integers(1)) for begin in (1, -1))
    return graph.op("Concat", *pieces, axis=1)

"""Windows with branches, and what a step graph for trees says of them: by sites, which are positions.

See `coupled_sampling.export.graphs.decision_tree` and ``docs/step-graph.md``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.contracts import Candidates, Integers, Outcome, Window
from coupled_sampling.methods import Method
from coupled_sampling.target import close_rows

__all__ = ["asking_slots", "decided_ends", "outcome_of_tree", "refused_branches"]


def refused_branches(method: Method, tree: bool) -> str | None:
    """Why a step graph of ``method`` decides no windows with branches; None if it is one for trees."""
    if tree:
        return None
    return (
        method.refuses_branches
        or "this step graph is not one for trees; open the model with trees=True, or use HostStep"
    )


def asking_slots(window: Window) -> NDArray[np.bool_]:
    """(B, W) the slots that decide something, those of branches among them."""
    if window.branches is None:
        return window.decides()
    slot = np.arange(window.tokens.shape[1])
    within = (slot >= window.known[:, None] - 1) & (slot < (window.end + window.branches)[:, None])
    asking: NDArray[np.bool_] = window.draws[:, None] & within
    return asking


def decided_ends(window: Window) -> list[int]:
    """(B,) of each row one past the last position that it decides, if it draws."""
    ends = [window.decided_positions(b)[1] for b in range(len(window.start))]
    if window.parents is None or window.branches is None:
        return ends
    for b in np.flatnonzero(window.branches).tolist():
        first = int(window.end[b])
        depth = list(range(first))  # the path's slots follow one another
        for parent in window.parents[b, first : first + int(window.branches[b])].tolist():
            depth.append(depth[parent] + 1)
        ends[b] = max(ends[b], int(window.start[b]) + max(depth) + 2)
    return ends


def outcome_of_tree(window: Window, made: Mapping[str, NDArray[Any]]) -> Outcome:
    """The outcome of a step whose graph ``made`` tokens, counts, largest logits and candidates."""
    committed = made["committed"]
    # A branch may have been followed beyond the path's end.
    beyond = np.maximum(window.known - 1 + committed - window.end, 0)
    sites = window._replace(fresh=window.fresh + beyond)
    outcome = close_rows(sites, made["tokens"], committed, made["highest_logits"])
    if not window.candidates:
        return outcome
    found = {}
    for b in np.flatnonzero(window.draws).tolist():
        own = _redrafts(window, outcome, b)
        if len(own):
            best = made["best_tokens"][b, own], made["best_scores"][b, own]
            found[b] = Candidates.led(outcome.tokens[b, own], *best)
    return outcome._replace(candidates=found)


def _redrafts(window: Window, outcome: Outcome, row: int) -> Integers:
    """The sites of a row that were redrafted: behind the committed ones, up to where its drafts end."""
    first, end = int(window.known[row]) - 1 + int(outcome.committed[row]), int(window.end[row])
    sites = np.arange(first, max(first, end))
    open_: Integers = sites[outcome.tokens[row, sites] >= 0]
    return open_

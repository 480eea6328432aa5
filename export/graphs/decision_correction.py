"""Corrected redrafts as ONNX operators: the sweep of `coupled_sampling.step_rule`, as a search for its fixed point.

The sweep goes over the sites behind the correction from the left to the right. A site whose neighbours have changed gets the law
that a `coupled_sampling.corrections.LowRank` predicts under the neighbours of now, and is drawn anew from that, with the same
uniforms or the same noise. What becomes of a site is a function of the sites to its left, so there is exactly one row of tokens
in which every site is what its own neighbours make of it, and any order that ends has found it.

So here all sites whose neighbours have changed are drawn anew at once, then those of which a neighbour has changed by that, and so
on, until nothing changes. A turn settles at least one more site, so that there are no more turns than sites. In practice there
are few, since most redraws give the token that was there.

It was chosen by measurement (ONNX Runtime on a CPU, one thread, lags 1 and 14, windows of 16 and 32 slots in which most drafts
are refused): what the sweep adds to a step of one row is 0.13 to 0.31 ms with 267 tokens, and one site at a time 0.7 to 2.4,
since that pays for each of some hundred operators at each site; with 16,384 tokens, 0.6 to 5 ms against 2 to 24. To draw all later
sites anew in every turn comes to 0.15 to 0.44 and 2 to 18 ms: a turn after the first has few sites to look at.

The tables are inputs, so that one graph serves all that are ever fitted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from coupled_sampling.export.graphs.decision_draws import DecisionBuilder, LoopValue
from coupled_sampling.export.graphs.decision_law import TargetLaw
from coupled_sampling.export.graphs.decision_ranking import Best, Followed, Ranking

__all__ = ["At", "Drawn", "Redraw", "Sites", "Sweep"]

At = Callable[[str], str]
"""Of values (B, W, ...) those of the sites of a turn, (n, 1, ...)."""

Redraw = Callable[[str, At], str]
"""From the laws (n, 1, V) of the sites of a turn to their tokens (n, 1)."""


class Drawn(NamedTuple):
    """What a pass decides by its own laws."""

    tokens: str
    """int64 (B, W)."""
    last: str
    """int64 (B, 1): the site that is corrected; those behind it are redrafts."""
    redraw: Redraw
    """How they are drawn."""
    followed: Followed | None = None
    ranking: Ranking | None = None
    """How the best tokens of their races are found, if they are wanted."""
    best: Best | None = None


class Sites(NamedTuple):
    """What the sweep goes over."""

    slot: str
    """int64 (W,): 0, 1, ..."""
    draft: str
    """int64 (B, W)."""
    later: str
    """bool (B, W): the sites behind the correction."""
    logits: str
    """float32 (B, W, V) of slots, after guidance."""
    followed: Followed | None = None
    """None where every site is its own slot."""


class _Table(NamedTuple):
    """The corrector, by inputs of the graph."""

    lags: str
    """int64 (K,)."""
    unigram: str
    """float32 (V,)."""
    basis: str
    """float32 (R, V)."""
    neighbours: str
    """float32 (K * (V + 1), R)."""
    first_rows: str
    """int64 (K,): where the neighbours of each lag begin in it."""
    stale_scale: str
    """float32 (2**K,)."""
    unigram_scale: str
    """float32 (2**K,)."""
    bits: str
    """int64 (K,): 1, 2, 4, ..."""


class Sweep:
    """Writes the sweep into ``graph``.

    Parameters
    ----------
    sites
        What is swept.
    warp
        From logits (n, 1, V) and their rows int64 (n, 1) to their target laws.
    drawn
        What the pass decided by its own laws, and how sites are drawn from others.
    """

    def __init__(
        self,
        graph: DecisionBuilder,
        vocab_size: int,
        sites: Sites,
        warp: Callable[[str, str], TargetLaw],
        drawn: Drawn,
    ) -> None:
        self.graph, self.vocab_size, self.sites = graph, vocab_size, sites
        self.warp, self.drawn = warp, drawn
        self.table = self.declared()
        self.columns = self.neighbours_of_sites()
        self.later = graph.op("Unsqueeze", graph.op("Cast", sites.later, to=6), graph.integers(2))
        self.old = self.rows_of(self.padded(sites.draft))
        if sites.followed is not None:
            near = graph.op("LessOrEqual", sites.slot, sites.followed.reach)
            aside = self.rows_of(self.padded(sites.followed.draft))
            self.old = graph.op("Where", graph.op("Unsqueeze", near, graph.integers(2)), aside, self.old)

    def write(self, tokens: str, target: TargetLaw, *, records: bool) -> tuple[Drawn, TargetLaw]:
        """What is drawn, and target laws, with redrafts from corrected laws.

        Parameters
        ----------
        tokens
            int64 (B, W): what the pass makes of the drafts by its own laws, ``target``; the drafts where nothing is decided.
        records
            Whether the laws are wanted, as the output ``laws``.
        """
        graph = self.graph
        now = self.padded(tokens)
        rows = self.rows_of(now)
        wrong = self.changed(rows, self.old)
        carried = [
            LoopValue("now", now, "int64", ["B", "W1"]),
            LoopValue("rows", rows, "int64", ["B", "W", "K"]),
            LoopValue("wrong", wrong, "int64", ["N", 1, 2]),
            LoopValue("highest", target.highest, "float32", ["B", "W"]),
        ]
        if records:
            carried.append(LoopValue("laws", target.law, "float32", ["B", "W", self.vocab_size]))
        if target.short is not None:
            carried.append(LoopValue("short", target.short, "bool", ["B", "W"]))
        if self.drawn.ranking is not None:
            # Those that are wrong are drawn anew, and ranked then.
            later = graph.op("Squeeze", self.later, graph.integers(2))
            best = self.drawn.ranking.first(graph.op("Less", self.differing(rows, self.old), later))
            carried.append(LoopValue("best_tokens", best.tokens, "int64", ["B", "W", self.drawn.ranking.size]))
            carried.append(LoopValue("best_scores", best.scores, "float32", ["B", "W", self.drawn.ranking.size]))
        names = [value.name for value in carried]

        def turn(given: list[str]) -> tuple[str, list[str]]:
            made = self.turn(dict(zip(names, given, strict=True)))
            return self.is_any(made["wrong"]), [made[name] for name in names]

        # A bound for runtimes that add up differently from turn to turn: else the last turn finds nothing wrong before.
        most = graph.op("Size", self.sites.slot)
        outputs = [v if v.name == "laws" else v._replace(name=f"decision.swept.{v.name}") for v in carried]
        swept = dict(zip(names, graph.loop(most, self.is_any(wrong), outputs, turn), strict=True))
        found = graph.op("Slice", swept["now"], graph.integers(1), graph.integers(1 << 62), graph.integers(1))
        drawn = self.drawn._replace(tokens=found)
        if drawn.ranking is not None:
            drawn = drawn._replace(best=Best(swept["best_tokens"], swept["best_scores"]))
        return drawn, TargetLaw(swept.get("laws", target.law), swept["highest"], swept.get("short"))

    def turn(self, given: dict[str, str]) -> dict[str, str]:
        """One turn: laws and tokens of the ``wrong`` sites under the neighbours of ``now``, and the sites that are wrong then."""
        graph, sites = self.graph, given["wrong"]

        def at(values: str) -> str:
            return graph.op("GatherND", values, sites)

        row = graph.op("Gather", sites, graph.number(0, "int64"), axis=2)
        slots = sites if self.sites.followed is None else self.sites.followed.places(graph, sites)
        logits = graph.op("GatherND", self.sites.logits, slots)
        target = self.warp(self.predicted(logits, at(self.old), at(given["rows"])), row)
        tokens = self.drawn.redraw(target.law, at)
        made = {"highest": target.highest, "laws": target.law, "short": target.short}
        if self.drawn.ranking is not None:
            best = self.drawn.ranking.again(target.law, at)
            made |= {"best_tokens": best.tokens, "best_scores": best.scores}
        after = {
            name: graph.op("ScatterND", given[name], sites, value)
            for name, value in made.items()
            if name in given and value is not None
        }
        columns = graph.op("Add", sites, graph.constant("next_column", np.array([0, 1])))
        after["now"] = graph.op("ScatterND", given["now"], columns, tokens)
        after["rows"] = self.rows_of(after["now"])
        after["wrong"] = self.changed(after["rows"], given["rows"])
        return after

    def predicted(self, logits: str, old: str, new: str) -> str:
        """Corrected logits (n, 1, V) of ``logits``, whose neighbours were ``old`` and are ``new``, rows of the table (n, 1, K)."""
        graph, table = self.graph, self.table
        steps = graph.op("Sub", *(graph.op("Gather", table.neighbours, rows, axis=0) for rows in (new, old)))
        moved = graph.op("ReduceSum", steps, graph.integers(2), keepdims=0)
        bits = graph.op("Where", graph.op("Equal", new, old), graph.number(0, "int64"), table.bits)
        which = graph.op("ReduceSum", bits, graph.integers(2), keepdims=1)
        stale, own = (graph.op("Gather", scale, which, axis=0) for scale in (table.stale_scale, table.unigram_scale))
        level = graph.op("Add", graph.op("Mul", stale, logits), graph.op("Mul", own, table.unigram))
        return graph.op("Add", level, graph.op("MatMul", moved, table.basis))

    def declared(self) -> _Table:
        """The corrector's inputs."""
        graph, vocab_size = self.graph, self.vocab_size
        lags = graph.input("correction_lags", "int64", ["K"])
        unigram = graph.input("correction_unigram", "float32", [vocab_size])
        basis = graph.input("correction_basis", "float32", ["rank", vocab_size])
        neighbours = graph.input("correction_neighbours", "float32", ["K", vocab_size + 1, "rank"])
        stale, own = (
            graph.input(f"correction_{name}", "float32", ["subsets"]) for name in ("stale_scale", "unigram_scale")
        )
        rows = graph.op("Flatten", neighbours, axis=2)
        counting = graph.op("Range", graph.number(0, "int64"), graph.op("Size", lags), graph.number(1, "int64"))
        first_rows = graph.op("Mul", counting, graph.number(vocab_size + 1, "int64"))
        bits = graph.op("Pow", graph.number(2, "int64"), counting)
        return _Table(lags, unigram, basis, rows, first_rows, stale, own, bits)

    def neighbours_of_sites(self) -> str:
        """The columns int64 (W, K) that the neighbours of each site have in `padded` tokens."""
        graph = self.graph
        sites = graph.op("Add", graph.op("Unsqueeze", self.sites.slot, graph.integers(1)), graph.number(1, "int64"))
        return graph.op("Max", graph.op("Sub", sites, self.table.lags), graph.number(0, "int64"))

    def padded(self, tokens: str) -> str:
        """``tokens`` (B, W) as (B, W + 1): column j + 1 is site j, column 0 whatever is left of the window and stays."""
        graph = self.graph
        first = graph.op("Slice", self.sites.draft, graph.integers(0), graph.integers(1), graph.integers(1))
        return graph.op("Concat", first, tokens, axis=1)

    def rows_of(self, padded: str) -> str:
        """The rows of the table int64 (B, W, K) of every site's neighbours."""
        graph = self.graph
        return graph.op("Add", graph.op("Gather", padded, self.columns, axis=1), self.table.first_rows)

    def changed(self, rows: str, before: str) -> str:
        """The later sites int64 (n, 1, 2), row and slot, of which a neighbour is another one in ``rows`` than in ``before``."""
        graph = self.graph
        found = graph.op("NonZero", self.differing(rows, before))
        return graph.op("Unsqueeze", graph.op("Transpose", found), graph.integers(1))

    def differing(self, rows: str, before: str) -> str:
        """The same as a mask, int32 (B, W)."""
        graph = self.graph
        differs = graph.op("Where", graph.op("Equal", rows, before), graph.number(0, "int32"), self.later)
        return graph.op("ReduceMax", differs, graph.integers(2), keepdims=0)

    def is_any(self, sites: str) -> str:
        return self.graph.op("Greater", self.graph.op("Size", sites), self.graph.number(0, "int64"))

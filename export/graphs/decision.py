"""The decision graph: a step's logits to its tokens and counts, with draft laws and race noise as state.

It follows `coupled_sampling.step_rule.decide` decision by decision, in standard ONNX operators: target law, acceptance from
the left until the first refusal, correction from the residual, redraft of all later sites. Slot j of row b decides position
``start[b] + j + 1``. Inputs, outputs and the order of calls are in ``docs/step-graph.md``.

What keeps it cheap: of the draft laws only q(x), one number per draft, is looked up, and one row per sequence, that of the
refused draft; only the maximal coupling needs them all. The laws of a round are the softmax's own output, so keeping them
copies nothing. Race noise lies in a ring of positions that TensorScatter writes in place, so that a position's noise enters
once.

It promises the tokens of `HostStep` for the same uniforms and noise, save where two floats tie: exponentials and sums of
different libraries differ in their last bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from coupled_sampling.errors import InvalidArgument
from coupled_sampling.export.graphs.decision_correction import Drawn, Redraw, Sites, Sweep
from coupled_sampling.export.graphs.decision_draws import (
    DecisionBuilder,
    inverse_cdf,
    largest,
    noise_of_ring,
    rows_at,
)
from coupled_sampling.export.graphs.decision_law import RowSettings, TargetLaw, guided_logits, target_law
from coupled_sampling.export.graphs.decision_ranking import Ranking
from coupled_sampling.export.graphs.decision_slots import Slots
from coupled_sampling.export.graphs.decision_tree import TREE_METHOD, TreeSlots
from coupled_sampling.methods import Method, find_method

__all__ = ["NOISE", "STEP_METHODS", "WINDOW_NOISE_METHOD", "decision_graph"]

STEP_METHODS = ("ar", "sjd", "scd-maximal", "scd-gumbel", "scd-match")
"""Methods that have a decision graph."""

NOISE = ("ring", "window")
"""Where race noise comes from: a ring of positions inside the graph, or an input with a row for each slot."""

WINDOW_NOISE_METHOD = "scd-match"
"""The method whose noise can be an input: it then needs neither float64 nor a ring, so TensorRT can build it."""

_ACCEPT, _RESIDUAL, _REDRAFT = range(3)


def decision_graph(
    method: str | Method,
    vocab_size: int,
    *,
    warped: bool = False,
    guided: bool = False,
    noise: str = "ring",
    corrected: bool = False,
    tree: bool = False,
) -> Any:
    """A step without the forward pass: logits in, tokens and counts out.

    Parameters
    ----------
    method
        One of `STEP_METHODS`.
    vocab_size
        V.
    warped
        Whether rows may have top-k, top-p and min-p; see `coupled_sampling.export.graphs.decision_law`.
    guided
        Whether logits come in pairs of rows to be joined by classifier-free guidance.
    noise
        "ring": a position's race noise enters once and is kept inside. "window": ``noise`` (B, W, V) has it for every slot of the
        window, made by the caller for each call. The latter is for ``scd-match``, neither warped nor guided, and then the graph has
        no float64 and no state of its own: TensorRT builds it.
    corrected
        Whether redrafts are drawn from corrected laws; see `coupled_sampling.export.graphs.decision_correction`. It is for methods
        that recycle drafts, with the noise of a ring.
    tree
        Whether windows may have branches; see `coupled_sampling.export.graphs.decision_tree`. It is for ``scd-match``, not guided.

    Returns
    -------
    onnx.ModelProto
        Not yet checked: `coupled_sampling.export.save_graph` does.

    Raises
    ------
    InvalidArgument
        There is no decision graph for ``method`` with these settings, or ``vocab_size`` is less than 1.
    MissingDependency
        ``onnx`` is not installed.
    """
    chosen = find_method(method)
    if chosen.name not in STEP_METHODS:
        raise InvalidArgument(f"method is {chosen.name!r}, expected one of {', '.join(STEP_METHODS)} for a step graph")
    if vocab_size < 1:
        raise InvalidArgument(f"vocab_size is {vocab_size}, expected an integer >= 1")
    if noise not in NOISE:
        raise InvalidArgument(f"noise is {noise!r}, expected one of {', '.join(map(repr, NOISE))}")
    if noise == "window" and (chosen.name != WINDOW_NOISE_METHOD or warped or guided):
        raise InvalidArgument(
            f"noise is 'window' and method {chosen.name!r}, warped {warped}, guided {guided}; expected scd-match, neither "
            "warped nor guided: the others compute in float64 or have no ring; leave noise at 'ring'"
        )
    if corrected and (not chosen.recycles or noise == "window"):
        raise InvalidArgument(
            f"corrected is True, but method is {chosen.name!r} and noise {noise!r}; expected a method that recycles drafts, with "
            "noise 'ring': leave corrected at False"
        )
    if tree and chosen.name != TREE_METHOD:
        raise InvalidArgument(
            f"tree is True, but method is {chosen.name!r}, expected {TREE_METHOD}: leave tree at False"
        )
    if tree and guided:
        raise InvalidArgument(
            "tree and guided are True, expected one of them: guided trees are for HostStep over a GuidedProvider, whose "
            "unconditional rows may have other trees"
        )
    return _Decision(chosen, vocab_size, warped, guided, noise, corrected, tree).write()


class _Decision:
    """Writes the graph from its inputs to its outputs, once."""

    def __init__(
        self,
        method: Method,
        vocab_size: int,
        warped: bool,
        guided: bool,
        noise: str,
        corrected: bool,
        tree: bool,
    ) -> None:
        self.method, self.vocab_size, self.warped, self.guided = method, vocab_size, warped, guided
        self.noise, self.corrected = noise, corrected
        self.graph = DecisionBuilder()
        self.settings = RowSettings(self.graph)
        self.is_tree = tree
        self.tree: TreeSlots | None = None
        self.index = self.counting = self.shape = self.known = self.draws = ""

    def write(self) -> Any:
        graph = self.graph
        rows = "2B" if self.guided else "B"
        logits = graph.input("logits", "float32", [rows, "W", self.vocab_size])
        ids, start = graph.input("input_ids", "int64", [rows, "W"]), graph.input("start", "int64", [rows])
        if self.guided:
            ids, start = (graph.op("Slice", x, *(graph.integers(i) for i in (0, 1 << 62, 0, 2))) for x in (ids, start))
        slots = Slots.of(graph, ids)
        if self.is_tree:
            self.tree = TreeSlots(graph)
        self.counting, self.shape, self.known, self.draws = slots.slot, slots.shape, slots.known, slots.draws
        if self.guided:
            logits = guided_logits(graph, logits, self.counting)
        if self.method.acceptance == "none":
            target = self.one_token(logits)
        else:
            target = target_law(
                graph,
                logits,
                self.vocab_size,
                self.warped,
                self.settings,
                argmax_is_first=self.noise == "ring",
                name=None if self.corrected else "laws",
            )
            if self.tree is not None:
                drawn, target = self.walk(self.tree, target, slots, ids)
            else:
                decide = self.match if self.method.acceptance == "match" else self.reject
                drawn = decide(target.law, slots, start)
            if self.corrected:
                drawn, target = self.sweep(logits, target, drawn, slots)
            elif drawn.ranking is not None:
                drawn = drawn._replace(best=drawn.ranking.first(self.later(slots, drawn.last)))
            self.finish(drawn)
        self.report(target)
        settings = {"method": self.method.name, "warped": str(self.warped), "guided": str(self.guided)}
        if self.corrected:
            settings["corrected"] = "True"
        if self.tree is not None:
            settings["tree"] = "True"
        if self.noise != "ring":
            settings["noise"] = self.noise
        return graph.build(
            "decision_graph",
            "Logits of a window to tokens and counts. See docs/step-graph.md of coupled-sampling.",
            {"format": "coupled-sampling decision graph", "vocab_size": str(self.vocab_size), **settings},
        )

    def one(self) -> str:
        return self.graph.number(1, "int64")

    def column(self, name: str) -> str:
        """A vector (B,) as a column (B, 1)."""
        return self.graph.op("Unsqueeze", name, self.graph.integers(1))

    def first_true(self, mask: str) -> str:
        """Slot (B, 1) of each row's first true entry of ``mask`` (B, W), 0 where there is none.

        By arithmetic: not every runtime says which of equal entries its ArgMax finds, and any but the first would commit drafts
        that were refused.
        """
        graph = self.graph
        places = graph.op("Cast", self.counting, to=1)
        none = graph.number(1 << 24)  # up to which float32 counts
        first = graph.op("ReduceMin", graph.op("Where", mask, places, none), graph.integers(1), keepdims=1)
        return graph.op("Cast", graph.op("Where", graph.op("Less", first, none), first, graph.number(0.0)), to=7)

    def refused(self, slots: Slots, kept: str) -> str:
        return self.graph.op("And", slots.valid, self.graph.op("Not", kept))

    def one_token(self, logits: str) -> TargetLaw:
        """``ar``: the law of one slot per row, and one token of it by the noise of the position."""
        graph = self.graph
        opening = graph.op("Max", graph.op("Sub", self.known, self.one()), graph.number(0, "int64"))
        law = target_law(graph, rows_at(graph, logits, opening), self.vocab_size, self.warped, self.settings)
        noise = graph.input("noise", "float32", ["B", 1, self.vocab_size])
        _, token = largest(graph, graph.op("Mul", law.law, noise), self.vocab_size)
        graph.op("Expand", token, self.shape, name="tokens")
        graph.output("tokens", "int64", ["B", "W"])
        graph.op("Squeeze", graph.op("Cast", self.draws, to=7), graph.integers(1), name="committed")
        graph.output("committed", "int64", ["B"])
        return law

    def sweep(self, logits: str, target: TargetLaw, drawn: Drawn, slots: Slots) -> tuple[Drawn, TargetLaw]:
        """``drawn`` with redrafts from corrected laws, and these laws, which are the recorded ones then."""
        graph, later = self.graph, self.later(slots, drawn.last)
        now = graph.op("Where", slots.begun, drawn.tokens, slots.draft)

        def warp(values: str, rows: str) -> TargetLaw:
            settings = self.settings.at_rows(rows)
            return target_law(graph, values, self.vocab_size, self.warped, settings, name=None)

        sites = Sites(slots.slot, slots.draft, later, logits, drawn.followed)
        sweep = Sweep(graph, self.vocab_size, sites, warp, drawn)
        return sweep.write(now, target, records=self.method.acceptance == "rejection")

    def later(self, slots: Slots, last: str) -> str:
        """The redrafts, bool (B, W)."""
        return self.graph.op("And", slots.valid, self.graph.op("Greater", slots.slot, last))

    def walk(self, tree: TreeSlots, target: TargetLaw, slots: Slots, ids: str) -> tuple[Drawn, TargetLaw]:
        """The target's own token at every slot of a tree, and what that commits."""
        noise = self.race_noise(tree.position)
        products = self.graph.op("Mul", target.law, noise)
        own = largest(self.graph, products, self.vocab_size)[1]
        found = tree.walk(own, target.highest, ids, slots, self.first_true)
        ring = self.noise == "ring"
        ranking = Ranking(self.graph, self.vocab_size, products, noise, found.followed, ring=ring)
        drawn = Drawn(found.tokens, found.last, lambda law, at: self.race(law, at(noise)), found.followed, ranking)
        return drawn, target._replace(highest=found.highest)

    def match(self, law: str, slots: Slots, start: str) -> Drawn:
        """The target's own token everywhere; drafts that equal it stay."""
        graph = self.graph
        noise = self.race_noise(self.positions(start))
        own = self.race(law, noise)
        kept = graph.op("And", slots.has_draft, graph.op("Equal", own, slots.draft))
        return Drawn(own, self.first_true(self.refused(slots, kept)), lambda law, at: self.race(law, at(noise)))

    def reject(self, law: str, slots: Slots, start: str) -> Drawn:
        """Acceptance by the ratio of the laws, correction from the residual, redraft of what follows."""
        graph = self.graph
        uniforms = graph.input("uniforms", "float64", ["B", "W", 3])
        accept, correct = (self.uniform(uniforms, purpose) for purpose in (_ACCEPT, _RESIDUAL))
        proposed = self.of_drafts(slots, start)
        kept = graph.op("Less", accept, self.acceptance_ratio(law, slots.draft, proposed))
        kept = graph.op("And", slots.has_draft, kept)
        refused = self.refused(slots, kept)
        last = self.first_true(refused)
        if self.method.redraft == "maximal":
            held = self.held_laws(slots)
            drawn = inverse_cdf(graph, self.residual(law, held, slots), correct, self.vocab_size, law)
            tokens = graph.op("Where", refused, drawn, slots.draft)
            drawn_by = (accept, correct, proposed, held)
            redraw: Redraw = lambda law, at: self.maximal(law, slots.at(at), *map(at, drawn_by))  # noqa: E731
        else:
            at_last = slots._replace(
                recycled=self.at(slots.recycled, last),
                fresh=self.at(slots.fresh, last),
                draft=self.at(slots.draft, last),
            )
            self.index = self.at(self.index, last)
            own = rows_at(graph, law, last)
            uniform = graph.op("GatherElements", correct, last, axis=1)
            weights = self.residual(own, self.held_laws(at_last), at_last)
            corrected = inverse_cdf(graph, weights, uniform, self.vocab_size, own)
            races = self.method.redraft == "gumbel"
            noise = self.race_noise(self.positions(start)) if races else self.uniform(uniforms, _REDRAFT)
            draw: Callable[[str, str], str] = self.race if races else self.independent
            redraw = lambda law, at: draw(law, at(noise))  # noqa: E731
            redrawn = draw(law, noise)
            tokens = graph.op("Where", graph.op("Equal", slots.slot, last), corrected, slots.draft)
            tokens = graph.op("Where", graph.op("Greater", slots.slot, last), redrawn, tokens)
        # The law that every later site now has, whether its draft was kept or redrawn.
        graph.output("laws", "float32", ["B", "W", self.vocab_size])
        return Drawn(tokens, last, redraw)

    def maximal(self, law: str, slots: Slots, accept: str, correct: str, proposed: str, held: str) -> str:
        """Tokens of ``slots`` from ``law``, their drafts where they can stay."""
        graph = self.graph
        kept = graph.op("Less", accept, self.acceptance_ratio(law, slots.draft, proposed))
        kept = graph.op("And", slots.has_draft, kept)
        drawn = inverse_cdf(graph, self.residual(law, held, slots), correct, self.vocab_size, law)
        return graph.op("Where", kept, slots.draft, drawn)

    def independent(self, law: str, uniform: str) -> str:
        return inverse_cdf(self.graph, law, uniform, self.vocab_size)

    def at(self, values: str, last: str) -> str:
        """``values`` (B, W) at the slots ``last`` (B, 1)."""
        return self.graph.op("GatherElements", values, last, axis=1)

    def uniform(self, uniforms: str, purpose: int) -> str:
        return self.graph.op("Gather", uniforms, self.graph.number(purpose, "int64"), axis=2)

    def of_drafts(self, slots: Slots, start: str) -> str:
        """q(x) float32 (B, W): what its law gave each draft, 1 where it is fresh."""
        graph = self.graph
        graph.input("draft_laws", "float32", ["B", "draft_slots", self.vocab_size])
        written = graph.input("draft_laws_start", "int64", ["B"])
        ahead = self.column(graph.op("Sub", start, written))
        at = graph.op("Add", slots.slot, ahead)
        self.index = graph.op("Where", slots.recycled, at, graph.number(0, "int64"))  # other drafts have no law there
        pair = (graph.op("Unsqueeze", x, graph.integers(2)) for x in (self.index, slots.draft))
        held = graph.op("GatherND", "draft_laws", graph.op("Concat", *pair, axis=2), batch_dims=1)
        return graph.op("Where", slots.recycled, held, graph.number(1.0))

    def acceptance_ratio(self, law: str, draft: str, proposed: str) -> str:
        """min(1, p(x) / q(x)) in float64 (B, n); 0 where the target gives the draft nothing."""
        graph = self.graph
        own = graph.op("GatherElements", law, graph.op("Unsqueeze", draft, graph.integers(2)), axis=2)
        wide = graph.op("Cast", graph.op("Squeeze", own, graph.integers(2)), to=11)
        proposed = graph.op("Cast", proposed, to=11)
        unit = graph.number(1.0, "float64")
        larger = graph.op("Greater", proposed, wide)
        ratio = graph.op("Div", wide, graph.op("Where", larger, proposed, unit))
        return graph.op("Where", larger, ratio, graph.op("Ceil", graph.op("Min", wide, unit)))

    def held_laws(self, slots: Slots) -> str:
        """q (B, n, V) of the recycled drafts of ``slots``, nothing where there is none."""
        graph = self.graph
        held = rows_at(graph, "draft_laws", self.index)
        recycled = graph.op("Unsqueeze", slots.recycled, graph.integers(2))
        return graph.op("Where", recycled, held, graph.number(0.0))

    def residual(self, law: str, held: str, slots: Slots) -> str:
        """max(p - q, 0) (B, n, V) for the sites of ``slots``: q is ``held``, a point mass, or nothing."""
        graph = self.graph
        left = graph.op("Relu", graph.op("Sub", law, held))
        draft = graph.op("Unsqueeze", slots.draft, graph.integers(2))
        fresh = graph.op("Unsqueeze", slots.fresh, graph.integers(2))
        own = graph.op("Where", fresh, graph.number(0.0), graph.op("GatherElements", left, draft, axis=2))
        return graph.op("ScatterElements", left, draft, own, axis=2)

    def race(self, law: str, noise: str) -> str:
        """argmax(law * noise) (B, n)."""
        return largest(self.graph, self.graph.op("Mul", law, noise), self.vocab_size)[1]

    def positions(self, start: str) -> str:
        """The position (B, W) of each slot of a window without branches."""
        return self.graph.op("Add", self.column(start), self.counting)

    def race_noise(self, slots: str) -> str:
        """The noise (B, W, V) of the positions that slots at the positions ``slots`` (B, W) decide, from where ``noise`` says."""
        if self.noise == "window":
            return self.graph.input("noise", "float32", ["B", "W", self.vocab_size])
        return noise_of_ring(self.graph, self.graph.op("Add", slots, self.one()), self.vocab_size)

    def finish(self, drawn: Drawn) -> None:
        """Outputs ``tokens`` (B, W) and ``committed`` (B,), the accepted drafts and one more; of a tree the best of redrafts."""
        graph = self.graph
        graph.op("Identity", drawn.tokens, name="tokens")
        graph.output("tokens", "int64", ["B", "W"])
        if drawn.ranking is not None and drawn.best is not None:
            drawn.ranking.report(drawn.best)
        count = graph.op("Add", graph.op("Sub", drawn.last, self.known), graph.number(2, "int64"))
        count = graph.op("Where", self.draws, count, graph.number(0, "int64"))
        graph.op("Squeeze", count, graph.integers(1), name="committed")
        graph.output("committed", "int64", ["B"])

    def report(self, target: TargetLaw) -> None:
        """Outputs that say whether the logits were usable and the candidates enough."""
        graph = self.graph
        graph.op("Expand", target.highest, self.shape, name="highest_logits")
        graph.output("highest_logits", "float32", ["B", "W"])
        if target.short is not None:
            graph.op("Expand", target.short, self.shape, name="nucleus_short")
            graph.output("nucleus_short", "bool", ["B", "W"])

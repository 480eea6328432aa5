"""From logits to the target law as ONNX operators: `coupled_sampling.target` for laws that stay on the device.

Two variants. The *plain* one knows temperature only. The *warped* one knows top-k, top-p and min-p as well and costs a
TopK and two more passes over the vocabulary; it is a variant because a graph cannot leave out work that no row asks
for. All three become one threshold on the logits: TopK's values are those logits themselves, so what is kept does not
depend on two roundings of the same exponential.

A full sort would cost more than a small model's forward pass, so the warped graph looks at ``candidates`` largest logits
only, a graph input: at least the largest top-k of all rows (TensorRT takes at most 3840 and wants it constant). A row
that has top-p without top-k may need more of them; the output ``nucleus_short`` says so, and the same call is then made
again with more. Nothing is lost by that, since a step can always be done again.

Greedy rows (temperature 0) get an exact point mass on the first largest logit, by a huge logit there before softmax.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from coupled_sampling.export.graphs.decision_draws import (
    DecisionBuilder,
    first_largest,
    first_of,
    largest,
    length_on_device,
)

__all__ = ["RowSettings", "TargetLaw", "guided_logits", "target_law"]

_SLACK = 1 - 8 * float(np.finfo(np.float32).eps)


class RowSettings:
    """Temperature and warps, a number for each row: (B, 1, 1), a graph input from when it is first asked for.

    `at_rows` are those of chosen rows, (n, 1, 1).
    """

    def __init__(self, graph: DecisionBuilder) -> None:
        self._graph = graph
        self._columns: dict[str, str] = {}
        self._rows: str | None = None
        self._candidates: str | None = None

    def column(self, name: str, dtype: str) -> str:
        """The input ``name``, (B, 1, 1); of chosen rows, (n, 1, 1)."""
        graph = self._graph
        if name not in self._columns:
            self._columns[name] = graph.op("Unsqueeze", graph.input(name, dtype, ["B"]), graph.integers(1, 2))
        held = self._columns[name]
        return held if self._rows is None else graph.op("GatherND", held, self._rows)

    def candidates(self) -> str:
        """The input ``candidates``, (1,)."""
        if self._candidates is None:
            self._candidates = self._graph.input("candidates", "int64", [1])
        return self._candidates

    def at_rows(self, rows: str) -> RowSettings:
        """The settings of ``rows`` int64 (n, 1), each as often as it stands there; all have been asked for before."""
        chosen = RowSettings(self._graph)
        chosen._columns, chosen._candidates, chosen._rows = self._columns, self._candidates, rows
        return chosen


class TargetLaw(NamedTuple):
    """What `target_law` appends."""

    law: str
    """float32 (B, n, V)."""
    highest: str
    """float32 (B, n): the largest logit; NaN where a logit is NaN."""
    short: str | None
    """bool (B, n): the nucleus has more tokens than candidates; None in the plain variant."""


def guided_logits(graph: DecisionBuilder, logits: str, slots: str) -> str:
    """Guided logits (B, W, V) of ``logits`` (2B, W, V), row 2b conditional and 2b + 1 unconditional.

    See `coupled_sampling.guidance`. ``slots`` is int64 (W,): 0, 1, ... Declares ``guidance`` float64 (B, W), the scale of each
    slot, and ``guidance_lag`` int64 (B,): the unconditional row shows the token of slot j in slot j - lag. It is 0 but while an
    unconditional prompt shorter than the row's own has not begun, or where the window is wider than what the model has left
    (negative); slots without a partner have nothing to decide.
    """
    scale = graph.op("Unsqueeze", graph.input("guidance", "float64", ["B", "W"]), graph.integers(2))
    lag = graph.op("Unsqueeze", graph.input("guidance_lag", "int64", ["B"]), graph.integers(1))
    pairs = graph.op("Range", graph.number(0, "int64"), graph.op("Size", lag), graph.number(1, "int64"))
    even = graph.op("Unsqueeze", graph.op("Mul", pairs, graph.number(2, "int64")), graph.integers(1))
    last = graph.op("ReduceMax", slots, keepdims=1)  # one less than a size would be computed on the CPU and copied
    shifted = graph.op("Min", graph.op("Max", graph.op("Sub", slots, lag), graph.number(0, "int64")), last)
    own = graph.op("Expand", slots, graph.op("Shape", shifted))
    conditional = _rows_of_pairs(graph, logits, even, own)
    odd = graph.op("Add", even, graph.number(1, "int64"))
    unconditional = _rows_of_pairs(graph, logits, odd, shifted)
    rest = graph.op("Cast", graph.op("Sub", graph.number(1.0, "float64"), scale), to=1)
    narrow = graph.op("Cast", scale, to=1)
    forbidden = graph.op("IsInf", conditional, detect_positive=0)
    finite = graph.op("Where", forbidden, graph.number(0.0), conditional)
    mixed = graph.op("Add", graph.op("Mul", rest, unconditional), graph.op("Mul", narrow, finite))
    mixed = graph.op("Where", forbidden, conditional, mixed)
    # At 0 and 1 one of the two is left out, not multiplied by zero: it may be infinite.
    mixed = graph.op("Where", graph.op("Equal", scale, graph.number(1.0, "float64")), conditional, mixed)
    return graph.op("Where", graph.op("Equal", scale, graph.number(0.0, "float64")), unconditional, mixed)


def _rows_of_pairs(graph: DecisionBuilder, logits: str, rows: str, slots: str) -> str:
    """``logits[rows[b], slots[b, j]]``: (B, W, V); ``rows`` is (B, 1), ``slots`` (B, W)."""
    rows = graph.op("Expand", rows, graph.op("Shape", slots))
    index = (graph.op("Unsqueeze", part, graph.integers(2)) for part in (rows, slots))
    return graph.op("GatherND", logits, graph.op("Concat", *index, axis=2))


def target_law(
    graph: DecisionBuilder,
    logits: str,
    vocab_size: int,
    warped: bool,
    settings: RowSettings,
    *,
    argmax_is_first: bool = True,
    name: str | None = "laws",
) -> TargetLaw:
    """Append the target law ``name`` of ``logits`` float32 (B, n, V) under the ``settings`` of its rows.

    ``argmax_is_first`` says whether the runtime's ArgMax finds the first of equal entries, which greedy rows take.
    """
    highest, first = (largest if argmax_is_first else first_largest)(graph, logits, vocab_size)
    # Maxima pass over NaN, in some runtimes; sums do not.
    faulty = graph.op("IsNaN", graph.op("ReduceSum", logits, graph.integers(-1), keepdims=0))
    # +inf and -inf sum to NaN too, and then the maximum is +inf.
    infinite = graph.op("IsInf", highest)
    faulty = graph.op("And", faulty, graph.op("Not", infinite))
    reported = graph.op("Where", faulty, graph.number(np.nan), highest)
    temperature = settings.column("temperature", "float32")
    zero, one = graph.number(0.0), graph.number(1.0)
    greedy = graph.op("Equal", temperature, zero)
    temperature = graph.op("Where", greedy, one, temperature)
    wide = graph.op("Unsqueeze", highest, graph.integers(2))
    scaled = graph.op("Div", graph.op("Sub", logits, wide), temperature)
    short = None
    if warped:
        threshold, short = _threshold(graph, logits, wide, scaled, temperature, vocab_size, settings)
        short = graph.op("And", short, graph.op("Not", graph.op("Squeeze", greedy, graph.integers(2))))
        scaled = graph.op("Where", graph.op("Less", logits, threshold), graph.number(-np.inf), scaled)
    at = graph.op("Unsqueeze", first, graph.integers(2))
    own = graph.op("GatherElements", scaled, at, axis=2)
    peak = graph.op("Where", greedy, graph.number(1e30), own)
    law = graph.op("Softmax", graph.op("ScatterElements", scaled, at, peak, axis=2), axis=-1, name=name)
    return TargetLaw(law, reported, short)


def _threshold(
    graph: DecisionBuilder,
    logits: str,
    highest: str,
    scaled: str,
    temperature: str,
    vocab_size: int,
    settings: RowSettings,
) -> tuple[str, str]:
    """The smallest logit (B, n, 1) that top-k, top-p and min-p keep, and where (B, n) the candidates were too few."""
    top_k, top_p, min_p = (
        settings.column(name, dtype) for name, dtype in (("top_k", "int64"), ("top_p", "float64"), ("min_p", "float32"))
    )
    candidates = settings.candidates()
    ordered, _ = graph.ops("TopK", logits, candidates, names=(None, None), axis=-1, largest=1, sorted=1)
    candidates = length_on_device(graph, first_of(graph, first_of(graph, ordered)))  # TopK reads its number on the host
    nothing, none = graph.number(-np.inf), graph.number(0, "int64")
    limited = graph.op("Greater", top_k, none)
    end = graph.op("Min", graph.op("Where", limited, top_k, candidates), candidates)
    shape = graph.op("Shape", highest)
    last = graph.op("Expand", graph.op("Sub", end, graph.number(1, "int64")), shape)
    limit = graph.op("Where", limited, graph.op("GatherElements", ordered, last, axis=2), nothing)
    # Ties with the last of the k largest are kept, so they count in the mass that top-p is a share of.
    kept = graph.op("Where", graph.op("Less", logits, limit), nothing, scaled)
    blocks = graph.op("ReduceSum", graph.op("Exp", kept), graph.integers(-1), keepdims=1)
    wanted = graph.op("Mul", graph.op("Cast", blocks, to=11), graph.op("Mul", top_p, graph.number(_SLACK, "float64")))
    shares = graph.op("Exp", graph.op("Div", graph.op("Sub", ordered, highest), temperature))
    mass = graph.op("CumSum", graph.op("Cast", shares, to=11), graph.number(2, "int64"))
    under = graph.op("Cast", graph.op("Less", mass, wanted), to=7)
    count = graph.op("ReduceSum", under, graph.integers(-1), keepdims=1)
    nucleus = graph.op("GatherElements", ordered, graph.op("Min", count, last), axis=2)
    partial = graph.op("Less", top_p, graph.number(1.0, "float64"))
    nucleus = graph.op("Where", partial, nucleus, nothing)
    beyond = graph.op("And", graph.op("GreaterOrEqual", count, candidates), graph.op("Not", limited))
    beyond = graph.op("And", beyond, graph.op("Less", candidates, graph.constant("vocab", np.array([vocab_size]))))
    short = graph.op("Squeeze", graph.op("And", beyond, partial), graph.integers(2))
    least = graph.op("Add", highest, graph.op("Mul", graph.op("Log", min_p), temperature))
    return graph.op("Max", graph.op("Max", limit, nucleus), least), short

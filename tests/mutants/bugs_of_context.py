"""Models that look at vectors of a request: their graphs, and what rows keep of them."""

from planting import Bug

__all__ = ["BUGS"]

GRAPHS = ("test_condition_graph",)
ROWS = ("test_ort_conditions",)

BUGS = (
    Bug(
        "layers-positions-after-the-embedding-only",
        "decoder:_Writer.write",
        "x if place is None else graph.op('Add', x, place)",
        "x if place is None or layer else graph.op('Add', x, place)",
        "What every layer begins with is added once.",
        GRAPHS,
    ),
    Bug(
        "a-slot-of-the-padding-sees-nothing",
        "prefix_mask",
        "graph.op('Or', graph.op('GreaterOrEqual', columns, first), graph.op('Equal', columns, own))",
        "graph.op('Or', graph.op('GreaterOrEqual', columns, first), graph.op('Greater', columns, columns))",
        "Positions before the first vector attend to nothing, not even to themselves.",
        GRAPHS,
    ),
    Bug(
        "vectors-stand-at-the-front",
        "condition_graph:_Writer.prefix",
        "graph.op('Concat', missing, graph.integers(0, 0, 0), axis=0)",
        "graph.op('Concat', graph.integers(0, 0), missing, graph.integers(0), axis=0)",
        "Fewer vectors than there is room for are padded behind, though the mask leaves out what is before them.",
        GRAPHS,
    ),
    Bug(
        "keys-of-vectors-without-their-norm",
        "condition_graph:_Writer.cross_attention",
        "if part == 'key':\n    made = normed_heads(description, self.linear, prefix, ((part, heads),), made)",
        "",
        "Queries of cross attention are normalised and keys are not.",
        GRAPHS,
    ),
    Bug(
        "a-fork-leaves-the-condition-behind",
        "OrtProvider.fork",
        "if self._conditions is not None:\n    self._conditions.fork(source, targets)",
        "",
        "A row that goes on from another one's state looks at the vectors of the request before.",
        ROWS,
    ),
    Bug(
        "conditions-of-the-first-rows",
        "RowConditions.bind",
        "self._binding.bind_kept(name, kept, (len(rows), *kept.memory.shape[1:]), rows.start)",
        "self._binding.bind_kept(name, kept, (len(rows), *kept.memory.shape[1:]))",
        "A call for some of the rows looks at the conditions of the first ones.",
        ROWS,
    ),
    Bug(
        "a-request-that-cannot-begin-stops-its-neighbours",
        "RowConditions.begin",
        "self._failed.add(int(row))",
        "",
        "A row whose request could not begin is refused as idle, too, in every pass of the others.",
        ROWS,
    ),
    Bug(
        "a-request-that-cannot-begin-leaves-its-row-logits",
        "OrtProvider._forward",
        "if idle:\n    found[idle] = np.nan",
        "",
        "A row whose request could not begin has logits, under the condition of the request before.",
        ROWS,
    ),
    Bug(
        "a-speech-request-that-cannot-begin-stops-its-neighbours",
        "EncoderDecoderProvider.begin",
        "self._failed.add(int(row))",
        "",
        "A row whose encoder's output could not be read is refused as idle, too, in every pass of the others.",
        ("test_encoder_decoder",),
    ),
    Bug(
        "a-condition-that-is-kept-and-not-copied",
        "RowConditions.begin",
        "np.array(request.condition, np.float32)",
        "np.asarray(request.condition, np.float32)",
        "Whoever changes the array later gets what it was before, and others with the new one get it too.",
        ROWS,
    ),
    Bug(
        "a-condition-taken-in-silence",
        "_OrtConditioned.takes",
        "missing_offers(self, request) or self._conditions.problem(request)",
        "missing_offers(self, request)",
        "A request without vectors is refused when it has its row, not when it is added.",
        ROWS,
    ),
)

"""Bugs of step graphs that draw redrafts from corrected laws, and of how they are fed and chosen."""

from planting import Bug

__all__ = ["BUGS"]

GRAPH = ("test_corrected_step_graph",)
OPENED = ("test_ort_corrected_step",)

BUGS = (
    Bug(
        "graph-corrects-from-new-to-old",
        "Sweep.predicted",
        "(new, old)",
        "(old, new)",
        "Laws move away from what the new neighbours make of them.",
        GRAPH,
    ),
    Bug(
        "graph-lags-one-off",
        "Sweep.neighbours_of_sites",
        'graph.number(1, "int64")',
        'graph.number(2, "int64")',
        "Laws are corrected by other neighbours than the table was fitted for.",
        GRAPH,
    ),
    Bug(
        "graph-scales-by-the-number-of-the-lag",
        "Sweep.declared",
        'graph.op("Pow", graph.number(2, "int64"), counting)',
        'graph.op("Add", graph.number(1, "int64"), counting)',
        "With three lags a change of the last one is scaled as one of the first two.",
        GRAPH,
    ),
    Bug(
        "graph-scales-swapped",
        "Sweep.predicted",
        "(table.stale_scale, table.unigram_scale)",
        "(table.unigram_scale, table.stale_scale)",
        "Laws are mostly the unigram law's.",
        GRAPH,
    ),
    Bug(
        "graph-records-uncorrected-laws",
        "Sweep.turn",
        'made = {"highest": target.highest, "laws": target.law, "short": target.short}',
        'made = {"highest": target.highest, "laws": at(given["laws"]) if "laws" in given else None, "short": target.short}',
        "Redrafts are tested by laws that they were not drawn from: what comes out is not the model's.",
        GRAPH,
    ),
    Bug(
        "graph-sweeps-once",
        "Sweep.write",
        'graph.op("Size", self.sites.slot)',
        'graph.number(1, "int64")',
        "Sites keep laws of neighbours that the sweep itself has changed.",
        GRAPH,
    ),
    Bug(
        "graph-corrects-by-what-nobody-decides",
        "_Decision.sweep",
        'graph.op("Where", slots.valid, drawn.tokens, slots.draft)',
        "drawn.tokens",
        "Tokens of a prompt count as changed where the graph would have drawn others.",
        GRAPH,
    ),
    Bug(
        "graph-keeps-the-largest-logit-of-the-pass",
        "Sweep.turn",
        'made = {"highest": target.highest, "laws": target.law, "short": target.short}',
        'made = {"highest": at(given["highest"]), "laws": target.law, "short": target.short}',
        "A draft from a corrected law that is none, by overflow, is kept.",
        GRAPH,
    ),
    Bug(
        "graph-cuts-corrected-laws-at-its-candidates",
        "Sweep.turn",
        'made = {"highest": target.highest, "laws": target.law, "short": target.short}',
        'made = {"highest": target.highest, "laws": target.law, "short": at(given["short"]) if "short" in given else None}',
        "The nucleus of a corrected law ends where the candidates do, and nobody is told.",
        GRAPH,
    ),
    Bug(
        "graph-redraws-by-fresh-residuals-only",
        "_Decision.maximal",
        'graph.op("Where", kept, slots.draft, drawn)',
        "drawn",
        "Redrafts that could stay are drawn anew: their law is the residual's.",
        GRAPH,
    ),
    Bug(
        "neighbours-that-came-back-are-scaled",
        "fed_tables",
        "stale[0], own[0] = 1, 0",
        "",
        "A site whose neighbours are what they were, after all, gets another law than the model's.",
        GRAPH,
    ),
    Bug(
        "basis-fed-as-it-lies",
        "fed_tables",
        "np.ascontiguousarray(table.basis.T, np.float32)",
        "table.basis.astype(np.float32).reshape(table.basis.shape[::-1])",
        "Logits are shifted by the shares of other tokens.",
        GRAPH,
    ),
    Bug(
        "tables-asked-for-by-methods-without-drafts",
        "_is_corrected",
        "wanted.corrections is not None and wanted.method is not None and wanted.method.recycles",
        "wanted.corrections is not None",
        "A method that redrafts nothing cannot be opened beside a table.",
        OPENED,
    ),
    Bug(
        "corrected-graphs-chosen-without-a-table",
        "Bundle.step_graph",
        "(graph.method, graph.guided, graph.noise, graph.corrected) == (method, guided, noise, corrected)",
        "(graph.method, graph.guided, graph.noise) == (method, guided, noise)",
        "What has no table is opened with a graph that needs one, or the other way round.",
        OPENED,
    ),
    Bug(
        "tables-of-another-vocabulary",
        "step_corrections:CorrectionTables.__init__",
        "table.vocab_size != vocab_size",
        "False",
        "A table for another model is found out by ONNX Runtime, in its own words, at the first window.",
        OPENED,
    ),
)

"""Bugs of calls for some rows over ONNX Runtime: which memory is theirs, what reading a prompt touches, what a fork copies."""

from planting import Bug

__all__ = ["BUGS"]

ROWS = ("test_ort_rows",)
READING = ("test_ort_reading",)
LAW_MEMORY = ("test_alternating_laws",)

BUGS = (
    Bug(
        "caches-of-the-first-rows",
        "RowCaches.choose",
        "rows.start",
        "0",
        "A call for later rows reads and writes the state of the first ones.",
        ROWS,
    ),
    Bug(
        "laws-of-the-first-rows",
        "AlternatingLaws.bind",
        "rows.start",
        "0",
        "A call for later rows tests their drafts against the laws of the first ones.",
        LAW_MEMORY,
    ),
    Bug(
        "ring-of-the-first-rows",
        "NoiseRing.bind",
        "rows.start",
        "0",
        "A call for later rows writes its noise over that of the first ones.",
        READING,
    ),
    Bug(
        "starts-of-laws-of-the-first-rows",
        "AlternatingLaws.starts",
        "self.books[row].start(source)",
        "self.books[row - rows.start].start(source)",
        "Laws of later rows are looked up where those of the first ones begin.",
        LAW_MEMORY,
    ),
    Bug(
        "fork-one-column-short",
        "HostBinding.copy_row",
        "values[target, ..., :columns, :] = values[source, ..., :columns, :]",
        "values[target, ..., : columns - 1, :] = values[source, ..., : columns - 1, :]",
        "A sample lacks the state of its prompt's last token but one.",
        ROWS,
    ),
    Bug(
        "fork-of-whole-rows",
        "HostBinding.copy_row",
        "values[target, ..., :columns, :] = values[source, ..., :columns, :]",
        "values[target] = values[source]",
        "Rows are given state beyond the length that was asked for.",
        ROWS,
    ),
    Bug(
        "prompts-are-read-over-the-laws-of-drafts",
        "OrtStep.read",
        "self._step(part, None, positions[at], self._paired(part))",
        "self._step(part, 0, positions[at], self._paired(part))",
        "A chunk of a prompt writes laws over those that the drafts of other rows are to be tested against.",
        READING,
    ),
    Bug(
        "idle-rows-between-others-run",
        "Window.busy_parts",
        "row - parts[-1].stop <= 1",
        "True",
        "Two requests in the first and the last row cost as much as all rows do.",
        READING,
    ),
    Bug(
        "ranges-are-remembered-for-ever",
        "HostBinding.choose",
        "del self._chosen[next(iter(self._chosen))]",
        "pass",
        "Bindings of every range of rows ever used are kept.",
        ROWS,
    ),
    Bug(
        "captured-graphs-are-of-any-rows",
        "GraphBinding.run",
        "self._rows.start",
        "0",
        "A graph that was captured for one row is replayed for another.",
        ROWS,
    ),
    Bug(
        "logits-where-the-next-capture-has-them",
        "GraphBinding.made",
        "self._last.wanted[name][0]",
        "self._there[name]",
        "After memory for logits grew, the replay of an older graph is read where nothing was written.",
        ROWS,
    ),
    Bug(
        "graph-takes-the-first-opening-only",
        "OrtStep._feed_pairs",
        "guided.openings(paired)",
        "[*guided.openings(paired)][:1]",
        "Of an unconditional prompt longer than a window only the beginning reaches the graph.",
        ("test_step_state",),
    ),
    Bug(
        "pairs-of-the-first-rows",
        "OrtStep._choose",
        "range(pairs * rows.start, pairs * rows.stop)",
        "range(rows.start, rows.start + pairs * len(rows))",
        "With guidance, a call for later rows has the state of others.",
        ("test_step_state",),
    ),
)

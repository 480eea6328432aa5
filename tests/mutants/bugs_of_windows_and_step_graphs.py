"""Bugs of windows chosen while decoding, and of the step that a graph does."""

from planting import Bug

__all__ = ["BUGS"]

WIDTHS = ("test_windows",)
GRAPHS = ("test_ort_step",)
LAW_MEMORY = ("test_alternating_laws",)

BUGS = (
    Bug(
        "rule-told-of-open-steps",
        "StepRecords.tell",
        "row.committed >= end or row not in rows",
        "True or row.committed >= end or row not in rows",
        "The time of a step is known while its drafts are still to be tested.",
        WIDTHS,
    ),
    Bug(
        "rule-told-while-the-last-draft-is-open",
        "StepRecords.add",
        "slots[b] + 1",
        "slots[b]",
        "The time of a step is known while the draft after its last slot is still to be tested.",
        WIDTHS,
    ),
    Bug(
        "rule-told-when-one-row-is-through",
        "StepRecords.tell",
        "all(row.committed >= end or row not in rows for row, end in self._open[0].ends)",
        "any(row.committed >= end or row not in rows for row, end in self._open[0].ends)",
        "The time of a step is known while drafts of another row are still to be tested.",
        WIDTHS,
    ),
    Bug(
        "mean-of-times-instead-of-the-median",
        "_Climb._speed_up",
        "np.median",
        "np.mean",
        "One hiccup decides which width is called slow.",
        WIDTHS,
    ),
    Bug(
        "laws-read-at-the-width-of-this-window",
        "AlternatingLaws.bind",
        "self.widths[source]",
        "min(width, self.widths[source])",
        "Where a window is narrower than the one before, rows but the first read laws of other rows.",
        LAW_MEMORY,
    ),
    Bug(
        "laws-of-the-round-before-overwritten",
        "AlternatingLaws.bind",
        "target = 1 - source",
        "target = source",
        "A step writes its laws over those it reads.",
        LAW_MEMORY,
    ),
    Bug(
        "rows-read-the-buffer-of-the-first",
        "AlternatingLaws.source",
        "len(set(owners.values())) <= 1",
        "True",
        "After an interruption between two rows, one of them reads laws of another round.",
        LAW_MEMORY,
    ),
    Bug(
        "half-written-laws-believed",
        "AlternatingLaws.bind",
        "self.books = [book.written(target, None) for book in self.books]",
        "",
        "Laws are said to lie in a buffer that a failed step has written over.",
        LAW_MEMORY,
    ),
    Bug(
        "only-laws-that-are-read-kept",
        "AlternatingLaws.source",
        "recycled or book.find(before, first, first) is not None",
        "recycled",
        "A narrow step whose outcome is lost takes the laws along that a wider one needs when it is done again.",
        LAW_MEMORY,
    ),
    Bug(
        "unconditional-rows-at-the-conditional-positions",
        "OrtStep._feed_pairs",
        "paired.start",
        "np.repeat(paired.start[::2], 2)",
        "Where prompts differ in length, the unconditional row is forwarded at the wrong positions.",
        GRAPHS,
    ),
)

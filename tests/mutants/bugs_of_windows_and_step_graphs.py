"""Bugs of windows chosen while decoding, and of the step that a graph does."""

from planting import Bug

__all__ = ["BUGS"]

WIDTHS = ("test_windows",)
GRAPHS = ("test_ort_step",)

BUGS = (
    Bug(
        "rule-told-of-open-steps",
        "Decoder._remember",
        "row.committed >= end or row not in self._rows",
        "True or row.committed >= end or row not in self._rows",
        "The time of a step is known while its drafts are still to be tested.",
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
        GRAPHS,
    ),
    Bug(
        "laws-of-the-round-before-overwritten",
        "AlternatingLaws.bind",
        "target = 1 - source",
        "target = source",
        "A step writes its laws over those it reads.",
        GRAPHS,
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

"""Bugs of windows chosen while decoding, and of the step that a graph does."""

from planting import Bug

__all__ = ["BUGS"]

DECODING = "coupled_sampling/decoding.py"
WINDOWS = "coupled_sampling/windows.py"
STATE = "backends/ort_step_state.py"
STEP = "backends/ort_step.py"
WIDTHS = ("tests/test_windows.py",)
GRAPHS = ("tests/test_ort_step.py",)

BUGS = (
    Bug(
        "rule-told-of-open-steps",
        DECODING,
        "all(\n            row.committed >= end or row not in self._rows",
        "all(\n            True or row.committed >= end or row not in self._rows",
        "The time of a step is known while its drafts are still to be tested.",
        WIDTHS,
    ),
    Bug(
        "mean-of-times-instead-of-the-median",
        WINDOWS,
        "float(np.median(self._measured[i].seconds))",
        "float(np.mean(self._measured[i].seconds))",
        "One hiccup decides which width is called slow.",
        WIDTHS,
    ),
    Bug(
        "laws-read-at-the-width-of-this-window",
        STATE,
        "(rows, self.shapes[source][1], self._vocab_size)",
        "(rows, min(width, self.shapes[source][1]), self._vocab_size)",
        "Where a window is narrower than the one before, rows but the first read laws of other rows.",
        GRAPHS,
    ),
    Bug(
        "laws-of-the-round-before-overwritten",
        STATE,
        "        target = 1 - source\n",
        "        target = source\n",
        "A step writes its laws over those it reads.",
        GRAPHS,
    ),
    Bug(
        "unconditional-rows-at-the-conditional-positions",
        STEP,
        "self._feed_tokens(paired.tokens, paired.start)",
        "self._feed_tokens(paired.tokens, np.repeat(paired.start[::2], 2))",
        "Where prompts differ in length, the unconditional row is forwarded at the wrong positions.",
        GRAPHS,
    ),
)

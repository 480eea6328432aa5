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
        "laws-lost-when-rows-join",
        STATE,
        "            grown[: self.memory.size] = self.memory\n",
        "",
        "When another sequence joins, drafts under way have probability 0 and are all accepted.",
        GRAPHS,
    ),
    Bug(
        "laws-of-the-round-before-overwritten",
        STEP,
        "before, after = self._laws.buffers[source], self._laws.buffers[1 - source]",
        "before, after = self._laws.buffers[source], self._laws.buffers[source]",
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

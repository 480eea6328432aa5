"""Window graphs without masks beside those with them, and wrong ones, as runtimes have read the right ones."""

import numpy as np

from standins.tree_windows import TreeRun

SCHEDULE = (([0, 0, 0], 7), ([7, 3, 5], 4), ([10, 2, 8], 1), ([4, 1, 9], 6), ([12, 9, 0], 8), ([19, 4, 11], 1))
"""Starts of three rows and the width: a prompt, ragged windows and single slots, some of them before what was written."""


def upper_left(model):
    """Let slot w of every window see the first w + 1 columns, in place: causal without a length for each row."""
    for node in model.graph.node:
        if node.op_type == "Attention":
            del node.input[3:]


def furthest_of_writings(one, other, vocab_size):
    """The largest difference of a finite logit of two writings of a window graph over `SCHEDULE`; the others are equal."""
    random, runs, worst = np.random.default_rng(0), [TreeRun(model, 3) for model in (one, other)], 0.0
    for starts, width in SCHEDULE:
        tokens = random.integers(0, vocab_size, (3, width))
        expected, found = (run(tokens, starts) for run in runs)
        finite = np.isfinite(expected)
        np.testing.assert_array_equal(found[~finite], expected[~finite])
        worst = max(worst, float(np.abs(found[finite] - expected[finite]).max()))
    return worst

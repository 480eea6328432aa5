"""Bugs of the fit of corrections: which laws make a pair, what the fit is held to, and what is kept apart from it."""

from planting import Bug

__all__ = ["BUGS"]

PAIRS, FIT, WHOLE = ("test_pairs",), ("test_low_rank_fit",), ("test_fit_corrections",)

BUGS = (
    Bug(
        "pair-the-other-way-round",
        "pairs:Recording._compare",
        "(_neighbours(one.context, slot + 1, self._lags) for one in (before, now))",
        "(_neighbours(one.context, slot + 1, self._lags) for one in (now, before))",
        "The neighbours of the two laws of a pair change places.",
        PAIRS,
    ),
    Bug(
        "pair-one-position-off",
        "pairs:_neighbours",
        "[int(context[position - lag]) if position >= lag else -1 for lag in lags]",
        "[int(context[position - lag - 1]) if position > lag else -1 for lag in lags]",
        "Neighbours are those of the position before.",
        PAIRS,
    ),
    Bug(
        "all-pairs-aside-kept",
        "pairs:Recording.pairs",
        "generator.random() < _KEPT_ASIDE",
        "generator.random() < 1",
        "Pairs off the committed path are all kept.",
        PAIRS,
    ),
    Bug(
        "pairs-of-the-sequence-before",
        "pairs:Recording.begin",
        "self._forget()",
        "self._last = None",
        "A sequence's pairs are handed over with the next one's.",
        PAIRS,
    ),
    Bug(
        "sources-of-old-neighbours-added",
        "low_rank:_gradient",
        "np.subtract.at(sources[k], batch.old[:, k], at_sources)",
        "np.add.at(sources[k], batch.old[:, k], at_sources)",
        "The gradient of old neighbours has the wrong sign.",
        FIT,
    ),
    Bug(
        "fitted-to-samples-kept-apart",
        "low_rank:split",
        "(parts[:-apart], parts[-apart:])",
        "(parts, parts[-apart:])",
        "The samples that choose the table are also fitted to.",
        FIT,
    ),
    Bug(
        "last-parameters-taken",
        "low_rank:fit_low_rank",
        "getattr(found, loss) < getattr(off, loss)",
        "True",
        "The last table is taken, not the one that did best on samples kept apart.",
        FIT,
    ),
    Bug(
        "temperature-of-the-fit-left-out",
        "low_rank:_gradient",
        "np.exp(log_laws(logits / temperature))",
        "np.exp(log_laws(logits))",
        "Predicted laws are compared at temperature 1, whatever the samples were drawn at.",
        FIT,
    ),
    Bug(
        "table-shifted-to-token-zero",
        "low_rank:_table",
        "slice(first, first + size)",
        "slice(0, size)",
        "The table's columns are those of the first tokens, not of those that can be generated.",
        FIT,
    ),
    Bug(
        "fit-goes-on-from-another",
        "work:WorkFolder.opened",
        "told not in (None, identity)",
        "False",
        "A working folder of another fit is taken for this one's.",
        WHOLE,
    ),
    Bug(
        "samples-share-noise",
        "fit:_Fitting._decode",
        "(stage << 32) + index",
        "index",
        "Samples of different stages draw with the same noise, so that those kept apart are those that were fitted to.",
        WHOLE,
    ),
    Bug(
        "minibatch-of-one-block",
        "low_rank:_Fit._gradient",
        "value += more",
        "pass",
        "Of a large vocabulary only the first pairs of a minibatch are fitted to.",
        FIT,
    ),
    Bug(
        "pairs-without-end",
        "pairs:Recording._compare",
        "len(self._candidates) > self._most",
        "False",
        "A large vocabulary's pairs fill the memory.",
        WHOLE,
    ),
    Bug(
        "two-runs-in-one-folder",
        "work:WorkFolder.opened",
        "not alone",
        "False",
        "Two runs decode the same samples, and the first that is done takes the other's away.",
        WHOLE,
    ),
)

"""Correctors that learn while they are used, and the averages that they learn."""

from __future__ import annotations

from planting import Bug

__all__ = ["BUGS"]

ROWS = ("test_row_correctors",)
AVERAGES = ("test_plain_corrections",)

BUGS = (
    Bug(
        "drafts-are-learned-of",
        "RowCorrectors.commit",
        "enumerate(made if self._learns else ())",
        "enumerate([own._replace(sites=slice(own.sites.start, own.sites.stop + 1)) for own in made])",
        "The first redraft behind the last committed position is learned of.",
        ROWS,
    ),
    Bug(
        "last-committed-position-is-not-learned-of",
        "RowCorrectors.commit",
        "enumerate(made if self._learns else ())",
        "enumerate([own._replace(sites=slice(own.sites.start, own.sites.stop - 1)) for own in made])",
        "Of what a step commits the last position is left out.",
        ROWS,
    ),
    Bug(
        "neighbours-counted-from-the-slot",
        "row_correctors:_neighbours",
        "positions[:, None] - np.array(lags)",
        "positions[:, None] - 1 - np.array(lags)",
        "What is learned is filed under the token one further to the left.",
        ROWS,
    ),
    Bug(
        "sequences-share-what-they-learn",
        "RowCorrectors.__init__",
        'self._learns and method.acceptance != "match"',
        "False",
        "With rejection, too, all rows learn together: tokens depend on the batch and on earlier requests.",
        ROWS,
    ),
    Bug(
        "next-sequence-knows-the-last-one",
        "RowCorrectors.begin",
        "self._own.pop(row, None)",
        "",
        "A sequence begins with what the one before it in its row has learned.",
        ROWS,
    ),
    Bug(
        "round-done-again-is-learned-first",
        "RowCorrectors.of",
        "held.round < window.round[b]",
        "held.round <= window.round[b]",
        "A round whose outcome was lost is learned of when it is done again, and once more afterwards.",
        ROWS,
    ),
    Bug(
        "learned-at-every-try",
        "RowCorrectors._learn",
        "del self._committed[row]",
        "",
        "A step that raises and is tried again learns of the round before twice.",
        ROWS,
    ),
    Bug(
        "forgotten-before-it-is-learned",
        "RowCorrectors._learn",
        "learn(corrector, held.logits, held.neighbours)\ndel self._committed[row]",
        "del self._committed[row]\nlearn(corrector, held.logits, held.neighbours)",
        "What a corrector could not learn, because it was interrupted, is never told again.",
        ROWS,
    ),
    Bug(
        "logits-put-aside-without-a-copy",
        "RowCorrectors.commit",
        "np.array(to_host(at_least_float32(committed.of(logits, b))))",
        "to_host(at_least_float32(committed.of(logits, b)))",
        "The model's memory is kept, in which the next round's logits will stand.",
        ROWS,
    ),
    Bug(
        "interrupted-averages-are-half-learned",
        "RunningAverages.learn",
        "averages = dict(before.averages)",
        "averages = before.averages",
        "Learning changes what is known on the way, so that an interruption leaves a half of it.",
        AVERAGES,
    ),
    Bug(
        "average-of-the-other-neighbour",
        "RunningAverages._mixed",
        "self._learned.averages.get((neighbour, token))",
        "self._learned.averages.get((0, token))",
        "The averages of the first neighbour serve for all.",
        AVERAGES,
    ),
    Bug(
        "unigram-mixed-in-once",
        "RunningAverages.correct",
        "self.shrinkage * self._learned.unigram",
        "self._learned.unigram",
        "One count of the average over all positions is mixed into each average, whatever was asked for.",
        AVERAGES,
    ),
    Bug(
        "tokens-seen-first-are-kept",
        "RunningAverages.learn",
        "known = averages.pop(key, None)",
        "known = averages.get(key)",
        "When memory is full, a token goes that was seen a moment ago, because it was first seen long ago.",
        AVERAGES,
    ),
    Bug(
        "kept-averages-without-weights",
        "RunningAverages.kept",
        "self.weights[k] * np.log(self._mixed(k, token, prior) / self._learned.unigram)",
        "np.log(self._mixed(k, token, prior) / self._learned.unigram)",
        "A table corrects with full weight where the averages it was made of correct with a half.",
        AVERAGES,
    ),
)

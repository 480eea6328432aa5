"""Bugs of logits processors, of the oracle that knows them, and of the checks for other people's."""

from __future__ import annotations

from planting import Bug

__all__ = ["BUGS"]

DEFINITIONS = ("test_processor_definitions",)
DRAFTS = ("test_processors_under_drafts",)
ADAPTER = ("test_transformers_form",)
CHECKS = ("test_processor_checks",)

BUGS = (
    Bug(
        "penalty-counts-right-of-the-slot",
        "counts_before",
        "np.maximum(positions[order], first)",
        "np.full_like(positions, len(tokens))",
        "Drafts to the right of a slot are counted as tokens that came before it.",
        DEFINITIONS,
    ),
    Bug(
        "penalty-counts-the-draft-of-the-slot",
        "counts_before",
        "np.searchsorted(ends, np.arange(first, ends[-1]), side='right')",
        "np.searchsorted(ends, np.arange(first, ends[-1]), side='left')",
        "The draft at a slot's own position is counted as a token that came before it.",
        DEFINITIONS,
    ),
    Bug(
        "all-slots-penalised-alike",
        "counts_before",
        "np.cumsum(counts, axis=0)",
        "counts.sum(axis=0)",
        "Every slot of a window has the counts of the last one.",
        DEFINITIONS,
    ),
    Bug(
        "counts-go-to-slots-in-order",
        "counts_before",
        "counts[order] = np.cumsum(counts, axis=0)",
        "counts[:] = np.cumsum(counts, axis=0)",
        "Slots that are asked for from right to left have each other's counts.",
        DEFINITIONS,
    ),
    Bug(
        "processor-forgets-where-the-prompt-ends",
        "Rule.begin",
        "partial(self._processed, len(prompt))",
        "partial(self._processed, 0)",
        "Penalties of generated tokens count the prompt, and indices are positions.",
        DEFINITIONS,
    ),
    Bug(
        "repetition-rewarded-below-zero",
        "RepetitionPenalty._changed",
        "where(logits > 0, logits / penalty, logits * penalty)",
        "logits / penalty",
        "A repeated token with a negative logit becomes more likely.",
        DEFINITIONS,
    ),
    Bug(
        "presence-penalty-for-every-time",
        "PresencePenalty._changed",
        "namespace(logits).astype(counts > 0, logits.dtype)",
        "counts",
        "The presence penalty grows with the number of times that a token came before.",
        DEFINITIONS,
    ),
    Bug(
        "ngram-that-the-slot-would-end",
        "NoRepeatNGram._processed",
        "lasts < ends[:, None]",
        "lasts <= ends[:, None]",
        "A run that ends with the slot's own draft counts as one that came before.",
        DEFINITIONS,
    ),
    Bug(
        "ngram-of-one-token-more",
        "NoRepeatNGram._processed",
        "self.ngram_size - 1",
        "self.ngram_size",
        "Runs of the given length may come twice, only longer ones may not.",
        DEFINITIONS,
    ),
    Bug(
        "word-begins-in-the-prompt",
        "_may_complete",
        "positions - before >= first",
        "positions >= before",
        "A word whose beginning is the prompt's end is forbidden where only generated tokens should count.",
        DEFINITIONS,
    ),
    Bug(
        "one-token-too-late-to-stop",
        "MinNewTokens._processed",
        "positions - end < self.min_new_tokens",
        "positions - end <= self.min_new_tokens",
        "One token more than asked for comes before a stop token.",
        DEFINITIONS,
    ),
    Bug(
        "forced-token-with-its-own-logit",
        "ForcedTokens._processed",
        "xp.zeros_like(logits)",
        "logits",
        "A forced token that the model forbids is forbidden, and nothing is left.",
        DEFINITIONS,
    ),
    Bug(
        "adapter-shows-later-drafts",
        "TransformersProcessor.__call__",
        "tokens[:end]",
        "tokens[: len(tokens)]",
        "A processor of transformers' form takes drafts to the right of a slot for its context.",
        DRAFTS,
    ),
    Bug(
        "adapter-lends-its-logits",
        "TransformersProcessor._slot",
        "np.array(to_host(logits))",
        "to_host(logits)",
        "A processor of transformers' form that writes in place changes the model's logits, or cannot write.",
        ADAPTER,
    ),
    Bug(
        "oracle-forgets-the-prompt",
        "sampled_law",
        "sampling.begin(np.asarray(prompt, np.int64))",
        "sampling.begin(np.zeros(0, np.int64))",
        "A processor is proved against a law in which the prompt was generated.",
        DRAFTS,
    ),
    Bug(
        "state-that-is-full-goes-unseen",
        "call_order",
        "_compare(record, before, np.concatenate(walk.laws[: len(before)]), walk.positions)",
        "",
        "A processor that has remembered every token by the time it is compared passes for one without a state.",
        CHECKS,
    ),
    Bug(
        "kept-results-compared-with-themselves",
        "result_kept",
        "np.array(to_host(result))",
        "to_host(result)",
        "A processor that returns the same memory every time passes.",
        CHECKS,
    ),
    Bug(
        "only-contexts-that-end-at-the-slot",
        "processor_checks:causal",
        "np.append(walk.tokens[:position], tail)",
        "walk.tokens[:position]",
        "A processor is never shown a draft behind the slot, and looking at one goes unseen.",
        CHECKS,
    ),
)

"""Drafting rules, guidance, and the ONNX Runtime backend."""

from __future__ import annotations

from planting import Bug

__all__ = ["BUGS"]

DRAFTING = "coupled_sampling/drafting.py"
GUIDANCE = "coupled_sampling/guidance.py"
ORT = "backends/ort.py"
CHECKS = "coupled_sampling/bounds.py"
RULES = ("tests/test_drafting.py",)
GUIDED = ("tests/test_guidance.py",)
RUNTIME = ("tests/test_ort.py",)

BUGS = (
    Bug(
        "copy-one-too-far",
        DRAFTING,
        "source = position - self.lag\n",
        "source = position - self.lag - 1\n",
        "copy:LAG copies the token LAG + 1 positions before.",
        RULES,
    ),
    Bug(
        "copy-from-the-prompt",
        DRAFTING,
        "source if source >= context.prompt_length else position - 1",
        "source if source >= first else position - 1",
        "copy:LAG copies tokens of the prompt, which are not part of the picture.",
        RULES,
    ),
    Bug(
        "ngram-finds-itself",
        DRAFTING,
        "sliding_window_view(tokens[:-1], size)",
        "sliding_window_view(tokens, size)",
        "The n-gram lookup finds the very tokens it looks for, and proposes what is yet to come.",
        RULES,
    ),
    Bug(
        "ngram-takes-the-oldest",
        DRAFTING,
        "(int(found[-1]) + size)",
        "(int(found[0]) + size)",
        "The n-gram lookup continues the first occurrence instead of the most recent.",
        RULES,
    ),
    Bug(
        "ngram-shortest-match-first",
        DRAFTING,
        "for size in range(min(self.size, len(tokens) - 1), 0, -1):",
        "for size in range(1, min(self.size, len(tokens) - 1) + 1):",
        "The n-gram lookup is content with the last token alone.",
        RULES,
    ),
    Bug(
        "random-guesses-from-zero",
        DRAFTING,
        "proposals.append(Proposal(self.first + np.asarray(drawn[0], np.int64)))",
        "proposals.append(Proposal(np.asarray(drawn[0], np.int64)))",
        "random:FIRST:COUNT guesses outside of its range.",
        RULES,
    ),
    Bug(
        "draft-model-not-rolled-back",
        DRAFTING,
        "min(_common_prefix(self._held.get(row), tokens), len(tokens) - 1)",
        "min(len(self._held.get(row, ())), len(tokens) - 1)",
        "The draft model keeps the state of drafts that were refused.",
        RULES,
    ),
    Bug(
        "draft-model-keeps-a-view",
        DRAFTING,
        "self._held[row] = wanted[row][: held[row]].copy()",
        "self._held[row] = wanted[row][: held[row]]",
        "The draft model takes tokens that changed under its hands for those it has forwarded.",
        RULES,
    ),
    Bug(
        "draft-model-ignores-the-shared-noise",
        DRAFTING,
        "            if shared:\n",
        "            if not shared and False:\n",
        "Under match acceptance a draft model that equals the target is no longer always right.",
        RULES,
    ),
    Bug(
        "draft-model-repeats-a-uniform",
        DRAFTING,
        "sites = _sites(asking, offset, 1)",
        "sites = _sites(asking, 0, 1)",
        "All guesses of one proposal use the same uniform.",
        ("tests/test_noise.py",),
    ),
    Bug(
        "draft-laws-of-the-first-row",
        DRAFTING,
        "laws[context.row].append(law[i, 0, ...])",
        "laws[context.row].append(law[0, 0, ...])",
        "All rows of a batch carry the draft law of the first.",
        RULES,
    ),
    Bug(
        "guidance-weights-swapped",
        GUIDANCE,
        "(1 - self.scale) * unconditional + self.scale * finite",
        "self.scale * unconditional + (1 - self.scale) * finite",
        "The scale weights the unconditional logits.",
        GUIDED,
    ),
    Bug(
        "guided-rows-stacked",
        GUIDANCE,
        "both, starts, lag = np.repeat(tokens, 2, axis=0), np.repeat(start, 2), np.zeros(rows, np.int64)",
        "both, starts, lag = np.tile(tokens, (2, 1)), np.tile(start, 2), np.zeros(rows, np.int64)",
        "Conditional rows stand one after the other instead of beside their unconditional rows.",
        GUIDED,
    ),
    Bug(
        "unconditional-prompt-not-forwarded",
        GUIDANCE,
        "            for first in range(0, max(0, pair.shift), width) if not pair.primed else ():\n",
        "            for first in ():\n",
        "The beginning of a longer unconditional prompt never reaches the model.",
        GUIDED,
    ),
    Bug(
        "other-rows-disturbed-by-priming",
        GUIDANCE,
        "tokens, begins = paired.tokens.copy(), paired.start.copy()",
        "tokens, begins = 0 * paired.tokens, 0 * paired.start",
        "While an unconditional prompt is forwarded, the state of the other rows is overwritten.",
        GUIDED,
    ),
    Bug(
        "unconditional-slots-not-aligned",
        GUIDANCE,
        "        if lag:\n",
        "        if lag and False:\n",
        "Where the unconditional prompt is shorter, its logits are combined with those of other positions.",
        GUIDED,
    ),
    Bug(
        "forbidden-tokens-guided",
        GUIDANCE,
        "return xp.where(forbidden, conditional, (1 - self.scale) * unconditional + self.scale * finite)",
        "return (1 - self.scale) * unconditional + self.scale * finite",
        "A token that the conditional row forbids gets a finite logit.",
        GUIDED,
    ),
    Bug(
        "kv-length-one-too-short",
        ORT,
        "needed = int(start.max()) + width",
        "needed = int(start.max()) + width - 1",
        "Where a window ends just past a multiple of the step, its last slot is not attended to.",
        RUNTIME,
    ),
    Bug(
        "kv-length-of-the-first-row",
        ORT,
        "needed = int(start.max()) + width",
        "needed = int(start[0]) + width",
        "Rows that are further on than the first lose a part of their context.",
        RUNTIME,
    ),
    Bug(
        "first-write-wins",
        ORT,
        "        self._session.run_with_iobinding(self._binding(rows, width))\n",
        """\
        held = [cache.copy() for _, cache in self._caches.values()]
        self._session.run_with_iobinding(self._binding(rows, width))
        for (_, cache), old in zip(self._caches.values(), held, strict=True):
            np.copyto(cache, old, where=old != 0)
""",
        "State that was written once is not replaced, so that a refused draft stays in the cache.",
        RUNTIME,
    ),
    Bug(
        "idle-rows-run-too",
        ORT,
        "self._session.run_with_iobinding(self._binding(rows, width))",
        "self._session.run_with_iobinding(self._binding(self.batch_size, width))",
        "Rows beyond the call's are forwarded with whatever tokens lie in the buffer.",
        RUNTIME,
    ),
    Bug(
        "stale-starts",
        ORT,
        "        self._start[:rows] = start\n",
        "        self._start[:1] = start[:1]\n",
        "Only the first row's start reaches the graph.",
        RUNTIME,
    ),
    Bug(
        "window-past-the-memory",
        "coupled_sampling/bounds.py",
        "last = provider.max_length - width\n",
        "last = provider.max_length - width + 1\n",
        "A window that reaches one position past the cache is not refused.",
        RUNTIME,
    ),
)

"""Drafting rules, guidance, and the ONNX Runtime backend."""

from __future__ import annotations

from planting import Bug

__all__ = ["BUGS"]

RULES = ("test_drafting",)
ASKED = ("test_committed_laws",)
GUIDED = ("test_guidance",)
RUNTIME = ("test_ort",)

BUGS = (
    Bug(
        "copy-one-too-far",
        "Copy._propose",
        "position - self.lag",
        "position - self.lag - 1",
        "copy:LAG copies the token LAG + 1 positions before.",
        RULES,
    ),
    Bug(
        "copy-from-the-prompt",
        "Copy._propose",
        "source >= context.prompt_length",
        "source >= first",
        "copy:LAG copies tokens of the prompt, which are not part of the picture.",
        RULES,
    ),
    Bug(
        "copy-begins-with-the-prompt",
        "drafting:_before",
        "token if position > prompt_length or fill is None else fill",
        "token",
        "Where nothing was generated yet a copy repeats the last token of the prompt, though it has a fill token.",
        RULES,
    ),
    Bug(
        "copy-goes-on-filling",
        "drafting:_before",
        "position > prompt_length",
        "position > prompt_length + 1",
        "A copy fills behind the first generated token instead of repeating it.",
        RULES,
    ),
    Bug(
        "copy-never-waits",
        "Copy.waits",
        "len(tokens) <= prompt_length",
        "len(tokens) < prompt_length",
        "A copy without a fill token guesses the prompt's last token, which cannot come, for a whole window.",
        RULES,
    ),
    Bug(
        "resumed-tokens-are-the-prompts",
        "Assembly._guesses",
        "row.prompt_length",
        "row.given",
        "A copy waits for a first token though a resumed request brought some along.",
        RULES,
    ),
    Bug(
        "nobody-waits",
        "Assembly._guesses",
        "not self._waiting.waits(read_only(row.tokens[: row.committed + row.drafted]), row.prompt_length)",
        "True",
        "A rule that has no guess is asked for some all the same.",
        RULES,
    ),
    Bug(
        "ngram-guesses-what-cannot-come",
        "NGram._guesses",
        "not self._can_stand(found)",
        "False",
        "The n-gram lookup proposes tokens of a picture's prompt, which the model cannot generate.",
        RULES,
    ),
    Bug(
        "fill-token-forgotten",
        "_suited",
        "replace(rule, fill=fill)",
        "rule",
        "The fill token of a bundle reaches no copy.",
        ("test_bundle_settings",),
    ),
    Bug(
        "fill-token-cannot-come-first",
        "manifest:_check_fill",
        "0 <= token - first.first < first.count",
        "True",
        "A manifest whose fill token the layout forbids at the first position is taken.",
        ("test_bundle",),
    ),
    Bug(
        "fill-token-by-the-last-prompt",
        "find_fill_token",
        "np.mean(laws, axis=0)",
        "laws[-1]",
        "The fill token is the likeliest after one of the prompts only.",
        ("test_fill_token",),
    ),
    Bug(
        "fill-token-without-the-layout",
        "_first_law",
        "(Layout(manifest.layout).processor(len(prompt)),) if manifest.layout else ()",
        "()",
        "The fill token is looked for among tokens that the layout forbids at the first position.",
        ("test_fill_token",),
    ),
    Bug(
        "committed-laws-in-memory-that-is-used-again",
        "committed_laws",
        "own.copy() if isinstance(own, np.ndarray) else own",
        "own",
        "Laws of committed tokens are handed to drafting rules in memory that a later step writes to.",
        ASKED,
    ),
    Bug(
        "committed-laws-one-site-late",
        "committed_laws",
        "committed[b].of(laws, b)",
        "laws[b, committed[b].sites.start + 1 : committed[b].sites.stop + 1, ...]",
        "Drafting rules get the laws of the sites after those that were committed, the last of them a draft's.",
        ASKED,
    ),
    Bug(
        "oldest-laws-kept",
        "Row._keep",
        "run[max(0, run.shape[0] - self.laws_back) :, ...]",
        "run[: self.laws_back, ...]",
        "Drafting rules get the laws of the first committed tokens for ever.",
        ASKED,
    ),
    Bug(
        "laws-end-with-the-drafts",
        "Assembly._propose",
        "DraftContext(b, read_only(row.tokens[: row.committed + row.drafted]), row.prompt_length, fresh[b], row.info, row.round, "
        "row.laws, row.committed)",
        "DraftContext(b, read_only(row.tokens[: row.committed + row.drafted]), row.prompt_length, fresh[b], row.info, row.round, "
        "row.laws, row.committed + row.drafted)",
        "The laws of committed tokens are taken for those of the drafts behind them.",
        ASKED,
    ),
    Bug(
        "laws-asked-of-any-step",
        "Preparation.rows",
        "self.laws_back and not (isinstance(self.step, GivesLaws) and self.step.gives_laws)",
        "False",
        "A rule that asks for laws is decoded with a step that gives none, and never gets any.",
        ASKED,
    ),
    Bug(
        "ngram-finds-itself",
        "NGram._lag",
        "tokens[:-1]",
        "tokens",
        "The n-gram lookup finds the very tokens it looks for, and proposes what is yet to come.",
        RULES,
    ),
    Bug(
        "ngram-takes-the-oldest",
        "NGram._lag",
        "found[-1]",
        "found[0]",
        "The n-gram lookup continues the first occurrence instead of the most recent.",
        RULES,
    ),
    Bug(
        "ngram-shortest-match-first",
        "NGram._lag",
        "range(min(self.size, len(tokens) - 1), 0, -1)",
        "range(1, min(self.size, len(tokens) - 1) + 1)",
        "The n-gram lookup is content with the last token alone.",
        RULES,
    ),
    Bug(
        "random-guesses-from-zero",
        "Random.propose",
        "self.first + np.asarray(drawn[0], np.int64)",
        "np.asarray(drawn[0], np.int64)",
        "random:FIRST:COUNT guesses outside of its range.",
        RULES,
    ),
    Bug(
        "draft-model-not-rolled-back",
        "DraftModel._last_logits",
        "common_length(self._held.get(row, tokens[:0]), tokens)",
        "len(self._held.get(row, ()))",
        "The draft model keeps the state of drafts that were refused.",
        RULES,
    ),
    Bug(
        "draft-model-keeps-a-view",
        "DraftModel._last_logits",
        "wanted[row][: held[row]].copy()",
        "wanted[row][: held[row]]",
        "The draft model takes tokens that changed under its hands for those it has forwarded.",
        RULES,
    ),
    Bug(
        "draft-model-ignores-the-shared-noise",
        "DraftModel.propose",
        "shared",
        "not shared and False",
        "Under match acceptance a draft model that equals the target is no longer always right.",
        RULES,
    ),
    Bug(
        "draft-model-repeats-a-uniform",
        "DraftModel.propose",
        "proposal_sites(asking, offset, 1)",
        "proposal_sites(asking, 0, 1)",
        "All guesses of one proposal use the same uniform.",
        ("test_noise",),
    ),
    Bug(
        "draft-laws-of-the-first-row",
        "DraftModel.propose",
        "target.laws[i, 0, ...]",
        "target.laws[0, 0, ...]",
        "All rows of a batch carry the draft law of the first.",
        ("test_drafting",),
    ),
    Bug(
        "guidance-weights-swapped",
        "guidance:_mixed",
        "(1 - scale) * unconditional + scale * finite",
        "scale * unconditional + (1 - scale) * finite",
        "The scale weights the unconditional logits.",
        GUIDED,
    ),
    Bug(
        "guided-rows-stacked",
        "GuidedRows.paired",
        "both, starts, lag = np.repeat(tokens, 2, axis=0), np.repeat(start, 2), np.zeros(rows, np.int64)",
        "both, starts, lag = np.tile(tokens, (2, 1)), np.tile(start, 2), np.zeros(rows, np.int64)",
        "Conditional rows stand one after the other instead of beside their unconditional rows.",
        GUIDED,
    ),
    Bug(
        "unconditional-prompt-not-forwarded",
        "GuidedRows._unopened",
        "range(0, max(0, pair.shift), width) if not pair.primed else ()",
        "()",
        "The beginning of a longer unconditional prompt never reaches the model.",
        GUIDED,
    ),
    Bug(
        "other-rows-disturbed-by-priming",
        "GuidedRows.openings",
        "tokens, begins = paired.tokens.copy(), paired.start.copy()",
        "tokens, begins = 0 * paired.tokens, 0 * paired.start",
        "While an unconditional prompt is forwarded, the state of the other rows is overwritten.",
        GUIDED,
    ),
    Bug(
        "unconditional-slots-not-aligned",
        "_guided",
        "_aligned(conditional, logits[2 * b + 1, ...], lag)",
        "logits[2 * b + 1, ...]",
        "Where the unconditional prompt is shorter, its logits are combined with those of other positions.",
        GUIDED,
    ),
    Bug(
        "forbidden-tokens-guided",
        "guidance:_mixed",
        "xp.where(forbidden, conditional, (1 - scale) * unconditional + scale * finite)",
        "(1 - scale) * unconditional + scale * finite",
        "A token that the conditional row forbids gets a finite logit.",
        GUIDED,
    ),
    Bug(
        "kv-length-one-too-short",
        "OrtProvider._forward",
        "int(start.max()) + width",
        "int(start.max()) + width - 1",
        "Where a window ends just past a multiple of the step, its last slot is not attended to.",
        RUNTIME,
    ),
    Bug(
        "kv-length-of-the-first-row",
        "OrtProvider._forward",
        "start.max()",
        "start[0]",
        "Rows that are further on than the first lose a part of their context.",
        RUNTIME,
    ),
    Bug(
        "first-write-wins",
        "OrtProvider._forward",
        "binding.run()",
        """\
held = [cache.memory.copy() for cache in self._caches.kept.values()]
binding.run()
for cache, old in zip(self._caches.kept.values(), held, strict=True):
    np.copyto(cache.memory, old, where=old != 0)
""",
        "State that was written once is not replaced, so that a refused draft stays in the cache.",
        RUNTIME,
    ),
    Bug(
        "idle-rows-run-too",
        "OrtProvider._forward",
        "rows = range(count)",
        """\
idle = self.batch_size - len(tokens)
tokens = np.pad(tokens, ((0, idle), (0, 0)))
start = np.pad(start, (0, idle))
count = self.batch_size
rows = range(count)
""",
        "Rows beyond the call's are forwarded, too, and lose their state.",
        RUNTIME,
    ),
    Bug(
        "stale-starts",
        "OrtProvider._forward",
        'binding.feed("start", start)',
        'binding.feed("start", np.pad(start[:1], (0, count - 1)))',
        "Only the first row's start reaches the graph.",
        RUNTIME,
    ),
    Bug(
        "window-past-the-memory",
        "check_window",
        "provider.max_length - width",
        "provider.max_length - width + 1",
        "A window that reaches one position past the cache is not refused.",
        RUNTIME,
    ),
)

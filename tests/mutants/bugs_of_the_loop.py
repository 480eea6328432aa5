"""Windows, commits, stops, rows, requests, and what is reported about them."""

from __future__ import annotations

from planting import Bug

__all__ = ["BUGS"]

DECODING = "coupled_sampling/decoding.py"
GENERATION = "coupled_sampling/generation.py"
TRACE = "coupled_sampling/trace.py"
LOOP = ("tests/test_decoding.py",)
MATCH = ("tests/test_match.py",)
BOOKKEEPING = ("tests/test_bookkeeping.py",)

BUGS = (
    Bug(
        "window-one-too-short",
        DECODING,
        "return min(self.cached + window, len(self.tokens) - 1) if drafts else known",
        "return min(self.cached + max(window - 1, 1), len(self.tokens) - 1) if drafts else known",
        "Windows hold one slot less than was asked for.",
        BOOKKEEPING,
    ),
    Bug(
        "last-position-forwarded",
        DECODING,
        "return min(self.cached + window, len(self.tokens) - 1) if drafts else known",
        "return min(self.cached + window, len(self.tokens)) if drafts else known",
        "The window reaches a position whose logits nobody needs, and which the model may not hold.",
        LOOP,
    ),
    Bug(
        "windows-padded-past-the-end",
        DECODING,
        "        start = max(0, end - width)\n",
        "        start = self.cached\n",
        "A short row's window is padded to the right, past the end of the model's memory.",
        LOOP,
    ),
    Bug(
        "tokens-on-the-wrong-side-of-the-padding",
        DECODING,
        "tokens[b, : ends[b] - first] = contexts[b][first:]",
        "tokens[b, width - (ends[b] - first) :] = contexts[b][first:]",
        "A short row's tokens stand at other positions than its start says.",
        MATCH,
    ),
    Bug(
        "corrected-token-taken-for-cached",
        DECODING,
        "row.cached = row.committed - 1\n",
        "row.cached = row.committed\n",
        "The model is not rolled back over the refused draft, whose state it keeps.",
        MATCH,
    ),
    Bug(
        "cached-one-too-low",
        DECODING,
        "row.cached = row.committed - 1\n",
        "row.cached = max(row.committed - 2, 0)\n",
        "Every window spends a slot on a token that the model has already.",
        ("tests/test_drafting.py",),
    ),
    Bug(
        "last-redraft-forgotten",
        DECODING,
        "row.drafted = end + 1 - row.committed if recycles else 0",
        "row.drafted = max(end - row.committed, 0) if recycles else 0",
        "The redraft of the last site is thrown away and guessed afresh.",
        BOOKKEEPING,
    ),
    Bug(
        "round-not-advanced-by-a-prompt",
        DECODING,
        """\
    row.round += 1
    row.cached = start + known
    if not window.draws[b]:
        row.trace.committed_per_step.append(0)
        return None
""",
        """\
    row.cached = start + known
    if not window.draws[b]:
        row.trace.committed_per_step.append(0)
        return None
    row.round += 1
""",
        "The round is no longer the number of the sequence's forward passes.",
        BOOKKEEPING,
    ),
    Bug(
        "round-not-advanced",
        DECODING,
        "    row.round += 1\n",
        "",
        "All rounds of a sequence share their uniforms.",
        ("tests/test_noise.py",),
    ),
    Bug(
        "prompt-steps-not-counted",
        DECODING,
        "        row.trace.committed_per_step.append(0)\n",
        "",
        "Forward passes over the prompt are missing from the trace.",
        LOOP,
    ),
    Bug(
        "trace-counts-discarded-tokens",
        DECODING,
        "row.trace.committed_per_step.append(row.committed - first)",
        "row.trace.committed_per_step.append(committed)",
        "Tokens after a stop token are counted although they were discarded.",
        BOOKKEEPING,
    ),
    Bug(
        "stop-seen-only-at-the-end-of-a-run",
        DECODING,
        "    if stopped is not None:\n        row.committed = first + stopped + 1\n",
        "    stopped = None if stopped != row.committed - first - 1 else stopped\n",
        "A stop token inside an accepted run is passed over.",
        LOOP,
    ),
    Bug(
        "tokens-after-a-stop-kept",
        DECODING,
        "        row.committed = first + stopped + 1\n",
        "        row.committed = first + committed\n",
        "What follows a stop token in an accepted run is returned too.",
        LOOP,
    ),
    Bug(
        "last-stop-of-a-run-counts",
        DECODING,
        "return next((i for i, token in enumerate(tokens.tolist()) if token in stop), None)",
        "return max((i for i, token in enumerate(tokens.tolist()) if token in stop), default=None)",
        "Of two stop tokens in one accepted run, the second ends the sequence.",
        BOOKKEEPING,
    ),
    Bug(
        "stop-does-not-finish",
        DECODING,
        "stopped is not None or row.finished()",
        "row.finished()",
        "A sequence goes on after its stop token.",
        LOOP,
    ),
    Bug(
        "stop-in-the-prompt-finishes",
        DECODING,
        "_first_stop(row.tokens[first : row.committed]",
        "_first_stop(row.tokens[first - 1 : row.committed]",
        "The token before a run is searched for stop tokens too, and positions are off by one.",
        BOOKKEEPING,
    ),
    Bug(
        "ended-sequences-not-forgotten",
        DECODING,
        "            self._noise.forget(row.info.seed, row.info.sequence)\n",
        "            pass\n",
        "The noise of every sequence that ever ran stays in memory.",
        LOOP,
    ),
    Bug(
        "drafting-is-not-told-the-prompt",
        DECODING,
        "self._drafting.begin(b, new.tokens[: new.prompt_length])",
        "pass",
        "A draft model under guidance keeps the prompt of the sequence before.",
        ("tests/test_drafting.py", "tests/test_guidance.py"),
    ),
    Bug(
        "seed-of-32-bits",
        DECODING,
        "info = RowInfo(int(request.seed), int",
        "info = RowInfo(int(request.seed) & 0xFFFFFFFF, int",
        "Seeds that differ only above bit 31 give the same tokens.",
        BOOKKEEPING,
    ),
    Bug(
        "sequence-of-32-bits",
        DECODING,
        "int(request.sequence), request.sampling)",
        "int(request.sequence) & 0xFFFFFFFF, request.sampling)",
        "Sequences whose numbers differ only above bit 31 share their noise.",
        BOOKKEEPING,
    ),
    Bug(
        "latest-request-first",
        DECODING,
        "new = self._waiting[0]\n",
        "self._waiting.rotate(1)\n                new = self._waiting[0]\n",
        "Requests are not served in the order of their arrival.",
        BOOKKEEPING,
    ),
    Bug(
        "commits-name-the-row",
        DECODING,
        "return Commit(row.handle, first,",
        "return Commit(b, first,",
        "Tokens of a queued sequence are delivered under the name of another.",
        LOOP,
    ),
    Bug(
        "commit-position-without-the-prompt",
        DECODING,
        "return Commit(row.handle, first,",
        "return Commit(row.handle, first - row.prompt_length,",
        "A commit's position does not count the prompt.",
        LOOP,
    ),
    Bug(
        "leftover-drafts-passed-off-as-fresh",
        DECODING,
        "row.tokens[first : first + context.wanted] = proposal.tokens",
        "row.tokens[first : first + context.wanted] = np.where(left := row.tokens[first : first + context.wanted], "
        "left, proposal.tokens)",
        "Drafts that were dropped come back with the law of the proposal that they replace.",
        ("tests/test_exact.py",),
    ),
    Bug(
        "law-of-the-draft-model-not-carried",
        DECODING,
        "laws[b] = proposal.law",
        "laws[b] = None",
        "A draft of the draft model is tested as if it had been a fixed guess.",
        ("tests/test_drafting.py",),
    ),
    Bug(
        "prompts-share-their-noise",
        GENERATION,
        "seed=seed, sequence=i, stop=stop",
        "seed=seed, sequence=0, stop=stop",
        "Equal prompts in one call get equal tokens.",
        BOOKKEEPING,
    ),
    Bug(
        "results-in-order-of-completion",
        GENERATION,
        "return Generation([np.concatenate(p) for p in parts], traces)",
        "done = sorted(range(len(parts)), key=lambda i: traces[i].nfe)\n"
        "    return Generation([np.concatenate(parts[i]) for i in done], [traces[i] for i in done])",
        "The sequence that finished first is returned first, whatever its prompt's place.",
        LOOP,
    ),
    Bug(
        "speed-over-drawing-steps-only",
        TRACE,
        "return self.tokens / self.nfe if self.nfe else 0.0",
        "return self.tokens / max(1, np.count_nonzero(self.committed_per_step))",
        "Forward passes over the prompt are left out of the tokens per step.",
        BOOKKEEPING,
    ),
    Bug(
        "mean-of-ratios",
        TRACE,
        "tokens_per_step=tokens / max(1, int(nfe.sum())),",
        "tokens_per_step=float(np.mean([trace.tokens_per_step for trace in traces])),",
        "The summary averages the sequences' ratios instead of dividing all tokens by all passes.",
        BOOKKEEPING,
    ),
    Bug(
        "spread-of-the-sample",
        TRACE,
        "nfe.std(ddof=1)",
        "nfe.std(ddof=0)",
        "The standard error is too small for few sequences.",
        BOOKKEEPING,
    ),
)

"""Windows, commits, stops, rows, requests, and what is reported about them."""

from __future__ import annotations

from planting import Bug

__all__ = ["BUGS"]

LOOP = ("test_decoding",)
MATCH = ("test_match",)
BOOKKEEPING = ("test_bookkeeping",)

BUGS = (
    Bug(
        "window-one-too-short",
        "_Row.reach",
        "min(self.cached + window, len(self.tokens) - 1)",
        "min(self.cached + max(window - 1, 1), len(self.tokens) - 1)",
        "Windows hold one slot less than was asked for.",
        BOOKKEEPING,
    ),
    Bug(
        "last-position-forwarded",
        "_Row.reach",
        "len(self.tokens) - 1",
        "len(self.tokens)",
        "The window reaches a position whose logits nobody needs, and which the model may not hold.",
        LOOP,
    ),
    Bug(
        "windows-padded-past-the-end",
        "_Row.slots",
        "max(0, end - width)",
        "self.cached",
        "A short row's window is padded to the right, past the end of the model's memory.",
        LOOP,
    ),
    Bug(
        "tokens-on-the-wrong-side-of-the-padding",
        "Decoder._window",
        "tokens[b, : ends[b] - first] = contexts[b][first:]",
        "tokens[b, width - (ends[b] - first) :] = contexts[b][first:]",
        "A short row's tokens stand at other positions than its start says.",
        MATCH,
    ),
    Bug(
        "corrected-token-taken-for-cached",
        "_apply",
        "row.committed - 1",
        "row.committed",
        "The model is not rolled back over the refused draft, whose state it keeps.",
        MATCH,
    ),
    Bug(
        "cached-one-too-low",
        "_apply",
        "row.committed - 1",
        "max(row.committed - 2, 0)",
        "Every window spends a slot on a token that the model has already.",
        ("test_drafting",),
    ),
    Bug(
        "last-redraft-forgotten",
        "_apply",
        "end + 1 - row.committed",
        "max(end - row.committed, 0)",
        "The redraft of the last site is thrown away and guessed afresh.",
        BOOKKEEPING,
    ),
    Bug(
        "round-not-advanced-by-a-prompt",
        "_apply",
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
        "_apply",
        "row.round += 1",
        "",
        "All rounds of a sequence share their uniforms.",
        ("test_noise",),
    ),
    Bug(
        "prompt-steps-not-counted",
        "_apply",
        "row.trace.committed_per_step.append(0)",
        "",
        "Forward passes over the prompt are missing from the trace.",
        LOOP,
    ),
    Bug(
        "trace-counts-discarded-tokens",
        "_apply",
        "row.committed - first",
        "committed",
        "Tokens after a stop token are counted although they were discarded.",
        BOOKKEEPING,
    ),
    Bug(
        "stop-seen-only-at-the-end-of-a-run",
        "_apply",
        """\
if stopped is not None:
    row.committed = first + stopped + 1
""",
        "stopped = None if stopped != row.committed - first - 1 else stopped",
        "A stop token inside an accepted run is passed over.",
        LOOP,
    ),
    Bug(
        "tokens-after-a-stop-kept",
        "_apply",
        "first + stopped + 1",
        "first + committed",
        "What follows a stop token in an accepted run is returned too.",
        LOOP,
    ),
    Bug(
        "last-stop-of-a-run-counts",
        "_first_stop",
        "next((i for i, token in enumerate(tokens.tolist()) if token in stop), None)",
        "max((i for i, token in enumerate(tokens.tolist()) if token in stop), default=None)",
        "Of two stop tokens in one accepted run, the second ends the sequence.",
        BOOKKEEPING,
    ),
    Bug(
        "stop-does-not-finish",
        "_apply",
        "stopped is not None or row.finished()",
        "row.finished()",
        "A sequence goes on after its stop token.",
        LOOP,
    ),
    Bug(
        "stop-in-the-prompt-finishes",
        "_apply",
        "_first_stop(row.tokens[first : row.committed], row.stop)",
        "_first_stop(row.tokens[first - 1 : row.committed], row.stop)",
        "The token before a run is searched for stop tokens too, and positions are off by one.",
        BOOKKEEPING,
    ),
    Bug(
        "ended-sequences-not-forgotten",
        "Decoder._release",
        "self._noise.forget(row.info.seed, row.info.sequence)",
        "pass",
        "The noise of every sequence that ever ran stays in memory.",
        LOOP,
    ),
    Bug(
        "drafting-is-not-told-the-prompt",
        "Decoder._admit",
        "self._drafting.begin(b, new.tokens[: new.prompt_length])",
        "pass",
        "A draft model under guidance keeps the prompt of the sequence before.",
        ("test_drafting", "test_guidance"),
    ),
    Bug(
        "seed-of-32-bits",
        "Decoder.add",
        "int(request.seed)",
        "int(request.seed) & 0xFFFFFFFF",
        "Seeds that differ only above bit 31 give the same tokens.",
        BOOKKEEPING,
    ),
    Bug(
        "sequence-of-32-bits",
        "Decoder.add",
        "int(request.sequence)",
        "int(request.sequence) & 0xFFFFFFFF",
        "Sequences whose numbers differ only above bit 31 share their noise.",
        BOOKKEEPING,
    ),
    Bug(
        "latest-request-first",
        "Decoder._admit",
        "new = self._waiting[0]",
        """\
self._waiting.rotate(1)
new = self._waiting[0]
""",
        "Requests are not served in the order of their arrival.",
        BOOKKEEPING,
    ),
    Bug(
        "commits-name-the-row",
        "_apply",
        "row.handle",
        "b",
        "Tokens of a queued sequence are delivered under the name of another.",
        LOOP,
    ),
    Bug(
        "commit-position-without-the-prompt",
        "_apply",
        "Commit(row.handle, first, tokens, stopped is not None or row.finished(), row.trace)",
        "Commit(row.handle, first - row.prompt_length, tokens, stopped is not None or row.finished(), row.trace)",
        "A commit's position does not count the prompt.",
        LOOP,
    ),
    Bug(
        "leftover-drafts-passed-off-as-fresh",
        "Decoder._propose",
        "proposal.tokens",
        "np.where(left := row.tokens[first : first + context.wanted], left, proposal.tokens)",
        "Drafts that were dropped come back with the law of the proposal that they replace.",
        ("test_exact",),
    ),
    Bug(
        "law-of-the-draft-model-not-carried",
        "Decoder._propose",
        "proposal.law",
        "None",
        "A draft of the draft model is tested as if it had been a fixed guess.",
        ("test_drafting",),
    ),
    Bug(
        "prompts-share-their-noise",
        "_requests",
        "Request(prompt, lengths[i], seed=seed, sequence=i, stop=stop, sampling=samplings[i])",
        "Request(prompt, lengths[i], seed=seed, sequence=0, stop=stop, sampling=samplings[i])",
        "Equal prompts in one call get equal tokens.",
        BOOKKEEPING,
    ),
    Bug(
        "results-in-order-of-completion",
        "generate",
        "return Generation([np.concatenate(p) for p in parts], traces)",
        """\
done = sorted(range(len(parts)), key=lambda i: traces[i].nfe)
return Generation([np.concatenate(parts[i]) for i in done], [traces[i] for i in done])
""",
        "The sequence that finished first is returned first, whatever its prompt's place.",
        LOOP,
    ),
    Bug(
        "speed-over-drawing-steps-only",
        "Trace.tokens_per_step",
        "self.tokens / self.nfe if self.nfe else 0.0",
        "self.tokens / max(1, np.count_nonzero(self.committed_per_step))",
        "Forward passes over the prompt are left out of the tokens per step.",
        BOOKKEEPING,
    ),
    Bug(
        "mean-of-ratios",
        "summarise",
        "tokens / max(1, int(nfe.sum()))",
        "float(np.mean([trace.tokens_per_step for trace in traces]))",
        "The summary averages the sequences' ratios instead of dividing all tokens by all passes.",
        BOOKKEEPING,
    ),
    Bug(
        "spread-of-the-sample",
        "summarise",
        "nfe.std(ddof=1)",
        "nfe.std(ddof=0)",
        "The standard error is too small for few sequences.",
        BOOKKEEPING,
    ),
)

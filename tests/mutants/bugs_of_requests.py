"""What a request asks and is told; dead states, failures, prompts in chunks and copies, owners."""

from __future__ import annotations

from planting import Bug

__all__ = ["BUGS"]

BUGS = (
    Bug(
        "drafts-behind-a-dead-state-kept",
        "step_rule:decide",
        "xp.where(behind, xp.full_like(tokens, -1), tokens)",
        "tokens",
        "A slot without a law is redrafted from whatever stood in its place.",
        ("test_requests_exactly",),
    ),
    Bug(
        "dead-state-fails-the-row-at-once",
        "step_rule:decide",
        "first_true(valid & ~(accepted & decidable))",
        "xp.where(xp.any(behind, axis=-1), first_true(behind), first_true(valid & ~(accepted & decidable)))",
        "A slot without a law fails its row although a draft before it was refused.",
        ("test_requests_exactly",),
    ),
    Bug(
        "a-dead-slot-is-passed",
        "step_rule:decide",
        "accepted & decidable",
        "accepted",
        "A draft behind which nothing is possible is accepted without being decided.",
        ("test_requests_exactly",),
    ),
    Bug(
        "processor-fault-at-any-slot",
        "_processed_run",
        "(j, error)",
        "(0, error)",
        "A processor that raises behind a refused draft fails its row.",
        ("test_requests_exactly",),
    ),
    Bug(
        "failed-row-stops-nobody-knows",
        "Row.apply",
        "decided[count - 1] < 0",
        "False",
        "A row that failed goes on with a token that is none.",
        ("test_requests",),
    ),
    Bug(
        "error-before-the-stop",
        "Row._commit",
        "keep is not None",
        "keep is not None and error is None",
        "What fails behind a stop token ends the sequence with an error.",
        ("test_requests",),
    ),
    Bug(
        "stop-runs-look-into-the-prompt",
        "Row._stop",
        "max(self.prompt_length, first - len(stop) + 1)",
        "max(0, first - len(stop) + 1)",
        "A run of stop tokens that begins in the prompt ends a sequence.",
        ("test_requests",),
    ),
    Bug(
        "stop-runs-within-one-step",
        "Row._stop",
        "max(self.prompt_length, first - len(stop) + 1)",
        "first",
        "A run of stop tokens that two steps committed is passed over.",
        ("test_requests_exactly",),
    ),
    Bug(
        "stop-rule-told-the-prompt",
        "Row._stop",
        "self.tokens[self.prompt_length : self.committed]",
        "self.tokens[: self.committed]",
        "A stop rule is shown the prompt as if it had been generated.",
        ("test_requests_exactly",),
    ),
    Bug(
        "chunks-count-as-rounds",
        "Row.read",
        "self.cached = end",
        """\
self.cached = end
self.round += 1
""",
        "Tokens at a seed depend on the chunks in which a prompt was read.",
        ("test_prompt_reading",),
    ),
    Bug(
        "first-window-wider-after-a-prefix",
        "Row.reach",
        "self.committed == self.given <= window",
        "False",
        "Tokens at a seed depend on whether a prefix was there.",
        ("test_prompt_reading",),
    ),
    Bug(
        "a-chunk-too-many",
        "Row.unread",
        "self.given - 1 - self.cached",
        "self.given - self.cached",
        "The last token of a prompt is read twice, and its logits are lost.",
        ("test_prompt_reading",),
    ),
    Bug(
        "copied-state-counts-one-too-many",
        "PromptReading.share",
        "row.leader, row.cached = None, length",
        "row.leader, row.cached = None, length + 1",
        "A sample takes for read what was not copied.",
        ("test_requests_exactly", "test_prompt_reading"),
    ),
    Bug(
        "others-chunks-overwrite",
        "PromptReading.holds",
        "row.tokens[: row.cached]",
        "row.tokens[:0]",
        "A row that has no part in a call is forwarded zeros over its state.",
        ("test_requests_exactly", "test_prompt_reading"),
    ),
    Bug(
        "prefixes-of-another-condition",
        "PromptReading.__init__",
        "reuse and self._reader is not None and self._reader.keeps_prefixes",
        "reuse",
        "What a row holds from one picture serves a request of another.",
        ("test_prompt_reading",),
    ),
    Bug(
        "longest-prefix-of-the-last-token-too",
        "PromptReading.enter",
        "row.tokens[: row.given - 1]",
        "row.tokens[: row.given]",
        "A prefix that is the whole prompt leaves no token to forward.",
        ("test_prompt_reading",),
    ),
    Bug(
        "leader-is-waited-for-after-it-left",
        "PromptReading.share",
        "row.leader = None if row is first else first",
        "pass",
        "A sample waits for ever for one that was removed.",
        ("test_prompt_reading",),
    ),
    Bug(
        "all-chunks-before-the-others",
        "PromptReading.read",
        "len(reading) < len(waits)",
        "False",
        "While others decode, all prompts are read at once.",
        ("test_prompt_reading",),
    ),
    Bug(
        "idle-rows-forwarded",
        "HostStep.step",
        "[range(rows)] if self.touches_all else window.busy_parts()",
        "[range(rows)]",
        "Idle rows are forwarded although rows can be told apart.",
        ("test_prompt_reading",),
    ),
    Bug(
        "kept-laws-of-the-wrong-row",
        "HostStep._remember",
        "window.first_row + b",
        "b",
        "Laws are kept under the number within a part.",
        ("test_prompt_reading",),
    ),
    Bug(
        "logprobs-of-the-model-for-the-target",
        "committed_logprobs",
        "_log_of(committed[b].of(laws, b), chosen)",
        "_log_softmax_of(committed[b].of(logits, b), chosen)",
        "Log-probabilities are those before temperature and top-k.",
        ("test_requests",),
    ),
    Bug(
        "proposed-tokens-unchecked",
        "proposals:_checked",
        "(tokens < 0) | (tokens >= vocab_size)",
        "tokens >= vocab_size",
        "A drafting rule may propose -1, which is committed.",
        ("test_requests",),
    ),
    Bug(
        "proposed-laws-unchecked",
        "proposals:_checked",
        'check_laws(**{f"{name}: the law of its guesses": law})',
        "pass",
        "Logits passed as laws bias what is generated.",
        ("test_requests",),
    ),
    Bug(
        "draft-model-dead-state-drawn",
        "DraftModel.propose",
        "usable[i, 0]",
        "True",
        "A draft model without a law drafts from a law that is none.",
        ("test_requests_exactly",),
    ),
    Bug(
        "second-decoder-unnoticed",
        "Ownership.take",
        "lost and in_progress",
        "False",
        "Two decoders on one model mix their states in silence.",
        ("test_owners",),
    ),
    Bug(
        "any-thread-steps",
        "Ownership.take",
        "self._thread not in (None, thread)",
        "False",
        "Two threads step one decoder.",
        ("test_owners",),
    ),
    Bug(
        "failed-requests-forgotten-when-the-model-raises",
        "Decoder._admit",
        "self._end(b, new, error)",
        """\
self._end(b, new, error)
self._told.clear()
""",
        "A request that could not begin ends without a word.",
        ("test_requests",),
    ),
    Bug(
        "one-place-for-all-of-a-key",
        "CounterNoise._weights",
        "del places[_PLACES:]",
        "del places[1:]",
        "Sequences that share a key drive each other's noise out of the cache.",
        ("test_noise",),
    ),
    Bug(
        "idle-rows-begin-at-the-beginning",
        "rows:last_of",
        "max(0, len(tokens) - width)",
        "0",
        "A row without part forwards its first tokens again, and a model need not hold what lies behind them.",
        ("test_hostile_requests",),
    ),
    Bug(
        "processors-write-positions",
        "run_processors",
        "processor(read_only(logits), tokens, read_only(positions))",
        "processor(read_only(logits), tokens, positions)",
        "A processor moves the positions that noise and draft laws are kept by.",
        ("test_hostile_requests",),
    ),
    Bug(
        "a-draft-model-trusts-what-it-held",
        "DraftModel.begin",
        "self._held.pop(row, None)",
        "pass",
        "A draft model that others had in between guesses from their state.",
        ("test_hostile_requests",),
    ),
    Bug(
        "removed-rows-take-part",
        "Decoder._read_and_step",
        "row if self._rows[b] is row else None",
        "row",
        "A window is made of rows that were removed while prompts were read.",
        ("test_hostile_requests",),
    ),
    Bug(
        "done-rows-step-on-where-copies-fail",
        "Decoder._step_rows",
        """\
try:
    for b, row in enumerate(rows):
        if row is None or self._rows[b] is not row:
            continue
        commit = row.apply(b, window, outcome, self.method.recycles)
        row.trace.seconds = time.perf_counter() - row.began
        if commit is not None:
            self._told.append(commit)
    self._reading.share(self._rows)
finally:
    for b, row in enumerate(rows):
        if row is not None and row.trace.reason is not None:
            self._release(b, row)
""",
        """\
for b, row in enumerate(rows):
    if row is None or self._rows[b] is not row:
        continue
    commit = row.apply(b, window, outcome, self.method.recycles)
    row.trace.seconds = time.perf_counter() - row.began
    if commit is not None:
        self._told.append(commit)
self._reading.share(self._rows)
for b, row in enumerate(rows):
    if row is not None and row.trace.reason is not None:
        self._release(b, row)
""",
        "A finished row is stepped again where a model could not copy its prompt.",
        ("test_hostile_requests",),
    ),
    Bug(
        "processors-change-the-type-of-all-laws",
        "run_processors",
        "as_like(changed, logits)",
        "changed",
        "What one row's processor returns decides in which type, or whether, the rows beside it get laws.",
        ("test_hostile_requests",),
    ),
)

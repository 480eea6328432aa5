"""The proof itself: what is known of a uniform, which arguments are taken, and what a step is compared with."""

from __future__ import annotations

from planting import Bug

__all__ = ["BUGS"]

REPEATED = ("test_repeated_questions",)
ARGUMENTS = ("test_wrong_arguments",)
VERIFICATION = ("test_verification",)

BUGS = (
    Bug(
        "memory-without-the-purpose",
        "laws:_owner",
        "(*position, int(sites.round[row]), int(purpose))",
        "(*position, int(sites.round[row]))",
        "Acceptance, correction and redraft are taken for one uniform, so that right decoders look biased.",
        REPEATED,
    ),
    Bug(
        "memory-without-the-round",
        "laws:_owner",
        "(*position, int(sites.round[row]), int(purpose))",
        "(*position, int(purpose))",
        "A position's uniforms are taken to be the same in every round.",
        REPEATED,
    ),
    Bug(
        "memory-that-remembers-nothing",
        "UniformMemory.choose",
        "self._known.get(owner)",
        "None",
        "A repeated question is answered independently: a rule that uses a uniform twice passes the proof.",
        REPEATED,
    ),
    Bug(
        "memory-of-the-first-answer-only",
        "UniformMemory.choose",
        "self._known[owner] = pieces[index]",
        "",
        "The second answer about a uniform is forgotten, so that the third may contradict it.",
        REPEATED,
    ),
    Bug(
        "memory-in-another-order",
        "EnumeratingNoise.bernoulli",
        "self._memory.choose(_owner(sites, b, j, purpose), [chance, 1 - chance], text) == 0",
        "self._memory.choose(_owner(sites, b, j, purpose), [1 - chance, chance], text) == 1",
        "An accepted draft means a large uniform instead of a small one: another dependence than production's.",
        REPEATED,
    ),
    Bug(
        "script-that-takes-any-question",
        "_Script.choose",
        "not same and (question.answers != len(probabilities) or abs(probabilities[index] - chance) > _ROUNDING)",
        "False",
        "A decoder that keeps something from one run to the next gets the answers to other questions.",
        REPEATED,
    ),
    Bug(
        "script-that-may-end-early",
        "_Script.check_end",
        "len(self.path) < len(self._questions)",
        "False",
        "A run that asks less than before is counted as if it had asked it all.",
        REPEATED,
    ),
    Bug(
        "tolerance-of-nan",
        "check_tolerance",
        "check_number(name, value, expected) < 0",
        "value < 0",
        "A tolerance of NaN or infinity is taken, with which nothing can fail.",
        ARGUMENTS,
    ),
    Bug(
        "tolerance-as-it-comes",
        "assert_lossless_exactly",
        "limit = check_tolerance('tolerance', tolerance)",
        "limit = tolerance",
        "The proof takes any tolerance.",
        ARGUMENTS,
    ),
    Bug(
        "a-bool-is-a-count",
        "is_whole",
        "isinstance(value, int | np.integer) and not isinstance(value, bool)",
        "isinstance(value, int | np.integer)",
        "True counts as 1.",
        ARGUMENTS,
    ),
    Bug(
        "a-model-without-rows",
        "TableProvider.__init__",
        "check_count('batch_size', batch_size)",
        "batch_size",
        "A table with no rows is made, on which a decoder waits for ever.",
        ARGUMENTS,
    ),
    Bug(
        "graphs-held-to-the-law-of-the-host",
        "_verified",
        "sampler(method, make_step, seed + count + k, window=1) if fused else host",
        "host",
        "A step graph's tokens are compared with the host's law, and no longer with its own.",
        VERIFICATION,
    ),
    Bug(
        "drafts-on-both-sides",
        "_verified",
        "sampler(method, make_step, seed + count + k, window=1)",
        "sampler(method, make_step, seed + count + k)",
        "A step is compared with itself, drafts and all: whatever it does, no difference can be seen.",
        VERIFICATION,
    ),
    Bug(
        "law-of-the-step-unjudged",
        "Verification.verdict",
        "self.differing_tokens or (self.law is not None and self.law.verdict == 'different')",
        "self.differing_tokens",
        "A step that has another law than the host passes, as long as it keeps it.",
        VERIFICATION,
    ),
    Bug(
        "verification-that-reads-every-beginning",
        "recording:recording",
        "_ReadingRecorder(step, step) if isinstance(step, PromptReader) else Recorder(step)",
        "Recorder(step)",
        "Every continuation sends the common beginning through the model again, and a model of clips is never verified.",
        VERIFICATION,
    ),
)

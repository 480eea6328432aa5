"""`check_processor` names each fault of a logits processor, and passes all that are right."""

import array_api_strict
import numpy as np
import pytest

from coupled_sampling.errors import InvalidArgument
from coupled_sampling.processors import BadWords, LogitBias, NoRepeatNGram, TransformersProcessor
from coupled_sampling.testing import CheckFailed, check_processor, processor_report
from coupled_sampling.testing.contracts.processors import PROCESSOR_CHECKS
from standins.slow_processors import CASES

V = 6


def penalised(logits, contexts):
    """The right penalty: 0.5 off for every time that a token came before."""
    return np.stack(
        [
            row - np.float32(0.5) * np.bincount(context, minlength=len(row))
            for row, context in zip(logits, contexts, strict=True)
        ]
    ).astype(logits.dtype)


def right(logits, tokens, positions):
    return penalised(logits, [tokens[:p] for p in positions])


def counts_all_tokens(logits, tokens, positions):
    return penalised(logits, [tokens for _ in positions])


def counts_the_draft_of_the_slot(logits, tokens, positions):
    return penalised(logits, [tokens[: p + 1] for p in positions])


def last_token_of_the_row(logits, tokens, positions):
    return np.where(np.arange(V) == tokens[-1], np.float32(-np.inf), logits)


def longest_context_for_all_slots(logits, tokens, positions):
    return penalised(logits, [tokens[: max(positions)] for _ in positions])


def looks_past_all_slots(logits, tokens, positions):
    return penalised(logits, [tokens[max(positions) + 1 :] for _ in positions])


def needs_a_draft(logits, tokens, positions):
    return np.where(np.arange(V) == tokens[positions][:, None], logits - np.float32(1), logits)


def shortest_context_for_all_slots(logits, tokens, positions):
    return penalised(logits, [tokens[: min(positions)] for _ in positions])


def logits_of_the_first_slot(logits, tokens, positions):
    return right(np.repeat(logits[:1], len(logits), axis=0), tokens, positions)


def sorts_the_slots(logits, tokens, positions):
    return right(logits, tokens, np.sort(positions))


def writes_logits(logits, tokens, positions):
    logits[:, 0] -= 1
    return logits


def writes_logits_and_returns_nothing(logits, tokens, positions):
    logits[:, 0] -= 1


def writes_repeated_tokens(logits, tokens, positions):
    for row, p in zip(logits, positions, strict=True):
        row[np.bincount(tokens[:p], minlength=V) > 1] -= 1
    return logits


def writes_tokens(logits, tokens, positions):
    made = right(logits, tokens, positions)
    tokens[0] = 0
    return made


def writes_positions(logits, tokens, positions):
    made = right(logits, tokens, positions)
    positions += 1
    return made


def wants_to_write(logits, tokens, positions):
    if not logits.flags.writeable:
        raise ValueError("buffer source array is read-only")
    return right(logits, tokens, positions)


class RemembersTokens:
    """Takes the tokens of every call for new ones of its sequence, as if none were a draft."""

    def __init__(self):
        self.seen = set()

    def __call__(self, logits, tokens, positions):
        self.seen |= set(tokens.tolist())
        return logits - np.isin(np.arange(V), list(self.seen)).astype(logits.dtype)


class RemembersTokensOfASequence:
    def begin(self, prompt):
        return RemembersTokens()


class OneStateForAllSequences:
    """Makes a state for each sequence, and forgets which one it was asked for."""

    def __init__(self):
        self.end = 0

    def begin(self, prompt):
        self.end = len(prompt)
        return lambda logits, tokens, positions: (
            logits + (positions[:, None] - self.end == np.arange(V)).astype(logits.dtype)
        )


class CountsCalls:
    def __init__(self):
        self.calls = 0

    def __call__(self, logits, tokens, positions):
        self.calls += 1
        return logits * np.float32(1 + 0.01 * self.calls)


class Draws:
    def __init__(self):
        self.random = np.random.default_rng(0)

    def __call__(self, logits, tokens, positions):
        return logits + self.random.normal(size=logits.shape).astype(logits.dtype)


class OneMemory:
    """Returns the same array every time."""

    def __init__(self):
        self.memory = np.zeros((64, V), np.float32)

    def __call__(self, logits, tokens, positions):
        self.memory[: len(logits)] = right(logits, tokens, positions)
        return self.memory[: len(logits)]


def nothing(logits, tokens, positions):
    return np.full_like(logits, -np.inf)


def nothing_after_five(logits, tokens, positions):
    return np.where(positions[:, None] < 5, logits, np.float32(-np.inf))


def not_a_number(logits, tokens, positions):
    return np.where(np.arange(V) == 1, np.float32(np.nan), logits)


def raises(logits, tokens, positions):
    raise KeyError("no such state")


def raises_later(logits, tokens, positions):
    if len(tokens) > 6:
        raise KeyError("no such state")
    return logits + 0


def flat(logits, tokens, positions):
    return logits[0] + 0


def one_row(logits, tokens, positions):
    return logits[:1] + 0


def listed(logits, tokens, positions):
    return logits.tolist()


def whole_numbers(logits, tokens, positions):
    return logits.astype(np.int64)


def another_library(logits, tokens, positions):
    return array_api_strict.asarray(logits)


def later_another_shape(logits, tokens, positions):
    return logits[:, :2] if max(positions) > 5 else logits + 0


class BeginsNothing:
    def begin(self, prompt):
        return None


WRONG = {
    "runs": [raises, raises_later, BeginsNothing(), needs_a_draft],
    "input-untouched": [
        writes_logits, writes_logits_and_returns_nothing, writes_repeated_tokens, writes_tokens, writes_positions, wants_to_write,
    ],
    "shape-and-type": [
        flat, one_row, listed, whole_numbers, another_library, later_another_shape, writes_logits_and_returns_nothing,
    ],
    "allows-something": [nothing, nothing_after_five, not_a_number],
    "causal": [
        counts_all_tokens, counts_the_draft_of_the_slot, last_token_of_the_row, longest_context_for_all_slots,
        looks_past_all_slots,
    ],
    "slots-alone": [shortest_context_for_all_slots, logits_of_the_first_slot, sorts_the_slots, longest_context_for_all_slots],
    "call-order": [RemembersTokens(), RemembersTokensOfASequence(), OneStateForAllSequences(), CountsCalls(), Draws()],
    "result-kept": [OneMemory()],
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "wrong"),
    [(name, wrong) for name, several in WRONG.items() for wrong in several],
    ids=lambda value: value if isinstance(value, str) else getattr(value, "__name__", type(value).__name__),
)
def test_a_wrong_processor_is_named(name, wrong):
    with pytest.raises(CheckFailed, match=f"- {name}: ") as caught:
        check_processor(wrong, vocab_size=V)
    assert isinstance(caught.value, AssertionError)
    assert name in caught.value.report.failures


def test_every_check_has_a_processor_that_fails_it():
    assert list(WRONG) == list(PROCESSOR_CHECKS)


@pytest.mark.parametrize(
    ("wrong", "names"),
    [
        (counts_all_tokens, ["causal"]),
        (shortest_context_for_all_slots, ["slots-alone"]),
        (logits_of_the_first_slot, ["slots-alone"]),
        (OneMemory(), ["result-kept"]),
        (nothing, ["allows-something"]),
        (writes_logits, ["input-untouched"]),
    ],
)
def test_one_fault_is_not_taken_for_another(wrong, names):
    assert list(processor_report(wrong, vocab_size=V).failures) == names


@pytest.mark.parametrize("seed", range(5))
def test_a_right_processor_passes(seed):
    report = check_processor(right, vocab_size=V, seed=seed)
    assert [result.name for result in report.results] == list(PROCESSOR_CHECKS)
    assert max(report.differences.values()) < 1e-6


@pytest.mark.cases(15)
@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
@pytest.mark.parametrize("vocab_size", [6, 500])
def test_ours_pass(case, vocab_size):
    check_processor(case.processor, vocab_size=vocab_size, length=5 if "unigrams" in case.name else 12)


def last_token(input_ids, scores):
    scores[:, input_ids[0, -1]] = -np.inf
    return scores


def test_a_processor_of_transformers_form_passes_unless_it_keeps_a_state():
    check_processor(TransformersProcessor(last_token), vocab_size=V)
    calls = []

    def counting(input_ids, scores):
        calls.append(1)
        return scores * np.float32(1 + 0.01 * len(calls))

    assert "call-order" in processor_report(TransformersProcessor(counting), vocab_size=V).failures


def count_up(logits, tokens, positions):
    """A grammar: each token is its predecessor plus one; after anything else nothing is allowed."""
    made = np.full_like(logits, -np.inf)
    for j, p in enumerate(positions):
        if (np.diff(tokens[:p]) == 1).all() and tokens[p - 1] + 1 < V:
            made[j, tokens[p - 1] + 1] = logits[j, tokens[p - 1] + 1]
    return made


def test_a_grammar_is_walked_along_what_it_allows():
    check_processor(count_up, vocab_size=V, prompts=[[0], [1, 2]], length=3)
    check_processor(count_up, vocab_size=V, prompts=[[0]], stop=[V - 1])
    report = processor_report(count_up, vocab_size=V, prompts=[[0], [1, 2]])
    assert list(report.failures) == ["allows-something"]
    assert "generated token 3, at position 5, after tokens [1, 2, 3, 4, 5]" in str(
        report
    ) or "after tokens [0, 1" in str(report)
    dead = processor_report(count_up, vocab_size=V, prompts=[[3, 1]])
    assert "nothing after this was looked at" in dead.notes["allows-something"][0]


def test_arrays_of_the_library_that_a_processor_wants():
    asked = []

    def watched(logits, tokens, positions):
        asked.append(type(logits))
        return NoRepeatNGram(2).begin(tokens[:1])(logits, tokens, positions)

    check_processor(watched, vocab_size=V, array=array_api_strict.asarray)
    assert set(asked) == {type(array_api_strict.asarray(0))}


def test_one_token_that_is_left_is_no_fault():
    check_processor(LogitBias(dict.fromkeys(range(1, V), -np.inf)), vocab_size=V)
    check_processor(BadWords([[1]]), vocab_size=2)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("vocab_size", 0), ("vocab_size", 2.5), ("vocab_size", True), ("prompts", []), ("prompts", 3), ("prompts", "ab"),
        ("prompts", [[]]), ("prompts", [[V]]), ("prompts", [[-1]]), ("length", 0), ("length", None), ("stop", [V]),
        ("stop", 3), ("array", 3), ("tolerance", float("nan")), ("tolerance", float("inf")), ("tolerance", True),
        ("tolerance", -1), ("tolerance", "a"), ("seed", -1), ("seed", 1.5),
    ],
)  # fmt: skip
def test_arguments_are_refused_by_name(name, value):
    with pytest.raises(InvalidArgument, match=name):
        processor_report(right, **{"vocab_size": V, name: value})


def test_what_is_no_processor_is_refused():
    with pytest.raises(InvalidArgument, match="processor is 3"):
        check_processor(3, vocab_size=V)

"""Each logits processor does what its definition says, for many slots at once, in any order and any array library."""

import array_api_strict
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coupled_sampling import Decoder, Request, Sampling, generate
from coupled_sampling.arrays import to_host
from coupled_sampling.errors import InvalidArgument
from coupled_sampling.processors import (
    AllowedTokens,
    BadWords,
    ForcedTokens,
    FrequencyPenalty,
    LogitBias,
    MinNewTokens,
    NoRepeatNGram,
    PresencePenalty,
    RepetitionPenalty,
    TransformersProcessor,
)
from coupled_sampling.testing import TableProvider, random_table
from standins.frameworks import TRANSFORMATIONS, Framework
from standins.slow_processors import CASES

EACH = pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])


@st.composite
def slots(draw):
    """Tokens, where the prompt ends, and some positions behind it in any order, with logits."""
    vocab_size = draw(st.integers(3, 5))
    tokens = np.array(draw(st.lists(st.integers(0, vocab_size - 1), min_size=1, max_size=14)))
    end = draw(st.integers(1, len(tokens)))
    positions = np.array(draw(st.lists(st.integers(end, len(tokens)), min_size=1, max_size=6)))
    logits = np.random.default_rng(draw(st.integers(0, 99))).normal(size=(len(positions), vocab_size)) * 3
    logits[:, draw(st.integers(0, vocab_size - 1))] = -np.inf
    return logits, tokens, end, positions


def expected(case, logits, tokens, end, positions):
    context = tokens.tolist()
    return np.array(
        [case.slow(row, tuple(context[:p]), end) for row, p in zip(logits.tolist(), positions.tolist(), strict=True)]
    )


@pytest.mark.cases(8)
@EACH
@settings(derandomize=True, deadline=None, max_examples=60)
@given(made=slots())
def test_it_does_what_its_definition_says(case, made):
    logits, tokens, end, positions = made
    found = case.processor.begin(tokens[:end])(logits, tokens, positions)
    np.testing.assert_allclose(found, expected(case, *made), rtol=1e-12, atol=1e-12)


@EACH
def test_it_gives_a_new_array_of_the_same_type(case):
    logits = np.random.default_rng(1).normal(size=(3, 4)).astype(np.float32)
    before, tokens, positions = logits.copy(), np.array([1, 0, 1, 0]), np.array([2, 3, 4])
    for array in (logits, tokens, positions):
        array.flags.writeable = False
    found = case.processor.begin(tokens[:1])(logits, tokens, positions)
    assert found.dtype == np.float32
    assert not np.shares_memory(found, logits)
    assert np.array_equal(logits, before)
    exact = case.processor.begin(tokens[:1])(logits.astype(np.float64), tokens, positions)
    np.testing.assert_allclose(found, exact, rtol=1e-5)


@EACH
def test_other_array_libraries(case):
    logits = np.random.default_rng(2).normal(size=(3, 4))
    tokens, positions = np.array([1, 0, 1, 0]), np.array([2, 3, 4])
    begun = case.processor.begin(tokens[:2])
    found = begun(array_api_strict.asarray(logits), tokens, positions)
    assert found.dtype == array_api_strict.float64
    np.testing.assert_allclose(np.asarray(found), begun(logits, tokens, positions), rtol=1e-12)


@pytest.mark.frameworks
@EACH
@pytest.mark.parametrize(
    ("library", "how"),
    [(name, how) for name in TRANSFORMATIONS for how in ("eager", "jit") if how in TRANSFORMATIONS[name]],
)
def test_frameworks(case, library, how):
    framework = Framework(library)
    logits = np.random.default_rng(3).normal(size=(3, 4)).astype(np.float32)
    tokens, positions = np.array([1, 0, 1, 0]), np.array([2, 3, 4])
    begun = case.processor.begin(tokens[:2])
    found = framework.transformed(how, lambda array: begun(array, tokens, positions))(framework.array(logits))
    assert "float32" in str(found.dtype)
    np.testing.assert_allclose(to_host(found), begun(logits, tokens, positions), rtol=1e-5)


TABLE = random_table(5, 4)


def decoded(request, method, window):
    decoder = Decoder(TableProvider(TABLE, 4), method=method, window=window)
    decoder.add(request)
    tokens = []
    while decoder.active or decoder.waiting:
        for commit in decoder.step():
            assert commit.error is None
            tokens += commit.tokens.tolist()
    return tokens


@EACH
def test_prompts_of_other_lengths_and_an_interruption_change_no_token(case):
    """The same records serve all requests at once; after an interruption they still know where the prompt ends."""
    sampling = Sampling(processors=(case.processor,))
    prompts, length = [[0], [3, 1, 3], [1, 1]], 4 if case.name == "unigrams, generated" else 8
    requests = [
        Request(prompt, length=length, seed=3, sequence=i, sampling=sampling) for i, prompt in enumerate(prompts)
    ]
    alone = [decoded(request, "ar", 1) for request in requests]
    model = TableProvider(TABLE, 4, 2)
    together = generate(model, prompts, length=length, method="scd-match", window=4, seed=3, sampling=sampling).tokens
    assert [tokens.tolist() for tokens in together] == alone
    for tokens, prompt in zip(alone, prompts, strict=True):
        for j, token in enumerate(tokens):
            assert case.slow([0.0] * 4, (*prompt, *tokens[:j]), len(prompt))[token] > -np.inf
    assert decoded(requests[1].resumed(alone[1][:2]), "scd-match", 3) == alone[1][2:]


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: RepetitionPenalty(0), "penalty"),
        (lambda: RepetitionPenalty(-1.0), "penalty"),
        (lambda: RepetitionPenalty(float("nan")), "penalty"),
        (lambda: RepetitionPenalty(True), "penalty"),
        (lambda: RepetitionPenalty(1.2, count_prompt=1), "count_prompt"),
        (lambda: FrequencyPenalty("1"), "penalty"),
        (lambda: FrequencyPenalty(float("inf")), "penalty"),
        (lambda: PresencePenalty(None), "penalty"),
        (lambda: PresencePenalty(0.1, count_prompt=None), "count_prompt"),
        (lambda: NoRepeatNGram(0), "ngram_size"),
        (lambda: NoRepeatNGram(2.0), "ngram_size"),
        (lambda: NoRepeatNGram(2, count_prompt="no"), "count_prompt"),
        (lambda: BadWords(5), "words"),
        (lambda: BadWords("word"), "words"),
        (lambda: BadWords([1, 2]), r"words\[0\]"),
        (lambda: BadWords([[1], []]), r"words\[1\]"),
        (lambda: BadWords([[1], [2, -1]]), r"words\[1\]"),
        (lambda: LogitBias([1.0]), "bias"),
        (lambda: LogitBias({-1: 1.0}), "bias"),
        (lambda: LogitBias({1.5: 1.0}), "bias"),
        (lambda: LogitBias({1: float("nan")}), r"bias\[1\]"),
        (lambda: LogitBias({1: float("inf")}), r"bias\[1\]"),
        (lambda: AllowedTokens([]), "allowed"),
        (lambda: AllowedTokens(None), "allowed"),
        (lambda: AllowedTokens([0, -2]), "allowed"),
        (lambda: AllowedTokens({0: []}), r"allowed\[0\]"),
        (lambda: AllowedTokens({-1: [0]}), "allowed"),
        (lambda: MinNewTokens(-1, [0]), "min_new_tokens"),
        (lambda: MinNewTokens(2, []), "stop"),
        (lambda: MinNewTokens(2, 5), "stop"),
        (lambda: ForcedTokens({0: 1.5}), r"tokens\[0\]"),
        (lambda: ForcedTokens({"a": 1}), "tokens"),
        (lambda: ForcedTokens([]), "tokens"),
        (lambda: ForcedTokens(3), "tokens"),
        (lambda: TransformersProcessor(3), "processor"),
        (lambda: TransformersProcessor(print, array=3), "array"),
    ],
)  # fmt: skip
def test_wrong_settings_are_refused_by_name(make, name):
    with pytest.raises(InvalidArgument, match=f"{name} (is|has)"):
        make()


@pytest.mark.parametrize(
    ("processor", "name"),
    [
        (BadWords([[1], [2, 9]]), r"BadWords.words\[1\] token 1 is 9"),
        (LogitBias({9: 1.0}), "LogitBias.bias token 0 is 9"),
        (AllowedTokens([1, 9]), "AllowedTokens.allowed token 1 is 9"),
        (AllowedTokens({0: [9]}), r"AllowedTokens.allowed\[0\] token 0 is 9"),
        (AllowedTokens(lambda index: [9]), r"AllowedTokens.allowed\(0\) token 0 is 9"),
        (AllowedTokens(lambda index: []), r"AllowedTokens.allowed\(0\)"),
        (AllowedTokens(lambda index: "a"), r"AllowedTokens.allowed\(0\)"),
        (MinNewTokens(1, [9]), "MinNewTokens.stop token 0 is 9"),
        (ForcedTokens([9]), r"ForcedTokens.tokens\[0\] is 9"),
    ],
)
def test_tokens_outside_the_vocabulary_are_refused_by_name(processor, name):
    with pytest.raises(InvalidArgument, match=name):
        processor.begin(np.array([0]))(np.zeros((1, 4)), np.array([0, 1]), np.array([1]))


def test_a_token_outside_the_vocabulary_ends_its_own_request_alone():
    decoder = Decoder(TableProvider(TABLE, 4, 2), method="scd-match", window=3)
    good = decoder.add(Request([0], length=4, sequence=0))
    bad = decoder.add(Request([0], length=4, sequence=1, sampling=Sampling(processors=(BadWords([[9]]),))))
    ended = {}
    while decoder.active or decoder.waiting:
        ended |= {commit.handle: commit for commit in decoder.step() if commit.finished}
    assert ended[good].reason == "length"
    assert ended[bad].reason == "error"
    assert "BadWords.words[0]" in str(ended[bad].error)


def test_samples_of_one_prompt_have_processors_of_their_own():
    """They read the prompt together, and each goes on with what it has generated itself."""
    sampling = Sampling(processors=(FrequencyPenalty(2.0), MinNewTokens(3, [1])))
    shared = Request([0, 2], length=6, seed=1, sequence=0, sampling=sampling, samples=3)
    decoder = Decoder(TableProvider(TABLE, 4, 3), method="scd-match", window=3)
    first = decoder.add(shared)
    tokens = {first + k: [] for k in range(3)}
    while decoder.active or decoder.waiting:
        for commit in decoder.step():
            tokens[commit.handle] += commit.tokens.tolist()
    alone = [Request([0, 2], length=6, seed=1, sequence=k, sampling=sampling) for k in range(3)]
    assert list(tokens.values()) == [decoded(request, "ar", 1) for request in alone]


def test_settings_do_not_follow_the_lists_they_were_made_of():
    words, bias = [[0, 1]], {1: 2.0}
    made = BadWords(words), LogitBias(bias)
    words[0].append(2)
    bias[1] = 5.0
    assert made == (BadWords([[0, 1]]), LogitBias({1: 2.0}))


def test_sets_are_taken_where_order_does_not_matter():
    assert AllowedTokens({2, 0}) == AllowedTokens([0, 2])
    assert MinNewTokens(1, frozenset([3])).stop == (3,)


def test_many_slots_of_a_long_context_are_counted_once():
    """Counting again for every slot would look at 64 times 4,096 tokens; here the counts grow along the slots."""
    from coupled_sampling.processors.parts import counts_before

    class Counted(np.ndarray):
        looked_at = 0

        def __getitem__(self, key):
            found = super().__getitem__(key)
            Counted.looked_at += np.size(found)
            return found

    tokens = np.random.default_rng(0).integers(0, 9, 4160).view(Counted)
    counts_before(tokens, 0, np.arange(4096, 4160))
    assert Counted.looked_at <= len(tokens)

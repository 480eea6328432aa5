"""Processors in transformers' call form: one call per slot, with that slot's context, in the arrays that they want."""

import array_api_strict
import numpy as np
import pytest

from coupled_sampling.errors import InvalidArgument
from coupled_sampling.processors import BadWords, NoRepeatNGram, RepetitionPenalty, TransformersProcessor

LOGITS = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
TOKENS, POSITIONS = np.array([4, 1, 1, 0, 2]), np.array([4, 2, 3])


class Recorder:
    """Remembers what it is called with, and writes into it."""

    def __init__(self):
        self.calls = []

    def __call__(self, input_ids, scores):
        self.calls.append((np.array(input_ids), np.array(scores)))
        scores[:, 0] += 1
        input_ids[:, 0] = -7
        return scores


def test_each_slot_is_asked_for_alone_with_its_own_context():
    recorder = Recorder()
    found = TransformersProcessor(recorder)(LOGITS, TOKENS, POSITIONS)
    assert [ids.tolist() for ids, _ in recorder.calls] == [[[4, 1, 1, 0]], [[4, 1]], [[4, 1, 1]]]
    assert all(ids.dtype == np.int64 for ids, _ in recorder.calls)
    assert [scores.tolist() for _, scores in recorder.calls] == [LOGITS[j : j + 1].tolist() for j in range(3)]
    np.testing.assert_array_equal(found, LOGITS + np.float32([1, 0, 0, 0, 0]))
    assert found.dtype == np.float32


@pytest.mark.parametrize("array", [None, lambda values: values])
def test_what_it_writes_into_is_its_own(array):
    logits, tokens = LOGITS.copy(), TOKENS.copy()
    logits.flags.writeable = tokens.flags.writeable = False
    found = TransformersProcessor(Recorder(), array=array)(logits, tokens, POSITIONS)
    assert np.array_equal(found, LOGITS + np.float32([1, 0, 0, 0, 0]))
    assert np.array_equal(logits, LOGITS)
    assert np.array_equal(tokens, TOKENS)


def test_arrays_of_another_library_are_made_and_taken_back():
    kinds = []

    def last_token(input_ids, scores):
        kinds.append((type(input_ids), type(scores)))
        return scores + array_api_strict.astype(input_ids[:, -1:], array_api_strict.float32)

    found = TransformersProcessor(last_token, array=array_api_strict.asarray)(LOGITS, TOKENS, POSITIONS)
    strict = type(array_api_strict.asarray(0))
    assert set(kinds) == {(strict, strict)}
    assert isinstance(found, np.ndarray)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, LOGITS + np.float32([[0], [1], [1]]))
    same = TransformersProcessor(last_token)(array_api_strict.asarray(LOGITS), TOKENS, POSITIONS)
    assert isinstance(same, strict)
    np.testing.assert_array_equal(np.asarray(same), found)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda ids, scores: scores[0],
        lambda ids, scores: None,
        lambda ids, scores: scores[:, :2],
        lambda ids, scores: [],
    ],
)
def test_another_shape_is_refused_by_name(wrong):
    with pytest.raises(InvalidArgument, match=r"returned .* of shape .*, expected scores of shape \(1, 5\)"):
        TransformersProcessor(wrong)(LOGITS, TOKENS, POSITIONS)


@pytest.mark.torch
def test_the_processors_of_transformers_itself_agree_with_ours():
    torch = pytest.importorskip("torch", reason="make test-torch installs it")
    theirs = pytest.importorskip("transformers", reason="make test-torch installs it")
    tokens = np.random.default_rng(1).integers(0, 6, 40)
    positions = np.arange(12, 40)
    logits = np.random.default_rng(2).normal(size=(len(positions), 6)).astype(np.float32) * 3
    words = [[2], [0, 1], [3, 3], [1, 5, 0], [4, 2]]
    pairs = [
        (RepetitionPenalty(1.3), theirs.RepetitionPenaltyLogitsProcessor(1.3)),
        (
            RepetitionPenalty(0.7, count_prompt=False),
            theirs.RepetitionPenaltyLogitsProcessor(0.7, prompt_ignore_length=12),
        ),
        (NoRepeatNGram(2), theirs.NoRepeatNGramLogitsProcessor(2)),
        (NoRepeatNGram(3), theirs.NoRepeatNGramLogitsProcessor(3)),
        (BadWords(words), theirs.NoBadWordsLogitsProcessor(words)),
    ]
    for ours, other in pairs:
        expected = ours.begin(tokens[:12])(logits, tokens, positions)
        for array, given in ((torch.asarray, logits), (None, torch.asarray(logits))):
            found = TransformersProcessor(other, array=array)(given, tokens, positions)
            assert type(found) is type(given)
            np.testing.assert_allclose(np.asarray(found), expected, rtol=1e-6, err_msg=repr(ours))

"""What `export --check` finds in the logits of a provider."""

from dataclasses import replace

import numpy as np
import pytest

from coupled_sampling.errors import CheckpointError
from coupled_sampling.export import DecoderDescription, PicturePositions, Rotary, reference_logits
from coupled_sampling.export.check import check_reference
from standins.conditioned import COSMOS, VECTORS
from standins.tree_windows import random_weights

DECODER = DecoderDescription(
    vocab_size=29,
    positions=16,
    width=16,
    layers=1,
    heads=2,
    mlp_width=24,
    rotary=Rotary(),
    generated_first=4,
    generated=20,
)
RANDOM = np.random.default_rng(0)
WEIGHTS = {name: RANDOM.normal(size=shape) for name, shape in DECODER.weight_shapes().items()}
PICTURES = Rotary(pictures=PicturePositions(begin=28, grids=((2, 2),), sections=(1, 2, 1)))


class Reference:
    """The reference as a provider, with ``wrong`` added to the logit of a token of one position."""

    vocab_size, batch_size, max_length = DECODER.vocab_size, 1, DECODER.positions

    def __init__(self, position=0, token=0, wrong=0.0):
        self.tokens, self.at, self.wrong = np.zeros(0, np.int64), (position, token), wrong

    def forward(self, tokens, start):
        self.tokens = np.concatenate([self.tokens[: start[0]], tokens[0]])
        logits = reference_logits(DECODER, WEIGHTS, self.tokens)
        if self.wrong and self.at[0] < len(logits):
            logits[self.at] = np.nan_to_num(logits[self.at], neginf=0) + self.wrong
        return logits[None, start[0] :]


def test_the_reference_itself_passes():
    assert check_reference(DECODER, WEIGHTS, Reference(), exact=True) == 0


@pytest.mark.parametrize("position", [0, 3, 4, 7])
@pytest.mark.parametrize("wrong", [0.01, np.nan, -np.inf])
def test_one_wrong_logit_is_found(position, wrong):
    with pytest.raises(CheckpointError, match="differ from the reference"):
        check_reference(DECODER, WEIGHTS, Reference(position, 10, wrong), exact=True)


@pytest.mark.parametrize("token", [3, 24])
def test_a_token_that_is_never_generated_must_be_impossible(token):
    with pytest.raises(CheckpointError, match="differ from the reference by inf"):
        check_reference(DECODER, WEIGHTS, Reference(5, token, 1.0), exact=True)


def test_a_picture_begins_in_what_is_tried():
    """Among all tokens of a large vocabulary the one that begins pictures would hardly ever be drawn."""
    without = Reference()
    with pytest.raises(CheckpointError, match="differ from the reference"):
        check_reference(replace(DECODER, rotary=PICTURES), WEIGHTS, without, exact=True)
    assert 28 in without.tokens


@pytest.mark.parametrize("description", [COSMOS, VECTORS], ids=["attended to", "first"])
@pytest.mark.parametrize("wrong", [False, True])
def test_models_that_take_a_condition_are_checked_with_one(description, wrong):
    """Of fewer vectors than there is room for; a graph that takes them for others is found."""
    weights = random_weights(description)
    provider = Conditioned(description, weights, wrong=wrong)
    if wrong:
        with pytest.raises(CheckpointError, match="differ from the reference"):
            check_reference(description, weights, provider, exact=True)
    else:
        assert check_reference(description, weights, provider, exact=True) < 1e-12
    assert 1 < len(provider.told.condition) < description.condition.length


class Conditioned:
    """The reference as a provider that is told a condition."""

    batch_size = 1

    def __init__(self, description, weights, *, wrong):
        self.description, self.weights, self.wrong, self.tokens = description, weights, wrong, np.zeros(0, np.int64)
        self.vocab_size, self.max_length, self.told = description.vocab_size, description.positions, None

    def begin(self, row, request):
        assert row == 0
        assert self.description.condition.record("x").problem_of_prompt(request.prompt) is None
        self.told = request

    def forward(self, tokens, start):
        self.tokens = np.concatenate([self.tokens[: start[0]], tokens[0]])
        vectors = self.told.condition[::-1] if self.wrong else self.told.condition
        if self.wrong and self.description.cross_attention:  # which knows no order
            vectors = vectors * 1.1
        return reference_logits(self.description, self.weights, self.tokens, condition=vectors)[None, start[0] :]

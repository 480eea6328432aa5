"""What a request can ask for that a step which decides elsewhere does not do, and how each is refused before anything runs."""

import numpy as np
import pytest

from coupled_sampling import Decoder, DraftModel, Guidance, Request, Sampling
from coupled_sampling.errors import InvalidArgument
from coupled_sampling.testing import TableProvider, random_table


def as_it_is(logits, tokens, positions):
    return logits


class MadeForASequence:
    def begin(self, prompt):
        return as_it_is


PROCESSORS = {
    "a processor": {"sampling": Sampling(processors=(as_it_is,))},
    "a processor for a sequence": {"sampling": Sampling(processors=(MadeForASequence(),))},
}
WARPS = {
    "top-k": {"sampling": Sampling(top_k=3)},
    "top-p": {"sampling": Sampling(top_p=0.5)},
    "min-p": {"sampling": Sampling(min_p=0.1)},
}
LOGPROBS = {"log-probabilities": {"logprobs": True}, "the model's own": {"model_logprobs": True}}
OTHERS = {"guidance": {"guidance": Guidance(scale=2.0)}, "a condition": {"condition": "a picture"}}


class Untouched:
    """Fails where anything runs."""

    def __init__(self, step):
        self._step = step

    def __getattr__(self, name):
        return getattr(self._step, name)

    def begin(self, row, request):
        raise AssertionError("a request was begun")

    def step(self, window):
        raise AssertionError("a window was forwarded")


class LyingRule:
    """Its drafts carry laws, of which it says nothing beforehand."""

    def propose(self, contexts, noise, *, vocab_size, shared):
        model = DraftModel(TableProvider(random_table(0, vocab_size), vocab_size, 3))
        return model.propose(contexts, noise, vocab_size=vocab_size, shared=shared)


def expect_refusals(step, refused, taken=()):
    """``Decoder.check`` refuses each of ``refused``, {name: (settings, part of the message)}, and takes each of ``taken``."""
    decoder = Decoder(Untouched(step), window=4)
    for name, (settings, message) in refused.items():
        with pytest.raises(InvalidArgument, match=message) as caught:
            decoder.check(Request([0, 1], 5, **settings))
        assert str(caught.value).startswith("request "), name
        assert ";" in str(caught.value), f"{name}: what to do instead?"
    for settings in taken:
        decoder.check(Request([0, 1], 5, **settings))
    draft = DraftModel(TableProvider(random_table(0, step.vocab_size), step.vocab_size, step.batch_size))
    with_model = Decoder(Untouched(step), window=4, drafting=draft)
    if step.method.acceptance == "rejection":
        with pytest.raises(
            InvalidArgument, match=r"the drafts carry laws, and .* can only take point masses; use HostStep"
        ):
            with_model.check(Request([0, 1], 5))
    else:
        with_model.check(Request([0, 1], 5))


def expect_that_unannounced_laws_end_a_request_alone(step):
    """A rule that says nothing of its laws: the request ends, and the step is never given them."""
    decoder = Decoder(step, window=4, drafting=LyingRule())
    handle = decoder.add(Request([0, 1], 5))
    (commit,) = decoder.step()
    assert (commit.handle, commit.reason) == (handle, "error")
    assert "carry laws" in str(commit.error)
    assert not np.any(commit.tokens)

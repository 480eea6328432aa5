"""Every processor under every method: the exact law of whole outputs, by enumeration, is that of its definition.

The definitions are those of `standins.slow_processors`, one token at a time, so nothing of the code under test is in the oracle.
"""

import math
from fractions import Fraction

import numpy as np
import pytest

from coupled_sampling import METHODS, Sampling, generate
from coupled_sampling.drafting import Repeat
from coupled_sampling.processors import (
    AllowedTokens,
    BadWords,
    ForcedTokens,
    FrequencyPenalty,
    LogitBias,
    MinNewTokens,
    NoRepeatNGram,
    RepetitionPenalty,
    TransformersProcessor,
)
from coupled_sampling.testing import (
    TableProvider,
    assert_lossless_exactly,
    autoregressive_law,
    exact_law,
    random_table,
    rational_table,
    shipped_decoder,
    total_variation,
)
from standins.slow_processors import CASES

PROMPT = [1, 0]


def by_definition(case, table, prompt):
    """The law of the next token by the chain rule's step: the model's law, and the definition of the processor."""

    def law(context):
        logits = [math.log(chance) if chance else -math.inf for chance in table(context)]
        weights = [math.exp(logit) for logit in case.slow(logits, context, len(prompt))]
        return [weight / sum(weights) for weight in weights]

    return law


FILLED = Repeat(fill=0)
"""Drafts from the first step on: short outputs need all that they can get."""


def law_of(method, processors, table, vocab_size, length, *, window=3, drafting=FILLED, prompt=PROMPT):
    def run(noise):
        model = TableProvider(table, vocab_size)
        sampling = Sampling(processors=tuple(processors))
        found = generate(
            model,
            [prompt],
            length=length,
            method=method,
            window=window,
            drafting=drafting,
            sampling=sampling,
            noise=noise,
        )
        return tuple(found.tokens[0].tolist())

    return exact_law(run)


@pytest.mark.cases(40)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_its_law_is_that_of_its_definition(case, method):
    table = random_table(3, 3)
    found = law_of(method, [case.processor], table, 3, 3)
    assert total_variation(found, autoregressive_law(by_definition(case, table, PROMPT), PROMPT, 3)) < 1e-12


FORBIDDING = [case for case in CASES if case.only_forbids]


@pytest.mark.cases(25)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("case", FORBIDDING, ids=[case.name for case in FORBIDDING])
def test_in_fractions_what_only_forbids_is_exact_to_the_last_digit(case, method):
    table = rational_table(4, 3)
    sampling = Sampling(processors=(case.processor,))
    law = assert_lossless_exactly(
        shipped_decoder(method, window=3, sampling=sampling),
        table,
        [PROMPT],
        vocab_size=3,
        length=3,
        arithmetic="rational",
        sampling=sampling,
    )

    def next_law(context):
        allowed = case.slow([0.0] * 3, context, len(PROMPT))
        weights = [chance if logit == 0 else Fraction(0) for chance, logit in zip(table(context), allowed, strict=True)]
        return [weight / sum(weights) for weight in weights]

    expected = {(output,): chance for output, chance in autoregressive_law(next_law, PROMPT, 3).items()}
    assert total_variation(law, expected) == 0


class Watched:
    """A processor, and the number of slots at which nothing was left."""

    def __init__(self, processors):
        self.processors, self.dead = processors, 0

    def begin(self, prompt):
        begun = [processor.begin(prompt) for processor in self.processors]

        def processed(logits, tokens, positions):
            for one in begun:
                logits = one(logits, tokens, positions)
            self.dead += int((logits == -np.inf).all(axis=-1).sum())
            return logits

        return processed


DEAD: dict[str, tuple[int, list]] = {
    "a word for every token behind 2": (2, [LogitBias({2: -np.inf}), BadWords([[2, 0], [2, 1], [2, 2]])]),
    "forced tokens that may not follow a wrong draft": (2, [ForcedTokens([0, 0]), BadWords([[1, 0], [2, 0]])]),
    "allowed tokens that would be said twice": (2, [AllowedTokens({0: [1], 1: [2]}), NoRepeatNGram(1, count_prompt=False)]),
    "the only allowed token would end a word": (3, [AllowedTokens({0: [0], 1: [0, 1], 2: [1]}), BadWords([[2, 1], [2, 0]])]),
}  # fmt: skip
"""Length, and processors that leave nothing behind drafts which one of them forbids."""


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", DEAD)
def test_dead_states_behind_drafts_that_are_refused_change_nothing(name, method):
    length, processors = DEAD[name]
    table, watched = rational_table(6, 3), Watched(processors)
    sampling = Sampling(processors=tuple(processors))
    watching = Sampling(processors=(watched,))
    floats = random_table(6, 3)
    assert_lossless_exactly(
        shipped_decoder(method, window=3, drafting="random", sampling=watching),
        floats,
        [[0]],
        vocab_size=3,
        length=length,
        sampling=sampling,
    )
    assert (watched.dead > 0) == METHODS[method].drafts, "the world has no dead state"
    if not any(isinstance(processor, ForcedTokens) for processor in processors):
        assert_lossless_exactly(
            shipped_decoder(method, window=3, drafting="random", sampling=sampling),
            table,
            [[0]],
            vocab_size=3,
            length=length,
            arithmetic="rational",
            sampling=sampling,
        )


TOGETHER = [FrequencyPenalty(0.6), MinNewTokens(1, [1]), AllowedTokens({1: [0, 1]}), RepetitionPenalty(1.4)]


@pytest.mark.parametrize("method", METHODS)
def test_several_at_once_for_prompts_of_other_lengths_in_one_row(method):
    """Each sequence has a prompt end of its own, though both use one record and one row; a stop token ends them."""
    sampling = Sampling(processors=tuple(TOGETHER))
    assert_lossless_exactly(
        shipped_decoder(method, window=2, stop=(1,), sampling=sampling),
        random_table(8, 2),
        [[0], [1, 0, 1]],
        vocab_size=2,
        length=[2, 2],
        stop=(1,),
        rows=1,
        sampling=sampling,
    )


@pytest.mark.parametrize("method", METHODS)
def test_a_processor_of_transformers_form_is_exact(method):
    def cap(input_ids, scores):
        """Writes in place, and depends on all tokens before: their number of ones makes ones less likely."""
        scores[:, 1] -= 0.7 * (input_ids == 1).sum(axis=1)
        return scores

    def slow(logits, context, end):
        return [logits[0], logits[1] - 0.7 * context.count(1)]

    class Definition:
        pass

    Definition.slow = staticmethod(slow)
    table = random_table(2, 2)
    found = law_of(method, [TransformersProcessor(cap)], table, 2, 4)
    assert total_variation(found, autoregressive_law(by_definition(Definition, table, PROMPT), PROMPT, 4)) < 1e-12


def later_drafts(logits, tokens, positions):
    return logits - 0.8 * np.bincount(tokens, minlength=logits.shape[-1])


@pytest.mark.parametrize("method", ["sjd", "scd-maximal", "scd-match", "speculative"])
def test_a_processor_that_looks_right_of_the_slot_is_not(method):
    """The negative control: the oracle that is told of the same processor asks it with the tokens before a slot alone."""
    sampling = Sampling(processors=(later_drafts,))
    with pytest.raises(AssertionError, match="not lossless"):
        assert_lossless_exactly(
            shipped_decoder(method, window=3, sampling=sampling, drafting="random"),
            random_table(1, 2),
            [[0]],
            vocab_size=2,
            length=3,
            sampling=sampling,
        )

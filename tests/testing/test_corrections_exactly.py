"""Corrected laws keep the law, exactly: whatever a corrector predicts, every path of small worlds against the chain rule.

The models depend on the whole context, so no corrector here is right: each predicts laws that are wrong, some of them no laws at
all. What it predicts may cost drafts, never the law.
"""

import itertools
from fractions import Fraction
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coupled_sampling import Decoder, DraftModel, Guidance, GuidedProvider, HostStep, Request, Sampling
from coupled_sampling.drafting import Copy, Repeat
from coupled_sampling.testing import (
    RationalProvider,
    TableProvider,
    assert_lossless_exactly,
    autoregressive_law,
    exact_law,
    random_table,
    rational_table,
    shipped_decoder,
    total_variation,
)
from standins.correctors import dead_after, fractions_of_place, random_fractions, random_low_rank

METHODS = ["scd-maximal", "sjd", "scd-gumbel", "scd-match"]
REJECTING = METHODS[:3]
LOSSLESS = 1e-12
REPEAT, COPY = Repeat(fill=1), Copy(2, fill=0)
"""With a token to begin with, so that the first window is as wide as the others."""


def corrected(corrector):
    """Makes steps with ``corrector``."""
    return partial(HostStep, corrections=corrector)


IN_FRACTIONS = {
    "left": (random_fractions(0, 2, (1,)), 2, 4, 3, REPEAT),
    "left and above": (random_fractions(1, 2, (1, 2)), 2, 4, 4, REPEAT),
    "above alone": (random_fractions(2, 2, (2,)), 2, 4, 4, REPEAT),
    "copies": (random_fractions(3, 2, (1, 2)), 2, 4, 3, COPY),
    "uniform drafts": (random_fractions(4, 2, (1,)), 2, 3, 3, "random"),
    "three tokens": (random_fractions(5, 3, (1, 2)), 3, 3, 3, REPEAT),
    "three tokens, two slots": (random_fractions(6, 3, (1,)), 3, 3, 2, REPEAT),
    "sharper": (random_fractions(8, 2, (2, 1), power=2), 2, 4, 3, REPEAT),
    "by place": (fractions_of_place(9, 2, (1, 2)), 2, 4, 3, REPEAT),
    "dead ends": (dead_after(1, random_fractions(10, 2, (1,))), 2, 4, 3, REPEAT),
    "dead ends above": (dead_after(0, random_fractions(11, 2, (2,))), 2, 4, 4, REPEAT),
}
"""Corrector, vocabulary, length, window, drafting. Each has a model of its own."""


EVERY_OTHER = list(IN_FRACTIONS)[1::2]
CASES = [("scd-maximal", world) for world in IN_FRACTIONS]
CASES += [(method, world) for method in ("sjd", "scd-gumbel", "scd-match") for world in EVERY_OTHER]


@pytest.mark.cases(12)
@pytest.mark.parametrize(("method", "world"), CASES)
def test_in_fractions_nothing_is_left_of_the_distance(method, world):
    corrector, vocab_size, length, window, drafting = IN_FRACTIONS[world]
    calls = corrector.calls
    decode = shipped_decoder(method, window=window, drafting=drafting, step=corrected(corrector))
    model = rational_table(list(IN_FRACTIONS).index(world), vocab_size)
    assert_lossless_exactly(decode, model, [[0, 1]], vocab_size=vocab_size, length=length, arithmetic="rational")
    assert corrector.calls > calls


SIZES = [(2, 3, 3), (2, 3, 2), (2, 4, 2), (2, 4, 3), (2, 4, 4), (3, 3, 2), (3, 3, 3)]
"""Vocabulary, length, window."""


@st.composite
def problems(draw):
    vocab_size, length, window = draw(st.sampled_from(SIZES))
    model = random_table(draw(st.integers(0, 999)), vocab_size, zeros=draw(st.sampled_from([0.0, 0.3])))
    lags = draw(st.sampled_from([(1,), (2,), (1, 2), (2, 1), (1, 3), (1, 2, 3)]))
    corrector = random_low_rank(draw(st.integers(0, 999)), vocab_size, lags, scale=draw(st.sampled_from([0.3, 1, 3])))
    prompt = draw(st.lists(st.integers(0, vocab_size - 1), min_size=1, max_size=4))
    stop = draw(st.one_of(st.just(()), st.tuples(st.integers(0, vocab_size - 1))))
    drafting = draw(st.sampled_from([REPEAT, COPY, "ngram"]))
    return model, corrector, prompt, (vocab_size, length, window), drafting, stop


@pytest.mark.parametrize("method", METHODS)
@settings(derandomize=True, deadline=None, max_examples=3)
@given(problem=problems())
def test_fitted_corrections_keep_the_law_whatever_they_hold(method, problem):
    model, corrector, prompt, (vocab_size, length, window), drafting, stop = problem
    decode = shipped_decoder(method, window=window, drafting=drafting, stop=stop, step=corrected(corrector))
    assert_lossless_exactly(decode, model, [prompt], vocab_size=vocab_size, length=length, stop=stop)


@pytest.mark.parametrize(
    "method", ["scd-maximal", *(pytest.param(method, marks=pytest.mark.long) for method in METHODS[1:])]
)
def test_guidance_of_some_tokens_only_is_exact_with_corrected_laws(method):
    """Laws of other positions, which corrections look at, are of another scale. An interval a token later is another law."""
    table, corrector, scale = rational_table(12, 2), random_fractions(12, 2, (1, 2)), 3

    def law(first, end):
        def guided(context):
            generated = context[1:]
            own = scale if first <= len(generated) < end else 1
            weights = [c**own * u ** (1 - own) for c, u in zip(table(context), table((0, *generated)), strict=True)]
            return [Fraction(weight) / sum(weights) for weight in weights]

        return autoregressive_law(guided, [1], 3)

    def run(noise):
        model = GuidedProvider(RationalProvider(table, 2, 2, 9), Guidance.within(1, 2, scale).scale, [0])
        decoder = Decoder(HostStep(model, method, noise, corrector), window=3, drafting=REPEAT)
        decoder.add(Request([1], length=3))
        made = ()
        while decoder.active or decoder.waiting:
            for commit in decoder.step():
                assert commit.error is None
                made += tuple(commit.tokens.tolist())
        return made

    found = exact_law(run, arithmetic="rational")
    assert total_variation(found, law(1, 2)) == 0
    assert min(total_variation(found, law(*other)) for other in ((0, 2), (1, 3), (2, 3), (0, 3))) > 0.01


@pytest.mark.cases(2)
@pytest.mark.parametrize("method", METHODS)
def test_rows_of_a_batch_keep_their_joint_law(method):
    """Ragged prompts that end anywhere, and a third request that takes over a row that was left."""
    decode = shipped_decoder(
        method, window=3, drafting=REPEAT, stop=(1,), step=corrected(random_low_rank(4, 2, (1, 2)))
    )
    world = {"vocab_size": 2, "stop": (1,)}
    assert_lossless_exactly(decode, random_table(2, 2), [[0], [1, 1, 0]], length=[3, 2], **world)
    assert_lossless_exactly(decode, random_table(3, 2), [[0], [1, 1], [1]], length=[1, 1, 3], rows=2, **world)


@pytest.mark.parametrize("method", REJECTING)
def test_fresh_drafts_that_were_drawn_from_laws(method):
    """Of another model: what is recycled of them is recorded with the corrected laws."""
    drafts = random_table(7, 2)

    def run(noise):
        model = DraftModel(TableProvider(drafts, 2))
        step = HostStep(TableProvider(random_table(8, 2), 2), method, noise, random_low_rank(1, 2, (1,)))
        decoder = Decoder(step, window=3, drafting=model)
        return generated(decoder, Request([0], length=3))

    assert distance(run, random_table(8, 2), [0], 3) < LOSSLESS


def generated(decoder, request):
    """The tokens of one request."""
    decoder.add(request)
    tokens = []
    while decoder.active or decoder.waiting:
        for commit in decoder.step():
            tokens += commit.tokens.tolist()
    return tuple(tokens)


def distance(run, model, prompt, length):
    """Total variation of what ``run`` generates from the chain rule."""
    return total_variation(exact_law(run), autoregressive_law(model, prompt, length))


@pytest.mark.cases(3)
@pytest.mark.parametrize("cut", [1, 2])
@pytest.mark.parametrize("method", METHODS)
def test_an_interrupted_sequence_goes_on_with_its_law(method, cut):
    """In another decoder, with another window and another corrector."""
    table, length = random_table(5, 2), 4

    def run(noise):
        request, tokens = Request([1, 0], length=length), []
        settings = {"method": method, "drafting": REPEAT, "noise": noise}
        first = Decoder(TableProvider(table, 2), window=3, corrections=random_low_rank(1, 2, (1, 2)), **settings)
        first.add(request)
        for _ in range(cut):
            for commit in first.step() if first.active or first.waiting else ():
                tokens += commit.tokens.tolist()
        if len(tokens) == length:
            return tuple(tokens)
        second = Decoder(TableProvider(table, 2), window=4, corrections=random_low_rank(2, 2, (1,)), **settings)
        return (*tokens, *generated(second, request.resumed(tokens)))

    assert distance(run, table, [1, 0], length) < LOSSLESS


@pytest.mark.parametrize("method", METHODS)
def test_a_grammar_of_its_own_contexts_is_exact(method):
    """It raises where a token is below the one before: corrected laws are processed under what stands there now."""
    table, seen, raised = random_table(3, 2), set(), []

    def rising(logits, tokens, positions):
        out = np.full_like(logits, -np.inf)
        for j, position in enumerate(positions):
            context = tokens[:position].tolist()
            seen.add(tuple(context))
            if any(later < earlier for earlier, later in itertools.pairwise(context)):
                raised.append(context)
                raise KeyError(f"no such state: {context}")
            out[j, context[-1] :] = logits[j, context[-1] :]
        return out

    def law(context):
        own = np.array(table(context))
        own[: context[-1]] = 0
        return own / own.sum()

    def run(noise):
        decoder = Decoder(
            TableProvider(table, 2),
            method=method,
            window=3,
            drafting="random",
            noise=noise,
            corrections=random_low_rank(6, 2, (1, 2)),
        )
        return generated(decoder, Request([0], length=3, sampling=Sampling(processors=(rising,))))

    assert distance(run, law, [0], 3) < LOSSLESS
    assert raised


WARPS = [Sampling(temperature=0.5), Sampling(top_k=2), Sampling(top_p=0.8), Sampling(0.5, min_p=0.2)]


@pytest.mark.cases(2)
@pytest.mark.parametrize("sampling", WARPS, ids=str)
def test_laws_are_corrected_before_they_are_warped(sampling):
    """In fractions: the corrector sees the model's own logits, and the law that is recorded is warped."""
    decode = shipped_decoder(
        "scd-maximal", window=2, drafting=REPEAT, sampling=sampling, step=corrected(random_fractions(4, 3, (1,)))
    )
    world = {"vocab_size": 3, "length": 3, "sampling": sampling, "arithmetic": "rational"}
    assert_lossless_exactly(decode, rational_table(2, 3), [[0]], **world)

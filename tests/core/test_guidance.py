"""Guided logits against two full evaluations, for prompts of any length; requests with guidance of their own are beside."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coupled_sampling import GuidedProvider, Request, generate
from coupled_sampling.errors import InvalidArgument, InvalidLogits
from coupled_sampling.testing import TableProvider, random_table

V, TABLE = 4, random_table(11, 4)


def guided_law(prompt, unconditional, scale):
    """Law of the next token after all of ``prompt`` and what was generated."""

    def law(context):
        assert context[: len(prompt)] == tuple(prompt)
        conditional = np.log(TABLE(context))
        other = np.log(TABLE((*unconditional, *context[len(prompt) :])))
        weights = np.exp(other + scale * (conditional - other))
        return weights / weights.sum()

    return law


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=7), min_size=1, max_size=3),
    st.lists(st.integers(0, 3), min_size=1, max_size=7),
    st.integers(1, 6),
    st.sampled_from([0.0, 1.0, 2.5]),
    st.sampled_from(["scd-match", "ar", "scd-maximal"]),
)
def test_guidance_decodes_the_law_of_both_prompts(prompts, unconditional, window, scale, method):
    guided = GuidedProvider(TableProvider(TABLE, V, 4, 40), scale, unconditional)
    tokens = generate(guided, prompts, length=9, method=method, window=window, seed=4, drafting="repeat").tokens
    for i, prompt in enumerate(prompts):
        oracle = TableProvider(guided_law(prompt, unconditional, scale), V, max_length=40)
        # Sequence i of the batch: give the oracle the same place in the list of prompts.
        expected = generate(
            _Only(oracle, prompt), [prompt] * (i + 1), length=9, method=method, window=window, seed=4, drafting="repeat"
        ).tokens[i]
        np.testing.assert_array_equal(tokens[i], expected)


UNCONDITIONAL = {
    "one": [3],
    "long": [2, 0, 1, 3, 3, 1],
    "made from the prompt": lambda prompt: [*prompt[::-1], 1, 2][: len(prompt) + 2 if len(prompt) % 2 else 1],
}
"""Shorter than the prompts below, longer than most, and now shorter and now longer: the last one looks at all of the prompt."""
PROMPTS = [[1], [0, 2, 3, 1], [3, 3], [2, 1, 0, 0, 3, 2, 1], [1, 2, 3]]


@pytest.mark.parametrize("method", ["scd-match", "scd-maximal"])
@pytest.mark.parametrize("window", [1, 2, 4, 7])
@pytest.mark.parametrize("unconditional", UNCONDITIONAL.values(), ids=UNCONDITIONAL)
def test_rows_that_are_used_again_forget_the_pair_of_prompts_before(unconditional, window, method):
    """Five prompts over two rows: every row goes on to prompts that are shifted by other numbers than the ones before."""
    settings = {"length": 7, "method": method, "window": window, "seed": 8, "drafting": "repeat"}
    guided = GuidedProvider(TableProvider(TABLE, V, 4, 40), 2.5, unconditional)
    found = generate(guided, PROMPTS, **settings).tokens
    for i, prompt in enumerate(PROMPTS):
        own = unconditional(np.array(prompt)) if callable(unconditional) else unconditional
        oracle = TableProvider(guided_law(prompt, own, 2.5), V, max_length=40)
        expected = generate(_Only(oracle, prompt), [prompt] * (i + 1), **settings).tokens[i]
        np.testing.assert_array_equal(found[i], expected)


class _Only:
    """The oracle, asked only past its prompt: laws inside the prompt do not exist for it."""

    def __init__(self, table, prompt):
        self.table, self.prompt = table, prompt
        self.vocab_size, self.batch_size, self.max_length = V, 1, table.max_length
        inner = table.next_law
        table.next_law = lambda context: inner(context) if len(context) >= len(prompt) else np.full(V, 1 / V)

    def forward(self, tokens, start):
        return self.table.forward(tokens, start)


def test_scale_one_is_the_conditional_law_and_zero_the_unconditional():
    for scale, which in [(1.0, [0, 2]), (0.0, [3, 3])]:
        guided = GuidedProvider(TableProvider(TABLE, V, 2, 40), scale, [3, 3])
        tokens = np.array([[0, 2, 1, 1]])
        logits = guided.forward(tokens, np.zeros(1, np.int64))
        expected = TableProvider(TABLE, V).forward(np.array([[*which, 1, 1]]), np.zeros(1, np.int64))
        np.testing.assert_allclose(logits[0, 1:], expected[0, 1:], atol=1e-12)


@pytest.mark.parametrize("scale", [1e39, -1e308])
def test_a_scale_beyond_the_type_of_the_logits_fails_the_request_and_says_nothing_else(scale):
    class Single(TableProvider):
        def forward(self, tokens, start):
            return super().forward(tokens, start).astype(np.float32)

    guided = GuidedProvider(Single(TABLE, V, 2, 40), scale, [1])
    with pytest.raises(InvalidLogits):
        generate(guided, [[0]], length=3)


def test_a_forbidden_token_stays_forbidden():
    table = lambda context: np.array([0.5, 0.5, 0.0]) if context[0] == 0 else np.array([0.2, 0.6, 0.2])  # noqa: E731
    guided = GuidedProvider(TableProvider(table, 3, 2), 3.0, [1])
    logits = guided.forward(np.array([[0]]), np.zeros(1, np.int64))
    assert logits[0, 0, 2] == -np.inf
    assert np.isfinite(logits[0, 0, :2]).all()
    nothing_of_it = GuidedProvider(TableProvider(table, 3, 2), 0.0, [1])
    assert nothing_of_it.forward(np.array([[0]]), np.zeros(1, np.int64))[0, 0, 2] == np.log(0.2)


def test_the_model_is_told_both_prompts_row_by_row():
    class Conditioned(TableProvider):
        told = ()

        def begin(self, row, request):
            self.told = (*self.told, (row, list(request.prompt)))

    inner = Conditioned(TABLE, V, 4)
    guided = GuidedProvider(inner, 1.5, lambda prompt: [*prompt, 3])
    guided.begin(1, Request([1, 2], length=1))
    guided.begin(0, Request([0], length=1))
    assert sorted(inner.told) == [(0, [0]), (1, [0, 3]), (2, [1, 2]), (3, [1, 2, 3])]


def test_half_precision_is_combined_in_float32():
    class Half(TableProvider):
        def forward(self, tokens, start):
            return super().forward(tokens, start).astype(np.float16)

    guided = GuidedProvider(Half(TABLE, V, 2), 7.3, [3])
    tokens = np.array([[0, 2]])
    logits = guided.forward(tokens, np.zeros(1, np.int64))
    both = Half(TABLE, V, 2).forward(np.array([[0, 2], [3, 2]]), np.zeros(2, np.int64)).astype(np.float32)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits[0], both[1] + 7.3 * (both[0] - both[1]), rtol=1e-5)


def test_what_cannot_be_guided_is_refused():
    with pytest.raises(InvalidArgument, match="even"):
        GuidedProvider(TableProvider(TABLE, V, 3), 1.5, [0])
    with pytest.raises(InvalidArgument, match="scale"):
        GuidedProvider(TableProvider(TABLE, V, 2), float("nan"), [0])
    for prompt in ([], [4], [-1]):
        with pytest.raises(InvalidArgument, match="unconditional prompt"):
            GuidedProvider(TableProvider(TABLE, V, 2), 1.5, prompt)
    guided = GuidedProvider(TableProvider(TABLE, V, 2, 12), 1.5, [0] * 8)
    with pytest.raises(InvalidArgument, match="cached positions"):
        generate(guided, [[1]], length=9, window=4)
    guided = GuidedProvider(TableProvider(TABLE, V, 2, 12), 1.5, lambda prompt: [0] * 8)
    with pytest.raises(InvalidArgument, match="8 tokens and length 9 need 16 cached positions, the model holds 12"):
        generate(guided, [[1]], length=9, window=4)


@pytest.mark.parametrize("window", [1, 3, 8])
def test_what_just_fits_is_decoded_and_one_position_more_is_refused(window):
    """A fixed unconditional prompt of 5 leaves 12 - 4 positions to a row; one that is made from the prompt is judged by request."""
    fixed = GuidedProvider(TableProvider(TABLE, V, 2, 12), 1.5, [0] * 5)
    assert (fixed.max_length, fixed.max_window) == (8, 8)
    made = GuidedProvider(TableProvider(TABLE, V, 2, 12), 1.5, lambda prompt: [0] * 5)
    assert (made.max_length, made.max_window) == (12, 12)
    for guided, refusal in (
        (fixed, "cached positions"),
        (made, "an unconditional prompt of 5 tokens and length 9 need 13 cached"),
    ):
        assert len(generate(guided, [[1]], length=8, window=window, method="scd-match").tokens[0]) == 8
        with pytest.raises(InvalidArgument, match=refusal):
            generate(guided, [[1]], length=9, window=window, method="ar")


def test_rows_of_very_different_prompts_fit_together_if_each_fits_alone():
    guided = GuidedProvider(TableProvider(TABLE, V, 4, 24), 2.0, [1] * 5)
    tokens = generate(guided, [[0], [1] * 18], length=2, method="ar", window=18).tokens
    assert [len(t) for t in tokens] == [2, 2]


def test_a_token_only_the_unconditional_row_forbids():
    table = lambda context: np.array([0.5, 0.5]) if context[0] == 0 else np.array([1.0, 0.0])  # noqa: E731
    found = {}
    for scale in (0.0, 0.5, 1.0, 2.0):
        guided = GuidedProvider(TableProvider(table, 2, 2), scale, [1])
        found[scale] = guided.forward(np.array([[0]]), np.zeros(1, np.int64))[0, 0, 1]
    assert found[1.0] == np.log(0.5)
    assert found[0.0] == found[0.5] == -np.inf
    assert found[2.0] == np.inf
    with pytest.raises(InvalidLogits, match=r"\+inf"):
        generate(GuidedProvider(TableProvider(table, 2, 2), 2.0, [1]), [[0]], length=2)

"""Guidance of a request's own: scales that change from token to token, negative prompts, and what is refused beforehand."""

import itertools
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coupled_sampling import Decoder, DraftModel, Guidance, GuidedProvider, Request
from coupled_sampling.contracts import Forks, RowRanges
from coupled_sampling.drafting import Repeat
from coupled_sampling.errors import InvalidArgument
from coupled_sampling.methods import METHODS
from coupled_sampling.testing import (
    RationalProvider,
    TableProvider,
    autoregressive_law,
    exact_law,
    joint_law,
    random_table,
    rational_table,
    total_variation,
)
from standins.ranged import Ranged, RangedFractions, Unforked

V, TABLE = 4, random_table(21, 4)
KINDS = [TableProvider, Ranged, Unforked]


def decoded(model, requests, **decoder):
    """The generated tokens of each request; a request that fails raises."""
    loop = Decoder(model, **decoder)
    handles = [loop.add(request) for request in requests]
    found = {}
    while loop.active or loop.waiting:
        for commit in loop.step():
            if commit.error is not None:
                raise commit.error
            found[commit.handle] = (*found.get(commit.handle, ()), *commit.tokens.tolist())
    many = [range(handle, handle + request.samples) for handle, request in zip(handles, requests, strict=True)]
    return [found[handle] for own in many for handle in own]


def guided_law(request, own_scale, own_unconditional):
    """The oracle: the law of the next token after the prompt and all that was generated."""
    guidance = request.guidance or Guidance()
    unconditional = own_unconditional if guidance.unconditional is None else guidance.unconditional
    scale = own_scale if guidance.scale is None else guidance.scale

    def law(context):
        generated = context[len(request.prompt) :]
        if len(context) < len(request.prompt):
            return np.full(V, 1 / V)
        index = np.array([len(generated)])
        at = float(scale(index)[0]) if callable(scale) else scale
        conditional, other = np.log(TABLE(context)), np.log(TABLE((*unconditional, *generated)))
        weights = np.exp(other + at * (conditional - other))
        return weights / weights.sum()

    return law


def falling(index):
    return np.maximum(3.0 - 0.75 * index, 0.0)


SCALES = [
    None,
    0.0,
    1.0,
    2.5,
    falling,
    Guidance.until(2, 3.0).scale,
    Guidance.within(1, 3, 3.0).scale,
    lambda index: np.where(index == 1, 0.0, 1.0),
]
TOKENS = st.integers(0, V - 1)
SIZES = st.integers(1, 10)


@st.composite
def requests(draw):
    guidance = None
    if draw(st.booleans()):
        unconditional = draw(st.none() | st.lists(TOKENS, min_size=1, max_size=6))
        guidance = Guidance(draw(st.sampled_from(SCALES)), unconditional)
    prompt = draw(st.lists(TOKENS, min_size=1, max_size=7))
    return Request(prompt, draw(st.integers(1, 6)), sequence=None, guidance=guidance)


MEMORY = 12


@st.composite
def tight_requests(draw):
    """Both prompts of any length that a small memory holds, and few tokens more."""
    own, other = (draw(st.lists(TOKENS, min_size=size, max_size=size)) for size in draw(st.tuples(SIZES, SIZES)))
    length = draw(st.integers(1, min(4, MEMORY + 1 - max(len(own), len(other)))))
    return Request(own, length, sequence=None, guidance=Guidance(draw(st.sampled_from(SCALES)), other))


def numbered(asked):
    return [Request(r.prompt, r.length, seed=4, sequence=i, guidance=r.guidance) for i, r in enumerate(asked)]


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    st.lists(requests(), min_size=1, max_size=4),
    st.lists(TOKENS, min_size=1, max_size=4),
    st.integers(1, 6),
    st.sampled_from(["scd-match", "ar", "scd-maximal", "sjd"]),
    st.sampled_from(KINDS),
    st.integers(1, 6),
)
def test_each_request_is_decoded_by_its_own_guidance(asked, unconditional, window, method, kind, chunk):
    asked, how = numbered(asked), {"method": method, "window": window, "drafting": "repeat"}
    guided = GuidedProvider(kind(TABLE, V, 4, 40), 1.5, unconditional)
    found = decoded(guided, asked, prompt_chunk=chunk, **how)
    for request, tokens in zip(asked, found, strict=True):
        oracle = TableProvider(guided_law(request, 1.5, unconditional), V, max_length=40)
        alone = Request(request.prompt, request.length, seed=4, sequence=request.sequence)
        assert tokens == decoded(oracle, [alone], **how)[0]


@settings(max_examples=120, deadline=None, derandomize=True)
@given(
    st.lists(tight_requests(), min_size=2, max_size=3),
    st.sampled_from([3, 8, MEMORY]),
    st.sampled_from(["scd-match", "scd-maximal"]),
    st.sampled_from(KINDS),
)
def test_what_fits_alone_is_decoded_together_with_the_same_tokens(asked, window, method, kind):
    """A window as wide as one row needs may be wider than what the model has left for another one's unconditional row."""
    how = {"method": method, "window": window, "drafting": "repeat"}
    asked = numbered(asked)
    together = decoded(GuidedProvider(kind(TABLE, V, 6, MEMORY), 1.5, [1]), asked, **how)
    for request, tokens in zip(asked, together, strict=True):
        assert decoded(GuidedProvider(kind(TABLE, V, 2, MEMORY), 1.5, [1]), [request], **how)[0] == tokens


@pytest.mark.parametrize("kind", KINDS)
def test_a_window_wider_than_what_an_unconditional_row_has_left(kind):
    """The case itself: 11 of 12 positions for a prompt of 8, and beside it a prompt of 10 in one window."""
    asked = [
        Request([1], 4, sequence=0, guidance=Guidance(unconditional=[2, 0, 1, 3, 3, 1, 0, 2])),
        Request([1, 0, 2, 2, 0, 3, 1, 1, 3, 2], 2, sequence=1),
    ]
    how = {"method": "scd-match", "window": 11, "drafting": "repeat"}
    together = decoded(GuidedProvider(kind(TABLE, V, 4, 12), 2.0, [3]), asked, **how)
    for request, tokens in zip(asked, together, strict=True):
        assert decoded(GuidedProvider(kind(TABLE, V, 2, 12), 2.0, [3]), [request], **how)[0] == tokens


def test_slots_behind_the_end_of_a_request_have_no_guided_logits_if_there_is_no_room_for_them():
    guided = GuidedProvider(TableProvider(TABLE, V, 2, 6), 2.0, lambda prompt: [0, 1, 2])
    guided.begin(0, Request([1], length=4))
    logits = guided.forward(np.zeros((1, 6), np.int64), np.zeros(1, np.int64))
    np.testing.assert_array_equal(np.isnan(logits[0]).all(axis=1), [False] * 4 + [True] * 2)
    with pytest.raises(InvalidArgument, match="row 0: its unconditional row would reach position 6, the model holds 6"):
        guided.forward(np.zeros((1, 3), np.int64), np.full(1, 2))


METHODS_BY_NAME = sorted(METHODS)
INTEGERS = [
    (Guidance(3), [1]),
    (Guidance(lambda index: 2 - index, unconditional=[0, 0, 1]), [1]),
    (Guidance.until(1, 2, unconditional=[0]), [1, 0, 1]),
    (Guidance(0, unconditional=[1, 1]), [0, 1, 1]),
]
"""Guidance, prompt; scales are integers, so that powers of fractions are fractions. The second one is 2, 1, then 0."""


def fractions(table, guidance, prompt):
    """The oracle in fractions."""

    def law(context):
        generated = context[len(prompt) :]
        scale = int(guidance.scales(np.array([len(generated)]), own=1.0)[0])
        pairs = zip(table(context), table((*(guidance.unconditional or [0]), *generated)), strict=True)
        weights = [c**scale * u ** (1 - scale) for c, u in pairs]
        return [Fraction(weight) / sum(weights) for weight in weights]

    return law


@pytest.mark.cases(20)
@pytest.mark.parametrize("method", METHODS_BY_NAME)
@pytest.mark.parametrize("case", range(len(INTEGERS)))
@pytest.mark.parametrize("kind", [RationalProvider, RangedFractions])
def test_the_law_is_exactly_that_of_the_requests_own_guidance(kind, case, method):
    guidance, prompt = INTEGERS[case]
    table = rational_table(6, 2)

    def run(noise):
        model = GuidedProvider(kind(table, 2, 2, 9), 5, [0])
        asked = [Request(prompt, length=3, guidance=guidance)]
        return decoded(model, asked, method=method, window=2, drafting=Repeat(fill=0), noise=noise, prompt_chunk=1)[0]

    expected = autoregressive_law(fractions(table, guidance, prompt), prompt, 3)
    assert total_variation(exact_law(run, arithmetic="rational"), expected) == 0


@pytest.mark.parametrize("method", ["scd-gumbel", "scd-maximal", "scd-match", "speculative"])
def test_two_requests_at_once_have_independent_laws_of_their_own(method):
    table = rational_table(9, 2)
    first, second = INTEGERS[1], INTEGERS[2]

    def run(noise):
        model = GuidedProvider(RationalProvider(table, 2, 4, 9), 5, [0])
        asked = [Request(prompt, 2, sequence=i, guidance=own) for i, (own, prompt) in enumerate((first, second))]
        return tuple(decoded(model, asked, method=method, window=3, drafting=Repeat(fill=0), noise=noise))

    alone = [autoregressive_law(fractions(table, *own), own[1], 2) for own in (first, second)]
    assert total_variation(exact_law(run, arithmetic="rational"), joint_law(alone)) == 0


@pytest.mark.parametrize("method", ["scd-gumbel", "scd-maximal", "scd-match"])
def test_samples_that_share_a_prompt_are_independent_and_have_its_law(method):
    table, (guidance, prompt) = rational_table(4, 2), INTEGERS[1]

    def run(noise):
        model = GuidedProvider(RangedFractions(table, 2, 4, 9), 5, [0])
        asked = [Request([*prompt, 0, 1], 2, samples=2, guidance=guidance)]
        return tuple(decoded(model, asked, method=method, window=2, drafting=Repeat(fill=0), noise=noise))

    alone = autoregressive_law(fractions(table, guidance, [*prompt, 0, 1]), [*prompt, 0, 1], 2)
    assert total_variation(exact_law(run, arithmetic="rational"), joint_law([alone, alone])) == 0


def test_every_slot_is_mixed_at_its_own_scale_forbidden_tokens_included():
    table = random_table(7, V, zeros=0.4)
    scales = np.array([0.0, 0.5, 1.0, 2.0, 2.0, 1.0, 0.0])
    tokens, start = np.array([[1, 2, 0, 3, 3, 1, 2, 0]]), np.zeros(1, np.int64)
    guided = GuidedProvider(TableProvider(table, V, 2), 9.0, [3])
    guided.begin(0, Request([1, 2], 7, guidance=Guidance(lambda index: scales[index])))
    found = guided.forward(tokens, start)
    for index, scale in enumerate(scales):
        constant = GuidedProvider(TableProvider(table, V, 2), scale, [3])
        constant.begin(0, Request([1, 2], 7))
        np.testing.assert_array_equal(found[:, index + 1], constant.forward(tokens, start)[:, index + 1])
    assert np.isinf(found).any()


def test_a_request_whose_scale_fails_when_it_begins_stops_no_other():
    calls = []

    def fickle(index):
        calls.append(index)
        if len(calls) > 1:
            raise RuntimeError("gone")
        return np.full(len(index), 2.0)

    loop = Decoder(GuidedProvider(TableProvider(TABLE, V, 4, 16), 2.0, [0]), window=4)
    first, second = loop.add(Request([0], 5, guidance=Guidance(fickle))), loop.add(Request([0], 5, sequence=1))
    ends = {}
    while loop.active or loop.waiting:
        ends.update({commit.handle: commit for commit in loop.step() if commit.finished})
    assert ends[second].reason == "length"
    assert ends[first].reason == "error"
    assert "request 0: guidance.scale raised RuntimeError: gone" in str(ends[first].error)


def test_a_draft_model_leaves_the_law_of_guidance_alone():
    """In floats, with a scale that is no integer."""
    request = Request([1, 3], 2, guidance=Guidance(falling, [2]))

    def run(noise):
        model = GuidedProvider(TableProvider(TABLE, V, 2, 9), 5, [0])
        rule = DraftModel(TableProvider(random_table(5, V), V, 1, 9))
        return decoded(model, [request], method="speculative", window=2, drafting=rule, noise=noise)[0]

    expected = autoregressive_law(guided_law(request, 5, [0]), request.prompt, 2)
    assert total_variation(exact_law(run), expected) < 1e-12


class TestOffers:
    def test_rows_can_be_chosen_where_the_provider_can(self):
        for kind, can in ((TableProvider, False), (Ranged, True)):
            guided = GuidedProvider(kind(TABLE, V, 2, 40), 2.0, [0])
            assert isinstance(guided, RowRanges) is can
            assert isinstance(guided, GuidedProvider)

    def test_a_range_of_rows_touches_no_other(self):
        inner = Ranged(TABLE, V, 6, 40)
        guided = GuidedProvider(inner, 2.0, [0, 1])
        tokens, start = np.array([[2, 1, 3]]), np.zeros(1, np.int64)
        expected = GuidedProvider(TableProvider(TABLE, V, 2, 40), 2.0, [0, 1]).forward(tokens, start)
        before = inner._held.copy()
        np.testing.assert_array_equal(guided.forward_rows(tokens, start, range(2, 3)), expected)
        assert inner.asked == [(range(4, 6), 3)]
        np.testing.assert_array_equal(inner._held[:4], before[:4])
        for wrong in (range(3, 4), range(0, 2), range(2, 1, -1)):
            with pytest.raises(InvalidArgument, match="expected a range of 1 consecutive rows"):
                guided.forward_rows(tokens, start, wrong)

    def test_a_longer_prompt_of_the_unconditional_row_is_opened_alone_and_in_chunks(self):
        inner = Ranged(TABLE, V, 4, 40)
        guided = GuidedProvider(inner, 2.0, [0])
        guided.begin(1, Request([1], length=9, guidance=Guidance(unconditional=[2, 0, 1, 3, 3, 1, 0, 2])))
        guided.forward_rows(np.array([[1, 1]]), np.zeros(1, np.int64), range(1, 2))
        assert inner.asked == [(range(3, 4), 3), (range(3, 4), 3), (range(3, 4), 1), (range(2, 4), 2)]
        assert inner._held[3, :9].tolist() == [2, 0, 1, 3, 3, 1, 0, 2, 1]

    def test_prompts_are_read_as_the_provider_likes(self):
        assert GuidedProvider(Ranged(TABLE, V, 2, 40), 2.0, [0]).prompt_chunk == 3
        assert GuidedProvider(TableProvider(TABLE, V, 2, 1000), 2.0, [0]).prompt_chunk == 256
        assert GuidedProvider(TableProvider(TABLE, V, 2, 40), 2.0, [0] * 5).prompt_chunk == 36

    @pytest.mark.parametrize("unconditional", [[0], [2, 1, 0, 0, 3, 1]])
    @pytest.mark.parametrize("method", ["scd-match", "scd-maximal"])
    def test_samples_of_one_prompt_share_it(self, method, unconditional):
        guidance = Guidance(falling, unconditional)
        asked = [Request([1, 2, 0, 3], 6, seed=3, samples=3, guidance=guidance)]
        how = {"method": method, "window": 3, "drafting": Repeat(fill=3)}
        forked, unforked = Ranged(TABLE, V, 6, 40), Unforked(TABLE, V, 6, 40)
        found = decoded(GuidedProvider(forked, 2.0, [0]), asked, **how)
        assert found == decoded(GuidedProvider(unforked, 2.0, [0]), asked, **how)
        assert len(set(found)) > 1
        reading = list(itertools.takewhile(lambda call: call[0].stop <= 2, forked.asked))
        assert reading[-1] == (range(2), 3)
        rest = [(rows.start, rows.stop) for rows, _ in forked.asked[len(reading) :]]
        assert set(rest) <= {(0, 6), (2, 6), (0, 4), (4, 6), (2, 4), (0, 2)}
        assert rest[0] == (0, 6)  # nobody else has read

    def test_forks_are_offered_where_the_provider_can(self):
        guided = GuidedProvider(Unforked(TABLE, V, 4, 40), 2.0, [0])
        assert isinstance(guided, Forks)
        assert not guided.forks
        with pytest.raises(InvalidArgument, match="Unforked cannot fork"):
            guided.fork(0, [1], 1)

    def test_a_fork_takes_the_pair_along(self):
        inner = TableProvider(TABLE, V, 4, 40)
        guided = GuidedProvider(inner, 2.0, lambda prompt: [3, 3, 2, 1])
        guided.begin(0, Request([1, 2], length=5))
        guided.forward(np.array([[1, 2, 0]]), np.zeros(1, np.int64))
        guided.fork(0, [1], 3)
        assert inner._held[2, :3].tolist() == [1, 2, 0]
        assert inner._held[3, :5].tolist() == [3, 3, 2, 1, 0]
        tokens, start = np.array([[1], [1]]), np.full(2, 3)
        logits = guided.forward(tokens, start)
        np.testing.assert_array_equal(logits[0], logits[1])

    def test_a_fork_to_a_row_with_other_prompts_is_refused(self):
        guided = GuidedProvider(TableProvider(TABLE, V, 4, 40), 2.0, [3])
        guided.begin(0, Request([1, 2], length=5))
        for other in (Request([1], 5), Request([1, 2], 5, guidance=Guidance(unconditional=[2]))):
            guided.begin(1, other)
            with pytest.raises(InvalidArgument, match="fork between requests with the same prompts"):
                guided.fork(0, [1], 1)


class Told(TableProvider):
    """Looks at conditions: each adds to the logits of one token."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.conditions = [0] * self.batch_size

    def begin(self, row, request):
        assert request.guidance is None
        self.conditions[row] = request.condition or 0

    def forward(self, tokens, start):
        logits = super().forward(tokens, start).copy()
        for row in range(len(tokens)):
            logits[row, :, self.conditions[row]] += 1
        return logits


def test_both_rows_are_told_the_condition_and_the_unconditional_one_another_if_it_is_given():
    guided = GuidedProvider(Told(TABLE, V, 4, 40), 2.0, [0])
    guided.begin(0, Request([0], 1, condition=2))
    guided.begin(1, Request([0], 1, condition=2, guidance=Guidance(condition=3)))
    assert guided.provider.conditions == [2, 2, 2, 3]


def poisoned(index):
    raise KeyError("no such scale")


@pytest.mark.parametrize(
    ("guidance", "reason"),
    [
        (Guidance(poisoned), "guidance.scale raised KeyError: 'no such scale'"),
        (
            Guidance(lambda index: index[:-1]),
            "guidance.scale returned .* for 5 indices, expected as many finite numbers",
        ),
        (Guidance(lambda index: index / 0), "guidance.scale returned"),
        (Guidance(lambda index: [2.0] * 3 + [float("inf")] * 2), "guidance.scale returned"),
        (Guidance(lambda index: index * 1j), "guidance.scale returned"),
        (Guidance(unconditional=[4]), r"unconditional prompt token 0 is 4, expected tokens in \[0, 4\)"),
        (Guidance(unconditional=[0] * 17), "unconditional prompt has 17 tokens, the model holds 16"),
        (Guidance(unconditional=[0] * 13), "13 tokens and length 5 need 17 cached positions, the model holds 16"),
    ],
)
@pytest.mark.filterwarnings("ignore:(divide|invalid):RuntimeWarning")
def test_guidance_that_cannot_be_done_is_refused_before_anything_runs(guidance, reason):
    inner = TableProvider(TABLE, V, 2, 16)
    decoder = Decoder(GuidedProvider(inner, 2.0, [0]), window=4)
    with pytest.raises(InvalidArgument, match=f"request cannot be guided: .*{reason}"):
        decoder.check(Request([0], 5, guidance=guidance))
    assert inner.calls == 0
    decoder.check(Request([0], 5, guidance=Guidance(unconditional=[0] * 12)))


def test_a_model_that_makes_its_unconditional_prompts_may_fail_for_a_request():
    decoder = Decoder(
        GuidedProvider(TableProvider(TABLE, V, 2, 16), 2.0, lambda prompt: [0] if prompt[0] else prompt[9]), window=4
    )
    decoder.check(Request([1], 5))
    with pytest.raises(InvalidArgument, match="the function that makes unconditional prompts raised IndexError"):
        decoder.check(Request([0], 5))


def test_what_the_provider_refuses_is_refused_for_both_rows():
    class Particular(Told):
        def takes(self, request):
            return "has a condition that is not mine" if request.condition == 3 else None

    guided = GuidedProvider(Particular(TABLE, V, 2, 16), 2.0, [0])
    assert guided.takes(Request([0], 5, condition=2)) is None
    assert guided.takes(Request([0], 5, condition=3)) == "has a condition that is not mine"
    other = Request([0], 5, guidance=Guidance(condition=3))
    assert guided.takes(other) == "has an unconditional row that has a condition that is not mine"
    assert "no begin" in GuidedProvider(TableProvider(TABLE, V, 2, 16), 2.0, [0]).takes(Request([0], 5, condition=1))


@pytest.mark.parametrize("tokens", [-1, 1.5, True, None])
def test_until_counts_tokens(tokens):
    with pytest.raises(InvalidArgument, match="tokens is"):
        Guidance.until(tokens, 2.0)


def test_until_is_for_the_first_tokens():
    guidance = Guidance.until(2, 3.0, unconditional=[1])
    assert guidance.scales(np.arange(4), own=9.0).tolist() == [3.0, 3.0, 1.0, 1.0]
    assert guidance.unconditional == [1]
    assert Guidance.until(2, 3.0) == Guidance.until(2, 3.0)


def test_until_needs_a_number():
    for scale in (None, float("nan"), falling):
        with pytest.raises(InvalidArgument, match="scale is"):
            Guidance.until(1, scale)


@pytest.mark.parametrize("split", [list(part) for n in range(4) for part in itertools.combinations(range(1, 4), n)])
def test_an_interrupted_request_goes_on_at_the_index_where_it_was(split):
    """Indices of generated tokens count from the prompt's end, not from where the sequence is taken up again."""
    how = {"method": "scd-match", "window": 2, "drafting": "repeat"}
    request = Request([1, 3], 4, guidance=Guidance(lambda index: 4.0 - 2 * index, [2]))
    whole = decoded(GuidedProvider(TableProvider(TABLE, V, 2, 16), 2.0, [0]), [request], **how)[0]
    for done in split:
        rest = request.resumed(whole[:done])
        assert decoded(GuidedProvider(TableProvider(TABLE, V, 2, 16), 2.0, [0]), [rest], **how)[0] == whole[done:]

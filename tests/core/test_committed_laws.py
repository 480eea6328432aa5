"""Rules that ask for the laws of committed tokens: they get these laws and no others, and drafts drawn from them bias nothing."""

import numpy as np
import pytest

from coupled_sampling import Decoder, Request, Sampling, generate
from coupled_sampling.drafting import AsksForLaws, Proposal, proposal_sites
from coupled_sampling.errors import InvalidArgument, RequestFailed
from coupled_sampling.noise import Purpose
from coupled_sampling.testing import (
    TableProvider,
    assert_lossless_exactly,
    random_table,
    shipped_decoder,
)
from standins.requested import run

METHODS = ["sjd", "scd-maximal", "scd-gumbel", "speculative", "scd-match", "speculative-match"]
V = 5


class LawBefore:
    """Drafts are drawn from the law of the token ``lag`` positions before; uniformly where that is not committed.

    Where all of them have a law these are handed on as they came, without a copy.
    """

    carries_laws = True

    def __init__(self, lag=1, laws_back=None):
        self.lag, self.laws_back = lag, lag if laws_back is None else laws_back

    def propose(self, contexts, noise, *, vocab_size, shared):
        return [self._propose(context, noise, vocab_size, shared) for context in contexts]

    def _propose(self, context, noise, vocab_size, shared):
        first = len(context.tokens) - self.lag
        found = [context.law_at(first + i) for i in range(context.wanted)]
        if any(law is None for law in found):
            laws = np.stack([np.full(vocab_size, 1 / vocab_size) if law is None else np.asarray(law) for law in found])
        else:
            begin = len(context.laws) - (context.laws_end - first)
            laws = context.laws[begin : begin + context.wanted]
        sites = proposal_sites([context], 0, context.wanted)
        draw = noise.shared if shared else noise.categorical
        purpose = () if shared else (Purpose.PROPOSE,)
        return Proposal(np.asarray(draw(laws[None], sites, *purpose, where=sites.valid)[0], np.int64), laws)


class Watching(LawBefore):
    """Checks what it is given against ``law_of(context)``, the target law."""

    def __init__(self, law_of, laws_back, begins=None):
        super().__init__(2, laws_back)
        self.law_of, self.begins, self.held, self.most = law_of, begins, [], 0

    def propose(self, contexts, noise, *, vocab_size, shared):
        for context in contexts:
            tokens, end = context.tokens.tolist(), context.laws_end
            begin = context.prompt_length if self.begins is None else self.begins
            count = min(self.laws_back, end - begin)
            assert (0 if context.laws is None else len(context.laws)) == count
            for position in range(len(tokens) + 3):
                law = context.law_at(position)
                if not end - count <= position < end:
                    assert law is None
                    continue
                np.testing.assert_allclose(law, self.law_of(tuple(tokens[:position])), atol=1e-6)
                self.held.append((law, np.array(law)))
            self.most = max(self.most, count)
        return super().propose(contexts, noise, vocab_size=vocab_size, shared=shared)


@pytest.mark.parametrize("method", METHODS)
def test_the_laws_are_the_target_laws_of_the_committed_tokens(method):
    table, sampling = random_table(0, V), Sampling(temperature=0.7, top_k=3)

    def law_of(context):
        law = np.array(table(context))
        weights = (law * (law >= np.sort(law)[-3])) ** (1 / 0.7)
        return weights / weights.sum()

    watching = Watching(law_of, laws_back=4)
    settings = {"length": [20, 3, 17], "method": method, "window": 4, "sampling": sampling, "seed": 2}
    generate(TableProvider(table, V, 2), [[0], [1, 2], [3]], drafting=watching, **settings)
    assert watching.most == 4
    assert watching.held
    for law, before in watching.held:
        np.testing.assert_array_equal(law, before, "what was handed over was written to later")


@pytest.mark.parametrize("method", ["scd-maximal", "scd-match"])
def test_tokens_that_a_resumed_request_brought_have_no_laws(method):
    table = random_table(0, V)
    watching = Watching(table, laws_back=3, begins=4)
    decoder = Decoder(TableProvider(table, V), method=method, window=4, drafting=watching)
    decoder.add(Request([1, 2], 15, generated=[3, 0]))
    (commits,) = run(decoder).values()
    assert commits[-1].reason == "length"
    assert watching.most == 3


@pytest.mark.parametrize("method", ["scd-match", "speculative-match"])
def test_under_match_the_tokens_are_those_of_ar(method):
    settings = {"length": 40, "seed": 7}
    plain = generate(TableProvider(random_table(1, V), V), [[0], [2, 1]], method="ar", **settings).tokens
    for lag in (1, 3):
        model = TableProvider(random_table(1, V), V)
        drafted = generate(model, [[0], [2, 1]], method=method, window=5, drafting=LawBefore(lag), **settings)
        for own, expected in zip(drafted.tokens, plain, strict=True):
            np.testing.assert_array_equal(own, expected)
        assert drafted.traces[0].nfe < 40


@pytest.mark.cases(8)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("vocab_size", "length", "window", "lag", "prompts", "stop"),
    [(2, 4, 2, 1, [[0]], ()), (2, 3, 3, 2, [[1]], ()), (3, 3, 2, 1, [[2]], ()), (2, 2, 2, 1, [[0], [1, 1]], (1,))],
)
def test_drafts_drawn_from_these_laws_are_lossless_exactly(method, vocab_size, length, window, lag, prompts, stop):
    decoder = shipped_decoder(method, window=window, drafting=LawBefore(lag), stop=stop)
    table = random_table(0, vocab_size)
    assert_lossless_exactly(decoder, table, prompts, vocab_size=vocab_size, length=length, stop=stop)


class Misremembers(LawBefore):
    """Draws from the law of the token before, and says that it drew from the one before that."""

    def __init__(self):
        super().__init__(1, laws_back=2)

    def _propose(self, context, noise, vocab_size, shared):
        proposal = super()._propose(context, noise, vocab_size, shared)
        other = context.law_at(len(context.tokens) - 2)
        return proposal if other is None or context.wanted > 1 else proposal._replace(law=np.asarray(other)[None])


def test_a_draft_drawn_from_another_law_than_it_says_is_biased():
    """The negative control: what keeps law-valued drafts exact is that they say what they were drawn from."""
    biased = 0
    for seed in range(3):
        try:
            decoder = shipped_decoder("speculative", window=2, drafting=Misremembers())
            assert_lossless_exactly(decoder, random_table(seed, 2), [[0]], vocab_size=2, length=4)
        except AssertionError as error:
            biased += "not lossless" in str(error)
    assert biased == 3


class WithoutLaws:
    """A step that hands no laws out, around one that does."""

    def __init__(self, step):
        self._step = step

    def __getattr__(self, name):
        if name == "gives_laws":
            raise AttributeError(name)
        return getattr(self._step, name)


def test_a_step_that_gives_no_laws_refuses_by_name():
    from coupled_sampling import HostStep

    step = WithoutLaws(HostStep(TableProvider(random_table(0, V), V)))
    with pytest.raises(
        InvalidArgument, match=r"asks for the laws of committed tokens, which a WithoutLaws does not give"
    ):
        Decoder(step, drafting=LawBefore()).check(Request([0], length=3))
    Decoder(step, drafting=LawBefore(laws_back=0)).check(Request([0], length=3))


@pytest.mark.parametrize("method", ["sjd", "scd-match"])
def test_step_graphs_refuse_by_name(method):
    pytest.importorskip("onnxruntime")
    from coupled_sampling.backends import open_model

    class PointMass(LawBefore):
        carries_laws = False

    with (
        open_model("fashion", method=method, step="graph") as step,
        pytest.raises(
            InvalidArgument, match="asks for the laws of committed tokens, which a OrtStep does not give; use HostStep"
        ),
    ):
        Decoder(step, drafting=PointMass()).check(Request([256], length=3))


@pytest.mark.parametrize("wanted", [-1, 1.5, True, "3"])
def test_a_number_of_positions_that_is_none_is_refused(wanted):
    with pytest.raises(InvalidArgument, match="laws_back is"):
        Decoder(TableProvider(random_table(0, V), V), drafting=LawBefore(laws_back=wanted)).check(Request([0], 3))


def test_rules_that_do_not_ask_are_given_none():
    class Plain:
        def propose(self, contexts, noise, *, vocab_size, shared):
            assert all(c.laws is None and c.law_at(len(c.tokens) - 1) is None for c in contexts)
            return [Proposal(np.zeros(c.wanted, np.int64)) for c in contexts]

    assert not isinstance(Plain(), AsksForLaws)
    generate(TableProvider(random_table(0, V), V), [[0]], length=9, window=3, drafting=Plain())


def test_a_request_that_fails_has_laws_up_to_where_it_failed():
    """The last law of a step is no law where its logits make none."""

    def until_three(context):
        return np.full(V, np.nan) if len(context) == 4 else np.eye(V)[0] * 0.5 + 0.1

    decoder = Decoder(TableProvider(until_three, V), method="scd-match", window=2, drafting=LawBefore())
    decoder.add(Request([0], 9))
    (commits,) = run(decoder).values()
    assert commits[-1].reason == "error"
    assert isinstance(commits[-1].error, Exception)
    assert not isinstance(commits[-1].error, RequestFailed), "the model's fault is told, not one of the bookkeeping"


@pytest.mark.parametrize("name", ["array_api_strict", "torch", "jax.numpy"])
def test_laws_stay_in_the_library_of_the_model(name):
    library = pytest.importorskip(name)

    class Foreign(TableProvider):
        def forward(self, tokens, start):
            return library.asarray(super().forward(tokens, start))

    kinds = set()

    class Asking(LawBefore):
        carries_laws = False

        def _propose(self, context, noise, vocab_size, shared):
            if context.laws is not None:
                kinds.add(type(context.laws))
                assert tuple(context.laws.shape) == (min(2, context.laws_end - 1), vocab_size)
            return Proposal(np.zeros(context.wanted, np.int64))

    model = Foreign(random_table(0, V), V)
    generate(model, [[0]], length=12, method="scd-maximal", window=3, drafting=Asking(2))
    assert kinds == {type(library.asarray(np.zeros(2)))}

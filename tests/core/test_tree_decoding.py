"""Windows with branches: their tokens are those of `ar`, whatever the branches are, whatever the world."""

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coupled_sampling import Decoder, HostStep, Request, Sampling, generate
from coupled_sampling.branching import BestFirst, Branches
from coupled_sampling.drafting import Proposal
from coupled_sampling.errors import InvalidArgument, InvalidLogits, RequestFailed
from coupled_sampling.plain_corrections import RunningAverages
from coupled_sampling.processors import MinNewTokens, NoRepeatNGram, RepetitionPenalty
from coupled_sampling.testing import TableProvider
from standins.correctors import random_low_rank
from standins.requested import run
from standins.tree_worlds import AnyShape, Columns, V, law_of_three

LENGTH = 40
MATCH = ["scd-match", "speculative-match"]


def fifth(generated, new):
    """Ends a sequence with its tokens 5, 10, ...: anywhere in an accepted run."""
    return next((i + 1 for i in range(len(generated) - new, len(generated)) if i % 5 == 4), None)


def own_path(logits, tokens, positions):
    """Adds what depends on the two tokens before each position."""
    before = np.stack([tokens[positions - 1], tokens[np.maximum(positions - 2, 0)]], axis=-1)
    return logits + np.sin(1.0 + 7 * before[:, :1] + 3 * before[:, 1:] + np.arange(V))


def refuses_twos(logits, tokens, positions):
    """Raises where a 2 stands before a 4: dead for a processor's reason."""
    if ((tokens[positions - 1] == 4) & (tokens[np.maximum(positions - 2, 0)] == 2)).any():
        raise LookupError("a 2 and a 4")
    return logits


SAMPLINGS = [
    Sampling(),
    Sampling(0.6),
    Sampling(1.7, top_k=3),
    Sampling(0),
    Sampling(top_p=0.8, processors=(own_path,)),
    Sampling(processors=(RepetitionPenalty(1.5), NoRepeatNGram(3), MinNewTokens(4, stop=[2]))),
    Sampling(processors=(refuses_twos,)),
]
ENDS = [{}, {}, {"stop": (2,)}, {"stop_sequences": ((0, 1), (3,))}, {"stop_rule": fifth}]


@st.composite
def request_lists(draw, most=4):
    token = st.integers(0, V - 1)
    seed = draw(st.integers(0, 2**64 - 1))
    return [
        Request(
            draw(st.lists(token, min_size=1, max_size=14)),
            draw(st.integers(1, 16)),
            seed=seed,
            sequence=10 * i,
            sampling=draw(st.sampled_from(SAMPLINGS)),
            samples=draw(st.sampled_from([1, 1, 1, 3])),
            logprobs=draw(st.booleans()),
            model_logprobs=draw(st.booleans()),
            **draw(st.sampled_from(ENDS)),
        )
        for i in range(draw(st.integers(1, most)))
    ]


class HoldsLaws:
    """Drafts that repeat, by a rule that is told the laws of the last two committed tokens and keeps them, by position."""

    carries_laws = False
    laws_back = 2

    def __init__(self):
        self.told = []

    def propose(self, contexts, noise, *, vocab_size, shared):
        for context in contexts:
            for position in range(context.laws_end - 2, context.laws_end):
                law = context.law_at(position)
                if law is not None:
                    self.told.append((context.tokens[: position + 1].copy(), context.info.sampling, np.array(law)))
        return [Proposal(np.full(context.wanted, context.tokens[-1])) for context in contexts]


class Interrupted(HostStep):
    """Every third outcome does not arrive, as when Ctrl-C comes between."""

    calls = 0

    def step(self, window):
        outcome = super().step(window)
        self.calls += 1
        if self.calls % 3 == 0:
            raise KeyboardInterrupt
        return outcome


def finished(decoder, requests):
    """By request and sample: its tokens, why it ended, and what it was told; steps that fail are tried again."""
    handles = [first + k for request in requests for first in [decoder.add(request)] for k in range(request.samples)]
    commits = {handle: [] for handle in handles}
    for _ in range(2000):
        if not (decoder.active or decoder.waiting):
            break
        try:
            done = decoder.step()
        except (KeyboardInterrupt, RuntimeError):
            continue
        for commit in done:
            commits[commit.handle].append(commit)
    assert not decoder.active
    return [commits[handle] for handle in handles]


def assert_the_same(found, expected):
    for own, reference in zip(found, expected, strict=True):
        assert (
            np.concatenate([c.tokens for c in own]).tolist() == np.concatenate([c.tokens for c in reference]).tolist()
        )
        assert own[-1].reason == reference[-1].reason
        assert type(own[-1].error) is type(reference[-1].error)
        for name in ("logprobs", "model_logprobs"):
            told, wanted = (
                [getattr(c, name) for c in commits if getattr(c, name) is not None] for commits in (own, reference)
            )
            assert bool(told) == bool(wanted)
            if told:
                np.testing.assert_allclose(np.concatenate(told), np.concatenate(wanted), rtol=1e-9)


CORRECTIONS = {
    "none": lambda seed: None,
    "random": lambda seed: random_low_rank(seed, V, (1, 3), scale=2.0),
    "averages": lambda seed: RunningAverages((1, 2), V, weights=(2.0, -1.0), shrinkage=0.1),
}


@pytest.mark.parametrize("method", MATCH)
@settings(derandomize=True, deadline=None, max_examples=24)
@given(
    seed=st.integers(0, 999),
    requests=request_lists(),
    window=st.integers(2, 14),
    rows=st.integers(1, 3),
    rule=st.sampled_from(["best", "any", "any", "any"]),
    most=st.integers(1, 12),
    drafting=st.sampled_from(["repeat", "random", "ngram:1", "copy:3"]),
    corrections=st.sampled_from(sorted(CORRECTIONS)),
    dead=st.sampled_from([0.0, 0.05]),
    world=st.fixed_dictionaries(
        {"spare": st.sampled_from([0, 3, 99]), "fails": st.sets(st.integers(0, 12), max_size=3)}
    ),
    reuse=st.booleans(),
)
def test_tokens_are_those_of_ar(
    method, seed, requests, window, rows, rule, most, drafting, corrections, dead, world, reuse
):
    law = law_of_three(seed, dead=dead)
    expected = finished(Decoder(TableProvider(law, V, 2, LENGTH), method="ar"), requests)
    owners = [request for request in requests for _ in range(request.samples)]
    truth = [
        [*request.prompt, *itertools.chain.from_iterable(c.tokens.tolist() for c in commits)]
        for request, commits in zip(owners, expected, strict=True)
    ]
    branching = BestFirst(most, candidates=3) if rule == "best" else AnyShape(seed, most, truth)
    longest = max(len(request.prompt) + request.length - 1 for request in requests)
    step = Interrupted(
        Columns(law, V, rows, max(longest, window), **world), method, corrections=CORRECTIONS[corrections](seed)
    )
    decoder = Decoder(step, window=window, branches=branching, drafting=drafting, reuse_prefixes=reuse)
    assert_the_same(finished(decoder, requests), expected)


@pytest.mark.parametrize("method", MATCH)
def test_laws_of_committed_tokens_are_those_of_their_own_path(method):
    law, rule = law_of_three(2), HoldsLaws()
    requests = [Request([i], 30, sequence=i) for i in range(3)]
    truth = [
        tokens.tolist() for tokens in generate(TableProvider(law, V, 3), [[0], [1], [2]], length=30, method="ar").tokens
    ]
    truth = [[i, *tokens] for i, tokens in enumerate(truth)]
    decoder = Decoder(
        Columns(law, V, 3, LENGTH), method=method, window=8, branches=AnyShape(1, 5, truth), drafting=rule
    )
    assert [np.concatenate([c.tokens for c in own]).tolist() for own in finished(decoder, requests)] == [
        t[1:] for t in truth
    ]
    assert len(rule.told) > 15
    for tokens, _, told in rule.told:
        np.testing.assert_allclose(told, law(tuple(tokens[:-1].tolist())), rtol=1e-9)


@pytest.mark.parametrize("method", MATCH)
def test_branches_save_passes_and_are_walked(method):
    """Equality would be hollow if no branch ever stood: here some walk goes beyond the path, and fewer passes are needed."""
    law = law_of_three(5)
    settings = {"length": 38, "window": 8, "drafting": "repeat"}
    truth = [0, *generate(TableProvider(law, V), [[0]], length=38, method="ar").tokens[0].tolist()]
    found = {
        branches: generate(
            Columns(law, V), [[0]], method=method, branches=AnyShape(0, 6, [truth]) if branches else 0, **settings
        )
        for branches in (False, True)
    }
    assert all(made.tokens[0].tolist() == truth[1:] for made in found.values())
    assert found[True].traces[0].nfe < 0.9 * found[False].traces[0].nfe


class WindowsSeen(HostStep):
    """Keeps the windows it was given."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.seen = []

    def step(self, window):
        self.seen.append(window)
        return super().step(window)


def test_a_model_without_columns_to_spare_is_given_windows_that_fit():
    """Towards its end fewer slots are left than positions and branches need: tokens go in again, or windows are narrower."""
    law = law_of_three(6)
    truth = [0, *generate(TableProvider(law, V, 1, 20), [[0]], length=20, method="ar").tokens[0].tolist()]
    step = WindowsSeen(Columns(law, V, 1, 20), "scd-match")
    made = generate(step, [[0]], length=20, window=12, branches=AnyShape(0, 9, [truth]), drafting="repeat")
    assert made.tokens[0].tolist() == truth[1:]
    assert any((window.known > 1).any() and window.parents is not None for window in step.seen)


def test_rows_that_can_be_told_apart_are_forwarded_apart():
    law = law_of_three(7)
    model = Columns(law, V, 5, LENGTH)
    decoder = Decoder(model, method="scd-match", window=6, branches=AnyShape(0, 3))
    handles = [decoder.add(Request([i], 30 if i in (0, 4) else 2, sequence=i)) for i in range(5)]
    plain = generate(TableProvider(law, V, 5), [[i] for i in range(5)], length=[30, 2, 2, 2, 30], method="ar").tokens
    commits = run(decoder)
    for i, handle in enumerate(handles):
        assert np.concatenate([c.tokens for c in commits[handle]]).tolist() == plain[i].tolist()
    # Each of the two that stay alone: twice as many calls as steps.
    assert model.trees > commits[handles[0]][-1].trace.nfe


# What fails, and what it ends


class Raises:
    """A rule that raises for the sequence that begins with a 4, from its third step on."""

    most, candidates = 3, 1

    def __init__(self, made=None):
        self.made = made

    def branches(self, context):
        if context.tokens[0] == 4 and context.committed > 3:
            if self.made is not None:
                return self.made
            raise ZeroDivisionError("what a rule may do")
        return AnyShape(0, 3).branches(context)


@pytest.mark.parametrize(
    ("made", "error"),
    [
        (None, RequestFailed),
        (Branches(np.array([99]), np.array([0])), InvalidArgument),
        (Branches(np.array([-1]), np.array([V])), InvalidArgument),
    ],
)
def test_a_rule_that_fails_ends_its_own_request_only(made, error):
    law = law_of_three(8)
    prompts = [[0], [4], [1], [4], [2]]
    plain = generate(TableProvider(law, V, 3), prompts, length=20, method="ar").tokens
    decoder = Decoder(Columns(law, V, 3, LENGTH), method="scd-match", window=7, branches=Raises(made))
    commits = finished(decoder, [Request(prompt, 20, sequence=i) for i, prompt in enumerate(prompts)])
    for own, prompt, expected in zip(commits, prompts, plain, strict=True):
        tokens = np.concatenate([c.tokens for c in own]).tolist()
        if prompt[0] == 4:
            assert own[-1].reason == "error"
            assert type(own[-1].error) is error
            assert f"request {own[-1].handle}:" in str(own[-1].error)
            assert 3 <= len(tokens) < 20
            assert tokens == expected[: len(tokens)].tolist()
        else:
            assert own[-1].reason == "length"
            assert tokens == expected.tolist()


def counting(context, dead_at):
    """0, 1, 2, ...: and from position ``dead_at`` on nothing."""
    return np.eye(V)[(context[-1] + 1) % V] * (len(context) < dead_at)


class Runs:
    """One branch for as far as it reaches: what `counting` goes on with."""

    candidates = 1

    def __init__(self, most):
        self.most = most

    def branches(self, context):
        count = min(context.most, context.reach)
        first = int(context.tokens[context.committed - 1])
        drafts = len(context.path)
        return Branches(np.array([-1, *range(drafts, drafts + count - 1)]), (first + 1 + np.arange(count)) % V)


@pytest.mark.parametrize("stop", [(), (3,)])
def test_a_dead_slot_of_a_branch_ends_the_request_if_it_is_decided(stop):
    """As in a chain: it has its tokens up to there, the others go on; and a stop token before it hides it."""
    model = Columns(lambda context: counting(context, 5 if context[0] == 0 else 99), V, 2, LENGTH)
    decoder = Decoder(model, method="scd-match", window=9, branches=Runs(6), drafting="repeat")
    dying, living = finished(decoder, [Request([0], 12, stop=stop), Request([1], 12, sequence=1)])
    assert np.concatenate([c.tokens for c in living]).tolist() == [(2 + i) % V for i in range(12)]
    tokens = np.concatenate([c.tokens for c in dying]).tolist()
    if stop:
        assert (tokens, dying[-1].reason) == ([1, 2, 3], "stop")
        return
    assert (tokens, dying[-1].reason) == ([1, 2, 3, 4], "error")
    assert isinstance(dying[-1].error, InvalidLogits)
    assert "row 0 for position 5" in str(dying[-1].error)
    assert len(dying[-1].tokens) > 1  # the step that met it had committed what stands before it


@pytest.mark.parametrize("dead", [2, 3, 4])
def test_a_dead_slot_that_is_not_decided_ends_nothing(dead):
    """Beside the path, or behind a refusal: here every branch begins with a wrong guess, behind which all is dead."""
    right = lambda context: all((b - a) % V == 1 for a, b in itertools.pairwise(context))  # noqa: E731
    model = Columns(lambda context: counting(context, 99) * right(context), V, 1, LENGTH)

    class Wrong(Runs):
        def branches(self, context):
            made = super().branches(context)
            made.tokens[0] = (made.tokens[0] + dead) % V
            return made

    made = generate(model, [[0]], length=15, method="scd-match", window=8, branches=Wrong(4), drafting="repeat")
    assert made.tokens[0].tolist() == [(1 + i) % V for i in range(15)]


def test_ctrl_c_in_a_stop_rule_loses_no_candidates():
    """The row is what it was, so that the step that is done again has the same branches."""
    law, seen = law_of_three(9), []

    class Watched(BestFirst):
        def branches(self, context):
            made = super().branches(context)
            seen.append((context.committed, *(each.tolist() for each in made)))
            return made

    interrupts = iter([False, True, False, False, True] + [False] * 99)

    def rule(generated, new):
        if next(interrupts):
            raise KeyboardInterrupt

    request = Request([0], 25)
    windows_of = []
    for stop_rule in (None, rule):
        seen.clear()
        decoder = Decoder(Columns(law, V), method="scd-match", window=8, branches=Watched(4))
        (commits,) = finished(decoder, [dataclasses.replace(request, stop_rule=stop_rule)])
        windows_of.append(
            (np.concatenate([c.tokens for c in commits]).tolist(), [s for s, _ in itertools.groupby(seen)])
        )
    assert windows_of[0] == windows_of[1]

"""What a request may ask for and what it is told: one request never stops another, and nothing wrong is taken in silence."""

import warnings

import numpy as np
import pytest

from coupled_sampling import Decoder, DraftModel, Guidance, Request, Sampling, generate, stream
from coupled_sampling.drafting import Proposal, Random
from coupled_sampling.errors import InvalidArgument, InvalidLogits, RequestFailed
from coupled_sampling.methods import METHODS
from coupled_sampling.testing import TableProvider
from standins.ranged import Poisoned
from standins.requested import TABLE, V, model, run, tokens_of


@pytest.mark.parametrize("method", METHODS)
def test_log_probabilities_are_those_of_the_laws_the_tokens_were_drawn_from(method):
    sampling = Sampling(temperature=0.6, top_k=3)
    decoder = Decoder(model(2), method=method, window=4)
    plain = decoder.add(Request([1], length=9, sampling=sampling, logprobs=True, model_logprobs=True))
    silent = decoder.add(Request([1], length=9, sequence=1))
    commits = run(decoder)
    context = [1]
    for commit in commits[plain]:
        assert len(commit.logprobs) == len(commit.model_logprobs) == len(commit.tokens)
        for token, target, own in zip(commit.tokens, commit.logprobs, commit.model_logprobs, strict=True):
            law = np.array(TABLE(tuple(context)))
            weights = (law * (law >= np.sort(law)[-3])) ** (1 / 0.6)
            assert target == pytest.approx(np.log(weights[token] / weights.sum()), abs=1e-9)
            assert own == pytest.approx(np.log(law[token]), abs=1e-9)
            context.append(int(token))
    assert all(commit.logprobs is None and commit.model_logprobs is None for commit in commits[silent])


def test_a_commit_says_why_its_sequence_ended():
    decoder = Decoder(model(), method="ar")
    by_length, by_stop = decoder.add(Request([0], length=3)), decoder.add(Request([0], length=9, stop=range(V), seed=1))
    commits = run(decoder)
    assert [commit.reason for commit in commits[by_length]] == [None, None, "length"]
    assert [commit.reason for commit in commits[by_stop]] == ["stop"]
    assert [commit.finished for commit in commits[by_length]] == [False, False, True]
    assert commits[by_length][-1].trace.reason == "length"
    handle = decoder.add(Request([0], length=9))
    decoder.step()
    trace = decoder.trace(handle)
    decoder.remove(handle)
    assert trace.reason == "removed"


def test_of_two_ends_in_one_run_the_first_counts():
    cycle = TableProvider(lambda context: np.eye(4)[(context[-1] + 1) % 4], 4)
    for extra, expected in (({"stop": [3]}, [1, 2, 3]), ({"stop_sequences": [[2, 3, 0], [1, 2]]}, [1, 2])):
        decoder = Decoder(cycle, method="scd-match", window=12)
        (commits,) = run(decoder).values() if decoder.add(Request([0], length=20, **extra)) == 0 else ()
        assert tokens_of(commits).tolist() == expected


def test_a_run_that_began_in_the_prompt_does_not_stop():
    cycle = TableProvider(lambda context: np.eye(4)[(context[-1] + 1) % 4], 4)
    decoder = Decoder(cycle, method="ar")
    decoder.add(Request([0, 1], length=8, stop_sequences=[[1, 2]]))
    assert tokens_of(run(decoder)[0]).tolist() == [2, 3, 0, 1, 2]


def test_a_stop_hides_what_failed_behind_it():
    """Only what is decided must be decidable: the bad slot comes after the end."""
    table = lambda context: None if len(context) > 3 else np.eye(4)[(context[-1] + 1) % 4]  # noqa: E731
    counting = lambda logits, tokens, positions: logits  # noqa: E731

    class Counting:
        def propose(self, contexts, noise, *, vocab_size, shared):
            return [Proposal((c.tokens[-1] + 1 + np.arange(c.wanted)) % vocab_size) for c in contexts]

    decoder = Decoder(Poisoned(table, 4), method="scd-match", window=8, drafting=Counting())
    decoder.add(Request([0], length=9, stop=[2], sampling=Sampling(processors=(counting,))))
    decoder.add(Request([0], length=9, sequence=1))
    commits = run(decoder)
    assert [c.reason for c in commits[0]] == ["stop"]
    assert tokens_of(commits[0]).tolist() == [1, 2]
    assert commits[1][-1].reason == "error"
    assert tokens_of(commits[1]).tolist() == [1, 2, 3]


@pytest.mark.cases(10)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("fault", ["nan", "processor", "stop rule", "shape"])
def test_one_request_never_stops_another(method, fault):
    """Of forty requests three are poisoned: the others' tokens are those that they have alone."""

    def angry(logits, tokens, positions):
        raise ZeroDivisionError("never")

    def sour(generated, new):
        raise LookupError("never")

    extra = {
        "nan": {"prompt": [4]},
        "processor": {"prompt": [0], "sampling": Sampling(processors=(angry,))},
        "stop rule": {"prompt": [0], "stop_rule": sour},
        "shape": {"prompt": [0], "sampling": Sampling(processors=(lambda logits, tokens, positions: logits[:, 1:],))},
    }[fault]
    table = lambda context: None if context[0] == 4 else TABLE(context)  # noqa: E731
    decoder = Decoder(Poisoned(table, V, 4), method=method, window=4)
    handles = {}
    for i in range(40):
        bad = i % 17 == 3
        handles[decoder.add(Request(**{"prompt": [i % 4], "length": 5, "sequence": i} | (extra if bad else {})))] = bad
    commits = run(decoder)
    alone = generate(model(4), [[i % 4] for i in range(40)], length=5, method=method, window=4).tokens
    for handle, bad in handles.items():
        last = commits[handle][-1]
        assert last.finished
        assert last.reason == ("error" if bad else "length")
        if bad:
            assert f"request {handle}: " in str(last.error)
            assert isinstance(last.error, {"nan": InvalidLogits, "shape": InvalidArgument}.get(fault, RequestFailed))
            assert (last.error.__cause__ is not None) or fault == "nan"
        else:
            np.testing.assert_array_equal(tokens_of(commits[handle]), alone[handle])


def test_generate_raises_for_its_own_and_stream_when_the_others_are_done():
    table = lambda context: None if context[0] == 4 else TABLE(context)  # noqa: E731
    with pytest.raises(InvalidLogits, match="request 1: "):
        generate(Poisoned(table, V, 2), [[0], [4]], length=3)
    seen = []
    with pytest.raises(InvalidLogits, match="request 0: "):
        seen.extend(stream(Poisoned(table, V, 2), [[4], [0]], length=6))
    assert [commit.reason for commit in seen if commit.finished] == ["error", "length"]


class Fixed:
    """Proposes what it is given."""

    def __init__(self, make):
        self.make = make

    def propose(self, contexts, noise, *, vocab_size, shared):
        return [self.make(context) for context in contexts]


@pytest.mark.parametrize(
    "make",
    [
        lambda c: Proposal(np.full(c.wanted, -1)),
        lambda c: Proposal(np.full(c.wanted, V)),
        lambda c: Proposal(np.zeros(c.wanted - 1, int)),
        lambda c: Proposal(np.zeros(c.wanted + 1, int)),
        lambda c: Proposal(np.zeros((c.wanted, 1), int)),
        lambda c: Proposal(np.zeros(c.wanted)),
        lambda c: np.zeros(c.wanted, int),
        lambda c: None,
        lambda c: Proposal(np.zeros(c.wanted, int), np.full((c.wanted, V), -3.0)),
        lambda c: Proposal(np.zeros(c.wanted, int), np.full((c.wanted, V), np.nan)),
        lambda c: Proposal(np.zeros(c.wanted, int), np.full((c.wanted, V - 1), 1 / (V - 1))),
        lambda c: Proposal(np.zeros(c.wanted, int), np.full((c.wanted, V), 1.0)),
        lambda c: Proposal(np.zeros(c.wanted, int), [[0.2] * V] * c.wanted),
    ],
)
@pytest.mark.parametrize("method", ["speculative", "speculative-match", "scd-gumbel"])
def test_what_a_drafting_rule_proposes_is_checked(method, make):
    with pytest.raises(InvalidArgument, match=r"request 0: drafting .*Fixed"):
        generate(model(), [[0]], length=8, method=method, window=4, drafting=Fixed(make))


def test_a_wrong_proposal_ends_its_own_request():
    rule = Fixed(lambda c: Proposal(np.full(c.wanted, 99 if c.info.sequence else 0)))
    decoder = Decoder(model(2), method="speculative", window=4, drafting=rule)
    good, bad = decoder.add(Request([0], length=5)), decoder.add(Request([0], length=5, sequence=1))
    commits = run(decoder)
    assert commits[good][-1].reason == "length"
    assert commits[bad][-1].reason == "error"
    assert "99" in str(commits[bad][-1].error)


WRONG = [
    ({"prompt": []}, "prompt"),
    ({"prompt": [V]}, "prompt token 0 is 5"),
    ({"prompt": [0.5]}, "prompt"),
    ({"prompt": "ab"}, "prompt"),
    ({"prompt": None}, "prompt"),
    ({"length": 0}, "length"),
    ({"length": 99}, "the model holds 64"),
    ({"length": True}, "length"),
    ({"seed": -1}, "seed"),
    ({"sequence": 2**64}, "sequence"),
    ({"samples": 0}, "samples"),
    ({"sequence": 2**64 - 1, "samples": 2}, "samples"),
    ({"stop": [V]}, "stop token 0 is 5"),
    ({"stop": [-1]}, "stop token 0 is -1"),
    ({"stop": [[1], [2, 3]]}, "stop"),
    ({"stop": "x"}, "stop"),
    ({"stop_sequences": [[]]}, r"stop_sequences\[0\]"),
    ({"stop_sequences": [[1], [V, 0]]}, r"stop_sequences\[1\] token 0 is 5"),
    ({"stop_sequences": 3}, "stop_sequences"),
    ({"stop_sequences": "ab"}, "stop_sequences"),
    ({"stop_rule": 7}, "stop_rule"),
    ({"sampling": None}, "sampling"),
    ({"logprobs": 1}, "logprobs"),
    ({"guidance": 2.0}, "guidance"),
    ({"guidance": Guidance(scale=2.0)}, "not a guided one"),
    ({"condition": "a picture"}, "condition"),
    ({"generated": [0, 0, 0], "length": 3}, "nothing is left"),
    ({"generated": [V]}, "generated token 0 is 5"),
]


@pytest.mark.parametrize(("wrong", "words"), WRONG)
def test_what_cannot_work_is_refused_by_name_before_anything_runs(wrong, words):
    provider = model()
    decoder = Decoder(provider)
    for call in (decoder.check, decoder.add):
        with pytest.raises(InvalidArgument, match=words):
            call(Request(**{"prompt": [0], "length": 4} | wrong))
    assert decoder.waiting == provider.calls == 0


@pytest.mark.parametrize(
    ("drafting", "words"),
    [
        (DraftModel(model(vocab_size=4)), "vocabulary is 4, the target's 5"),
        (DraftModel(model(rows=1)), "1 rows, the model 2"),
        (DraftModel(model(rows=2, max_length=6)), "draft model holds 6"),
        (Random(0, 99), "random:0:99"),
        (Random(-1), "random:-1"),
    ],
)
def test_drafting_that_cannot_work_is_refused_before_anything_runs(drafting, words):
    decoder = Decoder(model(2), method="speculative", drafting=drafting)
    with pytest.raises(InvalidArgument, match=words):
        decoder.check(Request([0], length=9))


@pytest.mark.parametrize("drafting", [None, 3, object(), ["repeat"]])
def test_what_is_no_drafting_rule_is_refused(drafting):
    with pytest.raises(InvalidArgument, match="drafting is"):
        Decoder(model(), drafting=drafting)


@pytest.mark.parametrize("prompts", [None, 5, "text"])
def test_prompts_are_refused_by_name(prompts):
    with pytest.raises(InvalidArgument, match="prompt"):
        generate(model(), prompts, length=3)


def test_prompts_may_come_from_a_generator():
    found = generate(model(), ([i] for i in range(2)), length=4).tokens
    expected = generate(model(), [[0], [1]], length=4).tokens
    np.testing.assert_array_equal(found, expected)


def test_check_is_pure():
    decoder = Decoder(model(), method="scd-match")
    request = Request([0], length=6, sequence=None)
    for _ in range(3):
        decoder.check(request)
    assert decoder.add(request) == 0
    assert decoder.waiting == 1


def test_seeds_and_sequences_of_each_prompt():
    prompts = [[0], [0], [1]]
    found = generate(model(), prompts, length=6, seeds=[4, 5, 4], sequences=[9, 0, 2], method="ar").tokens
    for i, (seed, sequence) in enumerate([(4, 9), (5, 0), (4, 2)]):
        decoder = Decoder(model(), method="ar")
        decoder.add(Request(prompts[i], length=6, seed=seed, sequence=sequence))
        np.testing.assert_array_equal(found[i], tokens_of(run(decoder)[0]))
    with pytest.raises(InvalidArgument, match="seeds has 2 entries for 3 prompts"):
        generate(model(), prompts, length=6, seeds=[1, 2])
    with pytest.raises(TypeError, match="widow"):
        generate(model(), prompts, length=6, widow=3)


def test_two_requests_of_one_key_are_warned_of_and_fresh_numbers_are_not():
    decoder = Decoder(model())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fresh = [decoder.add(Request([0], length=2, sequence=None)) for _ in range(5)]
        decoder.add(Request([0], length=2))
    numbers = {decoder.request(handle).sequence for handle in fresh}
    assert len(numbers) == 5
    with pytest.warns(UserWarning, match="seed 0 and sequence 0: they draw with the same noise"):
        decoder.add(Request([1], length=2))
    run(decoder)
    with pytest.raises(InvalidArgument, match="neither waiting nor under way"):
        decoder.request(fresh[0])


@pytest.mark.parametrize("method", METHODS)
def test_what_is_handed_out_cannot_be_written_to(method):
    class Eraser(TableProvider):
        def forward(self, tokens, start):
            for array in (tokens, start):
                with pytest.raises(ValueError, match="read-only"):
                    array[...] = 0
            return super().forward(tokens, start)

    def eraser(logits, tokens, positions):
        for array in (logits, tokens):
            with pytest.raises(ValueError, match="read-only"):
                array[...] = 0
        return logits * 1

    class Guess:
        def propose(self, contexts, noise, *, vocab_size, shared):
            for context in contexts:
                with pytest.raises(ValueError, match="read-only"):
                    context.tokens[...] = 0
            return [Proposal(np.zeros(context.wanted, int)) for context in contexts]

    drafting = DraftModel(Eraser(TABLE, V)) if "speculative" in method else Guess()
    sampling = Sampling(processors=(eraser,))
    found = generate(
        Eraser(TABLE, V), [[0] * 9], length=5, method=method, window=4, drafting=drafting, sampling=sampling
    )
    assert len(found.tokens[0]) == 5


@pytest.mark.parametrize("method", ["ar", "scd-match", "speculative-match"])
def test_resuming_goes_on_as_if_never_interrupted(method):
    request = Request([1, 2], length=20, seed=3, sampling=Sampling(temperature=0.8))
    whole = Decoder(model(), method=method, window=5)
    whole.add(request)
    expected = tokens_of(run(whole)[0])
    for cut in range(1, 20):
        for window in (1, 4, 30):
            decoder = Decoder(model(), method=method, window=window)
            decoder.add(request.resumed(expected[:cut]))
            commits = run(decoder)[0]
            assert commits[0].position == 2 + cut
            np.testing.assert_array_equal(tokens_of(commits), expected[cut:])


def test_a_request_that_is_told_to_the_model_is_the_whole_request():
    told = []

    class Told(TableProvider):
        def begin(self, row, request):
            told.append((row, request.prompt.tolist(), request.condition, request.sequence, request.generated.tolist()))

    decoder = Decoder(Told(TABLE, V))
    decoder.add(Request([1, 2], length=4, sequence=6, samples=2, condition="a picture", generated=[3]))
    run(decoder)
    assert told == [(0, [1, 2], "a picture", 6, [3]), (0, [1, 2], "a picture", 7, [3])]


def test_what_ended_before_the_model_raised_is_told_by_the_next_step():
    class Flaky(TableProvider):
        broken = True

        def begin(self, row, request):
            if request.prompt[0] == 1:
                raise LookupError("no such picture")

        def forward(self, tokens, start):
            if self.broken:
                raise OSError("the device is gone")
            return super().forward(tokens, start)

    provider = Flaky(TABLE, V)
    decoder = Decoder(provider)
    bad, good = decoder.add(Request([1], length=3)), decoder.add(Request([0], length=3, sequence=1))
    for _ in range(2):
        with pytest.raises(OSError, match="gone"):
            decoder.step()
    provider.broken = False
    commits = run(decoder)
    assert commits[bad][0].reason == "error"
    np.testing.assert_array_equal(tokens_of(commits[good]), generate(model(), [[0]] * 2, length=3).tokens[1])


@pytest.mark.parametrize("method", METHODS)
def test_an_interrupt_in_a_stop_rule_loses_nothing(method):
    """The step is done again, and the tokens are those of a run that nobody interrupted."""
    calls = []

    def impatient(generated, new):
        calls.append(new)
        if len(calls) % 2 == 1:
            raise KeyboardInterrupt

    decoder = Decoder(model(2), method=method, window=4)
    decoder.add(Request([0], length=9))
    decoder.add(Request([1], length=9, sequence=1, stop_rule=impatient))
    commits, interrupts = {}, 0
    while decoder.active or decoder.waiting:
        try:
            for commit in decoder.step():
                commits.setdefault(commit.handle, []).append(commit.tokens)
        except KeyboardInterrupt:
            interrupts += 1
    alone = generate(model(2), [[0], [1]], length=9, method=method, window=4).tokens
    assert interrupts > 1
    np.testing.assert_array_equal(np.concatenate(commits[0]), alone[0])
    np.testing.assert_array_equal(np.concatenate(commits[1]), alone[1])

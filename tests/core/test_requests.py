"""What a request may ask for and what it is told: one request never stops another, and nothing wrong is taken in silence."""

import threading
import warnings

import numpy as np
import pytest

from coupled_sampling import (
    Decoder,
    DraftModel,
    Guidance,
    GuidedProvider,
    HostStep,
    Request,
    Sampling,
    generate,
    stream,
)
from coupled_sampling.drafting import Proposal, Random
from coupled_sampling.errors import InvalidArgument, InvalidLogits, NotOwner, RequestFailed
from coupled_sampling.methods import METHODS
from coupled_sampling.testing import TableProvider, random_table
from standins.ranged import Poisoned, Ranged

V = 5
TABLE = random_table(0, V)


def model(rows=1, vocab_size=V, **settings):
    return TableProvider(random_table(0, vocab_size), vocab_size, rows, **settings)


def run(decoder):
    """All commits by handle."""
    commits = {}
    while decoder.active or decoder.waiting:
        for commit in decoder.step():
            commits.setdefault(commit.handle, []).append(commit)
    return commits


def tokens_of(commits):
    return np.concatenate([commit.tokens for commit in commits])


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


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("fault", ["nan", "processor", "stop rule", "shape"])
def test_one_request_never_stops_another(method, fault):
    """Of sixty requests four are poisoned: the others' tokens are those that they have alone."""

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
    for i in range(60):
        bad = i % 17 == 3
        handles[decoder.add(Request(**{"prompt": [i % 4], "length": 5, "sequence": i} | (extra if bad else {})))] = bad
    commits = run(decoder)
    alone = generate(model(4), [[i % 4] for i in range(60)], length=5, method=method, window=4).tokens
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
@pytest.mark.parametrize("reused", [False, True])
def test_tokens_do_not_depend_on_how_a_prompt_was_read(method, reused):
    """Alone, in chunks of any width, as one of several samples that share it, or with a prefix that was there."""
    for length in (1, 4, 5, 23):
        prompt = np.arange(length) % V
        own = Decoder(model(), method=method, window=4, drafting="copy:3")
        own.add(Request(prompt, length=8, sequence=2))
        expected = tokens_of(run(own)[0])
        for chunk, rows in ((1, 2), (3, 3), (8, 4)):
            provider = Ranged(TABLE, V, batch_size=rows, chunk=chunk)
            decoder = Decoder(provider, method=method, window=4, drafting="copy:3", reuse_prefixes=reused)
            decoder.add(Request([*prompt[:-1], 0, 1], length=3, sequence=77))
            decoder.step()
            handle = decoder.add(Request(prompt, length=8, samples=5))
            commits = run(decoder)
            np.testing.assert_array_equal(tokens_of(commits[handle + 2]), expected)
            assert max(width for _, width in provider.asked) <= max(chunk, 4)


def test_samples_of_one_prompt_read_it_once():
    provider = Ranged(TABLE, V, batch_size=4, max_length=512, chunk=40)
    decoder = Decoder(provider, method="scd-match", window=4)
    assert decoder.add(Request(np.arange(401) % V, length=4, samples=4)) == 0
    commits = run(decoder)
    assert sorted(commits) == [0, 1, 2, 3]
    assert len({tokens_of(own).tobytes() for own in commits.values()}) > 1
    assert [width for _, width in provider.asked if width > 4] == [40] * 10
    assert provider.forked == [(0, (1, 2, 3), 400)]


def test_a_sample_whose_reader_is_removed_reads_for_itself():
    provider = Ranged(TABLE, V, batch_size=3, max_length=512, chunk=40)
    decoder = Decoder(provider, method="scd-match", window=4)
    prompt = np.arange(100) % V
    handle = decoder.add(Request(prompt, length=4, samples=3))
    decoder.step()
    decoder.remove(handle)
    commits = run(decoder)
    alone = generate(model(max_length=512), [prompt] * 3, length=4, method="scd-match", window=4).tokens
    for k in (1, 2):
        np.testing.assert_array_equal(tokens_of(commits[handle + k]), alone[k])
    assert provider.forked == [(1, (2,), 99)]


def test_others_wait_for_one_chunk_and_no_more():
    """While two long prompts are read, one chunk of one of them goes before each step of the others, whose windows stay theirs."""
    provider = Ranged(TABLE, V, batch_size=4, max_length=512, chunk=50)
    decoder = Decoder(provider, method="ar", window=2)
    decoder.add(Request([0], length=60))
    decoder.step()
    for i in (1, 2):
        decoder.add(Request(np.arange(201) % V, length=2, sequence=i))
    provider.asked.clear()
    for _ in range(8):
        decoder.step()
    chunks = [(rows, width) for rows, width in provider.asked if width > 2]
    assert chunks == [(range(1, 2), 50)] * 4 + [(range(2, 3), 50)] * 4
    for before, after in zip(provider.asked, provider.asked[1:], strict=False):
        assert before[1] <= 2 or after[1] <= 2
    assert all(width == 1 for _, width in provider.asked if width <= 2)


def test_idle_rows_cost_nothing_where_rows_can_be_told_apart():
    provider = Ranged(TABLE, V, batch_size=8)
    decoder = Decoder(provider, method="ar")
    handles = [decoder.add(Request([0], length=30 if i in (0, 7) else 1, sequence=i)) for i in range(8)]
    decoder.step()
    provider.asked.clear()
    decoder.step()
    assert [rows for rows, _ in provider.asked] == [range(1), range(7, 8)]
    decoder.remove(handles[0])
    provider.asked.clear()
    decoder.step()
    assert [rows for rows, _ in provider.asked] == [range(7, 8)]


def test_a_prefix_is_used_again_only_if_that_is_wanted_and_nothing_else_differs():
    prompt = np.arange(60) % V
    for wanted, reads in ((False, 2), (True, 1)):
        provider = Ranged(TABLE, V, max_length=128, chunk=128)
        decoder = Decoder(provider, window=4, reuse_prefixes=wanted)
        for i in range(2):
            decoder.add(Request(prompt, length=3, sequence=i))
        run(decoder)
        assert sum(width > 4 for _, width in provider.asked) == reads

    class Told(Ranged):
        def begin(self, row, request):
            pass

    provider = Told(TABLE, V, max_length=128, chunk=128)
    decoder = Decoder(provider, window=4, reuse_prefixes=True)
    for i in range(2):
        decoder.add(Request(prompt, length=3, sequence=i, condition=i))
    run(decoder)
    assert sum(width > 4 for _, width in provider.asked) == 2


def test_a_prefix_is_copied_from_another_row():
    provider = Ranged(TABLE, V, batch_size=2, max_length=128, chunk=128)
    decoder = Decoder(provider, window=4, reuse_prefixes=True)
    decoder.add(Request(np.arange(60) % V, length=30))
    decoder.step()
    decoder.step()
    decoder.add(Request([*(np.arange(50) % V), 3, 3, 3], length=3, sequence=1))
    run(decoder)
    assert provider.forked == [(0, (1,), 50)]


def test_a_model_that_somebody_else_took_is_told_by_name_and_not_by_tokens():
    shared = model()
    one, two = (stream(shared, [[i]], length=20, method="ar") for i in (1, 2))
    first = next(one)
    next(two)
    with pytest.raises(NotOwner, match=r"model \(TableProvider\) was taken over by another decoder"):
        next(one)
    assert first.tokens.shape == (1,)
    generate(shared, [[0]], length=3)
    with pytest.raises(NotOwner):
        list(two)
    assert len(generate(shared, [[0]], length=3).tokens[0]) == 3


@pytest.mark.parametrize(
    "wrap", [HostStep, lambda inner: GuidedProvider(inner, 2.0, [0]), lambda inner: HostStep(GuidedProvider(inner, 2.0, [0]))]
)  # fmt: skip
def test_a_model_is_found_under_what_wraps_it(wrap):
    inner = model(2)
    first, second = Decoder(wrap(inner)), Decoder(wrap(inner))
    for decoder in (first, second):
        decoder.add(Request([1], length=60))
        decoder.step()
    with pytest.raises(NotOwner):
        first.step()


def test_a_draft_model_is_owned_too_and_cannot_be_the_model_itself():
    draft = model()
    decoders = [Decoder(model(), method="speculative", drafting=DraftModel(draft)) for _ in range(2)]
    for decoder in decoders:
        decoder.add(Request([1], length=60))
        decoder.step()
    with pytest.raises(NotOwner, match="draft model"):
        decoders[0].step()
    with pytest.raises(InvalidArgument, match="draft model is the same object as the model"):
        Decoder(draft, drafting=DraftModel(draft))


def test_decoders_may_take_turns_when_they_are_done():
    shared = model()
    first, second = Decoder(shared, reuse_prefixes=True), Decoder(shared)
    for _ in range(2):
        for decoder in (first, second):
            decoder.add(Request([1], length=6))
            run(decoder)


def test_a_step_from_a_second_thread_is_refused_and_the_rest_may_come_from_any():
    decoder = Decoder(model(), method="ar")
    handle = decoder.add(Request([0], length=60))
    decoder.step()
    found = {}

    def elsewhere():
        for name, call in {
            "step": decoder.step,
            "check": lambda: decoder.check(Request([0], length=1)),
            "add": lambda: decoder.add(Request([0], length=1, sequence=1)),
            "remove": lambda: decoder.remove(handle),
        }.items():
            try:
                found[name] = call()
            except Exception as error:
                found[name] = error

    other = threading.Thread(target=elsewhere)
    other.start()
    other.join()
    assert isinstance(found.pop("step"), NotOwner)
    assert found["check"] is None
    assert found["add"] == 1
    assert len(found["remove"]) == 1
    assert list(run(decoder)) == [1]


def test_requests_come_and_go_from_other_threads_while_steps_run():
    """Each request's tokens are those that it has alone; nothing is lost, nothing raises."""
    decoder = Decoder(model(3), method="scd-gumbel", window=4)
    added, stop, faults = {}, threading.Event(), []

    def feed(first):
        try:
            for i in range(first, first + 25):
                handle = decoder.add(Request([i % V], length=6, sequence=i))
                added[handle] = i
                if i % 5 == 4:
                    try:
                        decoder.remove(handle)
                        added.pop(handle)
                    except InvalidArgument:
                        pass
        except Exception as error:
            faults.append(error)

    threads = [threading.Thread(target=feed, args=(100 * k,)) for k in range(3)]
    for thread in threads:
        thread.start()
    done = {}
    while any(thread.is_alive() for thread in threads) or decoder.active or decoder.waiting:
        for commit in decoder.step():
            done.setdefault(commit.handle, []).append(commit.tokens)
    stop.set()
    assert not faults
    for handle, i in added.items():
        alone = Decoder(model(), method="scd-gumbel", window=4)
        alone.add(Request([i % V], length=6, sequence=i))
        np.testing.assert_array_equal(np.concatenate(done[handle]), tokens_of(run(alone)[0]))


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

"""A model belongs to one decoder, and a decoder to one thread; requests come from any."""

import threading

import numpy as np
import pytest

from coupled_sampling import Decoder, DraftModel, GuidedProvider, HostStep, Request, generate, stream
from coupled_sampling.errors import InvalidArgument, NotOwner
from standins.requested import V, model, run, tokens_of


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

"""The engine over small worlds: identity, cancelling, deadlines, overload, failures and the end."""

import asyncio
import contextlib
import gc
import threading
import time
import weakref

import numpy as np
import pytest

from coupled_sampling import Decoder, Request, Sampling, generate
from coupled_sampling.errors import InvalidArgument
from coupled_sampling.serving import DeadlineExceeded, Engine, EngineFailed, EngineStopped, Overloaded
from coupled_sampling.testing import TableProvider, random_table

VOCABULARY, LENGTH = 6, 24


class Gated:
    """A world whose passes wait for a gate, and may fail."""

    def __init__(self, rows=2, failures=0):
        self.inner = TableProvider(random_table(0, VOCABULARY), VOCABULARY, batch_size=rows, max_length=256)
        self.vocab_size, self.batch_size, self.max_length = VOCABULARY, rows, 256
        self.gate, self.failures, self.passes = threading.Event(), failures, 0
        self.gate.set()

    def forward(self, tokens, start):
        assert self.gate.wait(20)
        self.passes += 1
        if self.failures:
            self.failures -= 1
            raise OSError("the cable is loose")
        return self.inner.forward(tokens, start)


def decoder_of(model):
    return Decoder(model, method="scd-match", window=8)


def engine_of(model, **settings):
    return Engine(lambda: contextlib.nullcontext(decoder_of(model)), **settings)


async def read(engine, request, **how):
    async with await engine.submit(request, **how) as stream:
        return [token for commit in [c async for c in stream] for token in commit.tokens.tolist()]


def alone(request):
    model = TableProvider(random_table(0, VOCABULARY), VOCABULARY, max_length=256)
    made = generate(
        model,
        [request.prompt],
        length=request.length,
        seed=request.seed,
        method="scd-match",
        window=8,
        stop=request.stop,
    )
    return made.tokens[0].tolist()


def test_under_load_every_request_has_the_tokens_it_has_alone():
    random = np.random.default_rng(1)
    requests = [
        Request(
            [int(random.integers(VOCABULARY))], int(random.integers(1, LENGTH)), seed=seed, stop=[3] if seed % 3 else []
        )
        for seed in range(40)
    ]

    async def all_at_once(engine):
        return await asyncio.gather(*(read(engine, request) for request in requests))

    with engine_of(Gated(rows=3)) as engine:
        made = asyncio.run(all_at_once(engine))
    assert made == [alone(request) for request in requests]
    assert engine.statistics.running == engine.statistics.waiting == 0
    assert sum(engine.statistics.finished.values()) == 40
    assert engine.statistics.tokens == sum(map(len, made))


def test_samples_come_in_one_stream():
    async def several(engine):
        async with await engine.submit(Request([1], 9, samples=3)) as stream:
            made = {handle: [] for handle in stream.handles}
            async for commit in stream:
                made[commit.handle] += commit.tokens.tolist()
        return list(made.values())

    with engine_of(Gated()) as engine:
        made = asyncio.run(several(engine))
    model = TableProvider(random_table(0, VOCABULARY), VOCABULARY, max_length=256)
    wanted = generate(model, [[1]] * 3, length=9, method="scd-match", window=8).tokens
    assert made == [tokens.tolist() for tokens in wanted]


def test_leaving_a_stream_frees_its_row():
    async def leave(engine):
        async with await engine.submit(Request([1], 200)) as stream:
            await anext(stream)
        started = time.monotonic()
        while engine.statistics.running:
            assert time.monotonic() - started < 5
            await asyncio.sleep(0.001)
        return engine.statistics.finished

    with engine_of(Gated()) as engine:
        assert asyncio.run(leave(engine)) == {"removed": 1}


def test_a_cancelled_reader_frees_its_row():
    async def cancel(engine):
        reading = asyncio.ensure_future(read(engine, Request([1], 200)))
        await asyncio.sleep(0.01)
        reading.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await reading
        return await read(engine, Request([2], 9, seed=5))

    with engine_of(Gated(rows=1)) as engine:
        assert asyncio.run(cancel(engine)) == alone(Request([2], 9, seed=5))


class Slow:
    """A processor that takes its time to begin."""

    def __init__(self):
        self.asked, self.free = threading.Event(), threading.Event()

    def begin(self, prompt):
        self.asked.set()
        assert self.free.wait(20)
        return lambda logits, tokens, positions: logits


def test_a_reader_that_goes_while_its_request_is_prepared_leaves_nothing():
    slow = Slow()

    async def go(engine):
        submitting = asyncio.ensure_future(engine.submit(Request([1], 200, sampling=Sampling(processors=(slow,)))))
        await asyncio.to_thread(slow.asked.wait, 20)
        submitting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await submitting
        slow.free.set()
        until = time.monotonic() + 10
        while engine.statistics.finished != {"removed": 1}:
            assert time.monotonic() < until
            await asyncio.sleep(0.001)

    with engine_of(Gated()) as engine:
        asyncio.run(go(engine))


def test_a_full_queue_refuses_and_says_when_to_come_back():
    model = Gated(rows=1)
    model.gate.clear()

    async def overflow(engine):
        streams = [await engine.submit(Request([1], 5, seed=seed)) for seed in range(3)]
        with pytest.raises(Overloaded, match="of at most 2") as refused:
            await engine.submit(Request([1], 5, seed=9))
        model.gate.set()
        made = [[token async for commit in stream for token in commit.tokens.tolist()] for stream in streams]
        return refused.value.retry_after, made, await read(engine, Request([1], 5, seed=9))

    with engine_of(model, most_waiting=2) as engine:
        after, made, last = asyncio.run(overflow(engine))
    assert after >= 1
    assert [*made, last] == [alone(Request([1], 5, seed=seed)) for seed in (0, 1, 2, 9)]


def test_what_cannot_be_decoded_is_refused_before_it_is_queued():
    with engine_of(Gated()) as engine:
        for wrong in (Request([VOCABULARY], 4), Request([0], 900), Request([0], 4, stop=[99])):
            with pytest.raises(InvalidArgument):
                asyncio.run(read(engine, wrong))
        with pytest.raises(InvalidArgument, match="deadline is 0"):
            asyncio.run(read(engine, Request([0], 4), deadline=0))
        assert engine.statistics.waiting == engine.statistics.running == 0


def test_a_deadline_ends_a_request_and_no_other():
    model = Gated()

    async def late(engine):
        model.gate.clear()
        slow, other = (
            await engine.submit(Request([1], 90), deadline=0.05),
            await engine.submit(Request([2], 9, seed=5)),
        )
        await asyncio.sleep(0.1)
        model.gate.set()
        with pytest.raises(DeadlineExceeded):
            async for _ in slow:
                pass
        return [token async for commit in other for token in commit.tokens.tolist()]

    with engine_of(model) as engine:
        assert asyncio.run(late(engine)) == alone(Request([2], 9, seed=5))


def test_what_fails_in_one_request_ends_that_one():
    def poisoned(logits, tokens, positions):
        raise KeyError("poison")

    async def mixed(engine):
        bad = await engine.submit(Request([1], 9, sampling=Sampling(processors=(poisoned,))))
        made = await read(engine, Request([2], 9, seed=5))
        return [commit async for commit in bad], made

    with engine_of(Gated()) as engine:
        (last,), made = asyncio.run(mixed(engine))
    assert last.reason == "error"
    assert "poison" in str(last.error)
    assert made == alone(Request([2], 9, seed=5))


@pytest.mark.parametrize("failures", [1, 2])
def test_a_step_that_fails_is_tried_again_and_logged(failures, caplog):
    with engine_of(Gated(failures=failures)) as engine:
        assert asyncio.run(read(engine, Request([2], 9, seed=5))) == alone(Request([2], 9, seed=5))
        assert engine.health.ready
    assert caplog.text.count("the cable is loose") == failures


def test_a_model_that_fails_for_good_ends_all_and_is_unhealthy():
    engine = engine_of(Gated(failures=99))
    with pytest.raises(EngineFailed, match="the cable is loose"):
        asyncio.run(read(engine, Request([2], 9)))
    assert not engine.health.alive
    assert "loose" in engine.health.why
    with pytest.raises(EngineFailed):
        asyncio.run(read(engine, Request([2], 9)))
    engine.close()


def test_a_model_that_cannot_be_opened_says_so():
    @contextlib.contextmanager
    def broken():
        raise OSError("no such file")
        yield

    with pytest.raises(EngineFailed, match="no such file"), Engine(broken):
        pass


def test_closing_lets_what_is_under_way_finish_and_takes_no_more():
    model = Gated()

    async def drain(engine):
        model.gate.clear()
        stream = await engine.submit(Request([2], 30, seed=5))
        closing = asyncio.ensure_future(asyncio.to_thread(engine.close))
        await asyncio.sleep(0.05)
        assert not engine.health.ready
        assert engine.health.alive
        with pytest.raises(EngineStopped):
            await engine.submit(Request([1], 3))
        model.gate.set()
        made = [token async for commit in stream for token in commit.tokens.tolist()]
        await closing
        return made

    engine = engine_of(model)
    assert asyncio.run(drain(engine)) == alone(Request([2], 30, seed=5))
    assert not engine.health.alive


def test_closing_at_once_tells_what_was_under_way():
    model = Gated()

    async def stop(engine):
        stream = await engine.submit(Request([2], 240))
        await anext(stream)
        await asyncio.to_thread(engine.close, drain=0)
        with pytest.raises(EngineStopped):
            async for _ in stream:
                pass

    asyncio.run(stop(engine_of(model)))


def test_a_reader_that_does_not_read_stops_nobody():
    async def slow(engine):
        await engine.submit(Request([1], 100))  # and never read
        return await read(engine, Request([2], 9, seed=5))

    with engine_of(Gated(rows=2)) as engine:
        assert asyncio.run(slow(engine)) == alone(Request([2], 9, seed=5))


def test_a_loop_that_is_gone_stops_nobody():
    engine = engine_of(Gated(rows=1))
    asyncio.run(engine.submit(Request([1], 100)))
    assert asyncio.run(read(engine, Request([2], 9, seed=5))) == alone(Request([2], 9, seed=5))
    engine.close()


def test_a_deadline_passes_while_a_step_is_stuck():
    model = Gated()

    async def stuck(engine):
        with pytest.raises(DeadlineExceeded):
            await asyncio.wait_for(read(engine, Request([1], 9), deadline=0.1), 10)
        model.gate.set()
        return await read(engine, Request([2], 9, seed=5), deadline=60)

    with engine_of(model) as engine:
        model.gate.clear()
        try:
            assert asyncio.run(stuck(engine)) == alone(Request([2], 9, seed=5))
        finally:
            model.gate.set()
    assert engine.statistics.finished == {"removed": 1, "length": 1}


def test_a_stream_that_is_over_is_not_held_until_its_deadline():
    async def begin(engine):
        stream = await engine.submit(Request([2], 9), deadline=600)
        async with stream:
            _ = [commit async for commit in stream]
        return weakref.ref(stream)

    with engine_of(Gated()) as engine:
        gone = asyncio.run(begin(engine))
        gc.collect()
        assert gone() is None


def test_a_model_that_fails_is_not_said_to_have_failed_to_open():
    engine = engine_of(Gated(failures=99))
    for words in ("^the engine has failed: the cable is loose$",) * 2:
        with pytest.raises(EngineFailed, match=words):
            asyncio.run(read(engine, Request([2], 9)))
    engine.close()

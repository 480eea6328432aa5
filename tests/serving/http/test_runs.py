"""Runs of several jobs, and replies that end when their client goes, on `fashion`."""

import asyncio
import json
import socket
import time

import httpx
import pytest
from fastapi import Request

from coupled_sampling import generate, open_bundle
from coupled_sampling.backends import open_model
from coupled_sampling.serving import EngineStopped, ServedModel
from coupled_sampling.serving.http import HttpSettings, Service, make_app
from coupled_sampling.serving.http.replies import events, unless_gone
from coupled_sampling.serving.jobs import Job, Piece
from standins.serving import on_loopback, served

pytestmark = pytest.mark.filterwarnings("ignore::coupled_sampling.errors.SharedNoise")  # clients choose their seeds


@pytest.fixture(scope="module")
def model():
    with served("fashion", rows=4) as models:
        yield models[0]


@pytest.fixture(scope="module")
def address(model):
    """The application with two routes more: all tokens of n pictures, at once and as events."""
    app = make_app([model], HttpSettings())
    service = Service([model], HttpSettings(), _Nothing())

    def jobs(n):
        return [Job((257,), seed=5, sequence=k) for k in range(n)]

    async def gather(n):
        made = [[] for _ in range(n)]
        async with await service.begin(model, jobs(n)) as run:
            async for index, piece in run:
                made[index] += piece.tokens
        return made

    @app.get("/whole/{n}")
    async def whole(n: int, request: Request):
        return await unless_gone(request, gather(n))

    @app.get("/stream/{n}")
    async def stream(n: int, request: Request):
        async def told():
            async with await service.begin(model, jobs(n)) as run:
                async for index, piece in run:
                    yield None, {"index": index, "tokens": piece.tokens}
            yield None, "[DONE]"

        return await events(request, told())

    with on_loopback(app) as url:
        yield url


class _Nothing:
    def __getattr__(self, name):
        return lambda *_: None


@pytest.fixture(scope="module")
def wanted():
    bundle = open_bundle("fashion")
    settings = bundle.settings(method="scd-match")
    with open_model(bundle, **settings.model) as alone:
        made = generate(alone, [[257]] * 3, length=196, seed=5, **settings.decoder)
    return [tokens.tolist() for tokens in made.tokens]


def test_a_whole_reply_has_the_tokens_of_each_job_alone(address, wanted):
    assert httpx.get(f"{address}/whole/3", timeout=60).json() == wanted


def test_events_have_them_too_as_they_are_committed(address, wanted):
    made, lines = [[], [], []], []
    with httpx.stream("GET", f"{address}/stream/3", timeout=60) as reply:
        assert reply.headers["content-type"].startswith("text/event-stream")
        lines = [line.removeprefix("data: ") for line in reply.iter_lines() if line]
    assert lines.pop() == "[DONE]"
    for line in map(json.loads, lines):
        made[line["index"]] += line["tokens"]
    assert made == wanted
    assert len(lines) > 3 * 10


@pytest.mark.parametrize("kind", ["whole", "stream"])
def test_a_client_that_goes_frees_its_rows(address, model, kind):
    before = _removed(model)

    async def leave():
        async with httpx.AsyncClient(timeout=60) as client:
            asking = asyncio.ensure_future(client.get(f"{address}/{kind}/4"))
            until = time.monotonic() + 10
            while (await _running(model)) < 4 and time.monotonic() < until:
                await asyncio.sleep(0.002)
            asking.cancel()
            began = time.monotonic()
            while await _running(model) and time.monotonic() < until:
                await asyncio.sleep(0.002)
            return time.monotonic() - began

    assert asyncio.run(leave()) < 1
    assert _removed(model) == before + 4


def _removed(model):
    return sum(one.finished.get("removed", 0) for one in asyncio.run(model.source.statistics()).values())


async def _running(model):
    return sum(one.running + one.waiting for one in (await model.source.statistics()).values())


@pytest.mark.parametrize("kind", ["whole", "stream"])
def test_a_client_that_goes_while_it_waits_leaves_the_queue(address, model, kind):
    before = _removed(model)

    async def leave():
        async with httpx.AsyncClient(timeout=60) as client:
            busy = asyncio.ensure_future(client.get(f"{address}/whole/4"))
            until = time.monotonic() + 10
            while (await _running(model)) < 4 and time.monotonic() < until:
                await asyncio.sleep(0.001)
            waiting = asyncio.ensure_future(client.get(f"{address}/{kind}/2"))
            while (await _running(model)) < 6 and not busy.done() and time.monotonic() < until:
                await asyncio.sleep(0.001)
            seen = await _running(model)
            waiting.cancel()
            while (await _running(model)) > 4 and time.monotonic() < until:
                await asyncio.sleep(0.001)
            left_early = await _running(model) == 4 and not busy.done()
            await busy
        return seen, left_early

    assert asyncio.run(leave()) == (6, True)
    assert _removed(model) == before + 2


def test_a_client_that_reads_nothing_and_goes_frees_its_rows(address, model):
    before = _removed(model)
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        deaf.sendall(b"GET /stream/4 HTTP/1.1\r\nHost: x\r\n\r\n")
        until = time.monotonic() + 10
        while asyncio.run(_running(model)) < 4:
            assert time.monotonic() < until
    while asyncio.run(_running(model)):
        assert time.monotonic() < until
    assert _removed(model) == before + 4


def test_what_is_refused_is_told_before_the_response_begins(address):
    reply = httpx.get(f"{address}/stream/33")
    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == "n"
    assert httpx.get(f"{address}/nowhere").json()["error"]["type"] == "not_found_error"
    assert httpx.get(f"{address}/whole/x").status_code == 400


def test_models_and_health(address):
    assert [model["id"] for model in httpx.get(f"{address}/v1/models").json()["data"]] == ["fashion"]
    assert httpx.get(f"{address}/v1/models/other").json()["error"]["code"] == "model_not_found"
    assert httpx.get(f"{address}/health").json()["fashion"]["ready"] is True


def test_a_source_whose_stream_ends_early_leaves_nobody_waiting(model):
    class Broken:
        async def submit(self, job):
            return self

        async def __aiter__(self):
            yield Piece((1, 2))

        async def __aenter__(self):
            return self

        async def __aexit__(self, *raised):
            pass

    async def whole():
        broken = ServedModel("broken", model.bundle, Broken())
        async with await Service([broken], HttpSettings(), _Nothing()).begin(broken, [Job((257,), seed=5)]) as run:
            return [piece async for piece in run]

    with pytest.raises(EngineStopped, match="ended before"):
        asyncio.run(asyncio.wait_for(whole(), 5))

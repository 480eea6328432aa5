"""What stands before the routes: keys, bodies, names of requests, and draining."""

import asyncio
import socket
import time
from urllib.parse import urlsplit

import httpx
import pytest
from fastapi import FastAPI

from coupled_sampling.errors import InvalidArgument
from coupled_sampling.serving import ServedModel
from coupled_sampling.serving.engine import Health
from coupled_sampling.serving.http import HttpSettings, make_app
from standins.drawing import drawing_app, tokens_of
from standins.serving import on_loopback, served

KEYS = ("first-key", "second-key")
BODY = {"model": "fashion", "seed": 5}


@pytest.fixture(scope="module")
def model():
    with served("fashion", rows=4) as models:
        yield models[0]


@pytest.fixture(scope="module")
def address(model):
    with on_loopback(drawing_app([model], HttpSettings(most_body=2000, body_seconds=0.3))) as url:
        yield url


def asked(app, method, path, **how):
    """The response of an application without a network."""

    async def ask():
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
            return await client.request(method, path, **how)

    return asyncio.run(ask())


def refused(reply, status, kind):
    """The error of a reply, which has OpenAI's shape."""
    error = reply.json()["error"]
    assert (reply.status_code, error["type"]) == (status, kind)
    assert set(error) == {"message", "type", "param", "code"}
    return error


@pytest.mark.parametrize("given", ["Bearer first-key", "bearer second-key", "Bearer  second-key "])
def test_any_of_the_keys_opens(model, given):
    app = make_app([model], HttpSettings(keys=KEYS))
    assert asked(app, "GET", "/v1/models", headers={"Authorization": given}).status_code == 200


@pytest.mark.parametrize(
    "given",
    [None, "", "Bearer", "Bearer ", "Bearer first-ke", "Bearer first-keyy", "first-key", "Basic first-key", "Bearer ÿ".encode()],
)  # fmt: skip
@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/fashion", "/v1/nowhere"])
def test_without_one_nothing_of_the_models_is_told(model, path, given):
    app = make_app([model], HttpSettings(keys=KEYS))
    reply = asked(app, "GET", path, headers={} if given is None else {"Authorization": given})
    assert "key" in refused(reply, 401, "authentication_error")["message"]
    assert reply.headers["www-authenticate"] == "Bearer"


def test_probes_and_scrapers_need_no_key(model):
    app = make_app([model], HttpSettings(keys=KEYS))
    assert [asked(app, "GET", path).status_code for path in ("/health", "/health/live", "/metrics")] == [200] * 3


def test_keys_are_asked_for_wherever_the_application_is_mounted(model):
    outer = FastAPI()
    outer.mount("/llm", make_app([model], HttpSettings(keys=KEYS)))
    assert asked(outer, "GET", "/llm/v1/models").status_code == 401
    assert asked(outer, "GET", "/llm/v1/models", headers={"Authorization": "Bearer first-key"}).status_code == 200
    assert asked(outer, "GET", "/llm/health").status_code == 200


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_that_is_too_large_is_not_read(address, chunked):
    def content(size):
        return iter([b"x" * (size // 4)] * 4) if chunked else b"x" * size

    assert httpx.post(f"{address}/v1/echo", content=content(2000)).json() == {"bytes": 2000}
    assert (
        "2000"
        in refused(httpx.post(f"{address}/v1/echo", content=content(2004)), 413, "invalid_request_error")["message"]
    )


def test_a_length_is_believed_before_anything_is_read(address):
    with _connection(address) as connection:
        connection.sendall(b"POST /v1/echo HTTP/1.1\r\nHost: here\r\nContent-Length: 2001\r\n\r\n")
        assert connection.recv(1000).startswith(b"HTTP/1.1 413 ")


def test_a_body_that_does_not_arrive_is_not_waited_for(address):
    with _connection(address) as connection:
        connection.sendall(b"POST /v1/echo HTTP/1.1\r\nHost: here\r\nContent-Length: 100\r\n\r\nslow")
        began = time.monotonic()
        answer = b""
        while part := connection.recv(1000):  # it is closed
            answer += part
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert 0.2 < time.monotonic() - began < 5


def _connection(address):
    return socket.create_connection((urlsplit(address).hostname, urlsplit(address).port), timeout=10)


def test_a_client_that_goes_behind_its_body_frees_its_rows(address, model):
    async def running():
        return sum(one.running + one.waiting for one in (await model.source.statistics()).values())

    async def leave():
        async with httpx.AsyncClient(timeout=60) as client:
            asking = asyncio.ensure_future(
                client.post(f"{address}/v1/drawings", json={**BODY, "n": 20, "method": "ar"})
            )
            until = time.monotonic() + 10
            while not await running() and time.monotonic() < until:
                await asyncio.sleep(0.002)
            assert not asking.done()
            asking.cancel()
            began = time.monotonic()
            while await running() and time.monotonic() < until:
                await asyncio.sleep(0.002)
            return time.monotonic() - began

    assert asyncio.run(leave()) < 1


def test_every_response_has_a_name(address):
    first, second = (httpx.get(f"{address}/v1/models").headers["x-request-id"] for _ in range(2))
    assert first != second
    for path in ("/v1/models", "/v1/nowhere", "/health", "/v1/mistake"):
        assert httpx.get(f"{address}{path}", headers={"X-Request-Id": "mine-7"}).headers["x-request-id"] == "mine-7"
    for bad in ("a b", "x" * 129, ""):
        assert httpx.get(f"{address}/health", headers={"X-Request-Id": bad}).headers["x-request-id"] != bad


def test_a_mistake_of_the_server_tells_nothing_of_it(address):
    reply = httpx.get(f"{address}/v1/mistake")
    assert "log" in refused(reply, 500, "server_error")["message"]
    assert "secret" not in reply.text


def test_a_stream_comes_through(address):
    whole = httpx.post(f"{address}/v1/drawings", json=BODY, timeout=60).json()
    streamed = httpx.post(f"{address}/v1/drawings", json={**BODY, "stream": True}, timeout=60)
    assert [tokens_of(streamed.text)] == whole


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"{", "the body is no JSON"),
        (b"", "body"),
        (b"[" * 1000 + b"]" * 1000, "body"),
        (b'{"model": "fashion", "metadata": ' + b'{"a":' * 300 + b"1" + b"}" * 301, None),
        (b'{"model": "fashion", "temperature": NaN}', "temperature"),
        (b'{"model": "fashion", "temperature": Infinity}', "temperature"),
        (b'{"model": "fashion", "temperature": 1e999}', "temperature"),
        (b'{"model": "fashion", "seed": 1' + b"0" * 30 + b"}", "seed"),
        (b'{"model": "fashion", "top_k": 9223372036854775808}', "top_k"),
        (b'{"model": "fashion", "n": 1' + b"0" * 1900 + b"}", "n"),
        (b'{"model": "fashion", "window": 99999999999999999999}', "window"),
        (b'{"model": "fashion", "no_such": 1}', "no_such is no field of this request; leave it out"),
        (b'{"model": "fashion", "temperature": -1}', "temperature is -1, but should be greater than or equal to 0"),
        (b'{"model": "fashion", "window": 0}', "window is 0, but should be greater than or equal to 1"),
        (b'{"model": "\\ud800"}', "no model"),
        (b'"fashion"', "body"),
        (b"\xff\xfe", "body"),
    ],
)
def test_a_body_that_cannot_work_is_refused_in_words(address, body, words):
    reply = httpx.post(f"{address}/v1/drawings", content=body, headers={"Content-Type": "application/json"}, timeout=60)
    if words is None:
        assert reply.status_code == 200
    elif words == "no model":
        refused(reply, 404, "not_found_error")
    else:
        assert words in refused(reply, 400, "invalid_request_error")["message"]


def test_a_number_beyond_what_python_reads_is_refused(model):
    app = drawing_app([model], HttpSettings(most_body=10_000))
    for body in (
        b'{"model": "fashion", "n": ' + b"9" * 5000 + b"}",
        b'{"model": "fashion", "metadata": ' + b"[" * 9000,
    ):
        reply = asked(app, "POST", "/v1/drawings", content=body, headers={"Content-Type": "application/json"})
        refused(reply, 400, "invalid_request_error")


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "nonsense"])
def test_a_body_of_another_type_is_refused(address, kind):
    reply = httpx.post(f"{address}/v1/drawings", content=b'{"model": "fashion"}', headers={"Content-Type": kind})
    assert "application/json" in refused(reply, 400, "invalid_request_error")["message"]


def test_a_length_in_digits_of_another_kind_is_none(model):
    """Servers refuse it; what is mounted elsewhere may see it."""
    reply = asked(make_app([model]), "POST", "/v1/completions", content=b"{}", headers={"content-length": b"\xb2"})
    refused(reply, 400, "invalid_request_error")


def test_who_drains_takes_no_more_and_says_so(model):
    app = make_app([model])
    app.state.service.traffic.draining = True
    reply = asked(app, "GET", "/v1/models")
    assert refused(reply, 503, "server_error")["code"] == "draining"
    assert int(reply.headers["retry-after"]) > 0
    assert reply.headers["connection"] == "close"
    health = asked(app, "GET", "/health")
    assert (health.status_code, health.json()["fashion"]["why"]) == (503, "the server is draining")
    assert [asked(app, "GET", path).status_code for path in ("/health/live", "/metrics")] == [200] * 2


def test_why_a_model_fails_is_logged_once_and_not_told(model, monkeypatch, caplog):
    class Failed:
        async def health(self):
            return Health(False, False, "the engine has failed: cannot read /srv/secret/window.onnx")

    app = make_app([ServedModel("broken", model.bundle, Failed())])
    for path in ("/health", "/health/live") * 2:
        reply = asked(app, "GET", path)
        assert reply.status_code == 503
        assert "secret" not in reply.text
        assert "log" in reply.json()["broken"]["why"]
    assert caplog.text.count("/srv/secret/window.onnx") == 1


def test_a_wrong_method_is_told_which_there_are(address):
    assert httpx.get(f"{address}/v1/completions").headers["allow"] == "POST"


def test_no_page_of_another_site_is_let_in(address):
    reply = httpx.options(
        f"{address}/v1/models", headers={"Origin": "http://elsewhere", "Access-Control-Request-Method": "GET"}
    )
    assert not [name for name in reply.headers if name.startswith("access-control-")]


def test_two_models_of_one_name_are_refused(model):
    with pytest.raises(InvalidArgument, match="two models are called 'fashion'"):
        make_app([model, ServedModel("fashion", model.bundle, model.source)])


@pytest.mark.parametrize(
    ("setting", "value"), [("most_body", 0), ("most_choices", 0), ("body_seconds", 0), ("deadline", -1)]
)
def test_settings_that_cannot_work_are_refused(setting, value):
    with pytest.raises(InvalidArgument, match=setting):
        HttpSettings(**{setting: value})

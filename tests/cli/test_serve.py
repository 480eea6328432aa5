"""The server as a command: how it starts, what it refuses, and how it stops."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings

import httpx
import pytest

from coupled_sampling import Decoder, Request
from coupled_sampling.cli import serve
from coupled_sampling.errors import SharedNoise
from coupled_sampling.testing import TableProvider, random_table
from standins import ROOT

pytest.importorskip("uvicorn", reason="needs the extra [serve]")
pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")

COMMAND = [sys.executable, "-m", "coupled_sampling", "serve"]
SLOW = [sys.executable, str(ROOT / "tests" / "standins" / "drawing.py"), "serve"]
"""With a route that decodes, and slow steps."""
ASKED = {"model": "fashion", "seed": 3}


@contextlib.contextmanager
def started(*arguments, command=COMMAND, step_seconds=0.0):
    """The process, its address and what it said; killed at the end."""
    paths = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
    process = subprocess.Popen(
        [*command, *map(str, arguments), "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": paths, "STEP_SECONDS": str(step_seconds)},
    )
    try:
        said = process.stdout.readline()
        assert " at http://127.0.0.1:" in said, process.communicate(timeout=20)
        yield process, said.split()[-1], said
    finally:
        process.kill()
        process.communicate(timeout=20)


def ended(process):
    """Exit code and the lines of standard error."""
    _, error = process.communicate(timeout=30)
    return process.returncode, error.splitlines()


def drawing(address, **fields):
    """A request that another thread waits for; gives the thread and where the response will be."""
    found = {}

    def ask():
        try:
            found["reply"] = httpx.post(f"{address}/v1/drawings", json={**ASKED, **fields}, timeout=60)
        except httpx.HTTPError as error:
            found["error"] = error

    thread = threading.Thread(target=ask)
    thread.start()
    until = time.monotonic() + 20
    while (
        'num_requests_running{method="scd-match",model_name="fashion"} 1.0' not in httpx.get(f"{address}/metrics").text
    ):
        assert time.monotonic() < until
        time.sleep(0.01)
    return thread, found


def wait_for_draining(address):
    until = time.monotonic() + 10
    while (health := httpx.get(f"{address}/health")).status_code == 200:
        assert time.monotonic() < until
        time.sleep(0.005)
    return health


def test_one_command_serves_until_it_is_told_to_stop(tmp_path, command):
    keys = tmp_path / "keys"
    keys.write_text("first\n\n second \n")
    keys.chmod(0o600)
    with started("fashion", "clothes=fashion", "--api-key-file", keys, "--rows", 2) as (process, address, said):
        assert said.startswith("serving fashion, clothes at ")
        assert httpx.get(f"{address}/v1/models").status_code == 401
        listed = httpx.get(f"{address}/v1/models", headers={"Authorization": "Bearer second"}).json()
        assert [model["id"] for model in listed["data"]] == ["fashion", "clothes"]
        health = httpx.get(f"{address}/health").json()
        assert [health[name]["ready"] for name in ("fashion", "clothes")] == [True, True]

        port = address.rpartition(":")[2]
        code, out, error = command("serve", "fashion", "--port", port)
        assert (code, out, error.count("\n")) == (2, "", 1)
        assert f"port is {port}, which is in use" in error

        process.send_signal(signal.SIGTERM)
        code, lines = ended(process)
        assert code == 0
        assert lines[:2] == ["opening fashion", "opening clothes"]
        assert any(line.endswith('"GET /v1/models HTTP/1.1" 401') for line in lines)  # the log
        assert not any("Traceback" in line for line in lines)


def test_what_is_under_way_finishes_while_the_server_drains():
    with started("fashion", command=SLOW, step_seconds=0.03) as (process, address, _):
        thread, found = drawing(address)
        process.send_signal(signal.SIGTERM)
        health = wait_for_draining(address)
        assert (health.status_code, health.json()["fashion"]["ready"]) == (503, False)
        refused = httpx.post(f"{address}/v1/drawings", json=ASKED)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
        assert int(refused.headers["retry-after"]) > 0
        thread.join(30)
        assert found["reply"].status_code == 200
        assert len(found["reply"].json()[0]) == 196
        assert ended(process)[0] == 0


def test_what_does_not_finish_in_time_ends_with_an_error():
    with started("fashion", "--drain", 0.1, command=SLOW, step_seconds=0.2) as (process, address, _):
        thread, found = drawing(address)
        process.send_signal(signal.SIGTERM)
        code, lines = ended(process)
        thread.join(30)
        assert found["reply"].status_code == 503
        assert int(found["reply"].headers["retry-after"]) > 0
        assert code == 1
        assert any("1 requests did not finish in time" in line for line in lines)


def test_a_second_signal_ends_the_server_at_once():
    with started("fashion", command=SLOW, step_seconds=0.5) as (process, address, _):
        thread, found = drawing(address)
        process.send_signal(signal.SIGTERM)
        wait_for_draining(address)
        process.send_signal(signal.SIGTERM)
        assert ended(process)[0] == -signal.SIGTERM
        thread.join(30)
        assert isinstance(found["error"], httpx.RemoteProtocolError | httpx.ReadError)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["fashion", "fashion"], "two models are called 'fashion'; give one of them another name"),
        (["a=fashion", "a=./none"], "two models are called 'a'"),
        (["./no/such/model"], "no/such/model"),
        (["fashion", "--port", "70000"], "port is 70000, expected one of 0 to 65535"),
        (["fashion", "--rows", "0"], "rows is 0, expected more than 0"),
        (["fashion", "--max-queue", "-1"], "max-queue is -1, expected at least 0"),
        (["fashion", "--timeout", "nan"], "timeout is nan, expected more than 0"),
        (["fashion", "--max-body", "0"], "max-body is 0"),
        (["fashion", "--drain", "-1"], "drain is -1.0"),
        (["fashion", "--method", "quickly"], "quickly"),
        (["fashion", "--window", "1000"], "window"),
        (["fashion", "--device", "1"], "device is 1, but backend 'cpu' runs on no GPU"),
        (["fashion", "--host", "nowhere.invalid"], "host is 'nowhere.invalid', which is no address"),
        (["fashion", "--host", "192.0.2.1"], "host is '192.0.2.1', which is no address of this machine"),
        (["fashion", "--api-key-file", "none"], "api-key-file is 'none', which cannot be read: No such file"),
    ],
)
def test_what_cannot_be_served_is_one_line(command, monkeypatch, tmp_path, arguments, words):
    monkeypatch.chdir(tmp_path)
    code, out, error = command("serve", *arguments)
    assert (code, out, error.count("\n")) == (2, "", 1)
    assert words in error


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", "has no keys in it"),
        (b" \n\n", "has no keys in it"),
        (b"good\nnot good\n", "line 2 of"),
        ("schlüssel\n".encode(), "line 1 of"),
        (b"\xff\xfe", "is no text"),
    ],
)
def test_keys_that_cannot_be_sent_are_refused_and_not_shown(command, tmp_path, text, words):
    keys = tmp_path / "keys"
    keys.write_bytes(text)
    code, _, error = command("serve", "fashion", "--api-key-file", keys)
    assert (code, error.count("\n")) == (2, 1)
    assert words in error
    assert "good" not in error


def test_keys_that_everybody_can_read_are_warned_of(tmp_path, capsys):
    keys = tmp_path / "keys"
    keys.write_text("one\n")
    keys.chmod(0o600)
    assert serve._keys(keys) == ("one",)
    assert capsys.readouterr().err == ""
    keys.chmod(0o644)
    assert serve._keys(keys) == ("one",)
    assert "everybody on this machine can read" in capsys.readouterr().err


@pytest.fixture
def unserved(monkeypatch):
    """What `run_server` would have been told, without a server."""
    told = {}

    def run_server(app, bound, **settings):
        warnings.warn("seeds", SharedNoise, stacklevel=1)
        told.update(settings, app=app)
        return True

    monkeypatch.setattr("coupled_sampling.serving.http.running.run_server", run_server)
    return told


@pytest.mark.parametrize(("host", "warned"), [("127.0.0.1", False), ("localhost", False), ("0.0.0.0", True)])
def test_whoever_lets_strangers_in_is_warned(command, unserved, host, warned):
    code, _, error = command("serve", "fashion", "--port", "0", "--host", host)
    assert code == 0
    assert ("everybody who reaches 0.0.0.0 may use this server" in error) == warned


def test_options_reach_the_server_and_seeds_are_no_warning(command, unserved):
    options = [
        "--rows",
        3,
        "--max-queue",
        5,
        "--lanes",
        1,
        "--timeout",
        7,
        "--max-body",
        99,
        "--drain",
        4,
        "--window",
        9,
    ]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert command("serve", "x=fashion", "--port", 0, *options)[0] == 0
        shared = TableProvider(random_table(0, 4), 4, batch_size=2)
        decoder = Decoder(shared)
        for _ in range(2):
            decoder.add(Request([0], length=3, seed=1))
    assert [one.category for one in caught] == [SharedNoise]  # ours alone: the command has told none
    service = unserved["app"].state.service
    (model,) = service.models.values()
    assert (service.settings.deadline, service.settings.most_body, unserved["drain"]) == (7, 99, 4)
    settings = model.source.settings
    assert (model.name, settings.rows, settings.most_waiting, settings.lanes) == ("x", 3, 5, 1)
    assert settings.defaults == {"method": "scd-match", "window": 9, "corrections": "auto"}


def test_without_the_extra_it_is_named(command, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("coupled_sampling.serving.http")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "fastapi", None)
    code, out, error = command("serve", "fashion")
    assert (code, out, error.count("\n")) == (2, "", 1)
    assert "pip install 'coupled-sampling[serve]'" in error


def test_a_port_is_refused_before_a_model_is_opened(command):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, _, error = command("serve", "fashion", "--port", taken.getsockname()[1])
    assert code == 2
    assert "opening" not in error

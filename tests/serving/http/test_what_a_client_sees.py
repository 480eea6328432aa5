"""Faults, as clients see them: the rows of the table in docs/serve.md."""

import re
import shutil
import threading
import time

import httpx
import pytest

from coupled_sampling import open_bundle
from coupled_sampling.serving import Lanes, LaneSettings, ServedModel
from coupled_sampling.serving.http import HttpSettings
from standins import ROOT
from standins.drawing import drawing_app, tokens_of
from standins.serving import on_loopback, served

ASKED = {"model": "fashion", "seed": 3}


@pytest.fixture(scope="module")
def address():
    with served("fashion", rows=1, most_waiting=1, lanes=3) as models, on_loopback(drawing_app(models)) as url:
        yield url


def draw(address, **fields):
    return httpx.post(f"{address}/v1/drawings", json={**ASKED, **fields}, timeout=60)


def error_of(reply):
    assert "/" not in reply.json()["error"]["message"]  # no path
    return reply.status_code, reply.json()["error"]["code"]


def test_a_full_queue_is_429_and_says_when_to_come_back(address):
    reply = draw(address, n=3)
    assert error_of(reply) == (429, "queue_full")
    assert re.fullmatch(r"[1-9]\d*", reply.headers["retry-after"])
    assert draw(address, n=2).status_code == 200  # nothing of the refused one is left


def test_a_deadline_is_504_and_in_a_stream_an_event(address):
    late = draw(address, method="ar", timeout=0.001)
    assert error_of(late) == (504, "deadline_exceeded")
    assert late.headers["x-should-retry"] == "false"  # else OpenAI's clients ask twice more
    assert draw(address).status_code == 200
    assert error_of(draw(address, method="ar", timeout=1e-9, stream=True)) == (504, "deadline_exceeded")


def test_the_deadline_of_the_server_holds_for_who_asks_for_more(address):
    with served("fashion", rows=1) as models, on_loopback(drawing_app(models, HttpSettings(deadline=0.001))) as url:
        assert error_of(draw(url, method="ar", timeout=1000)) == (504, "deadline_exceeded")


def test_a_request_that_fails_is_alone_in_it(address):
    wanted = draw(address).json()
    found = {}
    other = threading.Thread(target=lambda: found.update(tokens=draw(address).json()))
    other.start()
    reply = draw(address, poisoned=True)
    other.join()
    assert reply.status_code == 422
    assert reply.json()["error"]["type"] == "generation_failed"
    assert found["tokens"] == wanted


def test_a_model_whose_files_are_replaced_goes_on_as_it_was(tmp_path):
    folder = tmp_path / "fashion"
    shutil.copytree(open_bundle("fashion").folder, folder)
    with Lanes(lambda: open_bundle(folder), LaneSettings(rows=1)) as lanes:
        model = ServedModel("fashion", lanes.bundle, lanes)
        with on_loopback(drawing_app([model])) as url:
            before = draw(url).json()
            manifest = folder / "manifest.json"
            text = manifest.read_text()
            name = f'"{lanes.bundle.manifest.name}"'
            assert name in text
            manifest.write_text(text.replace(name, '"another"', 1))
            assert draw(url).json() == before
            reply = draw(url, method="ar")  # a lane that was not open yet
            assert error_of(reply) == (503, None)
            assert int(reply.headers["retry-after"]) > 0
            assert httpx.get(f"{url}/health").status_code == 200  # of the lane that most requests use


def test_a_stream_that_is_read_slowly_does_not_stop_others(address):
    with httpx.stream("POST", f"{address}/v1/drawings", json={**ASKED, "stream": True}, timeout=60) as slow:
        lines = slow.iter_lines()
        first = next(lines)
        began = time.monotonic()
        assert draw(address, seed=4).status_code == 200
        assert time.monotonic() - began < 30
        rest = "\n".join([first, *lines])
    assert [tokens_of(rest)] == draw(address).json()


def test_every_row_of_the_table_names_a_test_that_there_is():
    page = (ROOT / "docs" / "serve.md").read_text()
    table = page.partition("## What a client sees")[2].partition("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ") and "| what a client" not in line]
    assert len(rows) >= 12
    for row in rows:
        file, name = re.search(r"`(tests/[\w/]+\.py)::(\w+)`", row).groups()
        assert f"def {name}(" in (ROOT / file).read_text(), f"{file} has no {name}"

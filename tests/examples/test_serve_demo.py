"""The demonstration of the server: one picture by OpenAI's client."""

import subprocess
import sys

import pytest

from standins import ROOT

pytest.importorskip("openai", reason="needs openai, which make serve-demo installs")
pytest.importorskip("uvicorn", reason="needs the extra [serve]")
pytest.importorskip("coupled_sampling.serving.http.images", reason="needs the route for pictures")


def test_it_draws_a_picture_and_stops_the_server(tmp_path):
    out = tmp_path / "bag.png"
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / "serve_demo.py", "--prompt", "bag", "--out", out],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("serving fashion at http://127.0.0.1:")
    assert lines[1].startswith("196 tokens in ")
    assert lines[-1] == "stopped with exit code 0"
    assert out.read_bytes().startswith(b"\x89PNG")


def test_a_server_that_does_not_start_is_said():
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / "serve_demo.py", "--model", "no-such-model"],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
    )
    assert done.returncode == 1
    assert "the server did not start; it says above why" in done.stderr
    assert "no-such-model" in done.stderr

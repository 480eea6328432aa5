"""The page about texts over HTTP: its lines for curl and its Python ask a live server, under the address and names on the page."""

import contextlib
import io
import json
import re
import shutil
import subprocess

import pytest

from coupled_sampling.serving.http import make_app
from coupled_sampling.serving.http.chat import ChatFields
from coupled_sampling.serving.http.completions import CompletionFields
from coupled_sampling.serving.served import ServedModel
from standins import ROOT
from standins.serving import on_loopback, served, text_bundle

PAGE = (ROOT / "docs" / "serving-text.md").read_text()
BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```\n(?:```text\n(.*?)^```$)?", re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def blocks(tmp_path_factory):
    """Blocks of the page that ask a server which runs now."""
    folder = text_bundle(tmp_path_factory.mktemp("text"))
    with served(folder, "fashion") as (text, pictures):
        named = ServedModel("smollm2", text.bundle, text.source)
        with on_loopback(make_app([named, pictures])) as address:
            page = PAGE.replace("http://127.0.0.1:8000", address)
            yield [match.groups() for match in BLOCK.finditer(page)]


def test_the_lines_for_curl(blocks):
    if shutil.which("curl") is None:
        pytest.skip("needs curl")
    lines = [code for kind, code, _ in blocks if kind == "sh"]
    assert len(lines) == 3
    for line in lines:
        said = subprocess.run(["sh", "-c", line], capture_output=True, text=True, timeout=60, check=True).stdout
        if "data: " in said:
            *events, last = [event.removeprefix("data: ") for event in said.splitlines() if event]
            assert last == "[DONE]"
            assert json.loads(events[-1])["usage"]["completion_tokens"] == 40
        else:
            assert json.loads(said)["choices"][0]["finish_reason"] == "length"


def test_the_python(blocks):
    pytest.importorskip("openai", reason="needs the extra [dev]")
    names: dict[str, object] = {}
    shown = [(code, expected) for kind, code, expected in blocks if kind == "python"]
    assert len(shown) == 4
    for code, expected in shown:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, "serving-text.md", "exec"), names)
        assert printed.getvalue().strip()
        assert expected is None or printed.getvalue() == expected
    names["client"].close()


@pytest.mark.parametrize("kind", [CompletionFields, ChatFields])
def test_every_field_is_on_the_page(kind):
    rows = [line.split("|")[1] for line in PAGE.splitlines() if line.startswith("| `")]
    listed = {name for row in rows for name in re.findall(r"`(\w+)`", row)} | {"top_logprobs"}
    assert set(kind.model_fields) <= listed
    assert listed <= {*CompletionFields.model_fields, *ChatFields.model_fields}

"""What "Pictures and clips over HTTP" says, done to a server on the loopback."""

import re
import shutil
import subprocess

import pytest

from standins import ROOT
from standins.blocks import run_blocks

pytest.importorskip("openai", reason="needs the official client")

GUIDE = ROOT / "docs" / "serving-pictures.md"
ADDRESS = "http://127.0.0.1:8000"
COMMANDS = re.compile(r"^```console\n(curl .*?)^```\n\n```text\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def guide(tmp_path_factory):
    """The guide with the address of a server that runs."""
    from coupled_sampling.serving.http import make_app
    from standins.serving import on_loopback, served

    with served("fashion", "moving", rows=4) as models, on_loopback(make_app(models)) as url:
        copy = tmp_path_factory.mktemp("guide") / GUIDE.name
        copy.write_text(GUIDE.read_text().replace(ADDRESS, url))
        yield copy


def test_its_python(guide, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shown = run_blocks(guide)
    assert len(shown) == 4
    for printed, expected in shown:
        assert printed == expected
    frames = [f"frame-{i:02}.png" for i in range(16)]
    files = [*frames, "shoe-0.png", "shoe-1.png", "shoe.png", "shoe.webp"]
    assert sorted(file.name for file in (tmp_path / "build").iterdir()) == files


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl on the path")
def test_its_commands(guide):
    found = COMMANDS.findall(guide.read_text())
    assert len(found) == 2
    for command, expected in found:
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
        assert done.stdout.strip() == expected.strip()

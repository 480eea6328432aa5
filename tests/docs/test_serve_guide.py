"""The commands of "Serve a model" are command lines that parse, its options are all there are, and its curl lines are answered."""

import configparser
import re
import shlex
import shutil
import subprocess

import pytest

from coupled_sampling.cli.entry import make_parser
from standins import ROOT

PAGE = ROOT / "docs" / "serve.md"
TEXT = PAGE.read_text()


def blocks(kind):
    return re.findall(rf"^```{kind}\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)


LINES = [line for block in blocks("console") for line in block.splitlines()]


def test_the_commands_parse():
    commands = [shlex.split(line)[1:] for line in LINES if line.startswith("coupled-sampling ")]
    assert len(commands) > 3
    for words in commands:
        assert make_parser().parse_args(words).command == "serve"


def test_every_option_is_in_the_table_with_its_default():
    parsed = vars(make_parser().parse_args(["serve", "fashion"]))
    table = TEXT.partition("## Options")[2].partition("\n## ")[0]
    options = set(
        re.findall(r"--(\w[\w-]+)", "".join(line.split(" | ")[0] for line in table.splitlines() if "|" in line))
    )
    known = {name.replace("_", "-") for name in parsed} - {
        "command",
        "run",
        "print-completion",
        "models",
        "widen",
        "max-length",
    }
    assert options == known
    rows = [line.split(" | ")[:2] for line in table.splitlines() if line.startswith("| `--")]
    for names, defaults in rows:
        for name, default in zip(re.findall(r"--([\w-]+)", names), defaults.replace("`", "").split(", "), strict=False):
            value = parsed[name.replace("-", "_")]
            assert (
                default in ("none", "the bundle's")
                if value is None
                else default == format(value, "g" * isinstance(value, float))
            )


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl")
def test_curl_is_answered():
    pytest.importorskip("uvicorn", reason="needs the extra [serve]")
    from coupled_sampling.serving.http import make_app
    from standins.serving import on_loopback, served

    asked = [line for line in LINES if line.startswith("curl ")]
    assert len(asked) >= 4
    with served("fashion", rows=1) as models:
        app = make_app(models)
        with on_loopback(app) as url:
            for line in asked:
                path = re.search(r"http://127.0.0.1:8000(\S+)", line)[1]
                if path not in app.openapi()["paths"]:
                    assert path == "/v1/images/generations"  # a part of its own
                    continue
                words = shlex.split(line.replace("http://127.0.0.1:8000", url))
                done = subprocess.run(
                    [*words, "--silent", "--fail", "--max-time", "60"], capture_output=True, text=True
                )
                assert done.returncode == 0, line
                assert done.stdout


def test_the_unit_of_systemd_can_be_read():
    (unit,) = blocks("ini")
    read = configparser.ConfigParser(interpolation=None)
    read.read_string(unit)
    words = shlex.split(read["Service"]["ExecStart"])
    assert make_parser().parse_args(words[1:]).command == "serve"
    assert int(read["Service"]["TimeoutStopSec"]) > make_parser().parse_args(words[1:]).drain

"""``coupled-sampling triton``."""

import json
import subprocess
import sys

import pytest

from coupled_sampling.cli import main
from standins.pbtxt import read_pbtxt


def parameters(folder):
    fields = read_pbtxt((folder / "config.pbtxt").read_text())
    return {one["key"][0]: one["value"][0]["string_value"][0] for one in fields["parameters"]}


def test_it_writes_a_model_and_says_how_it_is_served(tmp_path, capsys):
    assert main(["triton", "fashion", str(tmp_path / "models"), "--link", "--rows", "3", "--window", "auto"]) == 0
    said = capsys.readouterr()
    assert (
        said.out == f"wrote {tmp_path}/models/fashion; to serve it: tritonserver --model-repository={tmp_path}/models\n"
    )
    assert said.err == ""
    found = parameters(tmp_path / "models" / "fashion")
    assert (found["rows"], found["window"], found["max_queue"], found["backend"]) == ("3", "auto", "64", "cpu")


def test_all_options_arrive(tmp_path, capsys):
    options = ["--name", "mine", "--gpus", "1, 2", "--max-queue", "0", "--lanes", "1", "--drain", "2", "--method", "ar"]
    options += ["--window", "1", "--backend", "tensorrt", "--step", "host", "--engines", "kept", "--json"]
    assert main(["triton", "fashion", str(tmp_path), "--link", *options]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["model"], told["gpus"]) == ("mine", [1, 2])
    expected = {"backend": "tensorrt", "engines": "kept", "step": "host", "rows": "8", "max_queue": "0", "lanes": "1"}
    assert told["parameters"] == {**expected, "drain_seconds": "2.0", "method": "ar", "window": "1"}
    assert {"bundle", *told["parameters"]} == set(parameters(tmp_path / "mine"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["nowhere", "models"], "no bundle 'nowhere'"),
        (["fashion", "models", "--gpus", "first"], "gpus is 'first', expected numbers"),
        (["fashion", "models", "--gpus", "0", "--backend", "cpu"], "'cpu' runs on no GPU"),
        (["fashion", "models", "--window", "wide"], "window is 'wide'"),
        (["fashion", "models", "--window", "²"], "window is '²'"),
        (["fashion", "models", "--gpus", "²"], "gpus is '²'"),
        (["fashion", "models", "--window", "500"], "window is 500"),
        (["fashion", "models", "--name", "../mine"], "name is '../mine'"),
        (["fashion", "nowhere/models"], "does not exist; create it first"),
        (["fashion", "file"], "is no folder"),
        (["fashion", "there"], "it exists; choose another --name, or --replace"),
    ],
)
def test_what_cannot_be_is_one_line_and_nothing_is_written(tmp_path, monkeypatch, capsys, options, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "there" / "fashion").mkdir(parents=True)
    assert main(["triton", *options]) == 2
    told = capsys.readouterr().err
    assert said in told
    assert told.count("\n") == 1
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["fashion", "file", "there"]


def test_other_commands_do_not_wait_for_what_serves():
    """``--help`` imports neither the engine nor what it waits with."""
    program = "import sys; from coupled_sampling.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    program += "print([name for name in sys.modules if name.startswith(('coupled_sampling.serving', 'asyncio'))])"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.splitlines()[-1] == "[]"

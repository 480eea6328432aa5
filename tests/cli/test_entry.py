"""The command line as a user meets it: one-line errors with exit code 2, no traceback, nothing half-written."""

import importlib
import os
import pkgutil
import subprocess
import sys
import tomllib

import pytest

import coupled_sampling.cli
from coupled_sampling import __version__
from coupled_sampling.cli import generate, main
from coupled_sampling.cli.entry import COMMANDS
from coupled_sampling.errors import BundleError
from standins import ROOT

MODULE = [sys.executable, "-m", "coupled_sampling"]


def run_module(*arguments, **settings):
    return subprocess.run([*MODULE, *arguments], capture_output=True, text=True, **settings)


def test_python_m_is_the_command_line():
    result = run_module("inspect")
    assert (result.returncode, result.stderr) == (0, "")
    assert "Fashion-MNIST" in result.stdout
    assert run_module("inspect", "no/such/model").returncode == 2


def test_the_version_is_said(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"coupled-sampling {__version__}\n"


def test_the_version_is_that_of_the_package():
    with (ROOT / "pyproject.toml").open("rb") as file:
        assert tomllib.load(file)["project"]["version"] == __version__


def test_every_module_that_is_a_command_is_listed():
    found = {
        module.name
        for module in pkgutil.iter_modules(coupled_sampling.cli.__path__)
        if hasattr(importlib.import_module(f"coupled_sampling.cli.{module.name}"), "add_arguments")
    }
    assert found == {command.__name__.rpartition(".")[2] for command in COMMANDS.values()}
    assert found == {name.replace("-", "_") for name in COMMANDS}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "required: COMMAND; `coupled-sampling --help`"),
        (["draw"], "invalid choice: 'draw'"),
        (["generate", "--colour", "red"], "unrecognized arguments: --colour"),
        (["generate", "--count", "many"], "argument --count: invalid int value: 'many'; `coupled-sampling generate --help`"),
        (["generate", "--window", "wide"], "argument --window: 'wide' is no window, expected a number of tokens or auto"),
        (["compare", "--backend", "rocm"], "argument --backend: invalid choice: 'rocm'"),
        (["export", "here"], "required: OUT; `coupled-sampling export --help`"),
        (["export", "here", "there", "--batch", "1"], "unrecognized arguments: --batch"),
    ],
)  # fmt: skip
def test_what_the_parser_refuses_is_one_line_and_exit_code_2(capsys, arguments, words):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert words in captured.err
    assert captured.err.startswith("coupled-sampling: error: ")
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize(
    ("fault", "code", "words"),
    [
        (BundleError("window.onnx is missing"), 2, "error: window.onnx is missing"),
        (PermissionError(13, "Permission denied", "model"), 2, "error: [Errno 13] Permission denied: 'model'"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_what_goes_wrong_in_a_command_is_one_line(command, monkeypatch, fault, code, words):
    def fails(arguments):
        raise fault

    monkeypatch.setattr(generate, "run", fails)
    found, out, error = command("generate")
    assert (found, out) == (code, "")
    assert words in error
    assert error.count("\n") == 1


@pytest.mark.skipif(os.name != "posix", reason="pipes and head")
def test_a_reader_that_leaves_early_is_no_traceback():
    reader, writer = os.pipe()
    os.close(reader)
    try:
        result = subprocess.run([*MODULE, "inspect"], stdout=writer, stderr=subprocess.PIPE, text=True)
    finally:
        os.close(writer)
    assert result.returncode == 1
    assert result.stderr == ""

"""What is printed does nothing to a terminal, can be written in its encoding, and is missed if it cannot be written."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import pytest

from coupled_sampling import open_bundle
from coupled_sampling.bundles import write_manifest
from coupled_sampling.cli import compare, generate, main, output
from coupled_sampling.cli.entry import COMMANDS
from coupled_sampling.cli.output import one_line, printable, say_json, write
from coupled_sampling.errors import BundleError, OutputError
from standins import ROOT

MODULE = [sys.executable, "-m", "coupled_sampling"]

EVIL = {
    "\x1b]0;owned\x07 title": "\\x1b]0;owned\\x07 title",
    "lone \ud800 half": "lone \\ud800 half",
    "\r\x1b[2K\x9b31m": "\\r\\x1b[2K\\x9b31m",
    "name\nlicence: mine": "name\\nlicence: mine",
    "\u202egnp.exe": "\\u202egnp.exe",
    "\u2028\x7f\x00": "\\u2028\\x7f\\x00",
}
"""Names, and how they are shown."""


@pytest.mark.parametrize("name", EVIL)
def test_what_a_manifest_says_is_shown_in_its_line(tmp_path, command, name):
    folder = tmp_path / "b"
    shutil.copytree(open_bundle("fashion").folder, folder)
    write_manifest(folder, replace(open_bundle("fashion").manifest, name=name))
    code, said, error = command("inspect", folder)
    assert (code, error) == (0, "")
    assert f"\nname:          {EVIL[name]}\ndescription:" in f"\n{said}"
    code, said, _ = command("inspect", folder, "--json")
    assert (code, json.loads(said)["name"]) == (0, name)
    assert set(said) <= {"\n", *map(chr, range(32, 127))}
    code, said, error = command("generate", folder, "--method", "magic" + name, "--count", 1)
    assert (code, said, error.count("\n")) == (2, "", 1)
    assert set(error) <= {"\n", *map(chr, range(32, 127))}


def test_letters_of_all_languages_are_left_alone():
    for text in ("Größe 中文 שלום नमस्ते 👩\u200d🚀", "two\nlines\tand a tab", ""):
        assert printable(text, "utf-8") == text
    assert one_line("two\nlines\tand a tab") == "two\\nlines\\tand a tab"


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [
        ("ascii", "+/- x <= \\xfc \\u4e2d"),
        ("latin-1", "± \u00d7 <= ü \\u4e2d"),
        ("utf-8", "± \u00d7 ≤ ü 中"),
        ("nonesuch", "+/- x <= \\xfc \\u4e2d"),
    ],
)
def test_signs_that_an_encoding_lacks_are_spelled(encoding, shown):
    assert printable("± \u00d7 ≤ ü 中", encoding) == shown


def ascii_output(monkeypatch):
    out = io.TextIOWrapper(io.BytesIO(), "ascii", write_through=True)
    monkeypatch.setattr(sys, "stdout", out)
    return lambda: out.buffer.getvalue().decode("ascii")


def test_figures_are_columns_on_an_ascii_terminal(monkeypatch):
    said = ascii_output(monkeypatch)
    names = ("tokens_per_step", "seconds", "tokens_per_second", "speedup_nfe", "speedup_seconds", "nfe_sem")
    figures = {"method": "ar", "nfe_mean": 196, "identical_to_ar": True, **dict.fromkeys(names, 1.0)}
    output.say(compare._table([figures]))
    head, row = said().splitlines()
    assert row.index("196.0 +/- 1.0") + len("196.0 +/- 1.0") == head.index("NFE") + len("NFE")


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_help_needs_no_more_than_ascii(name, monkeypatch):
    said = ascii_output(monkeypatch)
    with pytest.raises(SystemExit) as ended:
        main([*([name] if name else []), "--help"])
    assert ended.value.code == 0
    assert "usage: coupled-sampling" in said()
    assert "\\x" not in said()


def test_numbers_that_are_none_are_null_in_json(capsys):
    say_json(
        {"nan": float("nan"), "inf": [float("inf"), -float("inf")], "x": 0.1, "del": "\x7f", "set": {1}}, default=list
    )
    assert json.loads(capsys.readouterr().out, parse_constant=pytest.fail) == {
        "nan": None,
        "inf": [None, None],
        "x": 0.1,
        "del": "\x7f",
        "set": [1],
    }


def test_errors_are_tame_lines(command, monkeypatch):
    def fails(_):
        raise BundleError("first\n  second \x1b[2J line")

    monkeypatch.setattr(generate, "run", fails)
    assert command("generate") == (2, "", "coupled-sampling: error: first second \\x1b[2J line\n")


def test_warnings_are_tame_lines(command, monkeypatch):
    def warns(_):
        said.append(warnings.formatwarning("of\na \x1b[2Jfile", UserWarning, "x.py", 1))
        return 0

    said, before = [], warnings.formatwarning
    monkeypatch.setattr(generate, "run", warns)
    assert command("generate")[0] == 0
    assert said == ["coupled-sampling: warning: of a \\x1b[2Jfile\n"]
    assert warnings.formatwarning is before


class Full(io.StringIO):
    name = "<stdout>"

    def flush(self):
        raise OSError(28, "No space left on device")


def test_an_output_that_cannot_be_written_is_an_error():
    with pytest.raises(OutputError, match="cannot write standard output: No space left"):
        write("text", Full())


posix = pytest.mark.skipif(os.name != "posix", reason="streams of POSIX")


def shell(line):
    """Exit code, standard output and standard error of a command line of a shell, in which PROGRAM is the command line."""
    program = " ".join(MODULE)
    # Empty is unset: what is buffered is written once more when Python ends.
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": ""}
    done = subprocess.run(
        ["sh", "-c", line.replace("PROGRAM", program)], capture_output=True, text=True, env=environment
    )
    return done.returncode, done.stdout, done.stderr


@posix
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_standard_output_is_one_line():
    code, _, error = shell("PROGRAM --version > /dev/full")
    assert (code, error) == (2, "coupled-sampling: error: cannot write standard output: No space left on device\n")


@posix
def test_a_closed_standard_output_is_refused_before_the_work():
    code, _, error = shell("PROGRAM inspect >&-")
    assert code == 2
    assert error.startswith("coupled-sampling: error: standard output is closed")
    assert error.count("\n") == 1


@posix
def test_without_standard_error_the_work_is_done():
    """And no file that is opened gets its number, into which libraries in C write what they like."""
    assert shell("PROGRAM inspect nothing 2>&-") == (2, "", "")
    numbers = "import os, sys; from coupled_sampling.cli import inspect, main; "
    numbers += "inspect.run = lambda a: print(os.open(os.devnull, os.O_RDONLY)) or 0; main(['inspect'])"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["sh", "-c", f'{sys.executable} -c "{numbers}" 2>&- <&-'], capture_output=True, text=True, env=environment
    )
    assert int(done.stdout) > 2


def test_a_prompt_from_a_closed_standard_input_is_refused(command, monkeypatch):
    from coupled_sampling.cli.prompts import Asked
    from coupled_sampling.errors import InvalidArgument

    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(InvalidArgument, match="standard input, which is closed"):
        Asked(prompt="-").text()


def test_all_is_printed_in_one_place():
    """So that nothing is printed as it comes; Python's own ``print`` knows no terminal."""
    for path in sorted((ROOT / "coupled_sampling" / "cli").glob("*.py")):
        assert not re.search(r"(?<!\w)print\(", path.read_text()), path.name

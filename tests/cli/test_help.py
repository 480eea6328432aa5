"""Help: every option says what it does and what holds without it, and asking for help loads nothing."""

import argparse
import subprocess
import sys

import pytest

from coupled_sampling.cli import main
from coupled_sampling.cli.entry import COMMANDS, make_parser


def parsers():
    """The parser of every command, by name."""
    (commands,) = (a for a in make_parser()._actions if isinstance(a, argparse._SubParsersAction))
    return commands.choices


def options(name):
    """The options of a command that are not ``--help``, and its arguments without a dash."""
    return [action for action in parsers()[name]._actions if not isinstance(action, argparse._HelpAction)]


def said(action):
    """The help text as it is printed."""
    return (action.help or "") % {"default": action.default, "prog": "coupled-sampling"}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_says_its_default(name):
    for action in options(name):
        assert len(said(action)) > 10, f"{name} {action.dest} has no help"
        must_be_given = not action.option_strings and action.nargs in (None, "+")
        is_flag = action.nargs == 0 and not isinstance(action, argparse.BooleanOptionalAction)
        if must_be_given or is_flag:
            assert "(default:" not in said(action)  # a flag that is not given is off
            continue
        assert said(action).endswith(")"), f"{name} {action.dest}: {said(action)}"
        default = said(action).rpartition("(default: ")[2].removesuffix(")")
        if action.default is None:
            assert default, f"{name} {action.dest} does not say what holds without it"
            assert default != "None"
        else:
            assert default == str(action.default)


@pytest.mark.parametrize("name", COMMANDS)
def test_settings_that_a_bundle_has_defaults_for_are_said_to_be_the_bundles(name):
    of_bundles = {
        "method",
        "window",
        "drafting",
        "temperature",
        "top_k",
        "top_p",
        "min_p",
        "guidance",
        "guidance_interval",
    }
    if name == "fit-corrections":
        of_bundles.remove("window")  # a fit has its own: tables are for what wide windows ask
    if name in ("bulk", "serve", "triton"):
        of_bundles.remove("method")  # the one whose tokens depend on no window, and that resumes exactly
    for action in options(name):
        if action.dest in of_bundles and name != "export":
            assert action.default is None
            assert said(action).endswith("(default: the bundle's)")


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_help_fits_a_terminal_and_gives_examples(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "84")
    with pytest.raises(SystemExit) as ended:
        main([*filter(None, [name]), "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith("usage: coupled-sampling ")
    assert f"coupled-sampling {name}".rstrip() in text.partition("options:")[2]
    assert max(map(len, text.splitlines())) <= 84


def test_the_examples_are_command_lines_that_parse():
    parser = make_parser()
    for name, command in COMMANDS.items():
        lines = [line.strip() for line in command.EXAMPLES.splitlines() if not line.strip().startswith("#")]
        assert lines
        for line in lines:
            words = line.replace('"Once upon a time"', "Once").split()
            assert words[:2] == ["coupled-sampling", name]
            assert parser.parse_args(words[1:]).command == name


@pytest.mark.parametrize("arguments", [["--help"], ["generate", "--help"], ["serve", "--help"], ["--version"]])
def test_help_loads_no_runtime(arguments):
    heavy = (
        "onnxruntime",
        "onnx",
        "torch",
        "matplotlib",
        "PIL",
        "tqdm",
        "scipy",
        "shtab",
        "tokenizers",
        "tensorrt",
        "fastapi",
        "uvicorn",
    )
    code = (
        "import sys\nfrom coupled_sampling.cli import main\n"
        f"try:\n    main({arguments!r})\nexcept SystemExit:\n    pass\n"
        f"print([name for name in {heavy!r} if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"

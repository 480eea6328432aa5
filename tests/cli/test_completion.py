"""Completion: the script that shtab writes completes commands, options and their values in a real bash."""

import shutil
import subprocess
import sys

import pytest

from coupled_sampling.cli import main
from coupled_sampling.cli.completion import SHELLS, completion
from coupled_sampling.cli.entry import COMMANDS, make_parser
from coupled_sampling.methods import METHODS

BASH = shutil.which("bash")


def completed(*words, cwd):
    """What bash offers for the last of ``words``."""
    script = cwd / "completion.sh"
    script.write_text(completion(make_parser(), "bash"))
    code = (
        f'source "{script}"; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _shtab_coupled_sampling 2>/dev/null; '
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    result = subprocess.run(
        [BASH, "-c", code, "bash", "coupled-sampling", *words], capture_output=True, text=True, cwd=cwd
    )
    return set(result.stdout.split())


@pytest.mark.skipif(BASH is None, reason="no bash")
def test_bash_completes_commands_options_and_values(tmp_path):
    pytest.importorskip("shtab")
    (tmp_path / "models").mkdir()
    assert completed("", cwd=tmp_path) >= set(COMMANDS)
    assert completed("com", cwd=tmp_path) == {"compare"}
    assert completed("generate", "--top", cwd=tmp_path) == {"--top-k", "--top-p"}
    assert completed("generate", "--method", "scd-", cwd=tmp_path) == {name for name in METHODS if name[:4] == "scd-"}
    assert completed("verify", "--step", "", cwd=tmp_path) == {"auto", "host", "graph", "kernels", "both"}
    assert completed("inspect", "mod", cwd=tmp_path) == {"models"}
    assert completed("generate", "--out", "compl", cwd=tmp_path) == {"completion.sh"}
    assert completed("generate", "--prompt", cwd=tmp_path) == {"--prompt", "--prompt-file"}
    assert completed("generate", "--prompt-file", "compl", cwd=tmp_path) == {"completion.sh"}
    assert completed("generate", "--sto", cwd=tmp_path) == {"--stop"}


@pytest.mark.parametrize("shell", SHELLS)
def test_every_shell_gets_a_script(shell, capsys):
    pytest.importorskip("shtab")
    with pytest.raises(SystemExit) as ended:
        main(["--print-completion", shell])
    assert ended.value.code == 0
    script = capsys.readouterr().out
    assert all(name in script for name in COMMANDS)
    assert "drafting" in script


def test_without_shtab_the_extra_is_named(command, monkeypatch):
    monkeypatch.setitem(sys.modules, "shtab", None)
    code, text, error = command("--print-completion", "bash")
    assert (code, text, error.count("\n")) == (2, "", 1)
    assert "pip install 'coupled-sampling[completion]'" in error


def test_a_shell_that_is_not_known_is_refused(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--print-completion", "fish"])
    assert ended.value.code == 2
    assert "argument --print-completion: invalid choice: 'fish'" in capsys.readouterr().err

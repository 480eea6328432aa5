"""The README's Python is run, in order, as a reader would."""

import re

from standins import ROOT

README = ROOT / "README.md"


def test_every_python_block_of_the_readme_runs(capsys):
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(blocks) == 2
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, str(README), "exec"), names)
    assert [len(tokens) for tokens in names["tokens"]] == [196, 196, 196]
    assert "done" in capsys.readouterr().out

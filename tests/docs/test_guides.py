"""The Python in the guides is run, in order, as a reader of a checkout would."""

import re

import pytest

from standins import ROOT

GUIDES = sorted((ROOT / "docs").glob("*.md"))


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.name)
def test_every_python_block_of_a_guide_runs(guide, monkeypatch):
    monkeypatch.chdir(guide.parents[1])
    names: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", guide.read_text(), re.DOTALL):
        exec(compile(block, str(guide), "exec"), names)

"""The Python in a page of documentation, run block by block, and what the page says that it prints."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

__all__ = ["run_blocks"]

BLOCK = re.compile(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```$)?", re.DOTALL | re.MULTILINE)
"""A block of Python, and the block of text right behind it if there is one: its output."""


def run_blocks(page: Path) -> list[tuple[str, str | None]]:
    """Run the Python of ``page`` in order, in one namespace; what each block printed, and what it should have."""
    names: dict[str, object] = {}
    shown = []
    for code, expected in BLOCK.findall(page.read_text()):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, str(page), "exec"), names)
        shown.append((printed.getvalue(), expected or None))
    return shown

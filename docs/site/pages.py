"""Pages of the site that are not files of `docs`, and links that leave it.

The README is the site's first page; the changelog, CONTRIBUTING and the examples' READMEs are pages, too. Each is written once,
where a reader of the repository looks for it, with links that work there. So links are rewritten here: one to a file that is a page
leads to this page, one to any other file of the repository becomes its text. A link to a file that does not exist is left as it
is, and MkDocs, run with `--strict`, refuses it.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]

PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "examples/smollm2/README.md": "examples/smollm2.md",
    "examples/own_torch_model/README.md": "examples/own_torch_model.md",
    "examples/jax/README.md": "examples/jax.md",
    "examples/javascript/README.md": "examples/javascript.md",
}
"""Files of the repository by the pages they become."""

_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s#:]+)(#[^)\s]*)?\)")
_FENCE = re.compile(r"(^```.*?^```)", re.DOTALL | re.MULTILINE)


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are files outside `docs`."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Page, config: Any, files: Files) -> str:
    """Rewrite the page's links, those in fenced code excepted."""
    own = page.file.src_uri
    source = next((source for source, name in PAGES.items() if name == own), f"docs/{own}")
    parts = _FENCE.split(markdown)
    parts[::2] = [_LINK.sub(lambda link: _rewritten(link, source, own), part) for part in parts[::2]]
    return "".join(parts)


def _rewritten(link: re.Match[str], source: str, own: str) -> str:
    """``link``, written for readers of the file ``source``, for readers of the page ``own``."""
    image, text, target, anchor = link.groups()
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
    page = PAGES.get(path) or PAGES.get(f"{path}/README.md")
    if page is None and path.startswith("docs/"):
        page = path.removeprefix("docs/")
    if page is not None:
        return f"{image}[{text}]({posixpath.relpath(page, posixpath.dirname(own) or '.')}{anchor or ''})"
    return text if (ROOT / path).exists() else link.group()

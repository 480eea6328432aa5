"""What lies beside a model's weights in a folder of Hugging Face, whoever wrote it: text, and settings in JSON.

The template of conversations is in ``chat_template.jinja``, in ``chat_template.json`` or in ``tokenizer_config.json``, which also
names the special tokens. Exports for ONNX Runtime are such folders, too.

A file may be a link, as all are in Hugging Face's cache, and a stranger's link may lead to a file that is not meant for strangers.
What is JSON is taken by its keys, and messages never quote it. A template in a file of its own is text of any kind: it has to be
in the folder, or in the cache that the folder belongs to.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from coupled_sampling.bundles import json_files
from coupled_sampling.bundles.chat import ChatTemplate
from coupled_sampling.errors import BundleError, CoupledSamplingError

__all__ = ["read_object", "read_template", "read_text", "read_tokens"]

_TEMPLATE = "chat_template.jinja"
_TEXT = json_files.CHAT_TEMPLATE._replace(remedy="copy or download it again")  # no bundle was exported here


def read_template(home: Path, error: type[CoupledSamplingError] = BundleError) -> ChatTemplate | None:
    """The chat template of a folder, and the special tokens by name; None if there is none.

    Raises
    ------
    CoupledSamplingError
        Of the class ``error``: a file cannot be read.
    """
    settings = read_object(home / "tokenizer_config.json", error)
    source: Any = settings.get("chat_template")
    source = read_object(home / "chat_template.json", error).get("chat_template", source)
    if _leads_away(home, home / _TEMPLATE):
        raise error(
            f"{home / _TEMPLATE} is a link to a file elsewhere, and nothing tells a template from any other text; "
            "put a copy of the file there"
        )
    written = read_text(home / _TEMPLATE, error)
    source = source if written is None else written
    if isinstance(source, list):  # several by name; the one that is asked for by default is called so
        named = [entry for entry in source if isinstance(entry, dict) and entry.get("name") == "default"]
        source = named[-1].get("template") if named else None
    if not isinstance(source, str):
        return None
    special = {}
    for name, value in {**read_object(home / "special_tokens_map.json", error), **settings}.items():
        text = value.get("content") if isinstance(value, dict) else value
        if name.endswith("_token") and isinstance(text, str):
            special[name] = text
    return ChatTemplate(source, special)


def read_tokens(found: Any) -> tuple[int, ...]:
    """A token, a list of them, or nothing, as configurations write them."""
    listed = found if isinstance(found, list) else [found]
    return tuple(token for token in listed if isinstance(token, int) and not isinstance(token, bool))


def read_object(path: Path, error: type[CoupledSamplingError] = BundleError) -> dict[str, Any]:
    """The object in a JSON file, empty if there is no file.

    Raises
    ------
    CoupledSamplingError
        Of the class ``error``: the file is not readable JSON, or holds something else.
    """
    return json_files.read_object(path, json_files.CONFIGURATION, error) if os.path.lexists(path) else {}


def read_text(path: Path, error: type[CoupledSamplingError] = BundleError) -> str | None:
    """The text of a file, None if there is none.

    Raises
    ------
    CoupledSamplingError
        Of the class ``error``: what is there is no file, a link to nothing for instance, or is no text in UTF-8.
    """
    return json_files.read_text(path, _TEXT, error) if os.path.lexists(path) else None


def _leads_away(home: Path, path: Path) -> bool:
    """Whether a file of the folder ``home`` is a link out of it, and not into the cache that the folder is part of."""
    try:
        real, home = path.resolve(), home.resolve()
    except (OSError, RuntimeError):  # a loop of links, which reading it reports
        return False
    # models--owner--name/snapshots/REVISION/... are links into models--owner--name/blobs.
    stores = [folder.parent / "blobs" for folder in home.parents if folder.name == "snapshots"]
    return home not in real.parents and real.parent not in stores

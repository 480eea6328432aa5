"""What lies beside a model's weights in a folder of Hugging Face, whoever wrote it: text, and settings in JSON.

The template of conversations is in ``chat_template.jinja``, in ``chat_template.json`` or in ``tokenizer_config.json``, which also
names the special tokens. Exports for ONNX Runtime are such folders, too.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from coupled_sampling.bundles.chat import ChatTemplate
from coupled_sampling.errors import BundleError, CoupledSamplingError

__all__ = ["read_object", "read_template", "read_tokens"]


def read_template(home: Path, error: type[CoupledSamplingError] = BundleError) -> ChatTemplate | None:
    """The chat template of a folder, and the special tokens by name; None if there is none.

    Raises
    ------
    CoupledSamplingError
        Of the class ``error``: a file cannot be read.
    """
    settings = read_object(home / "tokenizer_config.json", error)
    source: Any = settings.get("chat_template")
    if (home / "chat_template.json").is_file():
        source = read_object(home / "chat_template.json", error).get("chat_template", source)
    if (home / "chat_template.jinja").is_file():
        source = (home / "chat_template.jinja").read_text(encoding="utf-8")
    if isinstance(source, list):  # several by name; the one that is asked for by default is called so
        named = {entry.get("name"): entry.get("template") for entry in source if isinstance(entry, dict)}
        source = named.get("default")
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
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as cause:
        raise error(f"{path} is not readable JSON ({cause}); copy the folder again") from cause
    if not isinstance(found, dict):
        raise error(f"{path} holds a {type(found).__name__}, expected an object; copy the folder again")
    return found

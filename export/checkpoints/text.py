"""What a checkpoint says about text: its tokenizer, its chat template, and the tokens that end a text or a turn.

In a folder of Hugging Face these are files beside the weights: ``tokenizer.json``; the template as ``chat_template.jinja``, in
``chat_template.json`` or in ``tokenizer_config.json``, which also names the special tokens; ``generation_config.json``, whose end
tokens often are more than those of ``config.json``, since a turn ends otherwise than a text. A GGUF file has all of it in its
metadata.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coupled_sampling.bundles.chat import ChatTemplate
from coupled_sampling.export.checkpoints.contract import Checkpoint, CheckpointError
from coupled_sampling.export.checkpoints.gguf_tokenizer import gguf_tokenizer

__all__ = ["TextFiles", "write_text_files"]

_TOKENIZER, _CHAT = "tokenizer.json", "chat.json"

_GGUF_NAMES = {
    "bos": "bos_token",
    "eos": "eos_token",
    "unknown": "unk_token",
    "padding": "pad_token",
    "seperator": "sep_token",
}
"""From GGUF's names of special tokens, its own spelling included, to those that templates use."""


@dataclass(frozen=True)
class TextFiles:
    """What was written into a bundle's folder.

    Parameters
    ----------
    tokenizer, chat_template
        Names of files, None where the checkpoint has no such thing.
    stop_tokens
        Tokens that end a text or a turn, beside those of the configuration.
    """

    tokenizer: str | None = None
    chat_template: str | None = None
    stop_tokens: tuple[int, ...] = ()


def write_text_files(checkpoint: Checkpoint, folder: Path) -> TextFiles:
    """Copy, or build, what ``checkpoint`` says about text into ``folder``.

    Raises
    ------
    CheckpointError
        A file cannot be read, or the tokenizer in a GGUF file cannot be built.
    """
    if checkpoint.kind == "gguf":
        has_tokenizer, template, stop = _from_gguf(checkpoint.metadata, folder)
    else:
        home = checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent
        has_tokenizer = (home / _TOKENIZER).is_file()
        if has_tokenizer:
            shutil.copyfile(home / _TOKENIZER, folder / _TOKENIZER)
        template, stop = _template(home), _tokens(_read(home / "generation_config.json").get("eos_token_id"))
    if not has_tokenizer:
        return TextFiles(stop_tokens=stop)
    if template is not None:
        template.write(folder / _CHAT)
    return TextFiles(_TOKENIZER, None if template is None else _CHAT, stop)


def _from_gguf(metadata: Mapping[str, Any], folder: Path) -> tuple[bool, ChatTemplate | None, tuple[int, ...]]:
    if "tokenizer.ggml.model" not in metadata:
        return False, None, ()
    gguf_tokenizer(metadata).save(str(folder / _TOKENIZER))
    stop = _tokens([metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eot", "eom")])
    source = metadata.get("tokenizer.chat_template")
    if not isinstance(source, str):
        return True, None, stop
    tokens, special = metadata["tokenizer.ggml.tokens"], {}
    for own, name in _GGUF_NAMES.items():
        token = metadata.get(f"tokenizer.ggml.{own}_token_id")
        if isinstance(token, int) and 0 <= token < len(tokens):
            special[name] = tokens[token]
    return True, ChatTemplate(source, special), stop


def _template(home: Path) -> ChatTemplate | None:
    """The chat template of a folder of Hugging Face, and the special tokens by name."""
    settings = _read(home / "tokenizer_config.json")
    source: Any = settings.get("chat_template")
    if (home / "chat_template.json").is_file():
        source = _read(home / "chat_template.json").get("chat_template", source)
    if (home / "chat_template.jinja").is_file():
        source = (home / "chat_template.jinja").read_text(encoding="utf-8")
    if isinstance(source, list):  # several by name; the one that is asked for by default is called so
        named = {entry.get("name"): entry.get("template") for entry in source if isinstance(entry, dict)}
        source = named.get("default")
    if not isinstance(source, str):
        return None
    special = {}
    for name, value in {**_read(home / "special_tokens_map.json"), **settings}.items():
        text = value.get("content") if isinstance(value, dict) else value
        if name.endswith("_token") and isinstance(text, str):
            special[name] = text
    return ChatTemplate(source, special)


def _tokens(found: Any) -> tuple[int, ...]:
    """A token, a list of them, or nothing."""
    listed = found if isinstance(found, list) else [found]
    return tuple(token for token in listed if isinstance(token, int) and not isinstance(token, bool))


def _read(path: Path) -> dict[str, Any]:
    """The object in a JSON file, empty if there is no file."""
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not readable JSON ({error}); copy the checkpoint again") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} holds a {type(found).__name__}, expected an object; copy the checkpoint again")
    return found

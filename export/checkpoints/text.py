"""What a checkpoint says about text: its tokenizer, its chat template, and the tokens that end a text or a turn.

In a folder of Hugging Face these are files beside the weights: ``tokenizer.json``; the template as ``chat_template.jinja``, in
``chat_template.json`` or in ``tokenizer_config.json``, which also names the special tokens; ``generation_config.json``, whose end
tokens often are more than those of ``config.json``, since a turn ends otherwise than a text. A GGUF file has all of it in its
metadata.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coupled_sampling.bundles.beside import read_object, read_template, read_tokens
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
        template, stop = (
            read_template(home, CheckpointError),
            read_tokens(read_object(home / "generation_config.json", CheckpointError).get("eos_token_id")),
        )
    if not has_tokenizer:
        return TextFiles(stop_tokens=stop)
    if template is not None:
        template.write(folder / _CHAT)
    return TextFiles(_TOKENIZER, None if template is None else _CHAT, stop)


def _from_gguf(metadata: Mapping[str, Any], folder: Path) -> tuple[bool, ChatTemplate | None, tuple[int, ...]]:
    if "tokenizer.ggml.model" not in metadata:
        return False, None, ()
    gguf_tokenizer(metadata).save(str(folder / _TOKENIZER))
    stop = read_tokens([metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eot", "eom")])
    source = metadata.get("tokenizer.chat_template")
    if not isinstance(source, str):
        return True, None, stop
    tokens, special = metadata["tokenizer.ggml.tokens"], {}
    for own, name in _GGUF_NAMES.items():
        token = metadata.get(f"tokenizer.ggml.{own}_token_id")
        if isinstance(token, int) and 0 <= token < len(tokens):
            special[name] = tokens[token]
    return True, ChatTemplate(source, special), stop

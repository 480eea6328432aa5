"""What a checkpoint says about text: its tokenizer, its chat template, and the tokens that end a text or a turn.

In a folder of Hugging Face these are files beside the weights: ``tokenizer.json``, or SentencePiece's ``tokenizer.model``; the
template as ``chat_template.jinja``, in ``chat_template.json`` or in ``tokenizer_config.json``, which also names the special tokens;
``generation_config.json``, whose end tokens often are more than those of ``config.json``, since a turn ends otherwise than a text.
A GGUF file has all of it in its metadata.

Nothing is copied. A file is read, understood, and written anew from what was understood, so that a bundle has what belongs to a
tokenizer and nothing else, wherever a link of the checkpoint's folder may lead.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coupled_sampling.bundles.beside import read_object, read_template, read_tokens
from coupled_sampling.bundles.chat import ChatTemplate
from coupled_sampling.bundles.json_files import TOKENIZER, read_small
from coupled_sampling.bundles.text import read_tokenizer
from coupled_sampling.export.checkpoints.contract import Checkpoint, CheckpointError
from coupled_sampling.export.checkpoints.gguf_tokenizer import gguf_tokenizer
from coupled_sampling.export.checkpoints.pieces import piece_tokenizer
from coupled_sampling.export.checkpoints.sentencepiece_model import read_pieces

__all__ = ["TextFiles", "find_tokenizer", "write_text_files"]

_TOKENIZER, _PIECES, _CHAT = "tokenizer.json", "tokenizer.model", "chat.json"

_GGUF_NAMES = {
    "bos": "bos_token",
    "eos": "eos_token",
    "unknown": "unk_token",
    "padding": "pad_token",
    "seperator": "sep_token",
}
"""From GGUF's names of special tokens, its own spelling included, to those that templates use."""

_USUAL = (*_GGUF_NAMES.values(), "cls_token", "mask_token")


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


def write_text_files(
    checkpoint: Checkpoint, folder: Path, given: str | Path | None = None, vocab_size: int | None = None
) -> TextFiles:
    """Write what ``checkpoint`` says about text into ``folder``.

    Parameters
    ----------
    given
        A tokenizer to take instead, as for `find_tokenizer`, and where that is a folder a chat template beside it; "none" for none.
    vocab_size
        Of the model; a tokenizer that was given and has more tokens is refused.

    Raises
    ------
    CheckpointError
        A file cannot be read, or the tokenizer in a GGUF file cannot be built.
    """
    home = checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent
    if checkpoint.kind == "gguf":
        template, stop = _gguf_template(checkpoint.metadata), _gguf_stop(checkpoint.metadata)
    else:
        template = read_template(home, CheckpointError)
        stop = read_tokens(read_object(home / "generation_config.json", CheckpointError).get("eos_token_id"))
    if given == "none":
        return TextFiles(stop_tokens=stop)
    if given is not None:
        place = Path(given)
        tokenizer = _given(place, vocab_size)
        template = (read_template(place, CheckpointError) if place.is_dir() else None) or template
    elif checkpoint.kind == "gguf":
        has_one = "tokenizer.ggml.model" in checkpoint.metadata
        tokenizer = gguf_tokenizer(checkpoint.metadata) if has_one else None
    else:
        tokenizer = find_tokenizer(home)
    if tokenizer is None:
        return TextFiles(stop_tokens=stop)
    (folder / _TOKENIZER).write_text(tokenizer.to_str(pretty=True), encoding="utf-8")
    if template is None:
        return TextFiles(_TOKENIZER, None, stop)
    # Other keys may be called so, too: an access_token is no token of a tokenizer.
    special = {
        name: text
        for name, text in template.special_tokens.items()
        if name in _USUAL or tokenizer.token_to_id(text) is not None
    }
    ChatTemplate(template.source, special).write(folder / _CHAT)
    return TextFiles(_TOKENIZER, _CHAT, stop)


def find_tokenizer(place: Path) -> Any:
    """The ``tokenizers.Tokenizer`` at a place, None in a folder that has none.

    Parameters
    ----------
    place
        A ``tokenizer.json`` of the ``tokenizers`` library, a ``tokenizer.model`` of SentencePiece, or the folder of one.

    Raises
    ------
    CheckpointError
        The file is neither, or has what cannot be rebuilt.
    MissingDependency
        ``tokenizers`` is not installed.
    """
    if place.is_dir():
        found = [place / name for name in (_TOKENIZER, _PIECES) if os.path.lexists(place / name)]
        return _read_tokenizer(found[0]) if found else None
    return _read_tokenizer(place)


def _read_tokenizer(path: Path) -> Any:
    if _is_object(path):
        return read_tokenizer(path, CheckpointError)
    settings = read_object(path.parent / "tokenizer_config.json", CheckpointError)
    return piece_tokenizer(read_pieces(read_small(path, TOKENIZER, CheckpointError), str(path), settings))


def _is_object(path: Path) -> bool:
    """Whether a file begins as an object in JSON does; names of tokenizers are as their makers like."""
    if not path.is_file():
        raise CheckpointError(f"{path} is no file, or a link to nothing; copy the tokenizer again, or take it away")
    try:
        with path.open("rb") as file:
            return file.read(64).lstrip()[:1] == b"{"
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}; copy the tokenizer again") from error


def _given(place: Path, vocab_size: int | None) -> Any:
    """The tokenizer at the place that the user named."""
    tokenizer = find_tokenizer(place)
    if tokenizer is None:
        raise CheckpointError(
            f"tokenizer is {place}, a folder without {_TOKENIZER} and {_PIECES}; name the folder or the file of a tokenizer"
        )
    last = max(tokenizer.get_vocab(with_added_tokens=False).values(), default=-1)
    if vocab_size is not None and last >= vocab_size:
        raise CheckpointError(
            f"tokenizer is {place}, which has a token {last}, but the model has {vocab_size} tokens; name the model's own"
        )
    return tokenizer


def _gguf_stop(metadata: Mapping[str, Any]) -> tuple[int, ...]:
    return read_tokens([metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eot", "eom")])


def _gguf_template(metadata: Mapping[str, Any]) -> ChatTemplate | None:
    """The chat template of a GGUF file, and the special tokens by name."""
    source, tokens = metadata.get("tokenizer.chat_template"), metadata.get("tokenizer.ggml.tokens")
    if not isinstance(source, str):
        return None
    special = {}
    for own, name in _GGUF_NAMES.items():
        token = metadata.get(f"tokenizer.ggml.{own}_token_id")
        if isinstance(tokens, list) and isinstance(token, int) and 0 <= token < len(tokens):
            special[name] = tokens[token]
    return ChatTemplate(source, special)

"""SentencePiece's own files, ``tokenizer.model``: what is in them, without the package ``sentencepiece``.

The file is one message of Protocol Buffers: pieces, what the trainer was asked for, and how texts are normalised. Numbers of
fields: https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto. Only what the models with an exporter
have is rebuilt, byte-pair encoding of texts as they are; other files are refused by the setting that makes them others.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

from coupled_sampling.bundles.wire import BYTES, FOUR, INTEGER, WireError, read_fields, read_integer
from coupled_sampling.export.checkpoints.contract import CheckpointError
from coupled_sampling.export.checkpoints.pieces import NORMAL, Pieces

__all__ = ["read_pieces"]

_MODELS = {1: "unigram", 2: "bpe", 3: "word", 4: "char"}
_INSTEAD = "give a tokenizer.json of the same model with --tokenizer, or do without by --tokenizer none"

_SPACE_BEFORE, _SQUEEZE = 3, 4
_MODEL_TYPE, _BEGIN, _END = 3, 41, 42


def read_pieces(data: bytes, source: str, settings: Mapping[str, Any] | None = None) -> Pieces:
    """The tokenizer in the bytes of a file.

    Parameters
    ----------
    data
        All of the file.
    source
        Its name, for messages.
    settings
        What ``tokenizer_config.json`` beside it says: ``add_bos_token``, true where it says nothing, and ``add_eos_token``, false.

    Raises
    ------
    CheckpointError
        It is no such file, or one of another kind.
    """
    texts: list[str] = []
    scores: list[float] = []
    kinds: list[int] = []
    trainer: dict[int, int] = {_MODEL_TYPE: 1, _BEGIN: 1, _END: 2}
    normaliser: dict[int, int] = {_SPACE_BEFORE: 1, _SQUEEZE: 1}
    maps = 0
    try:
        for number, kind, start, end in read_fields(data, 0, len(data)):
            if number == 1 and kind == BYTES:
                text, score, type_ = _piece(data, start, end)
                texts.append(text)
                scores.append(score)
                kinds.append(type_)
            elif number == 2 and kind == BYTES:
                trainer |= _integers(data, start, end)
            elif number == 3 and kind == BYTES:
                normaliser |= _integers(data, start, end)
                maps += sum(last - first for field, _, first, last in read_fields(data, start, end) if field == 2)
    except (WireError, UnicodeDecodeError) as error:
        raise CheckpointError(
            f"{source} is no tokenizer: neither JSON of the tokenizers library nor a model of SentencePiece; copy it again"
        ) from error
    _refuse(source, texts, trainer[_MODEL_TYPE], maps)
    given = settings or {}
    marks = ((_BEGIN, given.get("add_bos_token", True)), (_END, given.get("add_eos_token", False)))
    begin, end_ = (trainer[field] if put and 0 <= trainer[field] < len(texts) else None for field, put in marks)
    return Pieces(
        source, texts, scores, kinds, bool(normaliser[_SPACE_BEFORE]), begin, end_, bool(normaliser[_SQUEEZE])
    )


def _refuse(source: str, texts: list[str], model: int, maps: int) -> None:
    if not texts:
        raise CheckpointError(
            f"{source} is no tokenizer: neither JSON of the tokenizers library nor a model of SentencePiece; copy it again"
        )
    if model != 2:
        raise CheckpointError(f"{source} is a {_MODELS.get(model, model)} model, expected bpe; {_INSTEAD}")
    if maps:
        raise CheckpointError(
            f"{source} changes characters of a text before it cuts it, expected one that takes it as it is; {_INSTEAD}"
        )


def _piece(data: bytes, start: int, end: int) -> tuple[str, float, int]:
    text, score, type_ = "", 0.0, NORMAL
    for number, kind, first, last in read_fields(data, start, end):
        if number == 1 and kind == BYTES:
            text = data[first:last].decode()
        elif number == 2 and kind == FOUR:
            (score,) = struct.unpack("<f", data[first:last])
        elif number == 3 and kind == INTEGER:
            type_, _ = read_integer(data, first, last)
    return text, score, type_


def _integers(data: bytes, start: int, end: int) -> dict[int, int]:
    """The fields of a message that are numbers; those below zero, which have all 64 bits, as they are."""
    found = {}
    for number, kind, first, last in read_fields(data, start, end):
        if kind == INTEGER:
            value, _ = read_integer(data, first, last)
            found[number] = value - (1 << 64) if value >> 63 else value
    return found

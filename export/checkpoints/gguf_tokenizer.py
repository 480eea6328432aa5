"""The tokenizer inside a GGUF file, as a ``tokenizers.Tokenizer``.

Byte-level byte-pair encoding (``tokenizer.ggml.model`` is ``gpt2``): the text is cut by a pre-tokenizer, bytes are
written as printable characters, and pairs are merged in the order of the list of merges. The file holds tokens, merges
and the *name* of the pre-tokenizer; the rule behind a name is known here for the families with an exporter, and a name
without a rule is refused, since a wrong cut gives plausible tokens and a worse model. Rules: Radford et al. 2019 for
GPT-2, the ``tokenizer.json`` files of SmolLM2, Qwen2 and Llama 3 for the others.

SentencePiece's (``tokenizer.ggml.model`` is ``llama``): the file holds pieces and their scores, see `pieces`. What it does not
say is as llama.cpp takes it: a text begins with a space and with the token 1.

Where texts begin or end with a special token, the tokenizer has a post-processor that says so, too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from coupled_sampling.arguments import is_whole, shown
from coupled_sampling.errors import MissingDependency
from coupled_sampling.export.checkpoints.contract import CheckpointError
from coupled_sampling.export.checkpoints.pieces import (
    CONTROL,
    NORMAL,
    USER_DEFINED,
    Pieces,
    add_markers,
    piece_tokenizer,
)

__all__ = ["gguf_tokenizer"]

_INSTEAD = "give the tokenizer.json of the model's folder with --tokenizer, or do without by --tokenizer none"

_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}@| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Cut of Qwen2 and Llama 3, which differ in how many digits, at @, stay together."""


def gguf_tokenizer(metadata: Mapping[str, Any]) -> Any:
    """The file's tokenizer, a ``tokenizers.Tokenizer`` with the ids of the file.

    Parameters
    ----------
    metadata
        `Checkpoint.metadata` of a GGUF checkpoint.

    Raises
    ------
    CheckpointError
        There is no tokenizer, it is of another kind, its pre-tokenizer is unknown or what is said about it disagrees.
    MissingDependency
        ``tokenizers`` is not installed.

    Examples
    --------
    >>> from coupled_sampling.export.checkpoints.gguf_tokenizer import gguf_tokenizer
    >>> metadata = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2"}
    >>> metadata |= {"tokenizer.ggml.tokens": ["h", "e", "l", "he", "hel"], "tokenizer.ggml.merges": ["h e", "he l"]}
    >>> gguf_tokenizer(metadata).encode("hell").ids
    [4, 2]
    """
    try:
        import tokenizers
    except ImportError as error:
        raise MissingDependency(
            "the tokenizer of a GGUF file needs the package tokenizers: pip install 'coupled-sampling[export]'"
        ) from error
    model = metadata.get("tokenizer.ggml.model")
    if model == "llama":
        return piece_tokenizer(_pieces(metadata))
    if model != "gpt2":
        raise CheckpointError(
            f"tokenizer.ggml.model is {shown(model)}, expected 'gpt2' (byte-level BPE) or 'llama' (SentencePiece); {_INSTEAD}"
        )
    return _byte_level_bpe(tokenizers, metadata)


def _byte_level_bpe(tokenizers: Any, metadata: Mapping[str, Any]) -> Any:
    name = str(metadata.get("tokenizer.ggml.pre"))
    if name not in _PRE_TOKENIZERS:
        raise CheckpointError(
            f"tokenizer.ggml.pre is {shown(name)}, expected one of {', '.join(_PRE_TOKENIZERS)}; {_INSTEAD}"
        )
    tokens = _listed(metadata, "tokens", str)
    merges = [tuple(pair.split(" ", 1)) for pair in _listed(metadata, "merges", str)]
    _check_vocabulary(tokens, merges)
    vocabulary = {token: i for i, token in enumerate(tokens)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, merges, ignore_merges=name == "llama-bpe"))
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    _PRE_TOKENIZERS[name](tokenizers, tokenizer)
    kinds = [kind if kind in (CONTROL, USER_DEFINED) else NORMAL for kind in _listed(metadata, "token_type", int)]
    begin = _mark(metadata, len(tokens), "bos", put=name == "llama-bpe")
    add_markers(tokenizer, tokens, kinds, begin, _mark(metadata, len(tokens), "eos", put=False))
    return tokenizer


def _pieces(metadata: Mapping[str, Any]) -> Pieces:
    """What the file says about SentencePiece's tokenizer."""
    if metadata.get("tokenizer.ggml.precompiled_charsmap"):
        raise CheckpointError(
            "tokenizer.ggml.precompiled_charsmap is set, expected a tokenizer that changes no characters of a text before it "
            f"cuts it; {_INSTEAD}"
        )
    texts = _listed(metadata, "tokens", str)
    return Pieces(
        "tokenizer.ggml",
        texts,
        _listed(metadata, "scores", float),
        _listed(metadata, "token_type", int),
        bool(metadata.get("tokenizer.ggml.add_space_prefix", True)),
        _mark(metadata, len(texts), "bos", put=True, token=1),
        _mark(metadata, len(texts), "eos", put=False, token=2),
        bool(metadata.get("tokenizer.ggml.remove_extra_whitespaces", False)),
    )


def _listed(metadata: Mapping[str, Any], key: str, kind: type) -> list[Any]:
    found = metadata.get(f"tokenizer.ggml.{key}") or []
    if not isinstance(found, list) or not all(isinstance(item, kind) for item in found):
        raise CheckpointError(
            f"tokenizer.ggml.{key} is {shown(found)}, expected a list of {kind.__name__} values; convert the model again"
        )
    return found


def _check_vocabulary(tokens: list[str], merges: list[tuple[str, ...]]) -> None:
    known = set(tokens)
    if not tokens or len(known) != len(tokens):
        raise CheckpointError(
            f"tokenizer.ggml.tokens has {len(tokens)} entries and {len(known)} different ones, expected some, all different; "
            "convert the model again"
        )
    for pair in merges:
        if len(pair) != 2 or not known.issuperset((*pair, "".join(pair))):
            raise CheckpointError(
                f"tokenizer.ggml.merges has {' '.join(pair)!r}, expected two tokens that make a third; convert the model again"
            )


def _mark(metadata: Mapping[str, Any], count: int, name: str, *, put: bool, token: int | None = None) -> int | None:
    """The token at a text's beginning ("bos") or end ("eos"), None for none; ``put`` and ``token`` where the file is silent."""
    token = metadata.get(f"tokenizer.ggml.{name}_token_id", token)
    if token is None or not metadata.get(f"tokenizer.ggml.add_{name}_token", put):
        return None
    if not is_whole(token) or not 0 <= token < count:
        raise CheckpointError(
            f"tokenizer.ggml.{name}_token_id is {shown(token)}, expected a token in [0, {count}); convert the model again"
        )
    return int(token)


def _byte_level(tokenizers: Any, tokenizer: Any) -> None:
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)


def _single_digits(tokenizers: Any, tokenizer: Any) -> None:
    cuts = tokenizers.pre_tokenizers
    tokenizer.pre_tokenizer = cuts.Sequence(
        [cuts.Digits(individual_digits=True), cuts.ByteLevel(add_prefix_space=False)]
    )


def _words(tokenizers: Any, tokenizer: Any, digits: str) -> None:
    cuts = tokenizers.pre_tokenizers
    words = cuts.Split(tokenizers.Regex(_WORDS.replace("@", digits)), behavior="isolated")
    tokenizer.pre_tokenizer = cuts.Sequence([words, cuts.ByteLevel(add_prefix_space=False, use_regex=False)])


def _qwen2(tokenizers: Any, tokenizer: Any) -> None:
    tokenizer.normalizer = tokenizers.normalizers.NFC()
    _words(tokenizers, tokenizer, digits="")


def _llama3(tokenizers: Any, tokenizer: Any) -> None:
    _words(tokenizers, tokenizer, digits="{1,3}")


_PRE_TOKENIZERS: Mapping[str, Callable[[Any, Any], None]] = {
    "gpt-2": _byte_level,
    "smollm": _single_digits,
    "qwen2": _qwen2,
    "llama-bpe": _llama3,
}
"""What a name in ``tokenizer.ggml.pre`` stands for."""

"""The tokenizer inside a GGUF file, as a ``tokenizers.Tokenizer``.

Byte-level byte-pair encoding (``tokenizer.ggml.model`` is ``gpt2``): the text is cut by a pre-tokenizer, bytes are
written as printable characters, and pairs are merged in the order of the list of merges. The file holds tokens, merges
and the *name* of the pre-tokenizer; the rule behind a name is known here for the families with an exporter, and a name
without a rule is refused, since a wrong cut gives plausible tokens and a worse model. Rules: Radford et al. 2019 for
GPT-2, the ``tokenizer.json`` files of SmolLM2, Qwen2 and Llama 3 for the others.

Where the file says that texts begin or end with a special token, the tokenizer has a post-processor that says so, too.

SentencePiece tokenizers (``tokenizer.ggml.model`` is ``llama``) are not built.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from coupled_sampling.errors import MissingDependency
from coupled_sampling.export.checkpoints.contract import CheckpointError

__all__ = ["gguf_tokenizer"]

CONTROL, USER_DEFINED = 3, 4
"""Token types that are matched in the text before it is cut: markers, and words added later."""

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
        There is no tokenizer, it is not byte-level BPE, its pre-tokenizer is unknown or its tokens and merges disagree.
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
        from tokenizers import decoders, models
    except ImportError as error:
        raise MissingDependency(
            "the tokenizer of a GGUF file needs the package tokenizers: pip install 'coupled-sampling[export]'"
        ) from error
    model, name = metadata.get("tokenizer.ggml.model"), str(metadata.get("tokenizer.ggml.pre"))
    if model != "gpt2":
        raise CheckpointError(
            f"tokenizer.ggml.model is {model!r}, expected 'gpt2' (byte-level BPE); use the tokenizer.json of the model's folder"
        )
    if name not in _PRE_TOKENIZERS:
        raise CheckpointError(
            f"tokenizer.ggml.pre is {name!r}, expected one of {', '.join(_PRE_TOKENIZERS)}; "
            "use the tokenizer.json of the model's folder"
        )
    tokens = metadata.get("tokenizer.ggml.tokens") or []
    merges = [tuple(pair.split(" ", 1)) for pair in metadata.get("tokenizer.ggml.merges") or []]
    _check_vocabulary(tokens, merges)
    vocabulary = {token: i for i, token in enumerate(tokens)}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocabulary, merges, ignore_merges=name == "llama-bpe"))
    tokenizer.decoder = decoders.ByteLevel()
    _PRE_TOKENIZERS[name](tokenizers, tokenizer)
    _add_special_tokens(tokenizers, tokenizer, metadata, tokens)
    return tokenizer


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


def _add_special_tokens(tokenizers: Any, tokenizer: Any, metadata: Mapping[str, Any], tokens: list[str]) -> None:
    kinds = metadata.get("tokenizer.ggml.token_type") or []
    markers = [token for token, kind in zip(tokens, kinds, strict=False) if kind == CONTROL]
    added = [token for token, kind in zip(tokens, kinds, strict=False) if kind == USER_DEFINED]
    tokenizer.add_special_tokens([tokenizers.AddedToken(token, normalized=False, special=True) for token in markers])
    tokenizer.add_tokens([tokenizers.AddedToken(token, normalized=False) for token in added])
    begin = _mark(metadata, tokens, "bos", default=metadata["tokenizer.ggml.pre"] == "llama-bpe")
    end = _mark(metadata, tokens, "eos", default=False)
    if begin or end:
        single = [*begin, "$A", *end]
        tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
            single=single, pair=[*single, "$B", *end], special_tokens=list({**begin, **end}.items())
        )


def _mark(metadata: Mapping[str, Any], tokens: list[str], name: str, *, default: bool) -> dict[str, int]:
    """The token that the file puts at a text's beginning ("bos") or end ("eos"), and its number; empty if it puts none."""
    token = metadata.get(f"tokenizer.ggml.{name}_token_id")
    if token is None or not metadata.get(f"tokenizer.ggml.add_{name}_token", default):
        return {}
    if not 0 <= token < len(tokens):
        raise CheckpointError(
            f"tokenizer.ggml.{name}_token_id is {token}, expected a token in [0, {len(tokens)}); convert the model again"
        )
    return {tokens[token]: token}


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

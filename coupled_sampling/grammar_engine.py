"""The engine of grammars, ``llguidance``, and what it reads of a tokenizer: how each token is spelled, and which end a text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from os import PathLike
from pathlib import Path
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np

from coupled_sampling.bundles.json_files import TOKENIZER, read_json_text
from coupled_sampling.bundles.opening import Bundle
from coupled_sampling.errors import BundleError, InvalidArgument, MissingDependency


@runtime_checkable
class HasTokenizer(Protocol):
    """What can tell its tokenizer as the text of a ``tokenizer.json``, as ``tokenizers.Tokenizer`` does."""

    def to_str(self) -> str: ...


TokenizerSource: TypeAlias = "Bundle | HasTokenizer | str | PathLike[str]"
"""A bundle, `coupled_sampling.bundles.Tokenizer`, ``tokenizers.Tokenizer``, or the path of a ``tokenizer.json``."""


def require_llguidance() -> Any:
    """The package ``llguidance``.

    Raises
    ------
    MissingDependency
        It is not installed.
    """
    try:
        import llguidance
    except ImportError as error:
        raise MissingDependency(
            "grammars need the package llguidance: pip install 'coupled-sampling[grammar]'"
        ) from error
    return llguidance


def source_of(tokenizer: TokenizerSource) -> tuple[str, tuple[int, ...]]:
    """The text of a ``tokenizer.json``, and the stop tokens that are known with it."""
    if isinstance(tokenizer, Bundle):
        manifest = tokenizer.manifest
        if manifest.tokenizer is None:
            raise InvalidArgument(f"tokenizer is the bundle {manifest.name}, which has none; name a tokenizer.json")
        return _read(tokenizer.folder / manifest.tokenizer), tuple(manifest.stop_tokens)
    if isinstance(tokenizer, str | PathLike):
        return _read(Path(tokenizer)), ()
    if isinstance(tokenizer, HasTokenizer):
        return tokenizer.to_str(), ()
    raise InvalidArgument(
        f"tokenizer is {tokenizer!r}, expected a bundle, a Tokenizer, or the path of a tokenizer.json"
    )


def _read(path: Path) -> str:
    try:
        return read_json_text(path, TOKENIZER)
    except BundleError as error:
        raise InvalidArgument(f"tokenizer is {path}, which cannot be read: {error}") from error


@lru_cache(maxsize=4)
def vocabulary_of(source: str, stop: tuple[int, ...]) -> Any:
    """llguidance's tokenizer, made once for all grammars of one: 50,000 tokens take it more than half a second."""
    engine = require_llguidance().LLTokenizer
    try:
        # Either setting would change what it makes of a text.
        content = json.loads(source) | {"padding": None, "truncation": None}
        vocabulary = engine(json.dumps(content), eos_token=list(stop) or None)
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidArgument(
            f"tokenizer or stop cannot be used for a grammar: llguidance says {first_lines(str(error))!r}; expected a byte-level "
            "tokenizer, or one with byte fallback, and stop tokens of its own"
        ) from error
    # Where it knows no end token by name it takes token 0, whatever that is.
    if not stop and not vocabulary.is_special_token(vocabulary.eos_token):
        raise InvalidArgument("stop is None, and the tokenizer names no end token: give the tokens that end a text")
    return vocabulary


def checked_stop(stop: Sequence[int]) -> tuple[int, ...]:
    """``stop`` as whole numbers; whether the tokenizer has them, llguidance says."""
    tokens = np.asarray(stop)
    if tokens.ndim != 1 or not tokens.size or not np.issubdtype(tokens.dtype, np.integer) or (tokens < 0).any():
        raise InvalidArgument(f"stop is {stop!r}, expected at least one token that ends a text, or None")
    return tuple(tokens.tolist())


def check_text(name: str, text: object) -> None:
    """Refuse what is no text."""
    if not isinstance(text, str):
        raise InvalidArgument(f"{name} is {shortened(text)}, expected a text")


def shortened(text: object) -> str:
    """``text`` as an error quotes it."""
    said = repr(text)
    return said if len(said) <= 80 else f"{said[:77]}..."


def first_lines(error: str) -> str:
    """What llguidance says, without its states and without the picture of the place."""
    said = [line.strip() for line in error.split("<state>")[0].strip().splitlines()]
    return " ".join(line for line in said if line)


def trouble_of(matcher: Any) -> str:
    """Why a matcher has failed."""
    said = first_lines(matcher.get_error())
    return "the text is not whole and no token continues it" if said.startswith("NoExtension") else said

"""Text to tokens and back, for language models: a thin skin over the ``tokenizers`` library."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from coupled_sampling.errors import BundleError, InvalidArgument, MissingDependency

__all__ = ["Tokenizer", "require_tokenizers"]


def require_tokenizers() -> Any:
    """The package ``tokenizers``.

    Raises
    ------
    MissingDependency
        It is not installed.
    """
    try:
        import tokenizers
    except ImportError as error:
        raise MissingDependency(
            "prompts that are text need the package tokenizers: pip install 'coupled-sampling[text]'"
        ) from error
    return tokenizers


class Tokenizer:
    """A model's tokenizer. Markers such as ``<|im_start|>`` in a text are the special tokens they look like.

    Parameters
    ----------
    path
        A file of the ``tokenizers`` library, ``tokenizer.json``.

    Raises
    ------
    BundleError
        The file is not one of that library.
    MissingDependency
        The library is not installed.

    Examples
    --------
    >>> import tokenizers
    >>> from coupled_sampling.bundles import Tokenizer
    >>> vocabulary = {"[UNK]": 0, "a": 1, "shoe": 2}
    >>> inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    >>> inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    >>> inner.save("tokenizer.json")
    >>> tokenizer = Tokenizer("tokenizer.json")
    >>> tokenizer.encode("a shoe"), tokenizer.decode([1, 2])
    ([1, 2], 'a shoe')
    """

    def __init__(self, path: str | Path) -> None:
        try:
            self._inner = require_tokenizers().Tokenizer.from_file(str(path))
        except MissingDependency:
            raise
        except Exception as error:
            # The library raises bare Exceptions.
            raise BundleError(
                f"{path} is no file of the tokenizers library ({error}); export the bundle again"
            ) from error

    def encode(self, text: str) -> list[int]:
        """Tokens of ``text``, as it stands.

        Raises
        ------
        InvalidArgument
            It has none.
        """
        tokens: list[int] = self._inner.encode(text, add_special_tokens=False).ids
        if not tokens:
            raise InvalidArgument(f"prompt is {text!r}, expected a text of at least one token")
        return tokens

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of ``tokens``, special ones left out."""
        text: str = self._inner.decode([int(token) for token in tokens], skip_special_tokens=True)
        return text

    def to_str(self) -> str:
        """The text of its ``tokenizer.json``."""
        text: str = self._inner.to_str()
        return text

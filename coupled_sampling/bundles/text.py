"""Text to tokens and back, for language models: a thin skin over the ``tokenizers`` library.

Models are trained on texts that begin with tokens which are no text, such as ``<s>``. Which these are, the tokenizer says in its
post-processor. A prompt gets what that puts before a text. What it puts behind one, an end token, is left out: it was made for
training, where texts are whole, and a prompt is to be continued.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import string
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from coupled_sampling.arguments import in_one_line
from coupled_sampling.bundles.json_files import TOKENIZER, read_json_text
from coupled_sampling.bundles.text_growth import find_endless
from coupled_sampling.bundles.text_stream import NumberStream, StopStrings, TextStream
from coupled_sampling.errors import BundleError, CoupledSamplingError, InvalidArgument, MissingDependency
from coupled_sampling.fields import check_path

__all__ = ["NumberStream", "StopStrings", "TextStream", "Tokenizer", "read_tokenizer", "require_tokenizers"]

_TRIAL = string.printable + "\u00e9\u20ac\u4e2d\U0001f600"
"""What a tokenizer has to encode and decode before it is believed."""

_PREFIXED = re.compile(r'"continuing_subword_prefix"\s*:\s*"[^"]')

_TRIED = 300
"""Tokens that are decoded alone, the first of the vocabulary, where bytes and special ones are."""

_MOST_TOKENS = 2**22
"""Whoever lists a vocabulary in order counts up to its largest token, and real ones have some 300,000."""

_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
"""A token that stands for a byte, in vocabularies that fall back to them."""


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


@contextlib.contextmanager
def _without_panics() -> Iterator[None]:
    """Keeps a panic's backtrace, which Rust writes itself, off standard error: the exception says it."""
    try:
        kept = os.dup(2)
    except OSError:  # there is no standard error
        yield
        return
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 2)
        os.close(nowhere)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _refuse_fatal_merges(text: str) -> None:
    """Raise for pairs of which the library would cut more off than there is: it ends the process there, not only the call."""
    if not _PREFIXED.search(text):
        return
    model = json.loads(text).get("model") or {}
    prefix: Any = model.get("continuing_subword_prefix")
    for pair in model.get("merges") or () if isinstance(prefix, str) else ():
        second = (pair.split(" ") if isinstance(pair, str) else pair)[-1]
        if not second.startswith(prefix):
            raise ValueError("a pair's second token has no prefix")


def _try(tokenizer: Any) -> None:
    """Use it once in every way. An error is none yet: the text may have what the vocabulary has not; a panic is one."""
    tokens: list[int] = []
    with contextlib.suppress(Exception):
        tokens = tokenizer.encode(_TRIAL).ids
    for some in ([], tokens, *([token] for token in {*range(_TRIED), *tokens})):
        with contextlib.suppress(Exception):
            tokenizer.decode(some)


def _is_foreign(error: BaseException) -> bool:
    """Whether the library raised it: bare Exceptions, and where Rust panics what is no Exception at all."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def read_tokenizer(path: Path, error: type[CoupledSamplingError] = BundleError) -> Any:
    """The ``tokenizers.Tokenizer`` in a file, without truncation and padding. One that panics when it is used does so here.

    Raises
    ------
    CoupledSamplingError
        Of the class ``error``: the file is not one of that library. The message has nothing of what is in it: it may be a link to
        something else.
    MissingDependency
        The library is not installed.
    """
    kind, text = require_tokenizers().Tokenizer, read_json_text(path, TOKENIZER, error)
    try:
        _refuse_fatal_merges(text)
        with _without_panics():
            made = kind.from_str(text)
            # A file may ask for them, for training; of a prompt they would cut the end off, or add what is none of it.
            made.no_truncation()
            made.no_padding()
            endless = find_endless(made)
            if not endless:
                _try(made)
            highest = max(made.get_vocab().values(), default=0)
    except BaseException as cause:
        if not _is_foreign(cause):
            raise
        place = re.search(r"line \d+ column \d+", str(cause))
        where = f", from {place[0]} on" if place else ""
        raise error(
            f"{path} is no file of the tokenizers library{where}; export or copy it again, or upgrade tokenizers if it is newer"
        ) from None
    if endless:
        raise error(f"{path} {endless}; take another tokenizer")
    if highest >= _MOST_TOKENS:
        raise error(f"{path} has the token {highest}, expected tokens below {_MOST_TOKENS}; export or copy it again")
    return made


class Tokenizer:
    """A model's tokenizer. Markers such as ``<|im_start|>`` in a text are the special tokens they look like.

    Parameters
    ----------
    path
        A file of the ``tokenizers`` library, ``tokenizer.json``. Truncation and padding that it may ask for are not done.

    Raises
    ------
    InvalidArgument
        ``path`` is no path.
    BundleError
        The file is not one of that library.
    MissingDependency
        The library is not installed.

    Examples
    --------
    >>> import tokenizers
    >>> from coupled_sampling.bundles import Tokenizer
    >>> vocabulary = {"[UNK]": 0, "a": 1, "shoe": 2, "<s>": 3}
    >>> inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    >>> inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    >>> _ = inner.add_special_tokens(["<s>"])
    >>> inner.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 3)])
    >>> inner.save("tokenizer.json")
    >>> tokenizer = Tokenizer("tokenizer.json")
    >>> tokenizer.encode("a shoe"), tokenizer.encode("a shoe", special_tokens=False), tokenizer.decode([3, 1, 2])
    ([3, 1, 2], [1, 2], 'a shoe')
    """

    def __init__(self, path: str | Path) -> None:
        self._path = check_path("path", path)
        self._inner = read_tokenizer(self._path)

    def encode(self, text: str, *, special_tokens: bool = True) -> list[int]:
        """Tokens of a ``text`` to be continued.

        Parameters
        ----------
        text
            The text.
        special_tokens
            Whether to put before it what the tokenizer's post-processor does, such as ``<s>``; not a second time where the text
            begins with it. False takes the text as it stands, as for what a chat template wrote.

        Raises
        ------
        InvalidArgument
            It has no tokens.
        """
        if not isinstance(text, str):
            raise InvalidArgument(f"prompt is {text!r}, expected a text")
        try:
            with self._refused("cannot encode a text"):
                tokens: list[int] = self._inner.encode(text, add_special_tokens=False).ids
        except (
            TypeError,
            UnicodeError,
        ) as error:  # half of a surrogate pair, which is how Python keeps bytes that are no text
            raise InvalidArgument(f"prompt is {text!r}, which is no text: {error}; give it in UTF-8") from error
        if special_tokens:
            before = self._before
            tokens = tokens if tokens[: len(before)] == before else [*before, *tokens]
        if not tokens:
            raise InvalidArgument(f"prompt is {text!r}, expected a text of at least one token")
        return tokens

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of ``tokens``, special ones left out."""
        with self._refused("cannot decode tokens"):
            text: str = self._inner.decode([int(token) for token in tokens], skip_special_tokens=True)
        return text

    @cached_property
    def special_tokens(self) -> Mapping[int, str]:
        """Tokens that are no text, and what they are called."""
        return {
            token: added.content for token, added in self._inner.get_added_tokens_decoder().items() if added.special
        }

    def shows(self, token: int) -> bool:
        """Whether a token has a part in the text: it is known, and no special one."""
        return token not in self.special_tokens and self._inner.id_to_token(token) is not None

    def is_byte(self, token: int) -> bool:
        """Whether a token stands for a byte that may be a part of a character, as ``<0xE2>`` does."""
        return token in self._bytes

    @cached_property
    def _bytes(self) -> frozenset[int]:
        return frozenset(token for text, token in self._inner.get_vocab().items() if _BYTE.fullmatch(text))

    @cached_property
    def _before(self) -> list[int]:
        """The special tokens that the post-processor puts before a text."""
        with self._refused("cannot encode a text"):
            for text in itertools.chain("a0", self._inner.get_vocab()):
                encoding = self._inner.encode(text)
                added: list[int] = encoding.special_tokens_mask
                if 0 in added:  # the text's own tokens, which tell what is before them
                    return list(encoding.ids[: added.index(0)])
        return []

    @contextlib.contextmanager
    def _refused(self, what: str) -> Iterator[None]:
        """Turns what the library raises, bare Exceptions and panics of Rust that are not even that, into a `BundleError`."""
        try:
            yield
        except (TypeError, UnicodeError):  # of arguments, not of the file
            raise
        except BaseException as error:
            if not _is_foreign(error):
                raise
            raise BundleError(f"{self._path} {what} ({in_one_line(error)}); export the bundle again") from error

    def to_str(self) -> str:
        """The text of its ``tokenizer.json``."""
        text: str = self._inner.to_str()
        return text

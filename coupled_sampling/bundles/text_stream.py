"""Text while it is made, and where it ends: `TextStream` and `StopStrings`; and `NumberStream` for models that have no text.

Tokens are not characters. One character may need three of them, a space may belong to the token behind it, and a stop string may
begin within one token and end within another. So text is told when no later token can change it:

- what ends within a character, or within a run of byte tokens such as ``<0xE2>``, waits for the next token;
- what may be the beginning of a stop string waits until it is known not to be one.

Everything told is, together, what decoding all tokens at once gives, up to the stop string. A sequence ends at the first token
after which its text has a stop string in it, so neither the text nor its end depends on how tokens were grouped into commits.

A token's text may depend on the token before it, as a word's space does, but on nothing further away. So one settled token is all
the context that is needed, and a text of any length costs the same per token. The decoders of byte-level BPE, SentencePiece and
WordPiece are such.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from coupled_sampling.contracts import Integers
from coupled_sampling.errors import InvalidArgument

__all__ = ["NumberStream", "StopStrings", "TextStream"]

_HALF = "\ufffd"
"""What stands for bytes that are no character, or none yet."""


class Detokenizer(Protocol):
    """What is asked of a tokenizer here; `coupled_sampling.bundles.Tokenizer` is one."""

    @property
    def special_tokens(self) -> Mapping[int, str]:
        """Tokens that are no text, and what they are called."""
        ...

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of ``tokens``, special ones left out."""
        ...

    def shows(self, token: int) -> bool:
        """Whether a token has a part in the text."""
        ...

    def is_byte(self, token: int) -> bool:
        """Whether a token stands for a byte that may be a part of a character."""
        ...


class _GrowingText:
    """Text token by token: as far as it is settled, and as it would be if nothing came any more.

    ``backwards`` are the tokens before it, the last one first; of them only as many are asked for as are needed.
    """

    def __init__(self, tokenizer: Detokenizer, backwards: Iterable[int]) -> None:
        self._tokenizer = tokenizer
        self._context: list[int] = []
        for token in map(int, backwards):
            if tokenizer.shows(token):
                self._context.insert(0, token)
                if self._settles(token, tokenizer.decode([token])):
                    break
        text = tokenizer.decode(self._context)
        self._told = text.rstrip(_HALF)
        self._open: list[int] = []
        self.tail = text[len(self._told) :]
        """Text of the tokens that are not settled, as decoding shows it now."""

    def push(self, token: int) -> str:
        """Add a token; returns the text that is settled by it, and leaves the rest in ``tail``."""
        if not self._tokenizer.shows(token):
            return ""
        self._open.append(token)
        self.tail = self._tokenizer.decode([*self._context, *self._open])[len(self._told) :]
        if not self._settles(token, self.tail):
            return ""
        settled, self.tail = self.tail, ""
        self._context, self._open = [token], []
        self._told = self._tokenizer.decode(self._context)
        return settled

    def _settles(self, token: int, text: str) -> bool:
        # A run of byte tokens is decoded as a whole: one wrong byte takes back the characters before it.
        return not text.endswith(_HALF) and not self._tokenizer.is_byte(token)


class StopStrings:
    """Stop strings as a `coupled_sampling.requests.StopRule`: a sequence ends with the token that completes one.

    Parameters
    ----------
    tokenizer
        The model's.
    strings
        Texts that end a sequence; one that is a special token of the tokenizer's, such as ``<|im_end|>``, is that token.
    after
        Tokens of the text that is continued; see `TextStream`.

    Raises
    ------
    InvalidArgument
        A stop string is empty, is no text, or has a special token within other text.

    Notes
    -----
    The rule is a function of the generated tokens and keeps nothing: one of it serves all samples of a request. It decodes the
    new tokens, and as many before them as a stop string may reach back.

    Examples
    --------
    >>> import numpy as np
    >>> import tokenizers
    >>> from coupled_sampling.bundles import StopStrings, Tokenizer
    >>> vocabulary = {"[UNK]": 0, "one": 1, "two": 2, "three": 3}
    >>> inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    >>> inner.save("tokenizer.json")
    >>> rule = StopStrings(Tokenizer("tokenizer.json"), ["wo thr"])
    >>> rule(np.array([1, 2]), 2) is None
    True
    >>> rule(np.array([1, 2, 3, 1]), 3)  # "one two thr" is complete with the third token
    3
    """

    def __init__(self, tokenizer: Detokenizer, strings: Sequence[str], after: Sequence[int] = ()) -> None:
        if isinstance(strings, str) or not isinstance(strings, Sequence):
            raise InvalidArgument(f"stop is {strings!r}, expected a sequence of texts, such as ['\\n\\n']")
        self.tokenizer, self.after = tokenizer, tuple(after)
        texts: list[str] = []
        self.tokens: dict[int, str] = {}
        """Special tokens that are stop strings, and the strings that they are."""
        for string in strings:
            token = self._special(string)
            if token is None:
                texts.append(string)
            else:
                self.tokens[token] = string
        self.texts = tuple(texts)
        """Stop strings that are found in the text."""

    def _special(self, string: str) -> int | None:
        """The special token that a stop string is, None if it is ordinary text."""
        if not isinstance(string, str) or not string or _HALF in string:
            raise InvalidArgument(
                f"stop has {string!r}, expected texts of at least one character, without U+FFFD, which stands for half a character"
            )
        for token, text in self.tokenizer.special_tokens.items():
            if text == string:
                return token
            if text in string:
                raise InvalidArgument(
                    f"stop has {string!r}, which holds the special token {text!r}, and that has no text; name the token alone"
                )
        return None

    def __call__(self, generated: Integers, new: int) -> int | None:
        """How many of the tokens ``generated`` (n,) to keep if a stop string ends among the ``new`` latest; None if none does."""
        known = len(generated) - new
        last = next((i + 1 for i in range(known, len(generated)) if int(generated[i]) in self.tokens), None)
        if not self.texts:
            return last
        text, begin = self._before(generated, known)
        settled, told = "", 0
        for i in range(begin, len(generated) if last is None else last):
            settled += text.push(int(generated[i]))
            shown = settled + text.tail
            if i < known:
                told = len(shown.rstrip(_HALF))
            elif self.find(shown, told) is not None:
                return i + 1
        return last

    @property
    def reach(self) -> int:
        """Most characters of a text that can be the beginning of a stop string."""
        return max(map(len, self.texts), default=1) - 1

    def find(self, text: str, told: int = 0) -> tuple[int, str] | None:
        """Where the first stop string in ``text`` begins that ends behind its ``told`` first characters, and which it is."""
        found = [
            (at, string) for string in self.texts if (at := text.find(string, max(0, told + 1 - len(string)))) >= 0
        ]
        return min(found, default=None)

    def withheld(self, text: str) -> int:
        """How many characters at the end of ``text`` may be the beginning of a stop string."""
        longest = min(self.reach, len(text))
        return next((n for n in range(longest, 0, -1) if any(string.startswith(text[-n:]) for string in self.texts)), 0)

    def _before(self, generated: Integers, known: int) -> tuple[_GrowingText, int]:
        """Text that begins far enough before token ``known`` to have all of a stop string, and the index that it begins with."""
        width = 8
        while True:
            begin = max(0, known - width)
            text = self._from(generated, begin)
            if begin == 0 or sum(len(text.push(int(token))) for token in generated[begin:known]) >= self.reach:
                return self._from(generated, begin), begin
            width *= 2

    def _from(self, generated: Integers, begin: int) -> _GrowingText:
        return _GrowingText(self.tokenizer, itertools.chain(generated[:begin][::-1], reversed(self.after)))


class TextStream:
    """The text of a sequence while it is made.

    Parameters
    ----------
    tokenizer
        The model's.
    stop
        Stop strings, as for `StopStrings`; the text ends before the first of them.
    after
        Tokens of the text that is continued, so that the space before the first word is not lost. Leave it out where the tokens
        begin a text of their own, as a reply does.

    Raises
    ------
    InvalidArgument
        As from `StopStrings`.

    Examples
    --------
    >>> import tokenizers
    >>> from coupled_sampling.bundles import TextStream, Tokenizer
    >>> alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    >>> inner = tokenizers.Tokenizer(tokenizers.models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    >>> inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    >>> inner.decoder = tokenizers.decoders.ByteLevel()
    >>> inner.save("tokenizer.json")
    >>> tokenizer = Tokenizer("tokenizer.json")
    >>> stream = TextStream(tokenizer, stop=["END"])
    >>> [stream.feed([token]) for token in tokenizer.encode("5 \N{EURO SIGN}. E END!")]
    ['5', ' ', '', '', '\N{EURO SIGN}', '.', ' ', '', 'E ', '', '', '', '']
    >>> stream.stopped, stream.finish()
    ('END', '')
    """

    def __init__(self, tokenizer: Detokenizer, stop: Sequence[str] = (), after: Sequence[int] = ()) -> None:
        self._stop = StopStrings(tokenizer, stop, after)
        self._text = _GrowingText(tokenizer, reversed(after))
        self._held = ""
        self.stopped: str | None = None
        """The stop string that ended the text; None while there was none."""

    def feed(self, tokens: Sequence[int] | Integers) -> str:
        """Add ``tokens`` (n,); returns the text that can be shown by now, often an empty one. Tokens behind a stop are left out."""
        for token in map(int, tokens):
            if self.stopped is not None:
                break
            self._push(token)
        shown = len(self._held) - (0 if self.stopped is not None else self._stop.withheld(self._held))
        text, self._held = self._held[:shown], self._held[shown:]
        return text

    def finish(self) -> str:
        """The rest, once no token comes any more: bytes that are no character are U+FFFD, as in decoding all at once."""
        rest = self._held + ("" if self.stopped is not None else self._text.tail)
        self._held = self._text.tail = ""
        return rest

    def _push(self, token: int) -> None:
        self._held += self._text.push(token)
        shown = self._held + self._text.tail
        if token in self._stop.tokens:
            self._held, self.stopped = shown, self._stop.tokens[token]
            return
        found = self._stop.find(shown)
        if found is not None:
            self._held, self.stopped = shown[: found[0]], found[1]


class NumberStream:
    """Tokens as numbers with commas between them, in place of a `TextStream`: for models without a tokenizer.

    Examples
    --------
    >>> from coupled_sampling.bundles.text_stream import NumberStream
    >>> stream = NumberStream()
    >>> stream.feed([7, 9]), stream.feed([]), stream.feed([8]), stream.finish()
    ('7,9', '', ',8', '')
    """

    def __init__(self) -> None:
        self._between = ""

    def feed(self, tokens: Sequence[int] | Integers) -> str:
        """Add ``tokens`` (n,); returns what they add to the text."""
        text = "".join(f"{self._between if i == 0 else ','}{int(token)}" for i, token in enumerate(tokens))
        self._between = "," if text else self._between
        return text

    def finish(self) -> str:
        """The rest: there is never any."""
        return ""

"""Whether the tokenizer of a bundle that was just written makes tokens of texts, and texts of tokens.

Not every tokenizer gives a text back as it was: some fold capitals, some have a token for whatever they do not know. So how many of
a few texts come back is counted and said. What no tokenizer may do is refused: tokens that the model does not have, no tokens at
all, and a text that is another one when it is shown while it is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from coupled_sampling.bundles.text import TextStream, Tokenizer
from coupled_sampling.errors import CheckpointError, InvalidArgument

__all__ = ["CheckedText", "check_text"]

_TEXTS = (
    "The quick brown fox jumps over 13 lazy dogs.",
    "it's WE'LL, (a+b)*2 = 3.5e-7; \"quoted\"",
    "  two spaces,\n\na line apart\tand a tab ",
    "naïve Übung, текст, 日本語, \N{GRINNING FACE}",
    "def f(x):\n    return x",
)
_SPREAD = 16
"""Tokens of its own that a text is made of, too: a small vocabulary has none of the above."""


class CheckedText(NamedTuple):
    """What a tokenizer did with a few texts.

    Examples
    --------
    >>> from coupled_sampling.export import CheckedText
    >>> CheckedText(texts=6, unchanged=6, before=("<s>",)).before
    ('<s>',)
    """

    texts: int
    unchanged: int
    """How many of them came back as they were."""
    before: tuple[str, ...]
    """What a prompt begins with before its own tokens."""


def check_text(tokenizer: Tokenizer, vocab_size: int) -> CheckedText:
    """Encode and decode a few texts, at once and token by token.

    Raises
    ------
    CheckpointError
        A token is none of the ``vocab_size`` of the model, no text has tokens, or a text is another one when it is shown while it
        is made.
    """
    texts = (*_TEXTS, tokenizer.decode(range(0, vocab_size, max(1, vocab_size // _SPREAD))))
    unchanged = encoded = 0
    before: tuple[str, ...] = ()
    for text in texts:
        try:
            plain, tokens = (tokenizer.encode(text, special_tokens=special) for special in (False, True))
        except InvalidArgument:
            continue  # a tokenizer without a token for the unknown
        encoded += 1
        _check_tokens(tokens, vocab_size)
        before = tuple(tokenizer.special_tokens.get(token, str(token)) for token in tokens[: len(tokens) - len(plain)])
        back, stream = tokenizer.decode(tokens), TextStream(tokenizer)
        shown = "".join(stream.feed([token]) for token in tokens) + stream.finish()
        if shown != back:
            raise CheckpointError(
                f"the tokenizer decodes {text!r} as {back!r} at once and as {shown!r} token by token, expected the same; "
                "nothing was written. Please report this with its tokenizer.json"
            )
        unchanged += back == text
    if not encoded:
        raise CheckpointError("the tokenizer makes no tokens of any text that was tried; is it the model's own?")
    return CheckedText(len(texts), unchanged, before)


def _check_tokens(tokens: Sequence[int], vocab_size: int) -> None:
    if max(tokens) >= vocab_size:
        raise CheckpointError(
            f"the tokenizer makes the token {max(tokens)} of a text, but the model has {vocab_size} tokens, so it is another "
            "model's; name the right one with --tokenizer"
        )

"""Prompts as users write them: names that a bundle knows, or a text for a model that reads text."""

from __future__ import annotations

from collections.abc import Sequence

from coupled_sampling.bundles.manifest import Manifest
from coupled_sampling.bundles.opening import Bundle
from coupled_sampling.bundles.text import Tokenizer
from coupled_sampling.errors import InvalidArgument

__all__ = ["find_prompts", "open_tokenizer"]


def open_tokenizer(bundle: Bundle) -> Tokenizer | None:
    """The tokenizer of a model that reads text; None for others."""
    name = bundle.manifest.tokenizer
    return None if name is None else Tokenizer(bundle.folder / name)


def find_prompts(
    manifest: Manifest, tokenizer: Tokenizer | None, asked: str | None, count: int
) -> list[tuple[int, ...]]:
    """Tokens of ``count`` prompts: those that were asked for, in turn.

    Parameters
    ----------
    manifest
        Knows the names.
    tokenizer
        Of the model, if it reads text.
    asked
        Names separated by commas, None for all of them; one text for a model that reads text.
    count
        How many are wanted.

    Raises
    ------
    InvalidArgument
        There is no prompt of that name; a text is needed and none was given; the model has neither names nor text.
    """
    tokens = _texts(manifest, tokenizer, asked) if tokenizer else _names(manifest, asked)
    return [tokens[i % len(tokens)] for i in range(count)]


def _texts(manifest: Manifest, tokenizer: Tokenizer, asked: str | None) -> Sequence[tuple[int, ...]]:
    if asked is None:
        raise InvalidArgument(f"the model {manifest.name} continues text: give one with --prompt")
    return [tuple(tokenizer.encode(asked))]


def _names(manifest: Manifest, asked: str | None) -> Sequence[tuple[int, ...]]:
    names = list(manifest.prompts) if asked is None else asked.split(",")
    if not names:
        raise InvalidArgument(
            f"the bundle {manifest.name} has neither prompts nor a tokenizer; decode it from Python, with tokens"
        )
    return [manifest.find_prompt(name.strip()) for name in names]

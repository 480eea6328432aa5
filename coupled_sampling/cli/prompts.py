"""Prompts as users write them: names that a bundle knows, a text or a message for a model that reads text, or tokens."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from coupled_sampling.bundles.array_files import array_of
from coupled_sampling.bundles.manifest import Manifest
from coupled_sampling.bundles.opening import Bundle
from coupled_sampling.bundles.text import Tokenizer
from coupled_sampling.errors import InvalidArgument

__all__ = ["Asked", "Prompts", "find_prompts"]

_INPUT = "-"
"""What stands for standard input."""
_MOST_BYTES = 64 * 2**20
"""Of a file of tokens."""


@dataclass(frozen=True)
class Asked:
    """What was asked for, as a user writes it; the options of the same names."""

    prompt: str | None = None
    prompt_file: str | None = None
    tokens: str | None = None
    tokens_file: str | None = None
    raw: bool = False
    chat: bool = False
    system: str | None = None

    @classmethod
    def of(cls, arguments: argparse.Namespace) -> Asked:
        """From the options of `coupled_sampling.cli.arguments.add_sampling`."""
        return cls(**{name: getattr(arguments, name) for name in cls.__dataclass_fields__})

    def __post_init__(self) -> None:
        given = [name for name in ("prompt", "prompt_file", "tokens", "tokens_file") if getattr(self, name) is not None]
        if len(given) > 1:
            named = " and ".join(name.replace("_", "-") for name in given)
            raise InvalidArgument(f"{named} are given, expected one of them: what to begin with")
        numbers = [name for name in ("tokens", "tokens_file") if getattr(self, name) is not None]
        if self.chat and (self.raw or numbers):
            other = "raw" if self.raw else numbers[0].replace("_", "-")
            raise InvalidArgument(
                f"chat and {other} are given, but a chat template writes the prompt; leave {other} out"
            )
        if self.system is not None and not self.chat:
            raise InvalidArgument(f"system is {self.system!r}, but this is no conversation; add --chat")

    def text(self) -> str | None:
        """The prompt, read from where it is; None if there is none.

        Raises
        ------
        InvalidArgument
            It is no text in UTF-8.
        OSError
            The file cannot be read.
        """
        source = _INPUT if self.prompt == _INPUT else self.prompt_file
        if source is None:
            return self.prompt
        if source == _INPUT and sys.stdin is None:
            raise InvalidArgument(
                "the prompt is to be read from standard input, which is closed; give it with --prompt"
            )
        try:
            text = sys.stdin.read() if source == _INPUT else Path(source).read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            name = "standard input" if source == _INPUT else source
            raise InvalidArgument(f"the prompt in {name} is no text in UTF-8: {error}; convert it first") from error
        # Editors and `echo` end a file so; a newline at the end of a prompt would change what follows.
        return text.removesuffix("\n")


class Prompts(NamedTuple):
    """What sequences begin with."""

    tokens: list[tuple[int, ...]]
    """The prompt of every sequence."""
    continued: bool
    """Whether a text goes on from its prompt; else it begins a text of its own, as a reply does."""


def find_prompts(bundle: Bundle, tokenizer: Tokenizer | None, asked: Asked, count: int) -> Prompts:
    """Tokens of ``count`` prompts: those that were asked for, in turn.

    Parameters
    ----------
    bundle
        Knows names, and how a conversation is written.
    tokenizer
        Of the model, if it reads text.
    asked
        Names separated by commas, nothing for all of them; a text or a message for a model that reads text; or tokens, in a file
        a prompt a row or a line, but for arrays of other than two axes, which are one prompt in row-major order.
    count
        How many are wanted.

    Raises
    ------
    InvalidArgument
        There is no prompt of that name; a text is needed and none was given; the model has neither names nor text.
    """
    if asked.tokens is not None:
        tokens: Sequence[tuple[int, ...]] = [_tokens(asked.tokens)]
    elif asked.tokens_file is not None:
        tokens = _tokens_in(Path(asked.tokens_file))
    elif tokenizer is not None:
        tokens = [_text(bundle, tokenizer, asked)]
    else:
        tokens = _names(bundle.manifest, asked)
    return Prompts([tokens[i % len(tokens)] for i in range(count)], continued=not asked.chat)


def _tokens(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise InvalidArgument(f"tokens is {text!r}, expected integers separated by commas, such as 1,2,3") from error


def _tokens_in(path: Path) -> Sequence[tuple[int, ...]]:
    """The prompts in a file: an array of NumPy's, or a text of integers.

    Raises
    ------
    InvalidArgument
        It is neither, or larger than any prompt.
    OSError
        It cannot be read.
    """
    with path.open("rb") as file:
        content = file.read(_MOST_BYTES + 1)  # a device or a pipe says nothing of its size
    if len(content) > _MOST_BYTES:
        raise InvalidArgument(
            f"tokens-file {path} has more than {_MOST_BYTES} bytes, expected the tokens of prompts alone"
        )
    if path.suffix != ".npy":
        try:
            lines = [line.replace(",", " ").split() for line in content.decode("utf-8").splitlines()]
            prompts = [tuple(int(part) for part in parts) for parts in lines if parts]
        except ValueError as error:
            raise InvalidArgument(
                f"tokens-file {path} is no text of integers ({error}), expected a prompt a line, such as 1,2,3; or .npy"
            ) from error
        if not prompts:
            raise InvalidArgument(f"tokens-file {path} is empty, expected a prompt a line, such as 1,2,3")
        return prompts
    try:
        array = array_of(content)
    except ValueError as error:
        raise InvalidArgument(
            f"tokens-file {path} is no array of numpy's ({error}), expected integers that numpy.save wrote"
        ) from error
    if array.dtype.kind not in "iu" or not array.size:
        raise InvalidArgument(f"tokens-file {path} holds {array.dtype}, expected some integers")
    rows = array.reshape(len(array) if array.ndim == 2 else 1, -1)
    return [tuple(row) for row in rows.tolist()]


def _text(bundle: Bundle, tokenizer: Tokenizer, asked: Asked) -> tuple[int, ...]:
    text = asked.text()
    if text is None:
        raise InvalidArgument(
            f"the model {bundle.manifest.name} continues text: give one with --prompt or --prompt-file, or tokens with --tokens"
        )
    if not asked.chat:
        return tuple(tokenizer.encode(text, special_tokens=not asked.raw))
    template = bundle.chat_template()
    if template is None:
        raise InvalidArgument(
            f"chat is asked for, but the bundle {bundle.manifest.name} has no chat template; leave it out to continue a text"
        )
    messages = [] if asked.system is None else [{"role": "system", "content": asked.system}]
    written = template.render([*messages, {"role": "user", "content": text}])
    return tuple(tokenizer.encode(written, special_tokens=False))


def _names(manifest: Manifest, asked: Asked) -> Sequence[tuple[int, ...]]:
    for option in ("raw", "chat"):
        if getattr(asked, option):
            raise InvalidArgument(
                f"{option} is about text, but the bundle {manifest.name} has no tokenizer; give tokens with --tokens 1,2,3"
            )
    if not manifest.prompts:
        raise InvalidArgument(
            f"the bundle {manifest.name} has no tokenizer, and no prompts by name: give tokens with --tokens 1,2,3 or "
            "--tokens-file FILE"
        )
    text = asked.text()
    names = list(manifest.prompts) if text is None else text.split(",")
    return [manifest.find_prompt(name.strip()) for name in names]

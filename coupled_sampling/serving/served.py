"""`ServedModel`: a model with its name, its words and its pictures or clips, wherever its engines are."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coupled_sampling import __version__
from coupled_sampling.backends import PixelDecoder
from coupled_sampling.bundles.chat import ChatTemplate
from coupled_sampling.bundles.opening import Bundle
from coupled_sampling.bundles.text import Tokenizer
from coupled_sampling.errors import InvalidArgument
from coupled_sampling.serving.fingerprints import fingerprint
from coupled_sampling.serving.lanes import Source

__all__ = ["ServedModel"]


class ServedModel:
    """A model that clients know by name.

    Parameters
    ----------
    name
        What they call it.
    bundle
        What it is.
    source
        Where its jobs are done.

    Examples
    --------
    >>> from coupled_sampling import open_bundle
    >>> from coupled_sampling.serving import Lanes, LaneSettings, ServedModel
    >>> with Lanes(lambda: open_bundle("fashion"), LaneSettings(rows=1)) as lanes:
    ...     model = ServedModel("clothes", lanes.bundle, lanes)
    ...     model.name, model.makes_pictures, model.prompt_of_name("shoe") == lanes.bundle.manifest.find_prompt("shoe")
    ('clothes', True, True)
    """

    def __init__(self, name: str, bundle: Bundle, source: Source) -> None:
        self.name, self.bundle, self.source = name, bundle, source
        self.created = int(time.time())
        self.tokenizer: Tokenizer | None = bundle.tokenizer()
        self.template: ChatTemplate | None = bundle.chat_template()

    @cached_property
    def fingerprint(self) -> str:
        """Of all that a seed's tokens depend on and a client cannot see: the bundle, with its files' digests, and this library.

        The kind of machine is not among it: another processor may round otherwise.
        """
        of = f"{__version__} {fingerprint(self.bundle)}"
        return f"fp_{hashlib.sha256(of.encode()).hexdigest()[:12]}"

    @property
    def makes_pictures(self) -> bool:
        """Whether its tokens are a picture."""
        return self.bundle.manifest.makes_pictures

    @property
    def frames(self) -> int:
        """How many frames of pixels its clips have; 0 where it makes none."""
        graph = self.bundle.manifest.pixel_graph
        return 0 if graph is None else graph.frames

    @property
    def writes_text(self) -> bool:
        """Whether its tokens are a text's."""
        return self.tokenizer is not None and not self.makes_pictures

    def prompt_of_text(self, text: str) -> tuple[int, ...]:
        """Tokens of a text to be continued.

        Raises
        ------
        InvalidArgument
            The model reads no text, or the text has no tokens.
        """
        return tuple(self._tokenizer("prompt").encode(text))

    def prompt_of_messages(self, messages: Sequence[Mapping[str, Any]], **more: Any) -> tuple[int, ...]:
        """Tokens of a conversation, up to the beginning of a reply.

        Raises
        ------
        InvalidArgument
            The model has no chat template, or its template refuses the messages.
        """
        tokenizer = self._tokenizer("messages")
        if self.template is None:
            raise InvalidArgument(
                f"messages are given, but the model {self.name} has no chat template; continue a text with /v1/completions"
            )
        return tuple(tokenizer.encode(self.template.render(messages, **more), special_tokens=False))

    def prompt_of_name(self, name: str) -> tuple[int, ...]:
        """Tokens of a prompt that the bundle has by name.

        Raises
        ------
        InvalidArgument
            There is none of that name.
        """
        return self.bundle.manifest.find_prompt(name)

    def _tokenizer(self, argument: str) -> Tokenizer:
        if self.tokenizer is None:
            raise InvalidArgument(
                f"{argument} is a text, but the model {self.name} has no tokenizer; give token numbers"
                + (", or ask /v1/images/generations for a picture" if self.makes_pictures else "")
            )
        return self.tokenizer

    @cached_property
    def _pixels(self) -> PixelDecoder:
        return PixelDecoder.open(self.bundle, threads=1)

    async def open_pictures(self) -> None:
        """Open what makes pictures, in a thread; else the first picture does.

        Raises
        ------
        BundleError, MissingDependency
            It cannot be opened.
        """
        await asyncio.to_thread(lambda: self._pixels)

    async def pictures(self, tokens: Sequence[Sequence[int]]) -> NDArray[np.uint8]:
        """Pictures uint8 (B, height, width, channels) of as many tokens each as a picture has; in a thread.

        Of a model of clips they are clips, uint8 (B, frames, height, width, channels).
        """
        return await asyncio.to_thread(lambda: self._pixels(np.asarray(tokens, np.int64)))

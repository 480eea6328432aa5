"""What a bundle says of prompts and recommends: prompts by name, the one that says nothing, and settings.

Records of a `coupled_sampling.bundles.Manifest`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from coupled_sampling.bundles.records import expect
from coupled_sampling.contracts import Sampling
from coupled_sampling.errors import BundleError, InvalidArgument
from coupled_sampling.fields import check_fields
from coupled_sampling.methods import find_method
from coupled_sampling.requests import read_interval

__all__ = ["TEXT_DEFAULTS", "Defaults", "PaddedPrompt", "Prompt"]


@dataclass(frozen=True)
class Prompt:
    """A prompt with a name: its tokens, other names it goes by, and a title for people.

    Examples
    --------
    >>> from coupled_sampling.bundles import Prompt
    >>> Prompt(tokens=(263,), aliases=("shoe",), title="Sneaker").tokens
    (263,)
    """

    tokens: tuple[int, ...]
    aliases: tuple[str, ...]
    title: str

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class PaddedPrompt:
    """An unconditional prompt that is the prompt itself, a padding token in place of each but its first and last ones.

    So it is as long as the prompt, as Janus was trained: a function from a prompt to it.

    Parameters
    ----------
    pad
        The padding token.
    keep_first, keep_last
        How many tokens at the two ends stay. A prompt of no more tokens stays as it is.

    Examples
    --------
    >>> from coupled_sampling.bundles import PaddedPrompt
    >>> PaddedPrompt(pad=0)([7, 5, 6, 4, 9])
    (7, 0, 0, 0, 9)
    >>> PaddedPrompt(pad=0)([9])
    (9,)
    """

    pad: int
    keep_first: int = 1
    keep_last: int = 1

    def __post_init__(self) -> None:
        check_fields(self)
        for name, least in (("pad", 0), ("keep_first", 0), ("keep_last", 0)):
            value = getattr(self, name)
            expect(value >= least, f"unconditional_prompt.{name}", value, f"an integer >= {least}")

    def __call__(self, prompt: Iterable[int]) -> tuple[int, ...]:
        """The unconditional prompt beside ``prompt``."""
        tokens = tuple(int(token) for token in prompt)
        inner = range(self.keep_first, len(tokens) - self.keep_last)
        return tuple(self.pad if i in inner else token for i, token in enumerate(tokens))

    def __str__(self) -> str:
        return f"the prompt with {self.pad} for all but its first {self.keep_first} and last {self.keep_last} tokens"


@dataclass(frozen=True)
class Defaults:
    """Settings the exporter recommends. ``drafting`` is what ``coupled_sampling.generate`` takes, as text.

    ``guidance_interval`` is "FIRST:END", the generated tokens that are guided; None is all of them.

    Examples
    --------
    >>> from coupled_sampling.bundles import Defaults
    >>> Defaults(method="scd-gumbel", window=16, drafting="copy:14", top_k=100).sampling().top_k
    100
    """

    method: str
    window: int
    drafting: str
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0
    guidance: float = 1.0
    branches: int = 0
    guidance_interval: str | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        try:
            method = find_method(self.method)
            self.sampling()
            if self.guidance_interval is not None:
                read_interval(self.guidance_interval)
        except InvalidArgument as error:
            raise BundleError(f"defaults: {error}") from error
        expect(self.window >= 1, "defaults.window", self.window, "an integer >= 1")
        most = max(0, self.window - 2) if method.refuses_branches is None else 0
        expect(0 <= self.branches <= most, "defaults.branches", self.branches, f"an integer from 0 to {most}")
        expect(math.isfinite(self.guidance), "defaults.guidance", self.guidance, "a finite number; 1 is none")

    def sampling(self) -> Sampling:
        """The settings that shape the target law."""
        return Sampling(self.temperature, self.top_k, self.top_p, self.min_p)


TEXT_DEFAULTS = Defaults(method="scd-match", window=4, drafting="ngram")
"""What suits text, where drafts are seldom right: few of them, looked up, and the tokens that one at a time would give."""

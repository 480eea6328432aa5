"""Classifier-free guidance as a provider made from a provider (Ho and Salimans, arXiv 2207.12598).

A guided model of B rows is a model of 2B rows: row 2b with the user's prompt, row 2b + 1 with an unconditional prompt
of its own, both continued by the same tokens. The guided logits are

    unconditional + scale * (conditional - unconditional).

A token that the conditional row forbids (-inf) stays forbidden, except at scale 0. One that only the unconditional row forbids
has no guided logit at scales above 1 (it would be +inf): such logits are refused when a law is made of them.

Prompts may differ in length: the unconditional row's positions are shifted so that the generated tokens line up.
Losslessness is with respect to the law of the guided logits, whatever one thinks of that law.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from coupled_sampling.arrays import at_least_float32, namespace
from coupled_sampling.bounds import check_window
from coupled_sampling.contracts import (
    Array,
    Closeable,
    Integers,
    LogitsProvider,
    RequestObserver,
    Runs,
    max_window,
    what_runs,
)
from coupled_sampling.errors import InvalidArgument
from coupled_sampling.requests import Request
from coupled_sampling.running import Closing

__all__ = ["GuidedProvider", "GuidedRows", "PairedWindow"]


@dataclass
class _Pair:
    """One guided row: its unconditional prompt, the length of the prompt that stands for, and whether it was started."""

    unconditional: Integers
    prompt_length: int
    primed: bool = False

    @property
    def shift(self) -> int:
        """What to add to a conditional position to get the unconditional one."""
        return len(self.unconditional) - self.prompt_length

    def window(self, tokens: Integers, start: int, begin: int) -> Integers:
        """The unconditional tokens from position ``begin`` on that go with ``tokens`` (W,) at conditional ``start``."""
        position = begin + np.arange(len(tokens))
        source = position - self.shift - start
        own = np.where((source >= 0) & (source < len(tokens)), tokens[np.clip(source, 0, len(tokens) - 1)], 0)
        prompt = self.unconditional[np.minimum(position, len(self.unconditional) - 1)]
        return np.where(position < len(self.unconditional), prompt, own)


class PairedWindow(NamedTuple):
    """A window for a model of 2B rows, row 2b conditional and 2b + 1 unconditional."""

    tokens: Integers
    """(2B, W)."""
    start: Integers
    """(2B,)."""
    lag: Integers
    """(B,) slots later than the conditional row at which the unconditional one shows the same token; it is 0 save where an
    unconditional prompt shorter than the row's own has not begun."""


class GuidedRows:
    """Which unconditional prompt goes with each row, and the windows of both.

    Parameters
    ----------
    unconditional
        The unconditional prompt, or a function from a row's prompt to it. At least one token.
    batch_size
        B, of guided rows.
    vocab_size, max_length
        Of the model that runs 2B rows.
    """

    def __init__(
        self,
        unconditional: Sequence[int] | Callable[[Integers], Sequence[int]],
        batch_size: int,
        vocab_size: int,
        max_length: int,
    ) -> None:
        self._unconditional = unconditional
        self._vocab_size = vocab_size
        self._inner_length = max_length
        self._pairs: list[_Pair | None] = [None] * batch_size
        self.max_length = max_length
        """Positions of a guided row that are sure to fit; a row's own prompt has a token at least, so its unconditional row is
        at most the rest of a fixed unconditional prompt longer."""
        if not callable(unconditional):
            self.max_length -= len(self._checked(unconditional)) - 1

    def begin(self, row: int, prompt: Integers) -> Integers:
        """Row ``row`` starts ``prompt`` int64 (L,); returns its unconditional prompt."""
        chosen = self._checked(self._unconditional(prompt) if callable(self._unconditional) else self._unconditional)
        self._pairs[row] = _Pair(chosen, len(prompt))
        return chosen

    def paired(self, tokens: Integers, start: Integers) -> PairedWindow:
        """The window of both rows for the window ``tokens`` (B, W) at ``start`` (B,).

        Raises
        ------
        InvalidArgument
            An unconditional row would leave the model's memory.
        """
        rows, width = tokens.shape
        both, starts, lag = np.repeat(tokens, 2, axis=0), np.repeat(start, 2), np.zeros(rows, np.int64)
        for b in range(rows):
            pair = self._pair(b)
            begin = max(0, int(start[b]) + pair.shift)  # a shorter prompt of its own has nothing before position 0
            if begin + width > self._inner_length:
                raise InvalidArgument(
                    f"row {b}: its unconditional row would reach position {begin + width - 1}, the model holds "
                    f"{self._inner_length}. The unconditional prompt is {pair.shift} tokens longer than the row's own"
                )
            both[2 * b + 1], starts[2 * b + 1] = pair.window(tokens[b], int(start[b]), begin), begin
            lag[b] = begin - (int(start[b]) + pair.shift)
        return PairedWindow(both, starts, lag)

    def openings(self, paired: PairedWindow) -> Iterator[tuple[Integers, Integers]]:
        """Windows (tokens, start) to forward before ``paired``: what unconditional prompts have before the row's own begins.

        All other rows forward what they are about to forward anyway, so nothing of theirs is disturbed.
        """
        width = paired.tokens.shape[1]
        for row in range(len(paired.lag)):
            pair = self._pair(row)
            # A longer prompt of its own goes in once, up to where both rows' windows begin together.
            for first in range(0, max(0, pair.shift), width) if not pair.primed else ():
                tokens, begins = paired.tokens.copy(), paired.start.copy()
                chunk = pair.unconditional[first : first + width]
                tokens[2 * row + 1] = 0
                tokens[2 * row + 1, : len(chunk)], begins[2 * row + 1] = chunk, first
                yield tokens, begins
            pair.primed = True

    def _checked(self, prompt: Sequence[int]) -> Integers:
        tokens = np.asarray(prompt, np.int64)
        if tokens.ndim != 1 or not tokens.size or tokens.min() < 0 or tokens.max() >= self._vocab_size:
            raise InvalidArgument(
                f"unconditional prompt is {tokens.tolist()}, expected at least one token in [0, {self._vocab_size})"
            )
        if tokens.size > self._inner_length:
            raise InvalidArgument(
                f"unconditional prompt has {tokens.size} tokens, the model holds {self._inner_length}"
            )
        return tokens

    def _pair(self, row: int) -> _Pair:
        pair = self._pairs[row]
        if pair is None:
            if callable(self._unconditional):
                raise InvalidArgument(
                    f"row {row} was never told its prompt, and the unconditional prompt is made from it: call begin(row, request)"
                )
            prompt = self._checked(self._unconditional)
            pair = self._pairs[row] = _Pair(prompt, len(prompt))
        return pair


class GuidedProvider(Closing):
    """``provider`` under classifier-free guidance.

    Parameters
    ----------
    provider
        Has an even ``batch_size``; the guided provider has half of it.
    scale
        Guidance scale; 1 is the conditional law itself, 0 the unconditional one. Finite.
    unconditional
        The unconditional prompt, or a function from a row's prompt to it. At least one token.

    Notes
    -----
    With a fixed unconditional prompt of L tokens, ``max_length`` is L - 1 less than the provider's, so that what cannot fit is
    refused beforehand; a prompt that is too long from a function is refused by the pass that would leave the model's memory.

    The decoding loop says which prompt a row works on (``begin``). Used without a loop, prompts are taken to be as
    long as the unconditional one.

    Examples
    --------
    A model that looks at the first token of its prompt, and here at an unconditional prompt, 2, of its own:

    >>> import numpy as np
    >>> from coupled_sampling import GuidedProvider
    >>> class ByClass:
    ...     vocab_size, batch_size, max_length = 3, 2, 8
    ...     def forward(self, tokens, start):
    ...         return np.broadcast_to(np.eye(3)[tokens[:, :1]], (*tokens.shape, 3))
    >>> guided = GuidedProvider(ByClass(), scale=3.0, unconditional=[2])
    >>> guided.batch_size  # half of the rows
    1
    >>> guided.forward(np.array([[0]]), np.array([0]))  # unconditional + 3 * (conditional - unconditional)
    array([[[ 3.,  0., -2.]]])
    """

    def __init__(
        self,
        provider: LogitsProvider,
        scale: float,
        unconditional: Sequence[int] | Callable[[Integers], Sequence[int]],
    ) -> None:
        if provider.batch_size % 2 or provider.batch_size < 2:
            raise InvalidArgument(
                f"provider.batch_size is {provider.batch_size}, expected an even number: guidance runs two rows for each one"
            )
        if not np.isfinite(scale):
            raise InvalidArgument(f"scale is {scale}, expected a finite number")
        self.provider = provider
        self.scale = float(scale)
        self.vocab_size = int(provider.vocab_size)
        self.batch_size = int(provider.batch_size) // 2
        self._rows = GuidedRows(unconditional, self.batch_size, self.vocab_size, int(provider.max_length))
        self.max_length = self._rows.max_length
        self.max_window = min(max_window(provider), self.max_length)

    @property
    def runs(self) -> Runs:
        """What runs the provider."""
        return what_runs(self.provider)

    def close(self) -> None:
        """Close the provider, if it can be closed."""
        if isinstance(self.provider, Closeable):
            self.provider.close()

    def begin(self, row: int, request: Request) -> None:
        """Row ``row`` starts ``request``."""
        unconditional = self._rows.begin(row, np.asarray(request.prompt))
        if isinstance(self.provider, RequestObserver):
            self.provider.begin(2 * row, request)
            self.provider.begin(2 * row + 1, replace(request, prompt=unconditional))

    def forward(self, tokens: Integers, start: Integers) -> Array:
        """Guided logits (B, W, V). See `coupled_sampling.contracts.LogitsProvider.forward`."""
        check_window(self, tokens, start)
        paired = self._rows.paired(tokens, start)
        for opening, begins in self._rows.openings(paired):
            self.provider.forward(opening, begins)
        logits = at_least_float32(self.provider.forward(paired.tokens, paired.start))
        xp = namespace(logits)
        return xp.stack([self._combine(logits, b, lag) for b, lag in enumerate(paired.lag.tolist())], axis=0)

    def _combine(self, logits: Array, row: int, lag: int) -> Array:
        """Guided logits (W, V) of one row; slots before the unconditional prompt begins stay conditional."""
        xp = namespace(logits)
        conditional, unconditional = logits[2 * row, ...], logits[2 * row + 1, ...]
        if lag:
            missing = min(lag, conditional.shape[0])
            kept = unconditional[: conditional.shape[0] - missing, ...]
            unconditional = xp.concat([conditional[:missing, ...], kept], axis=0)
        if self.scale in (0, 1):
            return conditional if self.scale == 1 else unconditional
        forbidden = xp.isinf(conditional) & (conditional < 0)
        finite = xp.where(forbidden, xp.zeros_like(conditional), conditional)  # a scale times -inf may be NaN
        # Not unconditional + scale * (conditional - unconditional), which is NaN where both rows forbid a token.
        return xp.where(forbidden, conditional, (1 - self.scale) * unconditional + self.scale * finite)

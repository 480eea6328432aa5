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

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from coupled_sampling.arrays import at_least_float32, namespace
from coupled_sampling.bounds import check_window
from coupled_sampling.contracts import Array, Integers, LogitsProvider, PromptObserver, max_window
from coupled_sampling.errors import InvalidArgument

__all__ = ["GuidedProvider"]


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


class GuidedProvider:
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
        self._unconditional = unconditional
        self.vocab_size = int(provider.vocab_size)
        self.batch_size = int(provider.batch_size) // 2
        self.max_window = max_window(provider)
        self.max_length = int(provider.max_length)
        self._inner_length = self.max_length
        self._pairs: list[_Pair | None] = [None] * self.batch_size
        if not callable(unconditional):
            # A row's own prompt has a token at least, so its unconditional row is at most this much longer.
            self.max_length -= len(self._checked(unconditional)) - 1
            self.max_window = min(self.max_window, self.max_length)

    def _checked(self, prompt: Sequence[int]) -> Integers:
        tokens = np.asarray(prompt, np.int64)
        if tokens.ndim != 1 or not tokens.size or tokens.min() < 0 or tokens.max() >= self.vocab_size:
            raise InvalidArgument(
                f"unconditional prompt is {tokens.tolist()}, expected at least one token in [0, {self.vocab_size})"
            )
        if tokens.size > self._inner_length:
            raise InvalidArgument(
                f"unconditional prompt has {tokens.size} tokens, the model holds {self._inner_length}"
            )
        return tokens

    def begin(self, row: int, prompt: Integers) -> None:
        """Row ``row`` starts ``prompt`` int64 (L,)."""
        chosen = self._unconditional(prompt) if callable(self._unconditional) else self._unconditional
        self._pairs[row] = _Pair(self._checked(chosen), len(prompt))
        if isinstance(self.provider, PromptObserver):
            self.provider.begin(2 * row, prompt)
            self.provider.begin(2 * row + 1, self._checked(chosen))

    def forward(self, tokens: Integers, start: Integers) -> Array:
        """Guided logits (B, W, V). See `coupled_sampling.contracts.LogitsProvider.forward`."""
        check_window(self, tokens, start)
        rows, width = tokens.shape
        both, starts = np.repeat(tokens, 2, axis=0), np.repeat(start, 2)
        for b in range(rows):
            pair = self._pair(b)
            begin = max(0, int(start[b]) + pair.shift)
            if begin + width > self._inner_length:
                raise InvalidArgument(
                    f"row {b}: its unconditional row would reach position {begin + width - 1}, the model holds "
                    f"{self._inner_length}. The unconditional prompt is {pair.shift} tokens longer than the row's own"
                )
            both[2 * b + 1], starts[2 * b + 1] = pair.window(tokens[b], int(start[b]), begin), begin
        for b in range(rows):
            self._prime(b, both, starts)
        logits = at_least_float32(self.provider.forward(both, starts))
        xp = namespace(logits)
        return xp.stack([self._combine(logits, b, int(start[b]), int(starts[2 * b + 1])) for b in range(rows)], axis=0)

    def _pair(self, row: int) -> _Pair:
        pair = self._pairs[row]
        if pair is None:
            if callable(self._unconditional):
                raise InvalidArgument(
                    f"row {row} was never told its prompt, and the unconditional prompt is made from it: call begin(row, prompt)"
                )
            prompt = self._checked(self._unconditional)
            pair = self._pairs[row] = _Pair(prompt, len(prompt))
        return pair

    def _prime(self, row: int, both: Integers, starts: Integers) -> None:
        """Forward what the unconditional prompt of ``row`` has before the row's own prompt begins.

        All other rows forward what they are about to forward anyway, so nothing of theirs is disturbed.
        """
        pair = self._pair(row)
        width = both.shape[1]
        for first in range(0, max(0, pair.shift), width) if not pair.primed else ():
            tokens, begins = both.copy(), starts.copy()
            chunk = pair.unconditional[first : first + width]
            tokens[2 * row + 1] = 0
            tokens[2 * row + 1, : len(chunk)], begins[2 * row + 1] = chunk, first
            self.provider.forward(tokens, begins)
        pair.primed = True

    def _combine(self, logits: Array, row: int, start: int, begin: int) -> Array:
        """Guided logits (W, V) of one row; slots before the unconditional prompt begins stay conditional."""
        xp = namespace(logits)
        conditional, unconditional = logits[2 * row, ...], logits[2 * row + 1, ...]
        pair = self._pair(row)
        missing = begin - (start + pair.shift)
        if missing:
            missing = min(missing, conditional.shape[0])
            kept = unconditional[: conditional.shape[0] - missing, ...]
            unconditional = xp.concat([conditional[:missing, ...], kept], axis=0)
        if self.scale in (0, 1):
            return conditional if self.scale == 1 else unconditional
        forbidden = xp.isinf(conditional) & (conditional < 0)
        finite = xp.where(forbidden, xp.zeros_like(conditional), conditional)
        return xp.where(forbidden, conditional, (1 - self.scale) * unconditional + self.scale * finite)

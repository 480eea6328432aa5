"""The two rows of each guided one: which unconditional prompt and which scale a request has, and the windows of both rows.

Row 2b of the model is guided row b with the user's prompt, row 2b + 1 continues the unconditional prompt with the same tokens.
Prompts may differ in length, so a token's position in the unconditional row is its own position and a *shift*: the length of the
unconditional prompt less that of the row's own. A window of both rows shows the same tokens in the same slots, but at two ends:

- an unconditional prompt that is shorter has nothing before position 0, so its window begins later than the row's own;
- a window may be wider than what a row has left, if other rows need it. Where the unconditional prompt is longer, such a window
  may not fit the model any more, and begins earlier. What is lost on the way are slots behind the end of the request.

By how much the two differ is the *lag* of a row. Everything here is numbers on the host: `coupled_sampling.guidance` mixes logits,
and steps that decide where the logits are feed lags and scales to their graphs or kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.arguments import checked_tokens
from coupled_sampling.arrays import read_only
from coupled_sampling.contracts import Integers, LogitsProvider
from coupled_sampling.errors import InvalidArgument
from coupled_sampling.refusals import refusal_of
from coupled_sampling.requests import Guidance, Request

__all__ = ["GuidedRows", "PairedWindow", "Scale", "Unconditional"]

Scale: TypeAlias = float | Callable[[Integers], Any]
"""A guidance scale, or a function from int64 (n,) indices of generated tokens, the first is 0, to scales (n,)."""

Unconditional: TypeAlias = Sequence[int] | Callable[[Integers], Sequence[int]]
"""An unconditional prompt, or a function from a row's prompt to it. At least one token."""


@dataclass
class _Pair:
    """One guided row: its unconditional prompt, the length of the prompt that stands for, its scales, whether it was started."""

    unconditional: Integers
    prompt_length: int
    scales: NDArray[np.float64]
    """By the index of the generated token; the last one is for all that follow, which are not of the request."""
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

    def scale(self, start: int, width: int) -> NDArray[np.float64]:
        """The scale (W,) of each slot: the logits of a slot are for the position after its own."""
        index = start + 1 + np.arange(width) - self.prompt_length
        return self.scales[np.clip(index, 0, len(self.scales) - 1)]

    def opening(self, first: int, width: int) -> Integers:
        """The unconditional prompt from position ``first`` on, (W,) with zeros behind it."""
        tokens, chunk = np.zeros(width, np.int64), self.unconditional[first : first + width]
        tokens[: len(chunk)] = chunk
        return tokens


class PairedWindow(NamedTuple):
    """A window for a model of two rows for each guided one: the conditional row, then the unconditional one."""

    tokens: Integers
    """(2B, W)."""
    start: Integers
    """(2B,)."""
    lag: Integers
    """(B,) the unconditional row shows the token of slot j in slot j - lag. It is positive where an unconditional prompt shorter
    than the row's own has not begun, and negative where the window is wider than what the model has left; else 0. A slot without
    a partner has nothing to decide."""
    scale: NDArray[np.float64]
    """(B, W) the guidance scale of each slot; slots whose logits are for a token of the prompt have the first one."""
    first: int
    """The guided row that comes first."""

    def part(self, rows: range) -> PairedWindow:
        """The window of the consecutive ``rows`` of these."""
        both, own = slice(2 * rows.start, 2 * rows.stop), slice(rows.start, rows.stop)
        return PairedWindow(
            self.tokens[both], self.start[both], self.lag[own], self.scale[own], self.first + rows.start
        )


class GuidedRows:
    """Which unconditional prompt and scale go with each row, and the windows of both rows.

    Parameters
    ----------
    unconditional
        The unconditional prompt, or a function from a row's prompt to it, where a request has none of its own.
    batch_size
        B, of guided rows.
    vocab_size, max_length
        Of the model that runs 2B rows.
    scale
        The scale where a request has none of its own.

    Raises
    ------
    InvalidArgument
        ``scale`` is not finite, or ``unconditional`` no prompt that the model can hold.
    """

    def __init__(
        self, unconditional: Unconditional, batch_size: int, vocab_size: int, max_length: int, scale: Scale
    ) -> None:
        self._unconditional = unconditional
        self._scale = Guidance(scale=scale).scale
        self._vocab_size = vocab_size
        self._inner_length = max_length
        self._pairs: list[_Pair | None] = [None] * batch_size
        self.max_length = max_length
        """Positions of a guided row that are sure to fit; a row's own prompt has a token at least, so its unconditional row is
        at most the rest of a fixed unconditional prompt longer."""
        if not callable(unconditional):
            self.max_length -= len(self._checked(unconditional)) - 1

    def takes(
        self, request: Request, provider: LogitsProvider | None = None, constant_for: str | None = None
    ) -> str | None:
        """Why ``request`` cannot be guided, as a sentence without its subject; None if it can.

        Parameters
        ----------
        request
            What is asked for.
        provider
            The model that runs the rows, which is asked about both rows of the request.
        constant_for
            The name of a step that has one scale for all slots of a row.
        """
        try:
            pair = self._made(request)
        except InvalidArgument as error:
            return f"cannot be guided: {error}"
        if constant_for is not None and (pair.scales != pair.scales[0]).any():
            return (
                f"has a guidance scale that changes with the position, but {constant_for} has one scale for a row; use HostStep "
                'over a GuidedProvider, which open_model makes with step="host"'
            )
        for told, said in zip(_told(request, pair), ("{}", "has an unconditional row that {}"), strict=True):
            reason = None if provider is None else refusal_of(provider, told)
            if reason is not None:
                return said.format(reason)
        return None

    def begin(self, row: int, request: Request) -> tuple[Request, Request]:
        """Row ``row`` starts ``request``; returns what the model is told of the conditional and the unconditional row.

        Raises
        ------
        InvalidArgument
            It cannot be guided, see `takes`.
        """
        self._pairs[row] = pair = self._made(request)
        return _told(request, pair)

    def fork(self, source: int, targets: Sequence[int], length: int) -> Iterator[tuple[int, list[int], int]]:
        """How row ``source`` is copied to ``targets`` below position ``length``: for the model's (source, targets, length).

        Raises
        ------
        InvalidArgument
            A target has begun with another unconditional prompt, or at another shift: the source's state is of no use to it.
        """
        pair = self._pair(source)
        for target in targets:
            own = self._pairs[target]
            if own is not None and not (
                own.shift == pair.shift and np.array_equal(own.unconditional, pair.unconditional)
            ):
                raise InvalidArgument(
                    f"row {source} was forked to row {target}, whose unconditional prompt is {own.unconditional.tolist()} beside "
                    f"{own.prompt_length} tokens of its own, expected {pair.unconditional.tolist()} beside {pair.prompt_length}; "
                    "fork between requests with the same prompts"
                )
            self._pairs[target] = replace(pair if own is None else own, primed=pair.primed)
        yield 2 * source, [2 * target for target in targets], length
        yield 2 * source + 1, [2 * target + 1 for target in targets], max(0, length + pair.shift)

    def paired(self, tokens: Integers, start: Integers, first: int = 0) -> PairedWindow:
        """The window of both rows for the window ``tokens`` (n, W) at ``start`` (n,) of the guided rows from ``first`` on.

        Raises
        ------
        InvalidArgument
            An unconditional row would leave the model's memory.
        """
        rows, width = tokens.shape
        both, starts, lag = np.repeat(tokens, 2, axis=0), np.repeat(start, 2), np.zeros(rows, np.int64)
        scale = np.empty((rows, width))
        for b in range(rows):
            pair, own = self._pair(first + b), int(start[b])
            aligned = own + pair.shift
            # A shorter prompt has nothing before position 0; a window must not leave the memory for slots that nobody needs.
            begin = max(0, min(aligned, self._inner_length - width))
            if begin < aligned and own > 0:  # tokens before the window are not known here
                raise InvalidArgument(
                    f"row {first + b}: its unconditional row would reach position {aligned + width - 1}, the model holds "
                    f"{self._inner_length}. The unconditional prompt is {pair.shift} tokens longer than the row's own"
                )
            both[2 * b + 1], starts[2 * b + 1] = pair.window(tokens[b], own, begin), begin
            lag[b], scale[b] = begin - aligned, pair.scale(own, width)
        return PairedWindow(read_only(both), read_only(starts), lag, scale, first)

    def openings(self, paired: PairedWindow) -> Iterator[tuple[Integers, Integers]]:
        """Windows (tokens, start) to forward before ``paired``: what unconditional prompts have before the row's own begins.

        All other rows forward what they are about to forward anyway, so nothing of theirs is disturbed.
        """
        width = paired.tokens.shape[1]
        for row, position, pair in self._unopened(range(paired.first, paired.first + len(paired.lag)), width):
            first = min(position, self._inner_length - width)
            tokens, begins = paired.tokens.copy(), paired.start.copy()
            tokens[2 * row + 1], begins[2 * row + 1] = pair.opening(first, width), first
            yield read_only(tokens), read_only(begins)

    def openings_apart(self, rows: range, width: int) -> Iterator[tuple[int, Integers, Integers]]:
        """`openings` of guided ``rows`` for a model that can forward a row alone, at most ``width`` slots at once: its
        (row, tokens, start)."""
        for row, first, pair in self._unopened(rows, width):
            # No wider than what there is to open: nobody's slots have to be filled.
            tokens = pair.opening(first, min(width, pair.shift - first))[None]
            yield 2 * (rows.start + row) + 1, read_only(tokens), read_only(np.array([first]))

    def _unopened(self, rows: range, width: int) -> Iterator[tuple[int, int, _Pair]]:
        """Each (index into ``rows``, position, pair) at which a longer unconditional prompt is to be opened."""
        for i, row in enumerate(rows):
            pair = self._pair(row)
            # A longer prompt of its own goes in once, up to where both rows' windows begin together.
            for first in range(0, max(0, pair.shift), width) if not pair.primed else ():
                yield i, first, pair
            pair.primed = True

    def _checked(self, prompt: Any) -> Integers:
        tokens = checked_tokens("unconditional prompt", prompt, self._vocab_size)
        if tokens.size > self._inner_length:
            raise InvalidArgument(
                f"unconditional prompt has {tokens.size} tokens, the model holds {self._inner_length}"
            )
        return tokens

    def _made(self, request: Request) -> _Pair:
        """The pair of ``request``, if all of its guidance can be done."""
        guidance, prompt = request.guidance or Guidance(), np.asarray(request.prompt, np.int64)
        chosen = self._unconditional if guidance.unconditional is None else guidance.unconditional
        if callable(chosen):
            chosen = _called("the function that makes unconditional prompts", chosen, read_only(prompt))
        unconditional = self._checked(chosen)
        needed = len(unconditional) + request.length - 1
        if needed > self._inner_length:
            raise InvalidArgument(
                f"an unconditional prompt of {len(unconditional)} tokens and length {request.length} need {needed} cached "
                f"positions, the model holds {self._inner_length}; shorten it or ask for fewer tokens"
            )
        scaled = Guidance(scale=self._scale if guidance.scale is None else guidance.scale)
        # For the whole length at once: a function that fails does so before anything runs.
        scales = _called("guidance.scale", lambda index: scaled.scales(index, own=1.0), np.arange(request.length))
        return _Pair(unconditional, len(prompt), scales)

    def _pair(self, row: int) -> _Pair:
        pair = self._pairs[row]
        if pair is None:
            if callable(self._unconditional) or callable(self._scale):
                raise InvalidArgument(
                    f"row {row} was never told its prompt, and its guidance is made from it: call begin(row, request)"
                )
            prompt = self._checked(self._unconditional)
            pair = self._pairs[row] = _Pair(prompt, len(prompt), np.full(1, self._scale, np.float64))
        return pair


def _told(request: Request, pair: _Pair) -> tuple[Request, Request]:
    """The requests of the conditional and the unconditional row: guidance is not the model's affair."""
    own = replace(request, guidance=None)
    condition = None if request.guidance is None else request.guidance.condition
    condition = request.condition if condition is None else condition
    return own, replace(own, prompt=pair.unconditional, condition=condition)


def _called(what: str, function: Callable[[Integers], Any], argument: Integers) -> Any:
    try:
        return function(argument)
    except InvalidArgument:
        raise
    except Exception as error:  # a stranger's code: anything may come
        raise InvalidArgument(f"{what} raised {type(error).__name__}: {error}") from error

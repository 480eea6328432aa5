"""Pairs of laws: what a position's law was under its old neighbours, and what it became under the new ones.

While a sequence is decoded, a position that stays in the window is forwarded again and again, and between two passes its neighbours
may change. The two laws and the two sets of neighbours are a pair: what a corrector is asked, and the answer.

Many pairs lie behind a draft that is refused, under tokens that never come to stand together. They still say something, but not in
their numbers: a share of them is kept. A large vocabulary makes laws large; where a sequence's pairs would not fit into memory, all
of them have the same chance to stay.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.arguments import check_count
from coupled_sampling.arrays import to_host
from coupled_sampling.contracts import (
    Array,
    Integers,
    LogitsProvider,
    RequestObserver,
    Selective,
    max_window,
    prompt_chunk,
)
from coupled_sampling.corrections import check_lags
from coupled_sampling.fields import check_is
from coupled_sampling.requests import Request

__all__ = ["Pairs", "Recording", "log_laws", "thinned"]

_KEPT_ASIDE = 0.3
"""Share of pairs off the committed path that are kept."""

_MOST_BYTES = 2**28
"""Memory for the pairs of one sequence, unless told otherwise."""

_LEAST = -60.0
"""Log-probabilities are cut off here, so that numbers stay finite: exp(-60) is nothing."""


class Pairs(NamedTuple):
    """n pairs of laws over M tokens, with K neighbours.

    Examples
    --------
    >>> import numpy as np
    >>> from coupled_sampling.fitting import Pairs
    >>> law = np.log(np.array([[0.5, 0.5]], np.float32))
    >>> len(Pairs(np.array([[3]]), np.array([[4]]), law, law, np.array([9])).before)
    1
    """

    old: Integers
    """(n, K) the neighbours that the first law was computed with; -1 where there is none."""
    new: Integers
    """(n, K) those of the second."""
    before: NDArray[np.floating]
    """(n, M) log-laws, half precision: the model's own at temperature 1."""
    after: NDArray[np.floating]
    """(n, M) the same a pass later."""
    position: Integers
    """(n,) where the laws are, the prompt counted."""


class _Pass(NamedTuple):
    """One pass over a row, as far as it is needed later."""

    start: int
    context: Integers
    """The row's tokens from position 0 to the end of the window."""
    logits: NDArray[np.float32]
    """(W, M)."""


class _Candidate(NamedTuple):
    old: list[int]
    new: list[int]
    before: NDArray[np.float16]
    after: NDArray[np.float16]
    context: Integers


class Recording:
    """A model of one row that remembers what laws became of others; between `begin` and `pairs` it is one sequence's.

    Parameters
    ----------
    provider
        The model; its first row is used.
    lags
        Where neighbours stand.
    first, count
        The tokens that it can generate; others are left out.
    committed
        Whether `committed` will be asked, for which the last law of every position is kept.
    most_bytes
        Memory for the pairs of a sequence; where more come up, some are taken at random.

    Examples
    --------
    >>> import numpy as np
    >>> from coupled_sampling import generate
    >>> from coupled_sampling.fitting import Recording
    >>> from coupled_sampling.testing import TableProvider, random_table
    >>> model = Recording(TableProvider(random_table(0, 4), 4), (1,), 0, 4)
    >>> made = generate(model, [[0]], length=40, method="scd-match", window=8)
    >>> pairs = model.pairs(np.concatenate([[0], made.tokens[0]]), np.random.default_rng(0))
    >>> pairs.before.shape == pairs.after.shape, bool((pairs.old != pairs.new).any(axis=1).all())
    (True, True)
    """

    batch_size = 1

    def __init__(
        self,
        provider: LogitsProvider,
        lags: Sequence[int],
        first: int,
        count: int,
        *,
        committed: bool = True,
        most_bytes: int = _MOST_BYTES,
    ) -> None:
        self.provider = provider
        check_is("provider", provider, LogitsProvider)
        check_count("first", first, 0)
        check_count("count", count, 1, int(provider.vocab_size) - first)
        self.vocab_size, self.max_length = int(provider.vocab_size), int(provider.max_length)
        self.max_window, self.prompt_chunk = max_window(provider), prompt_chunk(provider)
        self._lags, self._tokens = check_lags(lags), slice(first, first + count)
        self._context = np.zeros(self.max_length, np.int64)
        self._keeps_last, self._most = committed, max(2, most_bytes // (2 * count * np.dtype(np.float16).itemsize))
        self._forget()

    def _forget(self) -> None:
        self._last: _Pass | None = None
        self._candidates: list[_Candidate] = []
        self._share = 1.0
        """Of pairs that are noted: it is halved whenever there are too many."""
        self._generator = np.random.default_rng(0)
        self._final: dict[int, tuple[Integers, NDArray[np.float32]]] = {}

    def begin(self, row: int, request: Request) -> None:
        """Forget the sequence before."""
        self._forget()
        if isinstance(self.provider, RequestObserver):
            self.provider.begin(row, request)

    def takes(self, request: Request) -> str | None:
        """What the model cannot do. See `coupled_sampling.contracts.Selective.takes`."""
        return self.provider.takes(request) if isinstance(self.provider, Selective) else None

    def forward(self, tokens: Integers, start: Integers) -> Array:
        """See `coupled_sampling.LogitsProvider.forward`."""
        logits = self.provider.forward(tokens, start)
        begin, width = int(start[0]), tokens.shape[1]
        self._context[begin : begin + width] = tokens[0]
        own = np.asarray(to_host(logits[0, :, self._tokens]), np.float32).copy()  # the array may be used again
        now = _Pass(begin, self._context[: begin + width].copy(), own)
        if self._last is not None:
            self._compare(self._last, now)
        self._last = now
        for slot in range(width if self._keeps_last else 0):
            self._final[begin + slot + 1] = now.context, own[slot].copy()  # a view would keep the whole window
        return logits

    def _compare(self, before: _Pass, now: _Pass) -> None:
        """Note the positions that both passes have a law of, under neighbours that differ."""
        begin = max(before.start, now.start)
        for slot in range(begin, min(len(before.context), len(now.context))):
            old, new = (_neighbours(one.context, slot + 1, self._lags) for one in (before, now))
            if old != new and (self._share == 1 or self._generator.random() < self._share):
                first, second = (log_laws(one.logits[slot - one.start]).astype(np.float16) for one in (before, now))
                self._candidates.append(_Candidate(old, new, first, second, now.context[: slot + 1]))
                if len(self._candidates) > self._most:
                    self._halve()

    def _halve(self) -> None:
        """Forget every second pair or so, and note only half as many from now on: early ones and late ones have the same chance."""
        stay = self._generator.random(len(self._candidates)) < 0.5
        self._candidates = [one for one, stays in zip(self._candidates, stay, strict=True) if stays]
        self._share /= 2

    def pairs(self, tokens: Integers, generator: np.random.Generator) -> Pairs:
        """The pairs of the sequence whose prompt and generated tokens are ``tokens``; ``generator`` chooses those off its path."""
        kept = [
            one
            for one in self._candidates
            if np.array_equal(one.context, tokens[: len(one.context)]) or generator.random() < _KEPT_ASIDE
        ]
        count, size = len(self._lags), self._tokens.stop - self._tokens.start
        return Pairs(
            np.array([one.old for one in kept], np.int64).reshape(-1, count),
            np.array([one.new for one in kept], np.int64).reshape(-1, count),
            np.array([one.before for one in kept], np.float16).reshape(-1, size),
            np.array([one.after for one in kept], np.float16).reshape(-1, size),
            np.array([len(one.context) for one in kept], np.int64),
        )

    def committed(self, tokens: Integers, prompt_length: int) -> tuple[Integers, NDArray[np.float32]]:
        """The generated positions' neighbours (n, K) and log-laws (n, M), under the committed tokens; none unless kept."""
        places = [
            position
            for position in range(prompt_length, len(tokens))
            if position in self._final and np.array_equal(self._final[position][0][:position], tokens[:position])
        ]
        neighbours = [_neighbours(tokens, position, self._lags) for position in places]
        laws = np.array([self._final[position][1] for position in places], np.float32)
        size = self._tokens.stop - self._tokens.start
        return np.array(neighbours, np.int64).reshape(-1, len(self._lags)), log_laws(laws.reshape(-1, size))


def log_laws(logits: NDArray[Any]) -> NDArray[np.float32]:
    """Log-probabilities (..., M) of ``logits`` (..., M), cut off far below."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    laws = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return np.asarray(np.maximum(laws, _LEAST), np.float32)


def _neighbours(context: Integers, position: int, lags: Sequence[int]) -> list[int]:
    return [int(context[position - lag]) if position >= lag else -1 for lag in lags]


def thinned(pairs: Pairs, most_bytes: int, generator: np.random.Generator) -> Pairs:
    """As many of ``pairs`` as fit into ``most_bytes``, chosen at random."""
    size = 2 * pairs.before.shape[1] * pairs.before.itemsize
    most = max(1, most_bytes // size)
    if len(pairs.before) <= most:
        return pairs
    chosen = np.sort(generator.choice(len(pairs.before), most, replace=False))
    return Pairs(*(part[chosen] for part in pairs))

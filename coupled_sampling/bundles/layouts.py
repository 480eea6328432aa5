"""Which tokens may stand where: the order in which a model was trained to lay its tokens out.

Picture models emit more than picture tokens: a newline after every row, an end token after the last, and text tokens never.
A `Layout` is a run-length list of allowed ranges over the generated positions; `Layout.processor` turns it into a
`coupled_sampling.contracts.Processor`, which forbids everything else at every position. The target law is then the model's own
under that condition, position by position, and methods are lossless with respect to it; a range of a single token is
*forced*, costs no randomness, and any draft that guesses it is accepted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from coupled_sampling.arrays import counting, from_host, namespace
from coupled_sampling.contracts import Array, Integers
from coupled_sampling.errors import InvalidArgument
from coupled_sampling.fields import check_fields

__all__ = ["Layout", "LayoutProcessor", "Span"]


@dataclass(frozen=True)
class Span:
    """``times`` consecutive generated positions whose tokens lie in ``first``, ..., ``first + count - 1``.

    Examples
    --------
    >>> from coupled_sampling.bundles import Span
    >>> Span(first=100, count=50, times=3)  # three positions with tokens from 100 to 149
    Span(first=100, count=50, times=3)
    """

    first: int
    count: int
    times: int = 1

    def __post_init__(self) -> None:
        check_fields(self)
        for name, least in (("first", 0), ("count", 1), ("times", 1)):
            if getattr(self, name) < least:
                raise InvalidArgument(f"{name} of a span is {getattr(self, name)}, expected an integer >= {least}")


@dataclass(frozen=True)
class Layout:
    """Spans from the first generated position on. Positions after the last span are free.

    Examples
    --------
    Two rows of three picture tokens from 0 to 7, a row end (token 8) after each, then an end token, 9:

    >>> from coupled_sampling.bundles import Layout
    >>> layout = Layout.grid(2, 3, (0, 8), row_end=8, end=[9])
    >>> layout.length
    9
    >>> layout.free()
    array([0, 1, 2, 4, 5, 6])
    """

    spans: tuple[Span, ...]

    def __post_init__(self) -> None:
        check_fields(self)

    @classmethod
    def grid(
        cls, rows: int, columns: int, tokens: tuple[int, int], *, row_end: int | None = None, end: Sequence[int] = ()
    ) -> Layout:
        """A picture of ``rows`` by ``columns`` tokens from the range ``tokens`` (first, count).

        ``row_end`` is forced after every row, then the tokens of ``end``.
        """
        row = (Span(*tokens, columns),) if row_end is None else (Span(*tokens, columns), Span(row_end, 1))
        return cls(row * rows + tuple(Span(token, 1) for token in end))

    @property
    def length(self) -> int:
        """Positions that the spans cover."""
        return sum(span.times for span in self.spans)

    def free(self) -> Integers:
        """int64 indices of the generated positions that are not forced: where the picture's tokens are."""
        counts = np.repeat([span.count for span in self.spans], [span.times for span in self.spans])
        return np.flatnonzero(counts > 1).astype(np.int64)

    def processor(self, prompt_length: int) -> LayoutProcessor:
        """The processor for a sequence whose prompt has ``prompt_length`` tokens."""
        return LayoutProcessor(self.spans, prompt_length)


@dataclass(frozen=True)
class LayoutProcessor:
    """Forbids, at every generated position, the tokens outside its span. A `coupled_sampling.contracts.Processor`.

    Examples
    --------
    >>> import numpy as np
    >>> from coupled_sampling.bundles import Layout
    >>> processor = Layout.grid(1, 2, (0, 3), row_end=3).processor(prompt_length=1)
    >>> positions = np.array([1, 2, 3])  # two picture tokens, then the row end
    >>> np.isfinite(processor(np.zeros((3, 4)), np.array([0, 1, 1]), positions)).astype(int)
    array([[1, 1, 1, 0],
           [1, 1, 1, 0],
           [0, 0, 0, 1]])
    """

    spans: tuple[Span, ...]
    prompt_length: int

    def __call__(self, logits: Array, tokens: Integers, positions: Integers) -> Array:
        """Logits (n, V) with -inf for what may not stand at ``positions`` (n,)."""
        xp, vocab_size = namespace(logits), logits.shape[-1]
        ends = np.cumsum([span.times for span in self.spans])
        index = np.asarray(positions) - self.prompt_length
        # From the right, since where a span ends the next one begins.
        which = np.minimum(np.searchsorted(ends, index, side="right"), len(self.spans) - 1)
        ruled = (index >= 0) & (index < ends[-1])
        first = np.where(ruled, np.array([span.first for span in self.spans])[which], 0)
        count = np.where(ruled, np.array([span.count for span in self.spans])[which], vocab_size)
        every = counting(vocab_size, logits)
        low, end = (from_host(bound[:, None], logits) for bound in (first, first + count))
        nothing = xp.full_like(logits[:1, :1], -xp.inf)
        return xp.where((every >= low) & (every < end), logits, nothing)

"""What is known of every uniform that a decoder was asked about: the interval that it lies in.

A decoder never sees a uniform, only which of several consecutive intervals of [0, 1) holds it: a token's, between two
cumulative sums, or the one below a probability. So a uniform that was asked about is known to an interval, and the next
question about the same one splits this interval and no other. The answer is conditional on the earlier ones, as it is when
production draws the number once and compares it twice. A rule that uses a uniform a second time gets what production would
give it, and its bias shows.

Nearly all uniforms are asked about once. Then nothing is computed: the question is kept as it came, and becomes an interval when
there is a second one.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable
from typing import NamedTuple

from coupled_sampling.errors import InvalidArgument
from coupled_sampling.testing.arguments import shown
from coupled_sampling.testing.exact.enumeration import Chooser, Probability

__all__ = ["UniformMemory"]


class _Interval(NamedTuple):
    low: Probability
    high: Probability


class _Answer(NamedTuple):
    """The first question about a uniform, and its answer."""

    weights: list[Probability]
    given: int


class UniformMemory:
    """Answers questions about uniforms, each of which has an owner, in accordance with all answers before.

    Parameters
    ----------
    chooser
        Who chooses among the answers that are left.

    Examples
    --------
    A uniform that is below 1/2 is below 3/4, too:

    >>> from fractions import Fraction
    >>> from coupled_sampling.testing.exact.enumeration import enumerate_paths
    >>> from coupled_sampling.testing.exact.memory import UniformMemory
    >>> def run(chooser):
    ...     memory = UniformMemory(chooser)
    ...     ask = lambda chance: memory.choose("mine", [chance, 1 - chance], str) == 0
    ...     return ask(Fraction(1, 2)), ask(Fraction(3, 4))
    >>> {answers: str(chance) for answers, chance in enumerate_paths(run, max_paths=10).items()}
    {(True, True): '1/2', (False, True): '1/4', (False, False): '1/4'}
    """

    def __init__(self, chooser: Chooser) -> None:
        self._chooser = chooser
        self._known: dict[Hashable, _Answer | _Interval] = {}

    def choose(self, owner: Hashable, weights: list[Probability], text: Callable[[int], str]) -> int:
        """Which of the consecutive intervals, as long as ``weights`` are in proportion, holds the uniform of ``owner``.

        Raises
        ------
        InvalidArgument
            A weight is negative or no number, or all are 0.
        """
        total = _total(weights, text)
        known = self._known.get(owner)
        if known is None:
            chances = weights if total == 1 else [weight / total for weight in weights]
            index = self._chooser.choose(chances, text)
            self._known[owner] = _Answer(weights, index)
            return index
        if isinstance(known, _Answer):
            known = _intervals(known.weights)[known.given]
        pieces = [
            _Interval(max(piece.low, known.low), min(piece.high, known.high)) if weight > 0 else _Interval(0, 0)
            for piece, weight in zip(_intervals(weights), weights, strict=True)
        ]
        lengths = [piece.high - piece.low if piece.high > piece.low else 0 for piece in pieces]
        left = sum(lengths)
        index = self._chooser.choose([length / left for length in lengths], text)
        self._known[owner] = pieces[index]
        return index


def _total(weights: list[Probability], text: Callable[[int], str]) -> Probability:
    for index, weight in enumerate(weights):
        if not weight >= 0:
            raise InvalidArgument(
                f"the decoder asked with the weight {weight}, expected numbers >= 0; the answer would have meant: {text(index)}"
            )
    total = sum(weights)
    if not 0 < total < float("inf"):
        raise InvalidArgument(
            f"the decoder asked for a choice among answers with the weights {shown(weights)}, expected a sum that is positive and "
            f"finite; the first would have meant: {text(0)}"
        )
    return total


def _intervals(weights: list[Probability]) -> list[_Interval]:
    """The interval of [0, 1) that belongs to each answer; together they leave nothing out, whatever the rounding."""
    total = sum(weights)
    edges: list[Probability] = [min(edge / total, 1) for edge in itertools.accumulate(weights, initial=0)]
    last = max(index for index, weight in enumerate(weights) if weight > 0)
    edges[last + 1 :] = [1] * (len(weights) - last)
    return [_Interval(low, high) for low, high in itertools.pairwise(edges)]

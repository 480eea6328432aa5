"""Models whose laws are fractions, for proofs in which two equal laws differ by exactly nothing; see `RationalArray`."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import numpy as np

from coupled_sampling.contracts import Integers
from coupled_sampling.errors import InvalidArgument
from coupled_sampling.testing.arguments import check_count, check_sequence
from coupled_sampling.testing.exact.laws import NextLaw
from coupled_sampling.testing.exact.rational import RationalArray
from coupled_sampling.testing.worlds import TableProvider, check_table

__all__ = ["RationalProvider", "rational_table"]


class RationalProvider(TableProvider):
    """A `coupled_sampling.LogitsProvider` from a function of the whole context, whose laws are fractions.

    Parameters
    ----------
    next_law
        Law (V,) of the next token given all tokens before it: fractions or integers that sum to exactly one.
    vocab_size, batch_size, max_length
        As in the contract.

    Examples
    --------
    >>> from coupled_sampling import generate
    >>> from coupled_sampling.testing import RationalProvider, rational_table
    >>> len(generate(RationalProvider(rational_table(0, 3), 3), [[0]], length=5, method="scd-maximal", window=3).tokens[0])
    5
    """

    def forward(self, tokens: Integers, start: Integers) -> Any:
        """Log-laws (B, W, V), a `RationalArray` of logarithms.

        Raises
        ------
        InvalidArgument
            The window leaves the rows, or a law is not made of fractions that sum to one.
        """
        return self._log_laws(tokens.shape, self.write(tokens, start))

    def _log_laws(self, shape: tuple[int, ...], contexts: Mapping[tuple[int, int], tuple[int, ...]]) -> Any:
        laws = np.empty((*shape, self.vocab_size), object)
        for where, context in contexts.items():
            law = check_sequence(
                f"next_law({context})", self.next_law(context), f"{self.vocab_size} fractions that sum to 1"
            )
            if (
                len(law) != self.vocab_size
                or not all(isinstance(chance, Fraction | int) and chance >= 0 for chance in law)
                or sum(law) != 1
            ):
                raise InvalidArgument(
                    f"next_law({context}) is {law}, expected {self.vocab_size} fractions >= 0 that sum to exactly 1; "
                    "floats are none. Use fractions.Fraction, for example by rational_table"
                )
            laws[where] = [Fraction(chance) for chance in law]
        return RationalArray(laws, logarithms=True)


def rational_table(seed: int, vocab_size: int, *, zeros: float = 0.0, most: int = 6) -> NextLaw:
    """A random law in fractions for every context: a pure function of ``seed`` and the context.

    Parameters
    ----------
    seed, vocab_size
        Which table.
    zeros
        Chance that a token is forbidden in a context; at least one token never is.
    most
        Weights are integers from 1 to ``most`` before they are normalised.

    Examples
    --------
    >>> from coupled_sampling.testing import rational_table
    >>> sum(rational_table(0, 3)((0, 1)))
    Fraction(1, 1)
    """
    check_table(seed, vocab_size, zeros)
    check_count("most", most)
    cache: dict[tuple[int, ...], list[Fraction]] = {}

    def next_law(context: tuple[int, ...]) -> list[Fraction]:
        if context not in cache:
            generator = np.random.default_rng([seed, *(token + 1 for token in context)])
            weights = generator.integers(1, most + 1, vocab_size)
            forbidden = generator.random(vocab_size) < zeros
            forbidden[generator.integers(vocab_size)] = False
            weights[forbidden] = 0
            cache[context] = [Fraction(int(weight), int(weights.sum())) for weight in weights]
        return cache[context]

    return next_law

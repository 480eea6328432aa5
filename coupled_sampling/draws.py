"""One law, one draw: the two elementary ways to turn noise into a token. Pure functions; the noise is an argument.

- `categorical`, inverse CDF: one uniform chooses by where it falls among the cumulative sums.
- `race`, the Gumbel-max trick: argmax(log law + g) with one standard Gumbel variable g per token (Gumbel 1954; Maddison, Tarlow
  and Minka 2014), without the logarithm. exp(g) is one over an exponential variable, and the token whose clock rings first,
  argmax(law * exp(g)), wins with the probability that its law gives it.

Both are exact at the edge: a token of zero weight is never returned, whatever the rounding.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.arrays import block_sums, counting, cumulative, first_true, floats, namespace, pick
from coupled_sampling.sampling import Array, Integers
from coupled_sampling.selection import argmax_of_product, best_of_product
from coupled_sampling.slots import Sites

__all__ = ["Draw", "Noise", "Purpose", "RanksShared", "categorical", "race", "ranked"]


class Purpose(IntEnum):
    """What a uniform is for: at most one draw per position, round and purpose.

    Examples
    --------
    >>> from coupled_sampling.draws import Purpose
    >>> [purpose.name for purpose in Purpose]
    ['ACCEPT', 'RESIDUAL', 'REDRAFT', 'PROPOSE']
    """

    ACCEPT = 0
    RESIDUAL = 1
    REDRAFT = 2
    PROPOSE = 3


@runtime_checkable
class Noise(Protocol):
    """The only three things a decoder may ask of randomness.

    ``where`` (bool (B, n), of any array library) marks the sites whose answer will be used; answers elsewhere mean nothing.

    Examples
    --------
    Any object with these four methods is a source of noise. One that accepts every draft shows what a perfect drafter would
    save:

    >>> import numpy as np
    >>> from coupled_sampling import CounterNoise, generate
    >>> from coupled_sampling.testing import TableProvider, random_table
    >>> class AlwaysAccept(CounterNoise):
    ...     def bernoulli(self, probability, sites, purpose, *, where, leading=False):
    ...         return np.ones_like(probability, bool)
    >>> model = TableProvider(random_table(0, 4), 4)
    >>> generate(model, [[0]], length=16, method="sjd", window=4, noise=AlwaysAccept()).traces[0].nfe
    4
    """

    def bernoulli(
        self, probability: Array, sites: Sites, purpose: Purpose, *, where: Array, leading: bool = False
    ) -> Array:
        """True with ``probability`` (B, n), independently: bool (B, n).

        With ``leading``, answers to the right of a row's first False are not used either.
        """
        ...

    def categorical(self, weights: Array, sites: Sites, purpose: Purpose, *, where: Array) -> Array:
        """A token of probability proportional to ``weights`` (B, n, V), independently: int64 (B, n)."""
        ...

    def shared(self, law: Array, sites: Sites, *, where: Array) -> Array:
        """Each position's persistent draw under ``law`` (B, n, V): int64 (B, n).

        Asked again for the same position, in any round and under any law, it uses the same noise.
        """
        ...

    def forget(self, seed: int, sequence: int) -> None:
        """The sequence has ended: nothing more will be asked for it."""
        ...


@runtime_checkable
class BesideSites(Protocol):
    """Noise whose numbers lie beside the sites, instead of being looked up by what a site says."""

    def column(self, site: int) -> Noise:
        """The noise of one site of every row."""
        ...


@runtime_checkable
class RanksShared(Protocol):
    """Noise that can say which tokens came close in a position's persistent draw.

    Examples
    --------
    >>> from coupled_sampling import CounterNoise
    >>> from coupled_sampling.draws import RanksShared
    >>> isinstance(CounterNoise(), RanksShared)
    True
    """

    def ranked(self, law: Array, sites: Sites, count: int, *, where: Array) -> tuple[Array, Array]:
        """The ``count`` best tokens int64 (B, n, count) of each race under ``law`` (B, n, V), best first, and their scores.

        The first is what `Noise.shared` draws; a score is the logarithm of the product, -inf for a token that cannot be.
        """
        ...


class Draw:
    """Who answers in place of a given number: what decoders pass to couplings where a user passes uniforms or Gumbel noise.

    Each method is asked for the sites ``where`` (bool, None for all) only; what it answers elsewhere means nothing.

    Examples
    --------
    One that always draws the most probable token:

    >>> import numpy as np
    >>> from coupled_sampling.couplings import independent
    >>> from coupled_sampling.draws import Draw
    >>> class Greedy(Draw):
    ...     def categorical(self, weights, where):
    ...         return weights.argmax(axis=-1)
    >>> independent(np.array([[0.2, 0.8], [0.9, 0.1]]), Greedy())
    array([1, 0])
    """

    def bernoulli(self, probability: Array, where: Array, *, leading: bool) -> Array:
        """True with ``probability`` (...): bool (...). With ``leading``, up to the first False of the last axis."""
        raise NotImplementedError

    def categorical(self, weights: Array, where: Array | None) -> Array:
        """A token of probability proportional to ``weights`` (..., V): int64 (...)."""
        raise NotImplementedError

    def shared(self, law: Array, where: Array | None) -> Array:
        """The persistent draw of each position under ``law`` (..., V): int64 (...)."""
        raise NotImplementedError

    def at(self, rows: Integers, slots: Integers) -> Draw:
        """The same for single sites: K rows of one, ``(rows[k], slots[k])`` each."""
        raise NotImplementedError


class Asked(Draw):
    """The noise of a step's sites, for one purpose."""

    def __init__(self, noise: Noise, sites: Sites, purpose: Purpose = Purpose.ACCEPT) -> None:
        self._noise, self._sites, self._purpose = noise, sites, purpose

    def bernoulli(self, probability: Array, where: Array, *, leading: bool) -> Array:
        return self._noise.bernoulli(probability, self._sites, self._purpose, where=where, leading=leading)

    def categorical(self, weights: Array, where: Array | None) -> Array:
        return self._noise.categorical(weights, self._sites, self._purpose, where=self._all_if_none(where))

    def shared(self, law: Array, where: Array | None) -> Array:
        return self._noise.shared(law, self._sites, where=self._all_if_none(where))

    def at(self, rows: Integers, slots: Integers) -> Asked:
        return Asked(self._noise, self._sites.at(rows, slots), self._purpose)

    def _all_if_none(self, where: Array | None) -> Array:
        return self._sites.valid if where is None else where


def _first_past(weights: Array, threshold: Array) -> Array:
    """First index of positive weight whose cumulative sum exceeds ``threshold``, else the last of positive weight."""
    xp = namespace(weights)
    positive = weights > 0
    past = (cumulative(weights) > threshold[..., None]) & positive
    # Rounding may leave the threshold at the very end: then it is the last token that can be drawn at all.
    last = weights.shape[-1] - 1 - first_true(xp.flip(positive, axis=-1))
    return xp.where(xp.any(past, axis=-1), first_true(past), last)


def _block_size(vocab_size: int) -> int:
    """A power of two near the square root of ``vocab_size``: one pass of sums, then one short search."""
    return 1 << ((vocab_size.bit_length() + 1) // 2)


def categorical(weights: Array, uniform: Array) -> Array:
    """Draw a token with probability proportional to its weight, by inverse CDF.

    Parameters
    ----------
    weights
        (..., V), not negative, not all zero; they need not sum to one.
    uniform
        (...) in [0, 1).

    Returns
    -------
    Array
        int64 (...) tokens.

    Notes
    -----
    Large vocabularies are searched in two levels, block sums first, so that the cost is one vectorised pass.

    Sums are made in the widest type that the library has: in float32 a token at an edge may be another one than in float64, with
    a probability of some 1e-6 per draw.

    Numpy has a writing of its own (the one such place outside `coupled_sampling.arrays` and the laws and noise of the loop): the
    same search in a third of the calls, since for few rows calls are what it costs.

    Examples
    --------
    >>> import numpy as np
    >>> from coupled_sampling.draws import categorical
    >>> weights = np.array([[1.0, 0.0, 3.0]] * 4)
    >>> categorical(weights, np.array([0.0, 0.24, 0.25, 0.99])).tolist()
    [0, 0, 2, 2]
    """
    vocab_size = weights.shape[-1]
    block = _block_size(vocab_size)
    if isinstance(weights, np.ndarray):
        flat = _categorical_of_numpy(weights.reshape(-1, vocab_size), np.reshape(uniform, -1), block)
        return flat.reshape(weights.shape[:-1])
    xp = namespace(weights)
    float_type = floats(weights)
    if vocab_size <= 4 * block:
        wide = xp.astype(weights, float_type)
        return _first_past(wide, xp.astype(uniform, float_type) * xp.sum(wide, axis=-1))
    sums = xp.astype(block_sums(weights, block), float_type)
    threshold = xp.astype(uniform, float_type) * xp.sum(sums, axis=-1)
    chosen = _first_past(sums, threshold)
    threshold = threshold - (pick(cumulative(sums), chosen) - pick(sums, chosen))
    index = chosen[..., None] * block + counting(block, weights)
    within = index < vocab_size
    inside = xp.take_along_axis(weights, xp.where(within, index, xp.full_like(index, vocab_size - 1)), axis=-1)
    inside = xp.astype(inside, float_type) * xp.astype(within, float_type)
    return chosen * block + _first_past(inside, threshold)


def _categorical_of_numpy(weights: NDArray[Any], uniform: NDArray[Any], block: int) -> NDArray[np.int64]:
    """The same search for numpy weights (K, V), in few calls: for few rows they are what it costs."""
    vocab_size = weights.shape[-1]
    if vocab_size <= 4 * block:
        sums = np.cumsum(weights, axis=-1, dtype=np.float64)
        return _first_past_of_numpy(sums, uniform * sums[:, -1], weights)
    outer = block_sums(weights, block)
    sums = np.cumsum(outer, axis=-1, dtype=np.float64)
    threshold = uniform * sums[:, -1]
    chosen = _first_past_of_numpy(sums, threshold, outer)
    row = np.arange(len(weights))
    before = sums[row, chosen] - outer[row, chosen]
    threshold = np.maximum(threshold - before, 0)  # rounding may leave less than nothing
    inside = _blocks(weights, chosen, block)
    return chosen * block + _first_past_of_numpy(np.cumsum(inside, axis=-1, dtype=np.float64), threshold, inside)


def _first_past_of_numpy(sums: NDArray[Any], threshold: NDArray[Any], weights: NDArray[Any]) -> NDArray[np.int64]:
    """`_first_past` given the ``sums`` (K, m), from the left to the right: only a positive weight can pass a threshold."""
    index = np.asarray(np.argmax(sums > threshold[:, None], axis=-1), np.int64)
    beyond = sums[:, -1] <= threshold
    if beyond.any():
        last = weights.shape[-1] - 1 - np.argmax(weights[:, ::-1] > 0, axis=-1)
        index = np.where(beyond, last, index)
    return index


def _blocks(weights: NDArray[Any], chosen: NDArray[np.int64], block: int) -> NDArray[Any]:
    """Block ``chosen`` (K,) of each row of ``weights`` (K, V): (K, block), with zeros past the end of a row."""
    vocab_size, row = weights.shape[-1], np.arange(len(weights))
    inside: NDArray[Any]
    if vocab_size % block == 0:
        inside = weights.reshape(len(weights), -1, block)[row, chosen]
        return inside
    index = chosen[:, None] * block + np.arange(block)
    inside = weights[row[:, None], np.minimum(index, vocab_size - 1)]
    inside[index >= vocab_size] = 0
    return inside


def race(law: Array, weights: Array) -> Array:
    """argmax(law * weights): a draw from ``law`` with ``weights = exp(gumbel)`` made beforehand.

    Parameters
    ----------
    law
        (..., V) laws, or weights proportional to them.
    weights
        (..., V) one over independent standard exponential variables; positive and finite.

    Returns
    -------
    Array
        int64 (...) tokens.

    Notes
    -----
    Products are made in the wider of both types. In float32 two may come out as equal, or in the other order, where they are within
    1e-7 of each other; the first of equal ones wins.

    Examples
    --------
    >>> import numpy as np
    >>> from coupled_sampling.draws import race
    >>> weights = np.array([0.4, 2.0, 1.1])
    >>> int(race(np.array([0.7, 0.1, 0.2]), weights)), int(race(np.array([0.2, 0.6, 0.2]), weights))
    (0, 1)
    """
    return argmax_of_product(law, weights)


def ranked(law: Array, weights: Array, count: int) -> tuple[Array, Array]:
    """The best tokens of a `race`, best first, and their scores.

    Parameters
    ----------
    law, weights
        (..., V), as for `race`.
    count
        How many, at most V.

    Returns
    -------
    tuple
        Tokens int64 (..., count), the first of which `race` draws, and the logarithms (..., count) of their products; -inf for a
        token of zero probability.

    Notes
    -----
    The standard has no selection, so that other libraries than numpy and torch sort.

    Examples
    --------
    >>> import numpy as np
    >>> from coupled_sampling.draws import ranked
    >>> tokens, scores = ranked(np.array([0.7, 0.1, 0.2]), np.array([0.4, 2.0, 1.1]), count=2)
    >>> tokens.tolist(), np.exp(scores).round(2).tolist()
    ([0, 2], [0.28, 0.22])
    """
    tokens, products = best_of_product(law, weights, count)
    xp = namespace(products)
    floor = xp.full_like(products, 1.0)
    return tokens, xp.where(
        products > 0, xp.log(xp.where(products > 0, products, floor)), xp.full_like(products, -xp.inf)
    )

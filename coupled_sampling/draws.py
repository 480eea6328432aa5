"""One law, one draw: the two elementary ways to turn noise into a token. Pure functions; the noise is an argument.

- `categorical`, inverse CDF: one uniform chooses by where it falls among the cumulative sums.
- `gumbel_max`: argmax(log law + g) with one standard Gumbel variable per token (Gumbel 1954; Maddison, Tarlow and Minka
  2014). `race` is the same choice without the logarithm: exp(g) is one over an exponential variable, and the token
  whose clock rings first, argmax(law * exp(g)), wins with probability its law gives it.

Both are exact at the edge: a token of zero weight is never returned, whatever the rounding.
"""

from __future__ import annotations

from coupled_sampling.arrays import argmax_of_product, first_true, namespace, pick
from coupled_sampling.contracts import Array

__all__ = ["categorical", "gumbel_max", "race"]


def _first_past(weights: Array, threshold: Array) -> Array:
    """First index of positive weight whose cumulative sum exceeds ``threshold``, else the last of positive weight."""
    xp = namespace(weights)
    positive = weights > 0
    past = (xp.cumulative_sum(weights, axis=-1) > threshold[..., None]) & positive
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
    """
    xp = namespace(weights)
    vocab_size = weights.shape[-1]
    block = _block_size(vocab_size)
    if vocab_size <= 4 * block:
        wide = xp.astype(weights, xp.float64)
        return _first_past(wide, xp.astype(uniform, xp.float64) * xp.sum(wide, axis=-1))
    whole = vocab_size // block
    sums = xp.sum(xp.reshape(weights[..., : whole * block], (*weights.shape[:-1], whole, block)), axis=-1)
    if whole * block < vocab_size:
        sums = xp.concat([sums, xp.sum(weights[..., whole * block :], axis=-1)[..., None]], axis=-1)
    sums = xp.astype(sums, xp.float64)
    threshold = xp.astype(uniform, xp.float64) * xp.sum(sums, axis=-1)
    chosen = _first_past(sums, threshold)
    threshold = threshold - (pick(xp.cumulative_sum(sums, axis=-1), chosen) - pick(sums, chosen))
    index = chosen[..., None] * block + xp.arange(block, dtype=chosen.dtype, device=weights.device)
    inside = xp.take_along_axis(weights, xp.where(index < vocab_size, index, vocab_size - 1), axis=-1)
    inside = xp.where(index < vocab_size, xp.astype(inside, xp.float64), 0.0)
    return chosen * block + _first_past(inside, threshold)


def race(law: Array, weights: Array) -> Array:
    """argmax(law * weights): the draw of `gumbel_max` with ``weights = exp(gumbel)`` made beforehand.

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
    """
    return argmax_of_product(law, weights)


def gumbel_max(law: Array, gumbel: Array) -> Array:
    """argmax(log law + gumbel): a draw from ``law``.

    Parameters
    ----------
    law
        (..., V) laws, or weights proportional to them.
    gumbel
        (..., V) independent standard Gumbel variables.

    Returns
    -------
    Array
        int64 (...) tokens.
    """
    return race(law, namespace(law).exp(gumbel))

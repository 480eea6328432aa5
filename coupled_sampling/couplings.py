"""Couplings of two consecutive draws: each has its own law, and they agree often. Pure functions.

With TV the total variation distance between the two laws:

============ ======================== ==========================================================================
coupling     P(agree)                 randomness
============ ======================== ==========================================================================
independent  sum of p*q               one fresh uniform
maximal      1 - TV (the most there is) two fresh uniforms, and the earlier draw with its law
gumbel       >= (1 - TV) / (1 + TV)   one Gumbel variable per token, the same for every draw of the position
============ ======================== ==========================================================================

The maximal coupling is the acceptance test itself. The Gumbel coupling needs no memory of the earlier law and agrees
across non-consecutive rounds too (bound: Daliri, Musco and Musco, arXiv 2408.07978).
"""

from __future__ import annotations

from coupled_sampling.acceptance import check_laws, rejection
from coupled_sampling.contracts import Array
from coupled_sampling.draws import categorical, gumbel_max

__all__ = ["gumbel", "independent", "maximal"]


def independent(target_law: Array, uniform: Array) -> Array:
    """A fresh draw from ``target_law`` (..., V) by inverse CDF of ``uniform`` (...) in [0, 1): int64 (...)."""
    check_laws(target_law=target_law)
    return categorical(target_law, uniform)


def maximal(draft: Array, draft_law: Array, target_law: Array, accept_uniform: Array, residual_uniform: Array) -> Array:
    """A draw from ``target_law`` that equals ``draft`` as often as any coupling can.

    Parameters
    ----------
    draft
        int64 (...), drawn from ``draft_law``.
    draft_law, target_law
        (..., V) laws.
    accept_uniform, residual_uniform
        (...) in [0, 1), fresh.

    Returns
    -------
    Array
        int64 (...) tokens of law ``target_law``.
    """
    return rejection(draft, draft_law, target_law, accept_uniform, residual_uniform).tokens


def gumbel(target_law: Array, gumbel_noise: Array) -> Array:
    """A draw from ``target_law`` (..., V) under the position's own ``gumbel_noise`` (..., V): int64 (...).

    Two laws given the same noise get coupled draws.
    """
    check_laws(target_law=target_law)
    return gumbel_max(target_law, gumbel_noise)

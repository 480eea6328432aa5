"""Couplings: how a draft is kept, corrected or redrawn. Pure functions; randomness is an argument.

Two consecutive draws of one position are *coupled* if each has its own law and they agree often. With TV the total variation
distance between the two laws:

============ ========================== ========================================================================
coupling     P(agree)                   randomness
============ ========================== ========================================================================
independent  sum of p*q                 one fresh uniform
maximal      1 - TV (the most there is) two fresh uniforms, and the earlier draw with its law
gumbel       >= (1 - TV) / (1 + TV)     one Gumbel variable per token, the same for every draw of the position
============ ========================== ========================================================================

**Rejection is the maximal coupling** (Leviathan et al. 2211.17192, Chen et al. 2302.01318): keep draft x, drawn from q, with
probability min(1, p(x)/q(x)), else draw from the residual max(p - q, 0), normalised. The outcome has law p exactly, since
min(p, q) + max(p - q, 0) = p. **Match** is the Gumbel coupling: draw the target's own token with noise that belongs to the
position, and accept the draft if it is that token (bound: Daliri, Musco and Musco, arXiv 2408.07978).

`coupled_sampling.step_rule.decide` makes a decoding step of them, for every method of `coupled_sampling.methods`.

All of it is traceable: no branch on the value of an array, no shape from one. Values are checked where arrays are concrete.
Libraries without float64 or int64 compute in the widest types they have, so that a comparison may fall otherwise within their
rounding. Nothing is promised if a draft was not drawn from the law that is passed with it.
"""

from __future__ import annotations

from typing import NamedTuple

from coupled_sampling.arrays import (
    first_true,
    floats,
    from_host,
    is_concrete,
    namespace,
    pick,
    positive_difference,
    slots_of,
)
from coupled_sampling.contracts import Array
from coupled_sampling.draws import Draw, categorical, race
from coupled_sampling.law_forms import DraftLawArray, LawsInPieces, check_laws

__all__ = [
    "Decision",
    "DraftLawArray",
    "LawsInPieces",
    "acceptance_probability",
    "gumbel",
    "independent",
    "match",
    "maximal",
    "residual",
]


class Decision(NamedTuple):
    """What became of each draft.

    Examples
    --------
    A guess, token 0, that the target law would draw with probability 0.2, under three uniforms:

    >>> import numpy as np
    >>> guess, target = np.array([[1.0, 0.0]] * 3), np.array([[0.2, 0.8]] * 3)
    >>> decision = maximal(np.array([0, 0, 0]), guess, target, np.array([0.1, 0.5, 0.9]), np.array([0.5, 0.5, 0.5]))
    >>> decision.accepted.tolist(), decision.tokens.tolist()
    ([True, False, False], [0, 1, 1])
    """

    accepted: Array
    """bool (...) whether the draft stays."""
    tokens: Array
    """int64 (...) the draft where it stays, the corrected token where not."""


def acceptance_probability(draft: Array, draft_law: Array | DraftLawArray | LawsInPieces, target_law: Array) -> Array:
    """min(1, target(draft) / draft_law(draft)): the probability with which rejection keeps a draft.

    Parameters
    ----------
    draft
        int64 (...) drafts.
    draft_law
        (..., V) laws; or a `DraftLawArray` or `LawsInPieces` of these drafts.
    target_law
        (..., V) laws.

    Returns
    -------
    Array
        float64 (...); exactly 1 where the two laws agree on the draft, exactly 0 where the target gives it no mass.

    Examples
    --------
    >>> import numpy as np
    >>> acceptance_probability(np.array([0, 1]), np.array([[0.5, 0.5]] * 2), np.array([[0.2, 0.8]] * 2))
    array([0.4, 1. ])
    """
    target = pick(target_law, draft)
    has_form = isinstance(draft_law, DraftLawArray | LawsInPieces)
    proposed = draft_law.of_drafts(target_law) if has_form else pick(from_host(draft_law, target_law), draft)
    xp, wide = namespace(target), floats(target)
    target, proposed = xp.astype(target, wide), xp.astype(proposed, wide)
    # p / p is exactly 1 wherever the target gives as much as the draft law, and nothing is divided by 0.
    larger = xp.maximum(proposed, target)
    return target / xp.where(larger > 0, larger, xp.ones_like(larger))


def residual(target_law: Array, draft_law: Array) -> Array:
    """max(target - draft_law, 0): weights (..., V) of the corrected token, not normalised.

    Where nothing is left (the target exceeds the draft law nowhere, which only rounding can bring about for a draft
    that was refused) the target law itself is returned. A draft law of zeros leaves the target law.

    Examples
    --------
    >>> import numpy as np
    >>> residual(np.array([0.25, 0.75]), np.array([0.5, 0.5]))
    array([0.  , 0.25])
    """
    xp = namespace(target_law)
    left = positive_difference(target_law, draft_law)
    empty = ~(xp.max(left, axis=-1, keepdims=True) > 0)
    # In nearly every step nothing is empty, and to look is cheaper than to copy all laws; a traced array cannot be looked at.
    if is_concrete(empty) and not bool(xp.any(empty)):
        return left
    return xp.where(empty, target_law, left)


def independent(target_law: Array, uniform: Array | Draw, *, where: Array | None = None) -> Array:
    """A fresh draw from ``target_law`` by inverse CDF.

    Parameters
    ----------
    target_law
        (..., V) laws.
    uniform
        (...) in [0, 1), or a `coupled_sampling.draws.Draw`.
    where
        bool (...): the only sites whose token is wanted; for a `Draw`.

    Returns
    -------
    Array
        int64 (...) tokens.

    Raises
    ------
    InvalidArgument
        A row is not a law.

    Examples
    --------
    >>> import numpy as np
    >>> independent(np.array([[0.2, 0.8], [0.9, 0.1]]), np.array([0.5, 0.5]))
    array([1, 0])
    """
    if isinstance(uniform, Draw):
        return uniform.categorical(target_law, where)
    check_laws(target_law=target_law)
    return categorical(target_law, uniform)


def maximal(
    draft: Array,
    draft_law: Array | DraftLawArray | LawsInPieces,
    target_law: Array,
    accept_uniform: Array | Draw,
    residual_uniform: Array | Draw,
    *,
    where: Array | None = None,
    leading: bool = False,
) -> Decision:
    """Rejection: a draw from ``target_law`` that equals ``draft`` as often as any coupling can.

    Parameters
    ----------
    draft
        int64 (...), drawn from ``draft_law``.
    draft_law
        (..., V) laws; or a `DraftLawArray` or `LawsInPieces` of these drafts.
    target_law
        (..., V) laws.
    accept_uniform, residual_uniform
        (...) in [0, 1), independent of each other and of whatever noise the draft was drawn with; or each a
        `coupled_sampling.draws.Draw`.
    where
        bool (...): the sites that are to be decided; default all.
    leading
        Whether only the sites up to the first refusal along the last axis are wanted. What follows holds the drafts.

    Returns
    -------
    Decision
        ``tokens`` have law ``target_law``.

    Raises
    ------
    InvalidArgument
        A row is not a law.

    Examples
    --------
    >>> import numpy as np
    >>> q, p = np.array([[0.5, 0.5]] * 2), np.array([[0.2, 0.8]] * 2)
    >>> maximal(np.array([0, 1]), q, p, np.array([0.7, 0.7]), np.array([0.1, 0.1]))
    Decision(accepted=array([False,  True]), tokens=array([1, 1]))
    """
    has_form = isinstance(draft_law, DraftLawArray | LawsInPieces)
    if not isinstance(accept_uniform, Draw):
        check_laws(target_law=target_law, **({} if has_form else {"draft_law": draft_law}))
    every = draft == draft if where is None else where  # true everywhere, in whatever type a library calls boolean
    asked = every & from_host(draft_law.drafted, target_law) if has_form else every
    probability = acceptance_probability(draft, draft_law, target_law)
    if isinstance(accept_uniform, Draw):
        accepted = asked & accept_uniform.bernoulli(probability, asked, leading=leading)
    else:
        accepted = asked & (accept_uniform < probability)
    refused = every & ~accepted
    if leading:
        refused = refused & (slots_of(refused) == first_true(refused)[..., None])
    corrected = _corrected(draft_law, target_law, refused, residual_uniform, leading)
    return Decision(accepted, namespace(target_law).where(refused, corrected, draft))


def _corrected(
    laws: Array | DraftLawArray | LawsInPieces, target_law: Array, where: Array, uniform: Array | Draw, leading: bool
) -> Array:
    """Draws from the residuals at the sites ``where``; from the target law where there is no draft."""
    if isinstance(laws, LawsInPieces):
        return laws.corrected(target_law, where, uniform, leading=leading)
    if isinstance(laws, DraftLawArray):
        weights = residual(target_law, from_host(laws.law, target_law))
        drafted = from_host(laws.drafted, target_law)[..., None]
        weights = namespace(target_law).where(drafted, weights, target_law)
    else:
        weights = residual(target_law, laws)
    return uniform.categorical(weights, where) if isinstance(uniform, Draw) else categorical(weights, uniform)


def gumbel(target_law: Array, gumbel_noise: Array | Draw, *, where: Array | None = None) -> Array:
    """A draw from ``target_law`` under the position's own noise; two laws given the same noise get coupled draws.

    Parameters
    ----------
    target_law
        (..., V) laws.
    gumbel_noise
        (..., V) independent standard Gumbel variables, or a `coupled_sampling.draws.Draw`.
    where
        bool (...): the only sites whose token is wanted; for a `Draw`.

    Returns
    -------
    Array
        int64 (...) tokens.

    Raises
    ------
    InvalidArgument
        A row is not a law.

    Examples
    --------
    >>> import numpy as np
    >>> noise = np.array([0.3, -0.2, 1.1])  # of one position
    >>> [int(gumbel(law, noise)) for law in (np.array([0.6, 0.2, 0.2]), np.array([0.2, 0.2, 0.6]))]
    [0, 2]
    """
    if isinstance(gumbel_noise, Draw):
        return gumbel_noise.shared(target_law, where)
    check_laws(target_law=target_law)
    return race(target_law, namespace(target_law).exp(gumbel_noise))


def match(draft: Array, target_law: Array, gumbel_noise: Array | Draw, *, where: Array | None = None) -> Decision:
    """Accept each draft that equals the target's own token under the position's noise.

    Parameters
    ----------
    draft
        int64 (...), from any source.
    target_law, gumbel_noise, where
        As for `gumbel`.

    Returns
    -------
    Decision
        ``tokens`` are the target's own, whatever the drafts.

    Examples
    --------
    >>> import numpy as np
    >>> match(np.array([1, 2]), np.array([[0.6, 0.2, 0.2]] * 2), np.array([[0.0, 2.0, 0.0], [0.0, 0.0, 0.0]]))
    Decision(accepted=array([ True, False]), tokens=array([1, 0]))
    """
    own = gumbel(target_law, gumbel_noise, where=where)
    return Decision(own == draft, own)

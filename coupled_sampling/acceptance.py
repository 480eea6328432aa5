"""Which drafts may stay: the two acceptance rules. Pure functions; uniforms are arguments.

**Rejection** (Leviathan et al. 2211.17192, Chen et al. 2302.01318): keep draft x, drawn from the draft law q, with
probability min(1, p(x)/q(x)); otherwise draw from the residual max(p - q, 0), normalised. The result has law p exactly:
min(p, q) + max(p - q, 0) = p.

**Match**: the target's own token is drawn with noise that belongs to the position; the draft is kept if it is that
token. The result is the target's own token whatever the draft was.

What they do not promise: anything, if the draft was not drawn from the law that is passed with it.
"""

from __future__ import annotations

from typing import NamedTuple

from coupled_sampling.arrays import first_true, namespace, pick, positive_difference
from coupled_sampling.contracts import Array
from coupled_sampling.draws import categorical, race
from coupled_sampling.errors import InvalidArgument

__all__ = ["Decision", "acceptance_probability", "acceptance_ratio", "leading_run", "match", "rejection", "residual"]


class Decision(NamedTuple):
    """What became of each draft."""

    accepted: Array
    """bool (...) whether the draft stays."""
    tokens: Array
    """int64 (...) the draft where it stays, the corrected token where not."""


def acceptance_probability(draft: Array, draft_law: Array, target_law: Array) -> Array:
    """min(1, target(draft) / draft_law(draft)): the probability with which rejection keeps a draft.

    Parameters
    ----------
    draft
        int64 (...) drafts.
    draft_law, target_law
        (..., V) laws.

    Returns
    -------
    Array
        float64 (...); exactly 1 where the two laws agree on the draft, exactly 0 where the target gives it no mass.
    """
    return acceptance_ratio(pick(target_law, draft), pick(draft_law, draft))


def acceptance_ratio(target: Array, proposed: Array) -> Array:
    """min(1, target / proposed) in float64 for what the two laws give one token (...); 0 where the target gives nothing."""
    xp = namespace(target)
    target, proposed = xp.astype(target, xp.float64), xp.astype(proposed, xp.float64)
    larger = xp.where(proposed > target, proposed, 1.0)
    ratio = xp.where(proposed > target, target / larger, 1.0)
    return xp.where(target > 0, ratio, 0.0)


def residual(target_law: Array, draft_law: Array) -> Array:
    """max(target - draft_law, 0): weights (..., V) of the corrected token, not normalised.

    Where nothing is left (the target exceeds the draft law nowhere, which only rounding can bring about for a draft
    that was refused) the target law itself is returned. A draft law of zeros leaves the target law.
    """
    xp = namespace(target_law)
    left = positive_difference(target_law, draft_law)
    empty = ~(xp.max(left, axis=-1) > 0)
    if not bool(xp.any(empty)):
        return left
    return xp.where(empty[..., None], target_law, left)


def leading_run(accepted: Array) -> Array:
    """Number (...) of accepted drafts before the first refusal, along the last axis of bool (..., n)."""
    xp = namespace(accepted)
    return xp.sum(xp.cumulative_prod(xp.astype(accepted, xp.int64), axis=-1), axis=-1)


def check_laws(**laws: Array) -> None:
    """Refuse arrays (..., V) that are not laws: negative, not finite, or of total mass other than one (to 1e-3)."""
    for name, law in laws.items():
        xp = namespace(law)
        total = xp.sum(law, axis=-1)
        bad = ~(xp.abs(total - 1) < 1e-3) | (xp.min(law, axis=-1) < 0)
        if bool(xp.any(bad)):
            row = int(first_true(xp.reshape(bad, (-1,))))
            raise InvalidArgument(
                f"{name}: row {row} (of the leading axes, flattened) is not a law: its entries sum to "
                f"{float(xp.reshape(total, (-1,))[row])} and the smallest is {float(xp.min(law))}; expected entries >= 0 "
                "that sum to 1. Pass probabilities, not logits"
            )


def rejection(
    draft: Array, draft_law: Array, target_law: Array, accept_uniform: Array, residual_uniform: Array
) -> Decision:
    """Accept each draft with probability min(1, target/draft_law), correct it from the residual otherwise.

    Parameters
    ----------
    draft
        int64 (...), drawn from ``draft_law``.
    draft_law, target_law
        (..., V) laws.
    accept_uniform, residual_uniform
        (...) in [0, 1): independent of each other and of whatever noise the draft was drawn with.

    Returns
    -------
    Decision
        ``tokens`` have law ``target_law``.

    Raises
    ------
    InvalidArgument
        A row is not a law.
    """
    check_laws(draft_law=draft_law, target_law=target_law)
    xp = namespace(target_law)
    accepted = accept_uniform < acceptance_probability(draft, draft_law, target_law)
    corrected = categorical(residual(target_law, draft_law), residual_uniform)
    return Decision(accepted, xp.where(accepted, draft, corrected))


def match(draft: Array, target_law: Array, weights: Array) -> Decision:
    """Accept each draft that equals the target's own token under the position's noise.

    Parameters
    ----------
    draft
        int64 (...), from any source.
    target_law
        (..., V) laws.
    weights
        (..., V) exp of the position's Gumbel noise, see `coupled_sampling.draws.race`.

    Returns
    -------
    Decision
        ``tokens`` are the target's own, whatever the drafts.
    """
    own = race(target_law, weights)
    return Decision(own == draft, own)

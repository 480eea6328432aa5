"""How a step is told the laws that its drafts were drawn from: as one array, or in pieces that are looked up.

`DraftLawArray` is plain data and can be traced: what code that is jitted passes. `LawsInPieces` is what the decoding loop
passes: most of a step needs one number per draft, or the law at the few sites that were refused, and to put the pieces
together would cost more than the decision.
"""

from __future__ import annotations

from typing import NamedTuple

from coupled_sampling.arrays import first_true, from_host, is_concrete, namespace, pick, point_masses
from coupled_sampling.contracts import Array
from coupled_sampling.draws import Draw
from coupled_sampling.errors import InvalidArgument

__all__ = ["DraftLawArray", "LawsInPieces"]


class DraftLawArray(NamedTuple):
    """Drafts and their laws as arrays of one library. A named tuple, so that JAX, torch and MLX know it as a tree of arrays.

    Examples
    --------
    Three sites: a draft that was drawn, one that was guessed, and none.

    >>> import numpy as np
    >>> from coupled_sampling.couplings import DraftLawArray
    >>> drawn = DraftLawArray(
    ...     draft=np.array([[1, 0, 0]]), drafted=np.array([[True, True, False]]), law=np.array([[[0.5, 0.5], [0.9, 0.1], [0, 0]]])
    ... )
    >>> drawn.guessed(np.array([[False, True, False]])).law[0].tolist()
    [[0.5, 0.5], [1.0, 0.0], [0.0, 0.0]]
    """

    draft: Array
    """int64 (B, n) the drafts; any token where there is none."""
    drafted: Array
    """bool (B, n) where there is a draft."""
    law: Array | None
    """(B, n, V) their laws; where there is no draft, anything. None will do for ``match``, which asks for no law."""

    def of_drafts(self, like: Array) -> Array:
        """What each draft's law gave it: (B, n), in the library of ``like``; where there is no draft, anything."""
        return pick(from_host(self.law, like), from_host(self.draft, like))

    def guessed(self, where: Array) -> DraftLawArray:
        """The same with point masses at the sites ``where``, bool (B, n): drafts that were guessed, not drawn."""
        xp, law = namespace(self.law), self.law
        certain = point_masses(self.draft, self.law.shape[-1], law)  # type: ignore[union-attr]
        return self._replace(law=xp.where(where[..., None], certain, law))

    def column(self, site: int) -> DraftLawArray:
        """The same of one site: (B, 1) and (B, 1, V)."""
        own = slice(site, site + 1)
        law = None if self.law is None else self.law[:, own, :]
        return DraftLawArray(self.draft[:, own], self.drafted[:, own], law)


class LawsInPieces:
    """Draft laws that are looked up instead of being held in one array: a base class for what may stand in their place.

    Examples
    --------
    Drafts that are all guesses: what a draft's law gave it is 1, and what is left of the target law is all but the draft.

    >>> import numpy as np
    >>> from coupled_sampling.couplings import LawsInPieces, acceptance_probability
    >>> class Guesses(LawsInPieces):
    ...     def __init__(self, draft):
    ...         self.draft, self.drafted = draft, np.ones(draft.shape, bool)
    ...     def of_drafts(self, like):
    ...         return np.ones(self.draft.shape, like.dtype)
    ...     def corrected(self, target_law, where, uniform, *, leading):
    ...         others = np.arange(target_law.shape[-1]) != self.draft[..., None]
    ...         return uniform.categorical(target_law * others, where)
    >>> acceptance_probability(np.array([[1]]), Guesses(np.array([[1]])), np.array([[[0.7, 0.3]]]))
    array([[0.3]])
    """

    draft: Array
    """int64 (B, n) the drafts, anything where there is none."""
    drafted: Array
    """bool (B, n) where there is a draft; the law of a site without one is zero, so that its residual is the target law."""

    def of_drafts(self, like: Array) -> Array:
        """What each draft's law gave it: (B, n), in the library and type of ``like``; 0 where there is no draft."""
        raise NotImplementedError

    def corrected(self, target_law: Array, where: Array, uniform: Array | Draw, *, leading: bool) -> Array:
        """A draw from the residual at the sites ``where`` (B, n): int64 (B, n); with ``leading`` there is one a row."""
        raise NotImplementedError

    def column(self, site: int) -> LawsInPieces:
        """The same of one site, (B, 1); asked for where laws are corrected (`coupled_sampling.corrections`)."""
        raise NotImplementedError


def check_laws(**laws: Array) -> None:
    """Refuse arrays (..., V) that are not laws: negative, not finite, or of total mass other than one (to 1e-3)."""
    for name, law in laws.items():
        if not is_concrete(law):
            continue
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

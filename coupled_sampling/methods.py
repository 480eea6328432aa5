"""The decoding methods: each is a pair (how later positions are redrafted, how drafts are accepted).

==================== ============ =========== ==========================================================
name                 redraft      acceptance  source
==================== ============ =========== ==========================================================
``ar``               none         none        one token per pass, drawn with the position's shared noise
``sjd``              independent  rejection   Speculative Jacobi Decoding, arXiv 2410.01699
``scd-maximal``      maximal      rejection   Speculative Coupled Decoding, arXiv 2510.24211
``scd-gumbel``       gumbel       rejection   Speculative Coupled Decoding, arXiv 2510.24211
``scd-match``        gumbel       match       tokens equal to ``ar``'s at the same seed
``speculative``      dropped      rejection   speculative decoding, arXiv 2211.17192 and 2302.01318
``speculative-match`` dropped     match       the same with shared noise; tokens equal to ``ar``'s
==================== ============ =========== ==========================================================

All are lossless: the law of the tokens is that of ``ar``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from coupled_sampling.errors import InvalidArgument

__all__ = ["METHODS", "Method", "find_method"]


@dataclass(frozen=True)
class Method:
    """A decoding method.

    Parameters
    ----------
    name
        What users call it.
    redraft
        How positions after the first refusal get their next draft; "dropped" forgets them, so that a drafting rule
        proposes afresh; "none" never drafts.
    acceptance
        "rejection" keeps the law, "match" keeps even the tokens of ``ar`` at the same seed.

    Examples
    --------
    >>> from coupled_sampling import METHODS
    >>> METHODS["scd-match"]
    Method(name='scd-match', redraft='gumbel', acceptance='match')
    >>> METHODS["speculative"].drafts, METHODS["speculative"].recycles
    (True, False)
    """

    name: str
    redraft: Literal["none", "independent", "maximal", "gumbel", "dropped"]
    acceptance: Literal["none", "rejection", "match"]

    @property
    def drafts(self) -> bool:
        """Whether windows contain drafts at all."""
        return self.redraft != "none"

    @property
    def recycles(self) -> bool:
        """Whether drafts after a refusal are redrafted and kept."""
        return self.redraft not in ("none", "dropped")

    @property
    def refuses_branches(self) -> str | None:
        """Why windows of it have no branches, and what to use instead; None where they may have some."""
        if self.acceptance == "match":
            return None
        if not self.drafts:
            return f"{self.name} has no drafts; use scd-match"
        return (
            f'{self.name} accepts drafts by rejection, and branches are for the acceptance "match"; use scd-match or '
            "speculative-match"
        )


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("ar", "none", "none"),
        Method("sjd", "independent", "rejection"),
        Method("scd-maximal", "maximal", "rejection"),
        Method("scd-gumbel", "gumbel", "rejection"),
        Method("scd-match", "gumbel", "match"),
        Method("speculative", "dropped", "rejection"),
        Method("speculative-match", "dropped", "match"),
    )
}
"""All methods by name."""


def find_method(name: str | Method) -> Method:
    """The method called ``name``; a `Method` is returned as it is.

    Raises
    ------
    InvalidArgument
        No method has that name.

    Examples
    --------
    >>> from coupled_sampling.methods import find_method
    >>> find_method("sjd").redraft
    'independent'
    >>> find_method("scd")
    Traceback (most recent call last):
    coupled_sampling.errors.InvalidArgument: method is 'scd', expected one of ar, sjd, scd-maximal, ...
    """
    if isinstance(name, Method):
        return name
    if not isinstance(name, str) or name not in METHODS:
        raise InvalidArgument(f"method is {name!r}, expected one of {', '.join(METHODS)}")
    return METHODS[name]

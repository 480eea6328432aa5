"""What a drafting rule proposes, before anything is done with it: strangers write rules, and a wrong guess must not become output.

A proposal that is none belongs to the row that it is for, and ends its request; a rule that does not answer at all stops the step.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from coupled_sampling.arrays import from_host, is_real, pick, to_host
from coupled_sampling.draft_contracts import DraftContext, Drafting, Proposal
from coupled_sampling.draws import Noise
from coupled_sampling.errors import InvalidArgument, ProviderError
from coupled_sampling.law_forms import check_laws

__all__ = ["propose"]


def propose(
    rule: Drafting, contexts: Sequence[DraftContext], noise: Noise, *, vocab_size: int, shared: bool
) -> tuple[list[Proposal], dict[int, InvalidArgument]]:
    """The proposals of ``rule``, and by row what is wrong with those that are none: they are not to be used.

    Raises
    ------
    ProviderError
        It gave no proposal for each context.
    """
    proposals = rule.propose(contexts, noise, vocab_size=vocab_size, shared=shared)
    if not isinstance(proposals, Sequence) or len(proposals) != len(contexts):
        raise ProviderError(
            f"drafting {rule!r} returned {type(proposals).__name__}, expected a list of {len(contexts)} proposals, one a context"
        )
    checked, wrong = [], {}
    for context, proposal in zip(contexts, proposals, strict=True):
        try:
            checked.append(_checked(rule, context, proposal, vocab_size))
        except InvalidArgument as error:
            checked.append(Proposal(np.zeros(context.wanted, np.int64)))
            wrong[context.row] = error
    return checked, wrong


def _checked(rule: Drafting, context: DraftContext, proposal: Proposal, vocab_size: int) -> Proposal:
    """``proposal`` with its tokens as int64, refused if it is none for ``context``."""
    name, wanted = f"drafting {rule!r}", context.wanted
    try:
        tokens, law = np.asarray(proposal.tokens), proposal.law
    except (AttributeError, ValueError, TypeError) as error:
        raise InvalidArgument(f"{name} returned {proposal!r} in its list, expected a Proposal of tokens") from error
    if tokens.shape != (wanted,) or not np.issubdtype(tokens.dtype, np.integer):
        raise InvalidArgument(
            f"{name} proposed {tokens.dtype} {tokens.shape} for {wanted} guesses, expected as many integers"
        )
    outside = (tokens < 0) | (tokens >= vocab_size)
    if outside.any():
        raise InvalidArgument(f"{name} proposed token {tokens[outside.argmax()]}, expected tokens in [0, {vocab_size})")
    if law is not None:
        if tuple(getattr(law, "shape", ())) != (wanted, vocab_size):
            raise InvalidArgument(
                f"{name} proposed laws of shape {getattr(law, 'shape', None)}, expected {(wanted, vocab_size)}: (guesses, tokens)"
            )
        if not is_real(law):
            raise InvalidArgument(f"{name} proposed laws of {law.dtype} numbers, expected floating ones")
        check_laws(**{f"{name}: the law of its guesses": law})
        given = to_host(pick(law, from_host(tokens.astype(np.int64), law)))
        if not (given > 0).all():
            raise InvalidArgument(
                f"{name} proposed token {tokens[int((given > 0).argmin())]}, which its law cannot draw"
            )
    return Proposal(tokens.astype(np.int64), law)

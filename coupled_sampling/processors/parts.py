"""What the processors share: a slot's place in its sequence, counts of the tokens before it, and forbidding tokens.

A processor is called with all slots of a window at once, and each slot has a context of its own: the tokens to its left, drafts
included. So everything here takes the positions of the slots, in any order, and answers for each. Counting is done on the host,
where the tokens are; logits stay where they are.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.arguments import check_count, checked_tokens
from coupled_sampling.arrays import filled, from_host, namespace
from coupled_sampling.errors import InvalidArgument
from coupled_sampling.sampling import Array, Integers, Processor

__all__ = [
    "Rule",
    "by_index",
    "change_seen",
    "counts_before",
    "forbid",
    "token_mask",
    "tokens_of",
]


class Rule(ABC):
    """A `coupled_sampling.contracts.SequenceProcessor` that asks of the prompt only where it ends, and keeps no state."""

    def begin(self, prompt: Integers) -> Processor:
        """The processor of a sequence that begins with ``prompt`` int64 (L,)."""
        return partial(self._processed, len(prompt))

    @abstractmethod
    def _processed(self, end: int, logits: Array, tokens: Integers, positions: Integers) -> Array:
        """As `coupled_sampling.contracts.Processor`, of a sequence whose prompt ends before position ``end``."""


def counts_before(tokens: Integers, first: int, positions: Integers) -> tuple[Integers, Integers]:
    """How often tokens stand in ``tokens[first:position]``, for every one of ``positions`` (n,).

    The slots' contexts are beginnings of each other. So the shortest is counted, and the others go on from there.

    Returns
    -------
    tuple
        The tokens (k,) that stand in any of the contexts, and the counts int64 (n, k).

    Examples
    --------
    >>> import numpy as np
    >>> from coupled_sampling.processors.parts import counts_before
    >>> counts_before(np.array([7, 0, 2, 0]), first=1, positions=np.array([4, 2]))
    (array([0, 2]), array([[2, 1],
           [1, 0]]))
    """
    order = np.argsort(positions, kind="stable")
    ends = np.maximum(positions[order], first)
    seen, places = np.unique(np.asarray(tokens[first : ends[-1]]), return_inverse=True)
    counts = np.zeros((len(positions), len(seen)), np.int64)
    # A token counts from the first slot on that lies to its right.
    slots = np.searchsorted(ends, np.arange(first, ends[-1]), side="right")
    np.add.at(counts, (slots, places), 1)
    counts[order] = np.cumsum(counts, axis=0)
    return seen, counts


def change_seen(logits: Array, seen: Integers, counts: Integers, change: Callable[[Array, Array], Array]) -> Array:
    """A copy of ``logits`` (n, V) in which those of the tokens ``seen`` (k,) are changed.

    Parameters
    ----------
    change
        ``change(logits, counts) -> logits`` of any last axis; it leaves logits alone where counts are 0. Numpy's are changed for
        the tokens seen alone, those of other libraries all at once: the array API has no way to write to some columns.
    """
    if isinstance(logits, np.ndarray):
        changed = logits.copy()
        changed[:, seen] = change(logits[:, seen], counts.astype(logits.dtype))
        return changed
    spread = np.zeros(logits.shape, np.float32)
    spread[:, seen] = counts
    return change(logits, from_host(spread, logits, logits.dtype))


def forbid(logits: Array, mask: NDArray[np.bool_]) -> Array:
    """A copy of ``logits`` (n, V) with -inf where ``mask``, which broadcasts to (n, V), is true."""
    return namespace(logits).where(from_host(mask, logits), filled((), -np.inf, logits), logits)


def token_mask(name: str, tokens: Any, vocab_size: int) -> NDArray[np.bool_]:
    """Bool (V,), true for ``tokens``.

    Raises
    ------
    InvalidArgument
        One of them is outside the vocabulary; it names ``name``.
    """
    mask = np.zeros(vocab_size, bool)
    mask[checked_tokens(name, tokens, vocab_size, least=0)] = True
    return mask


def tokens_of(name: str, tokens: object, *, least: int = 1) -> tuple[int, ...]:
    """``tokens`` as a tuple; their vocabulary is not known yet.

    Raises
    ------
    InvalidArgument
        They are no flat sequence of at least ``least`` integers >= 0; it names ``name``.
    """
    if isinstance(tokens, set | frozenset):
        tokens = sorted(tokens)
    found: tuple[int, ...] = tuple(checked_tokens(name, tokens, least=least).tolist())
    if min(found, default=0) < 0:
        raise InvalidArgument(f"{name} has token {min(found)}, expected tokens >= 0")
    return found


def by_index(name: str, given: Mapping[Any, Any]) -> dict[int, Any]:
    """``given`` with indices of generated tokens as its keys, checked.

    Raises
    ------
    InvalidArgument
        A key is no integer >= 0; it names ``name``.
    """
    return {check_count(f"an index of {name}", index, 0): value for index, value in given.items()}

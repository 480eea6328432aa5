"""What a step tells the loop of what it decided: log-probabilities, laws and candidates, of rows that ask for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.arrays import at_least_float32, from_host, namespace, pick, to_host
from coupled_sampling.contracts import Array, Candidates, Decisions, Integers, Window
from coupled_sampling.draws import Noise, RanksShared, ranked
from coupled_sampling.step_rule import StepDecision

__all__ = ["Made", "candidates_of", "committed_laws", "committed_logprobs", "made_by"]


class Made(NamedTuple):
    """What a step committed of a row, by a law.

    Examples
    --------
    Two sites, the second of which was decided by the slot of a branch:

    >>> import numpy as np
    >>> made = Made(slice(0, 2), np.array([0, 3]))
    >>> made.of(np.arange(8).reshape(1, 4, 2), row=0).tolist()
    [[0, 1], [6, 7]]
    """

    sites: slice
    slots: Integers | None = None
    """The slots that decided them; None where each is the site's own."""

    def of(self, values: Array, row: int) -> Array:
        """``values`` (B, n, V) of the slots, by row: (count, V)."""
        if self.slots is None:
            return values[row, self.sites, ...]
        return namespace(values).take(values[row, ...], from_host(self.slots, values), axis=0)


def made_by(decided: StepDecision, tokens: Integers, first: Integers) -> list[Made]:
    """What was committed of each row: ``tokens`` (B, n) from its site ``first`` (B,) on."""
    last = to_host(decided.last)
    # Where a row has failed, its last committed site has no law.
    ends = (last + (np.take_along_axis(tokens, last[:, None], axis=1)[:, 0] >= 0)).tolist()
    slots = None if decided.slots is None else to_host(decided.slots)
    return [
        Made(slice(begin, end), None if slots is None else slots[b, begin:end])
        for b, (begin, end) in enumerate(zip(first.tolist(), ends, strict=True))
    ]


def committed_logprobs(
    window: Window, laws: Array, logits: Array, tokens: Integers, committed: Sequence[Made]
) -> tuple[dict[int, NDArray[np.float64]], dict[int, NDArray[np.float64]]]:
    """What rows that ask for it are told of their tokens, ``committed`` by a law at these sites of each row."""
    target: dict[int, NDArray[np.float64]] = {}
    own: dict[int, NDArray[np.float64]] = {}
    for b, info in enumerate(window.rows):
        if info is None or not window.draws[b] or not (info.logprobs or info.model_logprobs):
            continue
        chosen = from_host(tokens[b, committed[b].sites], logits)
        if info.logprobs:
            target[b] = _log_of(committed[b].of(laws, b), chosen)
        if info.model_logprobs:
            own[b] = _log_softmax_of(committed[b].of(logits, b), chosen)
    return target, own


def committed_laws(window: Window, laws: Array, committed: Sequence[Made]) -> dict[int, Array]:
    """The target laws of rows that ask for them, at the sites of each row that are ``committed``."""
    given = {}
    for b, info in enumerate(window.rows):
        if info is not None and info.laws and window.draws[b]:
            own = committed[b].of(laws, b)
            # Numpy's memory is used again two rounds later.
            given[b] = own.copy() if isinstance(own, np.ndarray) else own
    return given


def candidates_of(
    window: Window, path: Decisions, decided: StepDecision, tokens: Integers, noise: Noise
) -> dict[int, Candidates]:
    """What else the redrafts of each row might have been, as many as ``window`` asks for.

    Where ``noise`` cannot say which tokens came close in a race, they are those of the largest probability.
    """
    if not window.candidates:
        return {}
    site, laws = np.arange(tokens.shape[1]), decided.laws
    redrafts = path.sites.valid & (site > to_host(decided.last)[:, None]) & (tokens >= 0)
    count = min(window.candidates, int(laws.shape[-1]))
    if isinstance(noise, RanksShared):
        best, scores = noise.ranked(laws, path.sites, count, where=redrafts)
    else:
        best, scores = ranked(laws, namespace(laws).ones_like(laws), count)
    best, scores = to_host(best), to_host(scores)
    found = {}
    for b in np.flatnonzero(redrafts.any(axis=1)).tolist():
        own = redrafts[b]
        found[b] = Candidates.led(tokens[b, own], best[b, own], scores[b, own])
    return found


def _log_of(laws: Array, tokens: Array) -> NDArray[np.float64]:
    """log of the probability that each of the laws (n, V) gives its token (n,): float64 (n,), on the host."""
    with np.errstate(divide="ignore"):
        return np.log(to_host(pick(laws, tokens)).astype(np.float64))


def _log_softmax_of(logits: Array, tokens: Array) -> NDArray[np.float64]:
    """The same for the softmax of ``logits`` (n, V)."""
    xp = namespace(logits)
    logits = at_least_float32(logits)
    highest = xp.max(logits, axis=-1, keepdims=True)
    total = xp.log(xp.sum(xp.exp(logits - highest), axis=-1))
    return to_host(pick(logits, tokens) - highest[..., 0] - total).astype(np.float64)

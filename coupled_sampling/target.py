"""From logits to the target law: the one place where a law is warped.

Order, each on the outcome of the one before: processors, temperature, top-k, top-p, min-p, softmax. It is the order of
Hugging Face transformers' samplers, with ties kept: a law must not depend on how a sort breaks them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.arrays import (
    at_least_float32,
    cumulative,
    difference,
    drop_below,
    exp_in_place,
    floats,
    from_host,
    integers,
    is_concrete,
    namespace,
    normalised,
    point_masses,
    to_host,
)
from coupled_sampling.contracts import Array, Integers, Outcome, RowInfo, Sampling, Window
from coupled_sampling.errors import InvalidLogits
from coupled_sampling.processor_runs import Context, processed
from coupled_sampling.selection import largest

__all__ = ["TargetLaws", "close_rows", "target_law", "target_laws", "unusable_law"]


def _nucleus(weights: Array, logits: Array, top_k: int | None, top_p: float) -> Array:
    """``weights`` (..., V), their own array, 0 outside the smallest set of largest ones with ``top_p`` of the mass; ties stay."""
    xp = namespace(weights)
    candidates = weights if top_k is None else largest(weights, top_k)
    ordered = xp.flip(xp.sort(candidates, axis=-1), axis=-1)
    mass = cumulative(xp.astype(ordered, floats(weights)))
    wanted = top_p * xp.sum(xp.astype(weights, floats(weights)), axis=-1, keepdims=True)
    slack = 8 * float(xp.finfo(weights.dtype).eps)
    short = xp.sum(xp.astype(mass < wanted * (1 - slack), integers(weights)), axis=-1, keepdims=True)
    last = ordered.shape[-1] - 1
    index = xp.where(short < last, short, xp.full_like(short, last))
    least = xp.take_along_axis(ordered, index, axis=-1)
    tied = xp.sum(xp.astype(weights >= least, integers(weights)), axis=-1, keepdims=True) > index + 1
    if is_concrete(tied) and not bool(xp.any(tied)):
        return drop_below(weights, weights, least)
    # Weights may tie by rounding alone, all of them at a temperature of millions. Logits tell them apart.
    ordered = xp.flip(xp.sort(logits, axis=-1), axis=-1)
    return drop_below(weights, logits, xp.take_along_axis(ordered, index, axis=-1))


def _warp(weights: Array, logits: Array, sampling: Sampling) -> Array:
    """Zero the weights (..., V) that top-k, top-p and min-p exclude; ``weights`` is exp(logits/T - max)."""
    vocab_size = weights.shape[-1]
    top_k = sampling.top_k if sampling.top_k is not None and sampling.top_k < vocab_size else None
    xp = namespace(weights)
    if top_k is not None:
        weights = drop_below(weights, logits, xp.min(largest(logits, top_k), axis=-1, keepdims=True))
    if sampling.top_p < 1:
        weights = _nucleus(weights, logits, top_k, sampling.top_p)
    if sampling.min_p > 0:
        if sampling.min_p == 1:  # as in `_nucleus`
            return drop_below(weights, logits, xp.max(logits, axis=-1, keepdims=True))
        least = xp.full_like(weights[..., :1], sampling.min_p)  # the largest weight is exactly 1
        weights = drop_below(weights, weights, least)
    return weights


def target_law(
    logits: Array, sampling: Sampling, highest: Array | None = None, memory: NDArray[np.floating] | None = None
) -> Array:
    """Laws (..., V) of the next token given its ``logits`` (..., V); processors are not applied here.

    Parameters
    ----------
    logits
        (..., V) floating; -inf forbids a token. Half precision is widened to float32.
    sampling
        Temperature, top-k, top-p, min-p.
    highest
        (..., 1) each row's largest logit, if known.
    memory
        Where to put the laws, if logits are numpy of this type and shape.

    Returns
    -------
    Array
        ``memory``, or a new array, float32 or float64. Where a row of logits is not usable (NaN, +inf, all -inf) the outcome is not
        meaningful: `target_laws` tells such rows by name.

    Notes
    -----
    It can be traced. The mass that top-p keeps is summed in the widest type that the library has; in float32 a token within
    rounding of the threshold may be kept or not.

    Examples
    --------
    >>> import numpy as np
    >>> from coupled_sampling import Sampling
    >>> from coupled_sampling.target import target_law
    >>> logits = np.log(np.array([0.5, 0.25, 0.15, 0.1]))
    >>> target_law(logits, Sampling()).round(3).tolist()
    [0.5, 0.25, 0.15, 0.1]
    >>> target_law(logits, Sampling(top_p=0.7)).round(3).tolist()
    [0.667, 0.333, 0.0, 0.0]
    >>> target_law(logits, Sampling(temperature=0)).tolist()
    [1.0, 0.0, 0.0, 0.0]
    """
    xp = namespace(logits)
    logits = at_least_float32(logits)
    if sampling.temperature == 0:
        return point_masses(xp.argmax(logits, axis=-1), logits.shape[-1], logits)
    highest = xp.max(logits, axis=-1, keepdims=True) if highest is None else xp.astype(highest, logits.dtype)
    highest = xp.where(xp.isfinite(highest), highest, xp.zeros_like(highest))
    weights = difference(logits, highest, memory)
    if sampling.temperature != 1:
        weights /= sampling.temperature
    weights = _warp(exp_in_place(weights), logits, sampling)
    return normalised(weights)


def unusable_law(row: int, position: int, largest_logit: float) -> InvalidLogits:
    """The error about logits of which no law can be made; the largest of them says why.

    Examples
    --------
    >>> from coupled_sampling.target import unusable_law
    >>> str(unusable_law(row=0, position=8, largest_logit=float("inf")))[:41]
    'logits of row 0 for position 8 hold +inf;'
    """
    found = "NaN" if np.isnan(largest_logit) else "+inf" if largest_logit > 0 else "nothing but -inf"
    return InvalidLogits(
        f"logits of row {row} for position {position} hold {found}; expected finite numbers, with -inf only for "
        "forbidden tokens. Check the model's numerics (half-precision overflow?) or the processors"
    )


class TargetLaws(NamedTuple):
    """Target laws (B, n, V), and which of them are laws.

    Examples
    --------
    The second slot allows nothing. That matters only if its row gets that far:

    >>> import numpy as np
    >>> from coupled_sampling.target import TargetLaws
    >>> made = TargetLaws(np.full((1, 3, 2), 0.5), np.array([[True, False, True]]), {(0, 1): ValueError("nothing is allowed")})
    >>> made.failures(last=np.array([0])), made.failures(last=np.array([1]))
    ({}, {0: ValueError('nothing is allowed')})
    """

    laws: Array
    """(B, n, V) float32 or float64. Where a wanted slot has no law it is some harmless one."""
    usable: Array
    """bool (B, n); where a slot is not wanted, anything. Numpy, but while a library traces."""
    faults: Mapping[tuple[int, int], Exception] | None
    """Why a wanted slot has no law, by row and slot; None where all have one, and while a library traces."""

    def failures(self, last: Integers) -> dict[int, Exception]:
        """Why rows failed that were decided at their slots ``last`` (B,), where these have no law."""
        return {b: error for (b, slot), error in (self.faults or {}).items() if last[b] == slot}


def close_rows(window: Window, tokens: Integers, committed: Integers, largest_logit: NDArray[Any]) -> Outcome:
    """The outcome of a step that decided ``window`` elsewhere, in a graph or kernels, and also returned each slot's largest logit.

    Parameters
    ----------
    window
        What was decided.
    tokens, committed
        int64 (B, W) and (B,), as the step counted them: at a slot without a law it may have accepted or refused.
    largest_logit
        (B, W), NaN where a slot has any.

    Returns
    -------
    Outcome
        A row's drafts end at the first deciding slot of which no law can be made; a row that was decided there has failed.

    Examples
    --------
    Of three deciding slots the second has no law, and the row did not get that far:

    >>> import numpy as np
    >>> from coupled_sampling import Sampling, Window
    >>> from coupled_sampling.contracts import RowInfo
    >>> from coupled_sampling.target import close_rows
    >>> one, row = np.array([1]), RowInfo(0, 0, Sampling())
    >>> window = Window(
    ...     np.array([[5, 3, 3]]), 9 * one, one, 2 * one, 0 * one, one == 1, one, [row], [one], [None]
    ... )
    >>> close_rows(window, np.array([[4, 1, 0]]), np.array([1]), np.array([[0.5, -np.inf, 1.0]])).tokens
    array([[ 4, -1, -1]])
    """
    decides = window.decides()
    bad = decides & ~np.isfinite(largest_logit)
    if not bad.any():
        return Outcome(tokens, committed)
    closed = decides & (np.cumsum(bad, axis=1) > 0)
    tokens = np.where(closed, -1, tokens)
    before = (decides & ~closed).sum(axis=1)  # slots that have a law, from the first deciding one on
    failing = bad.any(axis=1) & (committed > before)
    committed = np.where(failing, before + 1, committed)
    faults = _faults_of(largest_logit, window.positions, bad)
    first = bad.argmax(axis=1)
    return Outcome(tokens, committed, {b: faults[b, int(first[b])] for b in np.flatnonzero(failing).tolist()})


def _faults_of(
    largest_logit: NDArray[Any], positions: Integers, bad: NDArray[np.bool_], first_row: int = 0
) -> dict[tuple[int, int], Exception]:
    """What to say of each ``bad`` slot (B, n)."""
    return {
        (b, j): unusable_law(first_row + b, int(positions[b, j]), float(largest_logit[b, j]))
        for b, j in np.argwhere(bad).tolist()
    }


def target_laws(
    logits: Array,
    rows: Sequence[RowInfo | None],
    contexts: Sequence[Context],
    positions: Integers,
    wanted: NDArray[np.bool_],
    memory: NDArray[np.floating] | None = None,
    first_row: int = 0,
) -> TargetLaws:
    """Laws of a batch whose rows have settings of their own.

    Parameters
    ----------
    logits
        (B, n, V) floating.
    rows, contexts
        B entries each: settings (None for an idle row) and tokens from position 0 on, see `Context`.
    positions
        int64 (B, n): the position each slot predicts.
    wanted
        bool (B, n): slots whose law will be used; the others hold anything.
    memory
        As for `target_law`.
    first_row
        The batch row of row 0, for messages.

    Returns
    -------
    TargetLaws
        The laws, and where there is none: a wanted slot has NaN, +inf or nothing but -inf after its processors, or one raised.

    Notes
    -----
    It can be traced, but for rows with processors under ``torch.compile``: these are told tokens and positions as numpy arrays,
    and torch traces numpy, too.

    Examples
    --------
    Two rows of one slot, one of them greedy:

    >>> import numpy as np
    >>> from coupled_sampling import Sampling
    >>> from coupled_sampling.contracts import RowInfo
    >>> from coupled_sampling.target import target_laws
    >>> logits = np.log(np.array([[[0.7, 0.3]], [[0.7, 0.3]]]))
    >>> rows = [RowInfo(seed=0, sequence=0, sampling=Sampling()), RowInfo(seed=0, sequence=1, sampling=Sampling(temperature=0))]
    >>> contexts = [np.array([5]), np.array([5])]
    >>> made = target_laws(logits, rows, contexts, positions=np.array([[1], [1]]), wanted=np.ones((2, 1), bool))
    >>> made.laws.round(2).tolist()
    [[[0.7, 0.3]], [[1.0, 0.0]]]
    """
    xp = namespace(logits)
    raised: list[tuple[int, int, int, Exception]] = []
    if any(info is not None and info.sampling.processors for info in rows):
        logits = at_least_float32(logits)
        after = []
        for b, info in enumerate(rows):
            own = logits[b, ...]
            if info is not None:
                own, faulty = processed(own, info.sampling, contexts[b], positions[b], wanted[b])
                raised += [(b, *fault) for fault in faulty]
            after.append(own)
        logits = xp.stack(after, axis=0)
    highest = xp.max(logits, axis=-1, keepdims=True)
    usable = xp.isfinite(highest[..., 0])
    faults: dict[tuple[int, int], Exception] = {}
    if is_concrete(highest):
        found = to_host(highest[..., 0])
        usable = np.isfinite(found)
        bad = wanted & ~usable
        for b, first, end, _ in raised:
            usable[b, first:end] = False
        if usable.all():
            return TargetLaws(_laws_of_groups(logits, rows, highest, memory), usable, None)
        faults = _faults_of(found, positions, bad, first_row)
        for b, first, end, error in raised:
            faults |= {(b, j): error for j in range(first, end)}
        harmless = from_host(usable, logits)[..., None]
    else:
        harmless = usable[..., None]
    # Finite numbers, so that no NaN spreads from a slot that nothing may come of, and nothing overflows there.
    logits = xp.where(harmless, logits, xp.zeros_like(logits))
    highest = xp.where(harmless, highest, xp.zeros_like(highest))
    return TargetLaws(_laws_of_groups(logits, rows, highest, memory), usable, faults or None)


def _laws_of_groups(
    logits: Array, rows: Sequence[RowInfo | None], highest: Array, memory: NDArray[np.floating] | None
) -> Array:
    """Laws (B, n, V) of ``logits``, rows of equal settings together."""
    xp = namespace(logits)
    groups: dict[Sampling, list[int]] = {}
    for b, info in enumerate(rows):
        if info is not None:
            # Processors are applied already, and need not be hashable.
            own = info.sampling
            groups.setdefault(replace(own, processors=()) if own.processors else own, []).append(b)
    if len(groups) <= 1:
        return target_law(logits, next(iter(groups)) if groups else Sampling(), highest, memory)
    laws: dict[int, Array] = {}
    for sampling, members in groups.items():
        index = from_host(np.array(members), logits)
        together = target_law(xp.take(logits, index, axis=0), sampling, xp.take(highest, index, axis=0))
        laws.update({b: together[i, ...] for i, b in enumerate(members)})
    blank = xp.zeros_like(next(iter(laws.values())))
    return xp.stack([laws.get(b, blank) for b in range(len(rows))], axis=0)

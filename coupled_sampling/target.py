"""From logits to the target law: the one place where a law is warped.

Order, each on the outcome of the one before: processors, temperature, top-k, top-p, min-p, softmax. It is the order of
Hugging Face transformers' samplers, with ties kept: a law must not depend on how a sort breaks them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

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
    largest,
    namespace,
    normalised,
    point_masses,
    to_host,
)
from coupled_sampling.contracts import Array, Integers, RowInfo, Sampling
from coupled_sampling.errors import InvalidArgument, InvalidLogits

__all__ = ["refuse_unusable", "target_law", "target_laws"]


def _nucleus_threshold(weights: Array, top_k: int | None, top_p: float) -> Array:
    """Smallest weight (..., 1) in the smallest set of largest ``weights`` (..., V) that holds ``top_p`` of the mass."""
    xp = namespace(weights)
    candidates = weights if top_k is None else largest(weights, top_k)
    ordered = xp.flip(xp.sort(candidates, axis=-1), axis=-1)
    mass = cumulative(xp.astype(ordered, floats(weights)))
    wanted = top_p * xp.sum(xp.astype(weights, floats(weights)), axis=-1, keepdims=True)
    slack = 8 * float(xp.finfo(weights.dtype).eps)
    short = xp.sum(xp.astype(mass < wanted * (1 - slack), integers(weights)), axis=-1, keepdims=True)
    last = ordered.shape[-1] - 1
    return xp.take_along_axis(ordered, xp.where(short < last, short, xp.full_like(short, last)), axis=-1)


def _warp(weights: Array, logits: Array, sampling: Sampling) -> Array:
    """Zero the weights (..., V) that top-k, top-p and min-p exclude; ``weights`` is exp(logits/T - max)."""
    vocab_size = weights.shape[-1]
    top_k = sampling.top_k if sampling.top_k is not None and sampling.top_k < vocab_size else None
    xp = namespace(weights)
    if top_k is not None:
        weights = drop_below(weights, logits, xp.min(largest(logits, top_k), axis=-1, keepdims=True))
    if sampling.top_p < 1:
        weights = drop_below(weights, weights, _nucleus_threshold(weights, top_k, sampling.top_p))
    if sampling.min_p > 0:
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
        meaningful: `target_laws` refuses such rows by name.

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


def refuse_unusable(largest_logit: Array, positions: Integers, wanted: NDArray[np.bool_]) -> None:
    """Raise for the first wanted row, given by its ``largest_logit`` (B, n), from which no law can be made.

    One reduction sees all three faults: a maximum of NaN, +inf or -inf. While a library traces there is nothing to see.

    Raises
    ------
    InvalidLogits
        It names the row and the position.

    Examples
    --------
    >>> import numpy as np
    >>> from coupled_sampling.target import refuse_unusable
    >>> largest, positions = np.array([[1.5, np.nan]]), np.array([[7, 8]])
    >>> refuse_unusable(largest, positions, wanted=np.array([[True, False]]))
    >>> refuse_unusable(largest, positions, wanted=np.array([[True, True]]))
    Traceback (most recent call last):
    coupled_sampling.errors.InvalidLogits: logits of row 0 for position 8 hold NaN; expected finite numbers, ...
    """
    if not is_concrete(largest_logit):
        return
    highest = to_host(namespace(largest_logit).astype(largest_logit, namespace(largest_logit).float32))
    bad = wanted & ~np.isfinite(highest)
    if not bad.any():
        return
    row, slot = (int(i) for i in np.argwhere(bad)[0])
    found = "NaN" if np.isnan(highest[row, slot]) else "+inf" if highest[row, slot] > 0 else "nothing but -inf"
    raise InvalidLogits(
        f"logits of row {row} for position {positions[row, slot]} hold {found}; expected finite numbers, with -inf only for "
        "forbidden tokens. Check the model's numerics (half-precision overflow?) or the processors"
    )


def _processed(logits: Array, info: RowInfo, tokens: Integers, positions: Integers, wanted: NDArray[np.bool_]) -> Array:
    """One row's ``logits`` (n, V) after its processors, which see only the wanted slots."""
    xp = namespace(logits)
    slots = np.flatnonzero(wanted)
    if not slots.size or not info.sampling.processors:
        return logits
    first, end = int(slots[0]), int(slots[-1]) + 1
    middle = logits[first:end, ...]
    for processor in info.sampling.processors:
        changed = processor(middle, tokens, positions[first:end])
        if tuple(changed.shape) != tuple(middle.shape):
            raise InvalidArgument(
                f"processor {processor!r} returned shape {tuple(changed.shape)}, expected {tuple(middle.shape)}: "
                "(slots, vocabulary), as it was given"
            )
        middle = changed
    return xp.concat([logits[:first, ...], middle, logits[end:, ...]], axis=0)


def target_laws(
    logits: Array,
    rows: Sequence[RowInfo | None],
    contexts: Sequence[Integers],
    positions: Integers,
    wanted: NDArray[np.bool_],
    memory: NDArray[np.floating] | None = None,
) -> Array:
    """Laws of a batch whose rows have settings of their own.

    Parameters
    ----------
    logits
        (B, n, V) floating.
    rows, contexts
        B entries each: settings (None for an idle row) and tokens from position 0 on.
    positions
        int64 (B, n): the position each slot predicts.
    wanted
        bool (B, n): slots whose law will be used; the others hold anything.
    memory
        As for `target_law`.

    Returns
    -------
    Array
        (B, n, V), float32 or float64.

    Raises
    ------
    InvalidLogits
        A wanted slot has NaN, +inf or nothing but -inf, before or after its processors.

    Notes
    -----
    It can be traced, but for rows with processors under ``torch.compile``: these are told tokens and positions as numpy arrays,
    and torch traces numpy, too. While a library traces, no row is refused.

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
    >>> target_laws(logits, rows, contexts, positions=np.array([[1], [1]]), wanted=np.ones((2, 1), bool)).round(2).tolist()
    [[[0.7, 0.3]], [[1.0, 0.0]]]
    """
    xp = namespace(logits)
    if any(info is not None and info.sampling.processors for info in rows):
        logits = at_least_float32(logits)
        processed = [
            logits[b, ...] if info is None else _processed(logits[b, ...], info, contexts[b], positions[b], wanted[b])
            for b, info in enumerate(rows)
        ]
        logits = xp.stack(processed, axis=0)
    highest = xp.max(logits, axis=-1, keepdims=True)
    refuse_unusable(highest[..., 0], positions, wanted)
    groups: dict[Sampling, list[int]] = {}
    for b, info in enumerate(rows):
        if info is not None:
            # Processors are applied already, and need not be hashable.
            groups.setdefault(replace(info.sampling, processors=()), []).append(b)
    if len(groups) <= 1:
        return target_law(logits, next(iter(groups), Sampling()), highest, memory)
    laws: dict[int, Array] = {}
    for sampling, members in groups.items():
        index = from_host(np.array(members), logits)
        together = target_law(xp.take(logits, index, axis=0), sampling, xp.take(highest, index, axis=0))
        laws.update({b: together[i, ...] for i, b in enumerate(members)})
    blank = xp.zeros_like(next(iter(laws.values())))
    return xp.stack([laws.get(b, blank) for b in range(len(rows))], axis=0)

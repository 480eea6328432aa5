"""Logits processors, run on the slots of one row: on those that share a context together, on others apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.arrays import as_like, is_real, namespace, read_only
from coupled_sampling.contracts import Array, Integers, Sampling, SequenceProcessor
from coupled_sampling.errors import InvalidArgument

__all__ = ["Context", "processed", "run_processors"]

Context: TypeAlias = "Integers | Sequence[tuple[range, Integers]]"
"""What a row's processors are shown: its tokens from position 0 on, to the end of its window or further; or, in a window that is a
tree, the columns of slots that follow one another, and the tokens on the path of the last of them."""


def run_processors(logits: Array, sampling: Sampling, tokens: Integers, positions: Integers) -> Array:
    """``logits`` (n, V) for ``positions`` (n,) after the processors of ``sampling``, each on what the one before returned."""
    for processor in sampling.processors:
        if isinstance(processor, SequenceProcessor):
            raise InvalidArgument(
                f"processor {processor!r} makes one for a sequence and none was begun: Sampling.begin(prompt) does that"
            )
        changed = processor(read_only(logits), tokens, read_only(positions))
        if tuple(getattr(changed, "shape", ())) != tuple(logits.shape):
            raise InvalidArgument(
                f"processor {processor!r} returned {type(changed).__name__} of shape {getattr(changed, 'shape', None)}, expected "
                f"an array of shape {tuple(logits.shape)}: (slots, vocabulary), as it was given"
            )
        if not is_real(changed):
            raise InvalidArgument(
                f"processor {processor!r} returned {changed.dtype} numbers, expected {logits.dtype} logits"
            )
        # In another type or library it would be met by the logits of the rows beside it, and change or stop them.
        with np.errstate(over="ignore"):  # what is too small for a narrower type is -inf in it, which is as good
            logits = as_like(changed, logits)
    return logits


def processed(
    logits: Array, sampling: Sampling, context: Context, positions: Integers, wanted: NDArray[np.bool_]
) -> tuple[Array, list[tuple[int, int, Exception]]]:
    """One row's ``logits`` (n, V) after its processors, which see only the wanted slots; and where one raised: the slots ``first``
    to ``end - 1`` have no logits for that reason.

    A slot behind a draft that is about to be refused may have a context that makes no sense. So where one raises, the slots are
    tried one by one, from the left.
    """
    slots = np.flatnonzero(wanted)
    if not slots.size or not sampling.processors:
        return logits, []
    if isinstance(context, np.ndarray):
        context = [(range(int(slots[0]), int(slots[-1]) + 1), context)]
    done, faults, end = [], [], 0
    for run, tokens in context:
        own, fault = _processed_run(
            logits[run.start : run.stop, ...], sampling, tokens, positions[run.start : run.stop]
        )
        done += [logits[end : run.start, ...], own]
        end = run.stop
        if fault is not None:
            faults.append((run.start + fault[0], run.stop, fault[1]))
    return namespace(logits).concat([*done, logits[end:, ...]], axis=0), faults


def _processed_run(
    logits: Array, sampling: Sampling, tokens: Integers, positions: Integers
) -> tuple[Array, tuple[int, Exception] | None]:
    """``logits`` (n, V) of slots that share their context; and the first slot at which a processor raised."""
    try:
        return run_processors(logits, sampling, tokens, positions), None
    except Exception:  # a stranger's code: anything may come
        done: list[Array] = []
        for j in range(len(positions)):
            try:
                done.append(run_processors(logits[j : j + 1, ...], sampling, tokens, positions[j : j + 1]))
            except Exception as error:
                return namespace(logits).concat([*done, logits[j:, ...]], axis=0), (j, error)
        return namespace(logits).concat(done, axis=0), None

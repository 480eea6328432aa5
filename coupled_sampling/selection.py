"""The largest entries of a row, and of a product of two rows, in any array library.

The array-API standard has no selection yet, so numpy and torch, which have one, go ways of their own here; the others sort.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.arrays import integers, is_torch, namespace
from coupled_sampling.sampling import Array

__all__ = ["argmax_of_product", "best_of_product", "largest"]


def largest(array: Array, count: int) -> Array:
    """The ``count`` largest entries along the last axis, in no promised order."""
    if isinstance(array, np.ndarray):
        return _largest_of_numpy(array, count)
    if is_torch(array):
        return array.topk(count, dim=-1, sorted=False).values
    return namespace(array).sort(array, axis=-1)[..., array.shape[-1] - count :]


def _largest_of_numpy(array: NDArray[Any], count: int) -> NDArray[Any]:
    """`largest` for numpy: long rows are thinned out first.

    The count-th largest of the maxima of disjoint blocks is a lower bound of the count-th largest entry, since there are
    ``count`` entries, the maxima themselves, that reach it. Few other entries do.
    """
    size = array.shape[-1]
    block = size // (2 * count)
    if block < 8:
        return np.partition(array, size - count, axis=-1)[..., size - count :]
    blocks = size // block
    found = np.empty((*array.shape[:-1], count), array.dtype)
    for row in np.ndindex(array.shape[:-1]):
        values = array[row]
        maxima = values[: blocks * block].reshape(blocks, block).max(axis=-1)
        bound = np.partition(maxima, blocks - count)[blocks - count]
        candidates = values[values >= bound]
        if len(candidates) < count:  # NaN, in a row that is not wanted or will be refused
            candidates = values
        found[row] = np.partition(candidates, len(candidates) - count)[len(candidates) - count :]
    return found


_TOGETHER = 1 << 15
"""Entries of a product that stay in the cache."""


def argmax_of_product(first: Array, second: Array) -> Array:
    """argmax(first * second) along the last axis. Numpy goes a few rows at a time, so that products stay in the cache."""
    if not isinstance(first, np.ndarray) or first.size <= _TOGETHER:
        xp = namespace(first)
        best = xp.argmax(first * second, axis=-1)
        return best if isinstance(first, np.ndarray) else xp.astype(best, integers(first))
    size = first.shape[-1]
    rows = first.reshape(-1, size)
    others = np.broadcast_to(second, first.shape).reshape(-1, size)
    best = np.empty(len(rows), np.int64)
    step = max(1, _TOGETHER // size)
    product = np.empty((step, size), np.result_type(first, second))
    for begin in range(0, len(rows), step):
        some = slice(begin, begin + step)
        np.multiply(rows[some], others[some], out=product[: len(rows[some])])
        product[: len(rows[some])].argmax(axis=-1, out=best[some])
    return best.reshape(first.shape[:-1])


def best_of_product(first: Array, second: Array, count: int) -> tuple[Array, Array]:
    """The ``count`` largest entries of ``first * second`` along the last axis: their indices, largest first, and they themselves.

    Which of equal ones come first is not promised.
    """
    if isinstance(first, np.ndarray):
        return _best_of_numpy(first, second, count)
    xp, product = namespace(first), first * second
    if is_torch(product):
        values, index = product.topk(count, dim=-1)
        return index, values
    index = xp.argsort(-product, axis=-1, stable=True)[..., :count]
    return xp.astype(index, integers(first)), xp.take_along_axis(product, index, axis=-1)


_BLOCK = 16
"""Entries of a long row that are looked at together."""
_RANKED = 1 << 20
"""Entries of a product that are ranked together: by the call, not the entry, is what it costs."""


def _best_of_numpy(
    first: NDArray[Any], second: NDArray[Any], count: int
) -> tuple[NDArray[np.int64], NDArray[np.floating]]:
    """`best_of_product`, some rows at a time, so that memory is bounded."""
    size = first.shape[-1]
    rows, others = (np.broadcast_to(each, first.shape).reshape(-1, size) for each in (first, second))
    index = np.empty((len(rows), count), np.int64)
    best = np.empty((len(rows), count), np.result_type(first, second))
    step = max(1, _RANKED // size)
    for begin in range(0, len(rows), step):
        some = slice(begin, begin + step)
        index[some], best[some] = _best_of_rows(rows[some] * others[some], count)
    shape = (*first.shape[:-1], count)
    return index.reshape(shape), best.reshape(shape)


def _best_of_rows(product: NDArray[Any], count: int) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """The largest entries of each row (n, V): in long ones only the blocks with the largest maxima are looked into.

    The largest entries lie in them: each block that is left out has ``count`` others with an entry no less than all of its own.
    Block j are the entries j, j + m, j + 2m, ... of m blocks, so that maxima are taken of whole rows at once.
    """
    size, row = product.shape[-1], np.arange(len(product))[:, None]
    blocks = size // _BLOCK
    if blocks >= 4 * count:
        maxima = product[:, : blocks * _BLOCK].reshape(len(product), _BLOCK, blocks).max(axis=1)
        chosen = np.argpartition(maxima, blocks - count, axis=-1)[:, blocks - count :]
        inside = (chosen[:, None, :] + blocks * np.arange(_BLOCK)[:, None]).reshape(len(product), -1)
        rest = np.broadcast_to(np.arange(blocks * _BLOCK, size), (len(product), size - blocks * _BLOCK))
        index = np.concatenate([inside, rest], axis=1)
        values = product[row, index]
    else:
        index, values = np.broadcast_to(np.arange(size), product.shape), product
    if count < values.shape[1]:
        some = np.argpartition(values, values.shape[1] - count, axis=-1)[:, values.shape[1] - count :]
        index, values = index[row, some], values[row, some]
    order = np.argsort(-values, axis=-1)
    return index[row, order], values[row, order]

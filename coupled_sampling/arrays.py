"""The whole boundary between array libraries, in one file.

Everything else is written against ``xp``, the namespace of the array at hand as array-api-compat gives it. No library
is imported here but numpy: the others are recognised by the arrays a user passes in.
"""

from __future__ import annotations

from typing import Any

import array_api_compat
import numpy as np
from numpy.typing import NDArray

from coupled_sampling.contracts import Array

__all__ = [
    "as_like",
    "at_least_float32",
    "first_true",
    "from_host",
    "is_floating",
    "largest",
    "namespace",
    "pick",
    "point_masses",
    "to_host",
]


def namespace(array: Array) -> Any:
    """The array API namespace of ``array``."""
    return array_api_compat.array_namespace(array)


def from_host(values: NDArray[Any], like: Array, dtype: Any = None) -> Array:
    """Numpy ``values`` as an array of the library and on the device of ``like``."""
    if isinstance(like, np.ndarray):
        return values if dtype is None else values.astype(dtype, copy=False)
    xp = namespace(like)
    array = xp.asarray(values, device=array_api_compat.device(like))
    return array if dtype is None else xp.astype(array, dtype, copy=False)


def to_host(array: Array) -> NDArray[Any]:
    """``array`` as numpy, copied from its device if it is on one."""
    if isinstance(array, np.ndarray):
        return array
    if array_api_compat.is_torch_array(array):
        return np.asarray(array.detach().cpu())
    if array_api_compat.is_cupy_array(array):
        return np.asarray(array.get())
    return np.asarray(array)


def as_like(array: Array, like: Array) -> Array:
    """``array`` in the library, on the device and in the type of ``like``."""
    if namespace(array) is not namespace(like):
        return from_host(to_host(array), like, like.dtype)
    return namespace(array).astype(array, like.dtype, copy=False)


def is_floating(array: Array) -> bool:
    """Whether ``array`` has a real floating type, half precision and bfloat16 included."""
    name = str(array.dtype)
    return "float" in name and "complex" not in name


def at_least_float32(array: Array) -> Array:
    """``array`` in float32 if its type is narrower, else as it is: laws are never kept in half precision."""
    xp = namespace(array)
    return array if array.dtype in (xp.float32, xp.float64) else xp.astype(array, xp.float32)


def pick(array: Array, index: Array) -> Array:
    """``array[..., index]`` element by element: (..., V) and int64 (...) give (...)."""
    xp = namespace(array)
    return xp.take_along_axis(array, index[..., None], axis=-1)[..., 0]


def first_true(mask: Array) -> Array:
    """Index of the first true entry along the last axis; 0 where there is none."""
    xp = namespace(mask)
    return xp.argmax(xp.astype(mask, xp.int8), axis=-1)


def point_masses(tokens: Array, vocab_size: int, like: Array) -> Array:
    """Laws (..., V) in the type of ``like`` with all mass on ``tokens`` (...)."""
    xp = namespace(like)
    every = xp.arange(vocab_size, dtype=xp.int64, device=array_api_compat.device(like))
    return xp.astype(tokens[..., None] == every, like.dtype)


def largest(array: Array, count: int) -> Array:
    """The ``count`` largest entries along the last axis, in no promised order.

    The standard has no selection yet, so numpy's and torch's own are used where it is one of them.
    """
    if isinstance(array, np.ndarray):
        return np.partition(array, array.shape[-1] - count, axis=-1)[..., array.shape[-1] - count :]
    if array_api_compat.is_torch_array(array):
        return array.topk(count, dim=-1, sorted=False).values
    return namespace(array).sort(array, axis=-1)[..., array.shape[-1] - count :]

"""The boundary between array libraries, in one file; what selects entries is beside it (`coupled_sampling.selection`).

Everything else is written against ``xp``, the namespace of the array at hand as array-api-compat gives it. No library
is imported here but numpy: the others are recognised by the arrays a user passes in.

Everything here may also run while a library traces: inside ``jax.jit`` and ``jax.vmap``, ``torch.compile``, ``torch.vmap``,
``mlx.core.compile`` and ``mlx.core.vmap``, and while CUDA graphs are captured. Only `is_concrete` and `to_host` look at values.
"""

from __future__ import annotations

import sys
from typing import Any

import array_api_compat
import array_api_compat.numpy
import numpy as np
from numpy.typing import NDArray

from coupled_sampling.sampling import Array

__all__ = [
    "array_device",
    "as_like",
    "at_least_float32",
    "block_sums",
    "counting",
    "cumulative",
    "difference",
    "drop_below",
    "exp_in_place",
    "filled",
    "first_true",
    "floats",
    "from_host",
    "integers",
    "is_concrete",
    "is_floating",
    "is_real",
    "is_torch",
    "namespace",
    "normalised",
    "pick",
    "point_masses",
    "positive_difference",
    "slots_of",
    "to_host",
    "total",
    "unit_interval",
]


def _is_from(module: str, name: str, array: Array) -> bool:
    """Whether ``array`` is of the class ``name`` of a library, which it can only be if somebody imported that.

    array-api-compat asks the same, through a cache that torch.compile warns of.
    """
    library = sys.modules.get(module)
    return library is not None and isinstance(array, getattr(library, name))


def is_torch(array: Array) -> bool:
    """Whether ``array`` is a tensor of torch's."""
    return _is_from("torch", "Tensor", array)


def _is_jax(array: Array) -> bool:
    return _is_from("jax", "Array", array)


def _is_mlx(array: Array) -> bool:
    return _is_from("mlx.core", "array", array)


def namespace(array: Array) -> Any:
    """The array API namespace of ``array``."""
    if isinstance(array, np.ndarray):
        return array_api_compat.numpy
    if is_torch(array):
        from array_api_compat import torch  # imports torch itself, which is there

        return torch
    return array_api_compat.array_namespace(array)


def array_device(array: Array) -> Any:
    """The device ``array`` is on; None where the library places arrays by itself (MLX, and JAX while it traces)."""
    if is_torch(array):
        return array.device
    return None if _is_mlx(array) else array_api_compat.device(array)


def _placed(array: Array) -> dict[str, Any]:
    """Keywords that make a new array beside ``array``."""
    device = array_device(array)
    return {} if device is None else {"device": device}


def floats(like: Array) -> Any:
    """The widest real floating type that the library of ``like`` has where ``like`` is.

    It is float64 everywhere but in JAX without ``jax_enable_x64``, in MLX on a GPU, and in torch on Apple's.
    """
    if isinstance(like, np.ndarray):
        return np.float64
    xp = namespace(like)
    if _is_jax(like):
        return sys.modules["jax"].dtypes.canonicalize_dtype(np.float64)
    if _is_mlx(like):
        return xp.float64 if xp.default_device() == xp.Device(xp.cpu) else xp.float32
    if is_torch(like) and like.device.type == "mps":
        return xp.float32
    return xp.float64


def integers(like: Array) -> Any:
    """The type of tokens in the library of ``like``: int64, but int32 for JAX without ``jax_enable_x64``."""
    if _is_jax(like):
        return sys.modules["jax"].dtypes.canonicalize_dtype(np.int64)
    return namespace(like).int64


def _has_no_float64(like: Array) -> bool:
    return "float64" not in str(floats(like))


def is_concrete(array: Array) -> bool:
    """Whether ``array`` has values that can be looked at: not while a library traces, compiles or maps a function.

    Nor while a CUDA graph is captured, when nothing may come to the host.
    """
    if isinstance(array, np.ndarray):
        return True
    if is_torch(array):
        torch = sys.modules["torch"]
        if torch.compiler.is_compiling() or torch._C._functorch.is_functorch_wrapped_tensor(array):
            return False
        return not (array.is_cuda and torch.cuda.is_current_stream_capturing())
    if _is_from("cupy", "ndarray", array):
        return not sys.modules["cupy"].cuda.get_current_stream().is_capturing()
    if _is_jax(array):
        return not isinstance(array, sys.modules["jax"].core.Tracer)
    if _is_mlx(array):
        try:
            sys.modules["mlx.core"].eval(array)
        except ValueError:  # the only sign there is: it refuses to evaluate inside a transformation
            return False
    return True


def from_host(values: Any, like: Array, dtype: Any = None) -> Array:
    """Numpy ``values`` as an array of the library and on the device of ``like``; arrays of another library are left as they are."""
    if not isinstance(values, np.ndarray):
        return values
    if isinstance(like, np.ndarray):
        return values if dtype is None else values.astype(dtype, copy=False)
    xp, placed = namespace(like), _placed(like)
    if _has_no_float64(like) and values.dtype == np.float64:
        values = values.astype(np.float32)  # left to themselves, JAX would warn and torch fail
    elif _is_mlx(like) and values.dtype == np.float64:
        placed["dtype"] = xp.float64  # left to itself, it takes float32
    if is_torch(like) and not values.flags.writeable:
        values = values.copy()  # torch, which knows no read-only memory, would warn
    array = xp.asarray(values, **placed)
    return array if dtype is None else xp.astype(array, dtype)


def unit_interval(values: NDArray[np.float64], like: Array) -> Array:
    """Numpy ``values`` in [0, 1) in the library and on the device of ``like``, as wide as it can: still in [0, 1).

    To float32 the largest of them would be rounded to 1, and a draft of probability 1 be refused.
    """
    if not isinstance(like, np.ndarray) and _has_no_float64(like):
        values = np.minimum(values, 1 - 2.0**-24)  # a float32
    return from_host(values, like)


def filled(shape: tuple[int, ...], value: float, like: Array) -> Array:
    """An array of ``shape`` full of ``value``, in the library and type of ``like`` and beside it."""
    if isinstance(like, np.ndarray):
        return np.full(shape, value, like.dtype)
    return namespace(like).full(shape, value, dtype=like.dtype, **_placed(like))


def counting(count: int, like: Array) -> Array:
    """0, 1, ..., count - 1 as tokens in the library of ``like`` and beside it."""
    if isinstance(like, np.ndarray):
        return np.arange(count)
    return namespace(like).arange(count, dtype=integers(like), **_placed(like))


def slots_of(mask: Array) -> Array:
    """0, 1, ... along the last axis of ``mask`` (..., n): (n,)."""
    return counting(mask.shape[-1], mask)


def to_host(array: Array) -> NDArray[Any]:
    """``array`` as numpy, copied from its device if it is on one; bfloat16, which numpy has not, as float32."""
    if isinstance(array, np.ndarray):
        return array
    if "bfloat16" in str(array.dtype):
        array = at_least_float32(array)
    if is_torch(array):
        return np.asarray(array.detach().cpu())
    if _is_from("cupy", "ndarray", array):
        return np.asarray(array.get())
    return np.asarray(array)


def as_like(array: Array, like: Array) -> Array:
    """``array`` in the library, on the device and in the type of ``like``."""
    if namespace(array) is not namespace(like):
        return from_host(to_host(array), like, like.dtype)
    return array if array.dtype == like.dtype else namespace(array).astype(array, like.dtype)


def is_floating(array: Array) -> bool:
    """Whether ``array`` has a real floating type, half precision and bfloat16 included."""
    name = str(array.dtype)
    return "float" in name and "complex" not in name


def is_real(array: Array) -> bool:
    """Whether ``array`` holds real numbers, or truths: no complex ones, objects or text."""
    return is_floating(array) or any(kind in str(array.dtype) for kind in ("int", "bool"))


def at_least_float32(array: Array) -> Array:
    """``array`` in float32 if its type is narrower, else as it is: laws are never kept in half precision."""
    xp = namespace(array)
    return array if array.dtype in (xp.float32, xp.float64) else xp.astype(array, xp.float32)


def pick(array: Array, index: Array) -> Array:
    """``array[..., index]`` element by element: (..., V) and int64 (...) give (...)."""
    if isinstance(array, np.ndarray) and array.ndim == 3:  # the general function costs more than the looking up
        rows, slots = np.arange(array.shape[0])[:, None], np.arange(array.shape[1])
        return array[rows, slots, index]
    xp = namespace(array)
    return xp.take_along_axis(array, index[..., None], axis=-1)[..., 0]


def taken(array: Array, index: NDArray[np.int64]) -> Array:
    """``array[index]`` along the first axis: a copy of the rows (n, ...) that numpy's ``index`` (n,) names."""
    return namespace(array).take(array, from_host(index, array, integers(array)), axis=0)


def first_true(mask: Array) -> Array:
    """Index of the first true entry along the last axis; 0 where there is none."""
    if isinstance(mask, np.ndarray):
        return mask.argmax(axis=-1)
    xp = namespace(mask)
    # MLX answers in unsigned numbers, of which nothing may be subtracted.
    return xp.astype(xp.argmax(xp.astype(mask, xp.int8), axis=-1), integers(mask))


def point_masses(tokens: Array, vocab_size: int, like: Array) -> Array:
    """Laws (..., V) in the type of ``like`` with all mass on ``tokens`` (...)."""
    return namespace(like).astype(tokens[..., None] == counting(vocab_size, like), like.dtype)


def drop_below(weights: Array, values: Array, threshold: Array) -> Array:
    """``weights`` (..., V), the caller's own, with zeros where ``values`` (..., V) are below ``threshold`` (..., 1)."""
    if isinstance(weights, np.ndarray):
        return np.multiply(weights, values >= threshold, out=weights)
    return weights * namespace(weights).astype(values >= threshold, weights.dtype)


def difference(first: Array, second: Array, memory: NDArray[Any] | None) -> Array:
    """``first - second``, in ``memory`` of the same shape if both are numpy of one type."""
    if memory is None or not isinstance(first, np.ndarray) or memory.dtype != first.dtype:
        return first - second
    return np.subtract(first, second, out=memory)


def exp_in_place(array: Array) -> Array:
    """exp of ``array``, which is the caller's own and not used again: numpy reuses its memory.

    A fresh array of a megabyte costs as much in page faults as the exponentials do.
    """
    if isinstance(array, np.ndarray):
        return np.exp(array, out=array)
    return namespace(array).exp(array)


def block_sums(array: Array, block: int) -> Array:
    """Sums (..., ceil(V / block)) of ``array`` (..., V) over blocks of ``block`` entries, the last one perhaps shorter.

    Of numpy's ways to add up short rows einsum's is the fastest, three times as fast as ``sum``; a row's sums do not depend
    on the rows beside it.
    """
    whole = array.shape[-1] // block
    leading = array.shape[:-1]
    if isinstance(array, np.ndarray):
        sums = np.einsum("...i->...", array[..., : whole * block].reshape(*leading, whole, block))
    else:
        sums = namespace(array).sum(
            namespace(array).reshape(array[..., : whole * block], (*leading, whole, block)), axis=-1
        )
    if whole * block < array.shape[-1]:
        rest = namespace(array).sum(array[..., whole * block :], axis=-1)
        sums = namespace(array).concat([sums, rest[..., None]], axis=-1)
    return sums


def cumulative(array: Array) -> Array:
    """Cumulative sums of ``array`` along the last axis."""
    if is_torch(array):
        return array.cumsum(
            -1
        )  # what array-api-compat would call, after a look into a cache that torch.compile warns of
    return namespace(array).cumulative_sum(array, axis=-1)


def normalised(weights: Array) -> Array:
    """``weights`` (..., V), the caller's own, divided by their sums; rows that sum to zero stay as they are."""
    mass = total(weights)
    if not isinstance(weights, np.ndarray):
        xp = namespace(weights)
        return weights / xp.where(mass > 0, mass, xp.ones_like(mass))
    with np.errstate(invalid="ignore"):  # rows that nobody wants may hold anything; the others are refused before
        return np.divide(weights, np.where(mass > 0, mass, np.ones_like(mass)), out=weights)


def total(array: Array) -> Array:
    """Sums (..., 1) of ``array`` (..., V) over the last axis."""
    if isinstance(array, np.ndarray) and array.shape[-1] >= 1024:
        return block_sums(array, 128).sum(axis=-1, keepdims=True)
    return namespace(array).sum(array, axis=-1, keepdims=True)


def positive_difference(first: Array, second: Array) -> Array:
    """max(first - second, 0)."""
    if isinstance(first, np.ndarray):
        left = np.subtract(first, second)
        return np.maximum(left, 0, out=left)
    left = first - second
    return namespace(first).maximum(left, filled((), 0, left))


def read_only(array: Array) -> Array:
    """``array``, as a view that cannot be written to if it is numpy; other libraries have no such thing."""
    if not isinstance(array, np.ndarray):
        return array
    view = array.view()
    view.flags.writeable = False
    return view

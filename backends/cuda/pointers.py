"""Where a device array lies: its address, shape and type, from whatever library made it. Nothing is copied or imported.

Arrays say so themselves, by DLPack (``__dlpack__``) or ``__cuda_array_interface__``. DLPack comes first: its maker is told
our stream and makes ours wait for its own.

Parsing is tested on the CPU; it has never met an array on a GPU.
"""

from __future__ import annotations

import ctypes
import math
from typing import Any, NamedTuple

from coupled_sampling.errors import InvalidArgument

__all__ = ["LOGITS_TYPES", "DevicePointer", "device_pointer"]

LOGITS_TYPES = ("float32", "float16", "bfloat16")
"""Types of logits that the kernels read, in the order of their codes."""

_CUDA_DEVICES = (2, 13)
"""DLPack's kDLCUDA and kDLCUDAManaged."""


class DevicePointer(NamedTuple):
    """A contiguous array in device memory.

    Examples
    --------
    >>> from coupled_sampling.backends.cuda import DevicePointer
    >>> logits = DevicePointer(0x7F0000000000, shape=(1, 16, 65536), dtype="bfloat16")
    >>> logits.stream is None  # they are there already: nothing has to be waited for
    True
    """

    pointer: int
    shape: tuple[int, ...]
    dtype: str
    """One of `LOGITS_TYPES`."""
    stream: int | None = None
    """Stream in which the array is being made, if ours has to wait for it."""
    owner: Any = None
    """What keeps the memory alive."""


class _Tensor(ctypes.Structure):
    """DLTensor of dlpack.h."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("axes", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("offset", ctypes.c_uint64),
    )


def device_pointer(array: Any, stream: int = 0) -> DevicePointer:
    """``array`` as an address.

    Parameters
    ----------
    array
        A `DevicePointer`, or an array of any library with ``__dlpack__`` or ``__cuda_array_interface__``: in CUDA memory,
        contiguous, of a type in `LOGITS_TYPES`.
    stream
        Handle of the stream that will read it; 0 is the legacy default stream.

    Raises
    ------
    InvalidArgument
        It is not such an array.

    Examples
    --------
    >>> import numpy as np
    >>> from coupled_sampling.backends.cuda import device_pointer
    >>> class OnDevice:  # as CuPy, torch and Numba say it
    ...     __cuda_array_interface__ = {"shape": (1, 2, 8), "typestr": "<f4", "data": (4096, False), "version": 3}
    >>> device_pointer(OnDevice())[:3]
    (4096, (1, 2, 8), 'float32')
    >>> device_pointer(np.zeros((1, 2, 8), np.float32))
    Traceback (most recent call last):
    coupled_sampling.errors.InvalidArgument: array is a ndarray on a device of DLPack type 1, expected CUDA memory ...
    """
    if isinstance(array, DevicePointer):
        return array
    if hasattr(array, "__dlpack__") and hasattr(array, "__dlpack_device__"):
        device = int(array.__dlpack_device__()[0])
        if device not in _CUDA_DEVICES:
            raise InvalidArgument(
                f"array is a {type(array).__name__} on a device of DLPack type {device}, expected CUDA memory ({_CUDA_DEVICES}); "
                "use HostStep for arrays in host memory"
            )
        return parse_capsule(array.__dlpack__(stream=stream or 1))  # DLPack calls the legacy default stream 1
    if hasattr(array, "__cuda_array_interface__"):
        return _from_interface(array.__cuda_array_interface__, array)
    raise InvalidArgument(
        f"array is a {type(array).__name__}, expected one with __dlpack__ or __cuda_array_interface__, or a DevicePointer"
    )


def parse_capsule(capsule: Any) -> DevicePointer:
    """What a DLPack capsule holds; the capsule is left as it is and freed with the result."""
    get = ctypes.pythonapi.PyCapsule_GetPointer
    get.restype, get.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    address = get(capsule, b"dltensor")
    tensor = _Tensor.from_address(address)
    name = {2: f"float{tensor.bits}", 4: f"bfloat{tensor.bits}"}.get(tensor.code, f"type {tensor.code}")
    shape = tuple(tensor.shape[i] for i in range(tensor.axes))
    strides = None if not tensor.strides else tuple(tensor.strides[i] for i in range(tensor.axes))
    _check(name if tensor.lanes == 1 else f"{name} x {tensor.lanes}", shape, strides)
    return DevicePointer((tensor.data or 0) + tensor.offset, shape, name, None, capsule)


def _from_interface(interface: dict[str, Any], owner: Any) -> DevicePointer:
    """What ``__cuda_array_interface__`` holds."""
    code = str(interface["typestr"])
    name = {"<f4": "float32", "<f2": "float16"}.get(code, code)
    shape = tuple(int(size) for size in interface["shape"])
    strides = interface.get("strides")
    size = 2 if name == "float16" else 4
    _check(name, shape, None if strides is None else tuple(int(step) // size for step in strides))
    return DevicePointer(int(interface["data"][0]), shape, name, interface.get("stream"), owner)


def _check(dtype: str, shape: tuple[int, ...], strides: tuple[int, ...] | None) -> None:
    if dtype not in LOGITS_TYPES:
        raise InvalidArgument(f"array has type {dtype}, expected one of {', '.join(LOGITS_TYPES)}")
    contiguous = tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))
    off = strides is not None and any(n > 1 and s != c for n, s, c in zip(shape, strides, contiguous, strict=True))
    if off:
        raise InvalidArgument(
            f"array of shape {shape} has strides {strides}, expected {contiguous}: make it contiguous"
        )

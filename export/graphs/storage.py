"""How weights are kept in a graph: their type, and the file they lie in.

float16 and bfloat16 halve the file and are widened where they are used. int8 and int4 keep one scale for every `block`
inputs of a row, w = code * scale with codes in [-127, 127] or [-7, 7]; only matrices are kept so, embeddings are float16
then and vectors are never narrowed. The codes are read by the standard operator DequantizeLinear, which runtimes may
fuse with the product that follows; this library's CPU backend widens them at load instead, see
`coupled_sampling.backends.ort.session`. Rounding weights changes the model: decoding stays lossless with respect to the law of
the graph, and how far that is from the original is for `reference_logits` to say.

Graphs of more than 2 GB must keep their weights in a second file (a limit of protobuf). `TensorFile` writes each weight
there as soon as it is known, so that no two of them need be in memory at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.errors import InvalidArgument, MissingDependency
from coupled_sampling.fields import check_fields

__all__ = ["Storage", "TensorFile", "converted", "quantised", "stored_type"]

_BITS = {"int8": 8, "int4": 4}
_FLOATS = ("float32", "float16", "bfloat16")
_ALIGNMENT = 4096
_SMALLEST = 1024


@dataclass(frozen=True)
class Storage:
    """Types of a graph's weights and of its arithmetic.

    Parameters
    ----------
    weights
        Type of matrices and embeddings: "float32", "float16", "bfloat16", "int8" or "int4".
    compute
        Type of everything between the embedding and the logits, caches included: "float32", or "float16" for devices
        that compute in it (logits are always float32). It cannot be narrower than float weights.
    block
        Inputs that share a scale, for "int8" and "int4": a power of two from 16 to 256.

    Raises
    ------
    InvalidArgument
        A type is unknown, or the two do not go together.

    Examples
    --------
    >>> from coupled_sampling.export import Storage
    >>> Storage(weights="int8").bytes_of((1024, 1024), matrix=True)  # a byte each, and a scale for every 32
    1179648
    >>> Storage(weights="float32").bytes_of((1024, 1024), matrix=True)
    4194304
    """

    weights: str = "float32"
    compute: str = "float32"
    block: int = 32

    def __post_init__(self) -> None:
        check_fields(self)
        if self.weights not in (*_FLOATS, *_BITS):
            raise InvalidArgument(
                f"weights is {self.weights!r}, expected one of {', '.join(map(repr, (*_FLOATS, *_BITS)))}"
            )
        if self.compute not in ("float32", "float16"):
            raise InvalidArgument(f"compute is {self.compute!r}, expected 'float32' or 'float16'")
        if self.compute == "float16" and self.weights in ("float32", "bfloat16"):
            raise InvalidArgument(
                f"compute is 'float16' and weights {self.weights!r}, expected weights 'float16', 'int8' or 'int4' with it"
            )
        if self.block not in (16, 32, 64, 128, 256):
            raise InvalidArgument(f"block is {self.block}, expected a power of two from 16 to 256")

    @property
    def bits(self) -> int:
        """Bits of a quantised matrix's entries; 0 for floats."""
        return _BITS.get(self.weights, 0)

    @property
    def embeddings(self) -> str:
        """Type of embeddings."""
        return "float16" if self.bits else self.weights

    def bytes_of(self, shape: tuple[int, ...], matrix: bool) -> int:
        """About how many bytes a weight takes."""
        count = int(np.prod(shape))
        if matrix and self.bits:
            return count * self.bits // 8 + 4 * count // self.block
        return count * (4 if self.embeddings == "float32" else 2)


def stored_type(name: str) -> np.dtype[Any]:
    """The numpy type called ``name``; bfloat16 and int4 are those of ``ml_dtypes``.

    Raises
    ------
    MissingDependency
        ``ml_dtypes`` is not installed.
    """
    if name not in ("bfloat16", "int4"):
        return np.dtype(name)
    try:
        import ml_dtypes
    except ImportError as error:
        raise MissingDependency(
            f"weights as {name} need the package ml_dtypes, which is not installed: "
            "pip install 'coupled-sampling[export]'"
        ) from error
    dtype: np.dtype[Any] = np.dtype(getattr(ml_dtypes, name))
    return dtype


def converted(name: str, value: NDArray[Any], dtype: str) -> NDArray[Any]:
    """``value`` as ``dtype``, contiguous.

    Raises
    ------
    InvalidArgument
        An entry is beyond the range of ``dtype``.
    """
    with np.errstate(over="ignore"):
        narrowed = np.ascontiguousarray(value, stored_type(dtype))
    if dtype == "float16" and value.dtype != narrowed.dtype and not np.isfinite(narrowed).all():
        raise InvalidArgument(
            f"weight {name!r} has entries beyond the range of float16; store weights as bfloat16 or float32"
        )
    return narrowed


def quantised(matrix: NDArray[Any], bits: int, block: int) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """A matrix as codes and scales.

    Parameters
    ----------
    matrix
        (outputs, inputs).
    bits
        8 or 4.
    block
        Inputs that share a scale; it divides the number of inputs.

    Returns
    -------
    tuple
        Codes int8 or int4 (inputs, outputs), the transpose that products take, and scales float32
        (inputs / block, outputs). An entry is about its code times the scale of its block.

    Raises
    ------
    InvalidArgument
        ``block`` does not divide the number of inputs.
    """
    outputs, inputs = matrix.shape
    if inputs % block:
        raise InvalidArgument(f"block is {block}, expected a divisor of a matrix's {inputs} inputs; take a smaller one")
    most = 2 ** (bits - 1) - 1
    blocks = np.asarray(matrix, np.float32).reshape(outputs, inputs // block, block)
    scales = np.abs(blocks).max(-1) / np.float32(most)
    inverse = 1 / np.where(scales > 0, scales, 1)
    codes = np.rint(blocks * inverse[..., None]).astype(np.int8).reshape(outputs, inputs)
    return np.ascontiguousarray(codes.T).astype(stored_type(f"int{bits}")), np.ascontiguousarray(scales.T)


class TensorFile:
    """The second file of a graph, written tensor by tensor. Closes as a context.

    Parameters
    ----------
    path
        Where it is written; the graph refers to it by its name, so both must lie in one folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: BinaryIO = path.open("wb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def takes(self, value: NDArray[Any]) -> bool:
        """Whether ``value`` is worth a place in the file; small ones stay in the graph."""
        return value.nbytes >= _SMALLEST

    def write(self, value: NDArray[Any]) -> dict[str, str]:
        """Append ``value``; returns where it lies, in the terms of ONNX's external data."""
        self._file.write(bytes(-self._file.tell() % _ALIGNMENT))  # whole pages can be mapped into memory
        offset = self._file.tell()
        flat = value.reshape(-1)
        self._file.write(_packed(flat) if value.dtype.name == "int4" else flat.view(np.uint8).data)
        return {"location": self.path.name, "offset": str(offset), "length": str(self._file.tell() - offset)}


def _packed(codes: NDArray[Any]) -> memoryview:
    """Two int4 to a byte, the first one in the low half."""
    low = codes.astype(np.int8).view(np.uint8) & 15
    low = np.append(low, np.uint8(0)) if low.size % 2 else low
    return (low[::2] | low[1::2] << 4).data

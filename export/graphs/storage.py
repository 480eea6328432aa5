"""How weights are kept in a graph: their type, and the file they lie in.

float16 and bfloat16 halve the file and are widened where they are used. int8 and int4 keep one scale for every `block`
inputs of a row, w = code * scale with codes in [-127, 127] or [-7, 7]; only matrices are kept so, embeddings are float16
then and vectors are never narrowed. Rounding weights changes the model: decoding stays lossless with respect to the law of
the graph, and how far that is from the original is for `reference_logits` to say.

The same codes and scales can be written in two forms. ``"nbits"`` is ONNX Runtime's own operator MatMulNBits, which multiplies
activations by codes as they are: memory stays that of the file. ``"standard"`` is ONNX's operator DequantizeLinear, for
every other runtime; this library's CPU back end widens such codes to float32 when it opens the model, see
`coupled_sampling.backends.ort.session`.

Arithmetic in float16 or bfloat16 is for GPUs: half the memory of weights and caches, and their fast units for products. In what
type a kernel sums is its own affair. Logits, and the laws that a step graph makes of them, are float32 in the graph. bfloat16 has
the range of float32 and 8 bits of precision, float16 ends at 65504 and has 11 bits: take the one that the checkpoint is in.

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

__all__ = ["NBITS_DOMAIN", "ONNX_TYPES", "Storage", "TensorFile", "converted", "quantised", "stored_type"]

NBITS_DOMAIN = "com.microsoft"
"""Domain of ONNX Runtime's own operators."""

ONNX_TYPES = {"float32": 1, "float16": 10, "bfloat16": 16}
"""ONNX's numbers of the types that a graph may compute in."""

_BITS = {"int8": 8, "int4": 4}
_FLOATS = tuple(ONNX_TYPES)
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
        Type of everything between the embedding and the logits, caches included: "float32", or "float16" or "bfloat16" for devices
        that compute in it (logits are always float32). Float weights are then of the same type.
    block
        Inputs that share a scale, for "int8" and "int4": a power of two from 16 to 256.
    form
        How products with "int8" and "int4" are written: "nbits" or "standard", see above. "auto" is "nbits".

    Raises
    ------
    InvalidArgument
        A type is unknown, or the settings do not go together.

    Examples
    --------
    >>> from coupled_sampling.export import Storage
    >>> Storage(weights="int8").bytes_of((1024, 1024), matrix=True)  # a byte each, and a scale for every 32
    1179648
    >>> Storage(weights="float32").bytes_of((1024, 1024), matrix=True)
    4194304
    >>> Storage(weights="int4").domains, Storage(weights="int4", form="standard").domains
    (('com.microsoft',), ())
    """

    weights: str = "float32"
    compute: str = "float32"
    block: int = 32
    form: str = "auto"

    def __post_init__(self) -> None:
        check_fields(self)
        if self.weights not in (*_FLOATS, *_BITS):
            raise InvalidArgument(
                f"weights is {self.weights!r}, expected one of {', '.join(map(repr, (*_FLOATS, *_BITS)))}"
            )
        if self.compute not in _FLOATS:
            raise InvalidArgument(f"compute is {self.compute!r}, expected one of {', '.join(map(repr, _FLOATS))}")
        if self.compute != "float32" and self.weights not in (self.compute, *_BITS):
            raise InvalidArgument(
                f"compute is {self.compute!r} and weights {self.weights!r}, expected weights {self.compute!r}, 'int8' or 'int4' "
                "with it"
            )
        if self.block not in (16, 32, 64, 128, 256):
            raise InvalidArgument(f"block is {self.block}, expected a power of two from 16 to 256")
        if self.form not in ("auto", "nbits", "standard"):
            raise InvalidArgument(f"form is {self.form!r}, expected 'auto', 'nbits' or 'standard'")
        if self.form == "nbits" and not self.bits:
            raise InvalidArgument(
                f"form is 'nbits' and weights {self.weights!r}, expected weights 'int8' or 'int4' with it; leave form at 'auto'"
            )

    @property
    def bits(self) -> int:
        """Bits of a quantised matrix's entries; 0 for floats."""
        return _BITS.get(self.weights, 0)

    @property
    def is_nbits(self) -> bool:
        """Whether products are written as MatMulNBits."""
        return self.bits > 0 and self.form != "standard"

    @property
    def domains(self) -> tuple[str, ...]:
        """Domains of operators that a graph has beside ONNX's own."""
        return (NBITS_DOMAIN,) if self.is_nbits else ()

    @property
    def embeddings(self) -> str:
        """Type of embeddings."""
        if not self.bits:
            return self.weights
        return "float16" if self.compute == "float32" else self.compute

    def bytes_of(self, shape: tuple[int, ...], matrix: bool) -> int:
        """About how many bytes a weight takes."""
        count = int(np.prod(shape))
        if matrix and self.bits:
            return count * self.bits // 8 + 4 * count // self.block
        return count * (4 if self.embeddings == "float32" else 2)

    @property
    def compared(self) -> str:
        """The type in which numbers are compared and chosen: ONNX Runtime's CUDA kernels for that, up to 1.31, know no bfloat16."""
        return "float32" if self.compute == "bfloat16" else self.compute

    @property
    def onnx_type(self) -> int:
        """ONNX's number of ``compute``."""
        return ONNX_TYPES[self.compute]


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


def quantised(
    matrix: NDArray[Any], bits: int, block: int, dtype: str = "float32"
) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """A matrix as codes and scales.

    Parameters
    ----------
    matrix
        (outputs, inputs).
    bits
        8 or 4.
    block
        Inputs that share a scale; it divides the number of inputs.
    dtype
        Type that scales are kept in: they are numbers of it, and codes are the nearest to the weights with these.

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
    scales = converted("scale", scales, dtype).astype(np.float32)
    inverse = 1 / np.where(scales > 0, scales, 1)
    # A scale that float16 rounds down by half would give codes beyond the last.
    codes = np.rint(blocks * inverse[..., None]).clip(-most, most).astype(np.int8).reshape(outputs, inputs)
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

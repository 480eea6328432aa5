"""Products with quantised matrices by MatMulNBits, an operator of ONNX Runtime's own (domain com.microsoft).

It reads codes as they lie in the file, widens them in registers and multiplies by activations. Its ``accuracy_level`` of 1 says
that these are not rounded. (Level 4 rounds them to int8, which is faster; but then what one position gets depends on how tokens are
cut into windows, by a few hundredths of the logits' spread.)

With float32 activations a matrix of 8 bits is written as two of 4 bits, for ONNX Runtime 1.32 widens a whole matrix of 8 bits at
every call on the CPU unless it may round activations, which takes ten times as long as float32. With code = 16 * high + low, high
in [-8, 7] and low in [0, 15],

    x @ W.T = 16 * (x @ (high * scale).T) + x @ (low * scale).T

where both products use the same scales, and a factor of 16 is exact in floating point. In float16 and bfloat16, which are for GPUs,
it is one matrix of 8 bits: the two products would be rounded before they are added, and may be larger than their sum.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.export.graphs.builder import GraphBuilder
from coupled_sampling.export.graphs.storage import NBITS_DOMAIN

__all__ = ["nbits_product", "packed_nibbles"]

_OFFSET = 8
"""What MatMulNBits takes from a code of 4 bits where no zero point is given."""


def nbits_product(
    graph: GraphBuilder, name: str, codes: NDArray[Any], scales: NDArray[Any], bias: str | None, x: str
) -> str:
    """``x`` (N, inputs) times a quantised matrix, plus ``bias``.

    Parameters
    ----------
    graph
        Where to write it.
    name
        Of the map, for its constants.
    codes, scales
        As from `coupled_sampling.export.graphs.storage.quantised`: (inputs, outputs) int8 or int4, (inputs / block, outputs), these
        of the type of the activations.
    bias
        Name of a constant (outputs,), or None.
    x
        Name of the activations.
    """
    block = len(codes) // len(scales)
    # One axis: every version of the operator takes scales so.
    scale = graph.weight(f"{name}.scale", np.ascontiguousarray(scales.T).reshape(-1))
    if codes.dtype.name == "int4":
        whole = graph.weight(f"{name}.weight", packed_nibbles(codes.astype(np.int8) + _OFFSET, block))
        return _product(graph, x, whole, scale, codes.shape, block, bias=bias)
    if scales.dtype != np.float32:
        whole = graph.weight(f"{name}.weight", _packed_bytes(codes, block))
        return _product(graph, x, whole, scale, codes.shape, block, bias=bias, bits=8)
    high, low = codes >> 4, codes & 15
    packed = [
        graph.weight(f"{name}.weight.{part}", packed_nibbles(values, block))
        for part, values in (("high", high + _OFFSET), ("low", low))
    ]
    nothing = graph.weight(f"{name}.zero_point", np.zeros(_zero_bytes(scales.shape), np.uint8))
    coarse = _product(graph, x, packed[0], scale, codes.shape, block)
    fine = _product(graph, x, packed[1], scale, codes.shape, block, zeros=nothing, bias=bias)
    sixteen = graph.constant("sixteen", np.array(16, np.float32))
    return graph.op("Add", graph.op("Mul", coarse, sixteen), fine)


def packed_nibbles(codes: NDArray[Any], block: int) -> NDArray[np.uint8]:
    """Codes from 0 to 15, (inputs, outputs), as MatMulNBits takes them: uint8 (outputs, inputs / block, block / 2).

    A byte holds two inputs that follow each other, the first one in its low half.

    Examples
    --------
    >>> import numpy as np
    >>> from coupled_sampling.export.graphs.nbits import packed_nibbles
    >>> [hex(byte) for byte in packed_nibbles(np.arange(16)[:, None], block=16)[0, 0, :3]]
    ['0x10', '0x32', '0x54']
    """
    inputs, outputs = codes.shape
    rows = np.ascontiguousarray(codes.T).astype(np.uint8).reshape(outputs, inputs // block, block)
    return np.asarray(rows[..., ::2] | rows[..., 1::2] << 4, np.uint8)


def _packed_bytes(codes: NDArray[np.int8], block: int) -> NDArray[np.uint8]:
    """Codes of 8 bits, (inputs, outputs), as MatMulNBits takes them: uint8 (outputs, inputs / block, block)."""
    inputs, outputs = codes.shape
    return (
        np.ascontiguousarray(codes.T.astype(np.int16) + 128).astype(np.uint8).reshape(outputs, inputs // block, block)
    )


def _product(
    graph: GraphBuilder,
    x: str,
    packed: str,
    scale: str,
    shape: tuple[int, ...],
    block: int,
    zeros: str = "",
    bias: str | None = None,
    bits: int = 4,
) -> str:
    given = [x, packed, scale, zeros, "", bias or ""]  # the fifth would reorder inputs
    while not given[-1]:  # optional inputs are empty names, or left out at the end
        given.pop()
    inputs, outputs = shape
    settings: dict[str, Any] = {"K": inputs, "N": outputs, "bits": bits, "block_size": block, "accuracy_level": 1}
    return graph.op("MatMulNBits", *given, domain=NBITS_DOMAIN, **settings)


def _zero_bytes(scales: tuple[int, ...]) -> int:
    """Bytes of a zero point of 4 bits for each scale; those of an output begin at a byte."""
    blocks, outputs = scales
    return outputs * ((blocks + 1) // 2)

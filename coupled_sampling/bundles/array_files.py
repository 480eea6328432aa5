"""Files of one array in numpy's format, as ``numpy.save`` writes them, from strangers.

``numpy.load`` believes a header: it makes room for as many numbers as that says, and of a damaged one raises whatever its parser
does. Here a file is read up to a limit, and its header must say exactly what is there.
"""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.bundles.json_files import SmallFile, read_small
from coupled_sampling.errors import BundleError, CoupledSamplingError

__all__ = ["array_of", "read_array"]

_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_ZIP = b"PK"
_MOST_AXES = 32


def read_array(path: Path, kind: SmallFile, refusal: type[CoupledSamplingError] = BundleError) -> NDArray[Any]:
    """The array in a file; parameters are those of `coupled_sampling.bundles.json_files.read_small`.

    Raises
    ------
    BundleError
        Or ``refusal``: as of `read_small`; or it is no array of numbers, or several.

    Examples
    --------
    >>> from pathlib import Path
    >>> import numpy as np
    >>> from coupled_sampling.bundles.array_files import read_array
    >>> from coupled_sampling.bundles.json_files import CONDITION
    >>> np.save("vectors.npy", np.zeros((3, 8)))
    >>> read_array(Path("vectors.npy"), CONDITION).shape
    (3, 8)
    """
    content = read_small(path, kind, refusal)
    try:
        return array_of(content)
    except ValueError as error:
        raise refusal(f"{path} is no array of numpy's ({error}), expected {kind.name}; {kind.remedy}") from error


def array_of(content: bytes) -> NDArray[Any]:
    """The array of numbers in the bytes of such a file, which it is a view of.

    Raises
    ------
    ValueError
        They are none, or not exactly as many as the header says.
    """
    if content.startswith(_ZIP):
        raise ValueError("it holds several arrays")
    stream = io.BytesIO(content)
    try:
        shape, by_columns, dtype = _HEADERS[np.lib.format.read_magic(stream)](stream)
    except Exception as error:  # a stranger's bytes: anything may come of them, and not ValueErrors alone
        raise ValueError("its header cannot be read") from error
    if dtype.kind not in "biufc":
        raise ValueError(f"it holds {dtype!s:.80}, expected numbers")
    start = stream.tell()
    there = len(content) - start
    if len(shape) > _MOST_AXES or min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != there:
        raise ValueError(f"it has {there} bytes, which are not {dtype} of shape {shape!s:.80}")
    return np.ndarray(shape, dtype, content, start, order="F" if by_columns else "C")

"""What is wrong with the condition of a request, where that is to be vectors: an encoder's output."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["problem_of_vectors"]


def problem_of_vectors(
    condition: Any, lengths: tuple[int | None, int | None], size: int | None, wanted: str, advice: str
) -> str | None:
    """What is wrong with ``condition``, as a sentence without its subject; None if it can be read.

    Parameters
    ----------
    condition
        Of a request; a floating array (n, D) if all is well.
    lengths
        Least and most vectors n; None for no such bound.
    size
        D; None for any.
    wanted
        What it is to be, for a message.
    advice
        What to do where there is none.
    """
    if condition is None:
        return f"has no condition, expected {wanted}; {advice}"
    if not isinstance(condition, np.ndarray) or not np.issubdtype(condition.dtype, np.floating):
        kind = condition.dtype if isinstance(condition, np.ndarray) else type(condition).__name__
        return f"has a condition of {kind}, expected a numpy array: {wanted}"
    shape, (least, most) = condition.shape, lengths
    count, entries = shape if len(shape) == 2 else (0, 0)
    if not ((least or 1) <= count <= (most or count) and 0 < entries == (size or entries)):
        return f"has a condition of shape {shape}, expected {wanted}, without an axis for a batch"
    if not np.isfinite(condition).all():
        return f"has a condition with NaN or infinity, expected {wanted}"
    return None

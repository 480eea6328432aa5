"""Logits processors that were written for transformers, as processors of this library.

transformers calls ``processor(input_ids (batch, length), scores (batch, V)) -> scores``: one position at a time. A window has
several, each with a context of its own. So `TransformersProcessor` calls it once for every slot, with that slot's context and
nothing to the right of it. That makes it exact, if the outcome is a function of the two arguments.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.arrays import as_like, from_host, namespace, to_host
from coupled_sampling.errors import InvalidArgument
from coupled_sampling.sampling import Array, Integers

__all__ = ["TransformersProcessor"]


@dataclass(frozen=True)
class TransformersProcessor:
    """A `coupled_sampling.contracts.Processor` that calls a logits processor of transformers' form, once per slot.

    Parameters
    ----------
    processor
        ``processor(input_ids int64 (1, length), scores (1, V)) -> scores (1, V)``. It may write into both; they are copies. It must
        keep no state from one call to the next: it is called for drafts, too, which may be refused, and for several sequences.
        `coupled_sampling.testing.check_processor` finds one that does.
    array
        Makes the arrays that ``processor`` wants of numpy's, such as ``torch.asarray``, where the model gives logits of another
        library, such as numpy's from ONNX Runtime. None where both are of one library: then they stay on their device.

    Raises
    ------
    InvalidArgument
        One of the two is no function; when it is called, ``processor`` returned another shape than it was given.

    Examples
    --------
    >>> import numpy as np
    >>> from coupled_sampling import Sampling
    >>> from coupled_sampling.processors import TransformersProcessor
    >>> def without_the_last_token(input_ids, scores):
    ...     scores[np.arange(len(scores)), input_ids[:, -1]] = -np.inf
    ...     return scores
    >>> adapted = TransformersProcessor(without_the_last_token)
    >>> adapted(np.zeros((2, 3)), np.array([1, 0]), np.array([1, 2])).tolist()
    [[0.0, -inf, 0.0], [-inf, 0.0, 0.0]]
    >>> Sampling(processors=(adapted,)).processors[0] is adapted
    True

    With torch and transformers installed, for a model that gives numpy arrays::

        TransformersProcessor(EpsilonLogitsWarper(1e-3), array=torch.asarray)
    """

    processor: Callable[[Any, Any], Any]
    array: Callable[[NDArray[Any]], Any] | None = None

    def __post_init__(self) -> None:
        if not callable(self.processor):
            raise InvalidArgument(f"processor is {self.processor!r}, expected a function (input_ids, scores) -> scores")
        if self.array is not None and not callable(self.array):
            raise InvalidArgument(
                f"array is {self.array!r}, expected a function of numpy arrays, such as torch.asarray"
            )

    def __call__(self, logits: Array, tokens: Integers, positions: Integers) -> Array:
        """See `coupled_sampling.contracts.Processor`."""
        slots = [self._slot(logits[j : j + 1, ...], tokens[:end]) for j, end in enumerate(positions.tolist())]
        return namespace(logits).concat(slots, axis=0)

    def _slot(self, logits: Array, context: Integers) -> Array:
        """Logits (1, V) of one slot after ``context`` (length,)."""
        input_ids = context[None].copy()  # its own, as it may be written to
        if self.array is not None:
            given = self.array(input_ids), self.array(np.array(to_host(logits)))
        else:
            given = from_host(input_ids, logits), namespace(logits).astype(logits, logits.dtype, copy=True)
        changed = self.processor(*given)
        shape = getattr(changed, "shape", None)
        if shape is None or tuple(shape) != tuple(logits.shape):
            raise InvalidArgument(
                f"processor {self.processor!r} returned {type(changed).__name__} of shape {shape}, expected scores of shape "
                f"{tuple(logits.shape)}, as it was given"
            )
        return as_like(changed, logits)

"""What a sequence asks of sampling: how logits become its target law, and whose noise it uses.

The types of arrays that everything is written in stand here, too, since nothing in the library lies below them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.errors import InvalidArgument

__all__ = ["Array", "Integers", "Processor", "RowInfo", "Sampling"]

Array: TypeAlias = Any
"""An array of any library that follows the Python array API standard (numpy, torch, CuPy, JAX, ...)."""

Integers: TypeAlias = NDArray[np.int64]
"""A numpy int64 array."""

Processor: TypeAlias = Callable[[Array, Integers, Integers], Array]
"""``processor(logits (n, V), tokens (L,), positions (n,)) -> logits (n, V)``, one row at a time.

``tokens`` are the row's tokens from position 0 on, drafts included; ``logits[j]`` are for ``positions[j]``, whose context is
``tokens[:positions[j]]``. Looking further right breaks losslessness. The result must be a new array.
"""


@dataclass(frozen=True)
class Sampling:
    """How logits become the target law. Applied in this order, each on the outcome of the one before:

    processors, temperature, top-k, top-p, min-p, softmax. (Guidance is a provider, so it comes first.)

    Parameters
    ----------
    temperature
        Logits are divided by it; 0 is greedy: all mass on the first largest logit. 0, or in [1e-30, 1e30].
    top_k
        Keep the k largest logits and whatever ties with the k-th; None keeps all.
    top_p
        Keep the smallest set of most probable tokens whose mass reaches it, and ties with the last; in (0, 1], 1
        keeps all.
    min_p
        Keep tokens with at least this fraction of the largest probability; in [0, 1], 0 keeps all.
    processors
        Functions from logits to logits, see `Processor`.

    Examples
    --------
    >>> import numpy as np
    >>> from coupled_sampling import Sampling
    >>> from coupled_sampling.target import target_law
    >>> logits = np.log([[0.5, 0.3, 0.2]])
    >>> target_law(logits, Sampling(temperature=0.5)).round(2)
    array([[0.66, 0.24, 0.11]])
    >>> target_law(logits, Sampling(top_k=2)).round(3)
    array([[0.625, 0.375, 0.   ]])

    A processor that forbids token 0 everywhere:

    >>> def without_0(logits, tokens, positions):
    ...     return np.where(np.arange(logits.shape[-1]) == 0, -np.inf, logits)
    >>> Sampling(processors=(without_0,)).warps
    False
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0
    processors: tuple[Processor, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "processors", tuple(self.processors))
        if self.temperature != 0 and not (1e-30 <= self.temperature <= 1e30):
            raise InvalidArgument(
                f"temperature is {self.temperature}, expected 0 (greedy) or a number in [1e-30, 1e30] that float32 can divide by"
            )
        whole = isinstance(self.top_k, int | np.integer) and not isinstance(self.top_k, bool)
        if self.top_k is not None and (not whole or self.top_k < 1):
            raise InvalidArgument(f"top_k is {self.top_k}, expected an integer >= 1, or None to keep all tokens")
        if not (0 < self.top_p <= 1):
            raise InvalidArgument(f"top_p is {self.top_p}, expected a number in (0, 1]; 1 keeps all tokens")
        if not (0 <= self.min_p <= 1):
            raise InvalidArgument(f"min_p is {self.min_p}, expected a number in [0, 1]; 0 keeps all tokens")

    @property
    def warps(self) -> bool:
        """Whether it cuts tokens off, by top-k, top-p or min-p."""
        return self.top_k is not None or self.top_p < 1 or self.min_p > 0


@dataclass(frozen=True)
class RowInfo:
    """What stays the same for a sequence while it occupies a row: whose noise it uses, and its sampling settings.

    Examples
    --------
    >>> from coupled_sampling import Sampling
    >>> from coupled_sampling.contracts import RowInfo
    >>> RowInfo(seed=7, sequence=0, sampling=Sampling(top_k=5)).sampling.top_k
    5
    """

    seed: int
    sequence: int
    sampling: Sampling

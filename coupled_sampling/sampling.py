"""What a sequence asks of sampling: how logits become its target law, and whose noise it uses.

The types of arrays that everything is written in stand here, too, since nothing in the library lies below them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.errors import InvalidArgument

__all__ = ["Array", "Integers", "Processor", "RowInfo", "Sampling", "SequenceProcessor"]

Array: TypeAlias = Any
"""An array of any library that follows the Python array API standard (numpy, torch, CuPy, JAX, ...)."""

Integers: TypeAlias = NDArray[np.int64]
"""A numpy int64 array."""

Processor: TypeAlias = Callable[[Array, Integers, Integers], Array]
"""``processor(logits (n, V), tokens (L,), positions (n,)) -> logits (n, V)``, one row at a time.

``tokens`` are the row's tokens from position 0 on, drafts included; ``logits[j]`` are for ``positions[j]``, whose context is
``tokens[:positions[j]]``. Looking further right breaks losslessness. The result must be a new array. All three are handed out
read-only, as far as their library can. One that raises ends its request, if the slot it raised at is decided.
"""


@runtime_checkable
class SequenceProcessor(Protocol):
    """What makes a `Processor` for one sequence: it may look at the prompt, and keep a state that no other sequence shares.

    Examples
    --------
    No token of the prompt may come again:

    >>> import numpy as np
    >>> from coupled_sampling import Sampling, generate
    >>> class NothingOfThePrompt:
    ...     def begin(self, prompt):
    ...         return lambda logits, tokens, positions: np.where(np.isin(np.arange(logits.shape[-1]), prompt), -np.inf, logits)
    >>> class Flat:
    ...     vocab_size, batch_size, max_length = 3, 1, 64
    ...     def forward(self, tokens, start):
    ...         return np.zeros((*tokens.shape, 3))
    >>> generate(Flat(), [[0, 1]], length=4, sampling=Sampling(processors=(NothingOfThePrompt(),))).tokens
    [array([2, 2, 2, 2])]
    """

    def begin(self, prompt: Integers) -> Processor:
        """The processor of a sequence that begins with ``prompt`` int64 (L,)."""
        ...


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
        Functions from logits to logits, see `Processor`; or what makes one for a sequence, see `SequenceProcessor`.

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
    processors: tuple[Processor | SequenceProcessor, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "processors", _processors(self.processors))
        for name in ("temperature", "top_p", "min_p"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, Real):
                raise InvalidArgument(f"{name} is {value!r}, expected a number")
            if not isinstance(value, int | float):  # such as a fraction, by which arrays cannot be divided
                object.__setattr__(self, name, float(value))
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

    def begin(self, prompt: Integers) -> Sampling:
        """The same for one sequence: whatever makes processors has made its own.

        Parameters
        ----------
        prompt
            int64 (L,), what the sequence begins with.
        """
        if not any(isinstance(processor, SequenceProcessor) for processor in self.processors):
            return self
        return replace(
            self,
            processors=tuple(p.begin(prompt) if isinstance(p, SequenceProcessor) else p for p in self.processors),
        )


def _processors(given: Any) -> tuple[Processor | SequenceProcessor, ...]:
    """``given`` as a tuple of what can be a processor."""
    try:
        processors = tuple(given)
    except TypeError:
        raise InvalidArgument(
            f"processors is {given!r}, expected a sequence of functions; one of them still goes in a tuple"
        ) from None
    for processor in processors:
        if not callable(processor) and not isinstance(processor, SequenceProcessor):
            raise InvalidArgument(
                f"processors holds {processor!r}, expected functions (logits, tokens, positions) -> logits or objects with begin"
            )
    return processors


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
    logprobs: bool = False
    """Whether the log-probabilities of its committed tokens under their target laws are wanted."""
    model_logprobs: bool = False
    """Whether those under the model's own laws are."""
    laws: bool = False
    """Whether the target laws themselves are, for a drafting rule that asks for them."""

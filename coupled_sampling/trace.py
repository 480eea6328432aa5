"""What a generation did: one `Trace` per sequence, and their summary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.errors import InvalidArgument
from coupled_sampling.sampling import Integers

__all__ = ["Summary", "Trace", "summarise"]


@dataclass
class Trace:
    """The steps of one sequence.

    Parameters
    ----------
    committed_per_step
        New committed tokens of each step, in order. Steps that only forwarded a part of the prompt commit 0; a stop
        token ends the count of its step.
    seconds
        Wall-clock time between the sequence's first and last step, both included. Sequences of a batch share their
        time.
    reason
        Why it ended: "length", "stop", "error" or "removed"; None while it goes on.
    branch_tokens
        Which of the committed tokens were drafts of branches: their indices, in order.

    Examples
    --------
    >>> from coupled_sampling import Trace
    >>> trace = Trace(committed_per_step=[1, 3, 0, 2])
    >>> trace.nfe, trace.tokens, trace.tokens_per_step
    (4, 6, 1.5)
    >>> trace.step_of_token
    array([0, 1, 1, 1, 3, 3])
    """

    committed_per_step: list[int] = field(default_factory=list)
    seconds: float = 0.0
    reason: str | None = None
    branch_tokens: list[int] = field(default_factory=list)

    @property
    def nfe(self) -> int:
        """Number of forward passes."""
        return len(self.committed_per_step)

    @property
    def tokens(self) -> int:
        """Committed tokens, the prompt not counted."""
        return sum(self.committed_per_step)

    @property
    def tokens_per_step(self) -> float:
        """Committed tokens over forward passes."""
        return self.tokens / self.nfe if self.nfe else 0.0

    @property
    def step_of_token(self) -> Integers:
        """int64 (tokens,): the step, from 0, at which each token was committed."""
        return np.repeat(np.arange(self.nfe, dtype=np.int64), self.committed_per_step)


@dataclass(frozen=True)
class Summary:
    """Figures over several sequences; spreads are between sequences.

    Examples
    --------
    >>> from coupled_sampling import Trace, summarise
    >>> summary = summarise([Trace([1, 3]), Trace([2, 1, 1])])
    >>> summary.nfe_mean, summary.nfe_sem, summary.tokens_per_step
    (2.5, 0.5, 1.6)
    """

    sequences: int
    tokens: int
    nfe_mean: float
    nfe_sem: float
    """Standard error of ``nfe_mean``; 0 for a single sequence."""
    tokens_per_step: float
    """All committed tokens over all forward passes."""
    committed_histogram: NDArray[np.int64]
    """``[k]`` steps committed k tokens."""


def summarise(traces: Sequence[Trace]) -> Summary:
    """The `Summary` of ``traces``, which must not be empty.

    Examples
    --------
    >>> from coupled_sampling import Trace, summarise
    >>> summarise([Trace([1, 3]), Trace([2, 1, 1])]).committed_histogram  # three steps of 1 token, one of 2, one of 3
    array([0, 3, 1, 1])
    """
    if (
        isinstance(traces, str)
        or not isinstance(traces, Sequence)
        or not traces
        or not all(isinstance(t, Trace) for t in traces)
    ):
        raise InvalidArgument(f"traces is {traces!r}, expected a sequence of at least one Trace")
    nfe = np.array([trace.nfe for trace in traces], float)
    tokens = sum(trace.tokens for trace in traces)
    steps = np.concatenate([np.asarray(trace.committed_per_step, np.int64) for trace in traces])
    spread = float(nfe.std(ddof=1) / np.sqrt(len(nfe))) if len(nfe) > 1 else 0.0
    return Summary(
        sequences=len(traces),
        tokens=tokens,
        nfe_mean=float(nfe.mean()),
        nfe_sem=spread,
        tokens_per_step=tokens / max(1, int(nfe.sum())),
        committed_histogram=np.bincount(steps) if steps.size else np.zeros(1, np.int64),
    )

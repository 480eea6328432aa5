"""The two contracts everything is written against: `LogitsProvider` and `CoupledStep`.

A **logits provider** is any autoregressive model that can score a window of tokens: a table, a numpy function, an ONNX
session, a GPU engine. One method is the whole contract. There is no method to roll back, because *the last write wins*:
state for a position is replaced whenever that position is forwarded again, so undoing is starting lower. There is no
method for prompts, because a prompt is a run of known tokens.

A **coupled step** is one forward pass plus acceptance and redrafting. The decoding loop talks to nothing else.
`coupled_sampling.host_step.HostStep` makes one from any provider; a backend may do the whole step where the logits are.

Words are those of the project: a *window* is the consecutive positions forwarded in one step, known (committed) tokens
first, then drafts; a *slot* is an index into it. Slot j's context is the slots before it and the state below ``start``.
"""

from __future__ import annotations

from types import TracebackType
from typing import Protocol, Self, runtime_checkable

from coupled_sampling.draws import Noise
from coupled_sampling.methods import Method
from coupled_sampling.offers import (
    Forks,
    GivesLaws,
    PointMassesOnly,
    PromptReader,
    ReadsPrompts,
    RequestObserver,
    RowRanges,
    Selective,
    Trees,
    TreeSteps,
    Wraps,
)
from coupled_sampling.requests import Request
from coupled_sampling.running import Closeable, Runs, SaysWhatRuns, what_runs
from coupled_sampling.sampling import Array, Integers, Processor, RowInfo, Sampling, SequenceProcessor
from coupled_sampling.slots import Candidates, Decisions, Outcome, Sites, TreeDecisions, Window

__all__ = [
    "Array",
    "Candidates",
    "Closeable",
    "CoupledStep",
    "Decisions",
    "Forks",
    "GivesLaws",
    "Integers",
    "LogitsProvider",
    "OpenProvider",
    "OpenStep",
    "Outcome",
    "PointMassesOnly",
    "Processor",
    "PromptReader",
    "ReadsPrompts",
    "RequestObserver",
    "RowInfo",
    "RowRanges",
    "Runs",
    "Sampling",
    "SaysWhatRuns",
    "Selective",
    "SequenceProcessor",
    "Sites",
    "TreeDecisions",
    "TreeSteps",
    "Trees",
    "Window",
    "Wraps",
    "max_window",
    "prompt_chunk",
    "what_runs",
]


@runtime_checkable
class LogitsProvider(Protocol):
    """An autoregressive model with state, reduced to one method.

    Attributes
    ----------
    vocab_size
        V: tokens are ints in [0, V).
    batch_size
        Rows it holds state for.
    max_length
        Positions it can hold per row.

    Notes
    -----
    An optional attribute ``max_window`` bounds W (default: ``max_length``). Whatever else a provider can do it offers by a
    Protocol: `RequestObserver`, `Selective`, `RowRanges`, `Trees`, `ReadsPrompts`, `Forks`,
    `Closeable`, `SaysWhatRuns`. It belongs to one
    `coupled_sampling.Decoder` at a time. `coupled_sampling.check_window` refuses what it cannot hold.

    Examples
    --------
    A model that prefers to repeat its last token; it needs no memory beyond that token, so ``start`` is ignored:

    >>> import numpy as np
    >>> from coupled_sampling import LogitsProvider, generate
    >>> class Echo:
    ...     vocab_size, batch_size, max_length = 4, 1, 64
    ...     def forward(self, tokens, start):  # int64 (B, W) and (B,) -> logits (B, W, V)
    ...         return 9.0 * (tokens[..., None] == np.arange(4))
    >>> isinstance(Echo(), LogitsProvider)
    True
    >>> generate(Echo(), [[2]], length=5).tokens
    [array([2, 2, 2, 2, 2])]
    """

    @property
    def vocab_size(self) -> int: ...

    @property
    def batch_size(self) -> int: ...

    @property
    def max_length(self) -> int: ...

    def forward(self, tokens: Integers, start: Integers) -> Array:
        """Score a window.

        Parameters
        ----------
        tokens
            int64 (B, W): row b's token j sits at position ``start[b] + j``. B may be smaller than ``batch_size``: it
            is then the first B rows. W is at most ``max_window`` and ``start[b] + W <= max_length``.
        start
            int64 (B,). State is held for all positions below ``start[b]``; state for the window is written, replacing
            what was there. Both arrays are read-only.

        Returns
        -------
        Array
            Floating logits (B, W, V): ``[b, j]`` are for position ``start[b] + j + 1``. Rows do not influence each
            other. The array may be reused by the next call.
        """
        ...


def max_window(provider: LogitsProvider | CoupledStep) -> int:
    """Most slots that ``provider``, or a step, takes in one call.

    Examples
    --------
    >>> from coupled_sampling.contracts import max_window
    >>> from coupled_sampling.testing import TableProvider, random_table
    >>> model = TableProvider(random_table(0, 3), 3, max_length=40)
    >>> max_window(model)  # it does not say, so a window may be as long as its memory
    40
    """
    return min(int(getattr(provider, "max_window", provider.max_length)), provider.max_length)


def prompt_chunk(provider: LogitsProvider) -> int:
    """Most known tokens of a row to forward with ``provider`` in one call while a prompt is read: 256 if it does not say.

    Logits of 256 slots of a large vocabulary are as much memory as one wants to spend.

    Examples
    --------
    >>> from coupled_sampling.contracts import prompt_chunk
    >>> from coupled_sampling.testing import TableProvider, random_table
    >>> prompt_chunk(TableProvider(random_table(0, 3), 3, max_length=1024))
    256
    """
    wanted = provider.prompt_chunk if isinstance(provider, ReadsPrompts) else 256
    return max(1, min(int(wanted), max_window(provider)))


@runtime_checkable
class CoupledStep(Protocol):
    """One forward pass over a window, then acceptance and redrafting.

    It owns what must survive between two steps of a row and need not reach the host: the provider's cache and the
    laws of the drafts it redrew. It may offer `ReadsPrompts` and `Forks`, and more width than the others (`PromptReader`).

    Examples
    --------
    `HostStep` makes a step of a provider, and a decoder takes it in place of a model:

    >>> from coupled_sampling import HostStep, generate
    >>> from coupled_sampling.testing import TableProvider, random_table
    >>> step = HostStep(TableProvider(random_table(0, 5), 5), "scd-match")
    >>> step.method.name, step.vocab_size
    ('scd-match', 5)
    >>> [len(tokens) for tokens in generate(step, [[0], [1]], length=6).tokens]
    [6, 6]
    """

    @property
    def method(self) -> Method: ...

    @property
    def vocab_size(self) -> int: ...

    @property
    def batch_size(self) -> int: ...

    @property
    def max_length(self) -> int: ...

    @property
    def max_window(self) -> int: ...

    @property
    def noise(self) -> Noise: ...

    @property
    def runs(self) -> Runs: ...

    def takes(self, request: Request) -> str | None:
        """None if it can do what ``request`` asks for; else why not, see `Selective.takes`. Asked before anything runs."""
        ...

    def begin(self, row: int, request: Request) -> None:
        """Row ``row`` starts ``request``: forget the one before. What it raises ends the request."""
        ...

    def step(self, window: Window) -> Outcome:
        """Forward ``window``, accept a leading run of its drafts and redraft the rest.

        What belongs to one row and fails is told in the outcome. If it raises, no row has changed.
        """
        ...

    def close(self) -> None:
        """Give back what it holds, the model under it included. See `Closeable.close`."""
        ...


class OpenStep(CoupledStep, Protocol):
    """A step that was opened: a context manager that says what runs it.

    Examples
    --------
    >>> from coupled_sampling import HostStep
    >>> from coupled_sampling.testing import TableProvider, random_table
    >>> with HostStep(TableProvider(random_table(0, 5), 5), "sjd") as step:
    ...     print(step.runs)
    on TableProvider, step: host
    """

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class OpenProvider(LogitsProvider, Protocol):
    """A provider that was opened: a context manager that says what runs it.

    Examples
    --------
    >>> from coupled_sampling import GuidedProvider
    >>> from coupled_sampling.testing import TableProvider, random_table
    >>> with GuidedProvider(TableProvider(random_table(0, 5), 5, batch_size=2), 2.0, [1]) as model:
    ...     model.batch_size, model.runs.execution_provider
    (1, 'TableProvider')
    """

    @property
    def runs(self) -> Runs: ...

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

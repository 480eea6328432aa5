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

from coupled_sampling.methods import Method
from coupled_sampling.running import Closeable, Runs, SaysWhatRuns, what_runs
from coupled_sampling.sampling import Array, Integers, Processor, RowInfo, Sampling
from coupled_sampling.slots import Decisions, Outcome, Sites, Window

__all__ = [
    "Array",
    "Closeable",
    "CoupledStep",
    "Decisions",
    "Integers",
    "LogitsProvider",
    "OpenProvider",
    "OpenStep",
    "Outcome",
    "Processor",
    "PromptObserver",
    "RowInfo",
    "Runs",
    "Sampling",
    "SaysWhatRuns",
    "Sites",
    "Window",
    "max_window",
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
    An optional attribute ``max_window`` bounds W (default: ``max_length``). A provider that must know which prompt a
    row works on (see `PromptObserver`) may offer ``begin``; one that holds memory to be given back, ``close``
    (`Closeable`); one that knows what runs it, ``runs`` (`SaysWhatRuns`).

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
            what was there.

        Returns
        -------
        Array
            Floating logits (B, W, V): ``[b, j]`` are for position ``start[b] + j + 1``. Rows do not influence each
            other. The array may be reused by the next call.
        """
        ...


@runtime_checkable
class PromptObserver(Protocol):
    """What a provider offers when it must be told which prompt a row works on (guidance does).

    Examples
    --------
    >>> import numpy as np
    >>> from coupled_sampling import generate
    >>> class Told:
    ...     vocab_size, batch_size, max_length = 2, 1, 64
    ...     def begin(self, row, prompt):
    ...         print("row", row, "starts with", prompt)
    ...     def forward(self, tokens, start):
    ...         return np.zeros((*tokens.shape, 2))
    >>> _ = generate(Told(), [[1, 0]], length=1)
    row 0 starts with [1 0]
    """

    def begin(self, row: int, prompt: Integers) -> None:
        """Row ``row`` starts a new sequence with ``prompt`` int64 (L,)."""
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


class CoupledStep(Protocol):
    """One forward pass over a window, then acceptance and redrafting.

    It owns what must survive between two steps of a row and need not reach the host: the provider's cache and the
    laws of the drafts it redrew.

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
    def runs(self) -> Runs: ...

    def begin(self, row: int, prompt: Integers) -> None:
        """Row ``row`` starts a new sequence: forget the one before."""
        ...

    def step(self, window: Window) -> Outcome:
        """Forward ``window``, accept a leading run of its drafts and redraft the rest."""
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

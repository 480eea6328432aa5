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

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NamedTuple, Protocol, Self, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.errors import InvalidArgument
from coupled_sampling.methods import Method
from coupled_sampling.running import Closeable, Runs, SaysWhatRuns, what_runs

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

Array: TypeAlias = Any
"""An array of any library that follows the Python array API standard (numpy, torch, CuPy, JAX, ...)."""

Integers: TypeAlias = NDArray[np.int64]
"""A numpy int64 array."""

Processor: TypeAlias = Callable[[Array, Integers, Integers], Array]
"""``processor(logits (n, V), tokens (L,), positions (n,)) -> logits (n, V)``, one row at a time.

``tokens`` are the row's tokens from position 0 on, drafts included; ``logits[j]`` are for ``positions[j]``, whose context is
``tokens[:positions[j]]``. Looking further right breaks losslessness. The result must be a new array.
"""


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


class Sites(NamedTuple):
    """Where draws are wanted: whose noise, which position, which round. Numpy; B rows of n sites.

    Examples
    --------
    Three positions of one sequence, in its round 2:

    >>> import numpy as np
    >>> from coupled_sampling.contracts import Sites
    >>> sites = Sites(
    ...     seed=np.array([7], np.uint64), sequence=np.array([0], np.uint64), round=np.array([2]),
    ...     position=np.array([[4, 5, 6]]), valid=np.ones((1, 3), bool),
    ... )
    >>> sites.position.shape
    (1, 3)
    """

    seed: NDArray[np.uint64]
    """(B,)."""
    sequence: NDArray[np.uint64]
    """(B,)."""
    round: Integers
    """(B,)."""
    position: Integers
    """(B, n), increasing along a row; consecutive where the position's shared noise is asked for."""
    valid: NDArray[np.bool_]
    """(B, n) sites at which a draw may be asked for; they are consecutive along a row."""

    def at(self, rows: Integers, slots: Integers) -> Sites:
        """The K single sites ``(rows[k], slots[k])``, as K rows of one."""
        return Sites(
            seed=self.seed[rows],
            sequence=self.sequence[rows],
            round=self.round[rows],
            position=self.position[rows, slots][:, None],
            valid=np.ones((len(rows), 1), bool),
        )


class Decisions(NamedTuple):
    """The slots of one step that decide: column j of these arrays (B, n) is slot ``first + j`` of the window.

    Examples
    --------
    A known token, then two recycled drafts: three slots decide, and the last of them has no draft to test.

    >>> import numpy as np
    >>> from coupled_sampling import Sampling, Window
    >>> from coupled_sampling.contracts import RowInfo
    >>> one = np.array([1])
    >>> window = Window(
    ...     np.array([[5, 3, 3]]), 9 * one, one, 2 * one, 0 * one, one == 1, one, [RowInfo(0, 0, Sampling())], [one], [None]
    ... )
    >>> decisions = window.decisions()
    >>> decisions.draft, decisions.has_draft
    (array([[3, 3, 0]]), array([[ True,  True, False]]))
    """

    sites: Sites
    """What each slot decides; ``valid`` are those that decide, see `Window.decides`."""
    first: int
    """The first slot that any row decides; those before it only forward known tokens. W where nothing is decided."""
    draft: Integers
    """(B, n) the draft to test, anything where there is none."""
    has_draft: NDArray[np.bool_]
    """(B, n); a row's last deciding slot has none: its token is free."""


class Window(NamedTuple):
    """One step's input. All arrays are numpy, B rows; W is the widest row's number of slots.

    A row's slots are, from the left: ``known`` committed tokens, ``recycled`` drafts (this step's own redrafts of the
    round before, so it has their laws), ``fresh`` drafts (first guesses), then padding. An idle row has none of them.

    A slot's logits are for the position after its own. So what decides is the slot of the last known token, which decides
    about the first draft, and each slot of a draft; nothing decides in a row that does not draw.

    Examples
    --------
    What a step is given when a row has one known token, two recycled drafts and one fresh draft:

    >>> import numpy as np
    >>> from coupled_sampling import Sampling, Window
    >>> from coupled_sampling.contracts import RowInfo
    >>> one = lambda value: np.array([value])
    >>> window = Window(
    ...     tokens=np.array([[5, 1, 1, 4]]), start=one(9), known=one(1), recycled=one(2), fresh=one(1),
    ...     draws=one(True), round=one(3),
    ...     rows=[RowInfo(0, 0, Sampling())], contexts=[np.array([0, 2, 2, 3, 1, 0, 1, 2, 4, 5, 1, 1, 4])], fresh_laws=[None],
    ... )
    >>> int((window.known + window.recycled + window.fresh)[0]) == window.tokens.shape[1]
    True
    """

    tokens: Integers
    """(B, W)."""
    start: Integers
    """(B,) position of slot 0."""
    known: Integers
    """(B,)."""
    recycled: Integers
    """(B,)."""
    fresh: Integers
    """(B,)."""
    draws: NDArray[np.bool_]
    """(B,) whether the row commits anything: false while its prompt goes on beyond the window, and for idle rows."""
    round: Integers
    """(B,) the sequence's own step counter."""
    rows: Sequence[RowInfo | None]
    """B entries, None for an idle row."""
    contexts: Sequence[Integers]
    """B arrays: the row's tokens from position 0 to the end of its window, for processors."""
    fresh_laws: Sequence[Array | None]
    """B entries: laws (fresh, V) that the fresh drafts were drawn from, or None for point masses."""

    @property
    def end(self) -> Integers:
        """(B,) slots that are not padding."""
        return self.known + self.recycled + self.fresh

    @property
    def positions(self) -> Integers:
        """(B, W) the position that each slot's logits are for."""
        return self.start[:, None] + np.arange(1, self.tokens.shape[1] + 1)

    def decided_positions(self, row: int) -> tuple[int, int]:
        """What ``row`` decides, if it draws: the positions ``first`` to ``end - 1``, those of its drafts and one more."""
        first = int(self.start[row] + self.known[row])
        return first, first + int(self.recycled[row] + self.fresh[row]) + 1

    def decides(self) -> NDArray[np.bool_]:
        """(B, W) whether a slot decides."""
        slot = np.arange(self.tokens.shape[1])
        return self.draws[:, None] & (slot >= self.known[:, None] - 1) & (slot < self.end[:, None])

    def decisions(self) -> Decisions:
        """The slots that decide, as sites to draw at; n = 0 if no row draws.

        Examples
        --------
        Known tokens 7 and 5, then a recycled draft 3:

        >>> one = np.array([1])
        >>> row = RowInfo(seed=0, sequence=0, sampling=Sampling())
        >>> window = Window(
        ...     np.array([[7, 5, 3]]), 10 * one, 2 * one, one, 0 * one, one == 1, one, [row], [np.zeros(0, int)], [None]
        ... )
        >>> found = window.decisions()
        >>> found.first, found.sites.position.tolist(), found.draft[found.has_draft].tolist()
        (1, [[12, 13]], [3])
        """
        rows, width = self.tokens.shape
        first = int((self.known[self.draws] - 1).min(initial=width))
        valid = self.decides()[:, first:]
        draft = np.zeros((rows, width - first), np.int64)
        draft[:, :-1] = self.tokens[:, first + 1 :]
        has_draft = np.zeros(valid.shape, np.bool_)
        has_draft[:, :-1] = valid[:, :-1] & valid[:, 1:]  # the draft of a slot stands in the next one
        sites = Sites(
            seed=np.array([0 if info is None else info.seed for info in self.rows], np.uint64),
            sequence=np.array([0 if info is None else info.sequence for info in self.rows], np.uint64),
            round=self.round,
            position=self.positions[:, first:],
            valid=valid,
        )
        return Decisions(sites, first, draft, has_draft)


class Outcome(NamedTuple):
    """One step's result, in numpy. ``tokens[b, j]`` is for position ``start[b] + j + 1``.

    Examples
    --------
    A row that had one known token and three drafts. Its first draft was accepted, its second corrected; two positions were
    redrafted:

    >>> import numpy as np
    >>> from coupled_sampling import Outcome
    >>> outcome = Outcome(tokens=np.array([[1, 7, 1, 4]]), committed=np.array([2]))
    >>> outcome.tokens[0, : outcome.committed[0]]
    array([1, 7])
    """

    tokens: Integers
    """(B, W): from slot ``known - 1`` on, first the ``committed`` tokens, then redrafts (if the method recycles)."""
    committed: Integers
    """(B,) new committed tokens: accepted drafts and one more; 0 where the row draws nothing."""


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

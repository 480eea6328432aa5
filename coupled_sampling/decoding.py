"""The decoding loop: rows, windows, commit, stop. One loop for all methods and all models.

A row holds a sequence: its committed tokens, then drafts; and how many of its positions the model has cached. A step

1. reads a chunk of a prompt that is longer than a window (`coupled_sampling.reading`);
2. takes the tokens after the cached prefix, known ones first, then recycled drafts, then fresh drafts, up to the
   window (`coupled_sampling.assembly`);
3. has a `CoupledStep` forward and decide them;
4. commits what was decided, keeps the redrafts, and moves the cached prefix to the last committed token that was
   forwarded (`coupled_sampling.rows`).

Rows are independent in everything: what belongs to one request and fails ends that request, and the others' step stands.

Nothing here knows mathematics or draws randomness: laws belong to the step, fresh drafts to the drafting rule.
"""

from __future__ import annotations

import threading
import time
import warnings
from collections import Counter, deque
from collections.abc import Sequence

from coupled_sampling.admission import Preparation
from coupled_sampling.arguments import check_count, check_flag
from coupled_sampling.assembly import Assembly
from coupled_sampling.branching import Branching
from coupled_sampling.contracts import CoupledStep, Integers, LogitsProvider, RequestObserver, TreeSteps, Wraps
from coupled_sampling.corrections import Corrector
from coupled_sampling.drafting import Drafting, find_drafting
from coupled_sampling.errors import InvalidArgument, SharedNoise
from coupled_sampling.host_step import as_step
from coupled_sampling.methods import Method
from coupled_sampling.noise import Noise
from coupled_sampling.ownership import Ownership
from coupled_sampling.reading import PromptReading
from coupled_sampling.requests import Commit, Request
from coupled_sampling.rows import Row, failed
from coupled_sampling.trace import Trace
from coupled_sampling.window_choice import WindowChoice
from coupled_sampling.window_search import Rung
from coupled_sampling.windows import WindowRule

__all__ = ["Commit", "Decoder", "Request"]


class Decoder:
    """Continuous batching: requests come and go while it steps.

    Parameters
    ----------
    model
        A `LogitsProvider`, or a `CoupledStep` (then ``method`` and ``noise`` are its own).
    method
        Name from `coupled_sampling.methods.METHODS`.
    window
        Most slots forwarded per row and step, >= 1; None is 32, or as many as the model takes. A prompt that fits goes into the
        first one. "auto" finds the width that commits most tokens per second, see `coupled_sampling.windows`; then tokens at a seed
        depend on the machine's speed and the batch, but for ``ar`` and methods whose tokens are ``ar``'s, and their law does not.
    drafting
        Rule for fresh drafts, see `coupled_sampling.drafting`.
    noise
        Where draws come from; default `CounterNoise`.
    prompt_chunk
        Most tokens of a prompt that is longer than the window to read in one call; None is the model's own width.
    reuse_prefixes
        Whether what a row holds from its last request serves the next one with the same beginning, which is then not forwarded
        again; also from row to row, where the model can copy its state. Not for models that are told requests, as guided ones are.
    corrections
        Predicts the laws of redrafts whose neighbours changed, see `coupled_sampling.corrections`; a step has its own.
    branches
        How many slots of a window are for branches, or a rule for them; see `coupled_sampling.branching`. For methods whose tokens
        are ``ar``'s. None is what the rule for windows says: none for fixed ones, as many as pay for "auto", if there can be any.

    Notes
    -----
    It belongs to the thread that steps it first; `add`, `check` and `remove` may be called from any. Its model belongs to it while
    sequences are under way: if another decoder takes the model over, the next step raises `coupled_sampling.errors.NotOwner`.

    Examples
    --------
    >>> from coupled_sampling import Decoder, Request
    >>> from coupled_sampling.testing import TableProvider, random_table
    >>> decoder = Decoder(TableProvider(random_table(0, 4), 4), method="scd-gumbel", window=4)
    >>> handles = [decoder.add(Request([0], length=9)), decoder.add(Request([1], length=3, seed=1))]
    >>> finished = []
    >>> while decoder.active or decoder.waiting:
    ...     finished += [commit.handle for commit in decoder.step() if commit.finished]
    >>> handles, finished  # one row: the second request waits for the first
    ([0, 1], [0, 1])
    """

    def __init__(
        self,
        model: LogitsProvider | CoupledStep,
        *,
        method: str | Method = "scd-gumbel",
        window: int | str | WindowRule | None = None,
        drafting: str | Drafting = "random",
        noise: Noise | None = None,
        prompt_chunk: int | None = None,
        reuse_prefixes: bool = False,
        corrections: Corrector | None = None,
        branches: int | Branching | None = None,
    ) -> None:
        step = as_step(model, method, noise, corrections)
        if noise is not None and step.noise is not noise:
            raise InvalidArgument("noise was given beside a step that has a noise of its own; leave one of them out")
        check_flag("reuse_prefixes", reuse_prefixes)
        if prompt_chunk is not None:
            check_count("prompt_chunk", prompt_chunk)
            if prompt_chunk > step.max_window:
                raise InvalidArgument(
                    f"prompt_chunk is {prompt_chunk}, the model takes at most {step.max_window} slots at once; ask for fewer"
                )
        self._step, self._noise = step, step.noise
        self._windows = WindowChoice(window, branches, step)
        self._records = self._windows.records
        self._drafting = find_drafting(drafting)
        models = {"draft model": self._drafting} if isinstance(self._drafting, Wraps) else {}
        self._owns = Ownership(model=step, **models)
        self._preparation = Preparation(step, self._drafting)
        refuses_laws = self._preparation.refuses_laws
        self._assembly = Assembly(
            step.method,
            self._drafting,
            self._noise,
            step.vocab_size,
            refuses_laws,
            self._windows.branching,
            step.max_window,
            self._windows.columns,
            step.corrections if isinstance(step, TreeSteps) else None,
        )
        self._reading = PromptReading(step, prompt_chunk, reuse_prefixes)
        self._rows: list[Row | None] = [None] * step.batch_size
        self._waiting: deque[Row] = deque()
        self._keys: Counter[tuple[int, int]] = (
            Counter()
        )  # of waiting and of rows: looking through all takes long where many wait
        self._leaving: list[Row] = []
        self._told: list[Commit] = []  # kept until a step returns: if the model raises, the next one tells them
        self._next_handle = 0
        self._lock = threading.Lock()
        """Held while rows or the queue change; never while a model runs."""

    @property
    def method(self) -> Method:
        """The decoding method."""
        return self._step.method

    @property
    def batch_size(self) -> int:
        """Sequences decoded together, at most."""
        return len(self._rows)

    @property
    def window(self) -> int:
        """Most slots of the next step."""
        return self._windows.next(_span(self._rows)).width

    @property
    def branches(self) -> int:
        """How many slots of the next step are for branches."""
        return self._windows.next(_span(self._rows)).branches

    @property
    def active(self) -> int:
        """Sequences that occupy a row."""
        return sum(row is not None for row in self._rows)

    @property
    def waiting(self) -> int:
        """Sequences that wait for a row."""
        return len(self._waiting)

    def check(self, request: Request) -> None:
        """Refuse what cannot be decoded, as `add` does; nothing is queued and nothing runs. From any thread.

        Raises
        ------
        InvalidArgument
            It names the argument: the prompt, its length with what is to come, stop tokens outside the vocabulary, or what the
            step, the model or the drafting rule cannot do.

        Examples
        --------
        >>> from coupled_sampling import Decoder, Request
        >>> from coupled_sampling.testing import TableProvider, random_table
        >>> decoder = Decoder(TableProvider(random_table(0, 4), 4, max_length=16), window=8)
        >>> decoder.check(Request([0], length=9))
        >>> decoder.check(Request([0], length=9, stop=[4]))
        Traceback (most recent call last):
        coupled_sampling.errors.InvalidArgument: stop token 0 is 4, expected tokens in [0, 4)
        """
        self._preparation.rows(request)

    def add(self, request: Request) -> int:
        """Queue ``request``; it starts at the next step for which a row is free. From any thread.

        Returns
        -------
        int
            A handle: it names the sequence in commits and in `remove`. Of several samples it is the first one's, and sample k has
            the handle k higher.

        Raises
        ------
        InvalidArgument
            See `check`.
        """
        rows = self._preparation.rows(request)
        with self._lock:
            for row in rows:
                row.handle, self._next_handle = self._next_handle, self._next_handle + 1
            twice = [row for row in rows if row.key in self._keys]
        if twice:  # before they are queued: a warning may be made an error
            seed, sequence = twice[0].key
            warnings.warn(
                f"two requests under way have seed {seed} and sequence {sequence}: they draw with the same noise, so that equal "
                "prompts give equal tokens and others are not independent; give each a sequence of its own, or sequence=None",
                SharedNoise,
                stacklevel=2,
            )
        with self._lock:
            self._waiting.extend(rows)
            self._keys.update(row.key for row in rows)
        return rows[0].handle

    def remove(self, handle: int) -> Integers:
        """Drop a sequence that is waiting or under way; returns its generated tokens so far. From any thread.

        Raises
        ------
        InvalidArgument
            No such sequence is waiting or under way.
        """
        with self._lock:
            row = self._find(handle)
            if row in self._waiting:
                self._waiting.remove(row)
            else:
                self._rows[self._rows.index(row)] = None
                self._leaving.append(row)  # its noise is forgotten by the thread that draws
            self._uncount(row)
            row.trace.reason = "removed"
            return row.tokens[row.prompt_length : row.committed].copy()

    def request(self, handle: int) -> Request:
        """The request of a sequence that is waiting or under way, with the ``sequence`` number that was drawn for it.

        Raises
        ------
        InvalidArgument
            No such sequence is waiting or under way.
        """
        with self._lock:
            return self._find(handle).request

    def _find(self, handle: int) -> Row:
        for row in (*self._waiting, *self._rows):
            if row is not None and row.handle == handle:
                return row
        raise InvalidArgument(f"handle {handle} is neither waiting nor under way; it may have finished")

    def trace(self, handle: int) -> Trace:
        """The trace so far of a sequence that is waiting or under way.

        Raises
        ------
        InvalidArgument
            It is neither.
        """
        with self._lock:
            return self._find(handle).trace

    def step(self) -> list[Commit]:
        """One forward pass over all active rows; empty when there is nothing to do, or only prompts were read.

        A finished sequence frees its row before this returns. A request that fails is among the commits, with the reason "error".
        If the model raises, no row has lost anything (chunks of prompts that were read are kept): the step can be tried again.

        Raises
        ------
        NotOwner
            It was called from a second thread, or another decoder took the model over.
        """
        began = time.perf_counter()
        if not self._owns.take(in_progress=self.active > 0):
            self._reading.lose()
        self._forget()
        self._admit()
        if self.active:
            self._read_and_step(began)
        done, self._told = self._told, []
        return done

    def _read_and_step(self, began: float) -> None:
        rows, chosen = list(self._rows), self._windows.next(_span(self._rows))
        alone = min(chosen.width, self._step.max_window)  # a window may be wider than that by its branches only
        for row in rows:
            if row is not None:
                row.began = row.began or began  # of the sequence's first step
        self._reading.share(rows)
        self._reading.read(rows, alone)
        rows = [row if self._rows[b] is row else None for b, row in enumerate(rows)]  # removed while prompts were read
        taking = [row is not None and row.leader is None for row in rows]
        if self._reading.apart:
            taking = [takes and not row.unread(alone) for takes, row in zip(taking, rows, strict=True)]  # type: ignore[union-attr]
        span = _span(rows)
        rows = [row if takes else None for takes, row in zip(taking, rows, strict=True)][:span]
        if any(taking):
            self._step_rows(rows, chosen)

    def _step_rows(self, rows: list[Row | None], chosen: Rung) -> None:
        """A step of ``rows``; the others are None here."""
        began = time.perf_counter()
        idle = [self._reading.holds(b, row) for b, row in enumerate(self._rows[: len(rows)])]
        window, wrong = self._assembly.window(rows, idle, *chosen)
        for b, error in wrong.items():
            row, rows[b] = rows[b], None
            if row is not None:
                self._end(b, row, error)
        if not any(row is not None for row in rows):
            return
        outcome = self._step.step(window)
        walks = self._records.walks(window, outcome, rows)
        try:
            for b, row in enumerate(rows):
                if row is None or self._rows[b] is not row:  # removed meanwhile
                    continue
                commit = row.apply(b, window, outcome, self.method.recycles)
                row.trace.seconds = time.perf_counter() - row.began
                if commit is not None:
                    self._told.append(commit)
            self._reading.share(self._rows)  # a sample that is done may be the one whose prompt others wait for
        finally:  # whatever is raised on the way, no row steps on that is done
            for b, row in enumerate(rows):
                if row is not None and row.trace.reason is not None:
                    self._release(b, row)
        self._records.add(chosen, window, outcome, time.perf_counter() - began, rows, walks)
        self._records.tell(self._rows)

    def _admit(self) -> None:
        """Give free rows to waiting sequences; those that cannot begin end."""
        while True:
            with self._lock:
                if not self._waiting or all(row is not None for row in self._rows):
                    return
                new = self._waiting[0]
                b = self._reading.place(new, self._rows)
                self._rows[b] = self._waiting.popleft()
            try:
                self._step.begin(b, new.request)
                if isinstance(self._drafting, RequestObserver):
                    self._drafting.begin(b, new.request)
                self._reading.enter(b, new, self._rows)
            except Exception as error:  # a stranger's code: anything may come
                self._end(b, new, error)
            except BaseException:  # Ctrl-C: it waits on
                with self._lock:
                    self._rows[b] = None
                    self._waiting.appendleft(new)
                raise

    def _end(self, b: int, row: Row, error: Exception) -> None:
        """End ``row`` because of ``error``, which belongs to it."""
        self._release(b, row)
        row.trace.reason = "error"
        tokens, named = row.tokens[:0].copy(), failed(row.handle, error)
        self._told.append(Commit(row.handle, row.committed, tokens, True, row.trace, "error", named))

    def _release(self, b: int, row: Row) -> None:
        with self._lock:
            if self._rows[b] is row:
                self._rows[b] = None
                self._uncount(row)
        self._reading.leave(b, row)
        self._noise.forget(row.info.seed, row.info.sequence)

    def _uncount(self, row: Row) -> None:
        self._keys[row.key] -= 1
        if not self._keys[row.key]:
            del self._keys[row.key]

    def _forget(self) -> None:
        """Forget the noise of sequences that were removed."""
        with self._lock:
            leaving, self._leaving = self._leaving, []
        for row in leaving:
            self._noise.forget(row.info.seed, row.info.sequence)


def _span(rows: Sequence[Row | None]) -> int:
    """Rows up to the last one in use: as many as a step forwards."""
    return 1 + max((b for b, row in enumerate(rows) if row is not None), default=-1)

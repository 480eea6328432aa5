"""`KernelStep`: a coupled step whose decisions are made by CUDA kernels, over any model whose logits lie on a GPU.

Per step one small upload (the window and its rows' settings), four launches and one small download (tokens, counts and each
slot's largest logit). Logits, laws and noise stay on the device; noise is made there, from the frozen layout of
`coupled_sampling.noise`. Tokens are those of `HostStep`, save where two floats tie.

Each row has two memories for draft laws, of which one is read and the other written; so a step whose outcome was lost on
the way to the loop (Ctrl-C) can be done again.

Compiled and emulated; never run on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.backends.cuda.kernels import DECISION, ROW, Launcher, decide, method_codes, scratch_bytes
from coupled_sampling.backends.cuda.pointers import LOGITS_TYPES, DevicePointer, device_pointer
from coupled_sampling.bounds import check_window
from coupled_sampling.contracts import Integers, LogitsProvider, Outcome, PromptObserver, Window, max_window
from coupled_sampling.errors import InvalidArgument, ProviderError
from coupled_sampling.guidance import GuidedRows
from coupled_sampling.methods import Method, find_method
from coupled_sampling.noise import CounterNoise
from coupled_sampling.target import refuse_unusable

__all__ = ["KernelStep"]


class _Memory:
    """Device memory that grows; what was in it is lost then."""

    def __init__(self, launcher: Launcher) -> None:
        self._launcher = launcher
        self._size = 0
        self.pointer = 0

    def at_least(self, size: int) -> int:
        """Address of ``size`` bytes."""
        if size > self._size:
            if self.pointer:
                self._launcher.release(self.pointer)
                self.pointer = self._size = 0
            self.pointer, self._size = self._launcher.allocate(size), size
        return self.pointer

    def release(self) -> None:
        """Give it back."""
        if self.pointer:
            self._launcher.release(self.pointer)
        self.pointer = self._size = 0


class _Held(NamedTuple):
    """The laws of one row in a memory: their round, the start of that window, and the positions first to end - 1."""

    round: int
    start: int
    first: int
    end: int


class _RowLaws:
    """One row's laws of two rounds."""

    def __init__(self, launcher: Launcher) -> None:
        self.memories = (_Memory(launcher), _Memory(launcher))
        self.held: list[_Held | None] = [None, None]

    def source(self, round_: int, first: int, end: int) -> int | None:
        """Which memory has the laws of positions ``first`` to ``end - 1`` after ``round_``."""
        for i, held in enumerate(self.held):
            if held is not None and held.round == round_ and held.first <= first and end <= held.end:
                return i
        return None

    def newest_before(self, round_: int) -> int:
        """Which memory must be kept while ``round_`` is written."""
        return next((i for i, held in enumerate(self.held) if held is not None and held.round == round_ - 1), 1)


class KernelStep:
    """A `coupled_sampling.contracts.CoupledStep` whose decisions are made by the kernels.

    Parameters
    ----------
    provider
        A `LogitsProvider` whose ``forward`` returns logits on the device: contiguous (B, W, V), float32, float16 or bfloat16,
        with ``__dlpack__`` or ``__cuda_array_interface__``, or a `coupled_sampling.backends.cuda.pointers.DevicePointer`.
        With guidance it has two rows for each of the step's.
    method
        A name from `coupled_sampling.methods.METHODS`, or a `Method`.
    launcher
        Device memory and launches. The logits must be ready in its stream, or say in which stream they are made.
    guidance, unconditional
        Classifier-free guidance, both or neither: the scale, and the unconditional prompt or a function from a row's prompt
        to it. See `coupled_sampling.guidance`.

    Attributes
    ----------
    method, vocab_size, batch_size, max_length, max_window
        As in the contract.
    noise
        The noise it draws from, as far as the loop and drafting rules are concerned.

    Raises
    ------
    InvalidArgument
        Guidance is given by half or not finite, or the provider has an odd number of rows for it.

    Notes
    -----
    Laws carried by fresh drafts (draft models) and logits processors are refused: use `HostStep` for them.
    """

    def __init__(
        self,
        provider: LogitsProvider,
        method: str | Method,
        launcher: Launcher,
        *,
        guidance: float | None = None,
        unconditional: Sequence[int] | Callable[[Integers], Sequence[int]] | None = None,
    ) -> None:
        self.provider = provider
        self.method = find_method(method)
        self.noise = CounterNoise()
        self.vocab_size = int(provider.vocab_size)
        self.batch_size = int(provider.batch_size)
        self.max_length = int(provider.max_length)
        self._guided: GuidedRows | None = None
        self._guidance = 1.0
        if (guidance is None) != (unconditional is None):
            raise InvalidArgument(f"guidance is {guidance} and unconditional {unconditional}, expected both or neither")
        if guidance is not None and unconditional is not None:
            if self.batch_size % 2 or not np.isfinite(guidance):
                raise InvalidArgument(
                    f"guidance is {guidance} and provider.batch_size {self.batch_size}, expected a finite scale and an even number "
                    "of rows: guidance runs two for each one"
                )
            self.batch_size //= 2
            self._guidance = float(guidance)
            self._guided = GuidedRows(unconditional, self.batch_size, self.vocab_size, self.max_length)
            self.max_length = self._guided.max_length
        self.max_window = min(max_window(provider), self.max_length)
        self._launcher = launcher
        self._laws = [_RowLaws(launcher) for _ in range(self.batch_size)]
        self._inputs, self._outputs = _Memory(launcher), _Memory(launcher)

    def begin(self, row: int, prompt: Integers) -> None:
        """Forget what ``row`` held; tell the provider, if it wants to know, which ``prompt`` comes."""
        self._laws[row].held = [None, None]
        told = [(row, prompt)]
        if self._guided is not None:
            told = [(2 * row, prompt), (2 * row + 1, self._guided.begin(row, prompt))]
        if isinstance(self.provider, PromptObserver):
            for inner_row, own in told:
                self.provider.begin(inner_row, own)

    def close(self) -> None:
        """Give all device memory back; the step must not be used afterwards."""
        for memory in (self._inputs, self._outputs, *(m for laws in self._laws for m in laws.memories)):
            memory.release()

    def step(self, window: Window) -> Outcome:
        """Forward ``window`` and decide it. See `coupled_sampling.contracts.CoupledStep.step`.

        Raises
        ------
        InvalidArgument
            The window is out of bounds or asks for what kernels do not do; nothing was run.
        InvalidLogits
            A wanted logit is NaN or +inf, or all of a slot's are -inf.
        ProviderError
            The provider's logits have a wrong shape or type, or do not lie on the device.
        """
        check_window(self, window.tokens, window.start)
        self._refuse(window)
        rows, width = window.tokens.shape
        table = self._table(window)
        logits = self._forward(window, table)
        if not window.draws.any():
            return Outcome(np.zeros((rows, width), np.int64), np.zeros(rows, np.int64))
        tokens, committed, highest = self._decide(logits, table, window)
        slot = np.arange(width)
        end = (window.known + window.recycled + window.fresh)[:, None]
        decides = window.draws[:, None] & (slot >= window.known[:, None] - 1) & (slot < end)
        refuse_unusable(highest, window.start[:, None] + slot + 1, decides)
        if self._is_rejection:
            self._note_laws(window, table)
        return Outcome(tokens, committed)

    @property
    def _is_rejection(self) -> bool:
        return self.method.acceptance == "rejection"

    def _refuse(self, window: Window) -> None:
        if self._is_rejection and any(laws is not None for laws in window.fresh_laws):
            raise InvalidArgument("window.fresh_laws carry laws, the kernels take point masses; use HostStep for them")
        for b, info in enumerate(window.rows):
            if info is not None and info.sampling.processors:
                raise InvalidArgument(
                    f"row {b} has logits processors, which the kernels do not run; change the logits on the device before they "
                    "are returned, or use HostStep"
                )

    def _table(self, window: Window) -> NDArray[Any]:
        """The rows of the batch as a `ROW` (B,), with memory for their laws."""
        rows, width = window.tokens.shape
        table = np.zeros(rows, ROW)
        for name in ("start", "known", "recycled", "fresh", "draws", "round"):
            table[name] = getattr(window, name)
        table["guidance"] = self._guidance
        for b, info in enumerate(window.rows):
            if info is None or not window.draws[b]:
                table["draws"][b] = 0
                continue
            sampling, row = info.sampling, table[b]
            row["seed"], row["sequence"] = info.seed, info.sequence
            row["temperature"], row["top_k"] = sampling.temperature, min(sampling.top_k or 0, self.vocab_size)
            row["top_p"], row["min_p"] = sampling.top_p, sampling.min_p
            if self._is_rejection:
                self._place_laws(b, window, row, 4 * width * self.vocab_size)
        return table

    def _place_laws(self, b: int, window: Window, row: Any, size: int) -> None:
        """Which memory row ``b`` reads and which one it writes."""
        laws, round_ = self._laws[b], int(window.round[b])
        source = laws.newest_before(round_)
        if window.recycled[b]:
            first = int(window.start[b] + window.known[b])
            end = first + int(window.recycled[b])
            found = laws.source(round_ - 1, first, end)
            if found is None:
                raise InvalidArgument(
                    f"window.recycled of row {b} is {end - first} drafts from position {first} on, but this step does not hold "
                    f"their laws of round {round_ - 1}; recycled drafts must be those of the outcome of the round before"
                )
            held = laws.held[found]
            source = found
            row["draft_laws"] = laws.memories[found].pointer
            row["draft_laws_ahead"] = int(window.start[b]) - (0 if held is None else held.start)
        laws.held[1 - source] = None
        row["laws"] = laws.memories[1 - source].at_least(size)

    def _note_laws(self, window: Window, table: NDArray[Any]) -> None:
        """Remember which laws each row now holds, once the outcome is sure."""
        for b in np.flatnonzero(table["draws"]).tolist():
            laws, start = self._laws[b], int(window.start[b])
            written = next(i for i in (0, 1) if laws.memories[i].pointer == int(table["laws"][b]))
            first = start + int(window.known[b])
            end = first + int(window.recycled[b] + window.fresh[b]) + 1
            laws.held[written] = _Held(int(window.round[b]), start, first, end)

    def _forward(self, window: Window, table: NDArray[Any]) -> DevicePointer:
        """Logits on the device; with guidance of both rows of each, and their lag in the ``table``."""
        tokens, start = window.tokens, window.start
        if self._guided is not None:
            paired = self._guided.paired(tokens, start)
            for opening, begins in self._guided.openings(paired):
                self.provider.forward(opening, begins)
            tokens, start = paired.tokens, paired.start
            table["guidance_lag"] = paired.lag
        found = self.provider.forward(tokens, start)
        try:
            logits = device_pointer(found, self._launcher.stream)
        except InvalidArgument as error:
            raise ProviderError(f"forward returned logits that the kernels cannot read: {error}") from error
        expected = (*tokens.shape, self.vocab_size)
        if logits.shape != expected or logits.dtype not in LOGITS_TYPES:
            raise ProviderError(
                f"forward returned {logits.dtype} of shape {logits.shape}, expected logits of shape {expected}: (rows, window, "
                f"vocabulary), of type {', '.join(LOGITS_TYPES)}"
            )
        if logits.stream is not None:
            self._launcher.wait(logits.stream)
        return logits

    def _decide(self, logits: DevicePointer, table: NDArray[Any], window: Window) -> tuple[Integers, Integers, Any]:
        """Upload, launch, download: tokens (B, W), counts (B,) and each slot's largest logit (B, W)."""
        rows, width = window.tokens.shape
        sites = rows * width
        inputs = np.concatenate([table.view(np.uint8), np.ascontiguousarray(window.tokens).reshape(-1).view(np.uint8)])
        given = self._inputs.at_least(inputs.nbytes)
        outputs = np.zeros(8 * sites + 8 * rows + 4 * sites, np.uint8)
        room = -(-outputs.nbytes // 16) * 16
        made = self._outputs.at_least(room + scratch_bytes(rows, width, self.vocab_size))
        parameters = np.zeros((), DECISION)
        parameters["logits"], parameters["logits_type"] = logits.pointer, LOGITS_TYPES.index(logits.dtype)
        parameters["guided"] = self._guided is not None
        parameters["width"], parameters["vocab_size"] = width, self.vocab_size
        parameters["rows"], parameters["tokens_in"] = given, given + table.nbytes
        parameters["redraft"], parameters["acceptance"] = method_codes(self.method)
        parameters["tokens"], parameters["committed"] = made, made + 8 * sites
        parameters["highest_logits"] = made + 8 * (sites + rows)
        parameters["scratch"] = made + room
        self._launcher.upload(given, inputs)
        decide(self._launcher, parameters, rows)
        self._launcher.download(made, outputs)
        tokens = outputs[: 8 * sites].view(np.int64).reshape(rows, width)
        committed = outputs[8 * sites : 8 * (sites + rows)].view(np.int64)
        highest = outputs[8 * (sites + rows) :].view(np.float32).reshape(rows, width)
        return tokens, committed, highest

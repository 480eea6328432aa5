"""Decisions of windows of one shape: memory, arguments and launches made ready once, and done again step after step.

Windows have few shapes, and a model leaves its logits where they were the last time. So everything that a step would have to work
out on the host is kept under (rows, width, where the logits lie): a step then copies its rows and tokens into an array that is
there, runs a `coupled_sampling.backends.cuda.kernels.RoundTrip`, and reads another one.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from coupled_sampling.backends.cuda.correction_tables import CorrectionTables
from coupled_sampling.backends.cuda.kernels import (
    DECISION,
    ROW,
    Launcher,
    Span,
    blocks_per_slot,
    decide,
    method_codes,
    scratch_bytes,
)
from coupled_sampling.backends.cuda.pointers import LOGITS_TYPES, DevicePointer
from coupled_sampling.contracts import Integers
from coupled_sampling.corrections import LowRank
from coupled_sampling.methods import Method

__all__ = ["Decided", "GrowingMemory", "Plan", "Plans"]

_MOST = 256
"""Plans that are kept. Logits that lie elsewhere every time would pile them up."""


class GrowingMemory:
    """Device memory that grows; what was in it is lost then."""

    def __init__(self, launcher: Launcher) -> None:
        self._launcher = launcher
        self.size = 0
        self.pointer = 0

    def at_least(self, size: int) -> int:
        """Address of ``size`` bytes."""
        if size > self.size:
            self.release()
            self.pointer, self.size = self._launcher.allocate(size), size
        return self.pointer

    def release(self) -> None:
        """Give it back."""
        pointer, self.pointer, self.size = self.pointer, 0, 0
        if pointer:
            self._launcher.release(pointer)


class Decided(NamedTuple):
    """What came back; views of memory that the next step writes over."""

    tokens: Integers
    """(B, W)"""
    committed: Integers
    """(B,)"""
    highest: NDArray[np.float32]
    """(B, W) each slot's largest logit."""


class _Layout(NamedTuple):
    """Where things lie in the memory that goes up and in the memory that comes down, in bytes."""

    table: int
    given: int
    tokens: int
    committed: int
    made: int

    @classmethod
    def of(cls, rows: int, width: int) -> _Layout:
        """For B rows and W slots: `ROW` (B,), tokens int64 (B, W); tokens int64, counts int64 (B,), logits float32 (B, W)."""
        table, tokens = rows * ROW.itemsize, 8 * rows * width
        return cls(table, table + tokens, tokens, tokens + 8 * rows, tokens + 8 * rows + 4 * rows * width)

    @property
    def scratch(self) -> int:
        """Where the kernels' own memory begins, behind what comes down."""
        return -(-self.made // 16) * 16


class Plan:
    """Decisions of ``rows`` rows from ``logits`` (B or, guided, 2 B, W, V); uploads go to ``memory[0]``, the rest to ``memory[1]``."""

    def __init__(
        self,
        launcher: Launcher,
        method: Method,
        corrections: CorrectionTables | None,
        rows: int,
        logits: DevicePointer,
        memory: tuple[int, int],
    ) -> None:
        given, made = memory
        both, width, vocab_size = logits.shape
        layout = self._layout = _Layout.of(rows, width)
        parameters = np.zeros((), DECISION)
        values = {
            "logits": logits.pointer,
            "logits_type": LOGITS_TYPES.index(logits.dtype),
            "guided": both != rows,
            "width": width,
            "vocab_size": vocab_size,
            "rows": given,
            "tokens_in": given + layout.table,
            "tokens": made,
            "committed": made + layout.tokens,
            "highest_logits": made + layout.committed,
            "scratch": made + layout.scratch,
            "parts": blocks_per_slot(rows * width, vocab_size, launcher.processors),
        }
        for name, value in values.items():
            parameters[name] = value
        parameters["redraft"], parameters["acceptance"] = method_codes(method)
        if corrections is not None:
            corrections.fill(parameters)
        spans = Span(given, layout.given), Span(made, layout.made)
        self._trip = launcher.round_trip(*spans, lambda: decide(launcher, parameters, rows))
        outputs = self._trip.made
        self._decided = Decided(
            outputs[: layout.tokens].view(np.int64).reshape(rows, width),
            outputs[layout.tokens : layout.committed].view(np.int64),
            outputs[layout.committed :].view(np.float32).reshape(rows, width),
        )

    def run(self, table: NDArray[Any], tokens: Integers) -> Decided:
        """Decide for a `ROW` (B,) and ``tokens`` (B, W)."""
        given, end = self._trip.given, self._layout.table
        given[:end] = table.view(np.uint8)
        given[end:].view(np.int64)[:] = tokens.reshape(-1)
        self._trip.run()
        return self._decided


class Plans:
    """The plans of a step and the device memory that they share, the tables of its corrections among it."""

    def __init__(self, launcher: Launcher, method: Method, corrections: LowRank | None = None) -> None:
        self._launcher, self._method = launcher, method
        self._tables = None if corrections is None else CorrectionTables(launcher, corrections)
        self._inputs, self._outputs = GrowingMemory(launcher), GrowingMemory(launcher)
        self._plans: dict[tuple[Any, ...], Plan] = {}

    def plan(self, rows: int, logits: DevicePointer) -> Plan:
        """The plan for ``rows`` rows of a step and logits like these, made if there is none."""
        key = rows, logits.pointer, logits.shape, logits.dtype
        found = self._plans.get(key)
        return self._made(rows, logits, key) if found is None else found

    def _made(self, rows: int, logits: DevicePointer, key: tuple[Any, ...]) -> Plan:
        _, width, vocab_size = logits.shape
        layout = _Layout.of(rows, width)
        rank = None if self._tables is None else self._tables.rank
        sizes = layout.given, layout.scratch + scratch_bytes(rows, width, vocab_size, rank)
        if sizes[0] > self._inputs.size or sizes[1] > self._outputs.size or len(self._plans) >= _MOST:
            self._plans.clear()  # before the memory that they use
        memory = self._inputs.at_least(sizes[0]), self._outputs.at_least(sizes[1])
        plan = self._plans[key] = Plan(self._launcher, self._method, self._tables, rows, logits, memory)
        return plan

    def release(self) -> None:
        """Give all memory back."""
        self._plans.clear()
        self._inputs.release()
        self._outputs.release()
        if self._tables is not None:
            self._tables.release()

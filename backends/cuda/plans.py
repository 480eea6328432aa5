"""Decisions of windows of one shape: memory, arguments and launches made ready once, and done again step after step.

Windows have few shapes, and a model leaves its logits where they were the last time. So everything that a step would have to work
out on the host is kept under a `Shape` and where the logits lie: a step then copies its rows and tokens into an array that is
there, runs a `coupled_sampling.backends.cuda.kernels.RoundTrip`, and reads another one. A window that is a tree brings its parents
and depths along.
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
from coupled_sampling.trees import Tree

__all__ = ["Decided", "GrowingMemory", "Plan", "Plans", "Shape"]

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
    candidates: Integers
    """(B, W, K) the best tokens of a redraft's race; where no redraft stands, anything."""
    scores: NDArray[np.float32]
    """(B, W, K) what they came to."""


class Shape(NamedTuple):
    """What the memory of a step depends on."""

    rows: int
    """B."""
    width: int
    """W."""
    vocab_size: int
    """V."""
    is_tree: bool = False
    candidates: int = 0
    """K."""


class _Layout(NamedTuple):
    """Where things lie in the memory that goes up and in the memory that comes down, in bytes."""

    table: int
    tokens_in: int
    given: int
    tokens: int
    committed: int
    candidates: int
    highest: int
    made: int

    @classmethod
    def of(cls, shape: Shape) -> _Layout:
        """Up: `ROW` (B,), tokens int64 (B, W), in a tree parents and depth int64 (B, W). Down: tokens int64 (B, W), counts int64
        (B,), candidates int64 (B, W, K), logits float32 (B, W), scores float32 (B, W, K)."""
        slots = shape.rows * shape.width
        table = shape.rows * ROW.itemsize
        tokens_in = table + 8 * slots
        tokens = 8 * slots
        committed = tokens + 8 * shape.rows
        candidates = committed + 8 * slots * shape.candidates
        highest = candidates + 4 * slots
        made = highest + 4 * slots * shape.candidates
        return cls(
            table, tokens_in, tokens_in + 16 * slots * shape.is_tree, tokens, committed, candidates, highest, made
        )

    @property
    def scratch(self) -> int:
        """Where the kernels' own memory begins, behind what comes down."""
        return -(-self.made // 16) * 16


class Plan:
    """Decisions of windows of one ``shape`` from ``logits`` (B or, guided, 2 B, W, V), in memory of `Plans`: what goes up, and the
    rest."""

    def __init__(
        self,
        launcher: Launcher,
        method: Method,
        corrections: CorrectionTables | None,
        shape: Shape,
        logits: DevicePointer,
        memory: tuple[int, int],
    ) -> None:
        given, made = memory
        layout = self._layout = _Layout.of(shape)
        parameters = np.zeros((), DECISION)
        values = {
            "logits": logits.pointer,
            "logits_type": LOGITS_TYPES.index(logits.dtype),
            "guided": logits.shape[0] != shape.rows,
            "width": shape.width,
            "vocab_size": shape.vocab_size,
            "rows": given,
            "tokens_in": given + layout.table,
            "tokens": made,
            "committed": made + layout.tokens,
            "highest_logits": made + layout.candidates,
            "scratch": made + layout.scratch,
            "parts": blocks_per_slot(shape.rows * shape.width, shape.vocab_size, launcher.processors),
        }
        if shape.is_tree:
            values["parents"] = given + layout.tokens_in
            values["depth"] = values["parents"] + 8 * shape.rows * shape.width
        if shape.candidates:
            values["candidates"] = shape.candidates
            values["candidate_tokens"] = made + layout.committed
            values["candidate_scores"] = made + layout.highest
        for name, value in values.items():
            parameters[name] = value
        parameters["redraft"], parameters["acceptance"] = method_codes(method)
        if corrections is not None:
            corrections.fill(parameters)
        spans = Span(given, layout.given), Span(made, layout.made)
        self._trip = launcher.round_trip(*spans, lambda: decide(launcher, parameters, shape.rows))
        outputs, slots = self._trip.made, (shape.rows, shape.width)
        self._decided = Decided(
            outputs[: layout.tokens].view(np.int64).reshape(slots),
            outputs[layout.tokens : layout.committed].view(np.int64),
            outputs[layout.candidates : layout.highest].view(np.float32).reshape(slots),
            outputs[layout.committed : layout.candidates].view(np.int64).reshape(*slots, shape.candidates),
            outputs[layout.highest :].view(np.float32).reshape(*slots, shape.candidates),
        )

    def run(self, table: NDArray[Any], tokens: Integers, tree: Tree | None = None) -> Decided:
        """Decide for a `ROW` (B,) and ``tokens`` (B, W), which stand in ``tree``."""
        given, layout = self._trip.given, self._layout
        given[: layout.table] = table.view(np.uint8)
        given[layout.table : layout.tokens_in].view(np.int64)[:] = tokens.reshape(-1)
        if tree is not None:
            placed = given[layout.tokens_in :].view(np.int64).reshape(2, *tokens.shape)
            placed[0], placed[1] = tree.parents, tree.depth
        self._trip.run()
        return self._decided


class Plans:
    """The plans of a step and the device memory that they share, the tables of its corrections among it."""

    def __init__(self, launcher: Launcher, method: Method, corrections: LowRank | None = None) -> None:
        self._launcher, self._method = launcher, method
        self._tables = None if corrections is None else CorrectionTables(launcher, corrections)
        self._inputs, self._outputs = GrowingMemory(launcher), GrowingMemory(launcher)
        self._plans: dict[tuple[Any, ...], Plan] = {}

    def plan(self, shape: Shape, logits: DevicePointer) -> Plan:
        """The plan for windows of that ``shape`` and logits like these, made if there is none."""
        key = shape, logits.pointer, logits.shape[0], logits.dtype
        found = self._plans.get(key)
        return self._made(shape, logits, key) if found is None else found

    def _made(self, shape: Shape, logits: DevicePointer, key: tuple[Any, ...]) -> Plan:
        rows, width, vocab_size = shape[:3]
        layout = _Layout.of(shape)
        rank = None if self._tables is None else self._tables.rank
        scratch = scratch_bytes(rows, width, vocab_size, rank, candidates=shape.candidates > 0)
        sizes = layout.given, layout.scratch + scratch
        if sizes[0] > self._inputs.size or sizes[1] > self._outputs.size or len(self._plans) >= _MOST:
            self._plans.clear()  # before the memory that they use
        memory = self._inputs.at_least(sizes[0]), self._outputs.at_least(sizes[1])
        plan = self._plans[key] = Plan(self._launcher, self._method, self._tables, shape, logits, memory)
        return plan

    def release(self) -> None:
        """Give all memory back."""
        self._plans.clear()
        self._inputs.release()
        self._outputs.release()
        if self._tables is not None:
            self._tables.release()

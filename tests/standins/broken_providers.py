"""A table model with the usual faults of backends put into it, one class each, and the check that must name it."""

import numpy as np

from coupled_sampling.errors import InvalidArgument
from coupled_sampling.testing import TableProvider, random_table

V, LENGTH = 5, 40
TABLE = random_table(4, V, zeros=0.2)


class Context(TableProvider):
    """Computes a slot's logits from a context that subclasses get wrong."""

    def context(self, row, first, slot, width):
        return self._held[row, : first + slot + 1]

    def write(self, tokens, start):
        for row in range(len(tokens)):
            self._held[row, start[row] : start[row] + tokens.shape[1]] = tokens[row]

    def forward(self, tokens, start):
        self.check(tokens, start)
        self.write(tokens, start)
        rows, width = tokens.shape
        laws = np.empty((rows, width, self.vocab_size))
        for row in range(rows):
            for slot in range(width):
                laws[row, slot] = self.next_law(tuple(self.context(row, int(start[row]), slot, width).tolist()))
        with np.errstate(divide="ignore"):
            return np.log(laws)

    def check(self, tokens, start):
        if tokens.min() < 0 or tokens.max() >= self.vocab_size or len(tokens) > self.batch_size:
            raise InvalidArgument("tokens")
        if start.min() < 0 or start.max() + tokens.shape[1] > self.max_length:
            raise InvalidArgument("start")


class Late(Context):
    """Off by one: slot j answers for its own position."""

    def context(self, row, first, slot, width):
        return self._held[row, : first + slot]


class Early(Context):
    """Off by one the other way, within the window."""

    def context(self, row, first, slot, width):
        return self._held[row, : first + min(slot + 2, width)]


class NonCausal(Context):
    def context(self, row, first, slot, width):
        return np.append(self._held[row, : first + slot + 1], self._held[row, first + width - 1])


class Leaking(Context):
    """The first token of the window of row 0 reaches the other rows."""

    def context(self, row, first, slot, width):
        own = self._held[row, : first + slot + 1]
        return np.append(own, self._held[0, 0]) if row else own


class Stale(Context):
    """Writes positions that were never written before, and no others."""

    def write(self, tokens, start):
        for row in range(len(tokens)):
            own = self._held[row, start[row] : start[row] + tokens.shape[1]]
            own[:] = np.where(own < 0, tokens[row], own)


class StaleRight(Context):
    """Attends to what an earlier call left to the right of the window."""

    def context(self, row, first, slot, width):
        beyond = self._held[row, first + width : first + width + 1]
        return np.append(self._held[row, : first + slot + 1], beyond[beyond >= 0])


class FirstRowsStart(Context):
    """Writes every row where row 0 begins."""

    def write(self, tokens, start):
        super().write(tokens, np.full_like(start, start[0]))


class Appending(Context):
    """Ignores ``start``: a window always follows on the one before."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.end = np.zeros(self.batch_size, np.int64)

    def forward(self, tokens, start):
        self.check(tokens, start)
        begin = self.end[: len(tokens)] % (self.max_length - tokens.shape[1] + 1)
        self.end[: len(tokens)] = begin + tokens.shape[1]
        return super().forward(tokens, begin)


class LosesChunkEnds(Context):
    """The last token of a window of several is not kept for the next one."""

    def forward(self, tokens, start):
        logits = super().forward(tokens, start)
        if tokens.shape[1] > 1:
            self._held[np.arange(len(tokens)), start + tokens.shape[1] - 1] = 0
        return logits


class AllRows(Context):
    """A call for fewer rows writes the first row's tokens to the others too."""

    def write(self, tokens, start):
        super().write(tokens, start)
        for row in range(len(tokens), self.batch_size):
            self._held[row, start[0] : start[0] + tokens.shape[1]] = tokens[0]


class Clamping(Context):
    """Moves a window that does not fit to where it does."""

    def check(self, tokens, start):
        if len(tokens) > self.batch_size or tokens.min() < 0 or tokens.max() >= self.vocab_size:
            raise InvalidArgument("tokens")

    def forward(self, tokens, start):
        return super().forward(tokens, np.clip(start, 0, self.max_length - tokens.shape[1]))


class WritesBeforeItRefuses(Context):
    def check(self, tokens, start):
        try:
            super().check(tokens, start)
        except InvalidArgument:
            self._held[:] = 0
            raise


class Wrapping(Context):
    """Takes tokens modulo the vocabulary."""

    def forward(self, tokens, start):
        return super().forward(tokens % self.vocab_size, start)


class Random(Context):
    def forward(self, tokens, start):
        logits = super().forward(tokens, start)
        self.calls += 1
        return logits + np.random.default_rng(self.calls).normal(0, 0.01, logits.shape)


class Integer(Context):
    def forward(self, tokens, start):
        return np.maximum(super().forward(tokens, start), -9).astype(np.int64)


class OneSlot(Context):
    def forward(self, tokens, start):
        return super().forward(tokens, start)[:, -1:]


class NotANumber(Context):
    def forward(self, tokens, start):
        return super().forward(tokens, start) * np.nan


class WritesTokens(Context):
    def forward(self, tokens, start):
        logits = super().forward(tokens, start)
        tokens[:, -1] = 0
        return logits


class WritesStart(Context):
    def forward(self, tokens, start):
        logits = super().forward(tokens, start)
        start += tokens.shape[1]
        return logits


class KeepsTheCallersArray(Context):
    """Writes the window into its state only when the next call comes."""

    pending = None

    def forward(self, tokens, start):
        self.check(tokens, start)
        if self.pending is not None:
            self.write(self.pending[0], np.clip(self.pending[1], 0, self.max_length - self.pending[0].shape[1]))
        logits = super().forward(tokens, start)
        self.pending = tokens, start
        return logits


class TooShort(Context):
    """Cannot use the last position it promises."""

    def check(self, tokens, start):
        super().check(tokens, start)
        if start.max() + tokens.shape[1] == self.max_length:
            raise InvalidArgument("start")


class WindowBeyondItsLimit(Context):
    max_window = 6


class NoRows(Context):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.batch_size = 2.0


class RelativePositions(Context):
    """Counts positions from the beginning of the window: a slot's law is shifted by where its window begins."""

    def forward(self, tokens, start):
        logits = super().forward(tokens, start)
        return logits + 0.1 * np.minimum(start, 1)[:, None, None] * np.arange(self.vocab_size)


BROKEN = {
    Late: "own-token",
    Early: "causal",
    NonCausal: "causal",
    Leaking: "rows-independent",
    Stale: "rollback",
    StaleRight: "rollback",
    FirstRowsStart: "ragged-starts",
    Appending: "deterministic",
    LosesChunkEnds: "window-split",
    RelativePositions: "window-split",
    AllRows: "fewer-rows",
    Clamping: "bounds-refused",
    WindowBeyondItsLimit: "bounds-refused",
    WritesBeforeItRefuses: "bounds-refused",
    Wrapping: "tokens-refused",
    Random: "deterministic",
    Integer: "shape-and-type",
    OneSlot: "shape-and-type",
    NotANumber: "shape-and-type",
    WritesTokens: "input-untouched",
    WritesStart: "input-untouched",
    KeepsTheCallersArray: "input-untouched",
    TooShort: "whole-length",
    NoRows: "attributes",
}

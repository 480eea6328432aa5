"""A table model with the usual faults of what providers may offer, one class each, and the check that must name it."""

import numpy as np

from coupled_sampling.bounds import check_rows
from coupled_sampling.testing import TableProvider
from standins.ranged import Ranged

__all__ = ["BROKEN_OFFERS", "Observing"]


class Observing(Ranged):
    """Is told requests, and is asked about them; right."""

    def begin(self, row, request):
        self.begun = (row, len(request.prompt))

    def takes(self, request):
        return None


class BeginTakesPrompts(TableProvider):
    """As providers were once told: the prompt itself."""

    def begin(self, row, prompt):
        self.begun = int(prompt[0])


class BeginWrites(TableProvider):
    def begin(self, row, request):
        request.prompt[:] = 1


class TakesRaises(Observing):
    def takes(self, request):
        raise NotImplementedError


class TakesSaysYes(Observing):
    """The other way round: true for what it can."""

    def takes(self, request):
        return True


class WritesWhatIsThere(TableProvider):
    """Writes into the caller's array, and nothing new."""

    def forward(self, tokens, start):
        tokens[:] = tokens.copy()
        return super().forward(tokens, start)


class WantsToOwn(TableProvider):
    """Hands the caller's memory to a library that takes none it cannot write to."""

    def forward(self, tokens, start):
        if not start.flags.writeable:
            raise BufferError("cannot export a read-only array")
        return super().forward(tokens, start)


class ChunkTooWide(TableProvider):
    @property
    def prompt_chunk(self):
        return self.max_length + 1


class NoChunk(TableProvider):
    prompt_chunk = 0


class ChunkOfNoInteger(TableProvider):
    prompt_chunk = 2.5


class LosesChunks(TableProvider):
    """Does not keep the state of what it takes for a prompt, as a graph without a bucket of that width."""

    prompt_chunk = 4

    def forward(self, tokens, start):
        held = self._held.copy()
        logits = super().forward(tokens, start)
        if tokens.shape[1] == self.prompt_chunk:
            self._held = held
        return logits


class FirstRows(Ranged):
    """Forwards as many rows as were asked for, but the first ones."""

    def forward_rows(self, tokens, start, rows):
        check_rows(self, tokens, rows)
        return self.forward(tokens, start)


class FirstStart(Ranged):
    """Takes the start of the first row for all rows of the range."""

    def forward_rows(self, tokens, start, rows):
        return super().forward_rows(tokens, np.full_like(start, start[0] + (rows.start > 0)), rows)


class Spilling(Ranged):
    """Writes padding into the row after the range, as a batch that is rounded up."""

    def forward_rows(self, tokens, start, rows):
        logits = super().forward_rows(tokens, start, rows)
        for row in range(rows.stop, min(rows.stop + 1, self.batch_size)):
            self._held[row, start[-1] : start[-1] + tokens.shape[1]] = 0
        return logits


class AllRows(Ranged):
    """Returns the logits of all rows."""

    def forward_rows(self, tokens, start, rows):
        logits = super().forward_rows(tokens, start, rows)
        return np.resize(logits, (self.batch_size, *logits.shape[1:]))


class Slicing(Ranged):
    """Takes whatever a slice leaves of the rows."""

    def forward_rows(self, tokens, start, rows):
        held, self._held = self._held, self._held[rows.start : rows.stop]
        try:
            return self.forward(tokens, start)
        finally:
            self._held = held


class Held(TableProvider):
    """Keeps a list of rows, so that they can be one by mistake."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self._held = [row.copy() for row in self._held]

    def write(self, tokens, start):
        whole, self._held = self._held, _Rows(self._held)
        try:
            return super().write(tokens, start)
        finally:
            self._held = whole


class _Rows:
    """Rows with the indices of an array."""

    def __init__(self, rows):
        self._rows = rows

    def __getitem__(self, key):
        return self._rows[key[0]][key[1]]

    def __setitem__(self, key, value):
        self._rows[key[0]][key[1]] = value


class ForkShares(Held):
    """The source's memory becomes the targets', too."""

    def fork(self, source, targets, length):
        for target in targets:
            self._held[target] = self._held[source]


class ForkIntoTheSource(TableProvider):
    """Source and target exchanged."""

    def fork(self, source, targets, length):
        for target in targets:
            super().fork(target, [source], length)


class ForkOneTooFew(TableProvider):
    def fork(self, source, targets, length):
        super().fork(source, targets, length - 1)


class ForkFirstTarget(TableProvider):
    def fork(self, source, targets, length):
        super().fork(source, targets[:1], length)


class ForkAll(TableProvider):
    """All rows are taken for targets."""

    def fork(self, source, targets, length):
        super().fork(source, range(self.batch_size), length)


BROKEN_OFFERS = {
    BeginTakesPrompts: "begin",
    BeginWrites: "begin",
    TakesRaises: "takes",
    TakesSaysYes: "takes",
    WritesWhatIsThere: "read-only",
    WantsToOwn: "read-only",
    ChunkTooWide: "prompt-chunk",
    NoChunk: "prompt-chunk",
    ChunkOfNoInteger: "prompt-chunk",
    LosesChunks: "prompt-chunk",
    FirstRows: "row-ranges",
    FirstStart: "row-ranges",
    Spilling: "row-ranges",
    AllRows: "row-ranges",
    Slicing: "row-ranges-refused",
    ForkShares: "fork",
    ForkIntoTheSource: "fork",
    ForkOneTooFew: "fork",
    ForkFirstTarget: "fork",
    ForkAll: "fork",
}

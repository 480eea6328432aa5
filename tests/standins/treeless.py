"""Table models that cannot forward trees, and what else they can do or not."""

from coupled_sampling.testing import TableProvider

__all__ = ["Treeless", "TreelessByRows", "TreelessNarrow", "TreelessTold", "TreelessUnforked"]


class Treeless:
    """A table model of one method, that can fork; it keeps account of what it is asked."""

    forks = True

    def __init__(self, next_law, vocab_size, batch_size=1, max_length=64):
        self._table = TableProvider(next_law, vocab_size, batch_size, max_length)
        self.vocab_size, self.batch_size, self.max_length = vocab_size, batch_size, max_length
        self.asked = []
        """(start, width) of every call."""
        self.forked = []

    @property
    def calls(self):
        return len(self.asked)

    def forward(self, tokens, start):
        self.asked.append((start.tolist(), tokens.shape[1]))
        return self._table.forward(tokens, start)

    def fork(self, source, targets, length):
        self.forked.append((source, tuple(targets), length))
        self._table.fork(source, targets, length)


class TreelessUnforked(Treeless):
    """Cannot fork."""

    forks = False


class TreelessNarrow(TreelessUnforked):
    """Nor take more than three slots."""

    max_window = 3


class TreelessByRows(TreelessUnforked):
    """Can forward some of its rows."""

    def forward_rows(self, tokens, start, rows):
        self.asked.append((start.tolist(), tokens.shape[1]))
        whole = self._table._held
        self._table._held = whole[rows.start : rows.stop]
        try:
            return self._table.forward(tokens, start)
        finally:
            self._table._held = whole


class TreelessTold(Treeless):
    """Looks at conditions: each adds to the logits of one token. What it held before is of no use then."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.conditions = [0] * self.batch_size

    def begin(self, row, request):
        self.conditions[row] = request.condition or 0
        self._table._held[row] = -1

    def forward(self, tokens, start):
        logits = super().forward(tokens, start).copy()
        for row in range(len(tokens)):
            logits[row, :, self.conditions[row]] += 1
        return logits

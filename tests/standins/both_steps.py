"""Two steps side by side, for worlds that `StepComparison` does not judge: those with states of which no law can be made."""

import numpy as np

from standins.table_graphs import LENGTH


class Both:
    """Steps of both kinds side by side; any difference is a fault (a tie of floats would be one, too: none is known here)."""

    def __init__(self, ours, reference):
        self.ours, self.reference, self.method = ours, reference, reference.method
        self.vocab_size, self.batch_size = reference.vocab_size, reference.batch_size
        self.max_length = self.max_window = LENGTH
        self.noise = reference.noise
        self.compared = self.closed = 0
        self.failed = []

    def takes(self, request):
        return self.ours.takes(request) or self.reference.takes(request)

    @property
    def runs(self):
        return self.reference.runs

    def close(self):
        self.ours.close()

    def begin(self, row, request):
        self.ours.begin(row, request)
        self.reference.begin(row, request)

    def step(self, window):
        found, expected = self.ours.step(window), self.reference.step(window)
        np.testing.assert_array_equal(found.committed, expected.committed)
        for b in np.flatnonzero(window.draws):
            end = int((window.known + window.recycled + window.fresh)[b])
            sites = slice(int(window.known[b]) - 1, end)
            np.testing.assert_array_equal(found.tokens[b, sites], expected.tokens[b, sites])
            self.compared += end - sites.start
            self.closed += int((expected.tokens[b, sites] < 0).sum())
        for outcome in (found, expected):
            for b in np.flatnonzero(window.draws):
                last = outcome.tokens[b, window.known[b] - 2 + outcome.committed[b]]
                assert (last < 0) == (b in outcome.failures)
        messages = [{b: str(error) for b, error in outcome.failures.items()} for outcome in (found, expected)]
        assert messages[0] == messages[1]
        self.failed += messages[0].values()
        return expected

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
        self.compared = self.closed = self.ranked = self.beyond = 0
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

    @property
    def refuses_branches(self):
        return self.ours.refuses_branches or self.reference.refuses_branches

    @property
    def max_columns(self):
        return min(self.ours.max_columns, self.reference.max_columns)

    @property
    def corrections(self):
        return self.reference.corrections

    def step(self, window):
        found, expected = self.ours.step(window), self.reference.step(window)
        np.testing.assert_array_equal(found.committed, expected.committed)
        for b in np.flatnonzero(window.draws):
            end = int((window.known + window.recycled + window.fresh)[b])
            ahead = int(window.known[b] - 1 + expected.committed[b])
            self.beyond += ahead > end
            sites = slice(int(window.known[b]) - 1, end if b in expected.failures else max(end, ahead))
            if b in expected.failures and window.parents is not None:
                sites = slice(sites.start, ahead)  # what lies behind is of no use to anybody
            np.testing.assert_array_equal(found.tokens[b, sites], expected.tokens[b, sites])
            self.compared += end - sites.start
            self.closed += int((expected.tokens[b, sites] < 0).sum())
            if window.candidates and b not in expected.failures:
                self.compare_candidates(found.candidates.get(b), expected.candidates.get(b))
        for outcome in (found, expected):
            for b in np.flatnonzero(window.draws):
                last = outcome.tokens[b, window.known[b] - 2 + outcome.committed[b]]
                assert (last < 0) == (b in outcome.failures)
        messages = [{b: str(error) for b, error in outcome.failures.items()} for outcome in (found, expected)]
        assert messages[0] == messages[1]
        self.failed += messages[0].values()
        return expected

    def compare_candidates(self, found, expected):
        """The same tokens in the same order, but for those that cannot be or are equal to float32; and what they came to."""
        assert (found is None) == (expected is None)
        if expected is None:
            return
        assert found.tokens.shape == expected.tokens.shape
        np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(found.tokens[:, 0], expected.tokens[:, 0])
        gaps = -np.diff(np.nan_to_num(expected.scores, neginf=-1e6), prepend=1e6, append=-2e6)
        apart = np.isfinite(expected.scores) & (gaps[:, :-1] > 1e-4) & (gaps[:, 1:] > 1e-4)
        np.testing.assert_array_equal(found.tokens[apart], expected.tokens[apart])
        self.ranked += int(apart.sum())

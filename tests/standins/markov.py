"""A model that holds nothing: the next token's law depends on the last one alone, so that passes cost nothing."""

import numpy as np

__all__ = ["Markov"]


class Markov:
    """A provider that takes trees, with ``vocab_size`` random laws; the sharper, the more drafts stand."""

    max_columns = 1 << 40

    def __init__(self, seed, vocab_size, max_length, batch_size=1, sharp=2.0):
        self.vocab_size, self.max_length, self.batch_size = vocab_size, max_length, batch_size
        self.logits = sharp * np.random.default_rng(seed).standard_normal((vocab_size, vocab_size))
        self.windows = []
        """Tokens and parents of each pass, of row 0."""

    def forward(self, tokens, start):
        self.windows.append((tokens[0].tolist(), None))
        return self.logits[tokens]

    def forward_tree(self, tokens, start, parents, rows):
        self.windows.append((tokens[0].tolist(), parents[0].tolist()))
        return self.logits[tokens]

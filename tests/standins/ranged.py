"""A table model that offers everything a provider can offer, and keeps account of what is asked of it."""

import numpy as np

from coupled_sampling.testing import TableProvider


class Ranged(TableProvider):
    """Its rows can be forwarded apart and copied; what no call was meant to touch is checked by its memory."""

    def __init__(self, *arguments, chunk=4, **settings):
        super().__init__(*arguments, **settings)
        self.prompt_chunk = chunk
        self.asked = []
        """(rows, width) of every call."""
        self.forked = []

    def forward(self, tokens, start):
        raise AssertionError("rows can be told apart, so they are")

    def forward_rows(self, tokens, start, rows):
        self.asked.append((rows, tokens.shape[1]))
        assert not tokens.flags.writeable
        assert not start.flags.writeable
        whole, at = self._held, self.batch_size
        self._held, self.batch_size = whole[rows.start : rows.stop], len(rows)
        try:
            return super().forward(tokens, start)
        finally:
            self._held, self.batch_size = whole, at

    def fork(self, source, targets, length):
        self.forked.append((source, tuple(targets), length))
        super().fork(source, targets, length)


class Poisoned(TableProvider):
    """A table whose law may be ``None``: then its logits are NaN, as those of a model that has met an impossible pair."""

    def forward(self, tokens, start):
        laws = np.empty((*tokens.shape, self.vocab_size))
        for where, context in self.write(tokens, start).items():
            law = self.next_law(context)
            laws[where] = np.nan if law is None else law
        with np.errstate(divide="ignore"):
            return np.log(laws)

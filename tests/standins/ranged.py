"""Table models that can do what is optional, or cannot, and keep account of what is asked of them."""

import numpy as np

from coupled_sampling.bounds import check_rows
from coupled_sampling.testing import RationalProvider, TableProvider

__all__ = ["Apart", "Poisoned", "Ranged", "RangedFractions", "Unforked"]


class _ByRows:
    """Forwards ranges of rows, copies rows, and notes what it was asked."""

    prompt_chunk = 3

    def __init__(self, *arguments, **settings):
        super().__init__(*arguments, **settings)
        self.asked = []
        """(rows, width) of every call."""
        self.forked = []

    def forward_rows(self, tokens, start, rows):
        check_rows(self, tokens, rows)
        self.asked.append((rows, tokens.shape[1]))
        held, self._held = self._held, self._held[rows.start : rows.stop]
        try:
            return super().forward(tokens, start)
        finally:
            self._held = held

    def fork(self, source, targets, length):
        self.forked.append((source, tuple(targets), length))
        super().fork(source, targets, length)


class Ranged(_ByRows, TableProvider):
    """Can do everything."""


class RangedFractions(_ByRows, RationalProvider):
    """Can do everything, in fractions."""


class Apart(Ranged):
    """Whoever can tell rows apart does: no call is for all of them. ``chunk`` is the width it reads prompts in."""

    def __init__(self, *arguments, chunk=4, **settings):
        super().__init__(*arguments, **settings)
        self.prompt_chunk = chunk

    def forward(self, tokens, start):
        raise AssertionError("rows can be told apart, so they are")

    def forward_rows(self, tokens, start, rows):
        assert [tokens.flags.writeable, start.flags.writeable] == [False, False]
        return super().forward_rows(tokens, start, rows)


class Unforked(TableProvider):
    """Cannot copy rows."""

    forks = False


class Poisoned(TableProvider):
    """A table whose law may be ``None``: then its logits are NaN, as those of a model that has met an impossible pair."""

    def forward(self, tokens, start):
        laws = np.empty((*tokens.shape, self.vocab_size))
        for where, context in self.write(tokens, start).items():
            law = self.next_law(context)
            laws[where] = np.nan if law is None else law
        with np.errstate(divide="ignore"):
            return np.log(laws)

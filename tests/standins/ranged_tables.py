"""Table models that can do what is optional, or cannot: ranges of rows, chunks of a width of their own, forks."""

from coupled_sampling.bounds import check_rows
from coupled_sampling.testing import RationalProvider, TableProvider

__all__ = ["Ranged", "RangedFractions", "Unforked"]


class _ByRows:
    """Forwards ranges of rows, reads prompts three tokens at once, and notes what it was asked."""

    prompt_chunk = 3
    asked = ()

    def forward_rows(self, tokens, start, rows):
        check_rows(self, tokens, rows)
        self.asked = (*self.asked, (rows.start, rows.stop, tokens.shape[1]))
        held, self._held = self._held, self._held[rows.start : rows.stop]
        try:
            return self.forward(tokens, start)
        finally:
            self._held = held


class Ranged(_ByRows, TableProvider):
    """Can do everything."""


class RangedFractions(_ByRows, RationalProvider):
    """Can do everything, in fractions."""


class Unforked(TableProvider):
    """Cannot copy rows."""

    forks = False

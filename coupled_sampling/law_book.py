"""The book of draft laws: which of a row's two memories holds the laws of which round. Pure; the memory belongs to the step.

A recycled draft was drawn in round r - 1 from the law that it had then, and step r must test it against exactly that law.
Step r also writes the laws of its own redrafts, so every row has two memories: one is read, the other one written.

Two are enough, even if an outcome is lost on its way to the loop (Ctrl-C). The loop then asks for round r again: the laws
of round r - 1 are still there, because only the other memory was written, and it is written again.

A book is a value. A step reads it, works, and puts the new book in its place last of all; so a step that fails in the
middle has changed nothing but the memory it was allowed to overwrite.
"""

from __future__ import annotations

from typing import NamedTuple

from coupled_sampling.errors import InvalidArgument

__all__ = ["Held", "LawBook"]


class Held(NamedTuple):
    """What one memory holds: the laws of ``round`` for the positions ``first`` to ``end - 1``."""

    round: int
    start: int
    """Where the memory begins: by how much two of these differ, its entries are shifted."""
    first: int
    end: int


class LawBook(NamedTuple):
    """The two memories of one row, 0 and 1; None is one with nothing in it that is wanted.

    Examples
    --------
    >>> book = LawBook().written(0, Held(round=4, start=10, first=10, end=18))
    >>> book.source(row=0, round_=4, first=12, end=18)
    0
    >>> book.target(round_=5)
    1
    """

    zero: Held | None = None
    one: Held | None = None

    def find(self, round_: int, first: int, end: int) -> int | None:
        """The memory that holds the laws of ``round_`` for all positions from ``first`` to ``end - 1``; None if neither does."""
        for memory, held in enumerate(self):
            if held is not None and held.round == round_ and held.first <= first and end <= held.end:
                return memory
        return None

    def source(self, row: int, round_: int, first: int, end: int) -> int:
        """The memory to read those laws from.

        Raises
        ------
        InvalidArgument
            Neither holds them: the drafts of ``row`` are not those of the outcome of ``round_``.
        """
        found = self.find(round_, first, end)
        if found is None:
            holds = [f"round {h.round} for {h.first} to {h.end - 1}" for h in self if h is not None]
            raise InvalidArgument(
                f"window.recycled of row {row} is {end - first} drafts from position {first} on, whose laws are those of round "
                f"{round_}, but this step holds {' and '.join(holds) or 'no laws'}; recycled drafts must be those of the "
                "outcome of the round before"
            )
        return found

    def target(self, round_: int) -> int:
        """The memory that may be overwritten while ``round_`` is decided: not the one that holds the round before."""
        return 1 if self.zero is not None and self.zero.round == round_ - 1 else 0

    def start(self, memory: int) -> int:
        """The `Held.start` of ``memory``; 0 if nothing is in it."""
        held = self[memory]
        return 0 if held is None else held.start

    def written(self, memory: int, held: Held | None) -> LawBook:
        """The book after ``held`` was written into ``memory``; None says that what was there is gone.

        A round that is done again replaces what it wrote before, wherever that lies: no two memories hold the same round.
        """
        other = self[1 - memory]
        if held is not None and other is not None and other.round == held.round:
            other = None
        return LawBook(held, other) if memory == 0 else LawBook(other, held)

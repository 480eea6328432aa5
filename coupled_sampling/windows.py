"""How wide a window is, and how many of its slots are for branches: fixed, or chosen while decoding.

A wider window commits more tokens per step and makes steps dearer; where the optimum lies depends on model, machine, batch
and prompt. A rule chooses, `WindowRule`; one that chooses branches too is a `TreeWindowRule`. `coupled_sampling.WindowSearch` is
the one that ``window="auto"`` means.

Why it cannot bias what is generated: a width may be chosen from anything that is decided before the step, as long as nothing in
it depends on drafts that are still to be tested. Then the law of a draft that is left outside a narrower window is no other than
it was, and so is what becomes of its position. Counts of committed tokens are functions of decisions to the left of all that is
open. Times are not: a pass may take longer for one draft than for another. So the loop tells a rule of a step only when everything
that the step decided or drafted has been committed, a few steps later. (That widths chosen by drafts, or by times told at once,
do bias is a test.) With methods whose tokens depend on how drafts came about, the tokens at one seed then depend on the machine's
speed and on the rest of the batch; their law does not.

Methods whose tokens are ``ar``'s are exempt: with the acceptance "match" a token is a function of the seed and the position, so
that a rule may look at anything, and is told of a step as soon as it is done. Only these take branches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from coupled_sampling.errors import InvalidArgument
from coupled_sampling.walks import Walk
from coupled_sampling.window_search import Rung, WindowSearch

__all__ = ["FixedWindow", "TreeWindowRule", "WindowRule"]

_USUAL = 32
"""Slots where nobody says how many."""


@runtime_checkable
class WindowRule(Protocol):
    """Chooses the width of each step's window from the counts and times of the steps before.

    Examples
    --------
    A rule that widens the window where few rows share a pass:

    >>> from coupled_sampling import WindowRule, generate
    >>> from coupled_sampling.testing import TableProvider, random_table
    >>> class ByRows:
    ...     largest = 16
    ...     def width(self, rows):
    ...         return max(1, 16 // rows)
    ...     def record(self, rows, width, tokens, seconds):
    ...         pass
    >>> isinstance(ByRows(), WindowRule)
    True
    >>> len(generate(TableProvider(random_table(0, 4), 4), [[0]], length=9, window=ByRows()).tokens[0])
    9
    """

    @property
    def largest(self) -> int:
        """No width is more than this."""
        ...

    def width(self, rows: int) -> int:
        """Slots for the next step, which forwards ``rows`` rows: an integer from 1 to ``largest``."""
        ...

    def record(self, rows: int, width: int, tokens: Sequence[int], seconds: float) -> None:
        """A step of ``rows`` rows that filled ``width`` slots took ``seconds``; each sequence in it committed ``tokens[k]``.

        Told when nothing that the step decided or drafted is open any more; at once where tokens do not depend on drafts.
        """
        ...


@runtime_checkable
class TreeWindowRule(WindowRule, Protocol):
    """A `WindowRule` that also chooses how many slots are for branches, where nobody says how many.

    Steps that take no branches make it a plain `WindowRule`: they have to be asked for with ``branches=0``.

    Examples
    --------
    A rule that keeps a fourth of its slots for branches while they are walked:

    >>> from coupled_sampling import generate
    >>> from coupled_sampling.testing import TableProvider, random_table
    >>> from coupled_sampling.windows import TreeWindowRule
    >>> class WhileWalked:
    ...     largest, walked = 8, 1.0
    ...     def width(self, rows):
    ...         return 8
    ...     def branches(self, rows):
    ...         return 2 if self.walked > 0.01 else 0
    ...     def record(self, rows, width, tokens, seconds):
    ...         pass
    ...     def record_walks(self, rows, width, branches, walks, seconds):
    ...         for walk in walks:
    ...             self.walked = 0.9 * self.walked + 0.1 * (walk.drafts >= walk.path).any()
    >>> isinstance(WhileWalked(), TreeWindowRule)
    True
    >>> model = TableProvider(random_table(0, 4), 4, max_length=40)
    >>> len(generate(model, [[0]], length=9, method="scd-match", window=WhileWalked()).tokens[0])
    9
    """

    def branches(self, rows: int) -> int:
        """How many slots of the next step's window, whose ``width`` was just asked for, are for branches: fewer than that."""
        ...

    def record_walks(self, rows: int, width: int, branches: int, walks: Sequence[Walk], seconds: float) -> None:
        """What takes the place of ``record`` where it chooses branches: what each sequence walked, told at once."""
        ...


class FixedWindow:
    """Always the same width.

    Examples
    --------
    >>> from coupled_sampling.windows import FixedWindow
    >>> FixedWindow(16).width(rows=4)
    16
    """

    def __init__(self, width: int) -> None:
        self.largest = width

    def width(self, rows: int) -> int:
        """See `WindowRule`."""
        return self.largest

    def record(self, rows: int, width: int, tokens: Sequence[int], seconds: float) -> None:
        """Nothing to learn."""


def find_window_rule(
    window: int | str | WindowRule | None, most: int, ladder: Sequence[Rung] | None = None
) -> WindowRule:
    """The rule that ``window`` means: a number of slots, "auto", a rule, or None for 32 slots or as many as there can be.

    "auto" searches ``ladder``, see `WindowSearch`.

    Raises
    ------
    InvalidArgument
        It is none of them, or wider than the model takes.

    Examples
    --------
    >>> from coupled_sampling.windows import find_window_rule
    >>> find_window_rule(8, most=64).width(rows=1)
    8
    >>> type(find_window_rule("auto", most=64)).__name__
    'WindowSearch'
    """
    if window is None:
        return FixedWindow(min(_USUAL, most))
    if isinstance(window, str) and window == "auto":
        return WindowSearch(most, ladder=ladder)
    if isinstance(window, WindowRule):
        rule = window
    elif isinstance(window, bool) or not isinstance(window, (int, np.integer)) or window < 1:
        raise InvalidArgument(f"window is {window!r}, expected an integer >= 1, or 'auto'")
    else:
        rule = FixedWindow(int(window))
    if rule.largest > most:
        raise InvalidArgument(f"window is {rule.largest}, the model takes at most {most} slots at once; ask for fewer")
    return rule

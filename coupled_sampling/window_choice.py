"""What one decoder goes by when it makes windows: the rule for their widths, the rule for branches, and who chooses how many."""

from __future__ import annotations

import numpy as np

from coupled_sampling.arguments import shown
from coupled_sampling.branching import BestFirst, Branching, check_room, find_branching, refusal_of_branches
from coupled_sampling.contracts import CoupledStep, TreeSteps
from coupled_sampling.errors import InvalidArgument
from coupled_sampling.step_records import StepRecords
from coupled_sampling.window_search import TREES, Rung, WindowSearch, with_branches
from coupled_sampling.windows import FixedWindow, TreeWindowRule, WindowRule, find_window_rule

__all__ = ["WindowChoice"]


class WindowChoice:
    """Widths and branches of the windows for ``step``.

    Parameters
    ----------
    window, branches
        See `coupled_sampling.Decoder`.
    step
        What decides the windows.

    Raises
    ------
    InvalidArgument
        One of the two is none, or the step cannot decide such windows.

    Examples
    --------
    >>> from coupled_sampling import HostStep
    >>> from coupled_sampling.testing import TableProvider, random_table
    >>> from coupled_sampling.window_choice import WindowChoice
    >>> step = HostStep(TableProvider(random_table(0, 4), 4, max_length=128), "scd-match")
    >>> choice = WindowChoice(64, 24, step)
    >>> choice.next(rows=1), choice.branching
    (Rung(width=64, branches=24), BestFirst(24))
    >>> WindowChoice("auto", None, step).rule.rungs[-1]
    Rung(width=256, branches=192)
    """

    def __init__(
        self, window: int | str | WindowRule | None, branches: int | Branching | None, step: CoupledStep
    ) -> None:
        refused, auto = refusal_of_branches(step), isinstance(window, str) and window == "auto"
        if isinstance(window, TreeWindowRule) and branches is None and refused is not None:
            raise InvalidArgument(
                f"window is {window!r}, which chooses branches, but {refused}; give branches=0 for windows without"
            )
        chooses = branches is None and refused is None and (auto or isinstance(window, TreeWindowRule))
        self.branching = None if branches is None else find_branching(branches, step)
        """The rule for branches; None for none."""
        has_branches = chooses or self.branching is not None
        self.columns = step.max_columns if has_branches and isinstance(step, TreeSteps) else step.max_length
        """Most that ``start + W`` may come to."""
        ladder = None
        if chooses:
            ladder = TREES
        elif self.branching is not None:
            ladder = with_branches(int(self.branching.most))
        if ladder is not None:
            ladder = tuple(rung for rung in ladder if rung.path <= step.max_window)
        self.rule = find_window_rule(window, self.columns if has_branches else step.max_window, ladder)
        """The rule for widths."""
        if self.branching is not None and not chooses:
            self._check_room(branches, auto=auto)
        self._chooser = self.rule if (chooses or auto) and isinstance(self.rule, TreeWindowRule) else None
        if chooses:
            self.branching = BestFirst(max(1, self.rule.largest - 1))
        matches = step.method.acceptance == "match"
        self.records = StepRecords(
            self.rule, at_once=matches, trees=self._chooser if self.branching is not None else None
        )
        """What the rule is told of."""

    def _check_room(self, branches: int | Branching | None, *, auto: bool) -> None:
        """Refuse branches for which no window has slots, which would be asked for and not used: `InvalidArgument`."""
        rule = self.rule
        if isinstance(rule, FixedWindow) and isinstance(branches, int | np.integer):
            check_room(int(branches), rule.largest)
        wanted = self.branching is not None and self.branching.most
        if wanted and auto and isinstance(rule, WindowSearch) and not any(rung.branches for rung in rule.rungs):
            raise InvalidArgument(
                f"branches is {shown(branches)}, but window 'auto' keeps slots for them where it is at least twice as wide, and "
                f"here it is at most {rule.largest}; ask for fewer, or give the window's width"
            )

    def next(self, rows: int) -> Rung:
        """Slots for the next step of ``rows`` rows, and how many of them are for branches.

        Raises
        ------
        InvalidArgument
            The rule chose what cannot be.
        """
        width = self._chosen("width", self.rule.width(rows), 1, "its largest", self.rule.largest)
        if self.branching is None:
            return Rung(width, 0)
        if self._chooser is None:
            return Rung(width, min(int(self.branching.most), width - 1))
        chosen = self._chooser.branches(rows)
        return Rung(width, self._chosen("branches", chosen, 0, "the width less 1", width - 1))

    def _chosen(self, name: str, value: object, least: int, called: str, most: int) -> int:
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not least <= value <= most:
            raise InvalidArgument(
                f"{type(self.rule).__name__}.{name} returned {value!r}, expected an integer from {least} to {called}, {most}"
            )
        return int(value)
